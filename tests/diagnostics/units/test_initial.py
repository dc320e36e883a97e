"""The measured input, and the theory of it."""

from __future__ import annotations

import math

import numpy as np
import pytest

import rnncore
from rnncore.diagnostics.jacobians.jacobian import jacobian
from rnncore.diagnostics.recording import record
from rnncore.diagnostics.units.initial import initial
from rnncore.diagnostics.units.mean_field import critical_gain
from tests.diagnostics.closed_forms import EPS, ROOT, WITH_JAX, device_array, fixed, orthogonal, seen


@pytest.mark.parametrize(("backend", "dtype"), WITH_JAX)
def test_initial_measures_its_input(backend, dtype):
    rnn = rnncore.RNN(4, 6, 2, bidirectional=True, backend=backend, dtype=dtype, rng=3)
    x = np.random.default_rng(4).standard_normal((8, 3, 4))
    rec = record(rnn, device_array(backend, dtype, x), lengths=[8, 5, 0])
    found = rec.map(initial)
    for k in range(2):
        for d in range(2):
            w = rec.weights[k][d]
            share = rec.host(rec.inputs[k]) @ rec.host(w.weight_ih).T + rec.host(w.bias)
            v = (share[rec.valid] ** 2).mean()
            assert found.input_variance[k][d] == pytest.approx(v, rel=64 * EPS[dtype])
            want = critical_gain(rec.nonlinearity, found.input_variance[k][d])
            assert found.critical[k][d] == want and want.g > 1
            g = np.linalg.norm(rec.host(w.weight_hh)) / math.sqrt(6)
            assert found.gain[k][d] == pytest.approx(g, rel=36 * EPS["float64"])  # a sum of 36 squares
            assert found.now[k][d].rate < 0


def test_initial_predicts_what_the_jacobians_show():
    """A wide network with the critical gain for its own input: (ln chi) / 2 is what is measured, and near 0."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 4, 20))
    rates = []
    for g in (0.7, 1.4, 2.5):
        rnn = rnncore.RNN(
            20,
            300,
            init={
                "weight_hh": rnncore.init.gaussian(g),
                "weight_ih": rnncore.init.gaussian(0.5),
                "bias_ih": fixed(0.0),
                "bias_hh": fixed(0.0),
            },
            dtype="float64",
            rng=1,
        )
        rec = record(rnn, x)
        found, measured = rec.map(initial), rec.map(jacobian).log_chi[0][0, 20:]
        # Fluctuations of order 1 / sqrt(H).
        assert found.now[0][0].rate == pytest.approx(0.5 * math.log(np.exp(measured).mean()), abs=0.05)
        rates.append(found.now[0][0].rate)
    assert rates[0] < 0 < rates[2]


def test_a_function_of_the_users_own_is_evaluated_where_it_lives():
    import torch

    f = rnncore.custom_nonlinearity(torch.tanh, lambda z: 1 - torch.tanh(z) ** 2, gamma=1.0)
    named, own = (seen("torch", "float64", 1.5 * orthogonal(4), g, steps=3, bias=0.5).map(initial) for g in ("tanh", f))
    # Two libraries' tanh, at the roots of the same equations.
    assert own.now[0][0].q == pytest.approx(named.now[0][0].q, rel=64 * EPS["float64"])
    assert own.critical[0][0].g == pytest.approx(named.critical[0][0].g, rel=ROOT)
