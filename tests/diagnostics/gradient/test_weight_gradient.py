"""Norms of each step's part of the weights' gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rnncore.diagnostics import flow, record
from rnncore.diagnostics.gradient.weight_gradient import weight_gradient
from tests.diagnostics.places import WHERE, drawn, model, on
from tests.tools.rounding import EPS, EPS_OF, agree


@pytest.fixture(autouse=True)
def _quiet():
    """NumPy warns of the overflows that are planted here."""
    with np.errstate(all="ignore"):
        yield


def parts_of(seen, deltas, k, d):
    """ln ||G_t|| of weight_hh and weight_ih from each step's own matrix, in float64 on the host."""
    values, log = seen.host(deltas[k][d].values), deltas[k][d].log
    found = []
    for a in (seen.host(seen.lane(k, d).previous()), seen.host(seen.inputs[k])):
        ln = np.full(seen.steps, np.nan)
        for t in range(seen.steps):
            rows = np.flatnonzero(seen.valid[t])
            if len(rows):
                top = log[t, rows].max()
                g = sum(np.exp(log[t, b] - top) * np.outer(values[t, b], a[t, b]) for b in rows)
                ln[t] = np.log(np.linalg.norm(g)) + top
        found.append(ln)
    return found


@pytest.mark.parametrize(
    ("where", "batch"),  # two rows by Gram, nine by the matrices themselves
    [*((w, b) for w in WHERE for b in (2, 9)), (("jax", "float32"), 2)],
)
def test_norms_by_step_are_those_of_the_matrices(where, batch):
    rnn, x, u = drawn(where, shape=(7, batch, 3), num_layers=2, bidirectional=True)
    seen = record(rnn, on(rnn, x), lengths=[4] + [5] * (batch - 1))
    _, deltas = flow(seen, on(rnn, u))
    found = seen.map(weight_gradient, deltas)
    # The scaled deltas are the reference's too; what differs is a sum of squares with 10 bits lost at most.
    tolerance = 2.0**10 * (2.0**-52 if where[1] == "float64" else 2.0**-23)
    for k in range(2):
        for d in range(2):
            hh, ih = parts_of(seen, deltas, k, d)
            np.testing.assert_allclose(found.weight_hh[k][d], hh, rtol=0, atol=tolerance)
            np.testing.assert_allclose(found.weight_ih[k][d], ih, rtol=0, atol=tolerance)
            assert np.isnan(found.weight_hh[k][d][5:]).all()


def test_the_parts_add_up_to_the_gradient_of_training():
    rnn, x, u = drawn(("torch", "float64"), shape=(6, 1, 2))
    u[:-1] = 0
    _, _, pullback = rnn.vjp(on(rnn, x))
    whole = pullback(on(rnn, u)).params["weight_ih_l0"].numpy()
    seen = record(rnn, on(rnn, x))
    _, deltas = flow(seen, on(rnn, u))
    found = seen.map(weight_gradient, deltas)
    # Of one row each part is an outer product, |delta| |x|, and the parts' sum is the gradient.
    values = seen.host(deltas[0][0].values) * np.exp(deltas[0][0].log)[..., None]
    parts = np.einsum("tbi,tbj->tij", values, x)
    agree(parts.sum(axis=0), whole)
    # Norms of 8 numbers, and a logarithm of at most 10 taken and undone.
    np.testing.assert_allclose(np.exp(found.weight_ih[0][0]), np.linalg.norm(parts, axis=(1, 2)), rtol=32 * EPS)


@pytest.mark.parametrize("where", [("numpy", "float32"), ("torch", "float32"), ("strict", "float32")])
def test_rows_of_very_different_scales_and_beyond_the_dtype(where):
    rnn = model({"weight_ih": [[1.0, 0.0], [0.0, 1.0]], "weight_hh": 4.0 * np.eye(2)}, where, nonlinearity="identity")
    steps = 300  # dL/dz grows to 4^299 = 1e180
    x = np.zeros((steps, 3, 2))
    x[0] = [[3e30, 4e30], [1e-30, 0.0], [0.0, 0.0]]
    x[-1] = [[0.0, 0.0], [3e-30, 4e-30], [0.0, 0.0]]
    seen = record(rnn, on(rnn, x))
    u = np.zeros((steps, 3, 2))
    u[-1] = [[1e30, 0.0], [0.0, 1e-30], [1e30, 1e30]]
    _, deltas = flow(seen, on(rnn, u))
    got = seen.map(weight_gradient, deltas).weight_ih[0][0]
    log4 = (steps - 1) * math.log(4.0)
    # Powers of 4 are exact; two numbers are rounded, and so are their product and its norm.
    few = 8 * EPS_OF["float32"]
    assert got[0] == pytest.approx(math.log(5e60) + log4, abs=few)
    assert got[-1] == pytest.approx(math.log(5) - 60 * math.log(10), abs=few)
    assert (got[1:-1] == -np.inf).all()


@pytest.mark.parametrize("where", WHERE)
def test_rows_that_cancel_leave_what_is_left_and_not_the_square_root_of_a_rounding(where):
    rnn = model({"weight_ih": np.eye(4, 4), "weight_hh": np.zeros((4, 4))}, where, nonlinearity="identity")
    x = np.tile([1.0, 2.0, 3.0, 4.0], (1, 2, 1))
    small = 2.0**-20
    u = np.asarray([[[1.0, 1.0, 1.0, 1.0], [-1.0, -1.0, -1.0, -1.0 + small]]])
    seen = record(rnn, on(rnn, x))
    _, deltas = flow(seen, on(rnn, u))
    found = seen.map(weight_gradient, deltas)
    # What is left is exact, and its norm is a sum of 16 squares.
    assert found.weight_ih[0][0, 0] == pytest.approx(math.log(small * math.sqrt(30.0)), abs=16 * EPS_OF[where[1]])
    assert found.weight_hh[0][0, 0] == -np.inf


def test_the_share_of_steps():
    rnn = model({"weight_ih": [[1.0]], "weight_hh": [[0.0]]}, nonlinearity="identity")
    seen = record(rnn, np.ones((100, 1, 1)))

    def of(u):
        _, deltas = flow(seen, np.reshape(u, (100, 1, 1)))
        return seen.map(weight_gradient, deltas)

    assert of(np.ones(100)).share_ih[0][0] == pytest.approx(0.9, rel=EPS)
    one = np.full(100, 1e-6)
    one[37] = 1e250
    found = of(one)
    assert found.share_ih[0][0] == pytest.approx(0.01, rel=EPS)
    assert found[0][0].largest().tolist() == [37]
    assert np.isnan(of(np.zeros(100)).share_ih[0][0])
    one[5] = np.nan
    assert np.isnan(of(one).weight_ih[0][0, 5]) and np.isfinite(of(one).weight_ih[0][0, 6:]).all()
