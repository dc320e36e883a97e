"""Both scans as operators: one node each for compilers, with dynamic shapes.

The body of an operator runs on plain tensors, by the loop of :mod:`rnncore_torch._steps`. The gradients are the rules of
:mod:`rnncore.scan`, with the linear operator as their scan. Operators have no forward mode: PyTorch refuses it inside a
compiled function.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rnncore import get_nonlinearity, scan
from rnncore_torch import _namespace as xp
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
    options: dict[str, Any] = {"nonlinearity": get_nonlinearity(ctx.nonlinearity), "reverse": ctx.reverse, "xp": xp}
    needs = ctx.needs_input_grad[:3]
    found = scan.nonlinear_vjp(d_h, None, *ctx.saved_tensors, **options, linear_scan=_linear_operator, needs=needs)
    return found.p, found.h0, found.w_hh, None, None


def _keep_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.reverse = inputs
    ctx.save_for_backward(*tensors, output)


def _pull_linear(ctx: Any, d_s: Tensor) -> tuple[Tensor | None, ...]:
    options: dict[str, Any] = {"reverse": ctx.reverse, "xp": xp, "linear_scan": _linear_operator}
    return *scan.linear_vjp(d_s, *ctx.saved_tensors, **options, needs=ctx.needs_input_grad[:4]), None


def _linear_operator(u: Tensor, d: Tensor, s0: Tensor, m: Tensor, *, reverse: bool) -> Tensor:
    out: Tensor = linear_scan(u, d, s0, m, reverse)
    return out


def _map_nonlinear(info: Any, in_dims: tuple[Any, ...], *given: Any) -> tuple[Tensor, int]:
    *tensors, nonlinearity, reverse = given
    return nonlinear_scan(*_scans.mapped(info, in_dims, *tensors), nonlinearity, reverse), 1


def _map_linear(info: Any, in_dims: tuple[Any, ...], *given: Any) -> tuple[Tensor, int]:
    *tensors, reverse = given
    return linear_scan(*_scans.mapped(info, in_dims, *tensors), reverse), 1


nonlinear_scan.register_autograd(_pull_nonlinear, setup_context=_keep_nonlinear)
linear_scan.register_autograd(_pull_linear, setup_context=_keep_linear)
nonlinear_scan.register_vmap(_map_nonlinear)
linear_scan.register_vmap(_map_linear)
