"""The gain of W_hh at which a random network neither forgets nor explodes, for the input that it has.

The theory is that of :mod:`rnncore.diagnostics.units.mean_field`; here its v and q are measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rnncore.diagnostics.lane import Lane
from rnncore.diagnostics.numerics.logs import log_norms, log_sum
from rnncore.diagnostics.recording import lane_probe
from rnncore.diagnostics.results import Stacked
from rnncore.diagnostics.units.mean_field import CriticalGain, MeanField, Moments, critical, on_host, state
from rnncore.typing import Array, Host

__all__ = ["Initial", "initial"]


@dataclass(frozen=True)
class Initial(Stacked):
    """The mean-field theory of one lane.

    Attributes
    ----------
    input_variance : float
        v: the mean square, over all valid steps, rows and units, of W_ih x + b. About 0 and not about its mean, as the
        field of the theory has no mean. NaN without any step.
    critical : CriticalGain
        For a Gaussian W_hh and for an orthogonal one: it is the same g.
    gain : float
        The g that W_hh has now: ||W_hh||_F / sqrt(H).
    now : MeanField
        The prediction of the theory for that g.
    """

    input_variance: float
    critical: CriticalGain
    gain: float
    now: MeanField


@lane_probe()
def initial(lane: Lane) -> Initial:
    """Measure the input, and solve for the critical gain and for the present one.

    Parameters
    ----------
    lane : Lane

    Returns
    -------
    Initial

    Raises
    ------
    ArgumentTypeError
        For anything but a lane. Weights and inputs that are not finite are no error: their theory is NaN.

    Notes
    -----
    Work: one product of the inputs with W_ih, and the integrals, which do not grow with the
    run. For a named nonlinearity these are made once in a process.

    Examples
    --------
    >>> import numpy as np, rnncore
    >>> from rnncore.diagnostics.units.initial import initial
    >>> from rnncore.diagnostics.recording import record
    >>> rnn = rnncore.RNN(1, 64, nonlinearity="relu", bias=False, init=rnncore.init.orthogonal(1.0), rng=0)
    >>> found = initial(record(rnn, np.zeros((2, 1, 1))).lane())
    >>> round(found.critical.g, 6), round(found.gain, 6), round(found.now.rate, 4)
    (1.414214, 1.0, -0.3466)
    """
    with lane.engine.scope(), np.errstate(invalid="ignore", over="ignore"):
        norms = log_norms(lane.matrix)
        gain = math.exp(0.5 * (log_sum(2 * norms) - math.log(len(norms))))
        v, q = _input_variance(lane), _mean_square(lane, lane.z)
        if not (math.isfinite(v) and math.isfinite(gain)):
            return Initial(v, CriticalGain(None, None), gain, MeanField(math.nan, math.nan))
        moments = Moments(lane.nonlinearity, _evaluator(lane))
        return Initial(v, critical(moments, v), gain, state(moments, gain, v, q))


def _evaluator(lane: Lane) -> Callable[[Host], tuple[Host, Host]]:
    """Evaluate f and f' on the host; a user's own function with its library."""
    f = lane.nonlinearity
    if not f.is_custom:
        return on_host(f)

    def with_its_library(z: Host) -> tuple[Host, Host]:
        x = lane.on_device(z)
        return lane.host(f(x, xp=lane.xp)), lane.host(f.derivative(x, xp=lane.xp))

    return with_its_library


def _input_variance(lane: Lane) -> float:
    share = lane.engine.product(lane.x, lane.xp.matrix_transpose(lane.weights.weight_ih))
    return _mean_square(lane, share if lane.weights.bias is None else share + lane.weights.bias)


def _mean_square(lane: Lane, x: Array) -> float:
    """The mean square over the valid steps and rows, and the units."""
    xp = lane.xp
    count = sum(lane.lengths) * int(x.shape[-1])
    if not count:
        return math.nan
    x = lane.masked(x)
    # Divided by the largest first; the device adds up over the units only, the rest is added in float64.
    largest = xp.max(xp.abs(x))
    unit = xp.where(largest > 0, largest, xp.ones_like(largest))
    rows = lane.host(xp.mean((x / unit) * (x / unit), axis=-1))
    size = float(lane.host(largest))
    return size * size * float(rows.sum()) * int(x.shape[-1]) / count
