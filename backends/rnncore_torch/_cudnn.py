"""Run whole networks by PyTorch's own function: on CUDA by cuDNN, where no kernel of the CuPy backend takes them.

So do tensors of a user's subclass on any device, which then see the function that they see in ``torch.nn.RNN``.

cuDNN has first derivatives only, so calls that are known to need more never run here: forward mode, ``torch.func``, a compiler.
A second backward pass cannot be foreseen; it ends in PyTorch's own error, like that of ``torch.nn.RNN``. For both,
``torch.backends.cudnn.flags(enabled=False)`` around the call avoids it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rnncore.backend.contract import ScanRequest
from rnncore.nonlinearity.nonlinearity import Nonlinearity
from rnncore_torch import _cuda, _private

__all__ = ["WORDS", "run", "takes"]

WORDS = "cuDNN, as torch.nn.RNN has it, without second derivatives"


def takes(
    x: Tensor, h0: Tensor, weights: list[list[Any]], steps: int, batch: int, dtype: torch.dtype, f: Nonlinearity
) -> bool:
    """Whether cuDNN runs a call of a network.

    Parameters
    ----------
    x, h0 : Tensor
    weights : list of list of Tensor
    steps, batch : int
    dtype : torch.dtype
        The dtype of the computation, autocast included.
    f : Nonlinearity
    """
    if _cuda.index_of(x) is None or torch.compiler.is_compiling() or _private.is_transformed():
        return False
    if not acceptable(x) or not _private.is_concrete(x, h0, *(w for row in weights for w in row)):
        return False
    return picked(_cuda.index_of(x), steps, batch, int(h0.shape[-1]), dtype, f)


def picked(index: int | None, steps: int, batch: int, width: int, dtype: torch.dtype, f: Nonlinearity) -> bool:
    """Whether the rule leaves a call of this size to cuDNN, on a device that has it."""
    if _cuda.setting() != _cuda.RULE:
        return False
    if dtype not in _cuda.DTYPES:
        return True
    request = ScanRequest("nonlinear", steps, batch, width, _cuda.DTYPES[dtype], index, False, f)
    return _cuda.ruled(request)[0] is None


def acceptable(x: Tensor) -> bool:
    """Whether cuDNN is installed, takes such a tensor, and is not turned off by the user."""
    return bool(torch.backends.cudnn.is_acceptable(x))  # type: ignore[no-untyped-call]


def run(module: Any, x: Tensor, h0: Tensor, weights: list[list[Any]], sizes: Tensor | None) -> tuple[Tensor, Tensor]:
    """Output and last states of x (T, B, I), or of packed x (N, I) with the batch `sizes` of its steps."""
    function: Callable[..., tuple[Tensor, Tensor]] = getattr(torch, module.mode.lower())
    flat = [w for row in weights for w in row]
    options = (module.bias, module.num_layers, module.dropout, module.training, module.bidirectional)
    if sizes is None:
        return function(x, h0, flat, *options, False)
    return function(x, sizes, h0, flat, *options)
