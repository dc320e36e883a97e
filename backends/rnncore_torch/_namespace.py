"""array_api_compat.torch with a few functions replaced.

Its ``matmul`` takes longer to promote dtypes than to multiply. The others call aliases in PyTorch, which
``torch.autograd.grad(is_grads_batched=True)`` cannot map; it maps the functions used here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from array_api_compat.torch import *  # noqa: F403
from torch import Tensor

_compat: Any = importlib.import_module("array_api_compat.torch")


def matmul(x1: Tensor, x2: Tensor, /) -> Tensor:
    """The product, in the dtype of both or in the one that they promote to."""
    product: Tensor = torch.matmul(x1, x2) if x1.dtype == x2.dtype else _compat.matmul(x1, x2)
    return product


def matrix_transpose(x: Tensor, /) -> Tensor:
    """x with its last two axes exchanged."""
    return x.mT


def broadcast_to(x: Tensor, /, shape: Sequence[int]) -> Tensor:
    """A view of x in the shape."""
    return x.expand(tuple(shape))


def concat(arrays: Sequence[Tensor], /, *, axis: int | None = 0) -> Tensor:
    """The arrays joined along an axis; None joins them flattened."""
    if axis is None:
        return torch.cat([x.flatten() for x in arrays])
    return torch.cat(tuple(arrays), axis)


moveaxis: Callable[..., Tensor] = torch.movedim
