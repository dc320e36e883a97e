"""flow: the size of the gradient at every layer, direction, step and row, and where it comes from.

``dL/dh_t = direct + above + recurrent``: what the loss gives h_t itself, what comes down from the layer above, and what
comes back through time, ``e_{t+1} W_hh`` with ``e_t = f'(z_t) * dL/dh_t``. Hooks on a layer's output see the first two; the
third is what vanishes or explodes (Pascanu, Mikolov and Bengio 2013, "On the difficulty of training recurrent neural
networks", equations 4 to 6). All of it by one log-scaled linear scan for each layer and direction: 10,000 steps neither
underflow nor overflow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnncore import scan
from rnncore.arguments import describe
from rnncore.diagnostics.numerics.scaled import Scaled, add, divided, from_array, linear, log_norm, take_rows, times
from rnncore.diagnostics.recording import Record, check_record
from rnncore.errors import ArgumentTypeError, ArgumentValueError
from rnncore.typing import Array, Host

__all__ = ["Delta", "Flow", "flow"]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Flow:
    """Natural logarithms of 2-norms over the units, for each layer a host array (D, T, B) of float64.

    A vector of zeros has -inf; a step outside a row's length has NaN, as there is no such step.

    Attributes
    ----------
    total, direct, above, recurrent : tuple of array
        The whole gradient dL/dh_t, and its three parts; the parts are vectors that add up, their norms are not.
    initial : tuple of array (D, B)
        dL/dh_0: what arrives at the state before the first step.
    lengths : tuple of int
    """

    total: tuple[Host, ...]
    direct: tuple[Host, ...]
    above: tuple[Host, ...]
    recurrent: tuple[Host, ...]
    initial: tuple[Host, ...]
    lengths: tuple[int, ...]

    def quantiles(self, layer: int, q: Sequence[float] = QUANTILES) -> Host:
        """Quantiles of `total` over the rows that have the step: (len(q), D, T). NaN where none has.

        Of logarithms, since norms of gradients are spread over orders of magnitude and a mean would show only the largest.
        """
        if not -len(self.total) <= layer < len(self.total):
            raise ArgumentValueError(f"layer: expected an int in [0, {len(self.total) - 1}], got {layer}")
        total = self.total[layer]
        out = np.full((len(q), *total.shape[:2]), np.nan)
        for d in range(total.shape[0]):
            for t in range(total.shape[1]):
                rows = np.sort(total[d, t][~np.isnan(total[d, t])])
                if len(rows):
                    # "lower" and not a mean of two: -inf and a number have none.
                    out[:, d, t] = np.quantile(rows, q, method="lower")
        return out


@dataclass(frozen=True)
class Delta(Scaled):
    """dL/dz_t of a layer and direction, and the gradient that its recurrence was given.

    Attributes
    ----------
    values, log
        As of every :class:`Scaled`.
    source : Scaled
        direct + above: what of dL/dh_t does not come through time. Kept, since it cannot be had back as a difference: in
        a gradient that explodes it is less than a rounding error of the whole.
    source_log : host array (T, B)
        ln of its norms; -inf in the padding.
    """

    source: Scaled
    source_log: Host


def flow(
    record: Record, d_output: Array | None, d_last: Sequence[Sequence[Array | None]] | None = None
) -> tuple[Flow, list[list[Delta]]]:
    """Backpropagate in logarithms.

    Parameters
    ----------
    record : Record
    d_output : array (T, B, D*H), optional
        dL/d output of the top layer, time-first; what stands in the padding is not read.
    d_last : nested list of array (B, H_k), optional
        dL/dh_n by [layer][direction].

    Returns
    -------
    Flow
    deltas : list of list of Delta
        dL/dz_t by [layer][direction], for what is computed from it next: :func:`horizon`, :func:`weight_gradient`.

    Raises
    ------
    ShapeError, DTypeError, DeviceError, ArgumentTypeError
        If d_output or an entry of d_last has another shape, or another dtype, device or library than the record's states,
        or if d_last has not an entry for each layer and direction.

    Examples
    --------
    ``h_t = h_{t-1} / 2``, the loss the sum of the two last states: what is left of its gradient halves at every step.

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
    _check(record, d_output, d_last)
    # Numbers that are not finite are a finding, not a warning.
    with record.engine.scope(), np.errstate(invalid="ignore", over="ignore"):
        return _flow(record, d_output, d_last)


