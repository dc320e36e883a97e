"""The spec: a network without its numbers."""

import numpy as np
import pytest
import torch

import rnncore
from rnncore.errors import ArgumentTypeError


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
