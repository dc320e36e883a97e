"""Functions that are nonlinearities, and those that are not."""

import pickle
from functools import partial

import numpy as np
import pytest

import rnncore
from rnncore.errors import ArgumentValueError, InterchangeError
from rnncore.interchange.flax.activations import Activation, function_of, nonlinearity_of
from rnncore.interchange.portable import Asked
from tests.tools.rounding import agree

jax = pytest.importorskip("jax", reason="JAX is not installed")
jnp = jax.numpy

# Both sides of every kink, and the kinks.
Z = np.linspace(-8, 8, 129, dtype="f4")
KNOWN = [
    ("tanh", jax.nn.tanh),
    ("tanh", jax.lax.tanh),
    ("relu", jax.nn.relu),
    ("sigmoid", jax.nn.sigmoid),
    ("sigmoid", jax.lax.logistic),
    ("softplus", jax.nn.softplus),
    ("softsign", jax.nn.soft_sign),
    ("identity", jax.nn.identity),
    ("leaky_relu", jax.nn.leaky_relu),
    ("leaky_relu", partial(jax.nn.leaky_relu, negative_slope=0.25)),
    ("elu", jax.nn.elu),
    ("elu", partial(jax.nn.elu, alpha=0.5)),
    ("hard_sigmoid", jax.nn.hard_sigmoid),
    ("identity", jax.nn.hard_tanh),
    ("relu", jax.nn.relu6),
]


@pytest.mark.parametrize(("name", "function"), KNOWN, ids=[f"{name}-{k}" for k, (name, _) in enumerate(KNOWN)])
def test_known_functions_are_what_they_are_taken_for(name, function):
    found = nonlinearity_of(function, "cell", Asked())
    assert found.name == name
    agree(np.asarray(function(jnp.asarray(Z))), found(Z.astype("f8"), xp=np))


def test_functions_go_out_and_in():
    for name in rnncore.nonlinearity.nonlinearity.NONLINEARITIES:
        for clip in (None, 1.0, 2.5):
            given = rnncore.get_nonlinearity(name, clip=clip)
            made = function_of(given)
            assert nonlinearity_of(made, "cell", Asked()) == given
            agree(np.asarray(made(jnp.asarray(Z))), given(Z.astype("f8"), xp=np), what=name)
    assert function_of(rnncore.get_nonlinearity("tanh")) is jax.nn.tanh


def test_a_function_of_ours_is_one_value():
    """As Flax compares and pickles what its modules hold."""
    one, two = (Activation(rnncore.get_nonlinearity("elu", alpha=0.5, clip=1.0)) for _ in range(2))
    assert one == two and hash(one) == hash(two) and pickle.loads(pickle.dumps(one)) == one
    agree(
        np.asarray(jax.grad(lambda z: one(z).sum())(jnp.asarray(Z))), one.nonlinearity.derivative(Z.astype("f8"), xp=np)
    )


def test_a_users_own_nonlinearity_is_a_function_too():
    square = rnncore.custom_nonlinearity(lambda z: z * z, lambda z: 2 * z, name="square")
    made = function_of(square)
    assert nonlinearity_of(made, "cell", Asked()) == square
    assert np.array_equal(made(jnp.asarray(Z)), Z * Z) and np.array_equal(
        jax.vmap(jax.grad(made))(jnp.asarray(Z)), 2 * Z
    )


def test_a_function_that_is_not_known_is_said():
    own = lambda z: jnp.tanh(z)  # noqa: E731  # as users write it
    with pytest.raises(
        InterchangeError, match=r"cell: expected a function that is known.*<lambda>.*nonlinearity=\.\.\."
    ):
        nonlinearity_of(own, "cell", Asked())
    assert nonlinearity_of(own, "cell", Asked(nonlinearity="tanh")).name == "tanh"
    with pytest.raises(InterchangeError, match=r"<lambda>.* is not the nonlinearity 'sigmoid'"):
        nonlinearity_of(own, "cell", Asked(nonlinearity="sigmoid"))
    with pytest.raises(InterchangeError, match="a function of each number"):
        nonlinearity_of(lambda z: z.sum(), "cell", Asked(nonlinearity="tanh"))


def test_a_known_function_may_not_be_said_to_be_another():
    with pytest.raises(ArgumentValueError, match=r"nonlinearity: expected .*tanh.*, got .*relu"):
        nonlinearity_of(jax.nn.tanh, "cell", Asked(nonlinearity="relu"))


def test_partials_of_other_kinds_are_not_known():
    for function in (partial(jax.nn.elu, jnp.ones(3)), partial(jax.nn.elu, alpha=jnp.ones(3)), partial(jax.nn.gelu)):
        with pytest.raises(InterchangeError):
            nonlinearity_of(function, "cell", Asked())
