"""Nonlinearities in vector code: within a few units in the last place."""

import mpmath
import numpy as np
import pytest
from rnncore_numba._kernels import compiled
from rnncore_numba._tiles import Kind
from rnncore_numba._vectors import fuses

from tests.tools.numba_scans import DTYPES

# What the functions promise, in units in the last place; unfused products add roundings of their own.
ULP = 4 if fuses() else 6


def applied(name, x):
    """The function of every number, by the code that ends a step."""
    x = np.ascontiguousarray(x).reshape(1, -1)
    out, nothing = np.empty_like(x), -np.zeros_like(x)  # x + -0 is x, for x = -0 too
    compiled(Kind(name, x.dtype.name, False)).finish(nothing, x.copy(), nothing, out, 0.0)
    return out[0]


def sigmoid64(x):
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "exact"), [("tanh", np.tanh), ("sigmoid", sigmoid64)])
@pytest.mark.parametrize("sign", [1, -1])
def test_float32_functions_are_within_4_units_in_the_last_place(name, exact, sign):
    """Every 200th of all finite float32 numbers, 10 million, and every one of a binade where the error is largest."""
    largest = int(np.float32(np.finfo("f4").max).view("u4"))
    start = int(np.float32(1.0).view("u4"))
    for bits in (range(0, largest, 200), range(start, start + 2**23)):
        x = np.arange(bits.start, bits.stop, bits.step, dtype="u4").view("f4") * np.float32(sign)
        got, want = applied(name, x).astype("f8"), exact(x.astype("f8"))
        error = np.abs(got - want) / np.spacing(np.abs(want).astype("f4")).astype("f8")
        assert error.max() <= ULP, x[error.argmax()]
        assert np.abs(got).max() <= 1


@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
def test_float64_functions_are_within_4_units_in_the_last_place(name):
    """Against 40 digits: every exponent, subnormal ones too, and dense where the functions bend."""
    rng = np.random.default_rng(0)
    exponents = np.ldexp(rng.uniform(1, 2, 2098), np.arange(-1074, 1024))
    x = np.concatenate(
        [exponents, -exponents, rng.uniform(-40, 40, 6000), rng.uniform(-1, 1, 4000), -rng.uniform(36, 750, 2000)]
    )
    got = applied(name, x)
    with mpmath.workdps(40):
        for xi, gi in zip(x.tolist(), got.tolist(), strict=True):
            far = max(-4000.0, min(4000.0, xi))  # beyond it both are 0 or 1 to 1000 digits
            want = mpmath.tanh(far) if name == "tanh" else 1 / (1 + mpmath.exp(-far))
            assert abs(gi - want) <= ULP * mpmath.mpf(float(np.spacing(abs(float(want))))), xi


@pytest.mark.parametrize("dtype", DTYPES)
def test_functions_of_special_numbers(dtype):
    tiny = float(np.finfo(dtype).smallest_subnormal)
    x = np.asarray([0.0, -0.0, tiny, -tiny, np.inf, -np.inf, np.nan, 30.0, -30.0], dtype)
    tanh, identity = applied("tanh", x), applied("identity", x)
    np.testing.assert_array_equal(tanh, [0.0, -0.0, tiny, -tiny, 1.0, -1.0, np.nan, 1.0, -1.0])
    assert list(np.signbit(tanh[:4])) == [False, True, False, True]
    np.testing.assert_array_equal(identity, x)
    assert np.signbit(identity[1])
    np.testing.assert_array_equal(applied("relu", x), [0, 0, tiny, 0, np.inf, 0, np.nan, 30, 0])
    np.testing.assert_array_equal(applied("sigmoid", x)[:7], [0.5, 0.5, 0.5, 0.5, 1.0, 0.0, np.nan])
