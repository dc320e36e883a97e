"""saturation: units that hardly respond, units that never do, and slopes that only the arithmetic has turned into 0.

A unit near the end of its range passes little of a gradient; a dead one, such as a rectifier that is never positive, none
and learns nothing. Between them stands a slope that is not 0 in mathematics but is computed as 0: 1 - tanh(z)^2 in float32
from |z| = 9.1 on, in float64 from 19.1 on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnncore.backend.arrays import index_dtype
from rnncore.diagnostics.recording import Record, check_record
from rnncore.errors import ArgumentValueError
from rnncore.nonlinearity.nonlinearity import Nonlinearity
from rnncore.typing import Array, Host

__all__ = ["Saturation", "saturation"]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
THRESHOLD = 0.99
# So many values are sorted; the rank of a quantile of so many drawn ones has a standard error of at most 0.5 / 128.
EXACT = 2**14


@dataclass(frozen=True)
class Saturation:
    """Over all valid steps and rows, for each layer; NaN where there are none.

    Attributes
    ----------
    saturated : tuple of array (D,)
        Fraction of states within 1/200 of their range of one of its ends: |h| > 0.99 for tanh, h < 0.005 or h > 0.995 for
        the logistic function. NaN for a function without bounds.
    dead : tuple of array (D,)
        Fraction of units whose slope is exactly 0 at every step and row: for relu, those that are never active.
    dead_units : tuple of tuple of tuple of int
        Which, by [layer][direction].
    arithmetically_dead : tuple of array (D,)
        Fraction of slopes that are not 0 but are computed as 0, in the way a backward pass computes them: from h where h
        determines the slope, else from z.
    quantiles : tuple of array (D, len(q))
        Of |z|: values that occur, the lower one between two; inf where z is not a number. Of more than 16,384 values those
        of 16,384 drawn evenly from them, always the same ones: their ranks have a standard error below 0.004; the largest
        is always that of all.
    q : tuple of float
    threshold : float
    """

    saturated: tuple[Host, ...]
    dead: tuple[Host, ...]
    dead_units: tuple[tuple[tuple[int, ...], ...], ...]
    arithmetically_dead: tuple[Host, ...]
    quantiles: tuple[Host, ...]
    q: tuple[float, ...]
    threshold: float


def saturation(record: Record, *, threshold: float = THRESHOLD, q: Sequence[float] = QUANTILES) -> Saturation:
    """Count.

    Parameters
    ----------
    record : Record
    threshold : float
        In units of half the range, from its middle.
    q : sequence of float
        In [0, 1].

    Returns
    -------
    Saturation
        For each layer host arrays (D,), `quantiles` (D, len(q)).

    Raises
    ------
    ArgumentValueError
        For a threshold outside (0, 1), or a q outside [0, 1].

    Examples
    --------
    >>> import numpy as np, rnncore
    >>> from rnncore.diagnostics.recording import record
    >>> from rnncore.diagnostics.units.saturation import saturation
    >>> init = {"weight_ih": rnncore.init.constant(1.0), "weight_hh": rnncore.init.identity()}
    >>> rnn = rnncore.RNN(1, 2, nonlinearity="relu", bias=False, init=init)
    >>> found = saturation(record(rnn, -np.ones((3, 1, 1))))
    >>> found.dead, found.dead_units
    ((array([1.]),), (((0, 1),),))
    """
    check_record(record)
    if not 0 < threshold < 1:
        raise ArgumentValueError(f"threshold: expected a number in (0, 1), got {threshold!r}")
    if not all(0 <= p <= 1 for p in q):
        raise ArgumentValueError(f"q: expected numbers in [0, 1], got {tuple(q)!r}")
    names = ("saturated", "dead", "arithmetically_dead", "quantiles")
    out: dict[str, list[Host]] = {name: [] for name in names}
    units = []
    with record.engine.scope(), np.errstate(invalid="ignore"):
        for k in range(record.spec.num_layers):
            rows = [_count(record, k, d, threshold, q) for d in range(record.directions)]
            for name in names:
                out[name].append(np.asarray([row[name] for row in rows], dtype=np.float64))
            units.append(tuple(tuple(int(i) for i in row["units"]) for row in rows))
    return Saturation(
        saturated=tuple(out["saturated"]),
        dead=tuple(out["dead"]),
        dead_units=tuple(units),
        arithmetically_dead=tuple(out["arithmetically_dead"]),
        quantiles=tuple(out["quantiles"]),
        q=tuple(float(p) for p in q),
        threshold=threshold,
    )


def value_range(f: Nonlinearity) -> tuple[float, float] | None:
    """The infimum and supremum of a function, or None where it is not bounded or nothing is known."""
    if f.name in ("tanh", "softsign") and not f.is_custom:
        return -1.0, 1.0
    if f.name in ("sigmoid", "hard_sigmoid") and not f.is_custom:
        return 0.0, 1.0
    if f.name == "scaled_tanh" and f.alpha and not f.is_custom:
        return -abs(f.alpha), abs(f.alpha)
    return None


def _count(record: Record, k: int, d: int, threshold: float, q: Sequence[float]) -> dict[str, Any]:
    xp, f, h, z = record.xp, record.nonlinearity, record.h[k][d], record.z[k][d]
    width, steps = int(z.shape[-1]), sum(record.lengths)
    if not steps:
        return dict.fromkeys(("saturated", "dead", "arithmetically_dead"), np.nan) | {
            "quantiles": np.full(len(q), np.nan),
            "units": (),
        }
    ends = value_range(f)
    middle, half = (np.nan, np.nan) if ends is None else (0.5 * (ends[0] + ends[1]), 0.5 * (ends[1] - ends[0]))
    saturated = np.nan if ends is None else 0.0
    flat_counts = lost_counts = np.zeros(width, dtype=np.int64)
    extremes = record.host(xp.stack([xp.max(h), xp.min(h)], axis=0))
    # Of a bounded function whose states are all far from its ends no slope is 0, and no count is needed to say so.
    if ends is None or f.clip is not None or not (np.abs(extremes - middle) <= threshold * half).all():
        flat_counts, lost_counts = _zero_slopes(record, h, z)
        if ends is not None:
            saturated = _per_unit(record, xp.abs(h - middle) > threshold * half).sum() / (steps * width)
    units = np.flatnonzero(flat_counts == steps)
    return {
        "saturated": saturated,
        "dead": len(units) / width,
        "units": units,
        "arithmetically_dead": lost_counts.sum() / (steps * width),
        "quantiles": _quantiles(record, z, steps * width, q),
    }


def _zero_slopes(record: Record, h: Array, z: Array) -> tuple[Host, Host]:
    """How often a unit's slope is 0 in truth, and how often only as computed: two (H,)."""
    xp, f = record.xp, record.nonlinearity
    computed = f.derivative(z, xp=xp) if f.derivative_needs_z else f.derivative_from_h(h, xp=xp)
    zero = computed == 0
    # What is 0 in truth is computed as 0, so where nothing is, there is nothing to tell apart.
    if not bool(record.engine.backend.to_numpy(xp.any(zero))):
        nothing = np.zeros(int(z.shape[-1]), dtype=np.int64)
        return nothing, nothing
    flat = f.log_derivative(z, xp=xp) == -float("inf")
    return _per_unit(record, flat), _per_unit(record, xp.logical_and(zero, xp.logical_not(flat)))


