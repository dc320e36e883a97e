"""Both scans as ``torch.autograd.Function`` whose derivatives are again scans, so every order of derivative has them.

``forward`` works on plain tensors, step by step in :mod:`rnncore_torch._steps`. ``backward`` and ``jvp`` are written with
the two Functions themselves and with differentiable operations, which is what double backward, forward-over-reverse and
``torch.func`` need. ``vmap`` folds the mapped axis into the batch, or, where every example has a matrix of its own, runs one
scan with one matrix for each: hence the leading axes, p (T, ..., B, H) with w_hh (..., H, H).
"""

from __future__ import annotations

from typing import Any

import array_api_compat.torch as xp
import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from rnncore import scan
from rnncore.backend.contract import ScanRequest
from rnncore.nonlinearity.nonlinearity import Nonlinearity
from rnncore_torch import _steps

InDims = tuple[int | None, ...]


class TorchScans:
    """See :class:`rnncore.backend.Scans`. `overwrite` is taken up where no derivative follows."""

    def unsupported(self, request: ScanRequest, /) -> str | None:
        """Everything but forward mode inside forward mode, where PyTorch drops the inner tangents of custom functions."""
        if nested_forward_mode():
            return (
                "PyTorch treats what a custom function saved as constant in nested forward mode; plain operations run"
            )
        return None

    def explain(self, request: ScanRequest, /) -> str:
        """PyTorch's operations, or a host backend's scan on the tensor's memory, and why."""
        shape = (request.steps, request.batch, request.width)
        device = torch.device(request.device)
        return _steps.reason(request.scan, *shape, getattr(torch, request.dtype), device, request.nonlinearity)

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
        return _nonlinear(p, h0, w_hh, nonlinearity, reverse, overwrite)

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
        return _linear(u, d, s0, m, reverse, overwrite)


SCANS = TorchScans()


class NonlinearScan(Function):
    """``h_t = f(p_t + h_{t-1} W_hh^T)`` of (p, h0, w_hh, nonlinearity, reverse)."""

    @staticmethod
    def forward(p: Tensor, h0: Tensor, w_hh: Tensor, nonlinearity: Nonlinearity, reverse: bool) -> Tensor:
        return _steps.nonlinear(p, h0, w_hh, nonlinearity=nonlinearity, reverse=reverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        p, h0, w_hh, nonlinearity, reverse = inputs
        ctx.nonlinearity, ctx.reverse = nonlinearity, reverse
        kept = (p, h0, w_hh, output) if nonlinearity.derivative_needs_z else (h0, w_hh, output)
        ctx.save_for_backward(*kept)
        ctx.save_for_forward(*kept)

    @staticmethod
    def backward(ctx: Any, d_h: Tensor) -> tuple[Tensor | None, ...]:
        p, h0, w_hh, h = _saved(ctx)
        reverse = ctx.reverse
        d = scan.slope(p, h0, w_hh, h, nonlinearity=ctx.nonlinearity, reverse=reverse, xp=xp)
        # A user's derivative may hand out a tensor that it keeps.
        mine = not ctx.nonlinearity.is_custom
        delta = _linear(d_h, d, torch.zeros_like(h0), w_hh, not reverse, overwrite=mine)
        first = delta[-1] if reverse else delta[0]
        d_h0 = torch.matmul(first, w_hh) if ctx.needs_input_grad[1] else None
        d_w = None
        if ctx.needs_input_grad[2]:
            rest, before = (delta[:-1], h[1:]) if reverse else (delta[1:], h[:-1])
            d_w = torch.matmul(first.mT, h0) + outer(rest, before)
        return delta, d_h0, d_w, None, None

    @staticmethod
    def jvp(ctx: Any, p_dot: Tensor | None, h0_dot: Tensor | None, w_dot: Tensor | None, *rest: None) -> Tensor:
        p, h0, w_hh, h = _saved(ctx)
        d = scan.slope(p, h0, w_hh, h, nonlinearity=ctx.nonlinearity, reverse=ctx.reverse, xp=xp)
        u = torch.zeros_like(h) if p_dot is None else p_dot
        if w_dot is not None:
            u = u + torch.matmul(scan.previous(h, h0, reverse=ctx.reverse, xp=xp), w_dot.mT)
        return _linear(u, d, torch.zeros_like(h0) if h0_dot is None else h0_dot, w_hh.mT, ctx.reverse)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: InDims,
        p: Tensor,
        h0: Tensor,
        w_hh: Tensor,
        nonlinearity: Nonlinearity,
        reverse: bool,
    ) -> tuple[Tensor, int]:
        return _nonlinear(*nonlinear_mapped(info, in_dims, p, h0, w_hh), nonlinearity, reverse), 1


