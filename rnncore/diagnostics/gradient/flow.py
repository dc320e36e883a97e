"""flow: the size of the gradient at every layer, direction, step and row, and where it comes from.

``dL/dh_t = direct + above + recurrent``: what the loss gives h_t itself, what comes down from the layer above, and what
comes back through time, ``e_{t+1} W_hh`` with ``e_t = f'(z_t) * dL/dh_t``. Hooks on a layer's output see the first two; the
third is what vanishes or explodes (Pascanu, Mikolov and Bengio 2013, "On the difficulty of training recurrent neural
networks", equations 4 to 6). All of it by one log-scaled linear scan for each layer and direction: 10,000 steps neither
underflow nor overflow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rnncore import scan
from rnncore.arguments import describe, shown
from rnncore.diagnostics.lane import Lane
from rnncore.diagnostics.numerics.device import take_rows
from rnncore.diagnostics.numerics.scaled import Scaled, add, divided, from_array, linear, log_norm, times
from rnncore.diagnostics.recording import Record, check_record
from rnncore.diagnostics.results import SHARED, Lanes, Stacked
from rnncore.errors import ArgumentTypeError
from rnncore.typing import Array, Host

# What a probe of a lane expects of :func:`flow`'s results.
FLOW_OF_A_LANE = (
    "one lane's of what rnncore.diagnostics.flow(record, ...) returns, such as flows[0][0] and deltas[0][0]"
)

__all__ = ["Delta", "Flow", "flow"]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Flow(Stacked):
    """Natural logarithms of 2-norms over the units of one lane: host arrays (T, B) of float64.

    A vector of zeros has -inf. A step outside a row's length has NaN.

    Attributes
    ----------
    total, direct, above, recurrent : array (T, B)
        The gradient dL/dh_t, and its three parts. The parts add up as vectors; their norms do not.
    initial : array (B,)
        The gradient that arrives at the state before the first step, dL/dh_0.
    lengths : tuple of int
    """

    total: Host
    direct: Host
    above: Host
    recurrent: Host
    initial: Host
    lengths: tuple[int, ...] = field(metadata=SHARED)

    def quantiles(self, q: Sequence[float] = QUANTILES) -> Host:
        """Quantiles of `total` over the rows that have the step: (len(q), T). NaN where none has.

        They are taken of logarithms: norms of gradients span orders of magnitude, and a mean shows only the largest.
        """
        out = np.full((len(q), len(self.total)), np.nan)
        for t, total in enumerate(self.total):
            rows = np.sort(total[~np.isnan(total)])
            if len(rows):
                # "lower" and not a mean of two: -inf and a number have none.
                out[:, t] = np.quantile(rows, q, method="lower")
        return out


@dataclass(frozen=True)
class Delta(Scaled):
    """dL/dz_t of a lane, and the gradient that its recurrence was given.

    Attributes
    ----------
    values, log
        As of every :class:`Scaled`.
    source : Scaled
        direct + above: the part of dL/dh_t that does not come through time. It is kept because a difference cannot
        recover it: in an exploding gradient it is less than a rounding error of the whole.
    source_log : host array (T, B)
        ln of its norms; -inf in the padding.
    """

    source: Scaled
    source_log: Host


def flow(
    record: Record, d_output: Array | None, d_last: Sequence[Sequence[Array | None]] | None = None
) -> tuple[Lanes[Flow], list[list[Delta]]]:
    """Backpropagate in logarithms, through all layers.

    Parameters
    ----------
    record : Record
    d_output : array (T, B, D*H), optional
        dL/d output of the top layer, time-first. Padding is not read.
    d_last : nested list of array (B, H_k), optional
        dL/dh_n by [layer][direction].

    Returns
    -------
    flows : Lanes of Flow
        By [layer][direction].
    deltas : list of list of Delta
        dL/dz_t by [layer][direction], which :func:`horizon` and :func:`weight_gradient` take.

    Raises
    ------
    ShapeError, DTypeError, DeviceError, ArgumentTypeError
        If d_output or an entry of d_last has another shape, or another dtype, device or library than the record's states,
        or if d_last has not an entry for each layer and direction.

    Examples
    --------
    With ``h_t = h_{t-1} / 2`` and the sum of the last state as the loss, the gradient halves at every step.

    >>> import numpy as np, rnncore
    >>> from rnncore import diagnostics
    >>> rnn = rnncore.RNN(1, 2, nonlinearity="identity", init={"weight_hh": rnncore.init.identity(0.5)}, rng=0)
    >>> seen = diagnostics.record(rnn, np.zeros((4, 1, 1)))
    >>> found, deltas = diagnostics.flow(seen, None, [[np.ones((1, 2))]])
    >>> np.exp(2 * found.total[0][0, :, 0]).round(6)               # squares of norms: (1/2)^2 + (1/2)^2 one step back
    array([0.03125, 0.125  , 0.5    , 2.     ])
    >>> found.direct[0][0, :, 0].round(3), found.recurrent[0][0, -1, 0]
    (array([ -inf,  -inf,  -inf, 0.347]), np.float64(-inf))
    >>> deltas[0][0].values.shape
    (4, 1, 2)
    """
    check_record(record)
    check_cotangents(record, d_output, d_last)
    # Numbers that are not finite are a finding, not a warning.
    with record.engine.scope(), np.errstate(invalid="ignore", over="ignore"):
        return _flow(record, d_output, d_last)


def check_cotangents(record: Record, d_output: Array | None, d_last: Any) -> None:
    """Require cotangents of the output and of each lane's last state, or None, in the run's own time-first shapes."""
    engine, widths, directions = record.engine, record.spec.hidden_sizes, record.directions
    if d_output is not None:
        engine.check("d_output", d_output, (record.steps, record.batch, widths[-1] * directions))
    if d_last is None:
        return
    given = [_count(row) for row in d_last] if isinstance(d_last, (list, tuple)) else None
    if given != [directions] * len(widths):
        raise ArgumentTypeError(
            f"d_last: expected a list of {len(widths)} layers, each a list of {directions} directions, "
            f"got {describe(d_last) if given is None else shown(given)}"
        )
    for k, row in enumerate(d_last):
        for d, last in enumerate(row):
            if last is not None:
                engine.check(f"d_last[{k}][{d}]", last, (record.batch, widths[k]))


def _count(row: Any) -> int | None:
    """How many directions a layer's entry has: of a list, or an array (D, B, H)."""
    shape = (len(row),) if isinstance(row, (list, tuple)) else tuple(getattr(row, "shape", ()))
    return int(shape[0]) if shape else None


