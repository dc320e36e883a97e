"""Both scans for NumPy: the result is allocated once and written in place, step by step, with no temporaries in the loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rnncore.backend import ScanRequest
from rnncore.nonlinearity import Nonlinearity

HostArray = np.ndarray[Any, Any]
Activation = Callable[[HostArray, HostArray], None]


class NumpyScans:
    """See :class:`rnncore.backend.Scans`."""

    def unsupported(self, request: ScanRequest, /) -> str | None:
        """Named nonlinearities that NumPy's ufuncs can write in place, in the dtypes its BLAS has."""
        if request.dtype not in ("float32", "float64"):
            return f"NumPy has no BLAS for {request.dtype}"
        f = request.nonlinearity
        if f is not None and (f.is_custom or f.name not in _IN_PLACE):
            return f"nonlinearity {f.name!r} has no in-place form here; {', '.join(_IN_PLACE)} have"
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
        activate, clip = _IN_PLACE[nonlinearity.name], nonlinearity.clip
        w_t = np.ascontiguousarray(w_hh.T)
        out = p if overwrite and p.flags.writeable else np.empty(p.shape, p.dtype)
        product = np.empty(h0.shape, p.dtype)
        h = h0
        for t in _times(len(p), reverse):
            h_t = out[t]
            np.matmul(h, w_t, out=product)
            np.add(p[t], product, out=h_t)
            if clip is not None:
                np.clip(h_t, -clip, clip, out=h_t)
            activate(h_t, product)
            h = h_t
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
        m = np.ascontiguousarray(m)
        out = d if overwrite and d.flags.writeable else np.empty(d.shape, d.dtype)
        product = np.empty(s0.shape, d.dtype)
        s = s0
        for t in _times(len(d), reverse):
            np.matmul(s, m, out=product)
            np.add(u[t], product, out=product)
            s = out[t]
            np.multiply(d[t], product, out=s)
        return out


def _times(steps: int, reverse: bool) -> range:
    return range(steps - 1, -1, -1) if reverse else range(steps)


def _tanh(h: HostArray, scratch: HostArray) -> None:
    np.tanh(h, out=h)


def _relu(h: HostArray, scratch: HostArray) -> None:
    np.maximum(h, 0, out=h)


def _sigmoid(h: HostArray, scratch: HostArray) -> None:
    # e^-|z| never overflows: 1 / (1 + e) for z >= 0, e / (1 + e) below.
    np.abs(h, out=scratch)
    np.negative(scratch, out=scratch)
    np.exp(scratch, out=scratch)
    np.copyto(h, 1, where=h >= 0)
    np.copyto(h, scratch, where=h < 0)
    np.add(scratch, 1, out=scratch)
    np.divide(h, scratch, out=h)


def _identity(h: HostArray, scratch: HostArray) -> None:
    pass


_IN_PLACE: dict[str, Activation] = {"tanh": _tanh, "relu": _relu, "sigmoid": _sigmoid, "identity": _identity}
