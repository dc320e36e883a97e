"""Why the gradient grows or shrinks at each step: an exact split into weights, saturation and alignment.

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

from rnncore.arguments import check_kind
from rnncore.diagnostics.gradient.flow import FLOW_OF_A_LANE, Flow
from rnncore.diagnostics.lane import Lane
from rnncore.diagnostics.numerics.logs import log_frobenius, log_norms, log_sum
from rnncore.diagnostics.recording import lane_probe
from rnncore.diagnostics.results import Stacked
from rnncore.errors import ArgumentValueError
from rnncore.typing import Host

__all__ = ["Decomposition", "decompose"]


@dataclass(frozen=True)
class Decomposition(Stacked):
    """Nats per step of one lane: host arrays (T, B) of float64, NaN outside a row's length.

    ``weights + saturation + alignment == gain`` at every step.

    Attributes
    ----------
    gain : array (T, B)
        ln (||J_t^T g_t|| / ||g_t||): from step t to the one before it in the direction's time. -inf where g_t is not 0 but
        nothing of it passes; NaN where g_t is exactly 0.
    weights : float
        The same at every step; -inf for W_hh = 0.
    saturation : array (T, B)
        At most ln gamma. -inf where every slope is exactly 0; it is computed from z, so a slope that only rounds to 0 counts.
    alignment : array (T, B)
        -inf where rounding, or an exact cancellation, loses a gradient that the first two let through; 0 where they are
        -inf already; NaN where the gain is.
    """

    gain: Host
    weights: float
    saturation: Host
    alignment: Host


@lane_probe("flow")
def decompose(lane: Lane, flow: Flow) -> Decomposition:
    """Split the logarithmic gain of every step.

    Parameters
    ----------
    lane : Lane
    flow : Flow
        Of this lane, from :func:`rnncore.diagnostics.flow`.

    Returns
    -------
    Decomposition
        Nats per step, (T, B).

    Raises
    ------
    ArgumentValueError
        If the flow has other steps or rows than the lane.

    Examples
    --------
    >>> import numpy as np, rnncore
    >>> from rnncore.diagnostics import flow, record
    >>> from rnncore.diagnostics.gradient.decomposition import decompose
    >>> rnn = rnncore.RNN(1, 4, nonlinearity="identity", init=rnncore.init.orthogonal(0.5), rng=0)
    >>> seen = record(rnn, np.zeros((3, 1, 1)))
    >>> flows, _ = flow(seen, None, [[np.ones((1, 4))]])
    >>> found = decompose(seen.lane(), flows[0][0])
    >>> np.exp(found.gain[:, 0]).round(6), round(float(np.exp(found.weights)), 6), bool(abs(found.alignment).max() < 1e-12)
    (array([0.5, 0.5, 0.5]), 0.5, True)
    """
    check_kind("flow", flow, Flow, FLOW_OF_A_LANE)
    if flow.total.shape != lane.valid.shape:
        raise ArgumentValueError(
            f"flow: expected that of this lane, with total of shape {lane.valid.shape}, got {flow.total.shape}"
        )
    # Numbers that are not finite are a finding, not a warning.
    with lane.engine.scope(), np.errstate(invalid="ignore", over="ignore"):
        nothing = np.isneginf(flow.total)
        gain = np.where(nothing, np.nan, _arrived(lane, flow) - np.where(nothing, 0.0, flow.total))

        norms = log_norms(lane.matrix)
        all_rows = 0.5 * log_sum(2 * norms)
        weights = all_rows - 0.5 * math.log(lane.width)
        # W_hh = 0 weighs no row: then all the same.
        shares = norms - all_rows if all_rows > -math.inf else np.full(lane.width, -0.5 * math.log(lane.width))
        saturation = log_frobenius(lane.log_slope(), shares, lane.engine)

        expected = weights + saturation
        closed = np.isneginf(expected)
        alignment = np.where(closed & ~np.isnan(gain), 0.0, gain - np.where(closed, 0.0, expected))
        gain, saturation, alignment = (np.where(lane.valid, x, np.nan) for x in (gain, saturation, alignment))
    return Decomposition(gain, weights, saturation, alignment)


def _arrived(lane: Lane, flow: Flow) -> Host:
    """ln ||J_t^T g_t||, (T, B): what came back through the recurrence to the step before, or to h_0."""
    if not lane.reverse:
        return np.concatenate([flow.initial[None], flow.recurrent[:-1]])
    out = np.concatenate([flow.recurrent[1:], flow.initial[None]])
    ends = np.asarray(lane.lengths, dtype=np.int64) - 1
    own = np.flatnonzero(ends >= 0)
    out[ends[own], own] = flow.initial[own]
    return out
