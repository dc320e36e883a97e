"""Every kernel of the CuPy backend against float64: ``gpu_kernels.py --json FILE``; status 0 if all agree, else 1.

The conformance suite's networks are small, and would have the kernel for one block run and neither of the others. Here are
widths and batches that reach all three, in both directions, twice each: a race that is lost now and then shows in other bits.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import rnncore
from rnncore import scan
from rnncore.backend.contract import ScanRequest

# (T, B, H), of which none but the last few are multiples of anything: one block, rows of a batch that share a block, a row of
# blocks, several, and what is too wide or too much for either.
SHAPES = (
    (7, 3, 37),
    (1, 1, 1),
    (6, 301, 65),
    (5, 2, 256),
    (9, 5, 333),
    (8, 64, 512),
    (6, 67, 1000),
    (9, 17, 1501),
    (5, 1, 2048),
    (3, 700, 700),
    (3, 2, 4100),
)
# Compiling is what takes the time: the other dtypes have half of the shapes, and the functions beside tanh three, one for each
# kernel.
DTYPES = {"float32": SHAPES, "float64": SHAPES[::2], "float16": SHAPES[::2]}
EVERY_FUNCTION = ((7, 3, 37), (9, 5, 333), (3, 2, 4100))
REPEATS = 2
ROUNDINGS = 64  # of the dtype, of the largest number: as everywhere in rnncore
REGIMES = ("block_scan", "grid_scan", "step_alone")

Outcome = dict[str, str]


def main(arguments: list[str] | None = None) -> int:
    """All of them, a line for each that fails, and the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    file = parser.parse_args(arguments).json
    plugin: Any = rnncore.get_backend("cupy")
    device = plugin.devices()[0]
    outcomes: list[Outcome] = []
    reached = dict.fromkeys(REGIMES, 0)
    for dtype, shapes in DTYPES.items():
        for shape in shapes:
            outcomes += _of_shape(plugin, device, shape, dtype, reached)
    absent = [regime for regime, number in reached.items() if not number]
    outcomes.append(
        _outcome("kernels", "every kernel is among them", f"never run: {', '.join(absent)}" if absent else "")
    )
    for outcome in outcomes:
        if outcome["status"] == "failed":
            print(f"FAILED {outcome['id']}: {outcome['reason']}", flush=True)
    failed = sum(outcome["status"] == "failed" for outcome in outcomes)
    runs = ", ".join(f"{number} of {regime}" for regime, number in reached.items())
    record = {
        "counts": {"passed": len(outcomes) - failed, "failed": failed},
        "precision": plugin.precision(device),
        "device": f"{plugin.device_name(device)}, {runs}",
        "outcomes": outcomes,
    }
    file.write_text(json.dumps(record), encoding="utf-8")
    print(f"kernels: {record['counts']}; {runs}")
    return 1 if failed else 0


def _of_shape(
    plugin: Any, device: Any, shape: tuple[int, int, int], dtype: str, reached: dict[str, int]
) -> list[Outcome]:
    steps, batch, width = shape
    draw = np.random.default_rng(0).standard_normal
    # Half the spectral radius of 1, so that roundings die out; and what is compared is made of the rounded numbers.
    p, d, first, w = (
        x.astype(dtype).astype("float64")
        for x in (
            draw(shape),
            np.clip(draw(shape), -1, 1),
            draw((batch, width)),
            draw((width, width)) / (2 * width**0.5),
        )
    )
    on_device = [plugin.asarray(x, dtype=np.dtype(dtype), device=device) for x in (p, d, first, w)]
    functions = [rnncore.get_nonlinearity("tanh")]
    if shape in EVERY_FUNCTION:
        functions += [rnncore.get_nonlinearity(name) for name in ("sigmoid", "identity")]
        functions.append(rnncore.get_nonlinearity("relu", clip=1.5))
    found = []
    for f in (None, *functions):
        kind = "linear" if f is None else "nonlinear"
        try:
            told = plugin.scans().explain(ScanRequest(kind, steps, batch, width, dtype, device, False, f))
        except Exception as error:
            found.append(_outcome(f"{kind if f is None else f.name} {shape} {dtype}", "it compiles", _words(error)))
            continue
        for regime in REGIMES:
            reached[regime] += told.startswith(regime)
        for reverse in (False, True):
            name = f"{kind if f is None else f.name} {shape} {dtype} {'backwards' if reverse else 'forwards'}"
            try:
                reason = _compared(plugin.scans(), (p, d, first, w), on_device, f, reverse, np.finfo(dtype).eps)
            except Exception as error:  # the others may be right, unless the device is lost
                reason = _words(error)
            found.append(_outcome(name, told.partition(":")[0], reason))
    return found


def _compared(scans: Any, host: tuple[Any, ...], given: list[Any], f: Any, reverse: bool, eps: float) -> str:
    """What is wrong, or nothing."""
    p, d, first, w = host
    results = []
    for _ in range(REPEATS):
        if f is None:  # M = W^T, whose view is handed over as it stands
            made = scans.linear(given[0], given[1], given[2], given[3].T, reverse=reverse)
        else:
            made = scans.nonlinear(given[0], given[2], given[3], nonlinearity=f, reverse=reverse)
        results.append(made.get())
    if f is None:
        right = scan.linear(p, d, first, w.T, reverse=reverse, xp=np)
    else:
        right = scan.nonlinear(p, first, w, nonlinearity=f, reverse=reverse, xp=np)
    largest = max(1.0, float(np.abs(right).max()))
    roundings = float(np.abs(results[0].astype("float64") - right).max()) / largest / eps
    if not roundings <= ROUNDINGS:  # NaN is not
        return f"{roundings:.3g} roundings from float64, {ROUNDINGS} are allowed"
    return "" if all(np.array_equal(results[0], other) for other in results) else "run again, it gives other bits"


def _words(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _outcome(name: str, rule: str, reason: str) -> Outcome:
    return {"id": name, "rule": rule, "status": "failed" if reason else "passed", "reason": reason}


if __name__ == "__main__":
    sys.exit(main())
