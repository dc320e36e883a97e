"""Numbers that were not finite when given, and runs without any."""

from __future__ import annotations

import numpy as np
import pytest

from rnncore.diagnostics import record
from rnncore.diagnostics.faults.first import nonfinite
from tests.diagnostics.places import WHERE, drawn, on
from tests.tools.rounding import EPS_OF


def planted(rnn, name, index, value):
    state = {k: rnn.network.engine.backend.to_numpy(v).copy() for k, v in rnn.state_dict().items()}
    state[name][index] = value
    rnn.load_state_dict({k: on(rnn, v) for k, v in state.items()})


@pytest.mark.parametrize("where", [*WHERE, ("jax", "float32")])
def test_a_finite_run_raises_no_alarm(where):
    rnn, x, u = drawn(where, num_layers=2, bidirectional=True)
    seen = record(rnn, on(rnn, x), lengths=[7, 0, 4])
    assert nonfinite(seen) is None
    assert nonfinite(seen, on(rnn, u), [[on(rnn, np.ones((3, 4)))] * 2] * 2) is None


@pytest.mark.parametrize("where", [*WHERE, ("jax", "float32")])
@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_an_input_is_named_before_all_that_it_spoils(where, bad):
    rnn, x, _ = drawn(where)
    x[3, 1, 1] = x[5, 0, 0] = bad
    found = nonfinite(record(rnn, on(rnn, x)))
    assert (found.phase, found.cause, found.quantity, found.where) == ("forward", "input", "x", "x[3, 1, 1]")
    assert (found.layer, found.step, found.row, found.unit) == (0, 3, 1, 1)
    np.testing.assert_equal(found.value, bad)
    assert found.ranges["x"] == pytest.approx((x[3, 1, 0], x[3, 1, 0]), rel=EPS_OF[where[1]])  # x is rounded to it


@pytest.mark.parametrize("where", WHERE)
def test_nan_in_the_padding_is_not_reported(where):
    rnn, x, u = drawn(where, num_layers=2, bidirectional=True)
    x[5:, 0], x[:, 1] = np.nan, np.inf
    u[5:, 0], u[:, 1] = np.nan, np.inf
    h0 = np.zeros((4, 3, 4))
    h0[:, 1] = np.nan
    seen = record(rnn, on(rnn, x), on(rnn, h0), lengths=[5, 0, 7])
    assert nonfinite(seen, on(rnn, u)) is None
    x[4, 0, 1] = np.nan
    assert nonfinite(record(rnn, on(rnn, x), on(rnn, h0), lengths=[5, 0, 7])).index == (4, 0, 1)


@pytest.mark.parametrize("where", WHERE[1:])
@pytest.mark.parametrize(
    ("name", "index", "layer", "direction"),
    [("weight_hh_l1", (2, 3), 1, 0), ("weight_ih_l0_reverse", (1, 0), 0, 1), ("bias_hh_l1_reverse", (3,), 1, 1)],
)
def test_a_parameter_is_named_with_its_index(where, name, index, layer, direction):
    rnn, x, _ = drawn(where, num_layers=2, bidirectional=True)
    planted(rnn, name, index, np.nan)
    found = nonfinite(record(rnn, on(rnn, x)))
    assert (found.cause, found.quantity, found.index) == ("parameter", name, index)
    assert (found.layer, found.direction, found.unit, found.step) == (layer, direction, index[0], None)


def test_an_initial_state_is_named():
    rnn, x, _ = drawn(("torch", "float64"), num_layers=2)
    h0 = np.zeros((2, 3, 4))
    h0[1, 2, 3] = np.inf
    found = nonfinite(record(rnn, on(rnn, x), on(rnn, h0)))
    assert (found.cause, found.layer, found.row, found.unit) == ("initial state", 1, 2, 3)
