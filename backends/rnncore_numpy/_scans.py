"""Both scans for NumPy: allocate the result once and write it step by step, with no temporaries in the loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rnncore.backend.contract import ScanRequest
from rnncore.nonlinearity.nonlinearity import Nonlinearity
from rnncore_numpy._threads import SMALL_SCAN, one_thread_for

HostArray = np.ndarray[Any, Any]
# With one row a step has a few hundred numbers, and the calls dominate its cost: np.dot takes half as long as np.matmul, and
# positional arguments are faster than keywords.
_dot, _add, _multiply, _maximum, _minimum = np.dot, np.add, np.multiply, np.maximum, np.minimum
# With fewer rows in total a transposed W is read without a copy. Copying 128 x 128 takes 6 us, which pays off after 45 products
# of a vector or 2 of 16 rows; 512 x 512 takes 300 us, as long as 28 products of a vector. From 256 units on a copy does not
# make a vector's product faster: whole scans take 0.9 to 1.15 times as long with it (float32, OpenBLAS of NumPy 2.4, Zen 5).
ROWS_WORTH_A_COPY, WIDE = 64, 256


Function = Callable[[HostArray, HostArray], object]


class NumpyScans:
    """See :class:`rnncore.backend.Scans`."""

    def unsupported(self, request: ScanRequest, /) -> str | None:
        """Refuse dtypes that BLAS lacks and nonlinearities that NumPy cannot write in place."""
        if request.dtype not in ("float32", "float64"):
            return f"NumPy has no BLAS for {request.dtype}"
        f = request.nonlinearity
        if f is not None and (f.is_custom or f.name not in _FUNCTIONS):
            return f"nonlinearity {f.name!r} has no in-place form here; {', '.join(_FUNCTIONS)} have"
        return None

    def nonlinear(
        self,
        p: HostArray,
        h0: HostArray,
        w_hh: HostArray,
        /,
        *,
        nonlinearity: Nonlinearity,
        reverse: bool,
        overwrite: bool = False,
    ) -> HostArray:
        """``h_t = f(p_t + h_{t-1} W_hh^T)``; with `overwrite`, h takes the place of p."""
        activate, clip = _FUNCTIONS[nonlinearity.name], nonlinearity.clip
        steps, batch, width = p.shape
        w_t = _laid_out(w_hh.T, steps, batch, width)
        out = p if overwrite and p.flags.writeable else np.empty(p.shape, p.dtype)
        limited = None if steps * batch * width * width < SMALL_SCAN else one_thread_for(steps, batch, width)
        if limited is None:
            _nonlinear_steps(p, h0, w_t, out, activate, clip, reverse)
        else:
            with limited:
                _nonlinear_steps(p, h0, w_t, out, activate, clip, reverse)
        return out

    def linear(
        self,
        u: HostArray,
        d: HostArray,
        s0: HostArray,
        m: HostArray,
        /,
        *,
        reverse: bool,
        overwrite: bool = False,
    ) -> HostArray:
        """``s_t = d_t * (u_t + s_{t-1} M)``; with `overwrite`, s takes the place of d."""
        steps, batch, width = u.shape
        m = _laid_out(m, steps, batch, width)
        out = d if overwrite and d.flags.writeable else np.empty(d.shape, d.dtype)
        limited = None if steps * batch * width * width < SMALL_SCAN else one_thread_for(steps, batch, width)
        if limited is None:
            _linear_steps(u, d, s0, m, out, reverse)
        else:
            with limited:
                _linear_steps(u, d, s0, m, out, reverse)
        return out


def _nonlinear_steps(
    p: HostArray, h: HostArray, w_t: HostArray, out: HostArray, activate: Function, clip: float | None, reverse: bool
) -> None:
    z = np.empty(h.shape, p.dtype)
    for p_t, h_t in zip(p[::-1], out[::-1], strict=True) if reverse else zip(p, out, strict=True):
        _dot(h, w_t, z)
        _add(p_t, z, z)
        if clip is not None:
            _minimum(z, clip, out=z)
            _maximum(z, -clip, out=z)
        activate(z, h_t)
        h = h_t


def _linear_steps(u: HostArray, d: HostArray, s: HostArray, m: HostArray, out: HostArray, reverse: bool) -> None:
    product = np.empty(s.shape, d.dtype)
    if reverse:
        u, d, out = u[::-1], d[::-1], out[::-1]
    for u_t, d_t, s_t in zip(u, d, out, strict=True):
        _dot(s, m, product)
        _add(u_t, product, product)
        _multiply(d_t, product, s_t)
        s = s_t


def _laid_out(m: HostArray, steps: int, batch: int, width: int) -> HostArray:
    """M in C order, or unchanged where a copy would cost more than the steps gain from it."""
    few = steps * batch < ROWS_WORTH_A_COPY or (batch == 1 and width >= WIDE)
    return m if few and m.flags.f_contiguous else np.ascontiguousarray(m)


def _relu(z: HostArray, out: HostArray) -> None:
    _maximum(z, 0, out=out)


def _sigmoid(z: HostArray, out: HostArray) -> None:
    # e^-|z| never overflows: 1 / (1 + e) for z >= 0, e / (1 + e) below.
    e = np.exp(np.negative(np.abs(z, out), out), out)
    np.divide(np.where(z >= 0, z.dtype.type(1), e), np.add(e, 1, z), out)


# Each writes f(z) into `out` and may overwrite z.
_FUNCTIONS: dict[str, Function] = {
    "tanh": np.tanh,
    "relu": _relu,
    "sigmoid": _sigmoid,
    "identity": np.positive,
}
