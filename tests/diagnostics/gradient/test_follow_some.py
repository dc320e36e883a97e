"""Some of many losses, followed as rows of a batch."""

from __future__ import annotations

import numpy as np
import pytest

from rnncore import diagnostics
from tests.diagnostics.gradient.driven import CLOSE, FLOAT64, driven


@pytest.mark.parametrize("direction", [0, 1])
@pytest.mark.parametrize("lengths", [None, (40, 23, 0), (39, 10, 31)])
@pytest.mark.parametrize("f", ["tanh", "relu", "identity"])
@pytest.mark.parametrize("backend", FLOAT64)
def test_some_losses_are_those_losses_followed_alone(backend, f, lengths, direction):
    """One loss in ten steps, each followed for ten lags: as the exact way says of a run with no other losses."""
    batch, max_lag = (2 if lengths is None else 3), 10
    record, u, on = driven(backend, f=f, batch=batch, lengths=lengths, bidirectional=True)
    flow, deltas = diagnostics.flow(record, on(u), None)
    found = record.map(diagnostics.horizon, flow, deltas, max_lag=max_lag, every_loss=False)[-1][direction]

    longest = max(record.lengths)
    only = np.zeros_like(u)
    for b, n in enumerate(record.lengths):
        for j in range(longest // max_lag):
            if n - 1 - j * max_lag >= 0:
                t = j * max_lag if direction else n - 1 - j * max_lag
                only[t, b] = u[t, b]
    flow_only, deltas_only = diagnostics.flow(record, on(only), None)
    want = record.map(diagnostics.horizon, flow_only, deltas_only, max_lag=max_lag)[-1][direction]
    assert found.losses == longest // max_lag and not found.complete and len(found.gain) == max_lag
    whole = np.asarray(record.lengths) % max_lag == 0  # of the others, the farthest window is cut
    np.testing.assert_allclose(found.gain[:, whole], want.gain[:max_lag, whole], rtol=0, atol=CLOSE)


@pytest.mark.parametrize("backend", FLOAT64)
def test_the_bias_of_some_losses(backend):
    record, u, on = driven(backend, steps=30)
    flow, deltas = diagnostics.flow(record, on(u), None)
    found = record.map(diagnostics.horizon, flow, deltas, max_lag=10, every_loss=False)[-1][0]
    w, d = record.lane().matrix, record.host(record.lane().slope())
    before = record.host(record.lane().previous())
    each = np.zeros((10, 5, 5))
    for end in (29, 19, 9):
        for b in range(2):
            v = u[end, b]
            for lag in range(10):
                each[lag] += np.outer(v * d[end - lag, b], before[end - lag, b])
                v = (v * d[end - lag, b]) @ w
    want = [np.linalg.norm(each[k:].sum(axis=0)) for k in range(11)]
    np.testing.assert_allclose(found.bias, np.asarray(want) / want[0], rtol=0, atol=CLOSE)


def test_one_window_is_the_loss_of_the_last_state():
    record, u, on = driven(steps=40)
    last = np.zeros_like(u)
    last[-1] = u[-1]
    flow, deltas = diagnostics.flow(record, on(last), None)
    want = record.map(diagnostics.horizon, flow, deltas)[-1][0]
    flow, deltas = diagnostics.flow(record, on(u), None)
    found = record.map(diagnostics.horizon, flow, deltas, every_loss=False)[-1][0]
    assert found.complete and found.losses == 1
    np.testing.assert_allclose(found.gain, want.gain[:40], rtol=0, atol=CLOSE)
    np.testing.assert_allclose(found.bias, want.bias, rtol=0, atol=CLOSE)


def test_a_single_lag():
    record, u, on = driven(steps=6)
    found = record.map(diagnostics.horizon, *diagnostics.flow(record, on(u), None), max_lag=1, every_loss=False)[-1][0]
    assert found.losses == 6 and found.gain.shape == (1, 2) and np.abs(found.gain).max() < CLOSE
