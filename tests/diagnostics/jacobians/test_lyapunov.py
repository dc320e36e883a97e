"""Lyapunov spectra against closed forms, random-matrix theory and published numbers."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from rnncore.diagnostics.jacobians.lyapunov import exponents, kaplan_yorke, lyapunov
from rnncore.diagnostics.jacobians.product import product
from rnncore.diagnostics.jacobians.sweep import start_frame
from rnncore.errors import ArgumentValueError
from tests.diagnostics.jacobians.networks import FLOAT64, LONG, driven, given, jacobians, network, seen, still
from tests.tools.rounding import EPS, PROMISED


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
    # Not rounding: the first steps, of other directions, are a nat or so in the mean of 4,000.
    assert abs(found.exponents[0] - math.log(a)) < 1e-3 and found.exponents[1] == -np.inf
    assert abs(product(record.lane(), k=1).log_singular[0, 0] / steps - math.log(a)) < 1e-3


@pytest.mark.parametrize("backend", FLOAT64)
def test_spectrum_of_linear_networks(backend):
    diagonal = np.diag([1.05, -0.9, 0.5])
    found = lyapunov(still(diagonal, LONG, backend=backend).lane(), k=3, burn_in=200)
    # Means of sums of up to 10,000 ln 2, which are rounded in each step.
    np.testing.assert_allclose(
        found.exponents, np.log(np.abs(np.diag(diagonal))), rtol=0, atol=LONG * math.log(2) * EPS
    )
    orthogonal = 0.7 * np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
    found = lyapunov(still(orthogonal, 1000, backend=backend).lane(), k=4)
    # As above, and four of them.
    allowed = 1000 * abs(math.log(0.7)) * EPS
    np.testing.assert_allclose(found.exponents, math.log(0.7), rtol=0, atol=allowed)
    assert (
        np.abs(found.sum_residual).max() < 4 * allowed and found.entropy_rate == 0 and found.predictability == math.inf
    )


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
    assert found.exponents[0] == pytest.approx(size(factors), abs=PROMISED * EPS)
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
    # Not rounding: SciPy's own quantile is good to some 1e-12; the rest is a mean of 20 numbers of size 1.
    np.testing.assert_allclose(_interval(x, x.mean(axis=0), 0.95)[:, 0], want, rtol=0, atol=1e-11)


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


@pytest.mark.slow
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
    assert found.predictability == pytest.approx(math.log(2) / found.exponents[0], rel=2 * EPS)


# Of one network of 4,096 tanh units each, W ~ N(0, g^2 / N), over 4,000 steps and more: the largest exponent, and by unit the
# share of positive ones, the entropy rate and the Kaplan-Yorke dimension. From the data of D. G. Clark, "Lyapunov spectrum of
# random neural networks" (map with delta = 1, which has the Jacobians of h = tanh(W h)).
PUBLISHED = {
    2.0: (0.15425, 0.13257, 0.010608, 0.25659),
    3.0: (0.30958, 0.15259, 0.025106, 0.28717),
    5.0: (0.53118, 0.13379, 0.038912, 0.24594),
}


@pytest.mark.slow
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
    # Of 5 exponents, each a mean of 300 logarithms of frames that are orthonormal to a few eps.
    assert found.sum_residual.max() < 5 * 300 * 8 * EPS and found.steps.tolist() == [270, 90]
    np.testing.assert_allclose(found.windows.mean(axis=0), found.by_row, atol=0.2)


def test_dimension():
    """The Henon map: 1 + 0.41922 / 1.62319."""
    assert kaplan_yorke(np.array([0.41922, -1.62319]), complete=True) == pytest.approx(
        1.25827, abs=1e-5
    )  # digits as published
    assert kaplan_yorke(np.array([-0.1, -0.2]), complete=True) == 0
    assert kaplan_yorke(np.array([0.2, 0.1]), complete=True) == 2
    assert math.isnan(kaplan_yorke(np.array([0.2, 0.1]), complete=False))
    assert kaplan_yorke(np.array([0.5, -np.inf]), complete=False) == 1


def test_a_row_without_steps_and_dead_units():
    rnn = network(np.eye(2), "relu", bias=np.array([1.0, -1.0]))
    found = lyapunov(seen(rnn, np.zeros((50, 3, 2)), lengths=[50, 0, 20]).lane(), k=2)
    assert np.isnan(found.by_row[1]).all() and found.exponents.tolist() == [0.0, -np.inf]
    assert found.interval[:, 1].tolist() == [-np.inf, -np.inf]
    for wrong in (
        {"burn_in": 20},
        {"burn_in": -1},
        {"windows": 0},
        {"confidence": 1.0},
        {"confidence": 0},
        {"confidence": 0.0},
    ):
        with pytest.raises(ArgumentValueError, match=next(iter(wrong))):
            lyapunov(seen(rnn, np.zeros((50, 3, 2)), lengths=[50, 0, 20]).lane(), **wrong)


# --- the parts, in closed form ----------------------------------------------------------------------------------------


def alternating(first, second):
    """A chain of 12 steps and two rows: factor `first` in the first half and `second` in the second."""
    m = np.ones((12, 2, 1, 1))
    m[:6], m[6:] = first, second
    return given(m)


def test_exponents_of_windows_are_means_of_their_own_steps():
    windows, mean = exponents(alternating(2.0, 8.0), 1, windows=2)
    two = math.log(2)
    # Sums of 6 logarithms of size 2.
    np.testing.assert_allclose(windows[:, :, 0], [[two, two], [3 * two, 3 * two]], rtol=16 * EPS)
    np.testing.assert_allclose(mean, 2 * two, rtol=16 * EPS)
    windows, mean = exponents(alternating(2.0, 8.0), 1, burn_in=4, windows=3)
    # Steps 4 and 5, then three times 8: edges 4, 7, 9, 12 (8 / 3 steps each, rounded).
    np.testing.assert_allclose(windows[:, 0, 0], [(2 + 3) / 3 * two, 3 * two, 3 * two], rtol=16 * EPS)
    np.testing.assert_allclose(mean, (2 + 18) / 8 * two, rtol=16 * EPS)


def test_without_windows_there_is_one():
    windows, mean = exponents(alternating(2.0, 8.0), 1)
    assert windows.shape == (1, 2, 1)
    np.testing.assert_array_equal(windows[0], mean)


def test_the_burn_in_begins_with_the_first_step():
    """The first factor turns every direction into the first axis, which the others double; the second axis they halve."""
    m = np.broadcast_to(np.diag([2.0, 0.5]), (8, 1, 2, 2)).copy()
    m[0, 0] = [[1.0, 1.0], [0.0, 0.0]]
    _, mean = exponents(given(m), 1, burn_in=2)
    # Sums of 6 logarithms.
    np.testing.assert_allclose(mean, math.log(2), rtol=16 * EPS)


def test_the_burn_in_is_a_tenth_of_each_row_and_windows_are_as_many_as_the_shortest_has_steps():
    record = still(np.diag([2.0, 1.0]), 100, batch=2)
    found = lyapunov(record.lane(), k=1)
    assert found.burn_in.tolist() == [10, 10] and found.steps.tolist() == [90, 90] and len(found.windows) == 20
    ragged = seen(network(np.eye(2)), np.zeros((100, 3, 2)), lengths=[100, 7, 0])
    found = lyapunov(ragged.lane(), k=1)
    assert found.burn_in.tolist() == [10, 0, 0] and found.steps.tolist() == [90, 7, 0] and len(found.windows) == 7
    assert np.isnan(found.windows[:, 2]).all() and np.abs(found.by_row[:2]).max() <= EPS
    assert lyapunov(ragged.lane(), k=1, windows=3, burn_in=2).burn_in.tolist() == [2, 2, 0]
    assert len(lyapunov(ragged.lane(), k=1, windows=3).windows) == 3
    with pytest.raises(ArgumentValueError, match=r"burn_in: expected an int in \[0, 6\], got 7"):
        lyapunov(ragged.lane(), k=1, burn_in=7)
    assert lyapunov(ragged.lane(), k=1, burn_in=6).steps.tolist() == [94, 1, 0]


def test_a_row_of_one_step_counts_and_has_no_burn_in():
    rnn = network(np.diag([2.0, 1.0]))
    record = seen(rnn, np.zeros((9, 2, 2)), lengths=[9, 1])
    found = lyapunov(record.lane(), k=1, burn_in=0)
    assert found.windows.shape == (1, 2, 1) and found.steps.tolist() == [9, 1]
    np.testing.assert_allclose(found.exponents, (9 * found.by_row[0] + found.by_row[1]) / 10, rtol=8 * EPS)
    assert found.by_row[0] != found.by_row[1]
    with pytest.raises(ArgumentValueError, match=r"burn_in: expected an int in \[0, 0\], got 1"):
        lyapunov(record.lane(), k=1, burn_in=1)
    empty = seen(rnn, np.zeros((9, 2, 2)), lengths=[0, 0]).lane()
    with pytest.raises(ArgumentValueError, match=r"burn_in: expected an int >= 0, got -1"):
        lyapunov(empty, k=1, burn_in=-1)
    assert np.isnan(lyapunov(empty, k=1).exponents).all() and len(lyapunov(empty, k=1).windows) == 9


def test_rows_are_weighted_by_their_steps():
    """ln 2 over 30 steps and ln 8 over 10: 1.5 ln 2; the order of rows is the caller's."""
    x = np.zeros((30, 2, 1))
    rnn = network(np.eye(1), "relu", bias=np.ones(1))
    record = seen(rnn, x, lengths=[30, 10])
    d = np.ones((30, 2, 1))
    d[:, 0], d[:, 1] = 2.0, 8.0
    lane = dataclasses.replace(record.lane())
    object.__setattr__(lane, "slope", lambda: d)
    found = lyapunov(lane, k=1, burn_in=0)
    np.testing.assert_allclose(found.exponents, 1.5 * math.log(2), rtol=64 * EPS)
    np.testing.assert_allclose(found.by_row[:, 0], np.log([2.0, 8.0]), rtol=64 * EPS)
    only = lyapunov(lane, k=1, burn_in=0, rows=[1, 0])
    np.testing.assert_array_equal(only.by_row, found.by_row[::-1])
    assert only.rows == (1, 0) and found.rows == (0, 1)


