"""The spec: a network without its numbers."""

import numpy as np
import pytest

import rnncore
from rnncore.errors import ArgumentTypeError


def test_a_numpy_number_is_a_clip_and_sizes_can_be_read_back():
    rnn = rnncore.RNN(3, [4, 5], bidirectional=True, clip=np.float32(0.5))
    assert rnn.spec.nonlinearity.clip == 0.5
    assert (rnn.input_size, rnn.hidden_size, rnn.num_layers, rnn.bidirectional) == (3, (4, 5), 2, True)
    with pytest.raises(ArgumentTypeError):
        rnncore.RNN(3, 4, clip="1")
