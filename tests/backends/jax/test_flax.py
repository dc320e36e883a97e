"""Models in modules of Flax's nnx, as docs/backends.md says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rnncore_jax

from tests.tools.jax_problem import BATCH, HIDDEN, INPUT, STEPS, draw

nnx = pytest.importorskip("flax.nnx", reason="Flax is not among the requirements of the tests", exc_type=ImportError)


class Net(nnx.Module):
    def __init__(self, rnn):
        self.rnn = rnn
        self.head = nnx.Linear(HIDDEN, 1, rngs=nnx.Rngs(0))

    def __call__(self, x, lengths=None):
        return self.head(self.rnn(x, lengths=lengths)[1][-1].astype("float32"))


@nnx.jit
def step(net, x, lengths):
    def loss(net):
        return jnp.mean((net(x, lengths) - 1) ** 2)

    value, gradient = nnx.value_and_grad(loss)(net)
    nnx.update(net, jax.tree.map(lambda p, g: p - 0.1 * g, nnx.state(net, nnx.Param), gradient))
    return value


def model():
    return rnncore_jax.RNN(INPUT, HIDDEN, dtype="float64", rng=0, kernel="require")


@pytest.mark.parametrize("lengths", [None, (3, 1)], ids=["full", "lengths"])
def test_a_model_whose_leaves_are_params_is_trained(lengths):
    net = Net(nnx.data(jax.tree.map(nnx.Param, model())))
    (x,) = draw(0, (STEPS, BATCH, INPUT))
    assert set(nnx.state(net, nnx.Param)["rnn"]) == set(model().params)
    values = [float(step(net, x, lengths and jnp.asarray(lengths))) for _ in range(5)]
    assert values == sorted(values, reverse=True) and values[-1] < values[0] / 2
    for name, before in model().params.items():
        assert not np.array_equal(net.rnn.params[name], before), name
    trained = net.rnn.to("numpy")  # such a model is as good as any other
    np.testing.assert_array_equal(trained.params["weight_hh_l0"], net.rnn.params["weight_hh_l0"])
    assert net.rnn.vjp(x)[2](jnp.ones((STEPS, BATCH, HIDDEN))).x.shape == x.shape


def test_nnx_refuses_a_model_as_it_is_and_does_not_train_it_as_data():
    with pytest.raises(ValueError, match=r"Found data on value of type .*rnncore_jax.RNN.* assigned to static"):
        Net(model())
    net = Net(nnx.data(model()))
    (x,) = draw(0, (STEPS, BATCH, INPUT))
    step(net, x, None)
    assert "rnn" not in nnx.state(net, nnx.Param)
    for name, before in model().params.items():
        np.testing.assert_array_equal(net.rnn.params[name], before)
