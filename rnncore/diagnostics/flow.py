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
from rnncore.backend import Array
from rnncore.diagnostics.record import Record
from rnncore.diagnostics.scaled import Scaled, add, from_array, linear, log_norm, times
from rnncore.errors import ArgumentValueError

__all__ = ["Flow", "flow"]

Host = np.ndarray[Any, Any]
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


def flow(
    record: Record, d_output: Array | None, d_last: Sequence[Sequence[Array | None]] | None = None
) -> tuple[Flow, list[list[Scaled]]]:
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
    deltas : list of list of Scaled
        dL/dz_t by [layer][direction], for what is computed from it next.
    """
    # Numbers that are not finite are a finding, not a warning.
    with record.engine.scope(), np.errstate(invalid="ignore", over="ignore"):
        return _flow(record, d_output, d_last)


def _flow(
    record: Record, d_output: Array | None, d_last: Sequence[Sequence[Array | None]] | None
) -> tuple[Flow, list[list[Scaled]]]:
    engine, spec = record.engine, record.spec
    layers, directions = spec.num_layers, record.directions
    above: Scaled | None = None
    parts: dict[str, list[Host]] = {name: [] for name in ("total", "direct", "above", "recurrent", "initial")}
    deltas: list[list[Scaled]] = []
    for k in reversed(range(layers)):
        width = spec.hidden_sizes[k]
        found: dict[str, list[Host]] = {name: [] for name in parts}
        row: list[Scaled] = []
        for d in range(directions):
            columns = slice(d * width, (d + 1) * width)
            direct = _direct(record, k, d, d_output if k == layers - 1 else None, d_last, columns)
            sources, here = direct, None
            if above is not None:
                here = Scaled(above.values[..., columns], above.log)
                sources = add(direct, here, engine=engine)
            w, reverse = record.weights[k][d].weight_hh, bool(d)
            delta = linear(sources, record.slope(k, d), w, reverse=not reverse, engine=engine)
            carried = times(_next(record, delta, d), w, engine=engine)
            total = add(sources, carried, engine=engine)
            nothing = np.full((record.steps, record.batch), -np.inf)
            found["direct"].append(log_norm(direct, engine=engine))
            found["above"].append(nothing if here is None else log_norm(here, engine=engine))
            found["recurrent"].append(log_norm(carried, engine=engine))
            found["total"].append(log_norm(total, engine=engine))
            found["initial"].append(_initial(record, delta, k, d, d_last))
            row.append(delta)
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


def _direct(record: Record, k: int, d: int, d_output: Array | None, d_last: Any, columns: slice) -> Scaled:
    """What the loss gives the states themselves: through the output, and through the last state."""
    xp, ragged = record.xp, record.ragged
    u = xp.zeros_like(record.h[k][d]) if d_output is None else d_output[..., columns]
    if ragged is not None:
        u = ragged.masked(u)
    last = None if d_last is None else d_last[k][d]
    if last is None:
        return from_array(u)
    rest = xp.zeros_like(u[1:, ...])
    if d:
        at = xp.concat([xp.expand_dims(last, axis=0), rest], axis=0)
        at = at if ragged is None else ragged.masked(at)
    elif ragged is None:
        at = xp.concat([rest, xp.expand_dims(last, axis=0)], axis=0)
    else:
        at = ragged.add_at_ends(xp.zeros_like(u), last)
    return from_array(u + at)


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
