"""Activations of ONNX and rnncore's nonlinearities: names in any case, alpha and beta in order, and what has no default."""

import numpy as np
import pytest

import rnncore
from rnncore.errors import InterchangeError
from rnncore.interchange.onnx.functions import read_function, single, written
from rnncore.nonlinearity import NONLINEARITIES, get_nonlinearity


@pytest.mark.parametrize("name", NONLINEARITIES)
def test_every_function_goes_out_and_comes_back(name):
    given = get_nonlinearity(name, beta=0.5) if name == "affine" else get_nonlinearity(name)  # by default the identity
    known, alpha, beta = written(given, "float32")
    assert read_function([known] * 2, alpha * 2, beta * 2, None, "float32") == given


def test_names_are_read_in_any_case():
    for name in ("Tanh", "tanh", "TANH"):
        assert read_function([name], [], [], None, "float32").name == "tanh"


@pytest.mark.parametrize(
    ("names", "alphas", "betas", "want"),
    [
        (["LeakyRelu"], [], [], ("leaky_relu", 0.01, None)),
        (["LeakyRelu"], [0.25], [], ("leaky_relu", 0.25, None)),
        (["HardSigmoid"], [0.5], [], ("hard_sigmoid", 0.5, 0.5)),
        (["HardSigmoid"], [], [0.25], ("hard_sigmoid", 0.2, 0.25)),
        (["HardSigmoid"] * 2, [0.5, 0.5], [0.25, 0.25], ("hard_sigmoid", 0.5, 0.25)),
        (["ThresholdedRelu"], [], [], ("thresholded_relu", 1.0, None)),
        (["Elu"], [], [], ("elu", 1.0, None)),
        (["Affine"], [1.0], [0.0], ("identity", None, None)),
        (["Affine"], [2.0], [0.0], ("affine", 2.0, 0.0)),
        (["Relu"], [], [], ("relu", None, None)),
    ],
)
def test_alpha_and_beta_are_consumed_in_order_and_have_onnx_s_defaults(names, alphas, betas, want):
    found = read_function(names, alphas, betas, None, "float32")
    assert (found.name, found.alpha, found.beta) == want


@pytest.mark.parametrize(
    ("names", "alphas", "betas", "clip", "words"),
    [
        (["Sine"], [], [], None, "activations: expected those of ONNX's RNN, got 'Sine'"),
        (["identity"], [], [], None, "got 'identity'"),
        (["Tanh", "Relu"], [], [], None, "expected the same for both directions, got tanh and relu"),
        (["Elu", "Elu"], [0.5], [], None, "got elu of alpha 0.5 and elu of alpha 1.0"),
        (["Tanh"], [0.5], [], None, "activation_alpha: expected no more values than Tanh take"),
        (["Elu"], [], [0.5], None, "activation_beta: expected no more values than Elu take"),
        (
            ["Affine"],
            [0.5],
            [],
            None,
            "expected activation_alpha and activation_beta for Affine, which have no defaults",
        ),
        (["ScaledTanh"], [], [], None, "for ScaledTanh, which have no defaults"),
        (["Elu"], [np.nan], [], None, "activation_alpha: expected finite numbers, got nan"),
        (["Tanh"], [], [], 0.0, "clip: expected a number > 0, got 0.0"),
        (["Tanh"], [], [], -1.0, "clip: expected a number > 0, got -1.0"),
    ],
)
def test_what_is_no_function_of_rnncore_s_is_refused_by_name(names, alphas, betas, clip, words):
    with pytest.raises(InterchangeError, match=words):
        read_function(names, alphas, betas, clip, "float32")


def test_a_clip_without_limit_is_none():
    assert read_function(["Tanh"], [], [], np.inf, "float32").clip is None


def test_a_number_of_an_attribute_is_its_float32_exactly_where_the_network_can_tell():
    held = float(np.float32(0.1))
    assert read_function(["Elu"], [held], [], held, "float64") == get_nonlinearity("elu", alpha=held, clip=held)
    assert read_function(["Elu"], [held], [], held, "float32") == get_nonlinearity("elu", alpha=0.1, clip=0.1)


def test_a_number_is_written_only_if_float32_holds_it_or_the_network_computes_in_no_more():
    assert single("clip", 0.1, "float32") == float(np.float32(0.1))
    assert single("clip", 0.25, "float64") == 0.25
    with pytest.raises(
        InterchangeError, match=r"clip: expected a number that ONNX's float32 attributes hold, got 0\.1"
    ):
        single("clip", 0.1, "float64")


def test_a_custom_function_is_refused():
    square = rnncore.custom_nonlinearity(lambda z: z * z, lambda z: 2 * z, name="square")
    with pytest.raises(InterchangeError, match="got the custom function 'square'"):
        written(square, "float32")
