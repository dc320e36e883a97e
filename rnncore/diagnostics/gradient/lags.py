"""Losses at many steps, followed back: all of them one lag at a time, or some of them as rows of one batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from rnncore.diagnostics.gradient.flow import Delta, later_step
from rnncore.diagnostics.gradient.truncation import Truncation, truncation
from rnncore.diagnostics.lane import Lane
from rnncore.diagnostics.numerics.device import EPS, indices, on_device, take_rows
from rnncore.diagnostics.numerics.scaled import Scaled, add, divided, linear, log_norm, rescaled, times
from rnncore.typing import Array, Host

__all__ = ["Lags", "follow_all", "follow_some", "subtract"]


def subtract(a: Host, b: Any) -> Host:
    """a - b, NaN where there was nothing to begin with."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(b == -np.inf, np.nan, a - b))


@dataclass(frozen=True)
class Lags:
    """A lane in the order of lags: each row's last loss first, back to its first step in the direction's time."""

    lane: Lane
    delta: Delta

    @cached_property
    def reach(self) -> Host:
        """Steps between a row's first state and its last loss, (B,) of int; 0 without a loss."""
        lane, heard = self.lane, self.delta.source_log != -np.inf
        first = np.argmax(heard, axis=0) if lane.reverse else np.argmax(heard[::-1], axis=0)
        whole = np.asarray(lane.lengths, dtype=np.int64) if lane.reverse else np.full(lane.batch, lane.steps)
        return np.where(heard.any(axis=0), whole - first, 0)

    @cached_property
    def time(self) -> Host:
        """The step at each lag (T, B); -1 past a row's first."""
        lag = np.arange(self.lane.steps)[:, None]
        ends = np.asarray(self.lane.lengths, dtype=np.int64)
        t = ends - self.reach + lag if self.lane.reverse else self.reach - 1 - lag
        return np.where(lag < self.reach, t, -1)

    def ordered(self, x: Array) -> Array:
        """x (T, B, H) by lag; 0 past a row's first step."""
        lane, xp = self.lane, self.lane.xp
        if (self.reach == lane.steps).all():
            return x if lane.reverse else xp.flip(x, axis=0)
        at = (np.maximum(self.time, 0) * lane.batch + np.arange(lane.batch)).reshape(-1)
        rows = xp.reshape(x, (lane.steps * lane.batch, x.shape[2]))
        taken = xp.reshape(xp.take(rows, indices(at, lane.engine), axis=0), x.shape)
        return xp.where(on_device((self.time >= 0)[..., None], lane.engine, xp.bool), taken, xp.zeros_like(taken))

    def ordered_log(self, log: Host, past: float = 0.0) -> Host:
        """Host logarithms (T, B) by lag; `past` past a row's first step, where a scale has no meaning."""
        return np.where(self.time >= 0, log[np.maximum(self.time, 0), np.arange(self.lane.batch)], past)


# --- some losses, as rows of a batch ----------------------------------------------------------------------------------


