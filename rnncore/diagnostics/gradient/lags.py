"""losses: losses at many steps followed back, all of them one lag at a time, or some as rows of one batch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rnncore import scan
from rnncore.backend.arrays import index_dtype
from rnncore.diagnostics.gradient.flow import Delta
from rnncore.diagnostics.gradient.truncation import Truncation, truncation
from rnncore.diagnostics.numerics.scaled import EPS, Scaled, add, divided, linear, log_norm, rescaled, take_rows, times
from rnncore.diagnostics.recording import Record
from rnncore.typing import Array, Host

__all__ = ["follow_all", "follow_some", "in_lag_order", "log_in_lag_order", "reach_of", "subtract"]


def subtract(a: Host, b: Any) -> Host:
    """a - b, NaN where there was nothing to begin with."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(b == -np.inf, np.nan, a - b))


def reach_of(source_log: Host, record: Record, direction: int) -> Host:
    """How many steps lie between a row's first state and its last loss, in the direction's time: (B,) of int; 0 without any."""
    heard = source_log != -np.inf
    first = np.argmax(heard, axis=0) if direction else np.argmax(heard[::-1], axis=0)
    whole = np.asarray(record.lengths, dtype=np.int64) if direction else np.full(record.batch, record.steps)
    return np.where(heard.any(axis=0), whole - first, 0)


