"""Modules of mlx.nn in and out: the same numbers, and what has no place there is named."""

from functools import partial

import numpy as np
import pytest

import rnncore
from rnncore.errors import ArgumentTypeError, ArgumentValueError, InterchangeError, UnknownNameError
from tests.interchange.networks import network, reference
from tests.tools.rounding import agree

mx = pytest.importorskip(
    "mlx.core", reason='MLX is not installed, or has no library here: pip install "rnncore[mlx]"', exc_type=ImportError
)
from mlx import nn  # noqa: E402
from mlx.optimizers import SGD  # noqa: E402


def model(backend="numpy", dtype="float32", **options):
    given = network(**{"dtype": dtype} | options)
    return rnncore.RNN.from_spec(given.spec, given.params, dtype=dtype, backend=backend)


X = np.random.default_rng(1).standard_normal((2, 7, 3)).astype("f4")
FUNCTIONS = [
    "tanh",
    "relu",
    "sigmoid",
    "identity",
    "softsign",
    "softplus",
    rnncore.get_nonlinearity("leaky_relu", alpha=0.25),
    rnncore.get_nonlinearity("elu", alpha=1.5),
]


@pytest.mark.parametrize("options", [{}, {"num_layers": 3}, {"hidden_size": [6, 4]}, {"bias": False}], ids=str)
@pytest.mark.parametrize("function", FUNCTIONS, ids=str)
def test_a_module_computes_what_the_network_does_and_comes_back(options, function):
    rnn = model(nonlinearity=function, batch_first=True, **options)
    theirs = rnncore.to_module(rnn, "mlx")
    want, _ = reference(rnn.portable(), X)
    agree(np.array(theirs(mx.array(X))), want)
    agree(np.array(theirs(mx.array(X[0]))), want[0])  # unbatched
    back = rnncore.from_module(theirs)
    assert (back.backend, back.spec) == ("mlx", rnn.spec)
    agree(np.array(back(mx.array(X))[0]), want)
    again = rnncore.from_module(rnncore.to_module(back, "mlx"))  # nothing is summed any more
    assert all(np.array_equal(again.params[n], back.params[n]) for n in back.params)
    zero = [n for n in back.params if n.startswith("bias_hh")]
    assert not any(np.array(back.params[n]).any() for n in zero)
    assert all(np.array_equal(back.params[n], rnn.params[n]) for n in back.params if n.startswith("weight"))


def test_numbers_of_64_bits_and_of_16():
    theirs = rnncore.to_module(model(dtype="float64", batch_first=True), "mlx")
    assert {a.dtype for a in theirs.parameters().values()} == {mx.float64}
    assert rnncore.from_module(theirs).dtype == mx.float64
    half = rnncore.to_module(model(), "mlx", dtype="bfloat16")
    assert rnncore.from_module(half).dtype == mx.bfloat16


def test_a_network_of_the_other_order_of_axes_gives_the_same_module():
    """MLX's module has one order, (B, T, I), which is a matter of its input and not of the weights."""
    one, other = (rnncore.to_module(model(batch_first=b), "mlx") for b in (True, False))
    assert np.array_equal(one(mx.array(X)), other(mx.array(X)))


def test_three_steps_of_training_are_the_same_on_either_side():
    rnn = model(num_layers=2, batch_first=True)
    theirs, x = rnncore.to_module(rnn, "mlx"), mx.array(X)
    step = nn.value_and_grad(theirs, lambda m: mx.mean(mx.square(m(x))))
    optimiser = SGD(learning_rate=0.1)
    ours = rnncore.from_module(theirs).to("numpy", dtype="float64")
    rate = 0.1 / X[..., :1].size / 5 * 2
    for _ in range(3):
        _, grads = step(theirs)
        optimiser.update(theirs, grads)
        output, _, pullback = ours.vjp(X.astype("f8"))
        found = pullback(output).params
        # One bias: the other one stays what it is.
        ours.set_params({n: a - rate * found[n] for n, a in ours.params.items() if not n.startswith("bias_hh")})
    for n, a in rnncore.from_module(theirs).params.items():
        # Each step adds a gradient that is right to 64 eps of the largest, times less than 1: three of them.
        agree(np.array(a), ours.params[n], 3 * 64, what=n)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"bidirectional": True}, "bidirectional=True"),
        ({"clip": 3.0}, "clip=3.0"),
        ({"nonlinearity": "affine"}, "nonlinearity='affine'"),
        ({"nonlinearity": rnncore.get_nonlinearity("leaky_relu", alpha=2.0)}, "alpha=2.0"),
        ({"nonlinearity": (lambda z: z, lambda z: z * 0 + 1)}, "nonlinearity="),
        ({"num_layers": 2, "dropout": 0.5}, "dropout=0.5"),
        ({"bidirectional": True, "clip": 1.0}, "bidirectional=True, clip=1.0"),
    ],
)
def test_what_mlx_cannot_say_is_named(given, words):
    with pytest.raises(InterchangeError, match=words):
        rnncore.to_module(rnncore.RNN(3, 4, **given), "mlx")


