"""Both scans as operators that ``torch.compile`` and ``torch.export`` see as one node each, with shapes left open.

The body of an operator runs on tensors with numbers in them, so it is the loop of :mod:`rnncore_torch._steps`, whatever
the compiler does with the products around it. The gradient of either is the other again; forward mode has no place in an
operator, and inside a compiled function is PyTorch's to refuse.
"""

from __future__ import annotations

from typing import Any

import array_api_compat.torch as xp
import torch
from torch import Tensor

from rnncore import get_nonlinearity, scan
from rnncore_torch import _scans, _steps


@torch.library.custom_op("rnncore::nonlinear_scan", mutates_args=())
def nonlinear_scan(p: Tensor, h0: Tensor, w_hh: Tensor, nonlinearity: str, reverse: bool) -> Tensor:
    """``h_t = f(p_t + h_{t-1} W_hh^T)`` for a function of that name whose derivative h determines."""
    f = get_nonlinearity(nonlinearity)
    return _steps.nonlinear(p, h0, w_hh, nonlinearity=f, reverse=reverse)


@torch.library.custom_op("rnncore::linear_scan", mutates_args=())
def linear_scan(u: Tensor, d: Tensor, s0: Tensor, m: Tensor, reverse: bool) -> Tensor:
    """``s_t = d_t * (u_t + s_{t-1} M)``."""
    return _steps.linear(u, d, s0, m, reverse=reverse)


@nonlinear_scan.register_fake
def _(p: Tensor, h0: Tensor, w_hh: Tensor, nonlinearity: str, reverse: bool) -> Tensor:
    return torch.empty(p.shape, dtype=p.dtype, device=p.device)


@linear_scan.register_fake
def _(u: Tensor, d: Tensor, s0: Tensor, m: Tensor, reverse: bool) -> Tensor:
    return torch.empty(u.shape, dtype=u.dtype, device=u.device)


def _keep_nonlinear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, h0, w_hh, ctx.nonlinearity, ctx.reverse = inputs
    ctx.save_for_backward(h0, w_hh, output)


def _pull_nonlinear(ctx: Any, d_h: Tensor) -> tuple[Tensor | None, ...]:
    h0, w_hh, h = ctx.saved_tensors
    reverse = ctx.reverse
    d = get_nonlinearity(ctx.nonlinearity).derivative_from_h(h, xp=xp)
    delta = linear_scan(d_h, d, torch.zeros_like(h0), w_hh, not reverse)
    first = delta[-1] if reverse else delta[0]
    d_h0 = torch.matmul(first, w_hh) if ctx.needs_input_grad[1] else None
    d_w = None
    if ctx.needs_input_grad[2]:
        rest, before = (delta[:-1], h[1:]) if reverse else (delta[1:], h[:-1])
        d_w = torch.matmul(first.mT, h0) + _scans.outer(rest, before)
    return delta, d_h0, d_w, None, None


def _keep_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    u, d, s0, m, ctx.reverse = inputs
    ctx.save_for_backward(u, d, s0, m, output)


def _pull_linear(ctx: Any, d_s: Tensor) -> tuple[Tensor | None, ...]:
    u, d, s0, m, s = ctx.saved_tensors
    found = scan.linear_vjp(d_s, u, d, s0, m, s, reverse=ctx.reverse, xp=xp, linear_scan=_linear_operator)
    return found.u, found.d, found.s0, found.m, None


def _linear_operator(u: Tensor, d: Tensor, s0: Tensor, m: Tensor, *, reverse: bool) -> Tensor:
    out: Tensor = linear_scan(u, d, s0, m, reverse)
    return out


def _map_nonlinear(info: Any, in_dims: tuple[Any, ...], *given: Any) -> tuple[Tensor, int]:
    p, h0, w_hh, nonlinearity, reverse = given
    arguments = _scans.nonlinear_mapped(info, in_dims, p, h0, w_hh)
    return nonlinear_scan(*arguments, nonlinearity, reverse), 1


def _map_linear(info: Any, in_dims: tuple[Any, ...], *given: Any) -> tuple[Tensor, int]:
    u, d, s0, m, reverse = given
    return linear_scan(*_scans.linear_mapped(info, in_dims, u, d, s0, m), reverse), 1


nonlinear_scan.register_autograd(_pull_nonlinear, setup_context=_keep_nonlinear)
linear_scan.register_autograd(_pull_linear, setup_context=_keep_linear)
nonlinear_scan.register_vmap(_map_nonlinear)
linear_scan.register_vmap(_map_linear)
