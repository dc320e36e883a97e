"""Losses at several steps, early and late."""

from __future__ import annotations

import math

import numpy as np
import pytest

import rnncore
from rnncore import diagnostics, init
from rnncore.diagnostics import diagnose
from tests.diagnostics.gradient.driven import CLOSE, FLOAT64
from tests.diagnostics.gradient.sources import CLOSE_32, normal
from tests.diagnostics.places import on


def orthogonal(gain, *, dtype="float64", backend="numpy", f="identity", bidirectional=False, layers=1):
    return rnncore.RNN(
        3, 8, nonlinearity=f, init={"weight_hh": init.orthogonal(gain)}, rng=0, dtype=dtype, backend=backend,
        bidirectional=bidirectional, num_layers=layers,
    )  # fmt: skip


@pytest.mark.parametrize("every_loss", [True, False])
@pytest.mark.parametrize(("dtype", "gain"), [("float32", 1.5), ("float32", 0.5), ("float64", 3.0)])
def test_a_small_loss_in_a_gradient_that_explodes_is_followed_as_it_is(dtype, gain, every_loss):
    """The gradient grows by e^48 and more: a loss is below a rounding error of it, and no difference finds it again."""
    rnn = orthogonal(gain, dtype=dtype)
    record = diagnostics.record(rnn, np.zeros((120, 2, 3), dtype))
    flow, deltas = diagnostics.flow(record, normal(120, 2, 8).astype(dtype))
    found = record.map(diagnostics.horizon, flow, deltas, max_lag=30, every_loss=every_loss)[-1][0]
    lags = len(found.gain)
    assert lags > 20
    np.testing.assert_allclose(found.median, np.arange(lags) * math.log(gain), rtol=0, atol=CLOSE_32)


