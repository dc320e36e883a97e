"""Every activation against fifty digits: its value, its derivatives and its bound."""

import math

import mpmath
import numpy as np
import pytest
from array_api_compat import numpy as xp

import rnncore
from rnncore.errors import ArgumentValueError
from rnncore.nonlinearity.nonlinearity import NONLINEARITIES

# At kinks the one-sided choice is a convention (torch's), tested on its own below.
POINTS = [-80.0, -20.0, -9.5, -3.0, -1.3, -0.4, -1e-3, 1e-3, 0.3, 0.9, 1.1, 3.0, 9.5, 20.0, 80.0]


def sigma(z):
    return 1 / (1 + mpmath.exp(-z))


def cases():
    m = mpmath
    yield "tanh", {}, m.tanh
    yield "relu", {}, lambda z: max(z, m.mpf(0))
    yield "sigmoid", {}, sigma
    yield "identity", {}, lambda z: z
    for alpha in (0.01, -0.3, 0.0):
        yield "leaky_relu", {"alpha": alpha}, lambda z, a=alpha: z if z > 0 else a * z
    for alpha in (1.0, -0.7):
        yield "thresholded_relu", {"alpha": alpha}, lambda z, a=alpha: z if z > a else m.mpf(0)
    for alpha, beta in ((0.2, 0.5), (-0.5, 0.3)):
        yield (
            "hard_sigmoid",
            {"alpha": alpha, "beta": beta},
            lambda z, a=alpha, b=beta: max(m.mpf(0), min(m.mpf(1), a * z + b)),
        )
    for alpha in (1.0, 0.5, -0.5, 0.0):
        yield "elu", {"alpha": alpha}, lambda z, a=alpha: z if z > 0 else a * m.expm1(z)
    yield "softsign", {}, lambda z: z / (1 + abs(z))
    yield "softplus", {}, lambda z: m.log1p(m.exp(z))
    for alpha, beta in ((1.7159, 2 / 3), (-1.0, 1.0), (0.0, 2.0)):
        yield "scaled_tanh", {"alpha": alpha, "beta": beta}, lambda z, a=alpha, b=beta: a * m.tanh(b * z)
    yield "affine", {"alpha": 0.7, "beta": 0.1}, lambda z: m.mpf(0.7) * z + m.mpf(0.1)


CASES = [pytest.param(n, kw, f, id=f"{n}{kw or ''}") for n, kw, f in cases()]


def derivative(f, z):
    with mpmath.workdps(120):
        h = mpmath.mpf(10) ** -40
        return (f(mpmath.mpf(z) + h) - f(mpmath.mpf(z) - h)) / (2 * h)


def test_every_name_is_covered():
    assert {c.values[0] for c in CASES} == set(NONLINEARITIES)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "parameters", "f"), CASES)
def test_value_and_derivative_against_fifty_digits(name, parameters, f, dtype):
    g = rnncore.get_nonlinearity(name, **parameters)
    z = np.asarray(POINTS, dtype=dtype)
    h, d = g(z, xp=xp), g.derivative(z, xp=xp)
    assert h.dtype == d.dtype == z.dtype
    eps = float(np.finfo(dtype).eps)
    with mpmath.workdps(120):
        for k, point in enumerate(z):
            want, slope = float(f(mpmath.mpf(float(point)))), float(derivative(f, float(point)))
            assert abs(h[k] - want) <= 8 * eps * max(1, abs(want)), point
            assert abs(d[k] - slope) <= 8 * eps * max(1, abs(slope)), point


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "parameters", "f"), CASES)
def test_log_derivative_has_no_cancellation(name, parameters, f, dtype):
    """ln f' to a few eps of its own size, also where 1 - h^2 is 0 in the dtype."""
    g = rnncore.get_nonlinearity(name, **parameters)
    z = np.asarray(POINTS, dtype=dtype)
    got = g.log_derivative(z, xp=xp)
    eps = float(np.finfo(dtype).eps)
    with mpmath.workdps(120):
        for k, point in enumerate(z):
            slope = derivative(f, float(point))
            if abs(slope) < mpmath.mpf(10) ** -70:
                assert got[k] == -np.inf, point
            else:
                want = float(mpmath.log(abs(slope)))
                assert abs(got[k] - want) <= 16 * eps * max(1, abs(want)), point


@pytest.mark.parametrize(("name", "parameters", "f"), CASES)
def test_the_derivative_from_h_is_the_derivative_from_z(name, parameters, f):
    g = rnncore.get_nonlinearity(name, **parameters)
    if g.derivative_needs_z:
        with pytest.raises(ArgumentValueError, match="use z"):
            g.derivative_from_h(np.zeros(1), xp=xp)
        return
    z = np.asarray([*POINTS, 0.0])
    from_h = g.derivative_from_h(g(z, xp=xp), xp=xp)
    np.testing.assert_allclose(from_h, g.derivative(z, xp=xp), rtol=0, atol=32 * np.finfo("f8").eps)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("leaky_relu", {"alpha": -0.3}),
        ("thresholded_relu", {"alpha": -1.0}),
        ("elu", {"alpha": -0.5}),
        ("scaled_tanh", {"alpha": 0.0}),
    ],
)
def test_where_h_does_not_determine_the_slope_z_is_asked_for(name, parameters):
    assert rnncore.get_nonlinearity(name, **parameters).derivative_needs_z
    assert rnncore.get_nonlinearity("tanh", clip=2.0).derivative_needs_z


@pytest.mark.parametrize(("name", "parameters", "f"), CASES)
def test_gamma_is_the_least_upper_bound_of_the_slope(name, parameters, f):
    g = rnncore.get_nonlinearity(name, **parameters)
    z = 3e-4 * np.arange(-100_000, 100_001)  # 0 among them
    eps = np.finfo(z.dtype).eps
    largest = np.abs(g.derivative(z, xp=xp)).max()
    assert largest <= g.gamma * (1 + 8 * eps)  # as much as the slopes may be wrong above
    # 0 is on the grid, where all others are steepest; softplus is so at infinity, with a slope of 1 - e^-30 at the end.
    short = math.exp(-30) if name == "softplus" else 0
    assert largest >= g.gamma * (1 - short - 8 * eps)


@pytest.mark.parametrize("name", NONLINEARITIES)
def test_nan_is_never_turned_into_a_number(name):
    g = rnncore.get_nonlinearity(name)
    z = np.asarray([np.nan])
    assert np.isnan(g(z, xp=xp)).all()
    assert (g.derivative(z, xp=xp) != 0).all()  # NaN, or a slope that lets it through


def test_at_the_kink_relu_takes_torchs_side():
    relu = rnncore.get_nonlinearity("relu")
    assert relu.derivative(np.zeros(1), xp=xp) == 0 and relu.derivative_from_h(np.zeros(1), xp=xp) == 0


def test_extremes_do_not_warn_or_overflow():
    z = np.asarray([-1e30, 1e30, -np.inf, np.inf])
    for name in ("tanh", "sigmoid", "softplus", "softsign", "elu", "scaled_tanh", "hard_sigmoid"):
        g = rnncore.get_nonlinearity(name)
        if name == "softsign":
            z = z[:2]
        assert not np.isnan(g(z, xp=xp)).any(), name
        assert not np.isnan(g.derivative(z, xp=xp)).any(), name
