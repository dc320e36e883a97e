"""Certificates against closed forms and dense products."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest

import rnncore
from rnncore.diagnostics.gradient.decomposition import decompose
from rnncore.diagnostics.gradient.flow import flow
from rnncore.diagnostics.jacobians.bounds import SQUARINGS, bounds, log_spectral_radius, span_bounds
from rnncore.diagnostics.jacobians.jacobian import jacobian
from rnncore.errors import ArgumentValueError
from tests.diagnostics.closed_forms import EPS, WITH_JAX, gaussian, orthogonal, rounded, seen


def jordan(value, width):
    return value * np.eye(width) + np.eye(width, k=1)


RADII = [
    pytest.param(np.diag([0.5, -0.9, 0.1]), 0.9, id="real"),
    pytest.param(1.3 * np.asarray([[0.0, -1.0], [1.0, 0.0]]), 1.3, id="complex pair"),
    pytest.param(np.asarray([[0.6, -0.8, 1e6], [0.8, 0.6, -1e6], [0.0, 0.0, 0.2]]), 1.0, id="complex pair, not normal"),
    pytest.param(np.diag([0.7, -0.7, 0.7]), 0.7, id="equal moduli"),
    pytest.param(jordan(0.9, 6), 0.9, id="Jordan block"),
    pytest.param(jordan(1e-3, 4), 1e-3, id="Jordan block, small"),
    pytest.param(np.diag([1e200, 1e-200]), 1e200, id="large"),
    pytest.param(np.diag([1e-200, 1e-220]), 1e-200, id="small"),
    pytest.param(np.roll(np.eye(7), 1, axis=0), 1.0, id="a cycle"),
]


@pytest.mark.parametrize(("w", "radius"), RADII)
def test_spectral_radius(w, radius):
    size, width = np.abs(w).max() / radius, len(w)
    # Roundings of the largest number, in units of the radius, and of the logarithm.
    rounding = 4 * EPS["float64"] * max(size, abs(math.log(radius)))
    # Not rounding: ln of what the norm of the N-th power has beside radius^N, at most (N size)^(width - 1), over N.
    left = ((width - 1) * (SQUARINGS * math.log(2) + math.log(size)) + math.log(width)) / 2.0**SQUARINGS
    assert log_spectral_radius(np.asarray(w)) == pytest.approx(math.log(radius), abs=rounding + left)


@pytest.mark.parametrize("width", [1, 2, 5, 100])
def test_spectral_radius_of_nilpotent_matrices(width):
    assert log_spectral_radius(np.eye(width, k=1) * 3) == -math.inf
    # Plateaus of the norm must not be taken for convergence: ||W^n|| is 1 up to n = width - 1.
    assert log_spectral_radius(2 * np.asarray([[1.0, -1.0], [1.0, -1.0]])) == -math.inf


def test_spectral_radius_of_random_matrices():
    for seed in range(20):
        w = gaussian(12, 1.0, seed)
        values, vectors = np.linalg.eig(w)
        radius = np.abs(values).max()
        # Bauer and Fike (1960): both are those of a matrix n eps away, times the condition of its eigenvectors.
        condition = np.linalg.cond(vectors)
        allowed = 2 * 12 * EPS["float64"] * condition * np.linalg.norm(w, 2) / radius
        # Not rounding: what the norm of a power has beside that of the radius.
        allowed += math.log(12 * condition) / 2.0**SQUARINGS
        assert log_spectral_radius(w) == pytest.approx(math.log(radius), abs=allowed)


@pytest.mark.parametrize(("backend", "dtype"), WITH_JAX)
def test_conditions_of_pascanu(backend, dtype):
    for name, edge in (("sigmoid", 4.0), ("tanh", 1.0)):
        for factor, vanishes, may in ((0.99, True, False), (1.0, False, False), (1.01, False, True)):
            found = seen(backend, dtype, edge * factor * np.eye(4), name).map(bounds)
            if factor == 1.0 or dtype == "float64":
                assert found.log_sigma_max[0].item() == pytest.approx(math.log(edge * factor), abs=4 * EPS["float64"])
            assert (found.vanishes[0].item(), found.may_explode[0].item()) == (vanishes, may)
            assert found.gamma == 1 / edge
    w = rounded(gaussian(5, 1.0), dtype)
    with mpmath.workdps(50):
        det = float(mpmath.log(abs(mpmath.det(mpmath.matrix(w.tolist())))))
    allowed = 5 * np.linalg.cond(w) * EPS["float64"]  # of an elimination of 5 rows
    assert seen(backend, dtype, w).map(bounds).log_det[0].item() == pytest.approx(det, abs=allowed)


def test_no_bound_is_known_for_a_function_without_gamma():
    square = rnncore.custom_nonlinearity(lambda z: z * z, lambda z: 2 * z)
    found = seen("numpy", "float64", 0.1 * np.eye(2), square).map(bounds)
    assert found.gamma is None and not found.vanishes[0].any() and found.may_explode[0].all()


def test_a_spectral_radius_of_zero_and_a_gradient_that_doubles():
    w = 2 * np.asarray([[1.0, -1.0], [1.0, -1.0]])
    rec = seen("numpy", "float64", w, "relu", z=np.tile([1.0, -1.0], (50, 1, 1)))
    assert rec.map(bounds).log_spectral_radius[0].item() == -math.inf and rec.map(bounds).may_explode[0].item()
    parts = rec.map(decompose, flow(rec, None, [[np.asarray([[1.0, 1.0]])]])[0])
    # Differences of logarithms of up to 50 ln 2, each rounded by half an eps.
    assert np.allclose(parts.gain[0][0, :-1, 0], math.log(2), rtol=0, atol=50 * math.log(2) * EPS["float64"])


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize(("steps", "width"), [(10_000, 4), (60, 12)])
def test_the_certificate_encloses_the_product(steps, width, asked):
    w = gaussian(width, 1.2)
    z = np.random.default_rng(1).standard_normal((steps, 2, width))
    lengths = [steps, steps // 2]
    rec = seen("numpy", "float64", w, "tanh", z=z, lengths=lengths)
    start, stop = 3, steps - 2
    found = span_bounds(rec.map(jacobian, sigma_max=asked), start, stop)
    for b in (0, 1):
        product, log = np.eye(width), 0.0
        for t in range(start, min(stop, lengths[b])):
            product = ((1 - np.tanh(z[t, b]) ** 2)[:, None] * w) @ product
            norm = np.linalg.norm(product)
            product, log = product / norm, log + math.log(norm)
        top = log + math.log(np.linalg.norm(product, 2))
        assert found.lower[0][0, b] <= top <= found.upper[0][0, b]


def test_the_certificate_is_tight_for_an_isometry_and_zero_for_no_step():
    rec = seen("numpy", "float64", 0.9 * orthogonal(6), steps=10_000)
    found = span_bounds(rec.map(jacobian))
    # In each step norms of 6 columns, and of a matrix that is orthogonal to as much.
    want = pytest.approx(10_000 * math.log(0.9), abs=10_000 * 2 * 6 * EPS["float64"])
    assert found.lower[0].item() == want and found.upper[0].item() == want
    nothing = span_bounds(rec.map(jacobian), 5, 5)
    assert nothing.lower[0].item() == nothing.upper[0].item() == 0
    with pytest.raises(ArgumentValueError, match=r"(start|stop): expected an int in"):
        span_bounds(rec.map(jacobian), 5, 10_001)
