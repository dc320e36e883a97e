"""Lags of losses at one step, at every step and at some."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rnncore import diagnostics
from rnncore.diagnostics.gradient import lags
from rnncore.diagnostics.gradient.horizon import horizon, theil_sen
from tests.diagnostics.gradient.driven import CLOSE
from tests.diagnostics.jacobians.networks import FLOAT64, LONG, driven, model_on, network, on, seen
from tests.tools.rounding import EPS, PROMISED, agree


def scalar(w, steps, backend="numpy", dtype="float64"):
    """h = w h + (1 - w), at its fixed point 1; the loss on the last state."""
    rnn = network(np.array([[w]]), backend=backend, dtype=dtype, w_ih=np.array([[1 - w]]))
    record = seen(rnn, np.ones((steps, 1, 1)), np.ones((1, 1, 1)))
    return record.map(horizon, *diagnostics.flow(record, None, [[on(rnn, np.ones((1, 1)))]]))[-1][0]


@pytest.mark.parametrize("backend", FLOAT64)
def test_truncation_of_a_geometric_series(backend):
    found = scalar(0.9, 200, backend)
    want = (0.9 ** np.arange(201) - 0.9**200) / (1 - 0.9**200)
    agree(found.bias, want, 200)  # sums of 200 terms
    assert (found.k_10, found.k_1) == (22, 44)
    assert round(100 * found.bias[22], 3) == 9.848 and round(100 * found.bias[44], 3) == 0.970
    # Differences of logarithms down to 200 ln 0.9, each rounded by half an eps of its size.
    slope = pytest.approx(math.log(0.9), rel=200 * EPS)
    assert found.slope == slope and -1 / found.e_fold == slope
    assert found.lag_small == 66 and found.lag_eps is None and found.complete


def test_contributions_that_cancel_are_signed():
    """w = -0.9: the lags alternate, and norms that are added up would ask for more steps than it takes."""
    found = scalar(-0.9, 200)
    r = -0.9
    want = np.abs((r ** np.arange(201) - r**200) / (1 - r**200))
    agree(found.bias, want, 200)  # sums of 200 terms
    assert scalar(0.9, 200, "jax", "float32").k_10 == 22


@pytest.mark.parametrize("backend", FLOAT64)
def test_lags_of_torchs_default_and_of_ten_thousand_steps(backend):
    """g = 1/sqrt 3: 1e-3 at lag 13, float32's eps at lag 30; the log gain is exact to the end, at e^-5493."""
    w = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0] / math.sqrt(3)
    rnn = network(w, backend=backend, dtype="float64")
    record = seen(rnn, np.zeros((LONG, 1, 4)))
    found = record.map(horizon, *diagnostics.flow(record, None, [[on(rnn, np.ones((1, 4)))]]))[-1][0]
    # A QR decomposition of 4 columns, and sums of 4 products: the same few roundings in each step.
    np.testing.assert_allclose(found.gain[:, 0], -0.5 * math.log(3) * np.arange(LONG + 1), rtol=32 * EPS)
    assert found.lag_small == 13 and found.lag_eps == math.ceil(52 * math.log(2) / (0.5 * math.log(3)))
    if backend != "strict":
        rnn = network(w, backend=backend, dtype="float32")
        record = seen(rnn, np.zeros((50, 1, 4)))
        assert record.map(horizon, *diagnostics.flow(record, None, [[on(rnn, np.ones((1, 4)))]]))[-1][0].lag_eps == 30


