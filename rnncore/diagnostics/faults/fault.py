"""The first number that is not finite, as a result, and the search for it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from rnncore.diagnostics.lane import Lane
from rnncore.diagnostics.numerics.integers import Cause
from rnncore.network.engine import Engine
from rnncore.typing import Array, Host

__all__ = ["NonFinite", "finite", "first_fault", "given", "growth_before", "place_of", "range_of"]

Phase: TypeAlias = Literal["forward", "backward"]
# Steps before the fault over which the growth is measured: earlier ones may have behaved differently.
GROWTH_STEPS = 16


@dataclass(frozen=True)
class NonFinite:
    """The first number that is not finite.

    Attributes
    ----------
    phase : "forward" or "backward"
    cause : str
        "input", "initial state", "parameter" and "cotangent" were given; "overflow", "inf - inf" and "0 * inf" arose in
        the arithmetic; "nonlinearity" made it of a finite number.
    quantity : str
        Its name: "x", "h0", a parameter's name, "z", "h"; backward "d_output", "d_h_n", "dL/dz", "dL/dh0",
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
        NaN, inf or -inf.
    ranges : mapping of str to (float, float)
        Smallest and largest finite operand there, by name.
    growth : float
        Nats per step by which the norm of the row's state (backward: of dL/dz) grew up to there, over the last 16 steps
        at most; NaN where there are fewer than two.
    log_value : float
        ln of the magnitude that the number should have had, computed from its operands without overflow or rounding; NaN
        where the operands are not finite themselves, or a user's function leaves the range of float64.
    """

    phase: Phase
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


def given(
    phase: Phase, cause: Cause, name: str, host: Host, lane: Lane, index: tuple[int, ...] | None = None
) -> NonFinite:
    """The first fault of an array that was given, or that at an index: a parameter, (B, H), or (T, B, I)."""
    index = tuple(int(i) for i in np.argwhere(~np.isfinite(host))[0]) if index is None else index
    parameter, timed = cause == "parameter", host.ndim == 3
    return NonFinite(
        phase=phase,
        cause=cause,
        quantity=name,
        where=f"{name}[{', '.join(map(str, index))}]",
        layer=lane.layer,
        direction=lane.direction,
        step=index[0] if timed else None,
        row=None if parameter else index[-2],
        unit=index[0] if parameter else index[-1],
        index=index,
        value=float(host[index]),
        ranges={name: range_of(host[index[:-1]] if len(index) > 1 else host)},
        growth=math.nan,
        log_value=math.nan,
    )


def place_of(lane: Lane, t: int, b: int, u: int) -> dict[str, Any]:
    """The fields of a fault at a step, row and unit of a lane's array."""
    own = {"layer": lane.layer, "direction": lane.direction, "step": t, "row": b, "unit": u}
    return {**own, "index": (t, b, u)}


def finite(engine: Engine, arrays: Iterable[Array]) -> list[bool]:
    """Whether each holds finite numbers only; one transfer for all."""
    xp = engine.xp
    return [bool(v) for v in engine.backend.to_numpy(xp.stack([xp.all(xp.isfinite(a)) for a in arrays]))]


def first_fault(
    lanes: Sequence[Lane], arrays: Sequence[tuple[Array, ...]], *, backward: bool = False
) -> tuple[int, int, int]:
    """(direction, step, row) of the first fault, each lane's arrays seen in its own time, or against it."""
    xp, lane = lanes[0].xp, lanes[0]
    t, lengths = np.arange(lane.steps)[:, None], np.asarray(lane.lengths, dtype=np.int64)[None, :]
    best: tuple[int, int, int, int] | None = None
    for d, group in enumerate(arrays):
        ok = xp.all(xp.isfinite(group[0]), axis=-1)
        for a in group[1:]:
            ok = xp.logical_and(ok, xp.all(xp.isfinite(a), axis=-1))
        bad = ~lane.engine.backend.to_numpy(ok).astype(bool) & lane.valid
        order = np.where(bad, lengths - 1 - t if bool(d) != backward else t + 0 * lengths, lane.steps)
        if bad.any():
            n = int(order.min())
            b = int(np.argmax((order == n).any(axis=0)))
            candidate = (n, d, b, int(np.argmax(order[:, b] == n)))
            best = candidate if best is None else min(best, candidate)
    if best is None:
        raise AssertionError("called where something is not finite")
    return best[1], best[3], best[2]


def growth_before(lane: Lane, h: Array, t: int, b: int, *, back: int) -> float:
    """Nats per step of the norms at t + back, t + 2 back, ..., as far as they are finite and not 0."""
    a, e = (t + 1, min(t + GROWTH_STEPS + 2, lane.lengths[b])) if back > 0 else (max(0, t - GROWTH_STEPS - 1), t)
    near = lane.host(h[a:e, b, :])[::back]
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
