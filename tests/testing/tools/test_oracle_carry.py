"""The oracle's loops with carry against central differences, and against its own loops without carry."""

from __future__ import annotations

import numpy as np
import pytest

from rnncore.testing.tools import oracle
from tests.tools.differences import assert_close, directional, gradients
from tests.tools.rounding import agree

STEPS, BATCH, WIDTH = 4, 2, 3
FULL = (STEPS, BATCH, WIDTH)
NONLINEAR = {"p": FULL, "h0": FULL[1:], "w": (WIDTH, WIDTH), "a": FULL, "g": FULL, "i": FULL}
LINEAR = {"c": FULL, "o": FULL, "i": FULL, "a": FULL, "x0": FULL[1:], "m": (WIDTH, WIDTH)}
both_ways = pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "reverse"])


def drawn(shapes, seed=0):
    rng = np.random.default_rng(seed)
    made = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    if seed == 0:
        made["i"][2, 0] = made["a"][2, 0] = 0.0  # a reset in one row
    return made


@both_ways
def test_derivatives_of_the_nonlinear_scan(reverse):
    given, dots = drawn(NONLINEAR), drawn(NONLINEAR, 1)
    run = lambda *x: oracle.carry_scan(dict(zip(given, x, strict=True)), "softplus", reverse=reverse)  # noqa: E731
    moved = oracle.carry_tangent(given, dots, "softplus", reverse=reverse)
    assert_close(moved, directional(run, list(given.values()), list(dots.values())))
    c = np.random.default_rng(2).standard_normal(FULL)
    found = oracle.carry_pullback(c, given, "softplus", reverse=reverse)
    assert list(found) == list(given)
    for got, want in zip(found.values(), gradients(lambda *x: (c * run(*x)).sum(), list(given.values())), strict=True):
        assert_close(got, want)


@both_ways
def test_derivatives_of_the_linear_scan(reverse):
    given, dots = drawn(LINEAR), drawn(LINEAR, 1)
    run = lambda *x: oracle.linear_carry_scan(dict(zip(given, x, strict=True)), reverse=reverse)  # noqa: E731
    moved = oracle.linear_carry_tangent(given, dots, reverse=reverse)
    assert_close(moved, directional(run, list(given.values()), list(dots.values())))
    c = np.random.default_rng(2).standard_normal(FULL)
    found = oracle.linear_carry_pullback(c, given, reverse=reverse)
    for got, want in zip(found.values(), gradients(lambda *x: (c * run(*x)).sum(), list(given.values())), strict=True):
        assert_close(got, want)


@both_ways
def test_without_carry_they_are_the_plain_scans(reverse):
    x, y = drawn(NONLINEAR), drawn(LINEAR)
    zero, one = np.zeros(FULL), np.ones(FULL)
    got = oracle.carry_scan(x | {"a": zero, "g": one, "i": one}, "tanh", reverse=reverse)
    np.testing.assert_array_equal(got, oracle.nonlinear_scan(x["p"], x["h0"], x["w"], "tanh", reverse=reverse))
    got = oracle.linear_carry_scan(y | {"c": y["o"] * y["c"], "i": one, "a": zero}, reverse=reverse)
    want = oracle.linear_scan(y["c"], y["o"], y["x0"], y["m"], reverse=reverse)
    agree(got, want)


@both_ways
def test_a_row_stops_at_its_end(reverse):
    x = drawn(NONLINEAR)
    got = oracle.carry_scan(x, "tanh", reverse=reverse, ends=(3, 0))
    short = {k: v[:3] if v.shape == FULL else v for k, v in x.items()}
    np.testing.assert_array_equal(got[:3, 0], oracle.carry_scan(short, "tanh", reverse=reverse)[:, 0])
    np.testing.assert_array_equal(got[:, 1], 0.0)
    np.testing.assert_array_equal(got[3:], 0.0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_factor_of_0_cuts(value):
    x = drawn(NONLINEAR)
    x["a"][:], x["g"][:] = 0.0, 1.0
    x["g"][1], x["a"][1] = 0.0, 1.0
    clean = oracle.carry_scan(x, "tanh")
    x["p"][1] = value
    np.testing.assert_array_equal(oracle.carry_scan(x, "tanh"), clean)
