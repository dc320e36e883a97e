"""All uses of PyTorch's private names: whether a tensor is plain memory, and whether anything records operations on it.

PyTorch has no public names for these questions. All of these names were seen in PyTorch 2.13; a version without one of them
fails at import or at the first call, and this is the place for a fallback.

=================================================  ==================================================================
name                                               use
=================================================  ==================================================================
``forward_ad._current_level``                      -1 outside forward mode
``_C._functorch.peek_interpreter_stack``           the innermost transformation of ``torch.func``, or None
``_C._functorch.get_interpreter_stack``            all of them, or None
``_C._functorch.TransformType``                    the kind of a transformation
``_C._functorch.is_legacy_batchedtensor``          tensors of ``torch.autograd.grad(is_grads_batched=True)``
``_C._len_torch_dispatch_stack``                   the number of active dispatch modes, such as fake tensors
``_C._get_tracing_state``                          the graph of ``torch.jit.trace``, or None
``Tensor._is_zerotensor``                          zeros without memory, which forward mode makes
``_VF.rnn_tanh``, ``_VF.rnn_relu``                 the functions that ``torch.nn.RNN`` calls
``Tensor._version``                                counts changes in place; in ``__init__``, which imports no PyTorch
=================================================  ==================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_functorch: Any = torch._C._functorch
_dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_trace: Callable[[], Any] = torch._C._get_tracing_state
# PyTorch's first vmap, of ``is_grads_batched=True``, knows no rule of a custom function and no writing in place.
_is_legacy_batched: Callable[[Tensor], bool] = _functorch.is_legacy_batchedtensor
_FORWARD_MODE = _functorch.TransformType.Jvp
_PLAIN_TYPES = (Tensor, torch.nn.Parameter)


def is_concrete(*tensors: Tensor) -> bool:
    """Whether these are plain tensors with real storage, and no tracing or dispatch mode is active."""
    if _dispatch_modes() > 0 or _trace() is not None:
        return False
    for x in tensors:  # a loop, as a generator for all() takes three times as long
        if type(x) not in _PLAIN_TYPES:
            return False
        if x._is_zerotensor() or _is_legacy_batched(x):
            return False
    return True


def is_transformed() -> bool:
    """Whether forward mode or a transformation of ``torch.func`` is active."""
    return forward_ad._current_level >= 0 or _functorch.peek_interpreter_stack() is not None


def is_unfollowed(*tensors: Tensor) -> bool:
    """Whether no derivative, transformation or trace follows operations on these, so that they may be done in place."""
    if is_transformed() or not is_concrete(*tensors):
        return False
    if torch.is_grad_enabled():
        for x in tensors:
            if x.requires_grad:
                return False
    return True


def needs_plain_operations(*tensors: Tensor) -> bool:
    """Whether a custom function would give a wrong result or an error here, and only PyTorch's own operations are right.

    In nested forward mode the tensors that a custom function saved count as constants, and second derivatives are lost silently
    (PyTorch 2.13). ``torch.jit.trace`` cannot record a custom function, and ``is_grads_batched=True`` cannot map one.
    """
    if _trace() is not None or any(map(_is_legacy_batched, tensors)):
        return True
    levels = [level.key() for level in _functorch.get_interpreter_stack() or ()]
    return levels.count(_FORWARD_MODE) > 1


def rnn_function(mode: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """The function that ``torch.nn.RNN`` calls in the mode "RNN_TANH" or "RNN_RELU"."""
    function: Callable[..., tuple[Tensor, Tensor]] = getattr(torch._VF, mode.lower())
    return function
