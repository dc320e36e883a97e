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


def test_all_values_of_a_row_have_to_converge():
    """The first stands alone, the second is one of many."""
    w = turned(np.r_[10.0, np.linspace(1.01, 1, 39)], 1)[0, 0]
    found = product(still(w, 1).lane(), k=2, max_sweeps=9)
    assert found.error[0, 0] <= found.tolerance < found.error[0, 1] and not found.converged[0]
    assert product(still(w, 1).lane(), k=1, max_sweeps=9).converged[0]


def test_a_row_of_nan_does_not_stop_the_others():
    w = gaussian(50, 50, seed=2)
    m = np.broadcast_to(w, (1, 2, 50, 50)).copy()
    m[0, 0, 3, 4] = np.nan
    series, error, _, _ = singular_values(given(m), 2, tolerance=TOLERANCE)
    want = np.log(np.linalg.svd(w, compute_uv=False)[:2])
    assert np.isnan(series[-1][0]).any() and not (error[0] <= TOLERANCE).any()
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


def test_only_rows_of_nan():
    record = seen(network(np.eye(3), "tanh"), np.full((4, 1, 3), np.nan))
    found = product(record.lane(), k=2)
    assert np.isnan(found.log_singular).any() and not found.converged.any() and len(found.sweeps) == 1
    assert found.doubt == "1 of 1 rows have not converged" and np.isnan(found.log_condition).all()


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


# --- the parts, in closed form ----------------------------------------------------------------------------------------


def test_the_error_is_the_residual_or_its_square_by_the_gap():
    """Two vectors beside each other: gap 1 less the second's own residual."""
    residual, log = np.asarray([[0.1, 0.2, 0.3]]), np.asarray([[3.0, 2.0, -1.0]])
    rho = np.sqrt([0.1**2, 0.1**2 + 0.2**2, 0.1**2 + 0.2**2 + 0.3**2])
    gaps = np.asarray([1.0, 3.0]) - rho[1:]
    blocks = [*(rho[:2] ** 2 / (1 - np.exp(-2 * gaps))), rho[2]]
    assert blocks[0] < blocks[1] < blocks[2]
    np.testing.assert_allclose(file._error(residual, log)[0], blocks, rtol=8 * EPS["float64"])
    # A gap that the next one's residual closes says nothing, and neither does one of two zeros.
    np.testing.assert_array_equal(file._error(np.asarray([[0.1, 2.0]]), log[:, :2]), [[0.1, math.hypot(0.1, 2.0)]])
    zeros = file._error(np.asarray([[0.5, 0.0, 0.0]]), np.asarray([[0.0, -np.inf, -np.inf]]))
    np.testing.assert_allclose(zeros[0], [0.25, 0.5, 0.5], rtol=8 * EPS["float64"])


def test_a_block_with_a_large_gap_bounds_the_values_in_it():
    """Two equal values: the gap between them is 0, that after them is large."""
    found = file._error(np.asarray([[1e-3, 1e-3, 1e-3]]), np.asarray([[0.0, 0.0, -40.0]]))[0]
    assert found[0] == found[1] == pytest.approx(2e-6, rel=8 * EPS["float64"]) and found[2] == pytest.approx(
        math.sqrt(3e-6)
    )


@pytest.mark.parametrize("x", [1e-1, 1e-4, 1e-7])
@pytest.mark.parametrize("y", [0.0, 0.5, 0.9])
def test_the_error_bounds_that_of_a_two_by_two(x, y):
    """[[1, x], [0, y]]: sigma_1^2 is 1 + x^2 / (1 - y^2) up to x^4, and the residual of (e_1, e_1) is x."""
    true = math.log(np.linalg.svd([[1.0, x], [0.0, y]], compute_uv=False)[0])
    with np.errstate(divide="ignore"):
        found = file._error(np.asarray([[x, 0.0]]), np.log([[1.0, y]]))[0, 0]
    assert true - 4 * EPS["float64"] <= found <= x
    if x < 1 - y:  # else the residual closes the gap
        assert found <= max(4 * true, 32 * EPS["float64"])


class _Images:
    """What a sweep of orthonormal vectors leaves: images q (1, m, H) and the triangle r."""

    def __init__(self, r):
        self.log, self.unit = np.zeros((1, len(r))), np.asarray(r)[None]


def residual_of(r, q, wanted, log):
    chain = given(np.zeros((1, 1, 3, 3)))
    return file._residual(np.asarray(q)[None], _Images(r), np.asarray(wanted)[None], np.asarray(log)[None], chain)[0]


def test_the_residual_of_images_that_are_as_expected_is_0():
    q = np.eye(3)
    assert residual_of(np.diag([4.0, 2.0, 1.0]), q, q[:2], np.log([4.0, 2.0])).tolist() == [0.0, 0.0]
    # The sign of a factor's diagonal is arbitrary.
    signs = np.diag([-1.0, 1.0, 1.0])
    assert residual_of(signs @ np.diag([4.0, 2.0, 1.0]), q, (signs @ q)[:2], np.log([4.0, 2.0])).tolist() == [0, 0]
    assert residual_of(np.diag([-4.0, 2.0, 1.0]), q, q[:2], np.log([4.0, 2.0])).tolist() == [2.0, 0.0]


