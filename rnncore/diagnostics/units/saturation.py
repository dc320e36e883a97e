"""Saturated units, dead units, and slopes that only rounding has turned into 0.

A saturated unit passes little of a gradient; a dead one, such as a rectifier that is never positive, passes none and learns
nothing. A third kind of slope is not 0 in mathematics but is computed as 0: 1 - tanh(z)^2 in float32 from |z| = 9.1 on, in
float64 from 19.1 on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rnncore.arguments import probability, real, sequence
from rnncore.diagnostics.lane import Lane
from rnncore.diagnostics.numerics.device import indices
from rnncore.diagnostics.recording import lane_probe
from rnncore.diagnostics.results import SHARED, Stacked
from rnncore.nonlinearity.nonlinearity import Nonlinearity
from rnncore.typing import Array, Host

__all__ = ["Saturation", "saturation"]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
THRESHOLD = 0.99
# At most this many values are sorted; the rank of a quantile of a sample of this size has a standard error of 0.5 / 128.
EXACT = 2**14


@dataclass(frozen=True)
class Saturation(Stacked):
    """Over all valid steps and rows of one lane; NaN without any.

    Attributes
    ----------
    saturated : float
        Fraction of states within 1/200 of their range of one of its ends: |h| > 0.99 for tanh, h < 0.005 or h > 0.995 for
        the logistic function. NaN for a function without bounds.
    dead : float
        Fraction of units whose slope is exactly 0 at every step and row: for relu, those that are never active.
    dead_units : tuple of int
    arithmetically_dead : float
        Fraction of slopes that are not 0 but are computed as 0 by a backward pass: from h where h determines the slope,
        else from z.
    quantiles : array (len(q),)
        Of |z|: values that occur, the lower one between two; inf where z is not a number. More than 16,384 values are
        sampled evenly, always in the same way: the ranks have a standard error below 0.004. The largest is exact.
    q : tuple of float
    threshold : float
    """

    saturated: float
    dead: float
    dead_units: tuple[int, ...]
    arithmetically_dead: float
    quantiles: Host
    q: tuple[float, ...] = field(metadata=SHARED)
    threshold: float = field(metadata=SHARED)


@lane_probe()
def saturation(lane: Lane, *, threshold: float = THRESHOLD, q: Sequence[float] = QUANTILES) -> Saturation:
    """Count saturated states, dead units and slopes that round to 0.

    Parameters
    ----------
    lane : Lane
    threshold : float
        In units of half the range, from its middle.
    q : sequence of float
        In [0, 1].

    Returns
    -------
    Saturation

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
    >>> found = saturation(record(rnn, -np.ones((3, 1, 1))).lane())
    >>> found.dead, found.dead_units
    (1.0, (0, 1))
    """
    real("threshold", threshold, "a number in (0, 1)", lambda p: 0 < p < 1)
    q = tuple(probability(f"q[{i}]", p) for i, p in enumerate(sequence("q", q, "a sequence of numbers in [0, 1]")))
    total = sum(lane.lengths) * lane.width
    if not total:
        return Saturation(np.nan, np.nan, (), np.nan, np.full(len(q), np.nan), q, threshold)
    with lane.engine.scope(), np.errstate(invalid="ignore"):
        saturated, flat, lost = _counts(lane, threshold)
        units = tuple(int(i) for i in np.flatnonzero(flat == sum(lane.lengths)))
        quantiles = _quantiles(lane, total, q)
    return Saturation(
        saturated / total, len(units) / lane.width, units, float(lost.sum() / total), quantiles, q, threshold
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


def _counts(lane: Lane, threshold: float) -> tuple[float, Host, Host]:
    """The number of saturated states, and by unit (H,) of slopes that are 0 exactly, and only as computed."""
    xp, f, ends = lane.xp, lane.nonlinearity, value_range(lane.nonlinearity)
    if ends is None:
        return np.nan, *_zero_slopes(lane)
    middle, half = 0.5 * (ends[0] + ends[1]), 0.5 * (ends[1] - ends[0])
    extremes = lane.host(xp.stack([xp.max(lane.h), xp.min(lane.h)], axis=0))
    # A bounded function whose states are all far from its ends has no slope of 0.
    if f.clip is None and (np.abs(extremes - middle) <= threshold * half).all():
        nothing = np.zeros(lane.width, dtype=np.int64)
        return 0.0, nothing, nothing
    saturated = float(_per_unit(lane, xp.abs(lane.h - middle) > threshold * half).sum())
    return saturated, *_zero_slopes(lane)


def _zero_slopes(lane: Lane) -> tuple[Host, Host]:
    """How often a unit's slope is 0 exactly, and how often only as computed: two (H,)."""
    xp, f, z = lane.xp, lane.nonlinearity, lane.z
    computed = f.derivative(z, xp=xp) if f.derivative_needs_z else f.derivative_from_h(lane.h, xp=xp)
    zero = computed == 0
    # An exact 0 is also computed as 0, so without a computed 0 the two need not be told apart.
    if not bool(lane.engine.backend.to_numpy(xp.any(zero))):
        nothing = np.zeros(lane.width, dtype=np.int64)
        return nothing, nothing
    flat = lane.log_slope() == -float("inf")
    return _per_unit(lane, flat), _per_unit(lane, xp.logical_and(zero, xp.logical_not(flat)))


def _per_unit(lane: Lane, where: Array) -> Host:
    """How often it is true, over the valid steps and rows: host (H,)."""
    # Integers: float32 cannot count beyond 2**24.
    counts = lane.xp.sum(lane.masked(lane.xp.astype(where, lane.xp.int32)), axis=(0, 1))
    return np.asarray(lane.engine.backend.to_numpy(counts), dtype=np.int64)


def _quantiles(lane: Lane, count: int, q: Sequence[float]) -> Host:
    xp, z = lane.xp, lane.z
    values = xp.reshape(z, (-1,))
    if count > EXACT:
        values, count = xp.take(values, indices(_sample(lane), lane.engine), axis=0), EXACT
    elif lane.ragged is not None:  # the padding sorts behind everything
        own = xp.reshape(lane.masked(xp.ones_like(z)) > 0, (-1,))
        values = xp.where(own, values, xp.full_like(values, float("inf")))
    size = xp.abs(values)
    ordered = xp.sort(xp.where(xp.isnan(size), xp.full_like(size, float("inf")), size), stable=False)
    # The largest of all: 0 in the padding is never that.
    valid = lane.masked(z)
    ends = lane.host(xp.stack([xp.max(valid), xp.min(valid)], axis=0))
    top = np.inf if np.isnan(ends).any() else np.abs(ends).max()
    at = [ordered[int(p * (count - 1))] for p in q if p != 1]
    found = iter(lane.host(xp.stack(at, axis=0)) if at else ())
    return np.asarray([top if p == 1 else next(found) for p in q], dtype=np.float64)


def _sample(lane: Lane) -> Host:
    """Positions of EXACT valid values, drawn evenly and always in the same way."""
    rows = (np.arange(lane.steps)[:, None] * lane.batch + np.arange(lane.batch))[lane.valid]
    # One in each of EXACT equal parts: they are spread over the run, and no period in time is met again and again.
    place = np.random.default_rng(0).random(EXACT) + np.arange(EXACT)
    place = np.minimum((place * (len(rows) * lane.width / EXACT)).astype(np.int64), len(rows) * lane.width - 1)
    return np.asarray(rows[place // lane.width] * lane.width + place % lane.width)
