"""The strict backend: array-api-strict on simulated devices, so that code that would fail on a GPU fails on any machine.

It has nothing but the standard, and its default device is not the host. A forgotten ``device=``, a NumPy function and a dtype
promotion that only NumPy has are errors. :mod:`rnncore_strict._guard` also forbids implicit transfers to the host. It is slow
and meant for tests. ``from rnncore_strict import RNN`` chooses it by import. The plugin implements version 2 of the contract.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import rnncore
from rnncore.backend.arrays import FLOATS, dtype_name, find_dtype, from_user

name = "strict"
native_package = "array_api_strict"
contract_version = 2

RNN, RNNCell = rnncore.bound_to(name)

HOST = "CPU_DEVICE"
# "no_float64" behaves like Apple's GPUs, "no_x64" like JAX with its default settings.
DEVICES = ("device1", "device2", HOST, "no_float64", "no_x64")


def namespace() -> Any:
    """array-api-strict, with its array class guarded from the first call on."""
    import array_api_strict as xp

    from rnncore_strict._guard import install

    install(xp)
    return xp


def is_native(x: object, /) -> bool:
    """Whether x is an array of array-api-strict."""
    xp = sys.modules.get("array_api_strict")
    return xp is not None and isinstance(x, xp._array_object.Array)


def devices() -> Sequence[Any]:
    """The simulated devices; the first one is not the host."""
    import array_api_strict as xp

    return tuple(xp.Device(n) for n in DEVICES)


def device_name(device: Any, /) -> str:
    """The device's name in array-api-strict."""
    return str(device._device)


def asarray(x: Any, /, *, dtype: Any = None, device: Any = None) -> Any:
    """A copy in the dtype on the device. All arguments are as in :func:`rnncore.backend.arrays.from_user`."""
    host, dtype, device = from_user(x, dtype, device, backend=sys.modules[__name__], kind=namespace().Device)
    if dtype_name(host.dtype if dtype is None else dtype) in FLOATS:  # else the library's own error
        dtype = find_dtype(host.dtype if dtype is None else dtype, xp=namespace(), device=device)
    return namespace().asarray(np.array(host), dtype=dtype, device=device, copy=True)


def to_numpy(x: Any, /) -> np.ndarray[Any, Any]:
    """A copy on the host, transferred explicitly."""
    xp = namespace()
    return np.array(np.from_dlpack(x.to_device(xp.Device(HOST))))


def synchronize(device: Any, /) -> None:
    """Do nothing: work is finished when a call returns."""


def scans() -> None:
    """None: this backend tests the reference."""
    return None


def unguarded() -> Callable[[], None]:
    """Remove the guard, for programs that also use array-api-strict elsewhere; return a function that restores it."""
    from rnncore_strict._guard import install, remove

    xp = namespace()
    remove(xp)
    return lambda: install(xp)
