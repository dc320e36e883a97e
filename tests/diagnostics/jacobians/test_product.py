"""Singular values of long products against closed forms, 400 digits and dense matrices."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest

from rnncore import diagnostics
from rnncore.diagnostics.gradient.horizon import horizon
from rnncore.diagnostics.jacobians.lyapunov import lyapunov
from rnncore.diagnostics.jacobians.product import ALONE, product, singular_values
from rnncore.diagnostics.jacobians.sweep import JacobianChain, advance, start_frame
from rnncore.errors import ArgumentTypeError, ArgumentValueError
from tests.diagnostics.jacobians.networks import (
    CLOSE,
    FLOAT64,
    LONG,
    driven,
    exact_log_singular,
    given,
    jacobians,
    model_on,
    network,
    on,
    seen,
    still,
)
from tests.tools.rounding import EPS, EPS_OF, PROMISED, agree


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
    assert np.abs(found.log_singular[0] / steps - want).max() < 8 * EPS_OF["float32"]
    assert found.converged.all()


@pytest.mark.parametrize("backend", FLOAT64)
def test_a_condition_number_of_ten_to_the_3053(backend):
    """Diagonal W: ln sigma_i = T ln |w_i| exactly, far beyond the dtype's range at both ends."""
    ratio = 10 ** (3053.5137 / LONG)
    w = np.diag([math.sqrt(ratio), -1.0, 1 / math.sqrt(ratio)])
    found = product(still(w, LONG, backend=backend).lane(), k=3)
    want = LONG * np.log(np.abs(np.diag(w)))
    # Each of the steps adds a logarithm to one of up to 3,516 nats, and rounds the sum by half an eps.
    allowed = LONG * EPS * want[0]
    assert abs(found.log_condition[0] - 3053.5137 * math.log(10)) < 2 * allowed
    np.testing.assert_allclose(found.log_singular[0], want, rtol=0, atol=allowed)


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
    # An eps in each step, and what T steps make of it on the two diagonals above: up to T^2 times as much.
    np.testing.assert_allclose(found.log_singular[0], want, rtol=0, atol=4 * steps**2 * EPS)
    assert found.log_singular[0, 0] > steps * math.log(a) + 2


@pytest.mark.parametrize("backend", FLOAT64)
def test_a_nilpotent_recurrence_dies_after_as_many_steps_as_it_has_units(backend):
    w = np.diag([2.0, 3.0, 5.0], -1)
    want = {1: [5, 3, 2, 0], 2: [15, 6, 0, 0], 3: [30, 0, 0, 0], 4: [0, 0, 0, 0]}
    for steps, values in want.items():
        found = product(still(w, steps, backend=backend).lane(), k=4)
        with np.errstate(divide="ignore"):
            np.testing.assert_allclose(found.log_singular[0], np.log(values), rtol=0, atol=16 * EPS)
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
    series, _, left, right = singular_values(given(m, backend), 2, tolerance=CLOSE)
    for row in (0, 1):
        want = exact_log_singular(list(m[:, row]))[:2]
        np.testing.assert_allclose(series[-1][row], want, rtol=0, atol=CLOSE)
    assert left.shape == right.shape == (2, 6, 2)


def test_sweeps_go_on_until_the_error_is_small():
    """Few steps and more directions than are carried: the first sweeps are wrong, and the evidence says so."""
    w = np.random.default_rng(2).standard_normal((24, 24))
    record, want = still(w, 2), np.log(np.linalg.svd(w @ w, compute_uv=False))[:2]
    short = product(record.lane(), k=2, max_sweeps=2)
    assert not short.converged[0] and np.abs(short.log_singular[0] - want).max() > 1e-4
    fine = 2**12 * EPS
    found = product(record.lane(), k=2, max_sweeps=60, tolerance=fine)
    assert found.converged[0] and ALONE < len(found.sweeps) < 60 and found.error.max() <= fine
    # The dense product has about the width times the condition of its k-th value as its own rounding.
    np.testing.assert_allclose(found.log_singular[0], want, rtol=0, atol=fine + 64 * 24 * EPS)


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
        agree(right.T @ right, np.eye(5))
        agree(left.T @ left, np.eye(5))
        agree(p @ right, left * sigma)
    assert found.rows == (1, 0) and found.steps.tolist() == [5, 8]


def test_a_span_is_part_of_the_whole_and_an_empty_one_is_the_identity():
    record, w = driven(lengths=[40, 12])
    found = product(record.lane(), k=5, span=(10, 30))
    for row, end in ((0, 30), (1, 12)):
        want = exact_log_singular(jacobians(record, w, row)[10:end])
        np.testing.assert_allclose(found.log_singular[row], want, rtol=0, atol=CLOSE)
    assert (product(record.lane(), k=5, span=(20, 20)).log_singular == 0).all()
    assert product(record.lane(), k=2, span=(15, 30)).log_singular[1].tolist() == [0.0, 0.0]


def test_no_rows_and_numbers_that_are_none():
    rnn = network(np.eye(3), "tanh")
    empty = seen(rnn, np.zeros((4, 0, 3)))
    assert product(empty.lane(), k=2).log_singular.shape == (0, 2) and lyapunov(empty.lane(), k=2).by_row.shape == (
        0,
        2,
    )
    x = np.zeros((40, 2, 3))
    x[7, 1, 0] = np.nan
    record = seen(rnn, x)
    found, spectrum = product(record.lane(), k=3), lyapunov(record.lane(), k=3)
    assert np.isnan(found.log_singular[1]).any() and not found.converged[1] and np.isnan(spectrum.by_row[1]).any()
    # A frame of three columns, made orthonormal in each of 40 steps.
    np.testing.assert_allclose(found.log_singular[0], 0, rtol=0, atol=3 * 40 * EPS)
    np.testing.assert_allclose(spectrum.by_row[0], 0, rtol=0, atol=3 * 40 * EPS)
    assert len(empty.map(horizon, *diagnostics.flow(empty, np.zeros((4, 0, 3)), None))[-1][0].gain) >= 1


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
    # The mean of a sum that grows to 10,000 ln 2, and is rounded in each step.
    allowed = LONG * math.log(2) * EPS
    assert abs(spectrum.exponents[0] - math.log(2)) < allowed and spectrum.exponents[1] == -np.inf
    assert spectrum.predictability == pytest.approx(1.0, rel=2 * allowed) and spectrum.sum_residual[0] == 0
    ones = on(model_on(backend), np.ones((1, 2)))
    reach = record.map(horizon, *diagnostics.flow(record, None, [[ones]]))[-1][0]
    assert reach.slope == pytest.approx(math.log(2), abs=allowed) and reach.lag_small is None


@pytest.mark.parametrize("f", ["tanh", "relu"])
def test_backends_agree(f):
    """The same numbers in float64 on three libraries, with weights, inputs and lengths that are alike."""
    made = []
    for backend in ("numpy", "torch", "strict"):
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
    # 64 steps, each as far as the promise goes; exponents are by step.
    step = PROMISED * EPS_OF["float32"]
    np.testing.assert_allclose(made[0][0], made[1][0], rtol=0, atol=64 * step)
    np.testing.assert_allclose(made[0][1], made[1][1], rtol=0, atol=step)