def _check(record: Record, d_output: Array | None, d_last: Any) -> None:
    engine, widths, directions = record.engine, record.spec.hidden_sizes, record.directions
    if d_output is not None:
        engine.check("d_output", d_output, (record.steps, record.batch, widths[-1] * directions))
    if d_last is None:
        return
    given = [_count(row) for row in d_last] if isinstance(d_last, (list, tuple)) else None
    if given != [directions] * len(widths):
        raise ArgumentTypeError(
            f"d_last: expected a list of {len(widths)} layers, each a list of {directions} directions, "
            f"got {describe(d_last) if given is None else given}"
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
) -> tuple[Flow, list[list[Delta]]]:
    engine, spec = record.engine, record.spec
    layers, directions = spec.num_layers, record.directions
    above: Scaled | None = None
    parts: dict[str, list[Host]] = {name: [] for name in ("total", "direct", "above", "recurrent", "initial")}
    deltas: list[list[Delta]] = []
    for k in reversed(range(layers)):
        width = spec.hidden_sizes[k]
        found: dict[str, list[Host]] = {name: [] for name in parts}
        row: list[Delta] = []
        for d in range(directions):
            columns = slice(d * width, (d + 1) * width)
            direct, of_direct = _direct(record, k, d, d_output if k == layers - 1 else None, d_last, columns)
            sources, here = direct, None
            if above is not None:
                here = Scaled(above.values[..., columns], above.log)
                sources = add(direct, here, engine=engine)
            w, reverse = record.weights[k][d].weight_hh, bool(d)
            nothing = np.full((record.steps, record.batch), -np.inf)
            of_here = nothing if here is None else log_norm(here, engine=engine)
            of_sources = of_direct if here is None else log_norm(sources, engine=engine)
            slope = record.slope(k, d)
            delta = linear(sources, slope, w, reverse=not reverse, engine=engine, size_of_u=of_sources)
            of_carried, of_total = _of_recurrence(sources, of_sources, delta, slope, k, d, record)
            found["direct"].append(of_direct)
            found["above"].append(of_here)
            found["recurrent"].append(of_carried)
            found["total"].append(of_total)
            found["initial"].append(_initial(record, delta, k, d, d_last))
            row.append(Delta(delta.values, delta.log, sources, of_sources))
        for name, values in found.items():
            whole = np.stack(values)
            if name != "initial":
                whole[:, ~record.valid] = np.nan
            parts[name].insert(0, whole)
        deltas.insert(0, row)
        if k:
            below = [times(row[d], record.weights[k][d].weight_ih, engine=engine) for d in range(directions)]
            above = below[0] if directions == 1 else add(below[0], below[1], engine=engine)
            if k - 1 < len(record.plan.masks):
                above = Scaled(above.values * record.plan.masks[k - 1], above.log)
    return Flow(**{n: tuple(rows) for n, rows in parts.items()}, lengths=record.lengths), deltas


def _direct(record: Record, k: int, d: int, d_output: Array | None, d_last: Any, columns: slice) -> tuple[Scaled, Host]:
    """What the loss gives the states themselves, through the output and through the last state, and ln of its norms."""
    xp, ragged, engine = record.xp, record.ragged, record.engine
    last = None if d_last is None else d_last[k][d]
    if d_output is None:  # as with a loss of the last state: all but one step of each row is 0, and known to be
        logs = np.full((record.steps, record.batch), -np.inf)
        if last is None:
            return from_array(xp.zeros_like(record.h[k][d])), logs
        at = _at_last(record, last, k, d)
        own = np.flatnonzero(np.asarray(record.lengths))
        ends = np.zeros(len(own), dtype=np.int64) if d else np.asarray(record.lengths, dtype=np.int64)[own] - 1
        logs[ends, own] = log_norm(from_array(xp.expand_dims(last, axis=0)), engine=engine)[0, own]
        return from_array(at), logs
    u = d_output[..., columns]
    if ragged is not None:
        u = ragged.masked(u)
    found = from_array(u if last is None else u + _at_last(record, last, k, d))
    return found, log_norm(found, engine=engine)


