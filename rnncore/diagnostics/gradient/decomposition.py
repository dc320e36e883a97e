"""decompose: why the gradient grows or shrinks at each step: the weights, the saturation, and what is left, exactly.

A step back in time takes g_t = dL/dh_t to ``J_t^T g_t = (f'(z_t) * g_t) W_hh``. With r_i = ||row i of W_hh||^2,

    ln (||J_t^T g_t|| / ||g_t||) = ln (||W_hh||_F^2 / H) / 2                       weights
                                 + ln (sum_i r_i d_i^2 / sum_i r_i) / 2            saturation, d_i = f'(z_i)
                                 + alignment

The first two are ln sqrt(E ||J_t^T g||^2) of a random unit vector g, as ``||J_t||_F^2 = sum_i r_i d_i^2``; alignment is how
much more, or less, this gradient is stretched than a random one. Where nothing but the recurrence feeds the gradient the
sums over time telescope: the total of all three is ln ||dL/dh_0|| - ln ||dL/dh_T||.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rnncore.diagnostics.gradient.flow import Flow
from rnncore.diagnostics.numerics.logs import log_frobenius, log_norms, log_slopes, log_sum, recurrent_matrix
from rnncore.diagnostics.recording import Record, check_record
from rnncore.errors import ArgumentValueError
from rnncore.typing import Host

__all__ = ["Decomposition", "decompose"]


@dataclass(frozen=True)
class Decomposition:
    """Nats per step, for each layer a host array (D, T, B) of float64; NaN outside a row's length.

    ``weights + saturation + alignment == gain`` at every step.

    Attributes
    ----------
    gain : tuple of array
        ln (||J_t^T g_t|| / ||g_t||): from step t to the one before it in the direction's time. -inf where g_t is not 0 and
        nothing of it passes; NaN where g_t itself is exactly 0, as there is nothing to stretch.
    weights : tuple of array (D,)
        The same at every step; -inf for W_hh = 0.
    saturation : tuple of array
        At most ln gamma. -inf where every slope is exactly 0; from z, so not where it only rounds to 0.
    alignment : tuple of array
        -inf where the arithmetic, or an exact cancellation, loses a gradient that the first two let through; 0 where
        they are -inf already; NaN where the gain is.
    """

    gain: tuple[Host, ...]
    weights: tuple[Host, ...]
    saturation: tuple[Host, ...]
    alignment: tuple[Host, ...]


def decompose(record: Record, flow: Flow) -> Decomposition:
    """Split every step's logarithmic gain.

    Parameters
    ----------
    record : Record
    flow : Flow
        As :func:`rnncore.diagnostics.flow` returned it for this record.

    Returns
    -------
    Decomposition
        Nats per step: for each layer (D, T, B), `weights` (D,).

    Raises
    ------
    ArgumentValueError
        If the flow has other layers, directions, steps or rows than the record.

    Examples
    --------
    >>> import numpy as np, rnncore
    >>> from rnncore.diagnostics import flow, record
    >>> from rnncore.diagnostics.gradient.decomposition import decompose
    >>> rnn = rnncore.RNN(1, 4, nonlinearity="identity", init=rnncore.init.orthogonal(0.5), rng=0)
    >>> seen = record(rnn, np.zeros((3, 1, 1)))
    >>> found = decompose(seen, flow(seen, None, [[np.ones((1, 4))]])[0])
    >>> np.exp(found.gain[0][0, :, 0]).round(6), np.exp(found.weights[0]).round(6), abs(found.alignment[0]).max() < 1e-12
    (array([0.5, 0.5, 0.5]), array([0.5]), np.True_)
    """
    check_record(record)
    want = [(record.directions, record.steps, record.batch)] * record.spec.num_layers
    if (got := [t.shape for t in flow.total]) != want:
        raise ArgumentValueError(f"flow: expected that of this record, with total of shapes {want}, got {got}")
    parts: dict[str, list[Host]] = {name: [] for name in ("gain", "weights", "saturation", "alignment")}
    # Numbers that are not finite are a finding, not a warning.
    with record.engine.scope(), np.errstate(invalid="ignore", over="ignore"):
        for k in range(record.spec.num_layers):
            rows = [_split(record, flow, k, d) for d in range(record.directions)]
            for name, values in zip(parts, zip(*rows, strict=True), strict=True):
                parts[name].append(np.stack(values))
    return Decomposition(*(tuple(values) for values in parts.values()))


def _split(record: Record, flow: Flow, k: int, d: int) -> tuple[Host, ...]:
    arrived, total = _arrived(record, flow, k, d), flow.total[k][d]
    nothing = np.isneginf(total)
    gain = np.where(nothing, np.nan, arrived - np.where(nothing, 0.0, total))

    norms = log_norms(recurrent_matrix(record, k, d))
    width = len(norms)
    all_rows = 0.5 * log_sum(2 * norms)
    weights = all_rows - 0.5 * math.log(width)
    # W_hh = 0 weighs no row: then all the same.
    shares = norms - all_rows if all_rows > -math.inf else np.full(width, -0.5 * math.log(width))
    saturation = log_frobenius(log_slopes(record, k, d), shares, record)

    expected = weights + saturation
    closed = np.isneginf(expected)
    alignment = np.where(closed & ~np.isnan(gain), 0.0, gain - np.where(closed, 0.0, expected))
    return tuple(
        x if x.ndim == 0 else np.where(record.valid, x, np.nan)
        for x in (gain, np.asarray(weights), saturation, alignment)
    )


def _arrived(record: Record, flow: Flow, k: int, d: int) -> Host:
    """ln ||J_t^T g_t||, (T, B): what came back through the recurrence to the step before, or to h_0."""
    recurrent, initial = flow.recurrent[k][d], flow.initial[k][d]
    if not d:
        return np.concatenate([initial[None], recurrent[:-1]])
    out = np.concatenate([recurrent[1:], initial[None]])
    ends = np.asarray(record.lengths, dtype=np.int64) - 1
    own = np.flatnonzero(ends >= 0)
    out[ends[own], own] = initial[own]
    return out
