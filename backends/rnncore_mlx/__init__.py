"""The MLX backend: a namespace and nothing else. ``from rnncore_mlx import RNN`` chooses it by import.

MLX computes when numbers are asked for (``mx.eval``, or any way to the host), and only in the thread that a result was written
down in: evaluate before another thread is given it. MLX itself is imported at first use.
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

name = "mlx"
native_package = "mlx"
contract_version = 2

RNN, RNNCell = rnncore.bound_to(name)

# The oldest that was checked. Some before it compute float64 with Python numbers rounded to float32.
OLDEST = (0, 32, 4)


def unusable() -> str | None:
    """An old MLX has wrong numbers; one without metadata is taken as it comes."""
    try:
        found = version("mlx")
    except PackageNotFoundError:
        return None
    old = tuple(map(int, re.findall(r"\d+", found)[:3])) < OLDEST
    return f"mlx {found} is older than {'.'.join(map(str, OLDEST))}" if old else None


def namespace() -> Any:
    """``mlx.core`` with what the Array API standard has and it lacks."""
    from rnncore_mlx import _namespace

    return _namespace


def is_native(x: object, /) -> bool:
    """Whether x is an ``mlx.core.array``."""
    kind = getattr(sys.modules.get("mlx.core"), "array", None)
    return kind is not None and isinstance(x, kind)


def devices() -> Sequence[Any]:
    """MLX's own default device and no other: its arrays lie in memory that all devices share, and have no device to tell."""
    import mlx.core as mx

    return (mx.default_device(),)


def device_name(device: Any, /) -> str:
    """ "cpu" or "gpu"."""
    return str(device.type.name)


def scope(device: Any, /) -> AbstractContextManager[Any]:
    """Work goes to the device's stream, whatever MLX's default device is by now."""
    import mlx.core as mx

    return mx.stream(device)


def asarray(x: np.ndarray[Any, Any], /, *, dtype: Any, device: Any) -> Any:
    """A new array of the dtype, in the shared memory."""
    import mlx.core as mx

    # Contiguous, as MLX knows no negative strides.
    return mx.array(np.asarray(x, order="C"), dtype=dtype)


def to_numpy(x: Any, /) -> np.ndarray[Any, Any]:
    """A copy on the host, computed now; bfloat16, which NumPy lacks, as float32."""
    import mlx.core as mx

    return np.array(x.astype(mx.float32) if x.dtype == mx.bfloat16 else x)


def synchronize(device: Any, /) -> None:
    """Wait for what is being computed. What nobody has asked the numbers of has not begun: that is for ``mx.eval``."""
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
    """ "tf32" on a GPU unless MLX_ENABLE_TF32=0 was set before MLX was imported: rounding is what MLX does if not told."""
    import mlx.core as mx

    return "tf32" if device.type == mx.gpu and os.environ.get("MLX_ENABLE_TF32", "1") != "0" else "full"


def scans() -> None:
    """None: the reference runs."""
    return None
