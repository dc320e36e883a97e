"""The bias of truncation against sums written out."""

from __future__ import annotations

import numpy as np
import pytest

import rnncore
from rnncore.diagnostics.gradient import truncation as truncation_file
from rnncore.diagnostics.numerics import scaled as scaled_file
from tests.tools.rounding import EPS, EPS_OF, PROMISED


def scaled(values, log=None):
    return scaled_file.Scaled(values, np.zeros(values.shape[:2]) if log is None else log)


def engine(backend="numpy", dtype="float64"):
    return rnncore.RNN(1, 1, backend=backend, dtype=dtype, rng=0).network.engine


def tails(delta, before):
    """||R_K||_F for every K, written out in float64."""
    each = np.einsum("nbi,nbj->nij", delta.astype(np.float64), before.astype(np.float64))
    sums = np.concatenate([np.cumsum(each[::-1], axis=0)[::-1], np.zeros_like(each[:1])])
    return np.sqrt((sums**2).sum(axis=(1, 2)))


def assert_tails(found, want, delta, before, eps=EPS):
    """Roundings of a sum of n terms, as of a random walk: sqrt(n) eps of the terms' magnitudes, and four times that.

    Higham and Mary (2019), "A new approach to probabilistic rounding error analysis".
    """
    magnitudes = tails(np.abs(delta), np.abs(before))[found.lags]
    allowed = 4 * np.sqrt(delta.shape[0] * delta.shape[1]) * eps * magnitudes / want[0]
    got, want = found.bias, (want / want[0])[found.lags]
    # That of the whole, by which all are divided, is as large as its own.
    assert (np.abs(got - want) <= allowed + allowed[0] * want).all()


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
    assert_tails(found, want, delta, before)
    for level in (0.1, 0.01):
        k = found.smallest(level)
        assert want[k] / want[0] <= level < want[k - 1] / want[0], "the crossing is known to one lag"
        assert k - 1 in found.lags


def test_every_lag_is_looked_at_where_that_is_cheap():
    delta, before = decaying(300, 64, 4, -0.05)
    found = truncation_file.truncation(scaled(delta), before, engine=engine())
    assert found.lags.tolist() == list(range(301))
    assert_tails(found, tails(delta, before), delta, before)


def test_scales_that_no_dtype_holds():
    """ln of the scale falls by 3 a step, to -3,000: float32 has neither the numbers nor their ratio."""
    steps = 1000
    delta, before = decaying(steps, 2, 16, 0.0)
    log = np.broadcast_to(-3.0 * np.arange(steps)[:, None], (steps, 2)).copy()
    eng = engine(dtype="float32")
    found = truncation_file.truncation(scaled(delta.astype("f4"), log), before.astype("f4"), engine=eng)
    want = tails(delta[:9] * np.exp(log[:9])[..., None], before[:9])
    few = PROMISED * EPS_OF["float32"]  # the first two of the terms are all that counts
    for k in range(8):
        i = found.lags.tolist().index(k)
        assert found.bias[i] == pytest.approx(want[k] / want[0], rel=few)
    assert found.bias[0] == 1 and found.smallest(0.1) == 1
    # A scale of a vector of zeros means nothing, however large.
    log[500:] = 1e4
    delta[500:] = 0
    again = truncation_file.truncation(scaled(delta.astype("f4"), log), before.astype("f4"), engine=eng)
    assert again.bias[-1] == 0 and again.bias[again.lags.tolist().index(5)] == pytest.approx(want[5] / want[0], rel=few)


def test_states_of_any_size():
    delta, before = decaying(50, 2, 6, -0.1)
    want = tails(delta, before)
    for factor in (1e30, 1e-30):
        eng, small = engine(dtype="float32"), (before * factor).astype("f4")
        found = truncation_file.truncation(scaled(delta.astype("f4")), small, engine=eng)
        assert_tails(found, want, delta, before, EPS_OF["float32"])


def test_a_gradient_of_zero_has_no_bias():
    found = truncation_file.truncation(scaled(np.zeros((9, 2, 3))), np.ones((9, 2, 3)), engine=engine())
    assert np.isnan(found.bias).all() and found.smallest(0.1) is None
