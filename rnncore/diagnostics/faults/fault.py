"""fault: the first number that is not finite, as a result, and the search for it: where it stands and what was before it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rnncore.diagnostics.numerics.integers import Cause
from rnncore.diagnostics.recording import Record
from rnncore.typing import Array, Host

__all__ = [
    "NonFinite",
    "as_given",
    "finite",
    "first_fault",
    "given_fault",
    "growth_before",
    "of_rows",
    "places",
    "range_of",
]

# The growth is measured over so many steps before the fault: what was before them may have been of another kind.
GROWTH_STEPS = 16


@dataclass(frozen=True)
class NonFinite:
    """The first number that is not finite.

    Attributes
    ----------
    phase : "forward" or "backward"
    cause : str
        "input", "initial state", "parameter" and "cotangent" were given so; "overflow", "inf - inf" and "0 * inf" arose;
        "nonlinearity" made it of a finite number.
    quantity : str
        What it is: "x", "h0", a parameter's name, "z", "h"; backward "d_output", "d_h_n", "dL/dz", "dL/dh0",
        "dL/d input" of the layer, or "dL/d" and a parameter's name.
    where : str
        The element, product or sum from which it came.
    layer, direction : int
    step, row : int or None
        None for a parameter, its gradient and what has no time.
    unit : int
        Of the layer; the feature for an input, the first index for a parameter.
    index : tuple of int
        In the array itself: (t, b, i), or a parameter's index.
    value : float
        What stands there: NaN, inf or -inf.
    ranges : mapping of str to (float, float)
        Smallest and largest finite operand there, by name.
    growth : float
        Nats per step by which the norm of the row's state (backward: of dL/dz) grew up to there, over the last 16 steps
        at most; NaN where there are fewer than two.
    log_value : float
        ln of the magnitude that the number should have had, computed from its operands without overflow or rounding; NaN
        where the operands do not say (they were given so, or a user's function leaves the range of float64).
    """

    phase: Literal["forward", "backward"]
    cause: Cause
    quantity: str
    where: str
    layer: int
    direction: int
    step: int | None
    row: int | None
    unit: int
    index: tuple[int, ...]
    value: float
    ranges: Mapping[str, tuple[float, float]]
    growth: float
    log_value: float


def as_given(
    phase: Literal["forward", "backward"], cause: Cause, name: str, host: Host, k: int, d: int, *, timed: bool = False
) -> NonFinite:
    """The first of an array that was given; `timed` for one of (T, B, I), else (B, H) or a parameter."""
    index = tuple(int(i) for i in np.argwhere(~np.isfinite(host))[0])
    if timed:
        return given_fault(phase, cause, name, index, host, k, d, index[0], index[1], index[2])
    if cause == "parameter":
        return given_fault(phase, cause, name, index, host, k, d, None, None, index[0])
    return given_fault(phase, cause, name, index, host, k, d, None, index[0], index[1])


def given_fault(
    phase: Literal["forward", "backward"],
    cause: Cause,
    name: str,
    index: tuple[int, ...],
    host: Host,
    k: int,
    d: int,
    step: int | None,
    row: int | None,
    unit: int,
) -> NonFinite:
    """A fault without operands."""
    where = f"{name}[{', '.join(map(str, index))}]"
    ranges = {name: range_of(host[index[:-1]] if len(index) > 1 else host)}
    value = float(host[index])
    return NonFinite(phase, cause, name, where, k, d, step, row, unit, index, value, ranges, math.nan, math.nan)


def finite(record: Record, arrays: Iterable[Array]) -> list[bool]:
    """Whether each holds finite numbers only; one transfer for all."""
    xp = record.xp
    return [bool(v) for v in record.engine.backend.to_numpy(xp.stack([xp.all(xp.isfinite(a)) for a in arrays]))]


def first_fault(record: Record, arrays: Sequence[tuple[Array, ...]], *, backward: bool = False) -> tuple[int, int, int]:
    """(direction, step, row) of the first fault, each direction's arrays seen in its own time, or against it."""
    xp = record.xp
    t, lengths = np.arange(record.steps)[:, None], np.asarray(record.lengths, dtype=np.int64)[None, :]
    best: tuple[int, int, int, int] | None = None
    for d, group in enumerate(arrays):
        ok = xp.all(xp.isfinite(group[0]), axis=-1)
        for a in group[1:]:
            ok = xp.logical_and(ok, xp.all(xp.isfinite(a), axis=-1))
        bad = ~record.engine.backend.to_numpy(ok).astype(bool) & record.valid
        order = np.where(bad, lengths - 1 - t if bool(d) != backward else t + 0 * lengths, record.steps)
        if bad.any():
            n = int(order.min())
            b = int(np.argmax((order == n).any(axis=0)))
            candidate = (n, d, b, int(np.argmax(order[:, b] == n)))
            best = candidate if best is None else min(best, candidate)
    if best is None:
        raise AssertionError("called where something is not finite")
    return best[1], best[3], best[2]


def growth_before(record: Record, h: Array, t: int, b: int, *, back: int) -> float:
    """Nats per step of the norms at t + back, t + 2 back, ..., as far as they are finite and not 0."""
    a, e = (t + 1, min(t + GROWTH_STEPS + 2, record.lengths[b])) if back > 0 else (max(0, t - GROWTH_STEPS - 1), t)
    near = record.host(h[a:e, b, :])[::back]
    largest = np.abs(near).max(axis=-1, initial=0.0)
    usable = np.isfinite(largest) & (largest > 0)
    count = len(usable) if usable.all() else int(np.argmin(usable))
    if count < 2:
        return math.nan
    ends, unit = near[[0, count - 1]], largest[[0, count - 1], None]
    ln = np.log(unit[:, 0]) + np.log(np.linalg.norm(ends / unit, axis=-1))
    return float(ln[0] - ln[1]) / (count - 1)


def range_of(a: Host) -> tuple[float, float]:
    """The smallest and the largest finite number; NaN where there is none."""
    finite = a[np.isfinite(a)]
    return (float(finite.min()), float(finite.max())) if finite.size else (math.nan, math.nan)


def places(record: Record) -> list[tuple[int, int]]:
    """Every (layer, direction), the lowest layer first."""
    return [(k, d) for k in range(record.spec.num_layers) for d in range(record.directions)]


def of_rows(record: Record, x: Array) -> Array:
    """x (B, H), 0 for the rows without steps."""
    return x if record.ragged is None else record.ragged.nonempty_or(x, record.xp.zeros_like(x))
