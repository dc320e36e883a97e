"""The MLX backend: a namespace without scans of its own. ``from rnncore_mlx import RNN`` chooses it by import.

MLX is lazy: it computes in ``mx.eval`` or when numbers are copied to the host, and only in the thread that created a result.
Evaluate a result before passing it to another thread. MLX itself is imported at first use. The plugin implements version 2 of
the contract.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

import rnncore
from rnncore.backend.arrays import from_user
from rnncore_mlx._modules import find_module as find_module
from rnncore_mlx._modules import from_module as from_module
from rnncore_mlx._modules import to_module as to_module

name = "mlx"
native_package = "mlx"
contract_version = 2

RNN, RNNCell = rnncore.bound_to(name)

# The oldest version tested. Some earlier ones round Python numbers to float32 in float64 arithmetic.
OLDEST = (0, 32, 4)


def unusable() -> str | None:
    """Report an MLX that is too old, whose results are wrong. One without metadata is accepted."""
    try:
        found = version("mlx")
    except PackageNotFoundError:
        return None
    old = tuple(map(int, re.findall(r"\d+", found)[:3])) < OLDEST
    return f"mlx {found} is older than {'.'.join(map(str, OLDEST))}" if old else None


def namespace() -> Any:
    """``mlx.core`` with the missing functions of the Array API standard."""
    from rnncore_mlx import _namespace

    return _namespace


def is_native(x: object, /) -> bool:
    """Whether x is an ``mlx.core.array``."""
    kind = getattr(sys.modules.get("mlx.core"), "array", None)
    return kind is not None and isinstance(x, kind)


def devices() -> Sequence[Any]:
    """MLX's default device only: arrays are in memory shared by all devices and have no device of their own."""
    import mlx.core as mx

    return (mx.default_device(),)


def device_name(device: Any, /) -> str:
    """Name a device as "cpu" or "gpu"."""
    return str(device.type.name)


def scope(device: Any, /) -> AbstractContextManager[Any]:
    """Send work to the device's stream, regardless of MLX's current default device."""
    import mlx.core as mx

    return mx.stream(device)


def asarray(x: Any, /, *, dtype: Any = None, device: Any = None) -> Any:
    """A new array of the dtype, in shared memory. All arguments are as in :func:`rnncore.backend.arrays.from_user`."""
    import mlx.core as mx

    host, dtype, _ = from_user(x, dtype, device, backend=sys.modules[__name__], kind=mx.Device)
    # A copy, as MLX knows no negative strides: even a contiguous array has one along an axis of one element.
    return mx.array(np.array(host, order="C"), dtype=dtype)


def to_numpy(x: Any, /) -> np.ndarray[Any, Any]:
    """Evaluate x and copy it to the host; bfloat16, which NumPy lacks, as float32."""
    import mlx.core as mx

    return np.array(x.astype(mx.float32) if x.dtype == mx.bfloat16 else x)


def synchronize(device: Any, /) -> None:
    """Wait for running work. Arrays that were never evaluated have not started: use ``mx.eval`` for them."""
    import mlx.core as mx

    mx.synchronize(device)


def grad(function: Callable[..., Any], /) -> Callable[..., tuple[Any, ...]]:
    """``mx.grad`` with respect to every argument."""
    import mlx.core as mx

    def gradients(*arrays: Any) -> tuple[Any, ...]:
        found = mx.grad(function, argnums=tuple(range(len(arrays))))(*arrays)
        return found if isinstance(found, tuple) else (found,)  # MLX has no tuple of one

    return gradients


def jit(function: Callable[..., Any], /) -> Callable[..., Any]:
    """``mx.compile``."""
    import mlx.core as mx

    compiled: Callable[..., Any] = mx.compile(function)
    return compiled


def precision(device: Any, /) -> str:
    """Return "tf32" on a GPU unless MLX_ENABLE_TF32=0, else "full". MLX reads the variable when it is imported."""
    import mlx.core as mx

    return "tf32" if device.type == mx.gpu and os.environ.get("MLX_ENABLE_TF32", "1") != "0" else "full"


def scans() -> None:
    """None: the reference runs."""
    return None
