"""Both scans as ``torch.autograd.Function`` whose derivatives are again scans, so derivatives of every order run on them.

``forward`` works on plain tensors, step by step in :mod:`rnncore_torch._steps`. ``backward`` and ``jvp`` are the rules of
:mod:`rnncore.scan`, with the two Functions as its scans and differentiable operations around them, as double backward,
forward-over-reverse and ``torch.func`` need. ``vmap`` folds the mapped axis into the batch, or, where every example has a
matrix of its own, runs one scan with one matrix for each: hence the leading axes, p (T, ..., B, H) with w_hh (..., H, H).
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from rnncore import scan
from rnncore.backend.contract import ScanRequest
from rnncore.nonlinearity.nonlinearity import Nonlinearity
from rnncore_torch import _namespace as xp
from rnncore_torch import _private, _steps

InDims = tuple[int | None, ...]
Tensors = tuple[Tensor | None, ...]


class TorchScans:
    """See :class:`rnncore.backend.Scans`. The result takes the storage of an argument only where no derivative follows.

    Parameters
    ----------
    plain : object
        Has both scans without derivatives, as functions ``nonlinear`` and ``linear``.

    Where PyTorch would get a custom function wrong, a scan runs as the plain operations of :mod:`rnncore.scan`: in nested
    forward mode, in ``torch.jit.trace`` and under ``is_grads_batched=True``. That depends on the call and not on the request,
    so ``kernel="require"`` does not refuse it.
    """

    def __init__(self, plain: Any) -> None:
        self.plain = plain

    def unsupported(self, request: ScanRequest, /) -> str | None:
        """None: every request runs here."""
        return None

    def explain(self, request: ScanRequest, /) -> str:
        """PyTorch's operations, or a host backend's scan on the tensor's memory, and why."""
        return _steps.reason(request)

    def nonlinear(
        self,
        p: Tensor,
        h0: Tensor,
        w_hh: Tensor,
        /,
        *,
        nonlinearity: Nonlinearity,
        reverse: bool,
        overwrite: bool = False,
    ) -> Tensor:
        """``h_t = f(p_t + h_{t-1} W_hh^T)``."""
        if self.plain is _steps and torch.compiler.is_compiling():
            from rnncore_torch import _compiled

            return _compiled.nonlinear(p, h0, w_hh, nonlinearity, reverse)
        if _private.is_unfollowed(p, h0, w_hh):
            options: dict[str, Any] = {"nonlinearity": nonlinearity, "reverse": reverse, "overwrite": overwrite}
            return cast("Tensor", self.plain.nonlinear(p, h0, w_hh, **options))
        h: Tensor
        if _private.needs_plain_operations(p, h0, w_hh):
            h = scan.nonlinear(p, h0, w_hh, nonlinearity=nonlinearity, reverse=reverse, xp=xp)
        else:
            h = NonlinearScan.apply(p, h0, w_hh, nonlinearity, reverse, self)  # type: ignore[no-untyped-call]  # PyTorch gives it no types
        return h

    def linear(
        self,
        u: Tensor,
        d: Tensor,
        s0: Tensor,
        m: Tensor,
        /,
        *,
        reverse: bool,
        overwrite: bool = False,
    ) -> Tensor:
        """``s_t = d_t * (u_t + s_{t-1} M)``."""
        if self.plain is _steps and torch.compiler.is_compiling():
            from rnncore_torch import _compiled

            return _compiled.linear_scan(u, d, s0, m, reverse)
        if _private.is_unfollowed(u, d, s0, m):
            return cast("Tensor", self.plain.linear(u, d, s0, m, reverse=reverse, overwrite=overwrite))
        s: Tensor
        if _private.needs_plain_operations(u, d, s0, m):
            s = scan.linear(u, d, s0, m, reverse=reverse, xp=xp)
        else:
            s = LinearScan.apply(u, d, s0, m, reverse, self)  # type: ignore[no-untyped-call]  # PyTorch gives it no types
        return s


SCANS = TorchScans(_steps)


