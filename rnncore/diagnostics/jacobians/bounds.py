"""Bounds on a product of Jacobians, from the weights alone or from the slopes of each step.

These are certificates, not verdicts: an inconclusive bound says nothing about the gradient, which has to be measured. For a
nonlinear network the conditions of Pascanu, Mikolov and Bengio (2013), "On the difficulty of training recurrent neural
networks", section 2.1, use the largest singular value, not the spectral radius: there are relu networks with spectral radius 0
whose gradient doubles at every step.

W_hh (H, H) is small and handled on the host in float64; arrays with a batch axis stay on the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rnncore.arguments import check_kind, integer
from rnncore.diagnostics.jacobians.jacobian import Jacobian
from rnncore.diagnostics.lane import Lane
from rnncore.diagnostics.numerics.logs import log_abs_det, log_sigma_max
from rnncore.diagnostics.recording import lane_probe
from rnncore.diagnostics.results import SHARED, Lanes, Stacked
from rnncore.typing import Host

__all__ = ["Bounds", "SpanBounds", "bounds", "log_spectral_radius", "span_bounds"]

# ||W^n||^(1/n) with n = 2^40: a Jordan block of size k is off by a factor n^(k/n), a relative 3e-11 k.
SQUARINGS = 40


@dataclass(frozen=True)
class Bounds(Stacked):
    """Certificates of one lane; natural logarithms where the name says so.

    Attributes
    ----------
    log_sigma_max, log_spectral_radius, log_det : float
        Of W_hh. The radius of a nilpotent matrix is 0, its logarithm -inf.
    gamma : float or None
        sup |f'|; None if unknown for a custom function.
    vanishes : bool
        sigma_max gamma < 1, Pascanu's sufficient condition: every gradient shrinks at least by that factor at every step.
        False proves nothing.
    may_explode : bool
        sigma_max gamma > 1, a necessary condition for a gradient to grow without bound. True proves nothing. Without gamma
        nothing is certain: `vanishes` is False and `may_explode` True.
    """

    log_sigma_max: float
    log_spectral_radius: float
    log_det: float
    gamma: float | None = field(metadata=SHARED)
    vanishes: bool
    may_explode: bool


@dataclass(frozen=True)
class SpanBounds(Stacked):
    """``lower <= ln sigma_max(J_{b-1} ... J_a) <= upper``, host arrays (B,), in nats for the whole span.

    Attributes
    ----------
    lower : array (B,)
        sum ln |det J_t| / H: the geometric mean of the singular values is at most the largest. -inf where it says nothing.
    upper : array (B,)
        sum of the upper ends of the brackets of ln sigma_max(J_t).
    """

    lower: Host
    upper: Host


@lane_probe()
def bounds(lane: Lane) -> Bounds:
    """Compute the certificates that need only W_hh and the nonlinearity.

    Parameters
    ----------
    lane : Lane
        Only its weights and its nonlinearity are used.

    Returns
    -------
    Bounds

    Raises
    ------
    ArgumentTypeError
        If `lane` is not a lane.

    Notes
    -----
    The singular value and the determinant are LAPACK's, ``O(H^3)``; the radius is by Gelfand's formula, 40 products of
    (H, H). Independent of the length of the run.

    Examples
    --------
    >>> import math, numpy as np, rnncore
    >>> from rnncore.diagnostics.jacobians.bounds import bounds
    >>> from rnncore.diagnostics.recording import record
    >>> rnn = rnncore.RNN(1, 3, nonlinearity="sigmoid", init=rnncore.init.orthogonal(3.9), rng=0)
    >>> found = bounds(record(rnn, np.zeros((2, 1, 1))).lane())          # sigma_max 3.9, and gamma = 1/4
    >>> found.gamma, found.vanishes, round(math.exp(found.log_spectral_radius), 6)
    (0.25, True, 3.9)
    """
    gamma = lane.nonlinearity.gamma
    with lane.engine.scope(), np.errstate(invalid="ignore", over="ignore"):
        w, sigma = lane.matrix, log_sigma_max(lane.matrix)
        # The inequality is strict and must not depend on rounding: an orthogonal matrix of gain 1 proves nothing.
        slack = len(w) * float(np.finfo(np.float64).eps)
        growth = sigma + (-math.inf if gamma == 0 else math.nan if gamma is None else math.log(gamma))
        return Bounds(sigma, log_spectral_radius(w), log_abs_det(w), gamma, growth < -slack, not growth <= slack)


def span_bounds(found: Jacobian | Lanes[Jacobian], start: int = 0, stop: int | None = None) -> Any:
    """Bound the product of the Jacobians of the steps [start, stop) from both sides.

    Steps outside a row's length are excluded; the bounds of an empty span are 0. If `Jacobian.sigma_max` was computed, its
    upper ends make the upper bound tighter; it is correct if they are.

    Parameters
    ----------
    found : Jacobian, or Lanes of Jacobian
        From :func:`rnncore.diagnostics.jacobian`.
    start, stop : int
        Steps in the run's own time, ``0 <= start <= stop <= T``; by default all.

    Returns
    -------
    SpanBounds, or Lanes of SpanBounds
        Host arrays (B,), in nats for the whole span.

    Raises
    ------
    ArgumentValueError
        If the span is not within the run.

    Examples
    --------
    >>> import numpy as np, rnncore
    >>> from rnncore.diagnostics.jacobians.bounds import span_bounds
    >>> from rnncore.diagnostics.jacobians.jacobian import jacobian
    >>> from rnncore.diagnostics.recording import record
    >>> rnn = rnncore.RNN(1, 2, nonlinearity="identity", init=rnncore.init.identity(0.5))
    >>> found = span_bounds(jacobian(record(rnn, np.zeros((10, 1, 1))).lane()))
    >>> bool(np.allclose(found.lower, 10 * np.log(0.5)) and np.allclose(found.upper, 10 * np.log(0.5)))
    True
    """
    if isinstance(found, Lanes):
        return found.map(span_bounds, start, stop)
    check_kind("found", found, Jacobian, "what rnncore.diagnostics.jacobian(lane) returns")
    steps = len(found.log_upper)
    start = integer("start", start, f"an int in [0, {steps}]", lambda n: 0 <= n <= steps)
    if stop is not None:
        stop = integer("stop", stop, f"an int in [{start}, {steps}]", lambda n: start <= n <= steps)
    upper = found.log_upper if found.sigma_max is None else found.sigma_max.upper
    own = found.valid[start:stop]
    with np.errstate(invalid="ignore"):
        return SpanBounds(
            np.where(own, found.log_det[start:stop], 0.0).sum(axis=0) / found.width,
            np.where(own, upper[start:stop], 0.0).sum(axis=0),
        )


def log_spectral_radius(w: Host) -> float:
    """ln of the largest modulus of an eigenvalue of a host matrix (H, H), by products alone.

    Gelfand's formula, ``rho = lim ||W^n||^(1/n)``, with repeatedly squared and rescaled powers. No eigenvalues are computed, so
    complex pairs, Jordan blocks and nilpotent matrices need no special case. -inf for rho = 0, NaN if W is not finite.
    """
    power = np.asarray(w, dtype=np.float64)
    log = 0.0
    for n in range(SQUARINGS + 1):
        if n:
            power = power @ power
        # Any norm has the same limit. Divide by the largest magnitude first, so that squares stay in range.
        size = float(np.abs(power).max())
        if not math.isfinite(size):
            return math.nan
        if size == 0:
            return -math.inf
        norm = size * float(np.linalg.norm(power / size))
        power = power / norm
        log += math.log(norm) / 2.0**n
    return log