@pytest.mark.parametrize("direction", [0, 1])
@pytest.mark.parametrize("backend", FLOAT64)
def test_losses_at_every_step_against_sums_written_out(backend, direction):
    steps, batch, lengths = 12, 3, (12, 7, 0)
    record, w = driven(backend, h=4, steps=steps, batch=batch, lengths=lengths, bidirectional=True)
    u = np.random.default_rng(9).standard_normal((steps, batch, 8))
    found = record.map(horizon, *diagnostics.flow(record, on(model_on(backend), u), None))[-1][direction]
    lane = record.lane(0, direction)
    d, before = lane.host(lane.slope()), lane.host(lane.previous())
    contribution, size, sent = np.zeros((steps, 4, 4)), np.zeros((steps, batch)), np.zeros((steps, batch))
    for b, n in enumerate(lengths):
        order = range(n) if not direction else range(n - 1, -1, -1)
        for t in range(n):
            v = u[t, b, 4 * direction : 4 * direction + 4]
            here = list(order).index(t)
            for lag in range(here + 1):
                s = list(order)[here - lag]
                sent[lag, b] += (u[t, b, 4 * direction : 4 * direction + 4] ** 2).sum()
                size[lag, b] += (v**2).sum()
                contribution[lag] += np.outer(v * d[s, b], before[s, b])
                v = (v * d[s, b]) @ w
    whole = contribution.sum(axis=0)
    want = [np.linalg.norm(contribution[k:].sum(axis=0)) / np.linalg.norm(whole) for k in range(steps + 1)]
    agree(found.bias, np.array(want))
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = 0.5 * np.log(size / sent)  # of the losses that have the lag
    np.testing.assert_allclose(found.gain[:, 0], gain[:, 0], rtol=0, atol=PROMISED * EPS)
    np.testing.assert_allclose(found.gain[:7, 1], gain[:7, 1], rtol=0, atol=PROMISED * EPS)
    assert np.isnan(found.gain[7:, 1]).all() and np.isnan(found.gain[:, 2]).all() and found.complete


@pytest.mark.parametrize("direction", [0, 1])
@pytest.mark.parametrize("lengths", [None, [30, 11]])
def test_both_ways_say_the_same_of_a_loss_of_the_last_state(direction, lengths):
    record, _ = driven(steps=30, lengths=lengths, bidirectional=True)
    last = np.random.default_rng(0).standard_normal((2, 5))
    flow, deltas = diagnostics.flow(record, None, [[last, last]])
    found = record.map(horizon, flow, deltas)[-1][direction]
    assert found.losses == 1
    gain, bias, _ = lags.follow_all(lags.Lags(record.lane(0, direction), deltas[0][direction]), 30)
    agree(bias.bias, found.bias[: len(bias.bias)])
    # What reaches h_0 is a lag of its own only where it is known apart.
    own = np.arange(len(gain))[:, None] < np.asarray(record.lengths)[None, :]
    np.testing.assert_allclose(gain[own], found.gain[: len(gain)][own], rtol=0, atol=CLOSE)
    assert np.isnan(gain[~own]).all()


def test_lags_that_no_longer_matter_are_not_followed():
    record, _ = driven(steps=400, gain=0.3)
    flow, deltas = diagnostics.flow(record, np.ones((400, 2, 5)), None)
    found = record.map(horizon, flow, deltas)[-1][0]
    assert not found.complete and len(found.gain) < 80 and found.lag_eps is not None
    # What is left of the gradient once every lag is subtracted is the rounding of sums of T * B products. Summed in any
    # order, n products are off by at most n eps times the sum of their magnitudes (Higham 2002, section 3.1): once for
    # the gradient, and once for all the lags together.
    delta = deltas[0][0].values * np.exp(deltas[0][0].log)[..., None]
    delta, before = delta.reshape(-1, 5), record.lane().previous().reshape(-1, 5)
    magnitudes = np.linalg.norm(np.abs(delta).T @ np.abs(before)) / np.linalg.norm(delta.T @ before)
    assert found.bias[-1] < 2 * len(delta) * np.finfo(float).eps * magnitudes
    assert len(record.map(horizon, flow, deltas, max_lag=5)[-1][0].gain) == 6


def test_slope():
    assert theil_sen(np.array([0.0, -2.0, -np.inf, -6.0, np.nan])) == pytest.approx(-2.0, rel=4 * EPS)
    # Differences of numbers of up to 5,000 times the slope, each rounded by half an eps.
    assert theil_sen(-0.1 * np.arange(5000.0)) == pytest.approx(-0.1, rel=5000 * EPS)
    assert math.isnan(theil_sen(np.array([1.0])))