def follow_some(
    record: Record, delta: Delta, layer: int, direction: int, max_lag: int
) -> tuple[Host, Truncation, int, bool]:
    """One loss in each `max_lag` steps, counted from every row's last one, each with the lags up to the next.

    Returns
    -------
    gain : host array (N, B)
        ln of the norm over these losses at each lag, less that at lag 0.
    truncation : Truncation
        Of the sum of these losses.
    losses : int
        How many of each row, at most.
    complete : bool
        Whether no lag was left out.
    """
    engine, xp = record.engine, record.xp
    reach = reach_of(delta.source_log, record, direction)
    longest = int(reach.max())
    lags = min(max_lag, longest)
    at = np.arange(longest // lags) * lags
    w = record.weights[layer][direction].weight_hh

    def windows(x: Array, width: int) -> Array:
        """(T, B, H) to (lags, windows * B, H)."""
        parts = xp.reshape(x[: len(at) * lags, ...], (len(at), lags, record.batch, width))
        return xp.reshape(xp.permute_dims(parts, (1, 0, 2, 3)), (lags, len(at) * record.batch, width))

    d, before = (
        in_lag_order(x, record, direction, reach)
        for x in (record.slope(layer, direction), record.previous(layer, direction))
    )
    width = int(d.shape[2])
    own, size = _of_losses(delta, d, at, reach, record, direction)
    d = windows(d, width)
    if lags > 1:
        rest = linear(
            Scaled(xp.zeros_like(d[1:, ...]), np.zeros((lags - 1, len(size)))),
            d[1:, ...],
            w,
            reverse=False,
            engine=engine,
            first=own,
            size_of_u=np.full((lags - 1, len(size)), -np.inf),
        )
        e = Scaled(xp.concat([own.values, rest.values], axis=0), np.concatenate([own.log, rest.log]))
        arrived = divided(rest, d[1:, ...], engine=engine)
        if arrived is None:
            arrived = times(Scaled(e.values[:-1, ...], e.log[:-1]), w, engine=engine)
        ln = np.concatenate([size[None], log_norm(arrived, engine=engine)])
    else:
        e, ln = own, size[None]
    bias = truncation(e, windows(before, width), engine=engine)
    return _gain_of(ln, size, record, at, reach), bias, len(at), lags == longest


def _of_losses(delta: Delta, d: Array, at: Host, reach: Host, record: Record, direction: int) -> tuple[Scaled, Host]:
    """What the losses at these lags give dL/dz themselves, (1, n * B, H), and ln of the norms that they give dL/dh."""
    engine, batch = record.engine, record.batch
    t = _time_of_lag(record, direction, reach)[at]
    rows = (np.maximum(t, 0) * batch + np.arange(batch)).reshape(-1)
    size = np.where(t.reshape(-1) >= 0, delta.source_log.reshape(-1)[rows], -np.inf)
    heard = engine.backend.asarray((size != -np.inf)[None, :, None], dtype=engine.xp.bool, device=engine.device)
    values = take_rows(delta.source.values, rows, engine=engine)
    slopes = take_rows(d, (at[:, None] * batch + np.arange(batch)).reshape(-1), engine=engine)
    values = engine.xp.where(heard, values * slopes, engine.xp.zeros_like(values))
    return Scaled(values, delta.source.log.reshape(1, -1)[:, rows]), size


def _gain_of(ln: Host, size: Host, record: Record, at: Host, reach: Host) -> Host:
    """(lags, B), of the windows of each row; one that is cut by the row's first step has fewer lags than the others."""
    lags, batch = len(ln), record.batch
    ln, size = ln.reshape(lags, len(at), batch), size.reshape(len(at), batch)
    own = np.arange(lags)[:, None, None] < (reach[None, :] - at[:, None])[None]
    arrived, sent = np.where(own, ln, -np.inf), np.where(own, size[None], -np.inf)
    gain = subtract(_over(arrived), _over(sent))
    return np.where(own.any(axis=1), gain, np.nan)


def _over(log: Host) -> Host:
    """ln of the root of the sum of squares over the windows."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.logaddexp.reduce(2 * log, axis=1) / 2)


def follow_all(record: Record, delta: Delta, layer: int, direction: int, max_lag: int) -> tuple[Host, Truncation, bool]:
    """Every loss followed back one step at a time, all at once: ``e_t <- d_t * (e_{t+1} W)``.

    Returns
    -------
    gain : host array (N, B)
    truncation : Truncation
    complete : bool
        Whether no lag was left out.
    """
    engine, xp = record.engine, record.xp
    w, d = record.weights[layer][direction].weight_hh, record.slope(layer, direction)
    before = record.previous(layer, direction)
    e = _steady(Scaled(delta.source.values * d, delta.source.log), record)
    reach = reach_of(delta.source_log, record, direction)
    base = _of_losses_with_lag(delta.source_log, record, direction, reach)
    gains = [subtract(base[0], base[0])]
    whole, whole_log = _gradient(record, _steady(delta, record), before)
    left = Scaled(xp.expand_dims(whole, axis=0), np.full((1, 1), whole_log))
    total = _matrix_log(left, record)
    logs = [total]
    eps = math.log(EPS[engine.dtype_name])
    n, complete = 0, False
    while True:
        share, share_log = _gradient(record, e, before)
        left = _minus(left, share, share_log, record)
        size = _matrix_log(Scaled(xp.expand_dims(share, axis=0), np.full((1, 1), share_log)), record) - total
        logs.append(_matrix_log(left, record))
        n += 1
        if n >= reach.max(initial=0):
            complete = True
            break
        arrived = times(_after(e, direction, record), w, engine=engine)
        norm = log_norm(arrived, engine=engine)
        gain = _over_time(np.where(record.valid, norm, -np.inf))
        gains.append(np.where(reach > n, subtract(gain, base[n]), np.nan))
        reached = gains[-1][np.isfinite(gains[-1])]
        if not len(reached):
            complete = True
            break
        # The share and not what is left of the sum: that ends in rounding, at a few eps.
        if n >= max_lag or (reached.max() < eps and size < eps):
            break
        arrived = _steady(arrived, record, norm)
        e = Scaled(arrived.values * d, arrived.log)
    return np.stack(gains), Truncation(np.arange(len(logs)), _relative(np.asarray(logs), total)), complete


def _of_losses_with_lag(source_log: Host, record: Record, direction: int, reach: Host) -> Host:
    """ln of the norm over the losses that have the lag n: those n steps or more behind a row's first state. (T, B)."""
    from_last = np.logaddexp.accumulate(2 * log_in_lag_order(source_log, record, direction, reach, -np.inf), axis=0) / 2
    steps = reach - 1 - np.arange(record.steps)[:, None]
    return np.where(steps >= 0, from_last[np.maximum(steps, 0), np.arange(record.batch)], -np.inf)


def _after(x: Scaled, direction: int, record: Record) -> Scaled:
    """x of the step that comes after t in the direction's time: 0 after the last."""
    nothing = record.xp.zeros_like(x.values[0, ...])
    values = scan.previous(x.values, nothing, reverse=not direction, xp=record.xp)
    edge = np.zeros((1, record.batch))
    return Scaled(values, np.concatenate([edge, x.log[:-1]] if direction else [x.log[1:], edge]))


def _steady(x: Scaled, record: Record, size: Host | None = None) -> Scaled:
    """Every vector on the scale of its own norm, if given ln of it; a vector of zeros on the smallest that there is."""
    size = log_norm(x, engine=record.engine) if size is None else size
    known = np.isfinite(size)
    log = np.where(known, size, size[known].min() if known.any() else 0.0)
    return Scaled(rescaled(x.values, np.where(known, x.log - log, 0.0), engine=record.engine), log)


def _relative(log: Host, whole: float) -> Host:
    with np.errstate(over="ignore"):
        return np.full_like(log, np.nan) if not math.isfinite(whole) else np.exp(log - whole)


def _common(x: Scaled, record: Record) -> Array:
    """All on the scale of the largest: what falls out of the dtype's range there does not count in a sum."""
    if not x.log.size:
        return x.values
    return rescaled(x.values, x.log - x.log.max(initial=-np.inf), engine=record.engine)


def _gradient(record: Record, e: Scaled, before: Array) -> tuple[Array, float]:
    """``sum_t e_t^T h_{t-1}`` as a matrix and the logarithm of its scale."""
    xp = record.xp
    values = _common(e, record)
    rows = (record.steps * record.batch, int(values.shape[2]))
    product = xp.matmul(xp.matrix_transpose(xp.reshape(values, rows)), xp.reshape(before, rows))
    return product, float(e.log.max(initial=-np.inf)) if e.log.size else 0.0


def _minus(left: Scaled, share: Array, log: float, record: Record) -> Scaled:
    """left - share, matrices (1, H, H) on one scale: as rows of numbers for the sum of scaled vectors."""
    xp = record.xp
    flat = (1, 1, int(share.shape[0]) ** 2)
    a = Scaled(xp.reshape(left.values, flat), left.log)
    b = Scaled(-xp.reshape(share, flat), np.full((1, 1), log))
    found = add(a, b, engine=record.engine)
    return Scaled(xp.reshape(found.values, left.values.shape), found.log)


def _matrix_log(m: Scaled, record: Record) -> float:
    width = int(m.values.shape[1])
    flat = Scaled(record.xp.reshape(m.values, (1, 1, width * width)), m.log)
    return float(log_norm(flat, engine=record.engine)[0, 0])


def _over_time(log: Host) -> Host:
    """ln of the root of the sum of squares over the steps: (B,)."""
    return np.asarray(np.logaddexp.reduce(2 * log, axis=0) / 2)


def in_lag_order(x: Array, record: Record, direction: int, reach: Host) -> Array:
    """x (T, B, H) with the step of each row's last loss first, going back in the direction's time; 0 past its first."""
    steps, batch = record.steps, record.batch
    if (reach == steps).all():
        return x if direction else record.xp.flip(x, axis=0)
    t = _time_of_lag(record, direction, reach)
    index = (np.maximum(t, 0) * batch + np.arange(batch)[None, :]).reshape(-1)
    engine, xp = record.engine, record.xp
    at = engine.backend.asarray(index, dtype=index_dtype(xp=xp, device=engine.device), device=engine.device)
    taken = xp.reshape(xp.take(xp.reshape(x, (steps * batch, x.shape[2])), at, axis=0), x.shape)
    own = engine.backend.asarray((t >= 0)[..., None], dtype=xp.bool, device=engine.device)
    return xp.where(own, taken, xp.zeros_like(taken))


def log_in_lag_order(log: Host, record: Record, direction: int, reach: Host, past: float = 0.0) -> Host:
    """The same of logarithms (T, B) on the host; `past` past a row's first step, where a scale has no meaning."""
    t = _time_of_lag(record, direction, reach)
    return np.where(t >= 0, log[np.maximum(t, 0), np.arange(record.batch)], past)


def _time_of_lag(record: Record, direction: int, reach: Host) -> Host:
    """The step at each lag (T, B); -1 past a row's first."""
    lag = np.arange(record.steps)[:, None]
    t = np.asarray(record.lengths, dtype=np.int64) - reach + lag if direction else reach - 1 - lag
    return np.where(lag < reach, t, -1)
