"""The spec: a network without its numbers."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch

import rnncore
from rnncore import spec as spec_module
from rnncore.errors import ArgumentTypeError, ArgumentValueError


def test_a_numpy_number_is_a_clip_and_sizes_can_be_read_back():
    rnn = rnncore.RNN(3, [4, 5], bidirectional=True, clip=np.float32(0.5))
    assert rnn.spec.nonlinearity.clip == 0.5
    assert (rnn.input_size, rnn.hidden_size, rnn.num_layers, rnn.bidirectional) == (3, (4, 5), 2, True)
    with pytest.raises(ArgumentTypeError):
        rnncore.RNN(3, 4, clip="1")


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"bidirectional": True}])
def test_parameters_have_torchs_names_and_shapes(options):
    spec = rnncore.RNNSpec.make(3, 4, 2, **options)
    peer = torch.nn.RNN(3, 4, 2, **options).state_dict()
    assert spec.parameter_shapes() == {name: tuple(value.shape) for name, value in peer.items()}


def test_a_configuration_brings_the_spec_back():
    spec = rnncore.RNNSpec.make(3, [4, 5], nonlinearity="elu", clip=2.0, bidirectional=True, dropout=0.5)
    assert rnncore.RNNSpec.from_config(spec.to_config()) == spec


@pytest.mark.parametrize("newer", ["bias", "batch_first", "dropout", "bidirectional"])
def test_an_option_that_an_older_version_lacks_has_its_default(monkeypatch, newer):
    """As if this option had come after version 0.1: an older file has no such key."""
    made = rnncore.RNNSpec.make(3, [4, 5], dropout=0.5, bidirectional=True, batch_first=True, bias=False)
    default = getattr(rnncore.RNNSpec.make(3, 4), newer)
    older = {name: value for name, value in made.to_config().items() if name != newer}
    with monkeypatch.context() as patch:
        patch.setattr(spec_module, "REQUIRED", spec_module.REQUIRED - {newer})
        assert rnncore.RNNSpec.from_config(older) == dataclasses.replace(made, **{newer: default})
        assert rnncore.RNNSpec.from_config(made.to_config()) == made
    with pytest.raises(ArgumentValueError, match=f"missing '{newer}'$"):
        rnncore.RNNSpec.from_config(older)


def test_a_configuration_with_an_unknown_key_names_it():
    config = rnncore.RNNSpec.make(3, 4).to_config()
    with pytest.raises(ArgumentValueError, match=r"unexpected 'leak', unexpected 7$"):
        rnncore.RNNSpec.from_config({**config, "leak": 0.1, 7: None})
    with pytest.raises(ArgumentTypeError, match=r"expected a mapping.*got list"):
        rnncore.RNNSpec.from_config([])


def test_a_pickle_of_a_version_without_an_option_has_its_default():
    """Of a frozen dataclass, the default is the class's own attribute."""
    made = rnncore.RNNSpec.make(3, 4)
    older = rnncore.RNNSpec.__new__(rnncore.RNNSpec)
    older.__dict__.update({name: value for name, value in vars(made).items() if name != "dropout"})
    assert pickle.loads(pickle.dumps(older)) == made
