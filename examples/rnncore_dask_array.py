"""A backend for a lazy library: Dask's arrays, which record operations as a graph and compute when numbers are asked for.

``rnncore.testing.check_backend(rnncore_dask_array)`` runs the conformance suite on it, without installing it.
docs/writing-a-backend.md says what a lazy library needs, and why.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np

name = "dask"
native_package = "dask.array"
contract_version = 2


@cache
def namespace() -> Any:
    """That of array-api-compat, but for two functions."""
    xp = import_module("array_api_compat.dask.array")
    return SimpleNamespace(**{n: getattr(xp, n) for n in dir(xp)} | {"stack": _stack, "reshape": _reshape})


def is_native(x: object, /) -> bool:
    """Whether x is one of Dask's arrays."""
    library = sys.modules.get("dask.array")
    return library is not None and isinstance(x, library.Array)


def devices() -> Sequence[str]:
    """The host."""
    return ("cpu",)


def asarray(x: np.ndarray[Any, Any], /, *, dtype: Any, device: Any) -> Any:
    """A copy of one chunk, as a graph has a node for each chunk of each operation."""
    return _dask().from_array(np.array(x, dtype=dtype), chunks=-1)


def to_numpy(x: Any, /) -> np.ndarray[Any, Any]:
    """Compute x from the last arrays that were kept; in this thread, as the nodes are too small for others."""
    return np.asarray(x.compute(scheduler="synchronous"))


def synchronize(device: Any, /) -> None:
    """Nothing runs in the background."""


def scans() -> None:
    """None of its own."""


def _stack(arrays: Sequence[Any], /, *, axis: int = 0) -> Any:
    """Compute the states of a scan, which ends here, and keep them in one chunk.

    Otherwise the graph grows with every step, layer and derivative, and each array that is read computes its past again.
    """
    return _dask().stack(arrays, axis=axis).rechunk(-1).persist(scheduler="synchronous")


def _reshape(x: Any, /, shape: tuple[int, ...], *, copy: bool | None = None) -> Any:
    """Reshape arrays without elements too, which Dask's own function cannot."""
    return x.reshape(shape) if math.prod(x.shape) else _dask().zeros(shape, dtype=x.dtype)


def _dask() -> Any:
    return import_module("dask.array")
