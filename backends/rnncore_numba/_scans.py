"""Both scans for NumPy arrays in compiled code, or step by step with BLAS where the rule says that it is faster."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from rnncore.backend.contract import ScanRequest
from rnncore.backend.forks import first_use
from rnncore.nonlinearity.nonlinearity import Nonlinearity
from rnncore_numba._rule import ROWS_PER_THREAD, plan, reason
from rnncore_numba._threads import allowed, around_blas, divided, run

HostArray = np.ndarray[Any, Any]

FUNCTIONS = ("tanh", "relu", "sigmoid", "identity")
NAMES = {np.dtype("float32"): "float32", np.dtype("float64"): "float64"}


class NumbaScans:
    """See :class:`rnncore.backend.Scans`."""

    def __init__(self) -> None:
        self._compiled: dict[tuple[str, Any, bool], Any] = {}

    def unsupported(self, request: ScanRequest, /) -> str | None:
        """Refuse dtypes and nonlinearities without a compiled form, and everything if compilation is disabled."""
        if _compiler_is_off():
            return "NUMBA_DISABLE_JIT is set, so nothing is compiled"
        if request.dtype not in ("float32", "float64"):
            return f"compiled for float32 and float64, not for {request.dtype}"
        f = request.nonlinearity
        if f is not None and (f.is_custom or f.name not in FUNCTIONS):
            return f"nonlinearity {f.name!r} has no compiled form here; {', '.join(FUNCTIONS)} have"
        return None

    def explain(self, request: ScanRequest, /) -> str:
        """Say whether compiled code or BLAS runs, in how many threads, and why."""
        itemsize = np.dtype(request.dtype).itemsize
        words = reason(request.steps, request.batch, request.width, itemsize)
        worth = plan(request.steps, request.batch, request.width, itemsize)[1]
        return words if worth < 2 else f"{words}, {min(worth, allowed())} allowed now"

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
        clip = nonlinearity.clip
        kind = nonlinearity.name, p.dtype, clip is not None
        functions = self._compiled.get(kind) or self._functions(*kind)
        given, p = p, _plain(p)
        out = p if overwrite or p is not given else np.empty(p.shape, p.dtype)
        return _run(functions, p, p, _plain(h0), w_hh, out, bool(reverse), 0.0 if clip is None else float(clip))

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
        kind = "linear", u.dtype, False
        functions = self._compiled.get(kind) or self._functions(*kind)
        given, d = d, _plain(d)
        out = d if overwrite or d is not given else np.empty(d.shape, d.dtype)
        return _run(functions, _plain(u), d, _plain(s0), m.T, out, bool(reverse), 0.0)

    def _functions(self, name: str, dtype: Any, clipped: bool) -> Any:
        with first_use:
            from rnncore_numba._kernels import compiled
            from rnncore_numba._tiles import Kind

            found = self._compiled[name, dtype, clipped] = compiled(Kind(name, NAMES[dtype], clipped))
        return found


@cache
def _compiler_is_off() -> bool:
    from numba import config

    return bool(config.DISABLE_JIT)  # type: ignore[attr-defined]


def _run(
    functions: Any, p: HostArray, d: HostArray, h0: HostArray, w: HostArray, out: HostArray, reverse: bool, clip: float
) -> HostArray:
    steps, batch, width = p.shape
    blas, threads = plan(steps, batch, width, p.itemsize)
    if blas:
        with around_blas():
            _step_by_step(functions.finish, p, d, h0, w.T, out, reverse, clip)
        return out
    strips = functions.pack(_readable(w))
    if threads > 1 and (threads := min(threads, allowed())) > 1:

        def rows(first: int, last: int) -> None:
            functions.rows(p, d, h0, strips, out, first, last, reverse, clip)

        run(rows, divided(batch, threads, ROWS_PER_THREAD))
    else:
        functions.rows(p, d, h0, strips, out, 0, batch, reverse, clip)
    return out


def _step_by_step(
    finish: Any, p: HostArray, d: HostArray, h0: HostArray, w_t: HostArray, out: HostArray, reverse: bool, clip: float
) -> None:
    product, h = np.empty(h0.shape, p.dtype), h0
    for t in range(len(p) - 1, -1, -1) if reverse else range(len(p)):
        np.matmul(h, w_t, out=product)
        finish(product, p[t], d[t], out[t], clip)
        h = out[t]


def _plain(x: HostArray) -> HostArray:
    """x, or a copy of it if x is not writable, aligned and C-contiguous, as compiled code requires."""
    flags = x.flags
    if flags.c_contiguous and flags.writeable and flags.aligned and type(x) is np.ndarray:
        return x
    return np.array(x, order="C", subok=False)


def _readable(w: HostArray) -> HostArray:
    """w, or a copy of it if w is not writable and aligned. It may have any strides."""
    flags = w.flags
    if flags.writeable and flags.aligned and type(w) is np.ndarray:
        return w
    return np.array(w, order="C", subok=False)
