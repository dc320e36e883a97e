"""gradcheck: right pullbacks pass, wrong ones fail and are named."""

from __future__ import annotations

import numpy as np
import pytest

import rnncore
from rnncore.diagnostics.gradient.gradcheck import gradcheck
from tests.diagnostics.places import WHERE, drawn, model, on


@pytest.fixture(autouse=True)
def _quiet():
    """NumPy warns of the overflows that are planted here."""
    with np.errstate(all="ignore"):
        yield


# Errors are relative to the product of the norms of gradient and direction. Three sums in a row of at most 28 terms (7
# steps of 4 rows) have 84 roundings, each up to eps / 2: together 2.6 eps (root mean square), were each as large as the
# whole. The largest error on three kinds of OpenBLAS's kernels is 1.4 eps.
EXACT = 4 * np.finfo(np.float64).eps
# Not rounding: central differences are off by h^2, with h = eps^(1/3), times third derivatives of up to 16.
CENTRAL = 16 * np.finfo(np.float64).eps ** (2 / 3)
ANALYTIC = ("tanh", "sigmoid", "identity", "affine", "scaled_tanh", "softplus")


@pytest.mark.parametrize("name", rnncore.nonlinearity.NONLINEARITIES)
def test_every_nonlinearity_passes(name):
    rnn, x, _ = drawn(("numpy", "float64"), num_layers=2, bidirectional=True, nonlinearity=name)
    found = gradcheck(rnn, x, np.random.default_rng(1).standard_normal((4, 3, 4)), lengths=[7, 0, 4])
    assert found.passed and found.failed == () and found.kinks == ()
    assert set(found.checks) == {*rnn.params, "x", "h0"}
    assert found.method == ("complex step" if name in ANALYTIC else "central difference")
    assert max(c.error for c in found.checks.values()) < (EXACT if name in ANALYTIC else CENTRAL)
    assert found.adjoint.error < EXACT


@pytest.mark.parametrize(
    ("where", "name"),
    [*((w, n) for w in WHERE[2:] for n in ("tanh", "leaky_relu")), (("jax", "float32"), "tanh")],
)
def test_other_backends_and_layouts_pass(where, name):
    options = {"hidden_size": [3, 5], "nonlinearity": name, "backend": where[0], "dtype": where[1], "rng": 0}
    rng = np.random.default_rng(0)
    rnn = rnncore.RNN(2, batch_first=True, bidirectional=True, **options)
    assert gradcheck(rnn, on(rnn, rng.standard_normal((3, 6, 2))), lengths=[6, 2, 5]).passed
    if where[0] != "jax":
        unbatched = rnncore.RNN(2, bias=False, **options)
        h0 = [on(unbatched, rng.standard_normal((1, h))) for h in (3, 5)]
        found = gradcheck(unbatched, on(unbatched, rng.standard_normal((6, 2))), h0)
        assert found.passed
        # The tolerance is the dtype's: float32 is not forgiven in float64's name.
        eps = 2.0**-52 if where[1] == "float64" else 2.0**-23
        assert found.adjoint.tolerance == 64 * eps


@pytest.mark.parametrize("where", [("numpy", "float64"), ("torch", "float32"), ("strict", "float64")])
@pytest.mark.parametrize(
    ("name", "element"), [("weight_hh_l0", (2, 1)), ("bias_ih_l1", (3,)), ("x", (4, 1, 0)), ("h0", (1, 0, 2))]
)
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_a_wrong_pullback_fails_and_is_named(where, name, element, nonlinearity, monkeypatch):
    rnn, x, _ = drawn(where, num_layers=2, nonlinearity=nonlinearity)
    x = on(rnn, x)
    assert gradcheck(rnn, x).passed
    right = rnncore.RNN.vjp

    def wrong(self, *args, **kwargs):
        output, h_n, pullback = right(self, *args, **kwargs)

        def pull(*cotangents):
            grads = pullback(*cotangents)
            named = {**grads.params, "x": grads.x, "h0": grads.h0}
            host = self.network.engine.backend.to_numpy(named[name]).astype(np.float64)
            host[element] += 0.01 * np.abs(host).max()
            named[name] = on(self, host)
            x_, h0_ = named.pop("x"), named.pop("h0")
            return rnncore.network.results.Gradients(named, x_, h0_)

        return output, h_n, pull

    monkeypatch.setattr(rnncore.RNN, "vjp", wrong)
    found = gradcheck(rnn, x)
    assert not found.passed
    assert found.worst == name
    assert found.failed == (name, "adjoint")


