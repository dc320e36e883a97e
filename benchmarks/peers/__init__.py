"""The libraries that are measured: a table of all, and one file for each.

A file has functions ``name(problem) -> Prepared``, which the table names as "module:function". A library's file is imported
only in its own process, so nothing here imports one.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, Protocol

from benchmarks.case import Numbers, Problem

__all__ = ["CHECKPOINTED", "PEERS", "Peer", "Prepared", "Unsupported", "prepare", "usable"]


class Unsupported(Exception):
    """The library cannot do this case; the text is the reason."""


class Clock(Protocol):
    """Returns the mean seconds of a number of calls in a row."""

    def __call__(self, call: Callable[[], Any], calls: int = 1, /) -> float: ...


def host_clock(call: Callable[[], Any], calls: int = 1, /) -> float:
    """Return the mean seconds of calls in a row, by the host's clock."""
    began = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - began) / calls


@dataclass(frozen=True)
class Prepared:
    """A case laid out in a library's own arrays, weights and layout, ready to run.

    forward : computes output and h_n; all work is finished when it returns, or `clock` waits for it.
    both : computes those and the gradients of x, h0 and all parameters; None if the library has no gradients.
    read : returns the host numbers of either result, named as in :func:`benchmarks.naive.both`, time first; None if what is
        timed is not a network.
    about : which kernel runs, and why.
    clock : times calls.
    peak : returns the most bytes on the device that a call holds beyond those before it.
    """

    forward: Callable[[], Any]
    both: Callable[[], Any] | None
    read: Callable[[Any], Numbers] | None
    about: str = ""
    clock: Clock = host_clock
    peak: Callable[[Callable[[], Any]], int] | None = None

    def passes(self) -> dict[str, Callable[[], Any]]:
        """Return the calls by the names of :data:`benchmarks.case.PASSES`."""
        return {"forward": self.forward} | ({} if self.both is None else {"both": self.both})


@dataclass(frozen=True)
class Peer:
    """One line of every table.

    Parameters
    ----------
    label : str
    factory : str
        "module:function".
    ours : bool
    packages : tuple of str
        Distributions that must be installed.
    env : mapping
        Variables of its process.
    modules : tuple of str
        Modules that must exist: a backend that this version lacks is left out.
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
    f"{name}, checkpoint": replace(peer, label=f"{peer.label}, checkpoint=True", factory=f"{peer.factory}_checkpoint")
    for name, peer in PEERS.items()
    if name in ("numpy", "numba", "torch")
}
# The names that the tables compare.
TORCH, DROP_IN, PLAIN = "torch.nn.RNN", "drop-in", "numpy"
NUMPY_ARRAYS = ("numpy", "numba")


def usable(peer: Peer) -> str | None:
    """Return why a peer cannot be measured here, or None; import at most its parent package."""
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
    """Call the function named by "module:function"."""
    module, _, function = factory.partition(":")
    made: Prepared = getattr(importlib.import_module(module), function)(problem)
    return made


def layer_names(k: int) -> tuple[str, str, str, str]:
    """Return the names of one layer's parameters."""
    return f"weight_ih_l{k}", f"weight_hh_l{k}", f"bias_ih_l{k}", f"bias_hh_l{k}"
