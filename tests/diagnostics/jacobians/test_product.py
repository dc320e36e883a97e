"""Products of Jacobians, Lyapunov spectra and horizons: against closed forms, mpmath and sums written out."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest

import rnncore
from rnncore import diagnostics
from rnncore.diagnostics.gradient import lags
from rnncore.diagnostics.gradient.horizon import horizon, theil_sen
from rnncore.diagnostics.jacobians import sweep
from rnncore.diagnostics.jacobians.lyapunov import exponents, kaplan_yorke, lyapunov
from rnncore.diagnostics.jacobians.product import product, singular_values
from rnncore.diagnostics.jacobians.sweep import JacobianChain, advance, orthonormal, start_frame
from rnncore.diagnostics.numerics.triangle import Triangle
from rnncore.errors import ArgumentTypeError, ArgumentValueError


FLOAT64 = ("numpy", "torch", "strict")
LONG = 10_000
# Two sweeps of 10,000 steps in float64: roundings of 1e-16 each, at a loss of a quarter of the digits in a piece.
CLOSE = 1e-9


def network(w, f="identity", *, backend="numpy", dtype="float64", w_ih=None, bias=None, **options):
    """A network of one layer with this weight_hh, and its inputs' weights the unit matrix by default."""
    h = len(w)
    rnn = rnncore.RNN(h, h, nonlinearity=f, backend=backend, dtype=dtype, rng=0, **options)
    numbers = {n: np.zeros(p.shape) for n, p in rnn.state_dict().items()}
    for tail in ("", "_reverse") if rnn.spec.bidirectional else ("",):
        numbers["weight_hh_l0" + tail] = w
        numbers["weight_ih_l0" + tail] = np.eye(h) if w_ih is None else w_ih
        numbers["bias_hh_l0" + tail] = np.zeros(h) if bias is None else bias
    rnn.load_state_dict({n: on(rnn, v) for n, v in numbers.items()})
    return rnn


def on(rnn, x):
    return rnncore.get_backend(rnn.backend).asarray(np.asarray(x, float), dtype=rnn.dtype, device=rnn.device)


def seen(rnn, x, h0=None, lengths=None):
    return diagnostics.record(rnn, on(rnn, x), None if h0 is None else on(rnn, h0), lengths)


def still(w, steps, batch=1, **options):
    """A linear network's record: J_t = W at every step."""
    return seen(network(np.asarray(w, float), **options), np.zeros((steps, batch, len(w))))


def driven(backend="numpy", *, f="tanh", h=5, steps=40, batch=2, seed=0, lengths=None, bidirectional=False, gain=1.5):
    """A network whose f' differs from step to step, so that its Jacobians do not commute."""
    rng = np.random.default_rng(seed)
    w = gain * rng.standard_normal((h, h)) / math.sqrt(h)
    rnn = network(w, f, backend=backend, bidirectional=bidirectional)
    return seen(rnn, 2 * rng.standard_normal((steps, batch, h)), lengths=lengths), w


def jacobians(record, w, row, direction=0):
    """In the direction's own order, by NumPy."""
    d = record.host(record.lane(0, direction).slope())[: record.lengths[row], row]
    return [np.diag(v) @ w for v in (d[::-1] if direction else d)]


def exact_log_singular(matrices, digits=400):
    with mpmath.workdps(digits):
        p = mpmath.eye(len(matrices[0]))
        for m in matrices:
            p = mpmath.matrix(m.tolist()) * p
        values = mpmath.svd_r(p, compute_uv=False)
        return np.array(sorted((float(mpmath.log(v)) for v in values), reverse=True))


def given(m, backend="numpy", dtype="float64"):
    rnn = rnncore.RNN(1, 1, backend=backend, dtype=dtype, rng=0)
    return JacobianChain.of_matrices(on(rnn, m), engine=rnn._call.engine)


# --- product


@pytest.mark.parametrize("backend", FLOAT64)
def test_scaled_orthogonal_over_ten_thousand_steps(backend):
    w = 0.9 * np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
    found = product(still(w, LONG, backend=backend).lane(), k=4)
    np.testing.assert_allclose(found.log_singular[0], LONG * math.log(0.9), rtol=0, atol=CLOSE)
    assert found.converged.all() and abs(found.log_condition[0]) < CLOSE


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_the_same_in_float32(backend):
    w = (0.9 * np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]).astype(np.float32)
    steps = 500 if backend == "jax" else LONG
    found = product(still(w, steps, backend=backend, dtype="float32").lane(), k=3)
    # The rounded W is orthogonal to 1e-7: its powers' singular values are its determinant's root, to as much per step.
    want = np.linalg.slogdet(w.astype(float))[1] / 3
    assert np.abs(found.log_singular[0] / steps - want).max() < 1e-6
    assert found.converged.all()


