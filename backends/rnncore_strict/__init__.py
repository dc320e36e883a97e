"""array-api-strict on devices that are none: what would break on a GPU breaks here, on any machine.

It has nothing but the standard, and its default device is not the host's, so a forgotten ``device=``, a NumPy function or a
dtype that only NumPy promotes to is an error. :mod:`rnncore_strict._guard` makes an error of every silent way to the host too.
Slow: for tests. ``from rnncore_strict import RNN`` chooses it by import.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import rnncore

name = "strict"
native_package = "array_api_strict"
contract_version = 2

RNN, RNNCell = rnncore.bound_to(name)

HOST = "CPU_DEVICE"
# The one without float64 behaves like Apple's GPUs, the one without any 64-bit dtype like JAX as it comes.
DEVICES = ("device1", "device2", HOST, "no_float64", "no_x64")


def namespace() -> Any:
    """array-api-strict itself, guarded from here on."""
    import array_api_strict as xp

    from rnncore_strict._guard import install

    install(xp)
    return xp


def is_native(x: object, /) -> bool:
    """Whether x is an array of array-api-strict."""
    xp = sys.modules.get("array_api_strict")
    return xp is not None and isinstance(x, xp._array_object.Array)


def devices() -> Sequence[Any]:
    """The fake devices, one that is not the host first."""
    import array_api_strict as xp

    return tuple(xp.Device(n) for n in DEVICES)


def device_name(device: Any, /) -> str:
    """The name that array-api-strict gives it."""
    return str(device._device)


def asarray(x: np.ndarray[Any, Any], /, *, dtype: Any, device: Any) -> Any:
    """A copy in the dtype on the device."""
    return namespace().asarray(np.array(x), dtype=dtype, device=device, copy=True)


def to_numpy(x: Any, /) -> np.ndarray[Any, Any]:
    """A copy, by way of the host device."""
    xp = namespace()
    return np.array(np.from_dlpack(x.to_device(xp.Device(HOST))))


def synchronize(device: Any, /) -> None:
    """Nothing runs behind the caller's back."""


def scans() -> None:
    """None: the reference is what is to be tested here."""
    return None


def unguarded() -> Callable[[], None]:
    """Take the guard off, for a program that uses array-api-strict for something else too; returns what puts it back."""
    from rnncore_strict._guard import install, remove

    xp = namespace()
    remove(xp)
    return lambda: install(xp)
