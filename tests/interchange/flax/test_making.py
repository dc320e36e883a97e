"""Networks in Flax: the same numbers in nnx and linen, trained there as here, and back bit for bit."""

import numpy as np
import pytest

import rnncore
from rnncore.errors import ArgumentTypeError, DTypeError, UnknownNameError
from tests.interchange.networks import network, reference
from tests.tools.process import python
from tests.tools.rounding import PROMISED, agree

nnx = pytest.importorskip("flax.nnx", reason="Flax is not installed")
jax = pytest.importorskip("jax", reason="JAX is not installed")
optax = pytest.importorskip("optax", reason="Flax brings it")
jnp = jax.numpy

X = np.random.default_rng(1).standard_normal((4, 2, 3))
NETWORKS = [
    {},
    {"num_layers": 3},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
    {"hidden_size": [5, 4, 6]},
    {"bias": False, "num_layers": 2},
    {"nonlinearity": "relu"},
    {"nonlinearity": "softsign", "clip": 0.5},
    {"num_layers": 3, "dropout": 0.25},
]


def model(given):
    return rnncore.RNN.from_spec(given.spec, given.params, backend="jax", dtype=given.dtype)


def run(made, x, **options):
    """The output of a module of nnx, or of one of linen with its variables."""
    return made[0].apply(made[1], x, **options) if isinstance(made, tuple) else made(x, **options)


def summed(portable):
    """The biases as Flax has them: the sum, and zero."""
    params = dict(portable.params)
    for name in [n for n in params if n.startswith("bias_ih")]:
        other = name.replace("ih", "hh")
        params[name], params[other] = params[name] + params[other], np.zeros_like(params[other])
    return params


@pytest.mark.parametrize("api", ["nnx", "linen"])
@pytest.mark.parametrize("options", NETWORKS, ids=str)
def test_a_network_computes_the_same_there_and_comes_back(api, options):
    """Bit for bit, but for the sum of its biases, and with that the second time."""
    given = network(**options)
    made = rnncore.to_module(model(given), "flax", api=api)
    x = (X.swapaxes(0, 1) if given.spec.batch_first else X).astype("f4")
    agree(np.asarray(run(made, jnp.asarray(x))), reference(given, x)[0])
    found = rnncore.from_module(made)
    assert found.backend == "jax"
    portable, want = found.portable(), summed(given)
    if api == "linen" and not given.spec.bias:  # linen's cells always have a bias
        want |= {n: np.zeros(s, "f4") for n, s in portable.spec.parameter_shapes().items() if "bias" in n}
        assert portable.spec.bias
    else:
        assert portable.spec == given.spec
    assert portable.params.keys() == want.keys()
    assert all(np.array_equal(portable.params[n], want[n]) for n in want)
    again = rnncore.from_module(rnncore.to_module(found, "flax", api=api)).portable()
    assert all(np.array_equal(again.params[n], portable.params[n]) for n in want)


