"""The scalar chain against fifty digits, and where it leaves each dtype."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest

import rnncore
from rnncore.diagnostics.jacobians.scalar_chain import chain, chain_of_record
from rnncore.diagnostics.recording import record
from rnncore.errors import ArgumentValueError, DTypeError, ShapeError
from tests.diagnostics.closed_forms import EPS, PLACES, WITH_JAX, device_array, exact_log_slope, network, rounded, seen


@pytest.mark.parametrize(("backend", "dtype"), WITH_JAX)
@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
def test_chain_is_the_product_to_fifty_digits(backend, dtype, name):
    rng = np.random.default_rng(3)
    z, w = rounded(4 * rng.standard_normal(200), dtype), rng.standard_normal(200)
    found = chain(device_array(backend, dtype, z), w, rnncore.get_nonlinearity(name))
    with mpmath.workdps(50):
        terms = [exact_log_slope(name, a) + mpmath.log(abs(mpmath.mpf(float(b)))) for a, b in zip(z, w, strict=True)]
        size = np.cumsum([abs(float(t)) for t in terms])
        total = mpmath.mpf(0)
        for n, term in enumerate(terms):
            total += term
            # Each ln f' is right to a few eps of its own size, and the sizes add up.
            assert abs(float(found.log[n] - total)) <= 8 * EPS[dtype] * (1 + size[n])
    assert (found.sign == np.cumprod(np.sign(w))).all()
    assert found.gamma == {"tanh": 1.0, "sigmoid": 0.25}[name]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_chain_of_ten_thousand_steps(dtype):
    found = chain(device_array("numpy", dtype, np.zeros(10_000)), 1.0, "sigmoid")
    # Each logarithm is right to a few eps of its own size; sums are of long doubles, which some processors do not have.
    few = 8 * EPS[dtype] + 10_000 * float(np.finfo(np.longdouble).eps)
    assert abs(found.log[-1] / (10_000 * -math.log(4)) - 1) < few
    n = np.arange(1, 10_001)
    found = chain(device_array("numpy", dtype, np.zeros(10_000)), 0.9, "identity")
    # A product in float64 sticks at 2.5e-323: ln = -742.
    assert (np.abs(found.log - n * math.log(0.9)) <= few * n * -math.log(0.9)).all()
    product = 1.0
    for _ in range(10_000):
        product *= 0.9
    assert product > 0 and found.log[-1] < -1053


def test_chain_crosses_the_ranges_where_it_should():
    found = chain(np.zeros(10_000), 0.9, "identity").crossings
    for name in ("float32", "float64"):
        info = np.finfo(name)
        for got, bound in ((found[name].below_eps, info.eps), (found[name].below_normal, info.smallest_normal)):
            assert math.log(0.9) * got < math.log(bound) <= math.log(0.9) * (got - 1)
        assert found[name].above_max is None
    up = chain(np.zeros(10_000), -1.1, "identity")
    assert up.crossings["float32"].above_max == 931  # 1.1^931 = 3.42e38 is the first above 3.4028e38
    assert up.crossings["float64"].above_max == 7448
    assert up.crossings["float64"].below_eps is None
    assert list(up.sign[:3]) == [-1, 1, -1]


@pytest.mark.parametrize(("backend", "dtype"), PLACES)
def test_chain_in_saturation_has_a_size_and_a_sign(backend, dtype):
    # tanh'(9.5) = 2.2e-8 is computed as 0 in float32, tanh'(25) = 7.7e-22 in float64.
    for name, sign in (("tanh", 1.0), (rnncore.get_nonlinearity("scaled_tanh", alpha=-1.0, beta=1.0), -1.0)):
        found = chain(device_array(backend, dtype, [9.5, -9.5, 25.0, -40.0]), 1.0, name)
        truth = np.cumsum([float(exact_log_slope("tanh", a)) for a in (9.5, 9.5, 25, 40)])
        assert np.abs(found.log - truth).max() <= 4 * EPS[dtype] * abs(truth[-1])
        assert list(found.sign) == [sign, 1.0, sign, 1.0]


@pytest.mark.parametrize(("backend", "dtype"), PLACES)
def test_chain_of_an_exact_zero_is_zero_and_never_nan(backend, dtype):
    found = chain(device_array(backend, dtype, [1.0, -1.0, 2.0, -1.0]), 3.0, "relu")
    assert np.array_equal(found.log[1:], [-np.inf] * 3) and np.array_equal(found.sign, [1, 0, 0, 0])
    found = chain(device_array(backend, dtype, [0.1, 0.2, 0.3]), [1.0, 0.0, 1e30], "tanh")
    assert np.array_equal(found.log[1:], [-np.inf] * 2) and np.array_equal(found.sign, [1, 0, 0])
    assert found.crossings["float32"].below_eps == 2
    found = chain(device_array(backend, dtype, [0.1, math.nan, 0.3]), 1.0, "tanh")
    assert np.array_equal(np.isnan(found.log), [False, True, True])
    assert np.array_equal(np.isnan(found.sign), [False, True, True])


@pytest.mark.parametrize("backend", ["numpy", "torch", "strict"])
def test_chain_of_a_network_of_one_unit_is_its_derivative(backend):
    rnn = network(backend, "float64", [[-1.7]], "tanh", w_ih=0.8, bias=0.1, bidirectional=True)
    x = np.random.default_rng(0).standard_normal((6, 3, 1))
    rec = record(rnn, device_array(backend, "float64", x), lengths=[6, 4, 0])
    for d in (0, 1):
        rows = chain_of_record(rec, 0, d)
        assert [len(r.log) for r in rows] == [6, 4, 0]
        for b, length in enumerate([6, 4, 0]):
            h, slope, order = 0.0, 1.0, range(length)
            for n, t in enumerate(reversed(order) if d else order):
                h = math.tanh(0.8 * x[t, b, 0] + 0.1 - 1.7 * h)
                slope *= -1.7 * (1 - h * h)
                assert rows[b].log[n] == pytest.approx(math.log(abs(slope)), abs=64 * EPS["float64"])
                assert rows[b].sign[n] == np.sign(slope)


def test_chain_says_what_is_wrong():
    with pytest.raises(ShapeError, match=r"z: expected shape \(N,\), got \(1, 2\)"):
        chain(np.zeros((1, 2)), 1.0)
    with pytest.raises(ShapeError, match=r"w: expected a number or shape \(2,\), got \(3,\)"):
        chain(np.zeros(2), [1.0, 2.0, 3.0])
    with pytest.raises(DTypeError, match="z: expected one of"):
        chain(np.zeros(2, dtype=np.int64), 1.0)
    with pytest.raises(ArgumentValueError, match="a chain has one unit, this layer has 2"):
        chain_of_record(seen("numpy", "float64", np.eye(2)))
    with pytest.raises(ArgumentValueError, match="layer: expected an int"):
        chain_of_record(seen("numpy", "float64", np.eye(1)), 1)
