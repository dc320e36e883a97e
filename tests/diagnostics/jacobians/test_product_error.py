"""The error that a product states, against dense singular values and closed forms: it is never less than the true one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rnncore.diagnostics.jacobians import product as file
from rnncore.diagnostics.jacobians.product import frame_width, product, singular_values
from tests.diagnostics.closed_forms import EPS
from tests.diagnostics.jacobians.networks import exact_log_singular, given, jacobians, network, seen, still

TOLERANCE = math.sqrt(EPS["float64"])


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape) / math.sqrt(shape[-1])


def turned(values, steps, seed=0):
    """Factors ``Q_{t+1} D Q_t^T`` with random orthogonal Q, whose product has the singular values d_i^steps: (T, 1, H, H)."""
    q = [np.linalg.qr(m)[0] for m in gaussian(steps + 1, len(values), len(values), seed=seed)]
    return np.stack([(q[t + 1] * values) @ q[t].T for t in range(steps)])[:, None]


def dense(factors):
    """ln of the singular values of the product of (H, H) in order, scaled at every step."""
    p, log = np.eye(len(factors[0])), 0.0
    for m in factors:
        p = m @ p
        size = np.linalg.norm(p)
        p, log = p / size, log + math.log(size)
    with np.errstate(divide="ignore"):
        return log + np.log(np.linalg.svd(p, compute_uv=False))


def rounding(steps, width, dtype="float64"):
    """Rounding of this many products of vectors of this width, in nats of the largest singular values.

    A product of a vector of N numbers is off by about sqrt(N) eps, and the errors of the steps at worst add up; the dense
    reference has as many of its own. The factor is for the ratio of the largest to the k-th value, which enters both.
    """
    return 16 * steps * math.sqrt(width) * EPS[dtype]


@pytest.mark.parametrize("steps", [1, 2, 100])
@pytest.mark.parametrize("width", [1, 2, 50, 400])
def test_gaussian_products_converge_to_the_accuracy_that_they_state(width, steps):
    """Of one step the singular values are close to each other: ten sweeps of three directions were not enough."""
    m = gaussian(steps, width, width, seed=width)
    k = min(2, width)
    series, error, _, _ = singular_values(given(m[:, None]), k, tolerance=TOLERANCE)
    want = exact_log_singular(list(m)) if width < 3 else dense(m)
    allowed = error[0] + rounding(steps, width)
    assert (error <= TOLERANCE).all() and (np.abs(series[-1][0] - want[:k]) <= allowed).all()
    # What a sweep sees inside of the frame is never more than the truth.
    assert (series[:, 0] <= want[:k] + rounding(steps, width)).all()


@pytest.mark.parametrize("steps", [1, 2, 100])
def test_gaussian_products_in_float32(steps):
    m = gaussian(steps, 50, 50, seed=1).astype("f4")
    tolerance = math.sqrt(EPS["float32"])
    series, error, _, _ = singular_values(given(m[:, None], dtype="float32"), 2, tolerance=tolerance)
    want = dense(m.astype(float))[:2]
    assert (error <= tolerance).all()
    assert (np.abs(series[-1][0] - want) <= error[0] + rounding(steps, 50, "float32")).all()


def test_a_network_of_400_gaussian_units_and_one_step():
    w = gaussian(400, 400)
    found = product(still(w, 1).lane(), k=1)
    true = math.log(np.linalg.svd(w, compute_uv=False)[0])
    assert found.converged.all() and found.log_condition[0] == 0
    assert abs(found.log_singular[0, 0] - true) <= found.error[0, 0] + rounding(1, 400) <= 2 * TOLERANCE


CLUSTERED = {
    "orthogonal": np.ones(40),
    "a cluster within 1e-6": 1 + 1e-6 * np.linspace(1, 0, 40),
    "a cluster below one that is 1e40 times larger": np.r_[10.0, np.linspace(1.01, 1, 39)],
    "two equal ones above a continuum": np.r_[1.0, 1.0, np.linspace(0.99, 0.5, 38)],
    "rank 1": np.r_[2.0, np.zeros(39)],
    "rank 3": np.r_[2.0, 1.0, 0.5, np.zeros(37)],
}


@pytest.mark.parametrize("name", CLUSTERED)
@pytest.mark.parametrize("steps", [1, 40])
def test_spectra_with_a_closed_form(name, steps):
    values = CLUSTERED[name]
    series, error, left, right = singular_values(given(turned(values, steps)), 2, tolerance=TOLERANCE)
    with np.errstate(divide="ignore"):
        want = steps * np.log(values[:2])
    assert (error <= TOLERANCE).all()
    finite = np.isfinite(want)
    assert (series[-1][0][~finite] == -np.inf).all() and finite.any()
    # The factors are rounded relative to their largest value, which is ten times the second in one of them.
    allowed = error[0][finite] + 10 * rounding(steps, 40)
    assert (np.abs(series[-1][0][finite] - want[finite]) <= allowed).all()
    # Orthonormal, up to a few roundings of the rotations of one sweep.
    gram = (np.swapaxes(left[0][:, finite], 0, 1) @ left[0][:, finite]) - np.eye(finite.sum())
    assert np.abs(gram).max() <= 64 * EPS["float64"]
    assert right.shape == (1, 40, 2)


@pytest.mark.parametrize("size", [1e150, 1e-150])
def test_products_far_beyond_the_dtype(size):
    """Of 100 steps: 1e15000 and 1e-15000."""
    values = size * np.linspace(1.0, 0.5, 30)
    series, error, _, _ = singular_values(given(turned(values, 100)), 2, tolerance=TOLERANCE)
    want = 100 * np.log(values[:2])
    assert (error <= TOLERANCE).all()
    # The logarithms themselves are sums of 100 of size 345, each rounded to eps of the sum.
    assert (np.abs(series[-1][0] - want) <= error[0] + rounding(100, 30) + 100 * EPS["float64"] * np.abs(want)).all()


def test_saturated_units():
    """relu: half of the units are off at every step, and all of them in the end."""
    rng = np.random.default_rng(0)
    w, x = gaussian(30, 30), rng.standard_normal((6, 2, 30))
    record = seen(network(w, "relu"), x)
    found = product(record.lane(), k=2)
    for row in (0, 1):
        want = dense(jacobians(record, w, row))[:2]
        assert (np.abs(found.log_singular[row] - want) <= found.error[row] + rounding(6, 30)).all()
    x[5, 0] = -1e3
    dead = product(seen(network(w, "relu"), x).lane(), k=2)
    assert dead.log_singular[0].tolist() == [-np.inf, -np.inf] and dead.converged.all()
    assert (dead.error[0] == 0).all() and np.isfinite(dead.log_singular[1]).all()


@pytest.mark.parametrize("sweeps", [2, 3, 6, 7, 8, 12])
def test_what_has_not_converged_is_a_lower_bound_and_says_so(sweeps):
    w = gaussian(100, 100, seed=3)
    found = product(still(w, 1).lane(), k=2, max_sweeps=sweeps)
    true = np.log(np.linalg.svd(w, compute_uv=False)[:2])
    assert len(found.sweeps) == sweeps and not found.converged[0] and np.isnan(found.log_condition[0])
    assert found.error.max() > found.tolerance
    below = true - found.log_singular[0]
    # The residual of the first sweep's vectors is larger than any error.
    assert (below >= -rounding(1, 100)).all() and (below <= found.error[0] + rounding(1, 100)).all()


def test_a_row_of_nan_does_not_stop_the_others():
    w = gaussian(50, 50, seed=2)
    m = np.broadcast_to(w, (1, 2, 50, 50)).copy()
    m[0, 0, 3, 4] = np.nan
    series, error, _, _ = singular_values(given(m), 2, tolerance=TOLERANCE)
    want = np.log(np.linalg.svd(w, compute_uv=False)[:2])
    assert np.isnan(series[-1][0]).any() and np.isnan(error[0]).any()
    assert (error[1] <= TOLERANCE).all() and (np.abs(series[-1][1] - want) <= error[1] + rounding(1, 50)).all()


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [("torch", "float64"), ("torch", "float32"), ("strict", "float64"), ("jax", "float32"), ("mlx", "float32")],
)
def test_backends_agree_on_close_values(backend, dtype):
    """A frame with the last vectors of its side, which the small networks of other tests do not need."""
    w = gaussian(24, 24, seed=5)
    found = product(still(w.astype(dtype), 2, backend=backend, dtype=dtype).lane(), k=2)
    want = np.log(np.linalg.svd(np.linalg.matrix_power(w.astype(dtype).astype(float), 2), compute_uv=False))[:2]
    assert found.converged.all() and len(found.sweeps) > file.ALONE
    assert (np.abs(found.log_singular[0] - want) <= found.error[0] + rounding(2, 24, dtype)).all()


def test_the_frame_is_whole_where_three_times_as_many_directions_would_be():
    assert [frame_width(1, n) for n in (1, 3, 8, 9, 10, 400)] == [1, 3, 8, 9, 3, 3]
    assert [frame_width(8, n) for n in (8, 30, 31)] == [8, 30, 10]


def test_more_sweeps_bring_the_error_to_any_tolerance():
    w = gaussian(60, 60, seed=6)
    true = math.log(np.linalg.svd(w, compute_uv=False)[0])
    lengths = []
    for tolerance in (1e-2, 1e-6, 1e-10):
        found = product(still(w, 1).lane(), k=1, tolerance=tolerance)
        assert found.converged[0] and abs(found.log_singular[0, 0] - true) <= tolerance
        lengths.append(len(found.sweeps))
    # As with conjugate gradients: each digit costs about as many sweeps as the last.
    assert lengths[0] < lengths[1] < lengths[2] <= 40