def _flow(
    record: Record, d_output: Array | None, d_last: Sequence[Sequence[Array | None]] | None
) -> tuple[Lanes[Flow], list[list[Delta]]]:
    above: Scaled | None = None
    flows: list[tuple[Flow, ...]] = []
    deltas: list[list[Delta]] = []
    for k in reversed(range(record.spec.num_layers)):
        row = [_of_lane(lane, *own_cotangents(record, lane, d_output, d_last), above) for lane in record.layer(k)]
        flows.insert(0, tuple(found for found, _ in row))
        deltas.insert(0, [delta for _, delta in row])
        if k:
            above = _below(record, k, deltas[0])
    return Lanes(flows), deltas


def own_cotangents(
    record: Record, lane: Lane, d_output: Array | None, d_last: Any
) -> tuple[Array | None, Array | None]:
    """The part of d_output that is about the lane's states (T, B, H), and of d_last (B, H); None for zeros."""
    columns = slice(lane.direction * lane.width, (lane.direction + 1) * lane.width)
    top = d_output is not None and lane.layer == record.spec.num_layers - 1
    u = lane.masked(d_output[..., columns]) if top and d_output is not None else None
    return u, None if d_last is None else d_last[lane.layer][lane.direction]


def of_loss(lane: Lane, u: Array | None, last: Array | None) -> Array:
    """The gradient that the loss gives the states through the output and the last state: (T, B, H)."""
    if last is None:
        return lane.xp.zeros_like(lane.h) if u is None else u
    return _at_last(lane, last) if u is None else u + _at_last(lane, last)


def _of_lane(lane: Lane, u: Array | None, last: Array | None, above: Scaled | None) -> tuple[Flow, Delta]:
    engine, w = lane.engine, lane.weights.weight_hh
    sources = direct = from_array(of_loss(lane, u, last))
    of_sources = of_direct = _direct_log(lane, direct, u, last)
    of_above = np.full(of_direct.shape, -np.inf)
    if above is not None:
        start = lane.direction * lane.width
        here = Scaled(above.values[..., start : start + lane.width], above.log)
        sources, of_above = add(direct, here, engine=engine), log_norm(here, engine=engine)
        of_sources = log_norm(sources, engine=engine)
    slope = lane.slope()
    delta = linear(sources, slope, w, reverse=not lane.reverse, engine=engine, size_of_u=of_sources)
    of_carried, of_total = _of_recurrence(lane, sources, of_sources, delta, slope)
    logs = {"total": of_total, "direct": of_direct, "above": of_above, "recurrent": of_carried}
    own = {name: np.where(lane.valid, log, np.nan) for name, log in logs.items()}
    found = Flow(**own, initial=_initial(lane, delta, last), lengths=lane.lengths)
    return found, Delta(delta.values, delta.log, sources, of_sources)


def _below(record: Record, k: int, deltas: Sequence[Scaled]) -> Scaled:
    """The gradient that a layer sends to the one below."""
    engine = record.engine
    sent = [times(x, lane.weights.weight_ih, engine=engine) for x, lane in zip(deltas, record.layer(k), strict=True)]
    found = sent[0] if len(sent) == 1 else add(sent[0], sent[1], engine=engine)
    mask = record.mask_below(k)
    return found if mask is None else Scaled(found.values * mask, found.log)


