"""Mean-field theory of a wide random network: the size of its states and the stretch of a random vector.

With W_hh ~ N(0, g^2 / H) the pre-activations are Gaussian with the variance

    q = g^2 E f(sqrt(q) x)^2 + v,    x ~ N(0, 1),

where v is the variance of the input's part W_ih x + b. At each step a random vector is stretched by chi = g^2 E f'(sqrt(q) x)^2
in mean square, or by ln(chi) / 2 nats: the largest Lyapunov exponent (Molgedey, Schuchhardt and Schuster 1992, "Suppressing
chaos in neural networks by noise"). chi = 1 is critical: Sompolinsky, Crisanti and Sommers (1988), "Chaos in random neural
networks"; Poole et al. (2016); Schoenholz et al. (2017), "Deep information propagation"; Chen, Pennington and Schoenholz
(2018). If W_hh is g times an orthogonal matrix, q and chi are the same, and so is the critical g; only the spread of the
singular values differs.

The integrals use Gauss-Legendre quadrature on geometric pieces with the Gaussian as weight. A Gauss-Hermite rule of any
affordable order misses slopes narrower than its nodes, which saturating functions have at large q. All computations are on the
host in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from rnncore.arguments import check_kind, non_negative
from rnncore.backend.registry import get_backend
from rnncore.nonlinearity.nonlinearity import Nonlinearity, get_nonlinearity
from rnncore.typing import Host, Namespace

__all__ = [
    "CriticalGain",
    "MeanField",
    "Moments",
    "critical",
    "critical_gain",
    "kinks",
    "mean_field",
    "on_host",
    "state",
]

# The rule for each piece. Pieces halve towards 0 down to 2**-60, which resolves slopes as narrow as those at q = 1e36.
NODE, WEIGHT = np.polynomial.legendre.leggauss(24)
REACH = 12.0  # P(|x| > 12) < 4e-33
HALVINGS = 60
LARGEST_Q = 1e24
SMALLEST_Q = 1e-40
# Rounding error of chi - 1, below which it has no root: with relu, chi approaches 1 from below and never reaches it.
ROUNDING = 1e-12
LIMIT_TOLERANCE = 1e-9
BISECTIONS = 200
GRID_FROM = 1e-12
PER_DOUBLING = 4


@dataclass(frozen=True)
class MeanField:
    """The fixed point of the theory at one gain.

    Attributes
    ----------
    q : float
        Variance of the pre-activations; inf if it grows without bound.
    chi : float
        Mean-square stretch of a random vector per step.
    rate : float
        ln(chi) / 2 in nats per step: the prediction for ln (||J^T g|| / ||g||); -inf for chi = 0.
    """

    q: float
    chi: float

    @property
    def rate(self) -> float:
        """Predicted growth of a random vector, in nats per step."""
        return 0.5 * math.log(self.chi) if self.chi > 0 else -math.inf


@dataclass(frozen=True)
class CriticalGain:
    """The smallest gain g at which chi = 1.

    Attributes
    ----------
    g : float or None
        The standard deviation of W_hh times sqrt(H), or the factor of an orthogonal matrix; None if there is none.
    q : float or None
        inf if chi reaches 1 only in the limit, as with relu and any input.
    """

    g: float | None
    q: float | None


def critical_gain(nonlinearity: Nonlinearity, input_variance: float = 0.0) -> CriticalGain:
    """Compute the smallest g with chi = 1 at its own q.

    Parameters
    ----------
    nonlinearity : Nonlinearity
        A named one, or a custom one that NumPy can evaluate.
    input_variance : float
        v, the mean square of ``W_ih x + b``.

    Returns
    -------
    CriticalGain
        g and q are None if no gain has chi = 1; q is inf if chi reaches 1 only in the limit of large q.

    Raises
    ------
    ArgumentValueError
        If input_variance is negative or not finite.

    Examples
    --------
    >>> import rnncore
    >>> from rnncore.diagnostics.units.mean_field import critical_gain
    >>> [round(critical_gain(rnncore.get_nonlinearity(name)).g, 6) for name in ("tanh", "relu")]
    [1.0, 1.414214]
    """
    check_kind("nonlinearity", nonlinearity, Nonlinearity, "a Nonlinearity, such as rnncore.get_nonlinearity('tanh')")
    return critical(Moments(nonlinearity, on_host(nonlinearity)), non_negative("input_variance", input_variance))


def mean_field(nonlinearity: Nonlinearity, g: float, input_variance: float = 0.0, *, start: float = 1.0) -> MeanField:
    """Compute q and chi at a gain; if there are several stable q, the one reached from `start`.

    Examples
    --------
    >>> import rnncore
    >>> from rnncore.diagnostics.units.mean_field import mean_field
    >>> round(mean_field(rnncore.get_nonlinearity("tanh"), 1 / 3**0.5).rate, 4)           # torch's default
    -0.5493
    """
    moments = Moments(nonlinearity, on_host(nonlinearity))
    return state(moments, non_negative("g", g), non_negative("input_variance", input_variance), start)


@dataclass(frozen=True)
class Moments:
    """E f(sqrt(q) x)^2 and E f'(sqrt(q) x)^2 of a standard normal x."""

    f: Nonlinearity
    evaluate: Callable[[Host], tuple[Host, Host]]

    def __call__(self, q: float) -> tuple[float, float]:
        """Return (E f^2, E f'^2) at q."""
        root = math.sqrt(q)
        x, weights = self._rule if not root else self._with_kinks(root)
        value, slope = self.evaluate(root * x)
        return float(weights @ (value * value)), float(weights @ (slope * slope))

    @cached_property
    def quiet(self) -> bool:
        """Whether f(0) = 0, so that a state of 0 persists without input."""
        return float(self.evaluate(np.zeros(1))[0][0]) == 0

    @cached_property
    def on_grid(self) -> tuple[tuple[float, float, float], ...]:
        """(q, E f^2, E f'^2) on a grid of q, cached for named functions."""
        if self.f.is_custom:
            return _grid_of(self)
        return _named_grid(self.f.name, self.f.alpha, self.f.beta, self.f.clip)

    @property
    def _rule(self) -> tuple[Host, Host]:
        return _plain_rule()

    def _with_kinks(self, root: float) -> tuple[Host, Host]:
        at = [z / root for z in kinks(self.f) if z != 0 and abs(z / root) < REACH]
        return _gauss(np.unique(np.concatenate([_edges(), at]))) if at else self._rule


