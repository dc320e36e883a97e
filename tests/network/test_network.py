"""The mapping of a network's parameters."""

import copy
import pickle

import numpy as np
import pytest

import rnncore
from rnncore.network.network import Params


def test_it_holds_the_arrays_and_cannot_be_changed():
    arrays = {"a": np.zeros(2), "b": np.ones(3)}
    params = Params(arrays)
    arrays["a"] = None  # nor by way of the mapping that it was made from
    assert list(params) == ["a", "b"] and len(params) == 2 and "a" in params
    assert params["b"] is arrays["b"] and params["a"].shape == (2,)
    assert {**params} == dict(params.items())
    with pytest.raises(TypeError):
        params["a"] = 0
    with pytest.raises(TypeError):
        del params["a"]
    with pytest.raises(KeyError):
        params["c"]
    assert repr(Params({"a": 1})) == "Params({'a': 1})"


def test_it_is_copied_and_pickled():
    params = rnncore.RNN(2, 3, rng=0).params
    assert type(params) is Params
    for again in (copy.copy(params), copy.deepcopy(params), pickle.loads(pickle.dumps(params))):
        assert type(again) is Params and list(again) == list(params)
        for name, value in again.items():
            np.testing.assert_array_equal(value, params[name])


def test_replacing_parameters_leaves_an_older_mapping_as_it_was():
    rnn = rnncore.RNN(2, 3, rng=0)
    before = rnn.params
    old = before["weight_hh_l0"]
    rnn.set_params({"weight_hh_l0": np.zeros((3, 3))})
    assert before["weight_hh_l0"] is old and not rnn.params["weight_hh_l0"].any()
    assert rnn.params["weight_ih_l0"] is before["weight_ih_l0"]