def test_the_interval_of_two_samples_and_of_dead_directions():
    """Mean 2, deviation 1.414 / sqrt 2 = 1, one degree of freedom: tan(pi / 4) = 1 at half the confidence."""
    from rnncore.diagnostics.jacobians.lyapunov import _interval

    samples = np.asarray([[1.0, -np.inf], [3.0, 0.5]])
    low, high = _interval(samples, np.asarray([2.0, -np.inf]), 0.5)
    np.testing.assert_allclose([low[0], high[0]], [1.0, 3.0], rtol=8 * EPS)
    assert low[1] == high[1] == -np.inf
    assert np.isnan(_interval(samples[:1], samples[0], 0.5)).all() and _interval(
        samples[:1], samples[0], 0.5
    ).shape == (2, 2)


def test_the_dimension_at_its_edges():
    for spectrum, complete, want in (
        ([0.0, -1.0], True, 1.0),
        ([0.3, -0.3, -1.0], True, 2.0),
        ([0.5, 0.25, -1.0], False, 2.75),
        ([0.2], True, 1.0),
        ([-0.2], False, 0.0),
        ([0.1, -0.2, 0.4, -0.5], True, 1.5),
    ):
        assert kaplan_yorke(np.asarray(spectrum), complete=complete) == want, spectrum
    assert math.isnan(kaplan_yorke(np.asarray([np.nan, -1.0]), complete=True))


