"""Orthonormalisation, with and without linalg.qr, and rounding to 0."""

from __future__ import annotations

import numpy as np
import pytest

import rnncore
from rnncore.diagnostics.jacobians import sweep
from rnncore.diagnostics.jacobians.lyapunov import lyapunov
from rnncore.diagnostics.jacobians.product import product
from rnncore.diagnostics.jacobians.sweep import orthonormal
from tests.diagnostics.jacobians.networks import CLOSE, FLOAT64, driven, exact_log_singular, jacobians, on, still


@pytest.mark.parametrize("backend", FLOAT64)
def test_orthonormal_without_the_extension(backend):
    rng = np.random.default_rng(0)
    v = rng.standard_normal((3, 4, 6)) * np.array([1e200, 1.0, 1e-200])[:, None, None]
    v[1, 2] = v[1, 0] - 3 * v[1, 1]  # nothing of its own
    v[0, 1] = v[0, 0] + 1e-9 * v[0, 1]  # little of its own: once is not enough
    rnn = rnncore.RNN(1, 1, backend=backend, dtype="float64", rng=0)
    engine = rnn.network.engine
    q, r = (
        rnncore.get_backend(backend).to_numpy(a)
        for a in orthonormal(on(rnn, v), xp=engine.xp, engine=engine, extension=False)
    )
    scale = np.abs(v).max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(np.swapaxes(r, 1, 2) @ q / scale, v / scale, atol=1e-15)
    unit = np.stack([np.eye(4), np.diag([1.0, 1, 0, 1]), np.eye(4)])
    np.testing.assert_allclose(q @ np.swapaxes(q, 1, 2), unit, atol=1e-14)
    assert (np.tril(r, -1) == 0).all() and r[1, 2, 2] == 0


def test_products_without_the_extension_are_the_same(monkeypatch):
    record, w = driven(h=6, steps=100, batch=1)
    file = sweep

    real = file.orthonormal
    monkeypatch.setattr(file, "orthonormal", lambda v, *, xp, engine: real(v, xp=xp, engine=engine, extension=False))
    want = exact_log_singular(jacobians(record, w, 0))
    np.testing.assert_allclose(product(record.lane(), k=6).log_singular[0], want, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("backend", FLOAT64)
def test_what_the_dtype_cannot_tell_from_0_is_0(backend):
    """W of rank 2 to rounding: the other directions have no exponent, not that of rounding, about ln 1e-16."""
    rng = np.random.default_rng(8)
    w = rng.standard_normal((5, 2)) @ rng.standard_normal((2, 5))
    record = still(w, 50, backend=backend)
    found, spectrum = product(record.lane(), k=5), lyapunov(record.lane(), k=5)
    np.testing.assert_allclose(found.log_singular[0, :2], exact_log_singular([w] * 50, 3000)[:2], rtol=0, atol=CLOSE)
    assert (found.log_singular[0, 2:] == -np.inf).all() and (spectrum.exponents[2:] == -np.inf).all()
    np.testing.assert_allclose(spectrum.exponents.sum(), -np.inf)