class LinearScan(Function):
    """``s_t = d_t * (u_t + s_{t-1} M)`` of (u, d, s0, m, reverse)."""

    @staticmethod
    def forward(u: Tensor, d: Tensor, s0: Tensor, m: Tensor, reverse: bool) -> Tensor:
        return _steps.linear(u, d, s0, m, reverse=reverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        u, d, s0, m, reverse = inputs
        ctx.reverse = reverse
        ctx.save_for_backward(u, d, s0, m, output)
        ctx.save_for_forward(u, d, s0, m, output)

    @staticmethod
    def backward(ctx: Any, d_s: Tensor) -> tuple[Tensor | None, ...]:
        u, d, s0, m, s = ctx.saved_tensors
        reverse = ctx.reverse
        m_t = m.mT
        zero = torch.zeros_like(s0)
        e = _linear(d_s, d, zero, m_t, not reverse)
        before = scan.previous(s, s0, reverse=reverse, xp=xp)
        d_d = None
        if ctx.needs_input_grad[1]:
            after = scan.previous(e, zero, reverse=not reverse, xp=xp)
            d_d = (d_s + torch.matmul(after, m_t)) * (u + torch.matmul(before, m))
        first = e[-1] if reverse else e[0]
        d_s0 = torch.matmul(first, m_t) if ctx.needs_input_grad[2] else None
        d_m = outer(before, e) if ctx.needs_input_grad[3] else None
        return e, d_d, d_s0, d_m, None

    @staticmethod
    def jvp(
        ctx: Any,
        u_dot: Tensor | None,
        d_dot: Tensor | None,
        s0_dot: Tensor | None,
        m_dot: Tensor | None,
        *rest: None,
    ) -> Tensor:
        u, d, s0, m, s = ctx.saved_tensors
        zero = torch.zeros_like(s0)
        source = torch.zeros_like(u) if u_dot is None else u_dot
        before = scan.previous(s, s0, reverse=ctx.reverse, xp=xp)
        if m_dot is not None:
            source = source + torch.matmul(before, m_dot)
        s0_dot = zero if s0_dot is None else s0_dot
        if d_dot is None:
            return _linear(source, d, s0_dot, m, ctx.reverse)
        # See rnncore.scan.linear_jvp: what stands outside the factor d is split off, and carried by a product.
        c: Tensor = d_dot * (u + torch.matmul(before, m))
        source = source + torch.matmul(scan.previous(c, zero, reverse=ctx.reverse, xp=xp), m)
        return c + _linear(source, d, s0_dot, m, ctx.reverse)

    @staticmethod
    def vmap(
        info: Any, in_dims: InDims, u: Tensor, d: Tensor, s0: Tensor, m: Tensor, reverse: bool
    ) -> tuple[Tensor, int]:
        return _linear(*linear_mapped(info, in_dims, u, d, s0, m), reverse), 1


def nonlinear_mapped(info: Any, in_dims: InDims, p: Tensor, h0: Tensor, w_hh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The arguments of a nonlinear scan under ``vmap`` as those of one scan with another axis before the batch."""
    size, (p_dim, h_dim, w_dim, *_) = info.batch_size, in_dims
    p, h0 = _mapped_to(p, p_dim, 1, size), _mapped_to(h0, h_dim, 0, size)
    return p, h0, _matrices(w_hh, w_dim, h0)


def linear_mapped(
    info: Any, in_dims: InDims, u: Tensor, d: Tensor, s0: Tensor, m: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same for a linear scan."""
    size, (u_dim, d_dim, s_dim, m_dim, *_) = info.batch_size, in_dims
    u, d = _mapped_to(u, u_dim, 1, size), _mapped_to(d, d_dim, 1, size)
    s0 = _mapped_to(s0, s_dim, 0, size)
    return u, d, s0, _matrices(m, m_dim, s0)


def _nonlinear(
    p: Tensor, h0: Tensor, w_hh: Tensor, nonlinearity: Nonlinearity, reverse: bool, overwrite: bool = False
) -> Tensor:
    if overwrite and unfollowed(p, h0, w_hh):
        return _steps.nonlinear(p, h0, w_hh, nonlinearity=nonlinearity, reverse=reverse, overwrite=True)
    if any(map(_steps.is_legacy_batched, (p, h0, w_hh))):
        plain: Tensor = scan.nonlinear(p, h0, w_hh, nonlinearity=nonlinearity, reverse=reverse, xp=xp)
        return plain
    out: Tensor = NonlinearScan.apply(p, h0, w_hh, nonlinearity, reverse)  # type: ignore[no-untyped-call]
    return out


def _linear(u: Tensor, d: Tensor, s0: Tensor, m: Tensor, reverse: bool, overwrite: bool = False) -> Tensor:
    if overwrite and unfollowed(u, d, s0, m):
        return _steps.linear(u, d, s0, m, reverse=reverse, overwrite=True)
    if any(map(_steps.is_legacy_batched, (u, d, s0, m))):
        plain: Tensor = scan.linear(u, d, s0, m, reverse=reverse, xp=xp)
        return plain
    out: Tensor = LinearScan.apply(u, d, s0, m, reverse)  # type: ignore[no-untyped-call]
    return out


def unfollowed(*tensors: Tensor) -> bool:
    """Whether no derivative and no transformation follows what is done to these, so that it may be done in place."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return False
    return not transformed() and _steps.is_concrete(*tensors)


def transformed() -> bool:
    """Whether forward mode is on, or a transformation of ``torch.func`` is at work."""
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def nested_forward_mode() -> bool:
    """Whether torch.func runs forward mode inside forward mode: there even ``tanh`` as a custom function loses its
    second derivative without a word (PyTorch 2.13), so the scans must be plain operations."""
    stack = torch._C._functorch.get_interpreter_stack()
    return stack is not None and sum(level.key() == _FORWARD_MODE for level in stack) > 1


_FORWARD_MODE = torch._C._functorch.TransformType.Jvp


def _saved(ctx: Any) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    kept: tuple[Tensor, ...] = ctx.saved_tensors
    if len(kept) == 4:
        return kept[0], kept[1], kept[2], kept[3]
    return None, kept[0], kept[1], kept[2]


def outer(a: Tensor, b: Tensor) -> Tensor:
    """The sum over time and batch of a_t^T b_t: (T, ..., B, H), (T, ..., B, K) to (..., H, K), by one product."""
    rows_a, rows_b = _rows(a), _rows(b)
    return torch.matmul(rows_a.mT, rows_b)


def _rows(a: Tensor) -> Tensor:
    if a.dim() > 3:
        a = a.movedim(0, -3)
    return a.reshape(*a.shape[:-3], a.shape[-3] * a.shape[-2], a.shape[-1])


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