@pytest.mark.parametrize("api", ["nnx", "linen"])
def test_double_precision(api):
    given = network(dtype="float64", num_layers=2)
    with jax.enable_x64(True):
        made = rnncore.to_module(model(given), "flax", api=api)
        got = np.asarray(run(made, jnp.asarray(X)))
        assert rnncore.from_module(made).dtype == jnp.float64
    assert got.dtype == "float64"
    agree(got, reference(given, X)[0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("api", ["nnx", "linen"])
def test_half_precision(api, dtype):
    given = model(network()).to(dtype=dtype)
    made = rnncore.to_module(given, "flax", api=api)
    found = rnncore.from_module(made)
    assert found.dtype == given.dtype and run(made, jnp.asarray(X, dtype)).dtype == given.dtype
    assert jnp.array_equal(found.params["weight_hh_l0"], given.params["weight_hh_l0"])


@pytest.mark.parametrize("api", ["nnx", "linen"])
def test_lengths_and_initial_states_are_flaxs_seq_lengths_and_initial_carry(api):
    given = network(bidirectional=True)
    h0 = np.random.default_rng(2).standard_normal((2, 2, 5)).astype("f4")
    x, lengths = X.astype("f4"), [4, 2]
    made = rnncore.to_module(model(given), "flax", api=api)
    options = {"seq_lengths": jnp.asarray(lengths), "initial_carry": tuple(map(jnp.asarray, h0)), "return_carry": True}
    carry, output = run(made, jnp.asarray(x), **options)
    want, h_n = reference(given, x, h0, lengths)
    for row, steps in enumerate(lengths):  # Flax's output in the padding is not zero
        agree(np.asarray(output)[:steps, row], want[:steps, row])
    agree(np.stack(carry), h_n)


def loss(output):
    return (output**2).mean()


def trained_in_nnx(made, x, lr):
    optimiser = nnx.Optimizer(made, optax.sgd(lr), wrt=nnx.Param)
    gradient = nnx.jit(nnx.grad(lambda m: loss(m(x))))
    for _ in range(3):
        optimiser.update(made, gradient(made))
    return made


def trained_in_linen(made, x, lr):
    module, variables = made
    optimiser = optax.sgd(lr)
    state = optimiser.init(variables)
    gradient = jax.jit(jax.grad(lambda v: loss(module.apply(v, x))))
    for _ in range(3):
        updates, state = optimiser.update(gradient(variables), state)
        variables = optax.apply_updates(variables, updates)
    return module, variables


@pytest.mark.parametrize(("api", "trained"), [("nnx", trained_in_nnx), ("linen", trained_in_linen)])
@pytest.mark.parametrize(
    "options", [{"num_layers": 2}, {"bidirectional": True, "nonlinearity": "elu", "clip": 1.0}], ids=str
)
def test_three_steps_of_training_there_are_three_here(api, trained, options):
    lr, x = 0.5, jnp.asarray(X.astype("f4"))
    ours = model(network(**options))
    theirs = rnncore.from_module(trained(rnncore.to_module(ours, "flax", api=api), x, lr))
    # With one bias, as Flax trains it.
    here, x = rnncore.from_module(rnncore.to_module(ours, "flax", api=api), backend="numpy"), np.asarray(x)
    optimiser = rnncore.optim.SGD(lr)
    for _ in range(3):
        output, _, pullback = here.vjp(x)
        grads = pullback(2 * output / output.size).params
        free = [n for n in grads if not n.startswith("bias_hh")]
        here.set_params(optimiser.step({n: here.params[n] for n in free}, {n: grads[n] for n in free}))
    for name, want in here.params.items():
        assert name.startswith("bias_hh") or not np.array_equal(want, ours.params[name])
        # Each step adds a gradient that is within the promised bound of the other's, and none is larger than the weights.
        agree(np.asarray(theirs.params[name]), np.asarray(want), 3 * PROMISED)


def test_dropout_is_a_layer_of_its_own_and_drops_when_it_is_told():
    given = model(network(num_layers=2, dropout=0.5))
    x = jnp.asarray(X.astype("f4"))
    quiet = rnncore.to_module(given, "flax")
    agree(np.asarray(quiet(x)), np.asarray(given(x)[0]))
    loud = rnncore.to_module(given, "flax", deterministic=False, rngs=nnx.Rngs(dropout=3, params=0))
    assert not np.array_equal(loud(x), quiet(x)) and np.array_equal(nnx.view(loud, deterministic=True)(x), quiet(x))
    module, variables = rnncore.to_module(given, "flax", api="linen", deterministic=False)
    assert not np.array_equal(module.apply(variables, x, rngs={"dropout": jax.random.key(0)}), quiet(x))


def test_what_cannot_be_made():
    ours = model(network())
    with pytest.raises(UnknownNameError, match="api: expected one of nnx, linen, got 'linnen'; did you mean 'linen'"):
        rnncore.to_module(ours, "flax", api="linnen")
    with pytest.raises(ArgumentTypeError, match="deterministic: expected True or False"):
        rnncore.to_module(ours, "flax", deterministic=1)
    with jax.enable_x64(False), pytest.raises(DTypeError, match="float64"):
        rnncore.to_module(rnncore.RNN(3, 5), "flax")


def test_the_weights_are_copies():
    ours = rnncore.RNN.from_spec(network().spec, network().params, dtype="float32")
    made = rnncore.to_module(ours, "flax")
    before = np.array(made.cell.dense_h.kernel[...])
    ours.params["weight_hh_l0"][...] = 0
    assert np.array_equal(made.cell.dense_h.kernel[...], before)


def test_what_is_missing_is_said():
    code = """
import sys, rnncore
sys.modules["flax"] = None
try:
    rnncore.to_module(rnncore.RNN(3, 5), "flax")
except rnncore.errors.BackendUnavailableError as error:
    print(error)
"""
    line = python(code).strip()
    assert line.startswith("A module of Flax's needs flax") and line.endswith('pip install "rnncore[flax]"')


def test_random_numbers_are_those_of_nnx():
    with pytest.raises(ArgumentTypeError, match=r"rngs: expected a flax\.nnx\.Rngs, got 3"):
        rnncore.to_module(rnncore.RNN(3, 4, dtype="float32"), "flax", rngs=3)
