"""Nonlinearities by name or the user's own: lookup, clip, configuration and errors."""

import copy
import pickle

import numpy as np
import pytest
from array_api_compat import numpy as xp

import rnncore
from rnncore.errors import ArgumentTypeError, ArgumentValueError, DTypeError, ShapeError, UnknownNameError
from rnncore.nonlinearity.nonlinearity import NONLINEARITIES, as_nonlinearity, from_config
from tests.tools.rounding import agree


def test_clip_limits_the_pre_activation():
    g = rnncore.get_nonlinearity("tanh", clip=0.5)
    z = np.asarray([-2.0, -0.5, 0.1, 0.5, 2.0])
    np.testing.assert_array_equal(g(z, xp=xp), np.tanh(np.clip(z, -0.5, 0.5)))
    # 1 - h^2 rounds h, its square and the difference, of numbers below 1.
    agree(g.derivative(z, xp=xp), np.array([0, *(1 - np.tanh(z[1:4]) ** 2), 0]), 4)
    assert g.log_derivative(z, xp=xp)[0] == -np.inf
    assert g != rnncore.get_nonlinearity("tanh") and g.with_clip(None) == rnncore.get_nonlinearity("tanh")


@pytest.mark.parametrize("name", ["Tanh", "LeakyRelu", "ThresholdedRelu", "HardSigmoid", "ScaledTanh", "leaky-relu"])
def test_onnx_spelling_is_understood(name):
    assert rnncore.get_nonlinearity(name).name in NONLINEARITIES


def test_configuration_and_pickle_keep_everything():
    for name in NONLINEARITIES:
        g = rnncore.get_nonlinearity(name, clip=3.0)
        assert from_config(g.to_config()) == g
        assert pickle.loads(pickle.dumps(g)) == g
        assert copy.deepcopy(g) == g and hash(copy.deepcopy(g)) == hash(g)


def square(z):
    return z * z


def twice(z):
    return 2 * z


def test_a_users_own():
    g = rnncore.custom_nonlinearity(square, twice, gamma=None, clip=3.0)
    z = np.asarray([-4.0, 2.0])
    np.testing.assert_array_equal(g(z, xp=xp), [9, 4])
    np.testing.assert_array_equal(g.derivative(z, xp=xp), [0, 4])
    agree(g.log_derivative(z, xp=xp), np.array([-np.inf, np.log(4)]), 2)  # a logarithm, within 1 eps of the exact one
    assert g.name == "square" and g.gamma is None and g.is_custom and g.derivative_needs_z
    assert pickle.loads(pickle.dumps(g)) == g
    assert as_nonlinearity((square, twice)).name == "square"


@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        (lambda z: z[:1], ShapeError, "must keep the shape"),
        (lambda z: z.astype("f4"), DTypeError, "must keep the dtype float64, got float32"),
        (lambda z: 3.0, ArgumentTypeError, "must return an array"),
    ],
)
@pytest.mark.parametrize("which", ["function", "derivative"])
def test_a_users_own_that_breaks_the_rules(function, error, words, which):
    pair = (function, twice) if which == "function" else (square, function)
    rnn = rnncore.RNN(2, 2, nonlinearity=pair)
    with pytest.raises(error, match=words):
        rnn.vjp(np.ones((2, 3, 2)))[2](np.ones((2, 3, 2)))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: rnncore.get_nonlinearity("tahn"), UnknownNameError, "did you mean 'tanh'"),
        (lambda: rnncore.get_nonlinearity("swish"), UnknownNameError, "expected one of tanh"),
        (lambda: rnncore.get_nonlinearity(3), ArgumentTypeError, "nonlinearity: expected a name"),
        (lambda: rnncore.get_nonlinearity("tanh", alpha=1.0), ArgumentValueError, "has no alpha"),
        (lambda: rnncore.get_nonlinearity("elu", alpha=float("nan")), ArgumentValueError, "alpha: expected a finite"),
        (lambda: rnncore.get_nonlinearity("elu", alpha="1"), ArgumentTypeError, "alpha: expected a finite"),
        (lambda: rnncore.get_nonlinearity("tanh", clip=0), ArgumentValueError, "clip: expected a positive"),
        (lambda: rnncore.get_nonlinearity("tanh", clip=True), ArgumentTypeError, "clip: expected a positive"),
        (lambda: rnncore.get_nonlinearity("tanh", clip=float("inf")), ArgumentValueError, "clip"),
        (lambda: rnncore.custom_nonlinearity(1, twice), ArgumentTypeError, "function: expected a callable"),
        (lambda: rnncore.custom_nonlinearity(square, None), ArgumentTypeError, "derivative: expected a callable"),
        (lambda: rnncore.custom_nonlinearity(square, twice, gamma=-1), ArgumentValueError, "gamma"),
        (lambda: as_nonlinearity((square,)), ArgumentTypeError, "pair"),
        (lambda: from_config({"nme": "tanh"}), ArgumentValueError, "keys"),
    ],
)
def test_bad_nonlinearities_are_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
