"""All uses of PyTorch's private names: whether a tensor is plain memory, and whether anything records operations on it.

PyTorch has no public names for these questions. Where a version lacks one of the names, the answers are the careful ones: every
tensor counts as followed and as no plain memory, and PyTorch's own operations run step by step. That is slower, and right; a
warning at import says so.

=================================================  ==================================================================
name                                               use
=================================================  ==================================================================
``forward_ad._current_level``                      -1 outside forward mode
``_C._are_functorch_transforms_active``            whether a transformation of ``torch.func`` is active
``_C._functorch.get_interpreter_stack``            all of them, or None
``_C._functorch.TransformType``                    the kind of a transformation
``_C._functorch.is_legacy_batchedtensor``          tensors of ``torch.autograd.grad(is_grads_batched=True)``
``_C._len_torch_dispatch_stack``                   the number of active dispatch modes, such as fake tensors
``_C._get_tracing_state``                          the graph of ``torch.jit.trace``, or None
``Tensor._is_zerotensor``                          zeros without memory, which forward mode makes
``Tensor._version``                                counts changes in place; also in ``_layer``, and in ``__init__``
=================================================  ==================================================================
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

NAMES = (
    "autograd.forward_ad._current_level",
    "_C._are_functorch_transforms_active",
    "_C._functorch.get_interpreter_stack",
    "_C._functorch.TransformType.Jvp",
    "_C._functorch.is_legacy_batchedtensor",
    "_C._len_torch_dispatch_stack",
    "_C._get_tracing_state",
    "Tensor._is_zerotensor",
    "_C._functorch.TransformType.Vmap",
)


def _found(name: str) -> Any:
    owner: Any = torch
    for part in name.split("."):
        owner = getattr(owner, part, None)
    return owner


MISSING = tuple(name for name in NAMES if _found(name) is None)
if MISSING:
    lacking = ", ".join(f"torch.{name}" for name in MISSING)
    warnings.warn(
        f"PyTorch {torch.__version__} has no {lacking}: the backend 'torch' runs PyTorch's own operations, step by step, "
        "as it cannot tell where compiled scans are safe",
        RuntimeWarning,
        stacklevel=2,
    )

_is_active: Callable[[], bool] = _found(NAMES[1])
_levels: Callable[[], Any] = _found(NAMES[2])
_FORWARD_MODE = _found(NAMES[3])
# PyTorch's first vmap, of ``is_grads_batched=True``, knows no rule of a custom function and no writing in place.
_is_legacy_batched: Callable[[Tensor], bool] = _found(NAMES[4])
_dispatch_modes: Callable[[], int] = _found(NAMES[5])
_trace: Callable[[], Any] = _found(NAMES[6])
_NOTHING = torch.empty(0)
_PLAIN_TYPES = (Tensor, torch.nn.Parameter)


def counter(x: Tensor) -> Tensor:
    """An empty tensor with the ``_version`` of x: it counts changes in place of x and its views, and keeps no memory alive."""
    shared = x.detach()  # the counter is shared, and stays when the memory is replaced
    shared.data = _NOTHING if x.is_cpu else x.new_empty(0)
    return shared


def is_concrete(*tensors: Tensor) -> bool:
    """Whether these are plain tensors with real storage, and no tracing or dispatch mode is active."""
    if MISSING or _dispatch_modes() > 0 or _trace() is not None:
        return False
    for x in tensors:  # a loop, as a generator for all() takes three times as long
        if type(x) not in _PLAIN_TYPES:
            return False
        if x._is_zerotensor() or _is_legacy_batched(x):
            return False
    return True


def is_subclassed(x: Tensor, h0: Tensor, weights: list[list[Tensor]]) -> bool:
    """Whether one is of a subclass of Tensor, which may follow every function called on it, outside a compiler."""
    for tensors in ((x, h0), *weights):
        for a in tensors:
            if type(a) not in _PLAIN_TYPES and isinstance(a, Tensor):
                return not torch.compiler.is_compiling()
    return False


def is_transformed() -> bool:
    """Whether forward mode or a transformation of ``torch.func`` is active."""
    return bool(MISSING) or forward_ad._current_level >= 0 or _is_active()


def is_dual() -> bool:
    """Whether forward mode is active and ``torch.func`` is not."""
    return not MISSING and forward_ad._current_level >= 0 and not _is_active()


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
    (PyTorch 2.13). ``torch.jit.trace`` cannot record a custom function, ``is_grads_batched=True`` cannot map one, and a user's
    subclass of Tensor would come back as a plain tensor.
    """
    if MISSING or _trace() is not None:
        return True
    watched = _dispatch_modes() > 0  # the tensors of a tracer are of subclasses as well
    for x in tensors:
        if (type(x) not in _PLAIN_TYPES and not watched) or _is_legacy_batched(x):
            return True
    levels = [level.key() for level in _levels() or ()]
    return levels.count(_FORWARD_MODE) > 1


_MAPPED = _found(NAMES[-1])


def is_differentiated() -> bool:
    """Whether forward mode or a transformation of ``torch.func`` other than ``vmap`` is active."""
    if MISSING or forward_ad._current_level >= 0:
        return True
    return any(level.key() != _MAPPED for level in _levels() or ())
