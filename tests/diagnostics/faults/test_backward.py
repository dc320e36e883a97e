"""Faults of backpropagation, planted and named term by term."""

from __future__ import annotations

import math

import numpy as np
import pytest

import rnncore
from rnncore.diagnostics import record
from rnncore.diagnostics.faults.first import nonfinite
from tests.diagnostics.places import BACKWARD_FLOAT32, LN2, WHERE, drawn, model, on
from tests.tools.rounding import EPS

# A logarithm, its multiple and a sum: some roundings of their own size.
LOGS = 8 * EPS


@pytest.mark.parametrize(
    "where", [("numpy", "float32"), ("torch", "float32"), ("strict", "float32"), ("jax", "float32")]
)
def test_backward_overflows_under_a_bounded_forward_pass(where):
    # z = 0 throughout, so tanh' = 1 and dL/dz_t = 2^(T - 1 - t): the states are 0 and say nothing.
    rnn = model({"weight_ih": [[1.0], [0.0]], "weight_hh": [[2.0, 0.0], [0.0, 1.0]]}, where)
    u = np.zeros((200, 2, 2))
    u[-1, 1, 0] = 1
    seen = record(rnn, on(rnn, np.zeros((200, 2, 1))))
    assert nonfinite(seen) is None
    found = nonfinite(seen, on(rnn, u))
    assert (found.phase, found.cause, found.quantity) == ("backward", "overflow", "dL/dz")
    assert (found.step, found.row, found.unit) == (199 - 128, 1, 0)
    assert found.where == "dL/dz[0] of the later step * weight_hh_l0[0, 0]"
    assert found.log_value == pytest.approx(128 * LN2, rel=LOGS)
    # A difference of two logarithms, of 128 ln 2 at the most, which are rounded.
    assert found.growth == pytest.approx(LN2, rel=2 * 128 * EPS)
    by_last = nonfinite(seen, None, [[on(rnn, u[-1])]])
    assert (by_last.step, by_last.where) == (found.step, found.where)


@pytest.mark.parametrize("where", [("numpy", "float32"), ("torch", "float32"), ("strict", "float32")])
def test_a_dead_unit_that_meets_an_overflow_is_zero_times_inf(where):
    # relu' is 1 at step 1 and 0 at step 0, where 2^100 2^100 arrives.
    rnn = model({"weight_ih": [[1.0]], "weight_hh": [[2.0**100]]}, where, nonlinearity="relu")
    seen = record(rnn, on(rnn, [[[-1.0]], [[1.0]]]))
    found = nonfinite(seen, on(rnn, [[[0.0]], [[2.0**100]]]))
    assert (found.cause, found.step, found.log_value) == ("0 * inf", 0, -math.inf)
    assert math.isnan(found.value)
    assert found.where == "f'(z) * (dL/dz[0] of the later step * weight_hh_l0[0, 0])"


@pytest.mark.parametrize("where", WHERE[1:])
def test_backward_in_the_reverse_direction_and_through_layers(where):
    weights = {"weight_ih": [[1.0]], "weight_hh": [[0.5]], "weight_ih_l0_reverse": [[1.0]]}
    weights |= {"weight_hh_l0_reverse": [[2.0]]}
    for end, w in (("l1", [[1.0, 1.0]]), ("l1_reverse", [[0.0, 0.0]])):
        weights |= {f"weight_ih_{end}": w, f"weight_hh_{end}": [[0.0]]}
    rnn = model(weights, where, num_layers=2, bidirectional=True)
    steps = 1300
    u = np.zeros((steps, 2, 2))
    u[10, 1, 0] = 1
    seen = record(rnn, on(rnn, np.zeros((steps, 2, 1))), lengths=[5, steps - 7])
    found = nonfinite(seen, on(rnn, u))
    n = 1024 if where[1] == "float64" else 128
    assert (found.layer, found.direction, found.row, found.step) == (0, 1, 1, 10 + n)
    assert found.log_value == pytest.approx(n * LN2, rel=LOGS)


