"""nonfinite: where the first NaN or infinity is born, forward and backward, from what, and what should stand there.

Anomaly detection of a framework names an operation, and of a fused or compiled scan only the whole of it. Here the states
of all steps are at hand: one reduction says whether anything is wrong, another where it began, and that one step is gone
through again term by term on the host in integers, which neither round nor overflow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rnncore.diagnostics.faults.backward import backward
from rnncore.diagnostics.faults.fault import NonFinite, as_given, finite, given_fault, of_rows, places
from rnncore.diagnostics.faults.forward import forward
from rnncore.diagnostics.recording import Record
from rnncore.typing import Array

__all__ = ["NonFinite", "nonfinite"]


def nonfinite(
    record: Record, d_output: Array | None = None, d_last: Sequence[Sequence[Array | None]] | None = None
) -> NonFinite | None:
    """The first NaN or infinity of a run, or None.

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
    # NumPy would warn of the very thing that is looked for.
    with record.engine.scope(), np.errstate(all="ignore"):
        found = _given(record) or forward(record)
        if found is None and not (d_output is None and d_last is None):
            found = _given_cotangents(record, d_output, d_last) or backward(record, d_output, d_last)
        return found


def _given(record: Record) -> NonFinite | None:
    h0s = [(k, d, of_rows(record, h0)) for k, row in enumerate(record.h0) for d, h0 in enumerate(row)]
    params = list(record.params.items())
    ok = finite(record, [record.x, *(h0 for _, _, h0 in h0s), *(p for _, p in params)])
    if all(ok):
        return None
    first = ok.index(False)
    if first == 0:
        return as_given("forward", "input", "x", record.host(record.x), 0, 0, timed=True)
    if first <= len(h0s):
        k, d, h0 = h0s[first - 1]
        return as_given("forward", "initial state", "h0", record.host(h0), k, d)
    name, value = params[first - 1 - len(h0s)]
    k, d = next((k, d) for k, d in places(record) if name.endswith(f"_{record.spec.suffix(k, d)}"))
    return as_given("forward", "parameter", name, record.host(value), k, d)


def _given_cotangents(record: Record, d_output: Array | None, d_last: Any) -> NonFinite | None:
    top = record.spec.num_layers - 1
    if d_output is not None:
        d_output = d_output if record.ragged is None else record.ragged.masked(d_output)
        if not all(finite(record, [d_output])):
            host = record.host(d_output)
            # What backpropagation meets first is the last.
            t = int(np.nonzero(~np.isfinite(host).all(axis=(1, 2)))[0][-1])
            b, column = (int(i) for i in np.argwhere(~np.isfinite(host[t]))[0])
            d, unit = divmod(column, record.spec.hidden_sizes[top])
            return given_fault("backward", "cotangent", "d_output", (t, b, column), host, top, d, t, b, unit)
    for k, d in places(record) if d_last is not None else ():
        if d_last[k][d] is not None:
            g = of_rows(record, d_last[k][d])
            if not all(finite(record, [g])):
                return as_given("backward", "cotangent", "d_h_n", record.host(g), k, d)
    return None