def _grid_of(moments: Moments) -> tuple[tuple[float, float, float], ...]:
    count = int(PER_DOUBLING * math.log2(LARGEST_Q / GRID_FROM))
    return tuple((q, *moments(q)) for q in (GRID_FROM * 2.0 ** (n / PER_DOUBLING) for n in range(count + 1)))


@lru_cache(maxsize=16)
def _named_grid(
    name: str, alpha: float | None, beta: float | None, clip: float | None
) -> tuple[tuple[float, float, float], ...]:
    f = get_nonlinearity(name, alpha=alpha, beta=beta, clip=clip)
    return _grid_of(Moments(f, on_host(f)))


@lru_cache(maxsize=1)
def _plain_rule() -> tuple[Host, Host]:
    return _gauss(_edges())


def _edges() -> Host:
    """Edges of the pieces: halved towards 0, and nowhere wider than the Gaussian requires."""
    half = np.concatenate([REACH * 2.0 ** np.arange(-HALVINGS, -4), np.linspace(REACH / 16, REACH, 16)])
    return np.concatenate([-half[::-1], [0.0], half])


def _gauss(edges: Host) -> tuple[Host, Host]:
    middle, half = 0.5 * (edges[1:] + edges[:-1]), 0.5 * (edges[1:] - edges[:-1])
    x = (middle[:, None] + half[:, None] * NODE).ravel()
    w = (half[:, None] * WEIGHT).ravel() * np.exp(-0.5 * x * x)
    return x, w / w.sum()


def kinks(f: Nonlinearity) -> list[float]:
    """The z at which the slope of a function jumps, as far as they are known."""
    found = [-f.clip, f.clip] if f.clip is not None else []
    if f.is_custom:
        return found
    if f.name in ("relu", "leaky_relu") or (f.name == "elu" and f.alpha != 1):
        found.append(0.0)
    if f.name == "thresholded_relu" and f.alpha is not None:
        found.append(f.alpha)
    if f.name == "hard_sigmoid" and f.alpha and f.beta is not None:
        found += [-f.beta / f.alpha, (1 - f.beta) / f.alpha]
    return found


def on_host(f: Nonlinearity) -> Callable[[Host], tuple[Host, Host]]:
    """A function that evaluates f and f' with NumPy."""
    xp: Namespace = get_backend("numpy").namespace()
    return lambda z: (np.asarray(f(z, xp=xp)), np.asarray(f.derivative(z, xp=xp)))


