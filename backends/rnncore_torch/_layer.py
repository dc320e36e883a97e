"""One layer in one direction as one differentiable function: the scan, and the products over all steps around it.

For first derivatives the layer is one node of autograd's graph: it keeps x, the states and the weights, and its backward
works in windows of time, in place. Where higher derivatives, forward mode, ``torch.func`` or a compiler follow, the same layer
is a linear map and a scan of :mod:`rnncore_torch._scans`.

The caller may change the states in place before the backward pass, as those of ``torch.nn.RNN`` on a CPU: the node notices,
and computes them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from rnncore import scan
from rnncore.nonlinearity.nonlinearity import Nonlinearity
from rnncore_torch import _namespace as xp
from rnncore_torch import _ops, _private, _scans, _steps

# Elements of each array in one window of time: 4 MiB in float32, so that the products find the scan's results in the
# processor's last cache.
WINDOW_NUMBERS = 2**20
# On other devices each window costs a launch of every kernel, so there should be few: not measured on a GPU yet.
DEVICE_WINDOW_NUMBERS = 2**24

# x, h0, w_ih, w_hh and the bias.
Given: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]


def layer(
    x: Tensor, h0: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Tensor | None, nonlinearity: Nonlinearity, reverse: bool
) -> Tensor:
    """The states (T, B, H) of x (T, B, I) from h0 (B, H); h_t at its own t in either direction.

    The derivative of `nonlinearity` must be determined by h.
    """
    if torch.compiler.is_compiling():
        function: Callable[..., Tensor] = _ops.nonlinear_scan
        if _private.is_transformed():
            from rnncore_torch import _compiled

            if _private.is_dual():
                alone: Tensor = _compiled.uncompiled(layer, x, h0, w_ih, w_hh, bias, nonlinearity, reverse)
                return alone
            function = _compiled.nonlinear_scan
        return _own(function(functional.linear(x, w_ih, bias), h0, w_hh, nonlinearity.name, reverse))
    given = (x, h0, w_ih, w_hh) if bias is None else (x, h0, w_ih, w_hh, bias)
    if _private.is_transformed() or not _private.is_concrete(*given):
        return _own(_composed(x, h0, w_ih, w_hh, bias, nonlinearity, reverse))
    if torch.is_grad_enabled() and any(a.requires_grad for a in given):
        out: Tensor = Layer.apply(x, h0, w_ih, w_hh, bias, nonlinearity, reverse)  # type: ignore[no-untyped-call]
        return out
    return _states(x, h0, w_ih, w_hh, bias, nonlinearity, reverse)


class Layer(Function):
    """The states of (x, h0, w_ih, w_hh, bias, nonlinearity, reverse)."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        """The states."""
        h = _states(*given)
        *tensors, ctx.nonlinearity, ctx.reverse = given
        # By `data` autograd does not refuse states that were changed; the counter tells.
        ctx.save_for_backward(*tensors, h.data)
        ctx.counter, ctx.changes = _private.counter(h), h._version
        return h

    @staticmethod
    def backward(ctx: Any, d_h: Tensor) -> tuple[Tensor | None, ...]:
        """Backpropagation through time; in place where no derivative follows."""
        x, h0, w_ih, w_hh, bias, h = ctx.saved_tensors
        given, options = (x, h0, w_ih, w_hh, bias), (ctx.nonlinearity, ctx.reverse)
        changed = ctx.counter._version != ctx.changes
        if _private.is_unfollowed(d_h, x, h0, w_ih, w_hh, w_hh if bias is None else bias):
            h = _states(*given, *options) if changed else h
            return *_pulled_back(d_h, given, h, *options, ctx.needs_input_grad), None, None
        # The derivative of a derivative passes through the states as well.
        h = _composed(*given, *options) if changed or torch.is_grad_enabled() else h
        return *_followed_pull(d_h, given, h, *options, ctx.needs_input_grad), None, None


def _own(h: Tensor) -> Tensor:
    """The states for the caller to change, as the derivative of a scan is made of the states that it returned."""
    return h.clone() if torch.is_grad_enabled() else h


def _composed(
    x: Tensor, h0: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Tensor | None, nonlinearity: Nonlinearity, reverse: bool
) -> Tensor:
    """The states, by operations that can be differentiated again."""
    p = functional.linear(x, w_ih, bias)
    return _scans.SCANS.nonlinear(p, h0, w_hh, nonlinearity=nonlinearity, reverse=reverse)


def _states(
    x: Tensor, h0: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Tensor | None, nonlinearity: Nonlinearity, reverse: bool
) -> Tensor:
    """The states, where no derivative follows."""
    steps, batch, _ = x.shape
    p = torch.empty((steps, batch, w_hh.shape[0]), dtype=x.dtype, device=x.device)
    if bias is None:
        torch.mm(_rows(x), w_ih.mT, out=_rows(p))
    else:
        torch.addmm(bias, _rows(x), w_ih.mT, out=_rows(p))
    return _steps.nonlinear(p, h0, w_hh, nonlinearity=nonlinearity, reverse=reverse, overwrite=True)


def _pulled_back(
    d_h: Tensor, given: Given, h: Tensor, nonlinearity: Nonlinearity, reverse: bool, needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """The gradients of x, h0, w_ih, w_hh and the bias, window by window against the direction of the layer.

    BPTT as in :func:`rnncore.network.layer.vjp`, without the products for arguments that need no gradient.
    """
    x, h0, w_ih, w_hh, _ = given
    steps = x.shape[0]
    d_x = torch.empty(x.shape, dtype=x.dtype, device=x.device) if needs[0] else None
    d_w_ih = torch.zeros_like(w_ih, memory_format=torch.contiguous_format) if needs[2] else None
    d_w_hh = torch.zeros_like(w_hh, memory_format=torch.contiguous_format) if needs[3] else None
    d_bias = torch.zeros(w_hh.shape[0], dtype=x.dtype, device=x.device) if needs[4] else None
    first = torch.zeros_like(h0)
    for a, b in _windows(h, not reverse):
        h_w = h[a:b]
        d = nonlinearity.derivative_from_h(h_w, xp=xp)
        delta = _steps.linear(d_h[a:b], d, first, w_hh, reverse=not reverse, overwrite=True)
        first = (delta[-1] if reverse else delta[0]).clone()
        rows = _rows(delta)
        if d_x is not None:
            torch.mm(rows, w_ih, out=_rows(d_x[a:b]))
        if d_w_ih is not None:
            d_w_ih.addmm_(rows.mT, _rows(x[a:b]))
        if d_w_hh is not None:
            entry = b if reverse else a - 1
            state = h0 if entry in (-1, steps) else h[entry]
            rest, before = (delta[:-1], h_w[1:]) if reverse else (delta[1:], h_w[:-1])
            d_w_hh.addmm_(first.mT, state)
            d_w_hh.addmm_(_rows(rest).mT, _rows(before))
        if d_bias is not None:
            d_bias += rows.sum(0)
    return d_x, torch.mm(first, w_hh) if needs[1] else None, d_w_ih, d_w_hh, d_bias


def _followed_pull(
    d_h: Tensor, given: Given, h: Tensor, nonlinearity: Nonlinearity, reverse: bool, needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Like :func:`_pulled_back`, by operations that can be differentiated again."""
    x, h0, w_ih, w_hh, _ = given
    options: dict[str, Any] = {
        "nonlinearity": nonlinearity,
        "reverse": reverse,
        "xp": xp,
        "linear_scan": _scans.SCANS.linear,
    }
    found = scan.nonlinear_vjp(d_h, None, h0, w_hh, h, **options, needs=(True, needs[1], needs[3]))
    delta: Tensor = found.p
    d_x = torch.matmul(delta, w_ih) if needs[0] else None
    d_w_ih = torch.matmul(_rows(delta).mT, _rows(x)) if needs[2] else None
    return d_x, found.h0, d_w_ih, found.w_hh, delta.sum((0, 1)) if needs[4] else None


def _windows(h: Tensor, reverse: bool) -> Iterator[tuple[int, int]]:
    steps, batch, width = h.shape
    numbers = WINDOW_NUMBERS if h.device.type == "cpu" else DEVICE_WINDOW_NUMBERS
    length = max(1, numbers // max(1, batch * width))
    starts = range(0, steps, length)
    for a in reversed(starts) if reverse else starts:
        yield a, min(a + length, steps)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0] * x.shape[1], x.shape[2])