def test_cotangents_and_gradients_of_parameters_are_looked_at():
    where = ("torch", "float32")
    rnn, x, u = drawn(where)
    u[2, 1, 3] = np.nan
    found = nonfinite(record(rnn, on(rnn, x)), on(rnn, u))
    assert (found.phase, found.cause, found.where, found.unit) == ("backward", "cotangent", "d_output[2, 1, 3]", 3)
    # Every dL/dz is finite, their sum with x is not: 20 * 2^100 * 2^27 >= 2^128.
    flat = model({"weight_ih": [[0.0]], "weight_hh": [[0.0]]}, where)
    seen = record(flat, on(flat, np.full((20, 1, 1), 2.0**27)))
    found = nonfinite(seen, on(flat, np.full((20, 1, 1), 2.0**100)))
    assert (found.cause, found.quantity, found.index) == ("overflow", "dL/d weight_ih_l0", (0, 0))
    assert found.log_value == pytest.approx(math.log(20) + 127 * LN2, rel=LOGS)


@pytest.mark.parametrize("where", BACKWARD_FLOAT32)
def test_each_product_of_the_backward_pass_is_told_from_the_others(where):
    big, one = 2.0**100, [[[1.0]]]

    def of(weights, u, x=one, h0=None, d_last=None, **options):
        rnn = model(weights, where, **options)
        seen = record(rnn, on(rnn, x), h0 if h0 is None else on(rnn, h0))
        last = None if d_last is None else [[on(rnn, d_last)]]
        return nonfinite(seen, on(rnn, u), last)

    linear = {"nonlinearity": "identity"}
    found = of({"weight_ih": [[1.0]], "weight_hh": [[big]]}, [[[big]]], **linear)
    assert (found.quantity, found.step, found.row, found.unit) == ("dL/dh0", None, 0, 0)
    assert found.log_value == pytest.approx(200 * LN2, rel=LOGS)
    found = of({"weight_ih": [[1.0, big]], "weight_hh": [[0.0]]}, [[[big]]], x=[[[1.0, 1.0]]], **linear)
    assert (found.quantity, found.index, found.where) == ("dL/d input", (0, 0, 1), "dL/dz[0] * weight_ih[0, 1]")
    found = of({"weight_ih": [[0.0]], "weight_hh": [[0.0]]}, [[[big]]], h0=[[[big]]], **linear)
    assert (found.quantity, found.index) == ("dL/d weight_hh_l0", (0, 0))
    biased = {"weight_ih": [[0.0]], "weight_hh": [[0.0]], "bias_ih": [0.0], "bias_hh": [0.0]}
    found = of(biased, [[[2.0**127]]] * 4, x=[[[0.0]]] * 4, **linear)
    assert (found.quantity, found.cause) == ("dL/d bias_ih_l0", "overflow")
    assert found.log_value == pytest.approx(129 * LN2, rel=LOGS)
    steep = rnncore.custom_nonlinearity(lambda z: z * big, lambda z: z * 0 + big)
    found = of({"weight_ih": [[1.0]], "weight_hh": [[0.0]]}, [[[big]]], nonlinearity=steep)
    assert (found.quantity, found.where) == ("dL/dz", "f'(z) * dL/dh")
    assert found.log_value == pytest.approx(200 * LN2, rel=LOGS)
    root = rnncore.custom_nonlinearity(lambda z: z * 0 + 1, lambda z: 1 / (z * 0), name="root")
    found = of({"weight_ih": [[1.0]], "weight_hh": [[0.0]]}, one, nonlinearity=root)
    assert (found.cause, found.where) == ("nonlinearity", "derivative of root at 1")
    found = of({"weight_ih": [[1.0]], "weight_hh": [[0.0]]}, [[[2.0**127]]], d_last=[[2.0**127]], **linear)
    assert (found.cause, found.where, found.value) == ("overflow", "d_output + d_h_n", math.inf)
