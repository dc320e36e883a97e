"""Which of Keras's activations is which of rnncore's nonlinearities, by Keras's own numbers."""

import numpy as np
import pytest

import rnncore
from rnncore.errors import InterchangeError
from rnncore.interchange.keras.activations import NAMED, activation_of, nonlinearity_of
from tests.interchange.keras.models import numbers
from tests.tools.rounding import agree

keras = pytest.importorskip("keras", reason="the numbers are compared with Keras's own")
# On both sides of every corner, and on the corners.
Z = np.concatenate([np.linspace(-8, 8, 65), [-1.0, 1.0, 3.0, -3.0, 6.0, 0.0]]).astype("f4")
LAYERS = [
    keras.layers.LeakyReLU(negative_slope=0.25),
    keras.layers.ELU(alpha=0.5),
    keras.layers.ReLU(),
    keras.layers.ReLU(max_value=2.0),
    keras.layers.ReLU(negative_slope=0.25),
    keras.layers.ReLU(threshold=1.5),
    keras.layers.Activation("sigmoid"),
]


def serialised(activation):
    return keras.activations.serialize(keras.activations.get(activation))


def applied(function, z=Z):
    return function(z.astype("f8"), xp=np)


@pytest.mark.parametrize("name", NAMED)
def test_a_name_is_the_same_function_both_ways(name):
    function = nonlinearity_of(serialised(name))
    agree(
        applied(function), numbers(keras.activations.get(name)(Z)).astype("f8"), 64 * 2**29
    )  # float32 against float64
    assert nonlinearity_of(activation_of(function, "float32")) == function


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_a_layer_is_the_same_function_both_ways(layer):
    function = nonlinearity_of(serialised(layer))
    agree(numbers(layer(Z)), applied(function))
    said = activation_of(function, "float32")
    agree(numbers(keras.activations.get(said)(Z)), applied(function))
    assert nonlinearity_of(said) == function


def test_no_activation_is_the_identity():
    assert nonlinearity_of(None).name == nonlinearity_of("linear").name == "identity"


@pytest.mark.parametrize(
    "said",
    [
        "gelu",
        3,
        {"class_name": "LeakyReLU", "config": {"negative_slope": 0.1}, "module": "mine"},
        {"class_name": "LeakyReLU", "config": {}, "module": "keras.layers"},
        {"class_name": "LeakyReLU", "config": {"negative_slope": True}, "module": "keras.layers"},
        {"class_name": "LeakyReLU", "config": {"negative_slope": 10**400}, "module": "keras.layers"},
        {"class_name": "LeakyReLU", "config": [], "module": "keras.layers"},
        {"class_name": "PReLU", "config": {}, "module": "keras.layers"},
        {"class_name": "ReLU", "config": {"max_value": 1.0, "threshold": 0.5}, "module": "keras.layers"},
        {"class_name": "ReLU", "config": {"max_value": "1"}, "module": "keras.layers"},
        {"class_name": "ReLU", "config": {"negative_slope": 0.5, "threshold": 0.5}, "module": "keras.layers"},
        {"class_name": "Activation", "config": {"activation": {"class_name": "x"}}, "module": "keras.layers"},
    ],
    ids=str,
)
def test_what_is_not_known_is_none(said):
    assert nonlinearity_of(said) is None


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (rnncore.get_nonlinearity("affine", alpha=2.0), r"'affine', alpha=2.0, beta=0.0"),
        (rnncore.get_nonlinearity("scaled_tanh", alpha=1.7), "'scaled_tanh'"),
        (rnncore.get_nonlinearity("hard_sigmoid"), r"'hard_sigmoid', alpha=0.2, beta=0.5"),
        (rnncore.get_nonlinearity("leaky_relu", alpha=-0.5), "'leaky_relu', alpha=-0.5"),
        (rnncore.get_nonlinearity("thresholded_relu", alpha=-0.5), "'thresholded_relu', alpha=-0.5"),
        (rnncore.get_nonlinearity("tanh", clip=3.0), "'tanh', clip=3.0"),
        (rnncore.get_nonlinearity("identity", clip=3.0), "'identity', clip=3.0"),
        (rnncore.custom_nonlinearity(np.sin, np.cos, name="relu"), "the custom function 'relu'"),
        (rnncore.custom_nonlinearity(np.sin, np.cos, name="elu"), "the custom function 'elu'"),
    ],
    ids=str,
)
def test_what_keras_has_not_is_refused(function, words):
    with pytest.raises(InterchangeError, match=f"Keras has no activation that is {words}"):
        activation_of(function, "float32")


def test_functions_that_are_another_with_these_parameters():
    assert activation_of(rnncore.get_nonlinearity("scaled_tanh"), "float32") == "tanh"
    assert activation_of(rnncore.get_nonlinearity("affine"), "float32") == "linear"
