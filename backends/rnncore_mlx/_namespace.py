"""``mlx.core`` as an Array API namespace: its own functions, and seven names that are missing there or differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

bool = mx.bool_


def __getattr__(name: str) -> Any:
    return getattr(mx, name)


def zeros(shape: int | Sequence[int], *, dtype: Any = None, device: Any = None) -> mx.array:
    """``mx.zeros``, which takes the dtype by position and calls a device a stream."""
    return mx.zeros(shape, mx.float32 if dtype is None else dtype, stream=device)


empty = zeros


def astype(x: mx.array, dtype: Any, /, *, copy: Any = True, device: Any = None) -> mx.array:
    """``mx.astype``, which has no ``copy``; rnncore changes no MLX array in place."""
    return mx.astype(x, dtype, stream=device)


def vecdot(x1: mx.array, x2: mx.array, /, *, axis: int = -1) -> mx.array:
    """Sum the products over an axis; MLX has no such function."""
    return mx.sum(x1 * x2, axis=axis)


def sort(x: mx.array, /, *, axis: int = -1, descending: Any = False, stable: Any = True) -> mx.array:
    """``mx.sort``, which has no ``stable``; for plain numbers it makes no difference."""
    ordered = mx.sort(x, axis=axis)
    return mx.flip(ordered, axis=axis) if descending else ordered


def exp(x: mx.array, /) -> mx.array:
    """``mx.exp``, in float64 by ``expm1``: there MLX's own has 24 correct bits and overflows at 88.0."""
    if x.dtype != mx.float64:
        return mx.exp(x)
    falling = x < 0
    grown = 1 + mx.expm1(mx.where(falling, -x, x))
    return mx.where(falling, 1 / grown, grown)