def test_entropy_and_predictability():
    found = lyapunov(still(np.diag([4.0, 2.0, 0.5]), 200).lane(), k=3, burn_in=100)
    # The frame is aligned to rounding after 100 steps; 100 logarithms are added up.
    close = {"rel": 256 * EPS}
    assert found.entropy_rate == pytest.approx(3 * math.log(2), **close)
    assert found.predictability == pytest.approx(0.5, **close) and found.confidence == 0.95
    assert found.kaplan_yorke == 3.0 and found.sum_residual is not None
    assert lyapunov(still(np.eye(2), 20).lane(), k=1).predictability == math.inf
    assert lyapunov(still(np.eye(2), 20).lane(), k=1).sum_residual is None
    none = lyapunov(seen(network(np.eye(2)), np.zeros((5, 1, 2)), lengths=[0]).lane(), k=2)
    assert np.isnan(none.exponents).all() and math.isnan(none.entropy_rate) and none.windows.shape[1:] == (1, 2)


def test_a_singular_weight_has_a_residual_of_0():
    found = lyapunov(still(np.diag([1.0, 0.0]), 20, batch=2).lane(), k=2)
    assert found.sum_residual.tolist() == [0.0, 0.0] and found.exponents[1] == -np.inf


def test_windows_of_a_run_are_its_consecutive_parts():
    record, _ = driven(steps=40)
    found, whole = (lyapunov(record.lane(), k=2, burn_in=0, windows=n) for n in (4, 1))
    assert found.windows.shape == (4, 2, 2) and len(np.unique(found.windows[:, 0, 0])) == 4
    # Means of the same 40 logarithms, of numbers of size 1; the pieces between orthonormalisations end elsewhere.
    np.testing.assert_allclose(found.windows.mean(axis=0), whole.by_row, rtol=0, atol=1024 * EPS)
