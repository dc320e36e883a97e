"""Every kernel of the CuPy backend against float64, in both directions.

The networks of the conformance suite are small and reach the kernel for one block only. These widths and batches reach all
three. Each scan runs twice, because a race that is lost now and then shows as different bits.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np

import rnncore
from benchmarks.worker import in_short
from rnncore import scan
from rnncore.backend.contract import ScanRequest

# (T, B, H), from small to large, hardly any a multiple of anything: one block, several rows in a block, a row of blocks,
# several rows of blocks, and what is too wide or too much for either.
SHAPES = (
    (7, 3, 37), (1, 1, 1), (6, 301, 65), (5, 2, 256), (9, 5, 333),
    (8, 64, 512), (6, 67, 1000), (9, 17, 1501), (5, 1, 2048), (3, 700, 700),
    (3, 2, 4100),
)  # fmt: skip
# Compiling takes most of the time: other dtypes get half of the shapes, and functions beside tanh one shape for each kernel.
DTYPES = {"float32": SHAPES, "float64": SHAPES[::2], "float16": SHAPES[::2]}
EVERY_FUNCTION = ((7, 3, 37), (9, 5, 333), (3, 2, 4100))
REPEATS = 2
ROUNDINGS = 64  # eps of the dtype times the largest number, as everywhere in rnncore
REGIMES = ("block_scan", "grid_scan", "step_alone")

Note = Callable[[dict[str, Any]], None]


def run(note: Note) -> dict[str, str]:
    """Pass each outcome to `note`, and return the precision and the device, with the number of runs of each kernel."""
    plugin: Any = rnncore.get_backend("cupy")
    device, runs = plugin.devices()[0], dict.fromkeys(REGIMES, 0)
    try:
        for dtype, shapes in DTYPES.items():
            for shape in shapes:
                _shape(plugin, device, shape, dtype, runs, note)
    except _Lost as lost:
        note(_outcome("device", "it survives every kernel", str(lost)))
    absent = ", ".join(regime for regime, number in runs.items() if not number)
    note(_outcome("kernels", "every kernel is among them", f"never run: {absent}" if absent else ""))
    counted = ", ".join(f"{number} of {regime}" for regime, number in runs.items())
    return {"precision": plugin.precision(device), "device": f"{plugin.device_name(device)}, {counted}"}


class _Lost(Exception):
    """After an illegal access every later call fails."""


def _shape(plugin: Any, device: Any, shape: tuple[int, int, int], dtype: str, runs: dict[str, int], note: Note) -> None:
    steps, batch, width = shape
    draw = np.random.default_rng(0).standard_normal
    # With a spectral radius of one half, rounding errors die out.
    drawn = draw(shape), np.clip(draw(shape), -1, 1), draw((batch, width)), draw((width, width)) / (2 * width**0.5)
    host = [x.astype(dtype).astype("float64") for x in drawn]
    given = [plugin.asarray(x, dtype=np.dtype(dtype), device=device) for x in host]
    functions = [None, rnncore.get_nonlinearity("tanh")]
    if shape in EVERY_FUNCTION:
        functions += [rnncore.get_nonlinearity(name) for name in ("sigmoid", "identity")]
        functions.append(rnncore.get_nonlinearity("relu", clip=1.5))
    for f, reverse in product(functions, (False, True)):
        name = f"{'linear' if f is None else f.name} {shape} {dtype} {'backwards' if reverse else 'forwards'}"
        request = ScanRequest("linear" if f is None else "nonlinear", steps, batch, width, dtype, device, reverse, f)
        kernel = "it compiles"
        try:
            kernel = plugin.scans().explain(request).partition(":")[0]
            reason = _compared(plugin.scans(), host, given, f, reverse, float(np.finfo(dtype).eps))
        except Exception as error:
            reason = in_short(error)
        note(_outcome(name, kernel, reason))
        for regime in REGIMES:
            runs[regime] += kernel.startswith(regime)
        if reason:
            try:
                plugin.synchronize(device)
            except Exception as error:
                raise _Lost(in_short(error)) from error


def _compared(scans: Any, host: list[Any], given: list[Any], f: Any, reverse: bool, eps: float) -> str:
    """Return what is wrong, or an empty string."""

    def scanned(on: Any, arrays: list[Any], **xp: Any) -> Any:
        p, d, first, w = arrays
        if f is None:  # M = W^T is passed as a view
            return on.linear(p, d, first, w.T, reverse=reverse, **xp)
        return on.nonlinear(p, first, w, nonlinearity=f, reverse=reverse, **xp)

    results = [scanned(scans, given).get() for _ in range(REPEATS)]
    right = scanned(scan, host, xp=np)
    largest = max(1.0, float(np.abs(right).max()))
    roundings = float(np.abs(results[0].astype("float64") - right).max()) / largest / eps
    if not roundings <= ROUNDINGS:  # also if it is NaN
        return f"{roundings:.3g} roundings from float64, {ROUNDINGS} are allowed"
    return "" if all(np.array_equal(results[0], other) for other in results) else "a second run gives other bits"


def _outcome(name: str, rule: str, reason: str) -> dict[str, str]:
    return {"id": name, "rule": rule, "status": "failed" if reason else "passed", "reason": reason}