def test_a_wrong_derivative_and_a_wrong_jvp_are_told_apart(monkeypatch):
    wrong = rnncore.custom_nonlinearity(lambda z: z * z / 4, lambda z: z / 2 * 1.001, name="wrong")
    rnn, x, _ = drawn(("numpy", "float64"), nonlinearity=wrong)
    found = gradcheck(rnn, x)
    # Both passes use the same wrong derivative, so the dot test alone does not see it.
    assert not found.passed and found.adjoint.passed and "weight_ih_l0" in found.failed
    right_custom = rnncore.custom_nonlinearity(lambda z: z * z / 4, lambda z: z / 2, name="right")
    for where in WHERE[1:]:
        rnn, x, _ = drawn(where, nonlinearity=right_custom)
        assert gradcheck(rnn, on(rnn, x)).passed
    rnn, x, _ = drawn(("numpy", "float64"))
    right = rnncore.RNN.jvp

    def tangents(self, *args, **kwargs):
        output, h_n, t = right(self, *args, **kwargs)
        return output, h_n, rnncore.network.results.Tangents(t.output * 1.001, t.h_n)

    monkeypatch.setattr(rnncore.RNN, "jvp", tangents)
    assert gradcheck(rnn, x).failed == ("adjoint",)


def test_kinks_are_reported_and_not_failed():
    weights = {"weight_ih": [[1.0], [1.0]], "weight_hh": [[0.3, 0.1], [0.2, 0.4]]}
    rnn = model(weights, nonlinearity="relu")
    # At 0 the pullback's slope is 0 and the central difference's 1/2.
    found = gradcheck(rnn, np.asarray([[[1.0]], [[-0.4]]]))
    assert found.kinks == ("weight_ih_l0", "weight_hh_l0", "x", "h0")
    assert found.passed and found.adjoint.passed
    assert found.checks["x"].error > 1e-3
    clear = gradcheck(rnn, np.asarray([[[1.0]], [[-0.3]]]))
    assert clear.passed and clear.kinks == ()
    clipped = model(weights, clip=0.5)
    assert gradcheck(clipped, np.asarray([[[0.7]], [[-0.4]]])).kinks == ()
    assert "x" in gradcheck(clipped, np.asarray([[[0.5]], [[-0.4]]])).kinks


def test_a_pullback_of_nan_fails_even_at_a_kink(monkeypatch):
    rnn = model({"weight_ih": [[1.0]], "weight_hh": [[0.5]]}, nonlinearity="relu")
    x = np.zeros((3, 1, 1))
    assert gradcheck(rnn, x).kinks
    right = rnncore.RNN.vjp

    def wrong(self, *args, **kwargs):
        output, h_n, pullback = right(self, *args, **kwargs)

        def pull(*cotangents):
            grads = pullback(*cotangents)
            return rnncore.network.results.Gradients(
                {n: g * np.nan for n, g in grads.params.items()}, grads.x, grads.h0
            )

        return output, h_n, pull

    monkeypatch.setattr(rnncore.RNN, "vjp", wrong)
    assert set(gradcheck(rnn, x).failed) == {"weight_ih_l0", "weight_hh_l0", "adjoint"}
    monkeypatch.undo()
    assert gradcheck(rnn, np.zeros((3, 0, 1))).passed  # no rows, nothing wrong
