"""bounds: what the weights alone, or the slopes step by step, prove about a product of Jacobians.

Certificates, never a verdict: a bound that does not decide says nothing about what the gradient does, which has to be
measured. For a nonlinear network it is the largest singular value that enters the conditions of Pascanu, Mikolov and Bengio
(2013), "On the difficulty of training recurrent neural networks", section 2.1, not the spectral radius: there are relu
networks with spectral radius 0 whose gradient doubles at every step.

W_hh (H, H) is small, and is handled on the host in float64; nothing of the size of a batch is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rnncore.diagnostics.jacobians.jacobian import Jacobian
from rnncore.diagnostics.numerics.logs import log_abs_det, log_sigma_max, recurrent_matrix
from rnncore.diagnostics.recording import Record, check_record
from rnncore.errors import ArgumentValueError
from rnncore.typing import Host

__all__ = ["Bounds", "SpanBounds", "bounds", "log_spectral_radius", "span_bounds"]

# ||W^n||^(1/n) with n = 2^40: a Jordan block of size k is off by a factor n^(k/n), a relative 3e-11 k.
SQUARINGS = 40


@dataclass(frozen=True)
class Bounds:
    """For each layer a host array (D,); natural logarithms where the name says so.

    Attributes
    ----------
    log_sigma_max, log_spectral_radius, log_det : tuple of array
        Of W_hh. The radius of a nilpotent matrix is 0, so -inf.
    gamma : float or None
        sup |f'|; None if the user's function does not say.
    vanishes : tuple of array of bool
        sigma_max gamma < 1, Pascanu's sufficient condition: every gradient shrinks at least by that factor at every step.
        False proves nothing.
    may_explode : tuple of array of bool
        sigma_max gamma > 1, necessary for a gradient to grow without end. True proves nothing. Where gamma is not known,
        nothing vanishes for certain and anything may explode.
    """

    log_sigma_max: tuple[Host, ...]
    log_spectral_radius: tuple[Host, ...]
    log_det: tuple[Host, ...]
    gamma: float | None
    vanishes: tuple[Host, ...]
    may_explode: tuple[Host, ...]


@dataclass(frozen=True)
class SpanBounds:
    """``lower <= ln sigma_max(J_{b-1} ... J_a) <= upper``, for each layer a host array (D, B), in nats for the whole span.

    Attributes
    ----------
    lower : tuple of array
        sum ln |det J_t| / H: the geometric mean of the singular values is at most the largest. -inf where it says nothing.
    upper : tuple of array
        sum of the upper ends of the brackets of ln sigma_max(J_t).
    """

    lower: tuple[Host, ...]
    upper: tuple[Host, ...]


def bounds(record: Record) -> Bounds:
    """The certificates that need no more than W_hh and the function.

    Parameters
    ----------
    record : Record
        Only its weights and its nonlinearity are read.

    Returns
    -------
    Bounds
        For each layer host arrays (D,).

    Raises
    ------
    ArgumentTypeError
        For anything but a :class:`Record`.

    Notes
    -----
    The singular value and the determinant are LAPACK's, ``O(H^3)``; the radius is by Gelfand's formula, 40 products of
    (H, H). Independent of the length of the run.

    Examples
    --------
    >>> import numpy as np, rnncore
    >>> from rnncore.diagnostics.jacobians.bounds import bounds
    >>> from rnncore.diagnostics.recording import record
    >>> rnn = rnncore.RNN(1, 3, nonlinearity="sigmoid", init=rnncore.init.orthogonal(3.9), rng=0)
    >>> found = bounds(record(rnn, np.zeros((2, 1, 1))))          # sigma_max 3.9, and gamma = 1/4
    >>> found.gamma, found.vanishes, np.exp(found.log_spectral_radius[0]).round(6)
    (0.25, (array([ True]),), array([3.9]))
    """
    check_record(record)
    gamma = record.nonlinearity.gamma
    rows: dict[str, list[Host]] = {name: [] for name in ("sigma", "rho", "det", "vanishes", "may")}
    with record.engine.scope(), np.errstate(invalid="ignore", over="ignore"):
        for k in range(record.spec.num_layers):
            matrices = [recurrent_matrix(record, k, d) for d in range(record.directions)]
            sigma = np.asarray([log_sigma_max(w) for w in matrices])
            rows["sigma"].append(sigma)
            rows["rho"].append(np.asarray([log_spectral_radius(w) for w in matrices]))
            rows["det"].append(np.asarray([log_abs_det(w) for w in matrices]))
            # A strict inequality, in which a rounding error may not decide: an orthogonal matrix of gain 1 proves nothing.
            slack = len(matrices[0]) * float(np.finfo(np.float64).eps)
            growth = sigma + (-math.inf if gamma == 0 else math.nan if gamma is None else math.log(gamma))
            rows["vanishes"].append(growth < -slack)
            rows["may"].append(np.logical_not(growth <= slack))
    return Bounds(
        log_sigma_max=tuple(rows["sigma"]),
        log_spectral_radius=tuple(rows["rho"]),
        log_det=tuple(rows["det"]),
        gamma=gamma,
        vanishes=tuple(rows["vanishes"]),
        may_explode=tuple(rows["may"]),
    )


def span_bounds(found: Jacobian, start: int = 0, stop: int | None = None) -> SpanBounds:
    """The two-sided certificate for the product of the Jacobians of the steps [start, stop).

    Steps outside a row's length take no part; an empty span has 0, the identity's. With the upper ends of
    `Jacobian.sigma_max`, where it was asked for, the upper bound is tighter, and holds as far as they do.

    Parameters
    ----------
    found : Jacobian
        As :func:`rnncore.diagnostics.jacobian` returned it.
    start, stop : int
        Steps in the run's own time, ``0 <= start <= stop <= T``; by default all.

    Returns
    -------
    SpanBounds
        For each layer host arrays (D, B), in nats for the whole span.

    Raises
    ------
    ArgumentValueError
        For a span that is not in the run.

    Examples
    --------
    >>> import numpy as np, rnncore
    >>> from rnncore.diagnostics.jacobians.bounds import span_bounds
    >>> from rnncore.diagnostics.jacobians.jacobian import jacobian
    >>> from rnncore.diagnostics.recording import record
    >>> rnn = rnncore.RNN(1, 2, nonlinearity="identity", init=rnncore.init.identity(0.5))
    >>> found = span_bounds(jacobian(record(rnn, np.zeros((10, 1, 1)))))
    >>> bool(np.allclose(found.lower[0], 10 * np.log(0.5)) and np.allclose(found.upper[0], 10 * np.log(0.5)))
    True
    """
    steps = found.log_upper[0].shape[1]
    stop = steps if stop is None else stop
    if not 0 <= start <= stop <= steps:
        raise ArgumentValueError(f"start, stop: expected 0 <= start <= stop <= {steps}, got {start} and {stop}")
    uppers = found.log_upper if found.sigma_max is None else found.sigma_max.upper
    lower, upper = [], []
    for k, width in enumerate(found.widths):
        inside = found.valid[None, start:stop]
        with np.errstate(invalid="ignore"):
            lower.append(np.where(inside, found.log_det[k][:, start:stop], 0.0).sum(axis=1) / width)
            upper.append(np.where(inside, uppers[k][:, start:stop], 0.0).sum(axis=1))
    return SpanBounds(tuple(lower), tuple(upper))


def log_spectral_radius(w: Host) -> float:
    """ln of the largest modulus of an eigenvalue of a host matrix (H, H), by products alone.

    Gelfand's formula, ``rho = lim ||W^n||^(1/n)``, on powers that are squared and rescaled: no eigenvalues are computed, so
    complex pairs, Jordan blocks and nilpotent matrices need no care. -inf for rho = 0, NaN for a matrix that is not finite.
    """
    power = np.asarray(w, dtype=np.float64)
    log = 0.0
    for n in range(SQUARINGS + 1):
        if n:
            power = power @ power
        # Any norm has the same limit; the largest magnitude first, so that no square leaves the range.
        size = float(np.abs(power).max())
        if not math.isfinite(size):
            return math.nan
        if size == 0:
            return -math.inf
        norm = size * float(np.linalg.norm(power / size))
        power = power / norm
        log += math.log(norm) / 2.0**n
    return log