def state(moments: Moments, g: float, v: float, start: float) -> MeanField:
    """:func:`mean_field` from given moments."""

    def excess(q: float) -> float:
        return g * g * moments(q)[0] + v - q

    q = start if math.isfinite(start) and start > 0 else 1.0
    q = min(max(q, v, SMALLEST_Q), LARGEST_Q)
    rising = excess(q) > 0
    # Step in the direction of the map until it passes a fixed point; then search between the last two.
    factor, other = (2.0 if rising else 0.5), q
    while SMALLEST_Q <= other <= LARGEST_Q and ((e := excess(other)) > 0) == rising and e != 0:
        q, other = other, other * factor
    if other > LARGEST_Q:
        return MeanField(math.inf, g * g * moments(LARGEST_Q)[1])
    if other < SMALLEST_Q:
        return MeanField(0.0 if v == 0 else v, g * g * moments(max(v, SMALLEST_Q))[1])
    root = _root(excess, min(q, other), max(q, other))
    return MeanField(root, g * g * moments(root)[1])


def critical(moments: Moments, v: float) -> CriticalGain:
    """:func:`critical_gain` as a search over q: each q > v determines g^2 = (q - v) / E f^2, and so chi."""

    def gain(q: float) -> float:
        square = moments(q)[0]
        return math.sqrt((q - v) / square) if square > 0 else math.inf

    def excess(q: float) -> float:
        square, slope = moments(q)
        return (q - v) * slope - square * (1 + ROUNDING)  # has the sign of chi - 1, without a division

    if v == 0 and moments.quiet:
        # Without input the state is 0 up to the critical gain.
        slope = moments(SMALLEST_Q)[1]
        return CriticalGain(slope**-0.5, 0.0) if slope > 0 else _beyond(moments, v, gain, excess)
    return _beyond(moments, v, gain, excess)


def _beyond(
    moments: Moments, v: float, gain: Callable[[float], float], excess: Callable[[float], float]
) -> CriticalGain:
    """The smallest gain among the crossings of chi = 1 at q > v, or the limit of large q if there is none."""
    grid = [(q, square, slope) for q, square, slope in moments.on_grid if q > v]
    signs = [(q - v) * slope - square * (1 + ROUNDING) > 0 for q, square, slope in grid]
    # At q = v itself there is no recurrence, and chi is 0.
    below = [max(v, SMALLEST_Q), *(q for q, _, _ in grid)][: len(grid)]
    roots = [
        _root(excess, a, q)
        for a, (q, _, _), before, after in zip(below, grid, [False, *signs][: len(grid)], signs, strict=True)
        if after > before
    ]
    found = [(gain(q), q) for q in roots]
    if found:
        g, q = min(found)
        return CriticalGain(g, q)
    square, slope = moments(LARGEST_Q)
    if slope > 0 and square > 0 and abs(LARGEST_Q * slope / square - 1) < LIMIT_TOLERANCE:
        return CriticalGain(slope**-0.5, math.inf)
    return CriticalGain(None, None)


def _root(function: Callable[[float], float], a: float, b: float) -> float:
    """Find a change of sign between a and b, both positive, in the logarithm of q.

    Chandrupatla (1997), "A new hybrid quadratic/bisection algorithm for finding the zero of a nonlinear function without
    using derivatives": inverse quadratic interpolation where it is safe, else bisection.
    """
    x1, x2 = math.log(a), math.log(b)
    f1, f2 = function(a), function(b)
    x3, f3, share = x1, f1, 0.5
    for _ in range(BISECTIONS):
        x = x1 + share * (x2 - x1)
        f = function(math.exp(x))
        if (f > 0) == (f1 > 0):
            x3, f3 = x1, f1
        else:
            x3, f3, x2, f2 = x2, f2, x1, f1
        x1, f1 = x, f
        width = abs(x2 - x1)
        if f1 == 0 or width <= 4 * math.ulp(max(abs(x1), 1.0)):
            break
        share = 0.5
        if f3 not in (f1, f2):
            xi, phi = (x1 - x2) / (x3 - x2), (f1 - f2) / (f3 - f2)
            if 1 - math.sqrt(1 - xi) < phi < math.sqrt(xi):
                share = f1 / (f2 - f1) * f3 / (f2 - f3) + (x3 - x1) / (x2 - x1) * f1 / (f3 - f1) * f2 / (f3 - f2)
        least = 2 * math.ulp(max(abs(x1), 1.0)) / width
        share = min(max(share, least), 1 - least)
    return math.exp(x1 if abs(f1) < abs(f2) else x2)