def test_the_parts_of_a_residual():
    """A turn, a stretch and a share of another vector, each alone: 3/5 and 4/5, e^0.1, and 0.3 of 4."""
    q = np.eye(3)
    turned_by = residual_of(np.diag([4.0, 2.0, 1.0]), q, [[0.8, 0.6, 0.0], q[1]], np.log([4.0, 2.0]))
    np.testing.assert_allclose(turned_by, [math.hypot(0.2, 0.6), 0.0], rtol=8 * EPS["float64"])
    stretched = residual_of(np.diag([4.0, 2.0, 1.0]), q, q[:2], np.log([4.0, 2.0 * math.exp(0.1)]))
    # ln 2 is 0.69: the difference of the logarithms has a rounding of an eps of that.
    np.testing.assert_allclose(stretched, [0.0, 0.1], rtol=0, atol=4 * EPS["float64"])
    mixed = residual_of([[4.0, 1.2, 9.0], [0.0, 2.0, 9.0], [0.0, 0.0, 1.0]], q, q[:2], np.log([4.0, 2.0]))
    np.testing.assert_allclose(mixed, [0.0, 0.3], rtol=8 * EPS["float64"])
    mixed = residual_of([[1.0, 0.3, 9.0], [0.0, 1.0, 9.0], [0.0, 0.0, 1.0]], q, q[:2], [0.0, 0.0])
    np.testing.assert_allclose(mixed, [0.0, 0.3], rtol=8 * EPS["float64"])


def test_zeros_agree_and_a_zero_and_a_number_do_not():
    q, none = np.eye(3), -np.inf
    r = np.diag([4.0, 0.0, 1.0])
    assert residual_of(r, q, [[1.0, 0, 0], [0, 0, 0]], [math.log(4.0), none]).tolist() == [0.0, 0.0]
    assert residual_of(r, q, q[:2], np.log([4.0, 2.0])).tolist() == [0.0, np.inf]
    assert residual_of(np.diag([4.0, 2.0, 1.0]), q, q[:2], [math.log(4.0), none]).tolist() == [0.0, np.inf]


def test_a_larger_frame_has_the_old_one_first_and_is_orthonormal():
    chain = given(np.zeros((1, 2, 9, 9)))
    rng = np.random.default_rng(0)
    first, known = (np.linalg.qr(rng.standard_normal((2, 9, n)))[0].swapaxes(1, 2) for n in (2, 4))
    frame = file._next_frame(first, [known[:, :2], known[:, 2:]], 16, chain)
    assert frame.vectors.shape == (2, 6, 9) and frame.piece == 16 and frame.alive.all() and frame.alive.shape == (2, 6)
    np.testing.assert_array_equal(frame.vectors[:, :2], first)
    gram = frame.vectors @ frame.vectors.swapaxes(1, 2)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(6), gram.shape), rtol=0, atol=32 * EPS["float64"])
    # It spans the known ones, too: nothing of them is left outside.
    rest = known - known @ frame.vectors.swapaxes(1, 2) @ frame.vectors
    assert np.abs(rest).max() <= 32 * EPS["float64"]
    np.testing.assert_array_equal(file._next_frame(first, [], 4, chain).vectors, first)
    whole = np.broadcast_to(np.eye(9), (2, 9, 9))
    assert file._next_frame(whole, [known], 4, chain).vectors.shape == (2, 9, 9)


def test_the_condition_is_that_of_the_first_and_the_last():
    logs = np.asarray([[3.0, 2.0, -1.0], [1.0, 0.0, -np.inf], [-np.inf, -np.inf, -np.inf]])
    assert file._condition(logs).tolist() == [4.0, np.inf, np.inf]


def test_what_is_said_of_rows_that_have_not_converged():
    w = gaussian(40, 40)
    m = np.stack([w, np.eye(40), w])[None]
    both = [product(still(w, 1, batch=3).lane(), k=1, max_sweeps=n) for n in (2, 100)]
    assert [p.doubt for p in both] == ["3 of 3 rows have not converged", None]
    # The unit matrix is found at once; the others go on, and its number stays as it is.
    series, error, _, _ = singular_values(given(m), 1, tolerance=TOLERANCE)
    assert (error <= TOLERANCE).all() and np.abs(series[:, 1]).max() <= rounding(1, 40)


def test_the_default_tolerance_grows_with_the_square_root_of_the_steps():
    for dtype, steps, factor in (
        ("float64", 1, 1.0),
        ("float64", 100, 1.0),
        ("float64", 400, 2.0),
        ("float32", 900, 3.0),
    ):
        found = product(still(np.eye(2), steps, dtype=dtype).lane(), k=1)
        assert found.tolerance == math.sqrt(EPS[dtype]) * factor
    ragged = seen(network(np.eye(2)), np.zeros((400, 3, 2)), lengths=[400, 7, 0])
    found = product(ragged.lane(), k=1)
    assert found.tolerance == 2 * TOLERANCE and found.steps.tolist() == [400, 7, 0] and found.converged.all()
    assert product(ragged.lane(), k=1, rows=[1]).tolerance == TOLERANCE


def test_sweeps_of_rows_that_need_different_numbers_of_them():
    """A row of no steps is the unit matrix, found in two sweeps; its number is repeated for the rest."""
    record = seen(network(gaussian(40, 40)), np.zeros((1, 2, 40)), lengths=[0, 1])
    found = product(record.lane(), k=1)
    assert len(found.sweeps) > 6 and found.sweeps.shape[1:] == (2, 1)
    assert (found.sweeps[:, 0] == 0).all() and (np.diff(found.sweeps[:, 1, 0]) >= -rounding(1, 40)).all()
    np.testing.assert_array_equal(found.sweeps[-1], found.log_singular)
    assert found.disagreement.tolist() == [[0.0], [abs(found.sweeps[-1, 1, 0] - found.sweeps[-2, 1, 0])]]
    assert len(product(still(np.eye(2), 3).lane(), k=1).sweeps) == 2
    none = product(seen(network(np.eye(3)), np.zeros((4, 0, 3))).lane(), k=2)
    assert none.sweeps.shape == (0, 0, 2) and none.error.shape == (0, 2) and none.doubt is None and none.left is None
