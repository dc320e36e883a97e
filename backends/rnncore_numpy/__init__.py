"""The NumPy backend, a complete plugin of version 2 of the contract. ``from rnncore_numpy import RNN`` chooses it by import."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

import rnncore
from rnncore.backend.arrays import from_user
from rnncore_numpy._scans import NumpyScans
from rnncore_numpy._threads import limit_threads as limit_threads
from rnncore_numpy._threads import product as product
from rnncore_numpy._threads import threads as threads

name = "numpy"
native_package = "numpy"
contract_version = 2
writable = True

RNN, RNNCell = rnncore.bound_to(name)

_SCANS = NumpyScans()


def namespace() -> Any:
    """NumPy by way of array-api-compat."""
    import array_api_compat.numpy as xp

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


def synchronize(device: Any, /) -> None:
    """Do nothing: NumPy's work is finished when a call returns."""


def scans() -> NumpyScans:
    """Both scans with preallocated results."""
    return _SCANS
