"""The cases and the oracle: the same numbers every time, and the right answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import case as cases
from benchmarks import naive
from benchmarks.case import Case, Problem, make
from rnncore.testing.tools import oracle
from tests.tools.rounding import EPS_OF

TINY = Case(5, 3, 4, layers=2)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_the_oracle_agrees_with_the_conformance_suites(nonlinearity):
    problem = make(replace(TINY, nonlinearity=nonlinearity)).astype("float64")
    want = oracle.solve(
        problem.params,
        problem.x,
        [h[None] for h in problem.h0],
        name=nonlinearity,
        cotangents=(problem.d_output, [d[None] for d in problem.d_h_n]),
    )
    truth = {"output": want.output, "h_n": np.concatenate(want.h_n), "x": want.x, "h0": np.concatenate(want.h0)}
    truth |= want.params
    found = naive.both(problem)
    assert set(found) == set(truth)
    # Sums of at most 5 x 3 terms of order 1 in another order: 64 eps is the library's own bound.
    assert max(naive.errors(found, truth, "float64").values()) <= 64


def test_the_numbers_are_the_same_each_time_and_in_both_precisions():
    single, again, double = make(TINY), make(TINY), make(replace(TINY, dtype="float64"))
    for name, value in single.to_numbers().items():
        np.testing.assert_array_equal(value, again.to_numbers()[name])
        np.testing.assert_array_equal(value, double.to_numbers()[name])
        assert (value.dtype, double.to_numbers()[name].dtype) == ("float32", "float64")


@pytest.mark.parametrize("shape", [(3, 2, 16), (3, 2, 64)])
def test_the_spectral_radius_is_one_and_nothing_is_zero(shape):
    problem = make(Case(*shape, layers=2))
    for k in range(2):
        radius = max(abs(np.linalg.eigvals(problem.params[f"weight_hh_l{k}"].astype(float))))
        assert radius == pytest.approx(1.0, abs=64 * EPS_OF["float32"])  # of 64 rows, rounded to float32
    assert all(np.abs(v).max() > 0.01 for v in problem.to_numbers().values())


def test_the_vanishing_run_meets_denormal_numbers_and_its_twin_does_not():
    case = Case(*cases.DENORMAL_SHAPE, kind="vanishing")
    reached = {}
    for kind in ("vanishing", "vanishing, loss everywhere"):
        d_x = np.abs(naive.both(make(replace(case, kind=kind)))["x"])
        tiny = np.finfo("float32").tiny
        reached[kind] = int(((d_x > 0) & (d_x < tiny)).any(axis=(1, 2)).sum())
    # 0.95^n passes from 2^-126 to 2^-149 in 311 steps.
    assert reached["vanishing"] > 200
    assert reached["vanishing, loss everywhere"] == 0


def test_numbers_survive_the_disk(tmp_path):
    problem = make(TINY)
    cases.save(tmp_path / "problem", problem.to_numbers())
    back = Problem.from_numbers(TINY, cases.load(tmp_path / "problem"))
    assert all((v == back.to_numbers()[n]).all() for n, v in problem.to_numbers().items())


def test_an_error_is_counted_in_eps_of_the_largest_number():
    truth = {"x": np.full((200, 2), 8.0)}
    found = truth["x"].astype("float32")
    found[150, 1] += 8 * 3 * np.finfo("float32").eps
    assert naive.errors({"x": found}, truth, "float32") == {"x": 3.0}
    for bad in ({}, {"x": found[1:]}, {"x": found.astype(float)}, {"x": found * np.float32("nan")}):
        assert naive.errors(bad, truth, "float32") == {"x": np.inf}


def test_operations_are_counted_over_all_products():
    # x W_ih^T and h W_hh^T, 2 x 7 x 5 x 9 x 9 each, of three layers; backward has twice as many.
    assert Case(7, 5, 9, layers=3).flops("forward") == 3 * 2 * (2 * 7 * 5 * 81)
    assert Case(7, 5, 9, layers=3).flops("both") == 9 * 2 * (2 * 7 * 5 * 81)