def _direct_log(lane: Lane, direct: Scaled, u: Array | None, last: Array | None) -> Host:
    """ln of the norms of the direct part."""
    if u is not None:
        return log_norm(direct, engine=lane.engine)
    logs = np.full(lane.valid.shape, -np.inf)
    if last is not None:  # all but one step of each row is known to be 0
        lengths = np.asarray(lane.lengths, dtype=np.int64)
        own = np.flatnonzero(lengths)
        ends = np.zeros(len(own), dtype=np.int64) if lane.reverse else lengths[own] - 1
        logs[ends, own] = log_norm(from_array(lane.xp.expand_dims(last, axis=0)), engine=lane.engine)[0, own]
    return logs


def _at_last(lane: Lane, last: Array) -> Array:
    """(T, B, H) with dL/dh_n (B, H) at each row's last step in the direction's time, and 0 elsewhere."""
    xp, ragged, h = lane.xp, lane.ragged, lane.h
    if ragged is not None and not lane.reverse:
        return ragged.add_at_ends(xp.zeros_like(h), last)
    if lane.engine.writable and ragged is None:  # untouched zeros cost no memory traffic
        at = lane.engine.zeros(tuple(h.shape))
        at[0 if lane.reverse else -1, ...] = last
        return at
    rest, row = xp.zeros_like(h[1:, ...]), xp.expand_dims(last, axis=0)
    return lane.masked(xp.concat([row, rest] if lane.reverse else [rest, row], axis=0))


def _of_recurrence(lane: Lane, sources: Scaled, of_sources: Host, delta: Scaled, slope: Array) -> tuple[Host, Host]:
    """ln of the norms of ``e_{t+1} W_hh``, and of ``dL/dh_t``, its sum with the sources: two (T, B)."""
    engine, w = lane.engine, lane.weights.weight_hh
    both = np.flatnonzero(of_sources != -np.inf)
    few = 4 * len(both) < of_sources.size
    whole = divided(delta, slope, engine=engine) if few and lane.ragged is None else None
    if whole is not None:  # dL/dz is f' times dL/dh, and dL/dh is nearly everywhere the recurrent part alone
        of_total = log_norm(whole, engine=engine)
        of_carried = np.array(of_total)
        of_carried.reshape(-1)[both] = -np.inf  # nothing comes to the last step in the direction's time
        later = both + (-lane.batch if lane.reverse else lane.batch)
        inner = (later >= 0) & (later < of_sources.size)
        if inner.any():
            at = _rows(delta, later[inner], lane)
            of_carried.reshape(-1)[both[inner]] = log_norm(times(at, w, engine=engine), engine=engine)[0]
        return of_carried, of_total
    carried = times(later_step(delta, lane), w, engine=engine)
    of_carried = log_norm(carried, engine=engine)
    if not few:
        return of_carried, log_norm(add(sources, carried, engine=engine), engine=engine)
    of_total = np.array(of_carried)
    if len(both):
        parts = [_rows(x, both, lane) for x in (sources, carried)]
        of_total.reshape(-1)[both] = log_norm(add(*parts, engine=engine), engine=engine)[0]
    return of_carried, of_total


def _rows(x: Scaled, at: Host, lane: Lane) -> Scaled:
    return Scaled(take_rows(x.values, at, lane.engine), x.log.reshape(1, -1)[:, at])


def later_step(x: Scaled, lane: Lane) -> Scaled:
    """x of the step that comes after t in the direction's time: 0 after the last."""
    values = scan.previous(x.values, lane.xp.zeros_like(x.values[0, ...]), reverse=not lane.reverse, xp=lane.xp)
    edge = np.zeros((1, lane.batch))
    return Scaled(values, np.concatenate([edge, x.log[:-1]] if lane.reverse else [x.log[1:], edge]))


def _initial(lane: Lane, delta: Scaled, last: Array | None) -> Host:
    """ln ||dL/dh_0|| of each row: (B,)."""
    lengths = np.asarray(lane.lengths, dtype=np.int64)
    at = np.maximum(lengths - 1, 0) if lane.reverse else np.zeros_like(lengths)
    log = delta.log[at, np.arange(lane.batch)]
    arrived = lane.xp.matmul(lane.first(delta.values), lane.weights.weight_hh)
    found: Host = log_norm(Scaled(lane.xp.expand_dims(arrived, axis=0), log[None]), engine=lane.engine)[0]
    if last is not None:  # a row without steps passes the cotangent on
        given = log_norm(from_array(lane.xp.expand_dims(last, axis=0)), engine=lane.engine)[0]
        found = np.where(lengths == 0, given, found)
    return found