@pytest.mark.parametrize("backend", FLOAT64)
def test_a_condition_number_of_ten_to_the_3053(backend):
    """Diagonal W: ln sigma_i = T ln |w_i| exactly, far beyond the dtype's range at both ends."""
    ratio = 10 ** (3053.5137 / LONG)
    w = np.diag([math.sqrt(ratio), -1.0, 1 / math.sqrt(ratio)])
    found = product(still(w, LONG, backend=backend).lane(), k=3)
    assert abs(found.log_condition[0] / math.log(10) - 3053.5137) < 1e-8
    np.testing.assert_allclose(found.log_singular[0], LONG * np.log(np.abs(np.diag(w))), rtol=0, atol=1e-8)


@pytest.mark.parametrize("steps", [1, 2, 7, 300])
def test_powers_of_a_random_matrix(steps):
    w = np.random.default_rng(3).standard_normal((5, 5)) / 2
    found = product(still(w, steps).lane(), k=5)
    np.testing.assert_allclose(found.log_singular[0], exact_log_singular([w] * steps, 900), rtol=0, atol=CLOSE)


@pytest.mark.parametrize("steps", [10, LONG])
def test_a_jordan_block_grows_as_a_polynomial(steps):
    """(a I + N)^T has the entries C(T, j) a^(T - j): sigma_1 is e^(2 ln T) times larger than the eigenvalues tell."""
    a = 0.99
    found = product(still(a * np.eye(3) + np.diag([1.0, 1.0], 1), steps).lane(), k=3)
    with mpmath.workdps(80):
        entry = [mpmath.binomial(steps, j) * mpmath.mpf(a) ** (steps - j) for j in range(3)]
        p = mpmath.matrix([[entry[0], entry[1], entry[2]], [0, entry[0], entry[1]], [0, 0, entry[0]]])
        want = sorted((float(mpmath.log(s)) for s in mpmath.svd_r(p, compute_uv=False)), reverse=True)
    # Rounding of a relative 1e-16 in W moves the eigenvalues of a Jordan block by its cube root times what T makes of it.
    np.testing.assert_allclose(found.log_singular[0], want, rtol=0, atol=1e-7)
    assert found.log_singular[0, 0] > steps * math.log(a) + 2


@pytest.mark.parametrize("backend", FLOAT64)
def test_a_nilpotent_recurrence_dies_after_as_many_steps_as_it_has_units(backend):
    w = np.diag([2.0, 3.0, 5.0], -1)
    want = {1: [5, 3, 2, 0], 2: [15, 6, 0, 0], 3: [30, 0, 0, 0], 4: [0, 0, 0, 0]}
    for steps, values in want.items():
        found = product(still(w, steps, backend=backend).lane(), k=4)
        with np.errstate(divide="ignore"):
            np.testing.assert_allclose(found.log_singular[0], np.log(values), rtol=0, atol=1e-12)
        assert found.log_condition[0] == np.inf and found.converged.all()


@pytest.mark.parametrize("direction", [0, 1])
@pytest.mark.parametrize("backend", FLOAT64)
def test_order_of_the_factors(backend, direction):
    """J_t from the left as time goes on: the other order has other singular values, and a network tells them apart."""
    record, w = driven(backend, bidirectional=True, lengths=[40, 23])
    found = product(record.lane(direction=direction), k=3)
    for row in (0, 1):
        right = jacobians(record, w, row, direction)
        np.testing.assert_allclose(found.log_singular[row], exact_log_singular(right)[:3], rtol=0, atol=CLOSE)
        assert np.abs(exact_log_singular(right[::-1])[:3] - found.log_singular[row]).max() > 0.1
    assert found.steps.tolist() == [40, 23]


