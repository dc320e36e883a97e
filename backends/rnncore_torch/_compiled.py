"""A scan under ``torch.func`` inside a compiled function: one node for the compiler to call, with derivatives of every order.

PyTorch's operators have no derivatives under ``torch.func``, and no forward mode. So the compiler is told to call the function
here without looking into it. It runs while the compiler follows derivatives, is differentiated by the rules of
:mod:`rnncore_torch._scans`, and what remains are calls of the operators.

Imported by the function that is compiled: the import of PyTorch's compiler takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rnncore import get_nonlinearity
from rnncore.nonlinearity.nonlinearity import Nonlinearity
from rnncore_torch import _layer, _ops, _scans


class Operators:
    """Both scans without derivatives, each as one operator."""

    @staticmethod
    def nonlinear(p: Tensor, h0: Tensor, w_hh: Tensor, /, *, nonlinearity: Nonlinearity, reverse: bool) -> Tensor:
        """``h_t = f(p_t + h_{t-1} W_hh^T)``."""
        h: Tensor = _ops.nonlinear_scan(p, h0, w_hh, nonlinearity.name, reverse)
        return h

    @staticmethod
    def linear(u: Tensor, d: Tensor, s0: Tensor, m: Tensor, /, *, reverse: bool) -> Tensor:
        """``s_t = d_t * (u_t + s_{t-1} M)``."""
        s: Tensor = _ops.linear_scan(u, d, s0, m, reverse)
        return s


SCANS = _scans.TorchScans(Operators)


def nonlinear_scan(p: Tensor, h0: Tensor, w_hh: Tensor, name: str, reverse: bool) -> Tensor:
    """``h_t = f(p_t + h_{t-1} W_hh^T)`` for a function of that name whose derivative h determines."""
    return SCANS.nonlinear(p, h0, w_hh, nonlinearity=get_nonlinearity(name), reverse=reverse)


torch.compiler.allow_in_graph(nonlinear_scan)  # type: ignore[no-untyped-call]  # PyTorch gives it no types

# In forward mode around a compiled function the compiler sees no tangents, and the operators would lose them in silence.
_disable: Callable[..., Callable[..., Tensor]] = torch.compiler.disable
uncompiled_layer = _disable(_layer.layer, reason="forward mode around a compiled function")
