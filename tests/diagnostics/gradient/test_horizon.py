"""How far a gradient reaches, by the cheap ways: blocks of lags, losses as rows of a batch, and quantiles of drawn values."""

import math

import numpy as np
import pytest

import rnncore
from rnncore import diagnostics
from rnncore.diagnostics.gradient import flow as flow_file
from rnncore.diagnostics.gradient import truncation as truncation_file
from rnncore.diagnostics.numerics import scaled as scaled_file
from rnncore.diagnostics.units import saturation as saturation_file

FLOAT64 = ("numpy", "torch", "strict")
# Sums of some hundred products in another order: a few hundred eps at most.
CLOSE = 1e-12


def scaled(values, log=None):
    return scaled_file.Scaled(values, np.zeros(values.shape[:2]) if log is None else log)


def engine(backend="numpy", dtype="float64"):
    return rnncore.RNN(1, 1, backend=backend, dtype=dtype, rng=0)._call.engine


def tails(delta, before):
    """||R_K||_F for every K, written out in float64."""
    each = np.einsum("nbi,nbj->nij", delta.astype(np.float64), before.astype(np.float64))
    sums = np.concatenate([np.cumsum(each[::-1], axis=0)[::-1], np.zeros_like(each[:1])])
    return np.sqrt((sums**2).sum(axis=(1, 2)))


def decaying(steps, batch, width, rate, seed=0):
    rng = np.random.default_rng(seed)
    delta = rng.standard_normal((steps, batch, width)) * np.exp(rate * np.arange(steps))[:, None, None]
    return delta, rng.standard_normal((steps, batch, width))


@pytest.mark.parametrize("rate", [0.0, -0.01, -0.2, 0.02])
def test_blocks_of_lags_are_the_sums_of_all_lags(rate):
    delta, before = decaying(1000, 1, 24, rate)
    found = truncation_file.truncation(scaled(delta), before, engine=engine())
    want = tails(delta, before)
    assert len(found.lags) < 120, "not every lag is looked at"
    np.testing.assert_allclose(found.bias, (want / want[0])[found.lags], rtol=CLOSE)
    for level in (0.1, 0.01):
        k = found.smallest(level)
        assert want[k] / want[0] <= level < want[k - 1] / want[0], "the crossing is known to one lag"
        assert k - 1 in found.lags


def test_every_lag_is_looked_at_where_that_is_cheap():
    delta, before = decaying(300, 64, 4, -0.05)
    found = truncation_file.truncation(scaled(delta), before, engine=engine())
    assert found.lags.tolist() == list(range(301))
    np.testing.assert_allclose(found.bias, tails(delta, before) / tails(delta, before)[0], rtol=CLOSE, atol=1e-300)


def test_scales_that_no_dtype_holds():
    """ln of the scale falls by 3 a step, to -3,000: float32 has neither the numbers nor their ratio."""
    steps = 1000
    delta, before = decaying(steps, 2, 16, 0.0)
    log = np.broadcast_to(-3.0 * np.arange(steps)[:, None], (steps, 2)).copy()
    eng = engine(dtype="float32")
    found = truncation_file.truncation(scaled(delta.astype("f4"), log), before.astype("f4"), engine=eng)
    want = tails(delta[:9] * np.exp(log[:9])[..., None], before[:9])
    for k in range(8):
        i = found.lags.tolist().index(k)
        assert found.bias[i] == pytest.approx(want[k] / want[0], rel=1e-5)
    assert found.bias[0] == 1 and found.smallest(0.1) == 1
    # A scale of a vector of zeros means nothing, however large.
    log[500:] = 1e4
    delta[500:] = 0
    again = truncation_file.truncation(scaled(delta.astype("f4"), log), before.astype("f4"), engine=eng)
    assert again.bias[-1] == 0 and again.bias[again.lags.tolist().index(5)] == pytest.approx(
        want[5] / want[0], rel=1e-5
    )


def test_states_of_any_size():
    delta, before = decaying(50, 2, 6, -0.1)
    want = truncation_file.truncation(scaled(delta), before, engine=engine()).bias
    for factor in (1e30, 1e-30):
        eng, small = engine(dtype="float32"), (before * factor).astype("f4")
        found = truncation_file.truncation(scaled(delta.astype("f4")), small, engine=eng)
        np.testing.assert_allclose(found.bias, want, rtol=1e-4)


