"""A network between two libraries: layers in, the same layers out; what is no network is refused."""

import numpy as np
import pytest

import rnncore
from rnncore.errors import ArgumentValueError, InterchangeError, UnknownNameError
from rnncore.interchange.portable import Asked, Direction, assemble, layers_of
from tests.interchange.networks import network


def direction(h=5, i=3, bias=True, dtype="f4", seed=0):
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in ((h, i), (h, h), (h,), (h,))]
    return Direction(*(arrays if bias else arrays[:2]))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 3},
        {"bidirectional": True, "num_layers": 2},
        {"bias": False},
        {"nonlinearity": "relu", "clip": 2.0},
    ],
    ids=str,
)
def test_layers_go_out_and_in(options):
    given = network(**options)
    spec = given.spec
    found = assemble(layers_of(given), nonlinearity=spec.nonlinearity, batch_first=spec.batch_first)
    assert found.spec == spec and found.dtype == "float32"
    assert list(found.params) == list(given.params)
    assert all(found.params[n] is given.params[n] for n in given.params)


def test_a_missing_bias_is_zero_where_another_is_given():
    one, two = direction(bias=False), direction(i=5, seed=1)
    found = assemble(
        [[one], [Direction(two.weight_ih, two.weight_hh, two.bias_ih)]], nonlinearity="tanh", batch_first=True
    )
    zero = np.zeros(5, "f4")
    assert all(np.array_equal(found.params[n], zero) for n in ("bias_ih_l0", "bias_hh_l0", "bias_hh_l1"))
    assert found.params["bias_ih_l1"] is two.bias_ih


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([], "expected layers"),
        ([[direction()], [direction(i=5), direction(i=5)]], r"got \[1, 2\]"),
        ([[direction()] * 3], r"got \[3\]"),
        ([[direction()], [direction(i=4)]], r"weight_ih_l1: expected shape \(5, 5\), got \(5, 4\)"),
        ([[direction()], [direction(i=5, dtype="f8")]], "expected arrays of one dtype, got float32, float64"),
        ([[Direction(np.ones((5, 3), "i4"), np.ones((5, 5), "i4"))]], "one floating dtype, got int32"),
        ([[Direction(np.ones((5, 3)), np.ones((5, 4)))]], r"got \(5, 3\) for the input and \(5, 4\) for the state"),
        ([[Direction(np.ones((5, 0)), np.ones((5, 5)))]], r"got \(5, 0\) for the input"),
        ([[Direction(np.ones((0, 3)), np.ones((0, 0)))]], r"\(0, 0\) for the state"),
        ([[Direction(np.ones((5, 3)), np.ones((5, 5, 1)))]], r"\(5, 5, 1\) for the state"),
        ([[Direction(np.ones(5), np.ones((5, 5)))]], r"got \(5,\) for the input"),
        ([[Direction(np.ones((5, 3)), np.ones((5, 5)), np.ones(4))]], r"a bias of shape \(5,\), got \(4,\)"),
    ],
)
def test_what_is_no_network_is_refused(layers, words):
    with pytest.raises(InterchangeError, match=words):
        assemble(layers, nonlinearity="tanh", batch_first=False)


def test_one_bias_is_the_sum():
    part = direction()
    assert np.array_equal(part.bias, part.bias_ih + part.bias_hh)
    assert Direction(part.weight_ih, part.weight_hh, None, part.bias_hh).bias is part.bias_hh
    assert Direction(part.weight_ih, part.weight_hh).bias is None


def test_what_the_source_leaves_open_is_demanded_and_never_assumed():
    with pytest.raises(
        ArgumentValueError, match=r"nonlinearity: expected a value, as a state dict does not say it; got None"
    ):
        Asked().need("nonlinearity", "a state dict does not say it")
    assert Asked(batch_first=False).need("batch_first", "it is not said") is False


def test_what_the_source_says_may_be_said_again_but_not_otherwise():
    assert Asked(batch_first=True).settle("batch_first", True) is True
    assert Asked().settle("batch_first", True) is True
    with pytest.raises(ArgumentValueError, match="batch_first: expected True, as the source says, got False"):
        Asked(batch_first=False).settle("batch_first", True)


def test_a_nonlinearity_may_be_said_again_by_its_name():
    leaky = rnncore.get_nonlinearity("leaky_relu", alpha=0.2)
    clipped = rnncore.get_nonlinearity("tanh", clip=2.0)
    assert Asked(nonlinearity="Tanh").settle("nonlinearity", clipped) is clipped
    assert Asked(nonlinearity=leaky).settle("nonlinearity", leaky) is leaky
    with pytest.raises(ArgumentValueError, match=r"nonlinearity: expected .*alpha=0.2.*got .*alpha=0.01"):
        Asked(nonlinearity="leaky_relu").settle("nonlinearity", leaky)


def test_one_of_several_networks_is_chosen_by_its_name():
    assert Asked().choose(["a"], ["a", "b"], "a file") == "a"
    assert Asked(name="b").choose(["a"], ["a", "b"], "a file") == "b"
    with pytest.raises(ArgumentValueError, match="name: expected a network that a file holds, 'one', 'two', got None"):
        Asked().choose(["one", "two"], ["one", "two"], "a file")
    for name in ("tow", ["one"]):
        with pytest.raises(UnknownNameError, match="name: expected a network that a file holds, 'one', got"):
            Asked(name=name).choose(["one"], ["one"], "a file")