def _per_unit(record: Record, where: Array) -> Host:
    """How often it is true, over the valid steps and rows: host (H,)."""
    # Integers: float32 cannot count beyond 2**24.
    xp = record.xp
    ones = xp.astype(where, xp.int32)
    ones = ones if record.ragged is None else record.ragged.masked(ones)
    counts = xp.sum(ones, axis=(0, 1))
    return np.asarray(record.engine.backend.to_numpy(counts), dtype=np.int64)


def _quantiles(record: Record, z: Array, count: int, q: Sequence[float]) -> Host:
    xp = record.xp
    values = xp.reshape(z, (-1,))
    if count > EXACT:
        values, count = _drawn(record, values, int(z.shape[-1])), EXACT
    elif record.ragged is not None:  # the padding sorts behind everything
        own = xp.reshape(record.ragged.masked(xp.ones_like(z)) > 0, (-1,))
        values = xp.where(own, values, xp.full_like(values, float("inf")))
    size = xp.abs(values)
    ordered = xp.sort(xp.where(xp.isnan(size), xp.full_like(size, float("inf")), size), stable=False)
    # The largest of all: 0 in the padding is never that.
    valid = z if record.ragged is None else record.ragged.masked(z)
    ends = record.host(xp.stack([xp.max(valid), xp.min(valid)], axis=0))
    top = np.inf if np.isnan(ends).any() else np.abs(ends).max()
    at = [ordered[int(p * (count - 1))] for p in q if p != 1]
    found = iter(record.host(xp.stack(at, axis=0)) if at else ())
    return np.asarray([top if p == 1 else next(found) for p in q])


def _drawn(record: Record, values: Array, width: int) -> Array:
    """EXACT of the valid values, drawn evenly and always the same."""
    steps = np.arange(record.steps)[:, None] * record.batch + np.arange(record.batch)
    rows = steps[record.valid]
    # One in each of EXACT equal parts: they are spread over the run, and no period in time is met again and again.
    place = np.random.default_rng(0).random(EXACT) + np.arange(EXACT)
    place = np.minimum((place * (len(rows) * width / EXACT)).astype(np.int64), len(rows) * width - 1)
    at, engine = rows[place // width] * width + place % width, record.engine
    where = engine.backend.asarray(at, dtype=index_dtype(xp=record.xp, device=engine.device), device=engine.device)
    return record.xp.take(values, where, axis=0)
