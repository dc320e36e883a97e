"""Both scans as CUDA kernels: one launch for all steps, or one product and one kernel per step if the matrix is too wide.

Everything is queued on the current stream of the arrays' device, memory comes from CuPy's pool, and nothing waits. Both scans
use the same kernel with A = W_hh or A = M^T. It reads A by its strides, so a transposed view is not copied.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np

from rnncore.backend.contract import ScanRequest
from rnncore.nonlinearity.nonlinearity import Nonlinearity
from rnncore_cupy._kernels import LINEAR, STEPS, STORAGE, kernel, limits, name_of, plan
from rnncore_cupy._plan import Plan

__all__ = ["CupyScans"]

STEP_THREADS = 256  # as declared for step_alone
STEP_BLOCKS = 8  # per multiprocessor; the kernel loops over the remaining numbers
COUNTER_SPACING = 16  # as in cuda/grid_scan.cu


class CupyScans:
    """See :class:`rnncore.backend.Scans`."""

    def unsupported(self, request: ScanRequest, /) -> str | None:
        """Refuse dtypes and functions without a kernel."""
        if request.dtype not in STORAGE:
            return f"dtype {request.dtype} has no kernel; {', '.join(STORAGE)} have"
        f = request.nonlinearity
        if f is not None and (f.is_custom or f.name not in STEPS):
            return f"nonlinearity {f.name!r} has no kernel; {', '.join(STEPS)} have"
        return None

    def explain(self, request: ScanRequest, /) -> str:
        """Say which kernel runs a supported request, with which parameters, and why; compile it if necessary."""
        if not request.steps or not request.batch:
            return "nothing is launched: there is no step or no row"
        chosen = _plan(request)
        return f"{name_of(chosen, request.dtype, _step(request.nonlinearity))}: {chosen.reason}"

    def nonlinear(
        self,
        p: Any,
        h0: Any,
        w_hh: Any,
        /,
        *,
        nonlinearity: Nonlinearity,
        reverse: bool,
        overwrite: bool = False,
    ) -> Any:
        """``h_t = f(p_t + h_{t-1} W_hh^T)``; with `overwrite`, h takes the place of p."""
        clip = math.inf if nonlinearity.clip is None else nonlinearity.clip
        with p.device:
            source = _contiguous(p)
            out = source if overwrite or source is not p else _cupy().empty(p.shape, p.dtype)
            return _run(STEPS[nonlinearity.name], source, source, h0, w_hh, out, reverse, clip)

    def linear(self, u: Any, d: Any, s0: Any, m: Any, /, *, reverse: bool, overwrite: bool = False) -> Any:
        """``s_t = d_t * (u_t + s_{t-1} M)``; with `overwrite`, s takes the place of d."""
        with d.device:
            factor = _contiguous(d)
            out = factor if overwrite or factor is not d else _cupy().empty(d.shape, d.dtype)
            return _run(LINEAR, _contiguous(u), factor, s0, m.T, out, reverse, math.inf)


def _run(step: str, source: Any, factor: Any, first: Any, matrix: Any, out: Any, reverse: bool, clip: float) -> Any:
    steps, batch, width = source.shape
    if not steps or not batch:
        return out
    device, dtype = int(source.device), source.dtype.name
    chosen = plan(device, width, batch, dtype, step)
    first = _contiguous(first)
    if chosen.regime == "product":
        _run_steps(chosen, step, source, factor, first, matrix, out, reverse, clip)
        return out
    launched = kernel(device, name_of(chosen, dtype, step), chosen.regime == "grid")
    arguments: tuple[Any, ...] = (
        source,
        factor,
        first,
        matrix,
        out,
        *(np.int64(stride // matrix.itemsize) for stride in matrix.strides),
        np.int64(steps),
        np.int64(batch),
        np.int32(width),
        np.int32(reverse),
        np.float64(clip),
    )
    if chosen.regime == "grid":
        counters = _cupy().zeros(chosen.grid[1] * COUNTER_SPACING, dtype=np.uint64)
        arguments = (*arguments, np.int64(chosen.tile), counters)
    launched(chosen.grid, (chosen.threads,), arguments, shared_mem=chosen.shared)
    return out


def _run_steps(
    chosen: Plan,
    step: str,
    source: Any,
    factor: Any,
    first: Any,
    matrix: Any,
    out: Any,
    reverse: bool,
    clip: float,
) -> None:
    """Run one cuBLAS product and one kernel per step; TF32 follows the user's setting of CuPy."""
    cupy, device = _cupy(), int(source.device)
    launched = kernel(device, name_of(chosen, source.dtype.name, step), False)
    blocks = min(-(-first.size // STEP_THREADS), STEP_BLOCKS * limits(device).multiprocessors)
    count, bound = np.int64(first.size), np.float64(clip)
    # CuPy copies a matrix that is not contiguous before calling cuBLAS; copy it once, not at each step.
    kept = matrix if matrix.flags.c_contiguous or matrix.flags.f_contiguous else cupy.ascontiguousarray(matrix)
    product, before, transposed = cupy.empty(first.shape, first.dtype), first, kept.T
    times = range(len(source))
    for t in reversed(times) if reverse else times:
        cupy.dot(before, transposed, out=product)
        before = out[t]
        launched((blocks,), (STEP_THREADS,), (product, source[t], factor[t], before, count, bound))


def _plan(request: ScanRequest) -> Plan:
    device = int(request.device)
    with _cupy().cuda.Device(device):
        return plan(device, request.width, request.batch, request.dtype, _step(request.nonlinearity))


def _step(nonlinearity: Nonlinearity | None) -> str:
    return LINEAR if nonlinearity is None else STEPS[nonlinearity.name]


def _contiguous(x: Any) -> Any:
    """x, or a contiguous copy."""
    return x if x.flags.c_contiguous else _cupy().ascontiguousarray(x)


def _cupy() -> Any:
    return importlib.import_module("cupy")
