"""Properties of step Jacobians against dense matrices and fifty digits."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest

from rnncore.diagnostics.jacobians.jacobian import jacobian
from tests.diagnostics.closed_forms import (
    EPS,
    PLACES,
    WITH_JAX,
    exact_log_slope,
    gaussian,
    orthogonal,
    rounded,
    seen,
    xp,
)


@pytest.mark.parametrize(("backend", "dtype"), WITH_JAX)
@pytest.mark.parametrize(("name", "width"), [("tanh", 12), ("relu", 6), ("sigmoid", 1)])
def test_step_jacobians_against_dense_singular_values(backend, dtype, name, width):
    if backend == "jax" and name != "tanh":
        pytest.skip("each shape is compiled again")
    w = rounded(gaussian(width, 1.4), dtype)
    z = rounded(np.random.default_rng(5).standard_normal((9, 3, width)), dtype)
    rec = seen(backend, dtype, w, name, z=z, lengths=[9, 5, 0])
    found = rec.map(jacobian, sigma_max=True)
    slope = np.exp(rec.nonlinearity.log_derivative(z, xp=xp))
    values = np.linalg.svd(slope[..., None] * w, compute_uv=False)
    with np.errstate(divide="ignore"):
        top, frobenius = np.log(values[..., 0]), 0.5 * np.log((values**2).sum(axis=-1))
    tolerance = 64 * EPS[dtype]
    inside = rec.valid
    for array in (found.log_frobenius, found.log_lower, found.log_upper, found.log_det, found.isometry_gap):
        assert array[0].shape == (1, 9, 3) and np.array_equal(np.isnan(array[0][0]), ~inside)
    some = inside & (slope.max(axis=-1) > 0)
    assert np.abs(found.log_frobenius[0][0] - frobenius)[some].max() < tolerance
    assert np.abs(found.log_chi[0][0] - 2 * frobenius + math.log(width))[some].max() < 2 * tolerance
    assert np.abs(found.log_max_slope[0][0] - np.log(slope.max(axis=-1), where=some, out=np.zeros((9, 3))))[
        some
    ].max() < (tolerance)
    assert (found.log_lower[0][0] <= top + tolerance)[some].all()
    assert (found.log_upper[0][0] >= top - tolerance)[some].all()
    assert (found.isometry_gap[0][0] >= -tolerance)[some].all()
    largest = found.sigma_max
    assert np.abs(largest.value[0][0] - top)[some].max() < tolerance
    assert (largest.lower[0][0] <= top + tolerance)[some].all() and (largest.upper[0][0] >= top - tolerance)[some].all()
    assert (largest.lower[0][0] >= found.log_lower[0][0])[some].all()
    if name == "relu":
        dead = (z <= 0).any(axis=-1)
        assert (found.log_det[0][0][dead & inside] == -np.inf).all()
        assert (found.isometry_gap[0][0][dead & inside] == np.inf).all()
    else:
        log_det = np.log(values).sum(axis=-1)
        # ln |det| has a small singular value in it, on which the dense truth itself loses digits.
        assert np.abs(found.log_det[0][0] - log_det)[inside].max() < 1e4 * EPS[dtype]


@pytest.mark.parametrize(("backend", "dtype"), PLACES)
def test_step_jacobians_in_saturation_to_fifty_digits(backend, dtype):
    z = np.asarray([9.5, -12.0, 0.3, 25.0])
    w = rounded(gaussian(4, 1.0, seed=2), dtype)
    rec = seen(backend, dtype, w, "tanh", z=np.stack([z, -z + 0.25])[:, None, :])
    found = rec.map(jacobian)
    with mpmath.workdps(50):
        for t, values in enumerate((z, -z + 0.25)):
            logs = [exact_log_slope("tanh", rounded(a, dtype)) for a in values]
            det = sum(logs) + mpmath.log(abs(mpmath.det(mpmath.matrix(w.tolist()))))
            square = mpmath.fsum(
                mpmath.exp(2 * a) * mpmath.mpf(x) ** 2 for a, row in zip(logs, w.tolist(), strict=True) for x in row
            )
            size = float(sum(abs(a) for a in logs))
            assert abs(float(found.log_det[0][0, t, 0] - det)) < 8 * EPS[dtype] * size
            assert abs(float(found.log_frobenius[0][0, t, 0] - mpmath.log(square) / 2)) < 8 * EPS[dtype]
            assert np.isfinite(found.isometry_gap[0]).all()


@pytest.mark.parametrize(("backend", "dtype"), PLACES)
def test_isometry_gap(backend, dtype):
    flat = seen(backend, dtype, rounded(0.7 * orthogonal(10), dtype), steps=4)
    assert np.abs(flat.map(jacobian).isometry_gap[0]).max() < 32 * EPS[dtype]
    # (ln chi) / 2 -> 0 and ln |det| / H -> -1/2 for a Gaussian matrix, with corrections of order ln(H) / H.
    wide = seen(backend, dtype, gaussian(300, 1.0), steps=1)
    assert wide.map(jacobian).isometry_gap[0].item() == pytest.approx(0.5, abs=0.02)
    dead = seen(backend, dtype, np.eye(3), "relu", z=[[[1.0, 1.0, -1.0]], [[-1.0, -1.0, -1.0]]])
    found = dead.map(jacobian, sigma_max=True)
    assert (found.isometry_gap[0] == np.inf).all()
    assert found.log_chi[0][0, 0, 0] == pytest.approx(math.log(2 / 3), abs=4 * EPS[dtype])
    for part in (found.log_frobenius, found.log_lower, found.log_upper, found.sigma_max.value, found.sigma_max.upper):
        assert part[0][0, 1, 0] == -np.inf


@pytest.mark.parametrize(("backend", "dtype"), PLACES)
def test_step_jacobians_far_from_one(backend, dtype):
    big = 1e30 if dtype == "float32" else 1e250
    rows = np.asarray([[1.0, 2.0, 0.0], [0.0, 3.0, -1.0], [0.0, 0.0, 0.0]])
    for scale in (big, 1 / big):
        w = rounded(rows * scale, dtype)
        found = seen(backend, dtype, w, steps=1).map(jacobian, sigma_max=True)
        top = math.log(np.linalg.norm(w / scale, 2)) + math.log(scale)
        assert found.log_frobenius[0].item() == pytest.approx(0.5 * math.log(15) + math.log(scale), rel=4 * EPS[dtype])
        assert found.sigma_max.value[0].item() == pytest.approx(top, rel=8 * EPS[dtype])
        assert found.log_lower[0].item() <= top + 8 * EPS[dtype] * abs(top) and found.log_det[0].item() == -np.inf
    # One row as small as the dtype allows beside one that is large: neither hides the other.
    w = rounded([[big, 0.0], [0.0, 1 / big]], dtype)
    assert seen(backend, dtype, w, steps=1).map(jacobian).log_det[0].item() == pytest.approx(
        0, abs=300 * 8 * EPS[dtype]
    )


def with_jacobian(target, seed=3):
    """A run whose J is `target`, by slopes of very different size that its W_hh undoes: no bound by ||W_hh|| is any good."""
    z = np.random.default_rng(seed).uniform(-1.5, 1.5, len(target))
    return seen("numpy", "float64", target / (1 - np.tanh(z) ** 2)[:, None], "tanh", z=z[None, None])


SPECTRA = [
    pytest.param(np.r_[1.0, np.full(39, 1 - 1e-9)], id="close"),
    pytest.param(np.linspace(0.99, 1, 40), id="clustered"),
    pytest.param(np.r_[1.0, 0.5, np.zeros(38)], id="rank 2"),
    pytest.param(2.0 ** -np.arange(40.0), id="graded"),
    pytest.param(np.ones(40), id="isometry"),
]


@pytest.mark.parametrize("values", SPECTRA)
@pytest.mark.parametrize("steps", [1, 2, 8, 24, 40])
def test_sigma_max_brackets_hold_where_they_are_hard(values, steps):
    rec = with_jacobian((orthogonal(40, 1) * values) @ orthogonal(40, 2).T)
    for seed in range(20):
        found = rec.map(jacobian, sigma_max=True, rng=seed, steps=steps).sigma_max
        # The matrix itself, of two products of 40 terms and a quotient of each number, is known to this.
        known = 8 * 40 * EPS["float64"]
        assert found.lower[0].item() <= known and found.upper[0].item() >= -known
        assert found.lower[0].item() <= found.value[0].item() <= found.upper[0].item()


def test_sigma_max_brackets_close_with_more_steps():
    rec = with_jacobian(gaussian(64, 1.0))
    closed = rec.map(jacobian)
    gaps = [(closed.log_upper[0] - closed.log_lower[0]).item()]
    for steps in (8, 16, 24, 32):
        found = rec.map(jacobian, sigma_max=True, steps=steps).sigma_max
        gaps.append((found.upper[0] - found.lower[0]).item())
    assert gaps == sorted(gaps, reverse=True) and gaps[0] > 0.4 and gaps[3] < 0.05 and gaps[4] < 0.01
