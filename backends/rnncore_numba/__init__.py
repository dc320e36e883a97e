"""The Numba backend: NumPy's arrays with compiled scans. ``from rnncore_numba import RNN`` chooses it by import.

The backend of a NumPy array is "numpy", so a model uses this one only if it is named: ``rnncore.RNN(..., backend="numba")``.
The plugin implements version 2 of the contract.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

import rnncore
from rnncore.backend.arrays import from_user
from rnncore_numba._products import product as product
from rnncore_numba._scans import NumbaScans
from rnncore_numba._threads import allowed
from rnncore_numba._threads import limit_threads as limit_threads

name = "numba"
native_package = "numpy"
contract_version = 2
writable = True

RNN, RNNCell = rnncore.bound_to(name)

_SCANS = NumbaScans()


def unusable() -> str | None:
    """Name the missing package, found without an import, or return None."""
    for package in ("numba", "threadpoolctl"):
        if find_spec(package) is None:
            return f"{package} is not installed"
    return None


def namespace() -> Any:
    """NumPy by way of array-api-compat; Numba is imported with it."""
    import array_api_compat.numpy as xp
    import numba  # noqa: F401

    return xp


def is_native(x: object, /) -> bool:
    """Whether x is a plain array. Masked arrays and matrices are not: their arithmetic follows other rules."""
    return isinstance(x, np.ndarray) and not isinstance(x, (np.ma.MaskedArray, np.matrix))


def devices() -> Sequence[str]:
    """The host."""
    return ("cpu",)


def asarray(x: Any, /, *, dtype: Any = None, device: Any = None) -> np.ndarray[Any, Any]:
    """A contiguous copy in the dtype. All arguments are as in :func:`rnncore.backend.arrays.from_user`."""
    host, dtype, _ = from_user(x, dtype, device, backend=sys.modules[__name__], kind=())
    return np.array(host, dtype=dtype, order="C")


def to_numpy(x: np.ndarray[Any, Any], /) -> np.ndarray[Any, Any]:
    """x itself."""
    return x


def read_only(x: np.ndarray[Any, Any], /) -> np.ndarray[Any, Any]:
    """A view of x that cannot be written to."""
    view = x.view()
    view.flags.writeable = False
    return view


def threads() -> int:
    """The number of threads that a call may use now."""
    return allowed()


def synchronize(device: Any, /) -> None:
    """Do nothing: work is finished when a call returns."""


def scans() -> NumbaScans:
    """Both scans as compiled code."""
    return _SCANS
