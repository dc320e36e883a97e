"""The benchmark on a GPU: rnncore's kernels against cuDNN, JAX's lax.scan and a loop of CuPy calls, in full float32.

Cases, workers, checks and rounds are those of the benchmark on the CPU. Before a shape is timed, states and gradients of its
first steps are compared with float64. Times are CUDA events; JAX has the host's clock.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from functools import partial
from typing import Any

from benchmarks import tables
from benchmarks.case import Case
from benchmarks.gpu.suite import RULE
from benchmarks.peers import Peer
from benchmarks.pool import Pool
from benchmarks.rounds import Numbers, measure
from benchmarks.tables import Pick

# T, B, H; I = H.
SHAPES = (
    (256, 1, 64), (1024, 1, 16), (128, 32, 128), (100, 16, 256), (4096, 16, 256),
    (512, 64, 320), (512, 64, 384), (512, 16, 512), (512, 64, 512), (50, 1024, 512),
    (512, 64, 768), (512, 64, 1024), (256, 64, 2048), (256, 1, 2048),
)  # fmt: skip
# How many steps are compared with float64: 16, and fewer of wide networks, so that the host is not slower than the GPU. Which
# kernel runs depends on batch and width alone.
CHECKED_STEPS, FEWEST_CHECKED, CHECKED_PRODUCTS = 16, 2, 2**29
ERROR = 64.0  # eps, as everywhere in rnncore

# No library may round the factors of a product, whatever the user's variables say.
ENVIRONMENT = {
    "NVIDIA_TF32_OVERRIDE": "0",
    "CUPY_TF32": "0",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "JAX_PLATFORMS": "",
}
_MODELS, _TORCH = "benchmarks.peers.rnncore_models", "benchmarks.peers.torch_rnn"
OURS, CUDNN, DROP_IN, KERNELS, OPERATIONS = "rnncore_cupy", "torch_cudnn", "rnncore_torch", "kernels", "operations"
# Label, factory, whether it is ours, the libraries that have to see a GPU, and how rnncore_torch chooses its code.
_PEERS: dict[str, tuple[str, str, bool, tuple[str, ...], str]] = {
    OURS: ("rnncore, CuPy", f"{_MODELS}:cupy", True, ("cupy",), "rule"),
    DROP_IN: ("rnncore_torch.nn.RNN", f"{_TORCH}:ours", True, ("torch",), "rule"),
    CUDNN: ("torch.nn.RNN, cuDNN", f"{_TORCH}:theirs", False, ("torch",), "rule"),
    "jax_scan": ("lax.scan, jit", "benchmarks.peers.jax_scan:hoisted", False, ("jax",), "rule"),
    KERNELS: ("rnncore_torch.nn.RNN, CuPy's kernels", f"{_TORCH}:ours", True, ("torch", "cupy"), "kernels"),
    OPERATIONS: ("rnncore_torch.nn.RNN, PyTorch's operations", f"{_TORCH}:ours", True, ("torch",), "pytorch"),
    "cupy_loop": ("CuPy, plain loop", "benchmarks.peers.numpy_loop:cupy", False, ("cupy",), "rule"),
}
PEERS = {n: Peer(label, at, ours, env={**ENVIRONMENT, RULE: way}) for n, (label, at, ours, _, way) in _PEERS.items()}
AGAINST = (CUDNN, "jax_scan", "cupy_loop")


def _pair(theirs: str, seconds: Any, ours: Any) -> tuple[str, str]:
    return theirs, OURS


COMPARISONS: dict[str, Pick] = {name: partial(_pair, name) for name in AGAINST}


def able(libraries: Collection[str]) -> list[str]:
    """Return the entries that run where these libraries see a GPU."""
    return [name for name, (_, _, _, needs, _) in _PEERS.items() if set(needs) <= set(libraries)]


def of_shape(
    pool: Pool, names: list[str], shape: tuple[int, int, int], numbers: Numbers, rounds: int, device: str = "cuda"
) -> dict[str, Any]:
    """Measure one shape, and return what is published of it."""
    steps, batch, width = shape
    checked = min(steps, CHECKED_STEPS, max(FEWEST_CHECKED, CHECKED_PRODUCTS // (batch * width * width)))
    case = Case(*shape, threads=os.cpu_count() or 1, device=device)
    found = measure(pool, names, case, numbers, rounds=rounds, steps=checked, limit=ERROR)
    entry = tables.summary(found, (), COMPARISONS)
    for key in ("about", "peak", "kind"):
        entry[key] = {n: peer[key] for n, peer in found["peers"].items() if peer.get(key)}
    return entry


def goal(shape: tuple[int, ...], of: str, other: str) -> float:
    """Return the ratio to aim at."""
    _, batch, width = shape
    if other != CUDNN:
        return 5.0
    if width <= 256:
        return 1.0
    if width <= 1024 and batch <= 64:
        return 2.0 if of == "both" else 1.0
    return 0.95