class NonlinearScan(Function):
    """``h_t = f(p_t + h_{t-1} W_hh^T)`` of (p, h0, w_hh, nonlinearity, reverse, scans)."""

    @staticmethod
    def forward(
        p: Tensor, h0: Tensor, w_hh: Tensor, nonlinearity: Nonlinearity, reverse: bool, scans: TorchScans
    ) -> Tensor:
        return cast("Tensor", scans.plain.nonlinear(p, h0, w_hh, nonlinearity=nonlinearity, reverse=reverse))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        p, h0, w_hh, f, reverse, ctx.scans = inputs
        ctx.nonlinearity, ctx.options = f, {"nonlinearity": f, "reverse": reverse, "xp": xp}
        kept = (p if f.derivative_needs_z else None, h0, w_hh, output)
        ctx.save_for_backward(*kept)
        ctx.save_for_forward(*kept)

    @staticmethod
    def backward(ctx: Any, d_h: Tensor) -> Tensors:
        # A user's derivative may return a tensor that it keeps, whose storage may not be reused.
        linear = partial(ctx.scans.linear, overwrite=not ctx.nonlinearity.is_custom)
        needs = ctx.needs_input_grad[:3]
        found = scan.nonlinear_vjp(d_h, *ctx.saved_tensors, **ctx.options, linear_scan=linear, needs=needs)
        return found.p, found.h0, found.w_hh, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        h_dot: Tensor = scan.nonlinear_jvp(
            *tangents[:3], *ctx.saved_tensors, **ctx.options, linear_scan=ctx.scans.linear
        )
        return h_dot

    @staticmethod
    def vmap(info: Any, in_dims: InDims, *given: Any) -> tuple[Tensor, int]:
        *tensors, f, reverse, scans = given
        return scans.nonlinear(*mapped(info, in_dims, *tensors), nonlinearity=f, reverse=reverse), 1


class LinearScan(Function):
    """``s_t = d_t * (u_t + s_{t-1} M)`` of (u, d, s0, m, reverse, scans)."""

    @staticmethod
    def forward(u: Tensor, d: Tensor, s0: Tensor, m: Tensor, reverse: bool, scans: TorchScans) -> Tensor:
        return cast("Tensor", scans.plain.linear(u, d, s0, m, reverse=reverse))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, reverse, scans = inputs
        ctx.options = {"reverse": reverse, "xp": xp, "linear_scan": scans.linear}
        ctx.save_for_backward(*tensors, output)
        ctx.save_for_forward(*tensors, output)

    @staticmethod
    def backward(ctx: Any, d_s: Tensor) -> Tensors:
        return *scan.linear_vjp(d_s, *ctx.saved_tensors, **ctx.options, needs=ctx.needs_input_grad[:4]), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        s_dot: Tensor = scan.linear_jvp(*tangents[:4], *ctx.saved_tensors, **ctx.options)
        return s_dot

    @staticmethod
    def vmap(info: Any, in_dims: InDims, *given: Any) -> tuple[Tensor, int]:
        *tensors, reverse, scans = given
        return scans.linear(*mapped(info, in_dims, *tensors), reverse=reverse), 1


def mapped(info: Any, in_dims: InDims, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors of a scan under ``vmap`` as those of one scan with another axis before the batch."""
    *sequences, state, matrix = zip(tensors, in_dims, strict=False)  # the options have dims as well
    first = _mapped_to(*state, 0, info.batch_size)
    return *(_mapped_to(*x, 1, info.batch_size) for x in sequences), first, _matrices(*matrix, first)


def _mapped_to(x: Tensor, dim: int | None, to: int, size: int) -> Tensor:
    """x with the mapped axis at `to`; where x is not mapped, the same for every example."""
    if dim is not None:
        return x.movedim(dim, to)
    return x.unsqueeze(to).expand(*x.shape[:to], size, *x.shape[to:])


def _matrices(w: Tensor, dim: int | None, like: Tensor) -> Tensor:
    """One matrix for every example: a mapped one with its axis in front, a shared one left to broadcasting.

    `like` (V, ..., B, H) has the axes that matmul will broadcast against; a mapped w (V, H, H) needs as many.
    """
    if dim is None:
        return w
    w = w.movedim(dim, 0)
    while w.dim() < like.dim():
        w = w.unsqueeze(1)
    return w
