"""Who computes: a table of what is measured, and what each file beside it must be.

A file has functions ``name(problem) -> Prepared``; the table names them as "module:function". A library's file is imported
in its own process and nowhere else, so nothing here imports one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from benchmarks.case import Case, Numbers, Problem

__all__ = ["CHECKPOINTED", "PEERS", "Peer", "Prepared", "Unsupported", "prepare", "usable"]


class Unsupported(Exception):
    """The library does not do this case; the text says why."""


@dataclass(frozen=True)
class Prepared:
    """A case laid out in a library's own arrays, weights and layout: what is left to do is to run it.

    forward : computes output and h_n, to the end: nothing is still under way when it returns.
    both : computes those and the gradients of x, h0 and all parameters; None where the library has none.
    read : host numbers of what either returned, under the names of :func:`benchmarks.naive.both`, time first; None where what
        is timed is no network.
    about : what is worth knowing beside the times: which kernel runs, and why.
    """

    forward: Callable[[], Any]
    both: Callable[[], Any] | None
    read: Callable[[Any], Numbers] | None
    about: str = ""


@dataclass(frozen=True)
class Peer:
    """One line of every table.

    Parameters
    ----------
    label : str
        As readers know it.
    factory : str
        "module:function".
    ours : bool
    packages : tuple of str
        Distributions that must be installed.
    env : mapping
        Variables of its process.
    modules : tuple of str
        Modules that must be there: a backend that is not in this version is left out.
    """

    label: str
    factory: str
    ours: bool = False
    packages: tuple[str, ...] = ()
    env: Mapping[str, str] | tuple[()] = ()
    modules: tuple[str, ...] = ()


_KERAS = "benchmarks.peers.keras_rnn"
PEERS: Mapping[str, Peer] = {
    "numpy": Peer("rnncore, NumPy", "benchmarks.peers.rnncore_models:numpy", True),
    "numba": Peer("rnncore, Numba", "benchmarks.peers.rnncore_models:numba", True, ("numba",), (), ("rnncore_numba",)),
    "torch": Peer("rnncore, PyTorch", "benchmarks.peers.rnncore_models:torch", True, ("torch",)),
    "drop-in": Peer("rnncore_torch.nn.RNN", "benchmarks.peers.torch_rnn:ours", True, ("torch",), (), ("rnncore_torch.nn",)),
    "jax": Peer("rnncore, JAX, jit", "benchmarks.peers.rnncore_models:jax", True, ("jax",)),
    "mlx": Peer("rnncore, MLX", "benchmarks.peers.rnncore_models:mlx", True, ("mlx",)),
    "torch.nn.RNN": Peer("torch.nn.RNN", "benchmarks.peers.torch_rnn:theirs", packages=("torch",)),
    "onnxruntime": Peer("ONNX Runtime, RNN", "benchmarks.peers.onnx_rnn:rnn", packages=("onnxruntime", "onnx")),
    "lax.scan": Peer("lax.scan, jit", "benchmarks.peers.jax_scan:naive", packages=("jax",)),
    "lax.scan, hoisted": Peer("lax.scan, jit, x W_ih hoisted", "benchmarks.peers.jax_scan:hoisted", packages=("jax",)),
    "flax": Peer("Flax nnx.RNN, jit", "benchmarks.peers.flax_rnn:rnn", packages=("jax", "flax")),
    "keras-torch": Peer("Keras SimpleRNN on PyTorch", f"{_KERAS}:torch", False, ("keras", "torch"), {"KERAS_BACKEND": "torch"}),
    "keras-jax": Peer("Keras SimpleRNN on JAX, jit", f"{_KERAS}:jax", False, ("keras", "jax"), {"KERAS_BACKEND": "jax"}),
    "numpy loop": Peer("NumPy, plain loop", "benchmarks.peers.numpy_loop:loop"),
}  # fmt: skip
CHECKPOINTED: Mapping[str, Peer] = {
    f"{name}, checkpoint": Peer(
        f"{PEERS[name].label}, checkpoint=True",
        f"{PEERS[name].factory}_checkpoint",
        True,
        PEERS[name].packages,
        (),
        PEERS[name].modules,
    )
    for name in ("numpy", "numba", "torch")
}
# The peers of these names are what the tables compare with; they stand here once.
TORCH, DROP_IN, PLAIN = "torch.nn.RNN", "drop-in", "numpy"
NUMPY_ARRAYS = ("numpy", "numba")


def usable(peer: Peer) -> str | None:
    """Why a peer cannot be measured here; None where it can. Imports nothing of it but its parent package."""
    for package in peer.packages:
        try:
            version(package)
        except PackageNotFoundError:
            return f"{package} is not installed"
    for module in peer.modules:
        try:
            found = find_spec(module)
        except ModuleNotFoundError:
            found = None
        if found is None:
            return f"there is no {module}"
    return None


def prepare(factory: str, problem: Problem) -> Prepared:
    """Call what "module:function" names."""
    module, _, function = factory.partition(":")
    made: Prepared = getattr(importlib.import_module(module), function)(problem)
    return made


def gradients(case: Case, x: Any, h0: Any, params: Mapping[str, Any]) -> dict[str, Any]:
    """Names for gradients that a library returned in its own structure."""
    return {"x": x, "h0": h0, **{name: params[name] for k in range(case.layers) for name in layer_names(k)}}


def layer_names(k: int) -> tuple[str, str, str, str]:
    """The parameters of one layer."""
    return f"weight_ih_l{k}", f"weight_hh_l{k}", f"bias_ih_l{k}", f"bias_hh_l{k}"