def test_a_gradient_of_zero_has_no_bias():
    found = truncation_file.truncation(scaled(np.zeros((9, 2, 3))), np.ones((9, 2, 3)), engine=engine())
    assert np.isnan(found.bias).all() and found.smallest(0.1) is None


def driven(backend="numpy", *, steps=40, batch=2, width=5, gain=0.9, lengths=None, f="tanh", bidirectional=False):
    init = {"weight_hh": rnncore.init.orthogonal(gain)}
    rnn = rnncore.RNN(
        3, width, nonlinearity=f, init=init, rng=0, backend=backend, dtype="float64", bidirectional=bidirectional
    )
    eng = rnn._call.engine
    numbers = np.random.default_rng(1)

    def on(x):
        return eng.backend.asarray(x, dtype=eng.dtype, device=eng.device)

    record = diagnostics.record(rnn, on(0.5 * numbers.standard_normal((steps, batch, 3))), lengths=lengths)
    u = numbers.standard_normal((steps, batch, width * (2 if bidirectional else 1)))
    return record, u, on


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
    np.testing.assert_allclose(found.gain[:, whole], want.gain[:max_lag, whole], atol=CLOSE)


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
    np.testing.assert_allclose(found.bias, np.asarray(want) / want[0], atol=CLOSE)


def test_one_window_is_the_loss_of_the_last_state():
    record, u, on = driven(steps=40)
    last = np.zeros_like(u)
    last[-1] = u[-1]
    flow, deltas = diagnostics.flow(record, on(last), None)
    want = record.map(diagnostics.horizon, flow, deltas)[-1][0]
    flow, deltas = diagnostics.flow(record, on(u), None)
    found = record.map(diagnostics.horizon, flow, deltas, every_loss=False)[-1][0]
    assert found.complete and found.losses == 1
    np.testing.assert_allclose(found.gain, want.gain[:40], atol=CLOSE)
    np.testing.assert_allclose(found.bias, want.bias, atol=CLOSE)


def test_a_single_lag():
    record, u, on = driven(steps=6)
    found = record.map(diagnostics.horizon, *diagnostics.flow(record, on(u), None), max_lag=1, every_loss=False)[-1][0]
    assert found.losses == 6 and found.gain.shape == (1, 2) and np.abs(found.gain).max() < CLOSE


@pytest.mark.parametrize("f", ["tanh", "relu"])
@pytest.mark.parametrize("backend", FLOAT64)
def test_the_recurrent_share_by_division_and_by_product(backend, f, monkeypatch):
    record, _, on = driven(backend, steps=60, f=f)
    last = [[on(np.random.default_rng(3).standard_normal((2, 5)))]]
    calls = []
    real = flow_file.divided
    monkeypatch.setattr(flow_file, "divided", lambda *a, **k: calls.append(real(*a, **k)) or calls[-1])
    quick, _ = diagnostics.flow(record, None, last)
    assert (calls[0] is None) == (f == "relu"), "a slope of 0 cannot be divided by"
    monkeypatch.setattr(flow_file, "divided", lambda *a, **k: None)
    slow, _ = diagnostics.flow(record, None, last)
    for part in ("total", "recurrent", "direct", "initial"):
        np.testing.assert_allclose(getattr(quick, part)[0], getattr(slow, part)[0], atol=CLOSE)


@pytest.mark.parametrize("lengths", [None, (2000, 700, 1)])
def test_quantiles_of_drawn_values_are_near_those_of_all(lengths):
    rnn = rnncore.RNN(3, 16, rng=0, dtype="float32", backend="numpy")
    record = diagnostics.record(
        rnn, np.random.default_rng(0).standard_normal((2000, 3, 3)).astype("f4"), lengths=lengths
    )
    found = record.map(diagnostics.saturation)
    z = np.sort(np.abs(record.host(record.z[0][0])[record.valid]).ravel())
    assert len(z) > saturation_file.EXACT
    for p, value in zip(found.q, found.quantiles[0][0], strict=True):
        rank = np.searchsorted(z, value) / len(z)
        # Five standard errors of a rank.
        assert abs(rank - p) < 5 * math.sqrt(p * (1 - p) / saturation_file.EXACT) + 2 / len(z)
        assert value in z
    assert found.quantiles[0][0][-1] == z[-1]
    assert np.array_equal(found.quantiles[0][0], record.map(diagnostics.saturation).quantiles[0][0])
