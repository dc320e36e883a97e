"""Initial weights."""

import numpy as np
import pytest

import rnncore
from tests.tools.models import host
from tests.tools.rounding import EPS, agree


def test_one_seed_gives_bit_identical_float64_weights_everywhere():
    for init in ("uniform", "orthogonal", "identity", "xavier", "gaussian", "spectral_radius"):
        a = rnncore.RNN(3, 4, 2, bidirectional=True, init=init, backend="numpy", dtype="float64", rng=5)
        b = rnncore.RNN(3, 4, 2, bidirectional=True, init=init, backend="torch", dtype="float64", rng=5)
        for k, v in a.params.items():
            np.testing.assert_array_equal(v, host(b, b.params[k]))


def test_the_default_is_torchs_uniform():
    w = np.concatenate([v.ravel() for v in rnncore.RNN(50, 100, 2, rng=0).state_dict().values()])
    assert np.abs(w).max() <= 0.1 and np.abs(w).max() > 0.0999
    assert w.std() == pytest.approx(0.1 / np.sqrt(3), rel=0.02) and abs(w.mean()) < 4 * 0.058 / np.sqrt(w.size)


def test_initialisers_have_the_properties_they_are_named_for():
    make = lambda init, n=64: rnncore.RNN(3, n, init=init, rng=0).state_dict()  # noqa: E731
    for init, gain in (("orthogonal", 1.0), (rnncore.init.orthogonal(1.5), 1.5)):
        w = make(init)["weight_hh_l0"]
        # A QR decomposition is orthogonal to about n eps, and a sum of n products is rounded by as much.
        agree(w @ w.T, gain**2 * np.eye(64), 2 * 64)
    np.testing.assert_array_equal(make("identity")["weight_hh_l0"], np.eye(64))
    w = make(rnncore.init.spectral_radius(0.9))["weight_hh_l0"]
    # LAPACK's eigenvalues are those of a matrix that is n eps away, by the norm, times the eigenvalue's condition.
    values, right = np.linalg.eig(w)
    condition = np.linalg.norm(np.linalg.inv(right)[np.abs(values).argmax()])  # the columns of `right` have length 1
    bound = 2 * 64 * EPS * condition * np.linalg.norm(w, 2)  # twice: the matrix was scaled by its eigenvalues
    assert abs(np.abs(values).max() - 0.9) <= bound
    w = make(rnncore.init.gaussian(2.0), 300)["weight_hh_l0"]
    assert w.std() == pytest.approx(2 / np.sqrt(300), rel=0.02)
    assert np.abs(np.linalg.eigvals(w)).max() == pytest.approx(2.0, rel=0.1)
    for init in ("xavier", "xavier_normal"):
        w = make(init, 300)["weight_hh_l0"]
        assert w.std() == pytest.approx(np.sqrt(2 / 600), rel=0.02)
    state = make({"weight_hh": "orthogonal", "bias_ih": rnncore.init.constant(0.25)})
    assert (state["bias_ih_l0"] == 0.25).all() and state["bias_hh_l0"].any()
    assert not make("orthogonal")["bias_ih_l0"].any()


def test_orthogonal_matrices_are_uniformly_distributed():
    """The trace of a Haar orthogonal matrix has mean 0 and variance 1; QR without the sign fix is biased."""
    make, rng = rnncore.init.orthogonal(), np.random.default_rng(0)
    traces = np.asarray([np.trace(make((4, 4), rng)) for _ in range(4000)])
    assert abs(traces.mean()) < 4 / np.sqrt(4000)
    assert traces.var() == pytest.approx(1, abs=0.1)
