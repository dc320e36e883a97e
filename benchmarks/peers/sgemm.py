"""The limit of the machine: a product of two large square matrices, in the BLAS of NumPy and in that of PyTorch.

The share that a network reaches is published beside every ratio. A product of size 2048 is long enough for full speed, and
larger than the caches of any processor.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from benchmarks.case import Case, Problem
from benchmarks.peers import Peer, Prepared

SIZE = 2048
FLOPS = 2 * SIZE**3
BLAS = {
    "NumPy": Peer("matrix product, NumPy", "benchmarks.peers.sgemm:numpy"),
    "PyTorch": Peer("matrix product, PyTorch", "benchmarks.peers.sgemm:torch", packages=("torch",)),
}


def numpy(problem: Problem) -> Prepared:
    """Into an existing array."""
    a, b = _factors(problem.case)
    c = np.empty_like(a)
    return Prepared(lambda: np.matmul(a, b, out=c), None, None)


def torch(problem: Problem) -> Prepared:
    """Into an existing tensor."""
    library: Any = importlib.import_module("torch")
    library.set_num_threads(problem.case.threads)
    a, b = (library.from_numpy(v) for v in _factors(problem.case))
    c = library.empty_like(a)
    return Prepared(lambda: library.matmul(a, b, out=c), None, None)


def _factors(case: Case) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, SIZE, SIZE)).astype(case.dtype)
    return a, b
