"""Scans inside a compiled function: one node each for the compiler to call, with derivatives of every order and kind.

PyTorch's operators have no derivatives under ``torch.func``, and no forward mode. So the compiler is told to call the functions
here without looking into them. They run while the compiler follows derivatives, are differentiated by the rules of
:mod:`rnncore_torch._scans`, and what remains are calls of operators.

Imported by the function that is compiled: the import of PyTorch's compiler takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rnncore import get_nonlinearity
from rnncore.nonlinearity.nonlinearity import Nonlinearity
from rnncore_torch import _ops, _private, _scans, _steps


@torch.compiler.disable  # type: ignore[untyped-decorator]  # PyTorch gives it no types
def uncompiled(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a function outside the compiler's graph, which breaks there."""
    return function(*args, **options)


class Operators:
    """Both scans without derivatives, each as one operator."""

    @staticmethod
    def nonlinear(p: Tensor, h0: Tensor, w_hh: Tensor, /, *, nonlinearity: Nonlinearity, reverse: bool) -> Tensor:
        """``h_t = f(p_t + h_{t-1} W_hh^T)``."""
        f = nonlinearity
        h: Tensor
        if f.alpha is None and f.beta is None and f.clip is None:
            h = _ops.nonlinear_scan(p, h0, w_hh, f.name, reverse)
        else:
            h = nonlinear_scan_with(p, h0, w_hh, f.name, reverse, f.alpha, f.beta, f.clip)
        return h

    @staticmethod
    def linear(u: Tensor, d: Tensor, s0: Tensor, m: Tensor, /, *, reverse: bool) -> Tensor:
        """``s_t = d_t * (u_t + s_{t-1} M)``."""
        s: Tensor = _ops.linear_scan(u, d, s0, m, reverse)
        return s


SCANS = _scans.TorchScans(Operators)


@torch.library.custom_op("rnncore::nonlinear_scan_with", mutates_args=())
def nonlinear_scan_with(
    p: Tensor,
    h0: Tensor,
    w_hh: Tensor,
    name: str,
    reverse: bool,
    alpha: float | None,
    beta: float | None,
    clip: float | None,
) -> Tensor:
    """Like :func:`rnncore_torch._ops.nonlinear_scan`, for a function with parameters. Differentiated by :data:`SCANS` alone."""
    f = get_nonlinearity(name, alpha=alpha, beta=beta, clip=clip)
    return _steps.nonlinear(p, h0, w_hh, nonlinearity=f, reverse=reverse)


@nonlinear_scan_with.register_fake
def _(p: Tensor, *others: Any) -> Tensor:
    return torch.empty(p.shape, dtype=p.dtype, device=p.device)


def nonlinear(p: Tensor, h0: Tensor, w_hh: Tensor, f: Nonlinearity, reverse: bool) -> Tensor:
    """``h_t = f(p_t + h_{t-1} W_hh^T)``, for the compiler to look into."""
    # A graph cannot hold a user's functions. In forward mode around a compiled function the compiler sees no tangents, and the
    # operators would lose them in silence.
    if f.is_custom or _private.is_dual():
        h: Tensor = uncompiled(_scans.SCANS.nonlinear, p, h0, w_hh, nonlinearity=f, reverse=reverse)
        return h
    return nonlinear_scan(p, h0, w_hh, f.name, reverse, f.alpha, f.beta, f.clip)


def nonlinear_scan(
    p: Tensor,
    h0: Tensor,
    w_hh: Tensor,
    name: str,
    reverse: bool,
    alpha: float | None = None,
    beta: float | None = None,
    clip: float | None = None,
) -> Tensor:
    """``h_t = f(p_t + h_{t-1} W_hh^T)`` for a function of that name."""
    f = get_nonlinearity(name, alpha=alpha, beta=beta, clip=clip)
    return SCANS.nonlinear(p, h0, w_hh, nonlinearity=f, reverse=reverse)


def linear_scan(u: Tensor, d: Tensor, s0: Tensor, m: Tensor, reverse: bool) -> Tensor:
    """``s_t = d_t * (u_t + s_{t-1} M)``."""
    return SCANS.linear(u, d, s0, m, reverse=reverse)


torch.compiler.allow_in_graph([nonlinear_scan, linear_scan])  # type: ignore[no-untyped-call]  # PyTorch gives it no types
