"""Faults of a forward pass, planted and named term by term."""

from __future__ import annotations

import math

import numpy as np
import pytest

import rnncore
from rnncore.diagnostics import record
from rnncore.diagnostics.faults.first import nonfinite
from tests.diagnostics.places import BACKWARD_FLOAT32, LN2, WHERE, model, on
from tests.tools.rounding import EPS

# A logarithm, its multiple and a sum: some roundings of their own size.
LOGS = 8 * EPS


@pytest.mark.parametrize(
    ("where", "step"),
    # x_0 = 1 in unit 0 of row 2 and doubles: h_t = 2^t, and the largest powers are 2^127 and 2^1023.
    [
        *[((name, "float32"), 128) for name in ("numpy", "torch", "strict", "jax")],
        *[((name, "float64"), 1024) for name in ("numpy", "torch")],
    ],
)
def test_a_doubling_unit_overflows_at_its_step_with_its_value(where, step):
    rnn = model({"weight_ih": [[1.0], [0.5]], "weight_hh": [[2.0, 0.0], [0.0, 1.5]]}, where, nonlinearity="relu")
    x = np.zeros((step + 5, 3, 1))
    x[0, 2] = 1
    found = nonfinite(record(rnn, on(rnn, x)))
    assert (found.phase, found.cause, found.quantity) == ("forward", "overflow", "z")
    assert (found.step, found.row, found.unit, found.value) == (step, 2, 0, math.inf)
    assert found.where == "h[0] * weight_hh_l0[0, 0]"
    assert found.log_value == pytest.approx(step * LN2, rel=LOGS)
    # The other unit grows too, by 3/2: what it adds to the norm is of the order of (3/4)^(2 step).
    # A difference of two logarithms, of step * ln 2 at the most, which are rounded.
    assert found.growth == pytest.approx(LN2, rel=2 * step * EPS)
    assert found.ranges["weight_hh_l0[0, :]"] == (0.0, 2.0)
    assert found.ranges["h"][1] == 2.0 ** (step - 1)


@pytest.mark.parametrize("where", WHERE[1:])
def test_ragged_and_reverse_in_the_direction_s_own_time(where):
    weights = {"weight_ih": [[1.0]], "weight_hh": [[0.5]], "weight_ih_l0_reverse": [[1.0]]}
    weights["weight_hh_l0_reverse"] = [[2.0**100]]
    rnn = model(weights, where, nonlinearity="relu", bidirectional=True)
    x = np.zeros((30, 2, 1))
    x[20, 0] = x[8, 1] = 1
    found = nonfinite(record(rnn, on(rnn, x), lengths=[21, 15]))
    # Row 0 starts at 20 with 1 and is 2^(100 n) after n steps; row 1 starts at 14 and is 1 only at 8.
    n = 11 if where[1] == "float64" else 2
    assert (found.direction, found.row, found.step) == (1, 0, 20 - n)
    assert found.log_value == pytest.approx(100 * n * LN2, rel=LOGS)
    assert "weight_hh_l0_reverse" in found.where


@pytest.mark.parametrize("where", [("numpy", "float32"), ("torch", "float32"), ("strict", "float32")])
def test_opposite_overflows_are_inf_minus_inf_with_the_true_value(where):
    rnn = model({"weight_ih": [[2.0**100]], "weight_hh": [[-(2.0**100)]]}, where, nonlinearity="relu")
    x, h0 = [[[2.0**100]]], [[[2.0**100 - 2.0**80]]]
    found = nonfinite(record(rnn, on(rnn, x), on(rnn, h0)))
    assert (found.cause, found.step, found.unit) == ("inf - inf", 0, 0)
    assert math.isnan(found.value)
    assert found.where == "x[0] * weight_ih_l0[0, 0] and h[0] * weight_hh_l0[0, 0]"
    assert found.log_value == pytest.approx(180 * LN2, rel=LOGS)


def test_a_sum_overflows_where_no_product_does():
    top = float(np.finfo(np.float64).max)
    rnn = model({"weight_ih": [[0.75]], "weight_hh": [[0.75]]}, nonlinearity="identity")
    found = nonfinite(record(rnn, np.full((1, 1, 1), top), np.full((1, 1, 1), top)))
    assert found.where == "x @ weight_ih_l0[0, :] + h @ weight_hh_l0[0, :]"
    assert found.log_value == pytest.approx(math.log(top) + math.log(1.5), rel=LOGS)
    biased = model(
        {"weight_ih": [[0.0]], "weight_hh": [[0.0]], "bias_ih": [top], "bias_hh": [top]}, nonlinearity="softplus"
    )
    found = nonfinite(record(biased, np.zeros((1, 1, 1))))
    assert found.where == "bias_ih_l0[0] + bias_hh_l0[0]"
    assert found.log_value == pytest.approx(math.log(top) + LN2, rel=LOGS)


@pytest.mark.parametrize("where", [("numpy", "float32"), ("torch", "float32"), ("strict", "float32")])
def test_a_nonlinearity_that_overflows_is_named(where):
    square = rnncore.custom_nonlinearity(lambda z: z * z, lambda z: 2 * z, name="square")
    rnn = model({"weight_ih": [[1.0]], "weight_hh": [[0.0]]}, where, nonlinearity=square)
    found = nonfinite(record(rnn, on(rnn, [[[1.0]], [[2.0**70]]])))
    assert (found.cause, found.quantity, found.step) == ("nonlinearity", "h", 1)
    assert found.where.startswith("square(1.18")
    assert found.log_value == pytest.approx(140 * LN2, rel=LOGS)


@pytest.mark.parametrize("where", BACKWARD_FLOAT32)
def test_a_pre_activation_overflows_behind_a_state_that_saturates(where):
    rnn = model({"weight_ih": [[-(2.0**100)]], "weight_hh": [[0.0]]}, where)
    seen = record(rnn, on(rnn, [[[1.0]], [[2.0**30]]]))
    found = nonfinite(seen)
    assert (found.quantity, found.cause, found.step, found.value) == ("z", "overflow", 1, -math.inf)
    assert found.log_value == pytest.approx(130 * LN2, rel=LOGS)
    assert seen.host(seen.h[0][0])[1, 0, 0] == -1


def test_dropout_may_be_what_overflows():
    weights = {f"{n}_l{k}": [[1.0 - (n == "weight_hh")]] for n in ("weight_ih", "weight_hh") for k in (0, 1)}
    rnn = model(weights, ("numpy", "float32"), nonlinearity="relu", num_layers=2, dropout=0.75)
    seen = record(rnn, np.full((9, 1, 1), 2.0**127, dtype=np.float32), training=True, rng=0)
    found = nonfinite(seen)
    assert (found.cause, found.where, found.layer) == ("overflow", "h of the layer below * dropout mask", 1)
    assert nonfinite(record(rnn, np.full((9, 1, 1), 2.0**127, dtype=np.float32))) is None
