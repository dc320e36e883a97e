"""losses: losses at many steps followed back, all of them one lag at a time, or some as rows of one batch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rnncore import scan
from rnncore.arrays import index_dtype
from rnncore.backend import Array
from rnncore.diagnostics.record import Record
from rnncore.diagnostics.scaled import EPS, Scaled, add, divided, linear, log_norm, rescaled, take_rows, times
from rnncore.diagnostics.truncation import Truncation, truncation
from rnncore.dispatch import Engine

__all__ = ["follow_all", "follow_some", "in_lag_order", "log_in_lag_order", "subtract"]

Host = np.ndarray[Any, Any]


def subtract(a: Host, b: Any) -> Host:
    """a - b, NaN where there was nothing to begin with."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(b == -np.inf, np.nan, a - b))


def follow_some(
    record: Record, delta: Scaled, source: Host, layer: int, direction: int, max_lag: int
) -> tuple[Host, Truncation, int]:
    """One loss in each `max_lag` steps, counted from every row's last one, each with the lags up to the next.

    Returns
    -------
    gain : host array (N, B)
        ln of the norm over these losses at each lag, less that at lag 0.
    truncation : Truncation
        Of the sum of these losses.
    losses : int
        How many of each row, at most.
    """
    engine, xp = record.engine, record.xp
    lags = min(max_lag, max(record.lengths))
    at = np.arange(max(record.lengths) // lags) * lags
    w = record.weights[layer][direction].weight_hh

    def windows(x: Any, *more: int) -> Any:
        """(T, B, ...) to (lags, windows * B, ...)."""
        split = (len(at), lags, record.batch, *more)
        order = (1, 0, *range(2, len(split)))
        if isinstance(x, np.ndarray) and not more:
            return x[: len(at) * lags].reshape(split).transpose(order).reshape(lags, -1)
        parts = xp.permute_dims(xp.reshape(x[: len(at) * lags, ...], split), order)
        return xp.reshape(parts, (lags, len(at) * record.batch, *more))

    d, before, values = (
        in_lag_order(x, record, direction)
        for x in (record.slope(layer, direction), record.previous(layer, direction), delta.values)
    )
    width = int(d.shape[2])
    log = log_in_lag_order(delta.log, record, direction)
    of_source = log_in_lag_order(source, record, direction, -np.inf)
    size = windows(of_source)[0]
    own = _own_sources(Scaled(values, log), d, w, at, engine)
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
    return _gain_of(ln, size, record, at), truncation(e, windows(before, width), engine=engine), len(at)


def _own_sources(delta: Scaled, d: Array, w: Array, at: Host, engine: Engine) -> Scaled:
    """What these lags' losses alone give dL/dz: less of it all than what came through the recurrence. (1, n * B, H)."""
    batch = int(d.shape[1])
    rows = (at[:, None] * batch + np.arange(batch)).reshape(-1)
    earlier = np.maximum(rows - batch, 0)  # one step nearer to the end of the row; nothing comes to the first of all

    def taken(x: Scaled, where: Host) -> Scaled:
        return Scaled(take_rows(x.values, where, engine=engine), x.log.reshape(1, -1)[:, where])

    through = times(taken(delta, earlier), w, engine=engine)
    inner = engine.backend.asarray((rows >= batch)[None, :, None], dtype=engine.dtype, device=engine.device)
    through = Scaled(through.values * take_rows(d, rows, engine=engine) * inner, through.log)
    return add(taken(delta, rows), Scaled(-through.values, through.log), engine=engine)


def _gain_of(ln: Host, size: Host, record: Record, at: Host) -> Host:
    """(lags, B), of the windows of each row; one that is cut by the row's first step has fewer lags than the others."""
    lags, batch = len(ln), record.batch
    ln, size = ln.reshape(lags, len(at), batch), size.reshape(len(at), batch)
    reach = np.asarray(record.lengths, dtype=np.int64)[None, :] - at[:, None]
    own = np.arange(lags)[:, None, None] < reach[None]
    arrived, sent = np.where(own, ln, -np.inf), np.where(own, size[None], -np.inf)
    gain = subtract(_over(arrived), _over(sent))
    return np.where(own.any(axis=1), gain, np.nan)


def _over(log: Host) -> Host:
    """ln of the root of the sum of squares over the windows."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.logaddexp.reduce(2 * log, axis=1) / 2)


def follow_all(
    record: Record, delta: Scaled, source: Host, layer: int, direction: int, max_lag: int
) -> tuple[Host, Truncation, bool]:
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
    # The share of the losses themselves is what the recurrence does not explain.
    through = times(_after(delta, direction, record), w, engine=engine)
    through = Scaled(through.values * d, through.log)
    e = _steady(add(delta, Scaled(-through.values, through.log), engine=engine), record)
    base = _over_time(source)
    rows = np.asarray(record.lengths, dtype=np.int64)
    gains = [np.where(rows > 0, subtract(base, base), np.nan)]
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
        if n >= record.steps:
            complete = True
            break
        arrived = times(_after(e, direction, record), w, engine=engine)
        norm = log_norm(arrived, engine=engine)
        gain = _over_time(np.where(record.valid, norm, -np.inf))
        gains.append(np.where(rows > n, subtract(gain, base), np.nan))
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


def in_lag_order(x: Array, record: Record, direction: int) -> Array:
    """x (T, B, H) with each row's last step in the direction's time first, going back; 0 past its first."""
    if direction:
        return x
    if record.ragged is None:
        return record.xp.flip(x, axis=0)
    steps, batch = record.steps, record.batch
    t = _time_of_lag(record)
    index = (np.maximum(t, 0) * batch + np.arange(batch)[None, :]).reshape(-1)
    engine, xp = record.engine, record.xp
    at = engine.backend.asarray(index, dtype=index_dtype(xp=xp, device=engine.device), device=engine.device)
    taken = xp.reshape(xp.take(xp.reshape(x, (steps * batch, x.shape[2])), at, axis=0), x.shape)
    own = engine.backend.asarray((t >= 0)[..., None], dtype=xp.bool, device=engine.device)
    return xp.where(own, taken, xp.zeros_like(taken))


def log_in_lag_order(log: Host, record: Record, direction: int, past: float = 0.0) -> Host:
    """The same of logarithms (T, B) on the host; `past` past a row's first step, where a scale has no meaning."""
    if direction:
        return np.where(record.valid, log, past)
    t = _time_of_lag(record)
    return np.where(t >= 0, log[np.maximum(t, 0), np.arange(record.batch)], past)


def _time_of_lag(record: Record) -> Host:
    return np.asarray(record.lengths, dtype=np.int64)[None, :] - 1 - np.arange(record.steps)[:, None]
