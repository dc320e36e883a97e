"""horizon: how far back the gradient reaches, and what truncating backpropagation to K steps costs.

Lag n is the distance between a loss and the state that it is differentiated by: ``dL/dh_{T-n}`` for a loss of the last
state. The bias of truncation is that of the gradient of W_hh itself, from the signed contributions of the lags, which may
cancel: norms that are added up do not tell it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnncore import scan
from rnncore.arrays import index_dtype
from rnncore.backend import Array
from rnncore.diagnostics.flow import Flow
from rnncore.diagnostics.record import Record
from rnncore.diagnostics.scaled import Scaled, add, log_norm, times
from rnncore.errors import ArgumentValueError

__all__ = ["Horizon", "horizon", "theil_sen"]

Host = np.ndarray[Any, Any]
SMALL = 1e-3
EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
# Numbers of matrices (H, H) that wait for their suffix sums; points of the slope.
WAITING = 2**18
POINTS = 512


@dataclass(frozen=True)
class Horizon:
    """Natural logarithms; lags in steps of the direction's own time.

    Attributes
    ----------
    gain : host array (N + 1, B)
        ln of the norm of what arrives n steps before the loss, less ln of the norm at the loss. For a loss of the last
        state ``ln ||dL/dh_{T-n}|| - ln ||dL/dh_T||``, with n = T for h_0. For a loss at many steps the norm is over all
        of them, each loss at its own lag n, h_0 left out. NaN past a row's first state and in a row without a loss, -inf
        where nothing arrives.
    median : host array (n,)
        Over the rows that have the lag; no longer than the longest of them.
    lag_small, lag_eps : int or None
        The smallest lag from which on the median gain stays below 1e-3, and below the dtype's eps, where it no longer
        changes a sum in this arithmetic. None where it does not within the lags looked at.
    slope : float
        Nats per step, negative for vanishing: the median of the slopes between all pairs of lags (Theil and Sen). NaN
        with fewer than two finite gains.
    e_fold : float
        ``1 / |slope|``: the lags in which the gradient changes by a factor of e.
    bias : host array (N + 1,)
        ``||g_K - g|| / ||g||`` by K, where g_K is the gradient of weight_hh from lags 0 to K - 1 alone, summed over the
        rows. ``bias[0]`` is 1. NaN where g is 0.
    k_10, k_1 : int or None
        The smallest K from which on the bias is at most 10 %, and 1 %.
    complete : bool
        Whether all lags were looked at.
    layer, direction : int
    """

    gain: Host
    median: Host
    lag_small: int | None
    lag_eps: int | None
    slope: float
    e_fold: float
    bias: Host
    k_10: int | None
    k_1: int | None
    complete: bool
    layer: int
    direction: int


def horizon(
    record: Record,
    flow: Flow,
    deltas: Sequence[Sequence[Scaled]],
    *,
    layer: int = -1,
    direction: int = 0,
    max_lag: int = 256,
) -> Horizon:
    """Gain by lag, and the bias of truncation at K, of one layer's and direction's recurrence.

    What comes down from the layer above enters as it is: truncated there too it would be a little less.

    Parameters
    ----------
    record : Record
    flow, deltas
        What :func:`rnncore.diagnostics.flow.flow` returned for the record.
    layer, direction : int
    max_lag : int
        Where losses at more than the last state have to be followed: the most lags. A loss of the last state has all.

    Notes
    -----
    For a loss of the last state, every step is a lag: the work is one product ``delta_t^T h_{t-1}`` for each, ``2 T B H^2``
    operations as in one backward pass, and three passes over (H, H) numbers a step, which take longer than the product
    where B is small; in pieces of bounded memory. Else each lag takes one product of all steps with W and one with the
    states, ``4 T B H^2``: about one backward pass without its sequential scan, until what is left is below eps of the
    whole or max_lag is reached. Memory is a few arrays (T, B, H).

    Truncation bias and its geometric decay: Tallec and Ollivier (2017), "Unbiasing truncated backpropagation through
    time"; Aicher, Foti and Fox (2019), "Adaptively truncating backpropagation through time to control gradient bias".

    Examples
    --------
    ``h_t = 0.9 h_{t-1} + 0.1`` at its fixed point, the loss on the last of 200 steps:

    >>> import numpy as np, rnncore
    >>> from rnncore import diagnostics
    >>> from rnncore.diagnostics.horizon import horizon
    >>> rnn = rnncore.RNN(1, 1, nonlinearity="identity", bias=False, rng=0)
    >>> rnn.load_state_dict({"weight_ih_l0": np.array([[0.1]]), "weight_hh_l0": np.array([[0.9]])})
    >>> seen = diagnostics.record(rnn, np.ones((200, 1, 1)), np.ones((1, 1, 1)))
    >>> found = horizon(seen, *diagnostics.flow(seen, None, [[np.ones((1, 1))]]))
    >>> found.lag_small, found.k_10, found.k_1
    (66, 22, 44)
    >>> round(100 * float(found.bias[22]), 3), round(100 * float(found.bias[44]), 3)
    (9.848, 0.97)
    """
    layers = record.spec.num_layers
    if not -layers <= layer < layers:
        raise ArgumentValueError(f"layer: expected an int in [0, {layers - 1}], got {layer}")
    if not 0 <= direction < record.directions:
        raise ArgumentValueError(f"direction: expected an int in [0, {record.directions - 1}], got {direction}")
    if max_lag < 1:
        raise ArgumentValueError(f"max_lag: expected an int >= 1, got {max_lag}")
    layer %= layers
    delta = deltas[layer][direction]
    source = _source_log(record, flow, layer, direction)
    with record.engine.scope():
        if _only_last(record, source, direction):
            gain, complete = _gain_of_last(record, flow, layer, direction), True
            bias = _bias_of_last(record, delta, layer, direction)
        else:
            gain, bias, complete = _by_lag(record, delta, source, layer, direction, max_lag)
    median = _median(gain)
    slope = theil_sen(median)
    return Horizon(
        gain=gain,
        median=median,
        lag_small=_from_on(median < math.log(SMALL)),
        lag_eps=_from_on(median < math.log(EPS[record.engine.dtype_name])),
        slope=slope,
        e_fold=1 / abs(slope) if slope else math.inf,
        bias=bias,
        k_10=_from_on(bias <= 0.1),
        k_1=_from_on(bias <= 0.01),
        complete=complete,
        layer=layer,
        direction=direction,
    )


def theil_sen(y: Host) -> float:
    """The median slope between all pairs of finite y against their index; of POINTS of them where there are more."""
    x = np.flatnonzero(np.isfinite(y))
    if len(x) < 2:
        return math.nan
    x = x[np.unique(np.linspace(0, len(x) - 1, POINTS).round().astype(np.int64))]
    i, j = np.triu_indices(len(x), 1)
    return float(np.median((y[x[j]] - y[x[i]]) / (x[j] - x[i])))


def _source_log(record: Record, flow: Flow, layer: int, direction: int) -> Host:
    """ln of the norm of what does not come through the recurrence, (T, B); the two parts taken as orthogonal where both."""
    a, b = flow.direct[layer][direction], flow.above[layer][direction]
    with np.errstate(invalid="ignore"):
        both = np.logaddexp(2 * a, 2 * b) / 2
    both = np.where(a == -np.inf, b, np.where(b == -np.inf, a, both))
    return np.where(record.valid, both, -np.inf)


def _only_last(record: Record, source: Host, direction: int) -> bool:
    """Whether the loss speaks of nothing but each row's last state, in the direction's time."""
    steps = np.arange(record.steps)[:, None]
    last = steps == (0 if direction else np.asarray(record.lengths, dtype=np.int64)[None, :] - 1)
    return bool((source[~last & record.valid] == -np.inf).all())


def _gain_of_last(record: Record, flow: Flow, layer: int, direction: int) -> Host:
    total, initial = flow.total[layer][direction], flow.initial[layer][direction]
    out = np.full((record.steps + 1, record.batch), np.nan)
    for b, n in enumerate(record.lengths):
        if n:
            series = total[:n, b] if direction else total[:n, b][::-1]
            series = np.append(series, initial[b])
            out[: n + 1, b] = _less(series, series[0])
    return out


def _less(a: Host, b: Any) -> Host:
    """a - b, NaN where there was nothing to begin with."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(b == -np.inf, np.nan, a - b))


