"""Orthonormalisation, with and without linalg.qr, and rounding to 0."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import rnncore
from rnncore.diagnostics.jacobians import sweep
from rnncore.diagnostics.jacobians.lyapunov import lyapunov
from rnncore.diagnostics.jacobians.product import product
from rnncore.diagnostics.jacobians.sweep import FIRST_PIECE, advance, orthonormal, start_frame
from tests.diagnostics.jacobians.networks import (
    CLOSE,
    FLOAT64,
    driven,
    exact_log_singular,
    given,
    jacobians,
    on,
    still,
)
from tests.tools.rounding import EPS, EPS_OF


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
    # Sums of 4 and of 6 products, and as many projections, done twice.
    np.testing.assert_allclose(np.swapaxes(r, 1, 2) @ q / scale, v / scale, rtol=0, atol=16 * EPS)
    unit = np.stack([np.eye(4), np.diag([1.0, 1, 0, 1]), np.eye(4)])
    np.testing.assert_allclose(q @ np.swapaxes(q, 1, 2), unit, rtol=0, atol=16 * EPS)
    assert (np.tril(r, -1) == 0).all() and r[1, 2, 2] == 0


def test_products_without_the_extension_are_the_same(monkeypatch):
    record, w = driven(h=6, steps=100, batch=1)
    file = sweep

    real = file.orthonormal
    monkeypatch.setattr(file, "orthonormal", lambda v, *, xp, engine: real(v, xp=xp, engine=engine, extension=False))
    want = exact_log_singular(jacobians(record, w, 0))
    np.testing.assert_allclose(product(record.lane(), k=6).log_singular[0], want, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("probe", ["product", "lyapunov"])
def test_a_direction_that_dies_in_a_long_piece_is_followed_in_shorter_ones(probe):
    """Of 1 and 1e-5: float32 loses the second in pieces of two steps, float64 in pieces of four."""
    steps, w = 100, np.diag(np.asarray([1.0, 1e-5], "f4"))
    for dtype in ("float32", "float64"):
        record = still(w, steps, dtype=dtype)
        if probe == "product":
            got = product(record.lane(), k=2).log_singular[0]
        else:
            got = steps * lyapunov(record.lane(), k=2, burn_in=10).exponents
        # Each step of a frame that is not aligned mixes the first direction into the second: eps / 1e-5 of it is left.
        allowed = steps * EPS_OF[dtype] / 1e-5
        np.testing.assert_allclose(got, steps * np.log(np.diag(w).astype(float)), rtol=0, atol=allowed)


def test_pieces_grow_again_after_a_direction_has_died():
    """A projection at the first step: from then on there is nothing that a long piece could lose."""
    m = np.broadcast_to(np.eye(3), (400, 1, 3, 3)).copy()
    m[0, 0, 2, 2] = 0.0
    chain = given(m)
    frame, lengths = start_frame(chain, 3, 0), []
    counted = dataclasses.replace(chain, push=lambda v, a, b: (lengths.append(b - a), chain.push(v, a, b))[1])
    advance(counted, frame, 0, 400, lambda r: None)
    assert lengths[0] == FIRST_PIECE and min(lengths) == 1 and max(lengths) > FIRST_PIECE
    assert frame.alive[0].tolist() == [True, True, False]


def test_a_number_that_is_none_ends_in_pieces_of_one_step_and_stays():
    m = np.broadcast_to(np.eye(3), (8, 2, 3, 3)).copy()
    m[5, 1, 0, 0] = np.nan
    chain, factors = given(m), []
    frame = start_frame(chain, 2, 0)
    advance(chain, frame, 0, 8, factors.append)
    assert np.isnan(np.stack(factors)[:, 1]).any() and np.isfinite(np.stack(factors)[:, 0]).all()
    assert frame.alive.tolist() == [[True, True], [False, False]]


def test_rounding_of_the_largest_direction_is_no_singular_value():
    """A matrix of rank 1, up to its rounding: a frame of a few directions sees what is left in each other one as 0."""
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((40, 40)))[0]
    w = (q * np.r_[2.0, np.zeros(39)]) @ q.T  # symmetric: its powers keep the frame aligned
    found = product(still(w, 5).lane(), k=3)
    assert found.converged[0] and len(found.sweeps) == 3
    assert np.isfinite(found.log_singular[0, 0]) and (found.log_singular[0, 1:] == -np.inf).all()
    spectrum = lyapunov(still(w, 5).lane(), k=3, burn_in=2, windows=1)
    assert np.isfinite(spectrum.exponents[0]) and (spectrum.exponents[1:] == -np.inf).all()


def test_a_whole_frame_follows_what_is_below_the_rounding_of_the_largest():
    """A diagonal of 1 and 1e-12 in float32: once the frame is aligned, nothing is mixed, and nothing is lost."""
    w = np.diag(np.asarray([1.0, 1e-12], "f4"))
    found = product(still(w, 50, dtype="float32").lane(), k=2)
    # 50 steps, each with a rounding of the second value's own size.
    np.testing.assert_allclose(
        found.log_singular[0], 50 * np.log(np.diag(w).astype(float)), atol=200 * EPS_OF["float32"]
    )
    assert found.converged[0]


@pytest.mark.parametrize("backend", FLOAT64)
def test_what_the_dtype_cannot_tell_from_0_is_0(backend):
    """W of rank 2 to rounding: the other directions have no exponent, not that of rounding, about ln 1e-16."""
    rng = np.random.default_rng(8)
    w = rng.standard_normal((5, 2)) @ rng.standard_normal((2, 5))
    record = still(w, 50, backend=backend)
    found, spectrum = product(record.lane(), k=5), lyapunov(record.lane(), k=5)
    np.testing.assert_allclose(found.log_singular[0, :2], exact_log_singular([w] * 50, 3000)[:2], rtol=0, atol=CLOSE)
    assert (found.log_singular[0, 2:] == -np.inf).all() and (spectrum.exponents[2:] == -np.inf).all()
    assert spectrum.exponents.sum() == -np.inf
