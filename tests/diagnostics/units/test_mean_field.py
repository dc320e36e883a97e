"""Critical gains and mean-field states against the literature and twenty digits."""

from __future__ import annotations

import math

import mpmath
import pytest

import rnncore
from rnncore.diagnostics.units.mean_field import critical_gain, mean_field
from rnncore.errors import ArgumentValueError
from tests.diagnostics.closed_forms import ROOT
from tests.tools.rounding import EPS


def expectation(function, kinks=()):
    def density(x):
        return mpmath.exp(-x * x / 2) / mpmath.sqrt(2 * mpmath.pi)

    points = sorted({-12, -6, -3, -1, 0, 1, 3, 6, 12, *kinks})
    return mpmath.quad(lambda x: function(x) * density(x), points)


# A fixed point is searched for to 4 units in the last place of ln q, which is at most 10 here.
FIXED = 64 * EPS

KNOWN = [
    ("relu", 0.0, math.sqrt(2)),
    ("relu", 0.5, math.sqrt(2)),
    ("tanh", 0.0, 1.0),
    ("identity", 0.0, 1.0),
    ("identity", 2.0, 1.0),
    ("softplus", 0.0, math.sqrt(2)),
    ("leaky_relu", 0.0, math.sqrt(2 / (1 + 0.01**2))),
]


@pytest.mark.parametrize(("name", "v", "g"), KNOWN)
def test_known_critical_gains(name, v, g):
    assert critical_gain(rnncore.get_nonlinearity(name), v).g == pytest.approx(g, abs=ROOT)


@pytest.mark.parametrize(("name", "v"), [("tanh", 0.1), ("tanh", 4.0), ("sigmoid", 0.0), ("sigmoid", 1.0)])
def test_critical_gains_to_twenty_digits(name, v):
    found = critical_gain(rnncore.get_nonlinearity(name), v)
    with mpmath.workdps(25):
        f = mpmath.tanh if name == "tanh" else lambda z: 1 / (1 + mpmath.exp(-z))
        root = mpmath.sqrt(mpmath.mpf(found.q))
        square = expectation(lambda x: f(root * x) ** 2)
        slope = expectation(lambda x: mpmath.exp(2 * exact_log_slope_of(name, root * x)))
        assert abs(float(found.g**2 * square + v - found.q)) < ROOT * found.q
        assert abs(float(found.g**2 * slope - 1)) < ROOT


def exact_log_slope_of(name, z):
    if name == "tanh":
        return 2 * mpmath.log(mpmath.sech(z))
    return -abs(z) - 2 * mpmath.log1p(mpmath.exp(-abs(z)))


def test_kinks_and_narrow_slopes_are_integrated():
    # P(-2.5 < sqrt(q) x < 2.5) = erf(2.5 / sqrt(2 q)), with the slope 1/5 inside.
    for q in (0.3, 4.0, 1e4):
        state = mean_field(rnncore.get_nonlinearity("hard_sigmoid"), 0.0, q)
        assert (state.q, state.chi, state.rate) == (pytest.approx(q, rel=FIXED), 0.0, -math.inf)
        g = 1e-6  # so small that q is v
        state = mean_field(rnncore.get_nonlinearity("hard_sigmoid"), g, q)
        # Not rounding: Gaussian quadrature on pieces of a density, to nine digits.
        assert state.chi / g**2 == pytest.approx(0.04 * math.erf(2.5 / math.sqrt(2 * q)), rel=1e-9)
    # tanh at q -> oo: E sech^4(sqrt(q) x) -> 4 / (3 sqrt(2 pi q)).
    q = 1e12
    state = mean_field(rnncore.get_nonlinearity("tanh"), 1.0, q)
    # Not rounding: the limit, 1 / q away, and the quadrature as above.
    assert state.chi == pytest.approx(4 / (3 * math.sqrt(2 * math.pi * q)), rel=1e-9)


def test_mean_field_of_chaos_and_of_silence():
    tanh = rnncore.get_nonlinearity("tanh")
    assert mean_field(tanh, 0.5).q == 0 and mean_field(tanh, 0.5).rate == pytest.approx(math.log(0.5), abs=FIXED)
    assert mean_field(tanh, 1 / math.sqrt(3)).rate == pytest.approx(-0.5493061443340549, abs=FIXED)  # torch's default
    # From either side the same stable q, far from the unstable one at 0.
    low, high = mean_field(tanh, 2.0, start=1e-9), mean_field(tanh, 2.0, start=1e9)
    assert low.q == pytest.approx(high.q, rel=FIXED) and low.q > 1 and low.rate > 0
    assert mean_field(rnncore.get_nonlinearity("relu"), 2.0).q == math.inf
    assert mean_field(rnncore.get_nonlinearity("relu"), 1.0, 3.0).q == pytest.approx(6.0, rel=FIXED)  # q = q / 2 + 3
    none = critical_gain(rnncore.get_nonlinearity("affine", alpha=0.0, beta=1.0), 1.0)
    assert none.g is None and none.q is None
    with pytest.raises(ArgumentValueError, match="input_variance"):
        critical_gain(tanh, -1.0)