@pytest.mark.parametrize("every_loss", [True, False])
@pytest.mark.parametrize("direction", [0, 1])
@pytest.mark.parametrize("backend", FLOAT64)
def test_a_loss_in_the_middle_is_the_last_of_a_shorter_run(backend, direction, every_loss):
    rnn = orthogonal(0.9, backend=backend, f="tanh", bidirectional=True)
    x, u = normal(40, 2, 3), normal(2, 16, seed=1)
    at = (25, 12)  # a step of its own for each row
    pull = np.zeros((40, 2, 16))
    for b, t in enumerate(at):
        pull[t, b] = u[b]
    record = diagnostics.record(rnn, on(rnn, x))
    flow, deltas = diagnostics.flow(record, on(rnn, pull))
    found = record.map(diagnostics.horizon, flow, deltas, every_loss=every_loss)[-1][direction]
    assert found.complete and found.losses == 1
    reach = [40 - t if direction else t + 1 for t in at]
    assert len(found.gain) == max(reach) + 1

    # The same steps alone: what comes after the loss in the direction's time is not theirs.
    own = slice(8 * direction, 8 * direction + 8)
    alone, one = {}, orthogonal(0.9, backend=backend, f="tanh")
    suffix = "_l0_reverse" if direction else "_l0"
    state = rnn.state_dict()
    one.load_state_dict({f"{n}_l0": state[n + suffix] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")})
    part = np.zeros((max(reach), 2, 3))
    for b, n in enumerate(reach):
        part[:n, b] = x[::-1, b][:n] if direction else x[:n, b]
    alone = diagnostics.record(one, on(one, part), lengths=reach)
    want = alone.map(diagnostics.horizon, *diagnostics.flow(alone, None, [[on(one, u[:, own])]]))[-1][0]
    np.testing.assert_allclose(found.gain, want.gain, rtol=0, atol=CLOSE)
    known = np.isin(want.bias_lags, found.bias_lags)
    assert known.sum() > 10
    both = np.isin(found.bias_lags, want.bias_lags)
    np.testing.assert_allclose(found.bias[both], want.bias[known], rtol=0, atol=CLOSE)


@pytest.mark.parametrize("direction", [0, 1])
def test_losses_of_the_first_half_are_counted_from_the_last_of_them(direction):
    rnn = orthogonal(0.9, bidirectional=True)
    record = diagnostics.record(rnn, np.zeros((60, 2, 3)))
    pull = normal(60, 2, 16)
    pull[30:] = 0
    flow, deltas = diagnostics.flow(record, pull)
    some, all_of_them = (
        record.map(diagnostics.horizon, flow, deltas, max_lag=10, every_loss=e)[-1][direction] for e in (False, True)
    )
    for found in (some, all_of_them):
        np.testing.assert_allclose(found.median, np.arange(len(found.median)) * math.log(0.9), rtol=0, atol=CLOSE)
    # Backwards in time, the losses of the first half are those with the whole second half before them.
    assert some.losses == (6 if direction else 3) and all_of_them.losses == 30
    assert len(some.median) == 10 and len(all_of_them.median) == 11


def test_windows_without_a_loss_count_for_nothing():
    """Losses at steps 59 and 51 of 60: the windows that begin at 49, 39, ... have none, and rounding must not be one."""
    rnn = orthogonal(3.0)
    record = diagnostics.record(rnn, np.zeros((60, 1, 3)))
    pull = np.zeros((60, 1, 8))
    pull[[59, 51]] = normal(2, 1, 8)
    found = record.map(diagnostics.horizon, *diagnostics.flow(record, pull), max_lag=10, every_loss=False)[-1][0]
    last = np.zeros_like(pull)
    last[59] = pull[59]
    want = record.map(diagnostics.horizon, *diagnostics.flow(record, last))[-1][0]
    np.testing.assert_allclose(found.gain, want.gain[:10], rtol=0, atol=CLOSE)


@pytest.mark.parametrize("level", ["cheap", "standard", "deep"])
@pytest.mark.parametrize("where", ["every step", "the middle", "the first half"])
def test_a_network_that_keeps_its_gradient_is_healthy_wherever_the_loss_is(where, level):
    pull = normal(100, 4, 8)
    keep = {"every step": slice(0, 100), "the middle": slice(50, 51), "the first half": slice(0, 50)}[where]
    masked = np.zeros_like(pull)
    masked[keep] = pull[keep]
    report = diagnose(orthogonal(1.0), normal(100, 4, 3), (masked, None), level=level)
    assert report.verdict.label == "healthy", report
    lost = diagnose(orthogonal(0.5), normal(100, 4, 3), (masked, None), level=level)
    assert lost.verdict.label == "vanishing" and abs(lost.horizon[0][0].slope - math.log(0.5)) < CLOSE
    grown = diagnose(orthogonal(1.5), normal(100, 4, 3), (masked, None), level=level)
    assert grown.verdict.label == "exploding"


def test_a_long_run_is_judged_by_where_its_lags_lead_and_a_dependency_by_its_own_lag():
    x, pull = normal(1000, 2, 3), normal(1000, 2, 8)
    assert diagnose(orthogonal(1.0), x, (pull, None)).verdict.label == "healthy"
    # e^-5 after 255 steps, and e^-20 after 1,000: healthy so far.
    slow = diagnose(orthogonal(0.98), x, (pull, None))
    assert slow.verdict.label == "inconclusive" and "255 steps" in slow.verdict.summary
    asked = diagnose(orthogonal(0.98), x, (pull, None), dependency_length=500)
    assert asked.verdict.label == "vanishing" and "after 500 steps" in asked.verdict.summary
    assert diagnose(orthogonal(0.98), x, (pull, None), dependency_length=300).verdict.label == "healthy"


def test_a_horizon_that_was_not_looked_at_is_not_asserted():
    report = diagnose(orthogonal(1.0), normal(1000, 2, 3), (normal(1000, 2, 8), None))
    report.assert_healthy(min_horizon=255)
    with pytest.raises(
        AssertionError, match="followed over 255 steps, and min_horizon is 600: give diagnose dependency"
    ):
        report.assert_healthy(min_horizon=600)