class Model(nn.Module):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


class OwnCall(nn.RNN):
    def __call__(self, x, hidden=None):
        return 2 * super().__call__(x, hidden)


def test_the_only_rnn_in_a_model_is_taken_and_the_rest_is_named():
    inner = nn.RNN(3, 5)
    held = Model(body=nn.Sequential(nn.Linear(3, 3), inner), head=nn.Linear(5, 1))
    with pytest.warns(
        UserWarning, match=r"left out: Linear 'body.layers.0', Linear 'head' beside the RNN 'body.layers.1'"
    ):
        found = rnncore.from_module(held)
    assert np.array_equal(found.params["weight_hh_l0"], inner.Whh)
    assert rnncore.from_module(held, name="body.layers.1", backend="numpy").backend == "numpy"
    stack = Model(stack=nn.Sequential(nn.RNN(3, 5), nn.RNN(5, 4, bias=False)))
    assert rnncore.from_module(stack).spec.hidden_sizes == (5, 4)
    assert rnncore.from_module(stack, name="stack.layers.1").spec.bias is False


@pytest.mark.parametrize(
    ("module", "name", "error", "words"),
    [
        (Model(a=nn.RNN(3, 5), b=nn.RNN(3, 5)), None, ArgumentValueError, "name: expected one of 'a', 'b'.*got None"),
        (Model(a=nn.RNN(3, 5)), "c", UnknownNameError, "name: expected one of 'a'.*got 'c'"),
        (nn.RNN(3, 5), 3, UnknownNameError, "name: expected one of ''.*got 3"),
        (Model(a=nn.LSTM(3, 5)), None, ArgumentTypeError, "module: .*it holds LSTM 'a', which is no such RNN"),
        (nn.GRU(3, 5), None, ArgumentTypeError, "module: expected .*GRU"),
        (OwnCall(3, 5), None, ArgumentTypeError, "module: expected .*OwnCall"),
        (nn.Sequential(nn.RNN(3, 5), OwnCall(5, 5)), "", UnknownNameError, "holds OwnCall 'layers.1'"),
        (nn.Linear(3, 5), None, ArgumentTypeError, "module: expected .*Linear"),
        (nn.RNN(3, 5, nonlinearity=lambda z: z), None, InterchangeError, "nonlinearity: expected one of.*<lambda>"),
        (
            nn.RNN(3, 5, nonlinearity=partial(nn.leaky_relu, negative_slope=2.0)),
            None,
            InterchangeError,
            "nonlinearity: expected one of.*partial",
        ),
        (nn.Sequential(nn.RNN(3, 5), nn.RNN(5, 5, nonlinearity=nn.relu)), None, InterchangeError, "got tanh, relu"),
        (nn.Sequential(nn.RNN(3, 5), nn.RNN(4, 5)), None, InterchangeError, "weight_ih_l1: expected shape"),
    ],
)
def test_what_is_no_network_is_named(module, name, error, words):
    with pytest.raises(error, match=words):
        rnncore.from_module(module, name=name)


def test_the_weights_alone_of_a_module_with_another_function():
    module = nn.RNN(3, 5, nonlinearity=mx.abs)
    with pytest.raises(InterchangeError, match=r"from_module\(dict\(module.parameters\(\)\), nonlinearity=..., batch"):
        rnncore.from_module(module)
    absolute = (abs, lambda z: z / abs(z))
    rnn = rnncore.from_module(dict(module.parameters()), nonlinearity=absolute, batch_first=True)
    agree(np.array(rnn(mx.array(X))[0]), np.array(module(mx.array(X))))


@pytest.mark.parametrize(
    "function",
    [
        nn.tanh,
        mx.tanh,
        nn.Tanh(),
        nn.relu,
        nn.ReLU(),
        mx.sigmoid,
        nn.Softplus(),
        nn.LeakyReLU(0.5),
        nn.ELU(2.0),
        nn.elu,
    ],
    ids=lambda function: getattr(function, "__name__", type(function).__name__),
)
def test_a_function_of_mlx_is_known_in_each_spelling(function):
    module = nn.RNN(3, 5)
    module.nonlinearity = function  # not as an argument, where MLX takes a module for none
    agree(np.array(rnncore.from_module(module)(mx.array(X))[0]), np.array(module(mx.array(X))))


def test_functions_in_a_sequential_are_named_too():
    with pytest.warns(UserWarning, match=r"left out: tanh 'layers.1' beside the RNN 'layers.0'"):
        rnncore.from_module(nn.Sequential(nn.RNN(3, 5), mx.tanh))
    held = Model(body=nn.Sequential(mx.tanh, nn.RNN(3, 5)))
    with pytest.warns(UserWarning, match=r"left out: tanh 'body.layers.0' beside the RNN 'body.layers.1'"):
        rnncore.from_module(held)


def test_a_module_without_one_of_its_weights_is_refused():
    module = nn.RNN(3, 5)
    del module["Whh"]
    with pytest.raises(InterchangeError, match="got none for Whh"):
        rnncore.from_module(module)
