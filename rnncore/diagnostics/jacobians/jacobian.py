"""Exact properties of every step's Jacobian ``J_t = dh_t/dh_{t-1} = diag(f'(z_t)) W_hh``, without forming one.

With d_i = f'(z_i) and r_i = ||row i of W_hh||^2, ``||J||_F^2 = sum_i d_i^2 r_i`` and ``ln |det J| = sum_i ln |d_i| +
ln |det W_hh|``. chi = ||J||_F^2 / H is the mean squared stretch (Poole et al. 2016, "Exponential expressivity in deep neural
networks through transient chaos", and Chen, Pennington and Schoenholz 2018, "Dynamical isometry and a mean field theory of
RNNs"). All slopes are used as ln f'(z): with tanh, f' itself rounds to 0 in float32 from |z| = 9.1 on, although J is not 0.

The small (H, H) matrices are handled on the host in float64; arrays over all steps and rows stay on the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from rnncore.arguments import as_generator, flag, positive_int
from rnncore.diagnostics.lane import Lane
from rnncore.diagnostics.numerics.logs import log_abs_det, log_frobenius, log_norms, log_sigma_max, row_scales, split
from rnncore.diagnostics.recording import lane_probe
from rnncore.diagnostics.results import SHARED, Stacked
from rnncore.typing import Host

__all__ = ["Jacobian", "SigmaMax", "jacobian"]

# P(upper bound wrong) for one step and row, over the random start of `sigma_max`.
FAILURE = 1e-9
LANCZOS_STEPS = 24
BISECTIONS = 60
# Treat a new direction below this many H*eps of its source as rounding error.
ENDED = 16


@dataclass(frozen=True)
class SigmaMax(Stacked):
    """ln of the largest singular value of every J_t: host arrays (T, B).

    Attributes
    ----------
    value : array (T, B)
        The largest Ritz value: at most the true value, up to rounding.
    lower, upper : array (T, B)
        `lower <= ln sigma_max <= upper`; the upper bound is wrong with a probability below `failure` for each step and row.
    failure : float
    """

    value: Host
    lower: Host
    upper: Host
    failure: float = field(default=FAILURE, metadata=SHARED)


@dataclass(frozen=True)
class Jacobian(Stacked):
    """Properties of J_t of one lane: host arrays (T, B) of float64, natural logarithms, NaN outside a row's length.

    Attributes
    ----------
    log_frobenius : array (T, B)
        ln ||J_t||_F.
    log_det : array (T, B)
        ln |det J_t|; -inf where a slope is exactly 0 or W_hh is singular.
    log_chi : array (T, B)
        ln (||J_t||_F^2 / H); half of it is the mean-square growth of a random vector in nats per step.
    isometry_gap : array (T, B)
        ``ln chi / 2 - ln |det J_t| / H >= 0``, 0 only where J_t is a multiple of an orthogonal matrix (the inequality of the
        means of sigma_i^2). 1/2 in the limit of a wide linear Gaussian network; inf where J_t is singular.
    log_lower, log_upper : array (T, B)
        Bracket of ln sigma_max(J_t): the largest row norm, and the smallest of max_i |d_i| sigma_max(W_hh), ||J||_F and
        sqrt(||J||_1 ||J||_inf).
    log_max_slope : array (T, B)
        ln max_i |d_i|: the largest slope.
    width : int
        Number of units, H.
    valid : array (T, B) of bool
        Whether the step belongs to the row.
    sigma_max : SigmaMax or None
    """

    log_frobenius: Host
    log_det: Host
    log_chi: Host
    isometry_gap: Host
    log_lower: Host
    log_upper: Host
    log_max_slope: Host
    width: int
    valid: Host = field(metadata=SHARED)
    sigma_max: SigmaMax | None = None


@lane_probe()
def jacobian(
    lane: Lane, *, sigma_max: bool = False, rng: int | np.random.Generator = 0, steps: int = LANCZOS_STEPS
) -> Jacobian:
    """Compute properties of the Jacobian of every step and row: O(T B H^2), and H^3 once.

    Parameters
    ----------
    lane : Lane
    sigma_max : bool
        Whether to compute the largest singular value too: O(steps T B H^2).
    rng : int or numpy.random.Generator
        For the random start of `sigma_max`.
    steps : int
        Steps of Lanczos' method for `sigma_max`; H are enough for any matrix.

    Returns
    -------
    Jacobian
        Natural logarithms, (T, B).

    Raises
    ------
    ArgumentValueError
        If steps < 1.

    Examples
    --------
    >>> import numpy as np, rnncore
    >>> from rnncore.diagnostics.jacobians.jacobian import jacobian
    >>> from rnncore.diagnostics.recording import record
    >>> rnn = rnncore.RNN(1, 4, nonlinearity="identity", init=rnncore.init.identity(0.5))
    >>> found = jacobian(record(rnn, np.zeros((3, 1, 1))).lane())
    >>> found.log_chi.shape, float(np.exp(found.log_upper[0, 0])), float(abs(found.isometry_gap).max())
    ((3, 1), 0.5, 0.0)
    """
    positive_int("steps", steps)
    flag("sigma_max", sigma_max)
    generator = as_generator(rng)
    # Numbers that are not finite are a finding, not a warning.
    with lane.engine.scope(), np.errstate(invalid="ignore", over="ignore"):
        found = _closed_form(lane)
        lower, upper = found["log_lower"], found["log_upper"]
        bracket = _lanczos(lane, generator, steps, lower, upper) if sigma_max else None
    own = {name: _in_rows(lane, values) for name, values in found.items()}
    top = None
    if bracket is not None:
        value, low, up = (_in_rows(lane, x) for x in bracket)
        top = SigmaMax(value, low, up)
    return Jacobian(**own, width=lane.width, valid=lane.valid, sigma_max=top)


def _closed_form(lane: Lane) -> dict[str, Host]:
    xp, w, width = lane.xp, lane.matrix, lane.width
    log_d = lane.log_slope()
    max_slope = lane.host(xp.max(log_d, axis=-1))
    norms = log_norms(w)
    lower = lane.host(xp.max(log_d + lane.on_device(norms), axis=-1))
    frobenius = log_frobenius(log_d, norms, lane.engine)
    # The 1- and infinity-norm, each row on its own scale, so that large rows do not hide small ones.
    scale, unit_rows = row_scales(np.abs(w))
    largest, factors = split(log_d + lane.on_device(scale), lane.engine)
    columns = xp.max(xp.matmul(factors, lane.on_device(unit_rows)), axis=-1)
    rows = xp.max(factors * lane.on_device(unit_rows.sum(axis=1)), axis=-1)
    largest_host = lane.host(largest)
    with np.errstate(divide="ignore"):
        mixed = largest_host + 0.5 * (np.log(lane.host(columns)) + np.log(lane.host(rows)))
    # -inf for a matrix that is exactly zero, not -inf + inf.
    slope_bound = np.where(np.isneginf(max_slope), -np.inf, max_slope + log_sigma_max(w))
    upper = np.minimum(np.minimum(slope_bound, frobenius), mixed)
    det = lane.host(xp.sum(log_d, axis=-1)) + log_abs_det(w)
    chi = 2 * frobenius - math.log(width)
    gap = np.where(np.isneginf(det), np.inf, 0.5 * chi - np.where(np.isneginf(det), 0.0, det) / width)
    return {
        "log_frobenius": frobenius,
        "log_det": det,
        "log_chi": chi,
        "isometry_gap": gap,
        "log_lower": np.minimum(lower, upper),  # equal bounds may cross by a rounding error
        "log_upper": upper,
        "log_max_slope": max_slope,
    }


def _lanczos(lane: Lane, rng: np.random.Generator, steps: int, lower: Host, upper: Host) -> tuple[Host, Host, Host]:
    """Run Lanczos' method on J^T J for all steps and rows at once; return the value and its bounds.

    The largest Ritz value is at most sigma_max^2. The next vector is p(J^T J) v for the random start v and
    ``p(x) = prod_j (x - theta_j) / beta_j``, and has norm 1, so |p(sigma_max^2)| |<v, top vector>| <= 1; the second factor is
    below delta with probability < 0.8 sqrt(H) delta (Dixon 1983, "Estimating extremal eigenvalues and condition numbers of
    matrices"), so the x > theta_1 where p is 1 / delta bounds sigma_max^2 from above: Hochstenbach (2013), "Probabilistic
    upper bounds for the matrix two-norm".
    """
    xp, w, width = lane.xp, lane.matrix, lane.width
    eps = float(xp.finfo(lane.engine.dtype).eps)
    scale, unit_rows = row_scales(w)
    largest, factors = split(lane.log_slope() + lane.on_device(scale), lane.engine)
    unit, across = lane.on_device(unit_rows), lane.on_device(unit_rows.T.copy())
    squares = factors * factors
    v = rng.standard_normal(width)
    v = xp.broadcast_to(lane.on_device(v / np.linalg.norm(v)), factors.shape)
    before, beta = xp.zeros_like(v), xp.zeros_like(v[..., :1])
    size = xp.zeros_like(beta)
    alphas, betas = [], []
    count = min(steps, width)
    for _ in range(count):
        image = xp.matmul(squares * xp.matmul(v, across), unit)
        alpha = xp.sum(v * image, axis=-1, keepdims=True)
        image = image - alpha * v - beta * before
        beta = xp.sqrt(xp.sum(image * image, axis=-1, keepdims=True))
        size = xp.maximum(size, alpha + beta)
        # At an invariant subspace the rest is rounding. The method ends there, and zeros follow.
        on = beta > ENDED * width * eps * size
        before, v = v, xp.where(on, image / xp.where(on, beta, xp.ones_like(beta)), xp.zeros_like(image))
        alphas.append(alpha[..., 0])
        betas.append(beta[..., 0])
        beta = xp.where(on, beta, xp.zeros_like(beta))
    # Only (T, B, count) numbers, about as many as in the result.
    a, b = lane.host(xp.stack(alphas, axis=-1)), lane.host(xp.stack(betas, axis=-1))
    logs, above = _ritz(a, b, width, eps)
    slack = eps * (width + count)  # of rounding, in ln sigma
    base = lane.host(largest)
    dead = np.isneginf(base)
    value = np.where(dead, -np.inf, base + logs)
    up = np.where(dead, -np.inf, np.minimum(upper, base + above + slack))
    low = np.maximum(lower, value - slack)
    return np.clip(value, lower, upper), np.minimum(low, up), up


def _ritz(a: Host, b: Host, width: int, eps: float) -> tuple[Host, Host]:
    """(ln sqrt of the largest Ritz value, ln sqrt of the upper bound) from Lanczos' coefficients (T, B, count)."""
    count = a.shape[-1]
    # Not finite, or a Jacobian that is exactly 0, which the caller handles.
    wrong = ~(np.isfinite(a).all(axis=-1) & np.isfinite(b).all(axis=-1)) | (a[..., 0] <= 0)
    a, b = np.where(wrong[..., None], 1.0, a), np.where(wrong[..., None], 1.0, b)
    size = np.maximum.accumulate(a + b, axis=-1)
    ended = b <= ENDED * width * eps * size
    # Steps after the end are excluded from the polynomial.
    part = np.concatenate([np.zeros_like(ended[..., :1]), np.logical_or.accumulate(ended, axis=-1)[..., :-1]], axis=-1)
    matrix = np.zeros((*a.shape, count))
    index = np.arange(count)
    matrix[..., index, index] = np.where(part, 0.0, a)
    off = np.where(ended | part, 0.0, b)[..., :-1]
    matrix[..., index[1:], index[:-1]] = off
    theta = np.linalg.eigvalsh(matrix)
    top = np.maximum(theta[..., -1], np.finfo(np.float64).tiny)
    # The zeros of excluded steps are the smallest eigenvalues, as J^T J has none below 0 up to rounding.
    present = index >= part.sum(axis=-1)[..., None]
    log_beta = np.log(np.maximum(b, ENDED * width * eps * size))
    target = math.log(0.8 * math.sqrt(width) / FAILURE) + np.where(part, 0.0, log_beta).sum(axis=-1)
    # sigma_max^2 <= ||J||_F^2 <= H^2 in these units, even if the largest Ritz value is still small.
    low, high = np.full(top.shape, math.log(eps)), np.log(width**2 / top)
    for _ in range(BISECTIONS):  # on ln (x / theta_1 - 1)
        middle = 0.5 * (low + high)
        x = top * (1 + np.exp(middle))
        with np.errstate(divide="ignore"):
            p = np.where(present, np.log(np.maximum(x[..., None] - theta, 0.0)), 0.0).sum(axis=-1)
        low, high = np.where(p < target, middle, low), np.where(p < target, high, middle)
    above = 0.5 * (np.log(top) + np.log1p(np.exp(high)))
    return np.where(wrong, np.nan, 0.5 * np.log(top)), np.where(wrong, np.nan, above)


def _in_rows(lane: Lane, x: Host) -> Host:
    return np.where(lane.valid, x, np.nan)