def _bias_of_last(record: Record, delta: Scaled, layer: int, direction: int) -> Host:
    """||sum over n >= K of C_n|| / ||sum of all||, with C_n = sum over rows of delta^T h_{t-1} at lag n: (T + 1,)."""
    engine, xp = record.engine, record.xp
    steps, batch = record.steps, record.batch
    width = int(delta.values.shape[2])
    values, before = _common(_steady(delta, record), record), record.previous(layer, direction)
    if record.ragged is not None and not direction:
        values, before = _lag_order(values, record), _lag_order(before, record)
        lagged = True
    else:
        lagged = bool(direction)
    # Only ratios are asked for. With both factors of about 1, a square leaves the range where the ratio is far below eps.
    largest = xp.max(xp.abs(before)) if batch else xp.ones((), dtype=engine.dtype, device=engine.device)
    before = before / xp.where(largest > 0, largest, xp.ones_like(largest))
    piece = max(1, min(steps, WAITING // width**2))
    carry = xp.zeros((1, width, width), dtype=engine.dtype, device=engine.device)
    norms: list[Array] = []
    # From the farthest lag on, so that the small sums are made of small numbers.
    for stop in range(steps, 0, -piece):
        start = max(0, stop - piece)
        a, b = (start, stop) if lagged else (steps - stop, steps - start)
        each = xp.matmul(xp.matrix_transpose(values[a:b, ...]), before[a:b, ...])
        far_first = xp.flip(each, axis=0) if lagged else each
        sums = carry + xp.cumulative_sum(far_first, axis=0)
        norms.append(xp.sum(sums * sums, axis=(1, 2)))
        carry = sums[-1:, ...]
    squares = record.host(xp.concat(norms, axis=0))[::-1] if batch else np.zeros(steps)
    with np.errstate(divide="ignore", invalid="ignore"):
        log = 0.5 * np.log(squares)
    return _relative(np.append(log, -np.inf), log[0])


def _relative(log: Host, whole: float) -> Host:
    with np.errstate(over="ignore"):
        return np.full_like(log, np.nan) if not math.isfinite(whole) else np.exp(log - whole)


def _common(x: Scaled, record: Record) -> Array:
    """All on the scale of the largest: what falls out of the dtype's range there does not count in a sum."""
    return _scaled_by(x.values, x.log - x.log.max(initial=-np.inf), record) if x.log.size else x.values


def _scaled_by(x: Array, log: Host, record: Record) -> Array:
    if not log.any():
        return x
    # In two factors: the scale alone may lie outside of the dtype where the product does not.
    half = record.engine.backend.asarray(
        np.exp(log / 2)[..., None], dtype=record.engine.dtype, device=record.engine.device
    )
    return x * half * half


def _lag_order(x: Array, record: Record) -> Array:
    """x (T, B, H) with each row's last valid step first, going back; 0 past its first."""
    steps, batch = record.steps, record.batch
    lag = np.arange(steps)[:, None]
    t = np.asarray(record.lengths, dtype=np.int64)[None, :] - 1 - lag
    index = (np.maximum(t, 0) * batch + np.arange(batch)[None, :]).reshape(-1)
    engine, xp = record.engine, record.xp
    at = engine.backend.asarray(index, dtype=index_dtype(xp=xp, device=engine.device), device=engine.device)
    taken = xp.reshape(xp.take(xp.reshape(x, (steps * batch, x.shape[2])), at, axis=0), x.shape)
    own = engine.backend.asarray((t >= 0)[..., None], dtype=xp.bool, device=engine.device)
    return xp.where(own, taken, xp.zeros_like(taken))


def _by_lag(
    record: Record, delta: Scaled, source: Host, layer: int, direction: int, max_lag: int
) -> tuple[Host, Host, bool]:
    """Every loss followed back one step at a time, all at once: ``e_t <- d_t * (e_{t+1} W)``."""
    engine, xp = record.engine, record.xp
    w, d = record.weights[layer][direction].weight_hh, record.slope(layer, direction)
    before = record.previous(layer, direction)
    # The share of the losses themselves is what the recurrence does not explain.
    through = times(_after(delta, direction, record), w, engine=engine)
    through = Scaled(through.values * d, through.log)
    e = _steady(add(delta, Scaled(-through.values, through.log), engine=engine), record)
    base = _over_time(source)
    rows = np.asarray(record.lengths, dtype=np.int64)
    gains = [np.where(rows > 0, _less(base, base), np.nan)]
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
        gains.append(np.where(rows > n, _less(gain, base), np.nan))
        reached = gains[-1][np.isfinite(gains[-1])]
        if not len(reached):
            complete = True
            break
        # The share and not what is left of the sum: that ends in rounding, at a few eps.
        if n >= max_lag or (reached.max() < eps and size < eps):
            break
        arrived = _steady(arrived, record, norm)
        e = Scaled(arrived.values * d, arrived.log)
    return np.stack(gains), _relative(np.asarray(logs), total), complete


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
    return Scaled(_scaled_by(x.values, np.where(known, x.log - log, 0.0), record), log)


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


def _median(gain: Host) -> Host:
    out = np.full(len(gain), np.nan)
    for n, row in enumerate(gain):
        some = np.sort(row[~np.isnan(row)])
        if len(some):
            low, high = some[(len(some) - 1) // 2], some[len(some) // 2]
            out[n] = low if low == high else (low + high) / 2
    some = np.flatnonzero(~np.isnan(out))
    return out[: some[-1] + 1] if len(some) else out[:1]


def _from_on(below: Host) -> int | None:
    """The first index from which on it is true to the end."""
    if not len(below) or not below[-1]:
        return None
    return int(len(below) - np.argmin(below[::-1])) if not below.all() else 0