def test_one_sweep_of_log_diagonals_is_not_the_singular_values():
    record, w = driven(h=4, steps=60, batch=1)
    chain = JacobianChain.of_network(record.lane().slope(), record.weights[0][0].weight_hh, engine=record.engine)
    sums = np.zeros((1, 4))

    def add(r):
        sums[:] += np.log(np.abs(np.diagonal(r, axis1=1, axis2=2)))

    advance(chain, start_frame(chain, 4, 0), 0, 60, add)
    want = exact_log_singular(jacobians(record, w, 0))
    assert np.abs(sums[0] - want).max() > 0.1
    np.testing.assert_allclose(product(record.lane(), k=4).log_singular[0], want, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("backend", FLOAT64)
def test_given_matrices_forward_and_backward(backend):
    m = np.random.default_rng(1).standard_normal((80, 2, 6, 6))
    series, left, right = singular_values(given(m, backend), 2, tolerance=CLOSE)
    for row in (0, 1):
        want = exact_log_singular(list(m[:, row]))[:2]
        np.testing.assert_allclose(series[-1][row], want, rtol=0, atol=CLOSE)
    assert left.shape == right.shape == (2, 6, 2)


def test_sweeps_go_on_until_they_agree():
    """Few steps and more directions than are carried: the first sweeps are wrong, and the evidence says so."""
    w = np.random.default_rng(2).standard_normal((12, 12))
    record, want = still(w, 2), np.log(np.linalg.svd(w @ w, compute_uv=False))[:2]
    short = product(record.lane(), k=2, max_sweeps=2)
    assert not short.converged[0] and np.abs(short.log_singular[0] - want).max() > 1e-4
    found = product(record.lane(), k=2, max_sweeps=60, tolerance=1e-12)
    assert found.converged[0] and 4 < len(found.sweeps) < 60 and found.disagreement.max() <= 1e-12
    np.testing.assert_allclose(found.log_singular[0], want, rtol=0, atol=1e-10)
    # What a sweep sees inside of the subspace is never more than the truth.
    assert (found.sweeps[:, 0] <= want + 1e-12).all()


@pytest.mark.parametrize("backend", FLOAT64)
@pytest.mark.parametrize("max_sweeps", [2, 3])
def test_singular_vectors(backend, max_sweeps):
    record, w = driven(backend, steps=8, lengths=[8, 5])
    # An impossible tolerance, so that the last sweep is the one asked for: backward or forward.
    found = product(record.lane(), k=5, vectors=True, rows=[1, 0], max_sweeps=max_sweeps, tolerance=-1.0)
    for place, row in enumerate((1, 0)):
        p = np.linalg.multi_dot([*jacobians(record, w, row)[::-1], np.eye(5)])
        left, right = (record.host(v)[place] for v in (found.left, found.right))
        sigma = np.exp(found.log_singular[place])
        np.testing.assert_allclose(right.T @ right, np.eye(5), atol=1e-12)
        np.testing.assert_allclose(left.T @ left, np.eye(5), atol=1e-12)
        np.testing.assert_allclose(p @ right, left * sigma, atol=1e-11)
    assert found.rows == (1, 0) and found.steps.tolist() == [5, 8]


def test_a_span_is_part_of_the_whole_and_an_empty_one_is_the_identity():
    record, w = driven(lengths=[40, 12])
    found = product(record.lane(), k=5, span=(10, 30))
    for row, end in ((0, 30), (1, 12)):
        want = exact_log_singular(jacobians(record, w, row)[10:end])
        np.testing.assert_allclose(found.log_singular[row], want, rtol=0, atol=CLOSE)
    assert (product(record.lane(), k=5, span=(20, 20)).log_singular == 0).all()
    assert product(record.lane(), k=2, span=(15, 30)).log_singular[1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("backend", FLOAT64)
def test_orthonormal_without_the_extension(backend):
    rng = np.random.default_rng(0)
    v = rng.standard_normal((3, 4, 6)) * np.array([1e200, 1.0, 1e-200])[:, None, None]
    v[1, 2] = v[1, 0] - 3 * v[1, 1]  # nothing of its own
    v[0, 1] = v[0, 0] + 1e-9 * v[0, 1]  # little of its own: once is not enough
    rnn = rnncore.RNN(1, 1, backend=backend, dtype="float64", rng=0)
    engine = rnn._call.engine
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


def test_no_rows_and_numbers_that_are_none():
    rnn = network(np.eye(3), "tanh")
    empty = seen(rnn, np.zeros((4, 0, 3)))
    assert product(empty.lane(), k=2).log_singular.shape == (0, 2) and lyapunov(empty.lane(), k=2).by_row.shape == (0, 2)
    x = np.zeros((40, 2, 3))
    x[7, 1, 0] = np.nan
    record = seen(rnn, x)
    found, spectrum = product(record.lane(), k=3), lyapunov(record.lane(), k=3)
    assert np.isnan(found.log_singular[1]).any() and not found.converged[1] and np.isnan(spectrum.by_row[1]).any()
    np.testing.assert_allclose(found.log_singular[0], 0, atol=1e-12)
    np.testing.assert_allclose(spectrum.by_row[0], 0, atol=1e-12)
    assert len(empty.map(horizon, *diagnostics.flow(empty, np.zeros((4, 0, 3)), None))[-1][0].gain) >= 1


def test_singular_values_of_a_graded_factor():
    """Rows that differ by e^1000 and two that are nearly parallel, against mpmath."""
    rng = np.random.default_rng(5)
    factors = [np.triu(rng.standard_normal((1, 4, 4))) for _ in range(3)]
    grading = np.exp([300.0, 2.0, 1.9, -300.0])
    factors[1][0] = np.diag(grading)
    triangle = Triangle(1, 4)
    for _ in range(3):
        for f in factors:
            triangle.take(f)
    log, left, right = triangle.singular()
    want = exact_log_singular([f[0] for f in factors] * 3, 3000)
    np.testing.assert_allclose(log[0], want, rtol=1e-12)
    np.testing.assert_allclose(right[0] @ right[0].T, np.eye(4), atol=1e-13)
    np.testing.assert_allclose(left[0] @ left[0].T, np.eye(4), atol=1e-13)


def test_arguments_of_product():
    record, _ = driven()
    for wrong in (
        {"k": 0},
        {"k": 6},
        {"rows": [2]},
        {"span": (3, 41)},
        {"max_sweeps": 1},
    ):
        with pytest.raises(ArgumentValueError, match=next(iter(wrong))):
            product(record.lane(), **wrong)
    with pytest.raises(ArgumentTypeError, match="k"):
        product(record.lane(), k=1.5)
    for place in ({"layer": 1}, {"direction": 1}):
        with pytest.raises(ArgumentValueError, match=next(iter(place))):
            record.lane(**place)


# --- networks with a point to them


def alternating(steps, backend="numpy"):
    """W^2 = 0, and one unit active at a time in turn: the path through them multiplies by 2 or -2 at every step.

    J is 2 e_1 (1, 1) and -2 e_2 (1, 1) in turn, so the product of T is 2^T e_i (1, 1) up to sign: sigma_1 = 2^T sqrt 2.
    """
    w = np.array([[2.0, 2.0], [-2.0, -2.0]])
    x = np.where((np.arange(steps) % 2 == 0)[:, None], [-3.0, 3.0], [-1.0, 0.0])[:, None, :]
    return seen(network(w, "relu", backend=backend), x, np.array([[[1.0, 0.0]]])), w


@pytest.mark.parametrize("backend", FLOAT64)
def test_spectral_radius_0_and_a_gradient_that_doubles_at_every_step(backend):
    record, w = alternating(LONG, backend)
    assert (w @ w == 0).all() and record.host(record.h[0][0]).max() == 1.0
    found = product(record.lane(), k=2)
    np.testing.assert_allclose(found.log_singular[0, 0], LONG * math.log(2) + math.log(2) / 2, rtol=0, atol=CLOSE)
    assert found.log_singular[0, 1] == -np.inf
    spectrum = lyapunov(record.lane(), k=2)
    assert abs(spectrum.exponents[0] - math.log(2)) < 1e-12 and spectrum.exponents[1] == -np.inf
    assert spectrum.predictability == pytest.approx(1.0) and spectrum.sum_residual[0] == 0
    ones = on(model_on(backend), np.ones((1, 2)))
    reach = record.map(horizon, *diagnostics.flow(record, None, [[ones]]))[-1][0]
    assert reach.slope == pytest.approx(math.log(2), abs=1e-9) and reach.lag_small is None


def model_on(backend):
    return rnncore.RNN(1, 1, backend=backend, dtype="float64", rng=0)


@pytest.mark.parametrize("backend", FLOAT64)
def test_a_bounded_relu_network_can_be_chaotic(backend):
    """The tent map of slope a, s -> a relu(s) - 2 a relu(s - 1/2): lambda_1 = ln a and all states in [0, 1]."""
    a, steps = 1.9, 4000
    w = np.array([[a, -2 * a], [a, -2 * a]])
    rnn = network(w, "relu", backend=backend, bias=np.array([0.0, -0.5]))
    record = seen(rnn, np.zeros((steps, 1, 2)), np.array([[[0.3, 0.0]]]))
    h = record.host(record.h[0][0])
    assert h.max() < 1 and np.std(h[-500:, 0, 0]) > 0.1
    found = lyapunov(record.lane(), k=2)
    assert abs(found.exponents[0] - math.log(a)) < 1e-3 and found.exponents[1] == -np.inf
    assert abs(product(record.lane(), k=1).log_singular[0, 0] / steps - math.log(a)) < 1e-3


# --- lyapunov


@pytest.mark.parametrize("backend", FLOAT64)
def test_spectrum_of_linear_networks(backend):
    diagonal = np.diag([1.05, -0.9, 0.5])
    found = lyapunov(still(diagonal, LONG, backend=backend).lane(), k=3, burn_in=200)
    np.testing.assert_allclose(found.exponents, np.log(np.abs(np.diag(diagonal))), atol=1e-12)
    orthogonal = 0.7 * np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
    found = lyapunov(still(orthogonal, 1000, backend=backend).lane(), k=4)
    np.testing.assert_allclose(found.exponents, math.log(0.7), atol=1e-13)
    assert np.abs(found.sum_residual).max() < 1e-12 and found.entropy_rate == 0 and found.predictability == math.inf


@pytest.mark.parametrize("backend", FLOAT64)
def test_order_of_the_factors_in_the_spectrum(backend):
    """One window and no burn-in: ln ||J_T ... J_1 q|| / T for the known q it starts from, in no other order."""
    record, w = driven(backend, batch=1)
    q = start_frame(given(np.zeros((1, 1, 5, 5))), 1, 0).vectors[0, 0]

    def size(factors):
        v = q
        for m in factors:
            v = m @ v
        return math.log(np.linalg.norm(v)) / len(factors)

    found = lyapunov(record.lane(), burn_in=0, windows=1)
    factors = jacobians(record, w, 0)
    assert found.exponents[0] == pytest.approx(size(factors), abs=1e-13)
    assert abs(found.exponents[0] - size(factors[::-1])) > 1e-3
    assert found.windows.shape == (1, 1, 1) and np.isnan(found.interval).all()


def test_products_of_gaussian_matrices():
    """Newman (1986), "The distribution of Lyapunov exponents: exact results for random matrices", n = 2.

    At 99.9 %, so that one seed of a thousand would fail. One step has a deviation of about 1, the mean of 23,200 of 0.007:
    the interval is 0.05 wide, and a wrong spectrum far outside.
    """
    want = np.array([0.0579658, -0.6351814])
    m = np.random.default_rng(0).standard_normal((3000, 8, 2, 2))
    windows, mean = exponents(given(m), 2, burn_in=100, windows=20)
    from rnncore.diagnostics.jacobians.lyapunov import _interval

    low, high = _interval(windows.reshape(-1, 2), mean.mean(axis=0), 0.999)
    assert (low < want).all() and (want < high).all() and (high - low < 0.06).all()


def test_the_interval_is_students():
    from scipy import stats

    x = np.random.default_rng(0).standard_normal((20, 1))
    from rnncore.diagnostics.jacobians.lyapunov import _interval

    want = stats.t.interval(0.95, 19, loc=x.mean(), scale=stats.sem(x[:, 0]))
    np.testing.assert_allclose(_interval(x, x.mean(axis=0), 0.95)[:, 0], want, atol=1e-4)


def test_a_linear_gaussian_network_has_the_circular_law():
    """lambda(i/N) = ln g + 0.5 ln(1 - i/N) for g < 1; at N = 100 eigenvalues are spread by 1/sqrt N, most at the edge."""
    n, g, k = 100, 0.8, 40
    w = g * np.random.default_rng(4).standard_normal((n, n)) / math.sqrt(n)
    found = lyapunov(still(w, 1200).lane(), k=k)
    eigenvalues = np.sort(np.log(np.abs(np.linalg.eigvals(w))))[::-1][:k]
    # A frame settles between neighbours at the rate of their distance, so of single ones only the mean is sharp.
    assert abs(found.exponents.mean() - eigenvalues.mean()) < 2e-3
    assert np.abs(found.exponents - eigenvalues).max() < 0.02
    law = math.log(g) + 0.5 * np.log(1 - (np.arange(k) + 0.5) / n)
    assert np.abs(found.exponents - law).max() < 1 / math.sqrt(n) and np.abs(found.exponents - law).mean() < 0.05


def test_a_random_tanh_network_of_gain_2_is_chaotic():
    """lambda_1 of the mean field, 0.5 ln(g^2 E f'^2) with q = g^2 E f^2 (Molgedey, Schuchhardt and Schuster 1992).

    At N = 200 networks differ from each other and from the limit by about 0.03.
    """
    n, g = 200, 2.0
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    q = 1.0
    for _ in range(200):
        q = g**2 * (weights * np.tanh(math.sqrt(q) * nodes) ** 2).sum()
    limit = 0.5 * math.log(g**2 * (weights / np.cosh(math.sqrt(q) * nodes) ** 4).sum())
    rng = np.random.default_rng(0)
    rnn = network(g * rng.standard_normal((n, n)) / math.sqrt(n), "tanh")
    record = seen(rnn, np.zeros((1500, 2, n)), rng.standard_normal((1, 2, n)))
    found = lyapunov(record.lane(), k=3)
    assert abs(found.exponents[0] - limit) < 0.05, (found.exponents, limit)
    assert found.interval[0, 0] > 0 and found.entropy_rate > 0 and math.isnan(found.kaplan_yorke)
    assert found.predictability == pytest.approx(math.log(2) / found.exponents[0])


# Of one network of 4,096 tanh units each, W ~ N(0, g^2 / N), over 4,000 steps and more: the largest exponent, and by unit the
# share of positive ones, the entropy rate and the Kaplan-Yorke dimension. From the data of D. G. Clark, "Lyapunov spectrum of
# random neural networks" (map with delta = 1, which has the Jacobians of h = tanh(W h)).
PUBLISHED = {
    2.0: (0.15425, 0.13257, 0.010608, 0.25659),
    3.0: (0.30958, 0.15259, 0.025106, 0.28717),
    5.0: (0.53118, 0.13379, 0.038912, 0.24594),
}


@pytest.mark.parametrize("g", PUBLISHED)
def test_published_spectra_of_chaotic_networks(g):
    """Of 9 networks of 256 units the numbers are 0.93 to 1.03 of those of the large ones, near which they crowd as N grows."""
    n, k = 256, 96
    rng = np.random.default_rng(0)
    rnn = network(g * rng.standard_normal((n, n)) / math.sqrt(n), "tanh")
    found = lyapunov(seen(rnn, np.zeros((1100, 1, n)), rng.standard_normal((1, 1, n))).lane(), k=k, burn_in=300)
    largest, share, entropy, dimension = PUBLISHED[g]
    assert found.exponents[0] == pytest.approx(largest, rel=0.1)
    assert (found.exponents > 0).sum() / n == pytest.approx(share, rel=0.1)
    assert found.entropy_rate / n == pytest.approx(entropy, rel=0.1)
    assert found.kaplan_yorke / n == pytest.approx(dimension, rel=0.1)


@pytest.mark.parametrize("direction", [0, 1])
def test_the_sum_of_all_exponents_is_the_mean_log_determinant(direction):
    record, _ = driven(steps=300, bidirectional=True, lengths=[300, 120], gain=1.0)
    found = lyapunov(record.lane(direction=direction), k=5, burn_in=30)
    assert found.sum_residual.max() < 1e-11 and found.steps.tolist() == [270, 90]
    np.testing.assert_allclose(found.windows.mean(axis=0), found.by_row, atol=0.2)


def test_dimension():
    """The Henon map: 1 + 0.41922 / 1.62319."""
    assert kaplan_yorke(np.array([0.41922, -1.62319]), complete=True) == pytest.approx(1.25827, abs=1e-5)
    assert kaplan_yorke(np.array([-0.1, -0.2]), complete=True) == 0
    assert kaplan_yorke(np.array([0.2, 0.1]), complete=True) == 2
    assert math.isnan(kaplan_yorke(np.array([0.2, 0.1]), complete=False))
    assert kaplan_yorke(np.array([0.5, -np.inf]), complete=False) == 1


def test_a_row_without_steps_and_dead_units():
    rnn = network(np.eye(2), "relu", bias=np.array([1.0, -1.0]))
    found = lyapunov(seen(rnn, np.zeros((50, 3, 2)), lengths=[50, 0, 20]).lane(), k=2)
    assert np.isnan(found.by_row[1]).all() and found.exponents.tolist() == [0.0, -np.inf]
    assert found.interval[:, 1].tolist() == [-np.inf, -np.inf]
    for wrong in ({"burn_in": 20}, {"windows": 0}, {"confidence": 1.0}):
        with pytest.raises(ArgumentValueError, match=next(iter(wrong))):
            lyapunov(seen(rnn, np.zeros((50, 3, 2)), lengths=[50, 0, 20]).lane(), **wrong)


# --- horizon


def scalar(w, steps, backend="numpy", dtype="float64"):
    """h = w h + (1 - w), at its fixed point 1; the loss on the last state."""
    rnn = network(np.array([[w]]), backend=backend, dtype=dtype, w_ih=np.array([[1 - w]]))
    record = seen(rnn, np.ones((steps, 1, 1)), np.ones((1, 1, 1)))
    return record.map(horizon, *diagnostics.flow(record, None, [[on(rnn, np.ones((1, 1)))]]))[-1][0]


@pytest.mark.parametrize("backend", FLOAT64)
def test_truncation_of_a_geometric_series(backend):
    found = scalar(0.9, 200, backend)
    want = (0.9 ** np.arange(201) - 0.9**200) / (1 - 0.9**200)
    np.testing.assert_allclose(found.bias, want, rtol=1e-12, atol=1e-15)
    assert (found.k_10, found.k_1) == (22, 44)
    assert round(100 * found.bias[22], 3) == 9.848 and round(100 * found.bias[44], 3) == 0.970
    assert found.slope == pytest.approx(math.log(0.9)) and found.e_fold == pytest.approx(-1 / math.log(0.9))
    assert found.lag_small == 66 and found.lag_eps is None and found.complete


def test_contributions_that_cancel_are_signed():
    """w = -0.9: the lags alternate, and norms that are added up would ask for more steps than it takes."""
    found = scalar(-0.9, 200)
    r = -0.9
    want = np.abs((r ** np.arange(201) - r**200) / (1 - r**200))
    np.testing.assert_allclose(found.bias, want, rtol=1e-11, atol=1e-15)
    assert scalar(0.9, 200, "jax", "float32").k_10 == 22


@pytest.mark.parametrize("backend", FLOAT64)
def test_lags_of_torchs_default_and_of_ten_thousand_steps(backend):
    """g = 1/sqrt 3: 1e-3 at lag 13, float32's eps at lag 30; the log gain is exact to the end, at e^-5493."""
    w = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0] / math.sqrt(3)
    rnn = network(w, backend=backend, dtype="float64")
    record = seen(rnn, np.zeros((LONG, 1, 4)))
    found = record.map(horizon, *diagnostics.flow(record, None, [[on(rnn, np.ones((1, 4)))]]))[-1][0]
    np.testing.assert_allclose(found.gain[:, 0], -0.5 * math.log(3) * np.arange(LONG + 1), rtol=1e-12)
    assert found.lag_small == 13 and found.lag_eps == math.ceil(52 * math.log(2) / (0.5 * math.log(3)))
    if backend != "strict":
        rnn = network(w, backend=backend, dtype="float32")
        record = seen(rnn, np.zeros((50, 1, 4)))
        assert record.map(horizon, *diagnostics.flow(record, None, [[on(rnn, np.ones((1, 4)))]]))[-1][0].lag_eps == 30


@pytest.mark.parametrize("direction", [0, 1])
@pytest.mark.parametrize("backend", FLOAT64)
def test_losses_at_every_step_against_sums_written_out(backend, direction):
    steps, batch, lengths = 12, 3, (12, 7, 0)
    record, w = driven(backend, h=4, steps=steps, batch=batch, lengths=lengths, bidirectional=True)
    u = np.random.default_rng(9).standard_normal((steps, batch, 8))
    found = record.map(horizon, *diagnostics.flow(record, on(model_on(backend), u), None))[-1][direction]
    lane = record.lane(0, direction)
    d, before = lane.host(lane.slope()), lane.host(lane.previous())
    contribution, size, sent = np.zeros((steps, 4, 4)), np.zeros((steps, batch)), np.zeros((steps, batch))
    for b, n in enumerate(lengths):
        order = range(n) if not direction else range(n - 1, -1, -1)
        for t in range(n):
            v = u[t, b, 4 * direction : 4 * direction + 4]
            here = list(order).index(t)
            for lag in range(here + 1):
                s = list(order)[here - lag]
                sent[lag, b] += (u[t, b, 4 * direction : 4 * direction + 4] ** 2).sum()
                size[lag, b] += (v**2).sum()
                contribution[lag] += np.outer(v * d[s, b], before[s, b])
                v = (v * d[s, b]) @ w
    whole = contribution.sum(axis=0)
    want = [np.linalg.norm(contribution[k:].sum(axis=0)) / np.linalg.norm(whole) for k in range(steps + 1)]
    np.testing.assert_allclose(found.bias, want, atol=1e-13)
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = 0.5 * np.log(size / sent)  # of the losses that have the lag
    np.testing.assert_allclose(found.gain[:, 0], gain[:, 0], atol=1e-12)
    np.testing.assert_allclose(found.gain[:7, 1], gain[:7, 1], atol=1e-12)
    assert np.isnan(found.gain[7:, 1]).all() and np.isnan(found.gain[:, 2]).all() and found.complete


@pytest.mark.parametrize("direction", [0, 1])
@pytest.mark.parametrize("lengths", [None, [30, 11]])
def test_both_ways_say_the_same_of_a_loss_of_the_last_state(direction, lengths):
    record, _ = driven(steps=30, lengths=lengths, bidirectional=True)
    last = np.random.default_rng(0).standard_normal((2, 5))
    flow, deltas = diagnostics.flow(record, None, [[last, last]])
    found = record.map(horizon, flow, deltas)[-1][direction]
    assert found.losses == 1
    gain, bias, _ = lags.follow_all(lags.Lags(record.lane(0, direction), deltas[0][direction]), 30)
    np.testing.assert_allclose(bias.bias, found.bias[: len(bias.bias)], atol=1e-13)
    # What reaches h_0 is a lag of its own only where it is known apart.
    own = np.arange(len(gain))[:, None] < np.asarray(record.lengths)[None, :]
    np.testing.assert_allclose(gain[own], found.gain[: len(gain)][own], atol=1e-11)
    assert np.isnan(gain[~own]).all()


def test_lags_that_no_longer_matter_are_not_followed():
    record, _ = driven(steps=400, gain=0.3)
    flow, deltas = diagnostics.flow(record, np.ones((400, 2, 5)), None)
    found = record.map(horizon, flow, deltas)[-1][0]
    assert not found.complete and len(found.gain) < 80 and found.lag_eps is not None
    # What is left of the gradient once every lag is subtracted is the rounding of sums of T * B products. Summed in any
    # order, n products are off by at most n eps times the sum of their magnitudes (Higham 2002, section 3.1): once for
    # the gradient, and once for all the lags together.
    delta = deltas[0][0].values * np.exp(deltas[0][0].log)[..., None]
    delta, before = delta.reshape(-1, 5), record.lane().previous().reshape(-1, 5)
    magnitudes = np.linalg.norm(np.abs(delta).T @ np.abs(before)) / np.linalg.norm(delta.T @ before)
    assert found.bias[-1] < 2 * len(delta) * np.finfo(float).eps * magnitudes
    assert len(record.map(horizon, flow, deltas, max_lag=5)[-1][0].gain) == 6


def test_slope():
    assert theil_sen(np.array([0.0, -2.0, -np.inf, -6.0, np.nan])) == pytest.approx(-2.0)
    assert theil_sen(-0.1 * np.arange(5000.0)) == pytest.approx(-0.1)
    assert math.isnan(theil_sen(np.array([1.0])))


# --- backends


@pytest.mark.parametrize("f", ["tanh", "relu"])
def test_backends_agree(f):
    """The same numbers in float64 on three libraries, with weights, inputs and lengths that are alike."""
    made = []
    for backend in FLOAT64:
        record, _ = driven(backend, f=f, h=6, steps=120, lengths=[120, 77], gain=1.2)
        u = on(model_on(backend), np.ones((120, 2, 6)))
        spectrum, reach = lyapunov(record.lane(), k=3), record.map(horizon, *diagnostics.flow(record, u, None))[-1][0]
        made.append(
            (product(record.lane(), k=3).log_singular, spectrum.exponents, spectrum.interval, reach.median, reach.bias)
        )
    for other in made[1:]:
        for a, b in zip(made[0], other, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=CLOSE)


def test_on_jax():
    w = 0.8 * np.random.default_rng(0).standard_normal((4, 4))
    made = []
    for backend in ("jax", "numpy"):
        record = still(w, 64, backend=backend, dtype="float32")
        made.append((product(record.lane(), k=2).log_singular, lyapunov(record.lane(), k=2, windows=2).exponents))
    # float32: 64 steps at 1e-5 nats each, far below the sizes of tens.
    np.testing.assert_allclose(made[0][0], made[1][0], atol=1e-3)
    np.testing.assert_allclose(made[0][1], made[1][1], atol=1e-4)