def follow_some(lags: Lags, max_lag: int) -> tuple[Host, Truncation, int, bool]:
    """Follow one loss in each `max_lag` steps, counted from every row's last one, up to the next.

    Returns
    -------
    gain : host array (N, B)
        ln of the norm over these losses at each lag, less that at lag 0.
    truncation : Truncation
        Of the sum of these losses.
    losses : int
        The most losses of a row.
    complete : bool
        Whether no lag was left out.
    """
    lane, xp, engine = lags.lane, lags.lane.xp, lags.lane.engine
    longest = int(lags.reach.max())
    count = min(max_lag, longest)
    at = np.arange(longest // count) * count
    width, w = lane.width, lane.weights.weight_hh

    def windows(x: Array) -> Array:
        """(T, B, H) to (count, windows * B, H)."""
        parts = xp.reshape(x[: len(at) * count, ...], (len(at), count, lane.batch, width))
        return xp.reshape(xp.permute_dims(parts, (1, 0, 2, 3)), (count, len(at) * lane.batch, width))

    d = lags.ordered(lane.slope())
    e, size = _of_losses(lags, d, at)
    d, ln = windows(d), size[None]
    if count > 1:
        silent = Scaled(xp.zeros_like(d[1:, ...]), np.zeros((count - 1, len(size))))
        nothing = np.full((count - 1, len(size)), -np.inf)
        rest = linear(silent, d[1:, ...], w, reverse=False, engine=engine, first=e, size_of_u=nothing)
        e = Scaled(xp.concat([e.values, rest.values], axis=0), np.concatenate([e.log, rest.log]))
        arrived = divided(rest, d[1:, ...], engine=engine)
        if arrived is None:
            arrived = times(Scaled(e.values[:-1, ...], e.log[:-1]), w, engine=engine)
        ln = np.concatenate([ln, log_norm(arrived, engine=engine)])
    bias = truncation(e, windows(lags.ordered(lane.previous())), engine=engine)
    return _gain_of(ln, size, lags, at), bias, len(at), count == longest


def _of_losses(lags: Lags, d: Array, at: Host) -> tuple[Scaled, Host]:
    """The share of the losses at these lags in dL/dz, (1, n * B, H), and ln of their norms in dL/dh."""
    delta, engine, batch = lags.delta, lags.lane.engine, lags.lane.batch
    t = lags.time[at]
    rows = (np.maximum(t, 0) * batch + np.arange(batch)).reshape(-1)
    size = np.where(t.reshape(-1) >= 0, delta.source_log.reshape(-1)[rows], -np.inf)
    heard = on_device((size != -np.inf)[None, :, None], engine, engine.xp.bool)
    slopes = take_rows(d, (at[:, None] * batch + np.arange(batch)).reshape(-1), engine)
    values = take_rows(delta.source.values, rows, engine) * slopes
    values = engine.xp.where(heard, values, engine.xp.zeros_like(values))
    return Scaled(values, delta.source.log.reshape(1, -1)[:, rows]), size


def _gain_of(ln: Host, size: Host, lags: Lags, at: Host) -> Host:
    """(N, B), of the windows of each row; one that is cut by the row's first step has fewer lags than the others."""
    count, batch = len(ln), lags.lane.batch
    ln, size = ln.reshape(count, len(at), batch), size.reshape(len(at), batch)
    own = np.arange(count)[:, None, None] < (lags.reach[None, :] - at[:, None])[None]
    arrived, sent = np.where(own, ln, -np.inf), np.where(own, size[None], -np.inf)
    return np.where(own.any(axis=1), subtract(_total(arrived, 1), _total(sent, 1)), np.nan)


def _total(log: Host, axis: int) -> Host:
    """ln of the root of the sum of squares."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.logaddexp.reduce(2 * log, axis=axis) / 2)


# --- all losses, one lag at a time ------------------------------------------------------------------------------------


def follow_all(lags: Lags, max_lag: int) -> tuple[Host, Truncation, bool]:
    """Follow every loss back one step at a time, all at once: ``e_t <- d_t * (e_{t+1} W)``.

    Returns
    -------
    gain : host array (N, B)
    truncation : Truncation
    complete : bool
        Whether no lag was left out.
    """
    lane, delta, engine, reach = lags.lane, lags.delta, lags.lane.engine, lags.reach
    w, d, before = lane.weights.weight_hh, lane.slope(), lane.previous()
    e = _steady(Scaled(delta.source.values * d, delta.source.log), lane)
    base = _of_losses_with_lag(lags)
    gains = [subtract(base[0], base[0])]
    left = _gradient(_steady(delta, lane), before, lane)
    total = _log(left, lane)
    logs = [total]
    eps = math.log(EPS[engine.dtype_name])
    n, complete = 0, False
    while True:
        share = _gradient(e, before, lane)
        left = add(left, Scaled(-share.values, share.log), engine=engine)
        size = _log(share, lane) - total
        logs.append(_log(left, lane))
        n += 1
        if n >= reach.max(initial=0):
            complete = True
            break
        arrived = times(later_step(e, lane), w, engine=engine)
        norm = log_norm(arrived, engine=engine)
        gain = _total(np.where(lane.valid, norm, -np.inf), 0)
        gains.append(np.where(reach > n, subtract(gain, base[n]), np.nan))
        reached = gains[-1][np.isfinite(gains[-1])]
        if not len(reached):
            complete = True
            break
        # The share and not the rest of the sum: that ends in rounding, at a few eps.
        if n >= max_lag or (reached.max() < eps and size < eps):
            break
        arrived = _steady(arrived, lane, norm)
        e = Scaled(arrived.values * d, arrived.log)
    with np.errstate(over="ignore"):
        bias = np.exp(np.asarray(logs) - total) if math.isfinite(total) else np.full(len(logs), np.nan)
    return np.stack(gains), Truncation(np.arange(len(logs)), bias), complete


def _of_losses_with_lag(lags: Lags) -> Host:
    """ln of the norm over the losses that have the lag n: those n steps or more behind a row's first state. (T, B)."""
    from_last = np.logaddexp.accumulate(2 * lags.ordered_log(lags.delta.source_log, -np.inf), axis=0) / 2
    steps = lags.reach - 1 - np.arange(lags.lane.steps)[:, None]
    return np.where(steps >= 0, from_last[np.maximum(steps, 0), np.arange(lags.lane.batch)], -np.inf)


def _steady(x: Scaled, lane: Lane, size: Host | None = None) -> Scaled:
    """Every vector on the scale of its own norm, if given ln of it; a vector of zeros on the smallest of these scales."""
    size = log_norm(x, engine=lane.engine) if size is None else size
    known = np.isfinite(size)
    log = np.where(known, size, size[known].min() if known.any() else 0.0)
    return Scaled(rescaled(x.values, np.where(known, x.log - log, 0.0), engine=lane.engine), log)


def _gradient(e: Scaled, before: Array, lane: Lane) -> Scaled:
    """``sum_t e_t^T h_{t-1}`` as one vector of H^2 numbers, (1, 1, H^2)."""
    xp, values, top = lane.xp, e.values, 0.0
    if e.log.size:  # all on the scale of the largest: what leaves the dtype's range there does not count in a sum
        top = float(e.log.max())
        values = rescaled(values, e.log - top, engine=lane.engine)
    rows = (lane.steps * lane.batch, lane.width)
    product = xp.matmul(xp.matrix_transpose(xp.reshape(values, rows)), xp.reshape(before, rows))
    return Scaled(xp.reshape(product, (1, 1, -1)), np.full((1, 1), top))


def _log(x: Scaled, lane: Lane) -> float:
    return float(log_norm(x, engine=lane.engine)[0, 0])
