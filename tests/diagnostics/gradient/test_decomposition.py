"""The decomposition against its definition, and in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest

import rnncore
from rnncore.diagnostics.gradient.decomposition import decompose
from rnncore.diagnostics.recording import record
from tests.diagnostics.closed_forms import EPS, PLACES, WITH_JAX, backward, device_array, orthogonal, rounded, seen, xp


def dense_split(rec, parts, totals, k, d, dtype, vectors):
    """The definition, row by row, from the gradient vectors themselves."""
    w, z = rec.host(rec.weights[k][d].weight_hh), rec.host(rec.z[k][d])
    slope = rec.nonlinearity.derivative(z, xp=xp)
    r = (w * w).sum(axis=1)
    weights = 0.5 * math.log(r.sum() / len(w))
    for t in range(rec.steps):
        for b in range(rec.batch):
            if t >= rec.lengths[b]:
                assert all(np.isnan(getattr(parts, n)[k][d, t, b]) for n in ("gain", "saturation", "alignment"))
                continue
            g = vectors[t, b]
            gain = math.log(np.linalg.norm((slope[t, b] * g) @ w) / np.linalg.norm(g))
            saturation = 0.5 * math.log((r * slope[t, b] ** 2).sum() / r.sum())
            want = (gain, saturation, gain - weights - saturation)
            got = [getattr(parts, n)[k][d, t, b] for n in ("gain", "saturation", "alignment")]
            assert np.allclose(got, want, rtol=0, atol=2000 * EPS[dtype]), (t, b)
    assert parts.weights[k][d] == pytest.approx(weights, abs=8 * EPS[dtype])


@pytest.mark.parametrize(("backend", "dtype"), PLACES)
def test_decomposition_is_its_definition(backend, dtype):
    rnn = rnncore.RNN(3, 5, 2, bidirectional=True, backend=backend, dtype=dtype, rng=1)
    x = np.random.default_rng(2).standard_normal((7, 3, 3))
    rec = record(rnn, device_array(backend, dtype, x), lengths=[7, 4, 0])
    found, deltas = backward(rec, only_last=False)
    parts = rec.map(decompose, found)
    for k in range(2):
        for d in range(2):
            # delta = f' * g, and tanh' is nowhere 0 here.
            delta = rec.host(deltas[k][d].values) * np.exp(deltas[k][d].log)[..., None]
            slope = rec.nonlinearity.derivative(rec.host(rec.z[k][d]), xp=xp)
            dense_split(rec, parts, found, k, d, dtype, delta / slope)


@pytest.mark.parametrize(("backend", "dtype"), WITH_JAX)
def test_decomposition_adds_up_and_telescopes(backend, dtype):
    rnn = rnncore.RNN(2, 16, backend=backend, dtype=dtype, rng=1)
    x = np.random.default_rng(2).standard_normal((40, 2, 2))
    rec = record(rnn, device_array(backend, dtype, x))
    found, _ = backward(rec)
    parts = rec.map(decompose, found)
    whole = parts.weights[0][:, None, None] + parts.saturation[0] + parts.alignment[0]
    # On the host in float64: one rounding where the alignment is made as the rest, one where the three are added.
    assert (
        np.abs(whole - parts.gain[0]) <= EPS["float64"] * (np.abs(parts.alignment[0]) + np.abs(parts.gain[0]))
    ).all()
    ends = found.initial[0] - found.total[0][:, -1]
    assert np.abs(parts.gain[0].sum(axis=1) - ends).max() < 40 * 8 * EPS[dtype]


@pytest.mark.parametrize(("backend", "dtype"), [("numpy", "float64"), ("numpy", "float32"), ("torch", "float32")])
def test_decomposition_of_an_orthogonal_recurrence_over_ten_thousand_steps(backend, dtype):
    w = rounded(0.9 * orthogonal(8), dtype)
    rec = seen(backend, dtype, w, steps=10_000)
    found, _ = backward(rec)
    parts = rec.map(decompose, found)
    assert parts.weights[0][0] == pytest.approx(math.log(0.9), abs=4 * EPS[dtype])
    assert np.abs(parts.saturation[0]).max() <= 4 * EPS[dtype]
    # The rounded matrix is orthogonal to a few eps; and a logarithm of -1053 is itself rounded.
    assert np.abs(parts.alignment[0]).max() < 32 * EPS[dtype] + 2 * np.spacing(1053.0)
    assert abs(parts.gain[0].sum() - (found.initial[0] - found.total[0][:, -1]).item()) < 10_000 * 4 * EPS[dtype]
    assert parts.gain[0].sum() < -1053


@pytest.mark.parametrize(("backend", "dtype"), PLACES)
def test_decomposition_tells_dead_from_lost_in_the_arithmetic(backend, dtype):
    # All relu units are off at the middle step: nothing passes, in mathematics.
    z = np.ones((3, 1, 4))
    z[1] = -1
    rec = seen(backend, dtype, np.eye(4), "relu", z=z)
    parts = rec.map(decompose, backward(rec)[0])
    assert np.allclose(parts.saturation[0][0, :, 0], [0, -np.inf, 0], rtol=0, atol=4 * EPS[dtype])
    assert parts.gain[0][0, 1, 0] == -np.inf and parts.alignment[0][0, 1, 0] == 0
    assert np.isnan(parts.gain[0][0, 0, 0])  # before it there is no gradient to stretch
    # tanh at 30: the slope is 4e-26, the arithmetic says 0.
    rec = seen(backend, dtype, np.eye(4), "tanh", z=np.full((2, 1, 4), 30.0))
    parts = rec.map(decompose, backward(rec)[0])
    assert parts.saturation[0][0, 1, 0] == pytest.approx(2 * math.log(2) - 60, rel=4 * EPS[dtype])
    assert parts.gain[0][0, 1, 0] == -np.inf and parts.alignment[0][0, 1, 0] == -np.inf
    # And a recurrence that is not there.
    parts = (rec := seen(backend, dtype, np.zeros((3, 3)), "tanh", steps=2)).map(decompose, backward(rec)[0])
    assert parts.weights[0][0] == -np.inf and parts.gain[0][0, 1, 0] == -np.inf and parts.alignment[0][0, 1, 0] == 0
