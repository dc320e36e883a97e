"""The first NaN or infinity of a run, forward or backward: its place, its cause and its correct value.

A framework's anomaly detection names an operation, and for a fused scan only the whole scan. Here all states are known:
one reduction says whether anything is wrong, another where it began, and that one step is repeated term by term on the host
in integers, which neither round nor overflow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rnncore.diagnostics.faults.backward import backward
from rnncore.diagnostics.faults.fault import NonFinite, finite, given
from rnncore.diagnostics.faults.forward import forward
from rnncore.diagnostics.gradient.flow import check_cotangents
from rnncore.diagnostics.recording import Record, check_record
from rnncore.typing import Array

__all__ = ["NonFinite", "nonfinite"]


def nonfinite(
    record: Record, d_output: Array | None = None, d_last: Sequence[Sequence[Array | None]] | None = None
) -> NonFinite | None:
    """Find the first NaN or infinity of a run.

    The order of the search is input, initial states, parameters; then the states, the lowest layer first and in each its
    directions' own time; then, with cotangents, backpropagation as training does it, without rescaling: the top layer
    first, against the directions' time, then what is computed from all steps. Padding is not read, nor is the initial
    state of a row without steps.

    Parameters
    ----------
    record : Record
    d_output : array (T, B, D*H), optional
        dL/d output, as for :func:`rnncore.diagnostics.flow`.
    d_last : nested list of array (B, H_k), optional
        dL/dh_n by [layer][direction]. Without either the backward phase is left out.

    Returns
    -------
    NonFinite or None
        None where all is finite.

    Examples
    --------
    A linear unit that doubles leaves the range of float64 at its 1,025th step, with the value 2^1024:

    >>> import numpy as np, rnncore
    >>> from rnncore.diagnostics import record
    >>> from rnncore.diagnostics.faults.first import nonfinite
    >>> rnn = rnncore.RNN(1, 1, nonlinearity="relu", bias=False)
    >>> rnn.load_state_dict({"weight_ih_l0": np.ones((1, 1)), "weight_hh_l0": 2 * np.ones((1, 1))})
    >>> x = np.zeros((1100, 1, 1))
    >>> x[0] = 1
    >>> with np.errstate(over="ignore"):
    ...     found = nonfinite(record(rnn, x))
    >>> found.cause, found.where, found.step
    ('overflow', 'h[0] * weight_hh_l0[0, 0]', 1024)
    >>> bool(np.isclose(found.log_value, 1024 * np.log(2))), bool(np.isclose(found.growth, np.log(2)))
    (True, True)
    """
    check_record(record)
    check_cotangents(record, d_output, d_last)
    # NumPy would warn of the very thing that is looked for.
    with record.engine.scope(), np.errstate(all="ignore"):
        found = _given(record) or forward(record)
        if found is None and not (d_output is None and d_last is None):
            found = _given_cotangents(record, d_output, d_last) or backward(record, d_output, d_last)
        return found


def _given(record: Record) -> NonFinite | None:
    states = [_of_rows(record, lane.h0) for lane in record.lanes]
    named = [("input", "x", record.x), *(("initial state", "h0", h0) for h0 in states)]
    named += [("parameter", name, p) for name, p in record.params.items()]
    ok = finite(record.engine, [x for _, _, x in named])
    if all(ok):
        return None
    first = ok.index(False)
    cause, name, x = named[first]
    lane = record.lanes[first - 1] if cause == "initial state" else record.lanes[0]
    if cause == "parameter":
        lane = next(lane for lane in record.lanes if name.endswith(f"_{lane.suffix}"))
    return given("forward", cause, name, record.host(x), lane)  # type: ignore[arg-type]


def _given_cotangents(record: Record, d_output: Array | None, d_last: Any) -> NonFinite | None:
    if d_output is not None and not all(finite(record.engine, [d_output := record.masked(d_output)])):
        host = record.host(d_output)
        # Backpropagation meets the last one first.
        t = int(np.nonzero(~np.isfinite(host).all(axis=(1, 2)))[0][-1])
        b, column = (int(i) for i in np.argwhere(~np.isfinite(host[t]))[0])
        d, unit = divmod(column, record.spec.hidden_sizes[-1])
        return replace(given("backward", "cotangent", "d_output", host, record.lane(-1, d), (t, b, column)), unit=unit)
    for lane in record.lanes if d_last is not None else ():
        last = d_last[lane.layer][lane.direction]
        if last is not None and not all(finite(record.engine, [last := _of_rows(record, last)])):
            return given("backward", "cotangent", "d_h_n", record.host(last), lane)
    return None


def _of_rows(record: Record, x: Array) -> Array:
    """x (B, H), 0 for the rows without steps."""
    return x if record.ragged is None else record.ragged.nonempty_or(x, record.xp.zeros_like(x))