def _at_last(record: Record, last: Array, k: int, d: int) -> Array:
    """(T, B, H) with dL/dh_n (B, H) at each row's last step in the direction's time, and 0 elsewhere."""
    xp, ragged, h = record.xp, record.ragged, record.h[k][d]
    if ragged is not None and not d:
        return ragged.add_at_ends(xp.zeros_like(h), last)
    if record.engine.writable and ragged is None:  # memory that is 0 when it is given out need not be touched
        at = record.engine.zeros(tuple(h.shape))
        at[0 if d else -1, ...] = last
        return at
    rest, row = xp.zeros_like(h[1:, ...]), xp.expand_dims(last, axis=0)
    at = xp.concat([row, rest] if d else [rest, row], axis=0)
    return at if ragged is None else ragged.masked(at)


def _of_recurrence(
    sources: Scaled, of_sources: Host, delta: Scaled, slope: Array, k: int, d: int, record: Record
) -> tuple[Host, Host]:
    """ln of the norms of ``e_{t+1} W_hh`` and of ``dL/dh_t``, which is that and the sources: two (T, B)."""
    engine, w = record.engine, record.weights[k][d].weight_hh
    both = np.flatnonzero(of_sources != -np.inf)
    few = 4 * len(both) < of_sources.size
    whole = divided(delta, slope, engine=engine) if few and record.ragged is None else None
    if whole is not None:  # dL/dz is f' times dL/dh, and dL/dh nearly everywhere what came through the recurrence
        of_total = log_norm(whole, engine=engine)
        of_carried = np.array(of_total)
        of_carried.reshape(-1)[both] = -np.inf  # nothing comes to the last step in the direction's time
        later = both + (-record.batch if d else record.batch)
        inner = (later >= 0) & (later < of_sources.size)
        if inner.any():
            at = Scaled(take_rows(delta.values, later[inner], engine=engine), delta.log.reshape(1, -1)[:, later[inner]])
            of_carried.reshape(-1)[both[inner]] = log_norm(times(at, w, engine=engine), engine=engine)[0]
        return of_carried, of_total
    carried = times(_next(record, delta, d), w, engine=engine)
    of_carried = log_norm(carried, engine=engine)
    if not few:
        return of_carried, log_norm(add(sources, carried, engine=engine), engine=engine)
    of_total = np.array(of_carried)
    if len(both):
        parts = [
            Scaled(take_rows(x.values, both, engine=engine), x.log.reshape(1, -1)[:, both]) for x in (sources, carried)
        ]
        of_total.reshape(-1)[both] = log_norm(add(*parts, engine=engine), engine=engine)[0]
    return of_carried, of_total


def _next(record: Record, delta: Scaled, d: int) -> Scaled:
    """delta of the step that comes after t in the direction's time: 0 after the last."""
    values = scan.previous(delta.values, record.xp.zeros_like(delta.values[0, ...]), reverse=not d, xp=record.xp)
    edge = np.zeros((1, record.batch))
    log = np.concatenate([edge, delta.log[:-1]] if d else [delta.log[1:], edge])
    return Scaled(values, log)


def _initial(record: Record, delta: Scaled, k: int, d: int, d_last: Any) -> Host:
    """ln ||dL/dh_0|| of each row: (B,)."""
    w, xp = record.weights[k][d].weight_hh, record.xp
    rows = np.arange(record.batch)
    ends = np.maximum(np.asarray(record.lengths, dtype=np.int64) - 1, 0)
    if d and record.ragged is not None:
        first, log = record.ragged.at_ends(delta.values), delta.log[ends, rows]
    else:
        first, log = (delta.values[-1, ...], delta.log[-1]) if d else (delta.values[0, ...], delta.log[0])
    arrived = Scaled(xp.expand_dims(xp.matmul(first, w), axis=0), log[None])
    found: Host = log_norm(arrived, engine=record.engine)[0]
    if d_last is not None and d_last[k][d] is not None:  # a row without steps hands the cotangent on
        handed = log_norm(from_array(xp.expand_dims(d_last[k][d], axis=0)), engine=record.engine)[0]
        found = np.where(np.asarray(record.lengths) == 0, handed, found)
    return found
