"""What the tests of Keras share."""

import numpy as np

import rnncore
from tests.interchange.networks import network

X = np.random.default_rng(1).standard_normal((2, 7, 3)).astype("f4")
SHAPES = [
    {"num_layers": layers, "bidirectional": both, "bias": bias}
    for layers in (1, 2, 3)
    for both in (False, True)
    for bias in (True, False)
]


def network_of(**options):
    """A Portable for inputs (B, T, I)."""
    return network(**{"batch_first": True, **options})


def rnn_of(portable):
    return rnncore.RNN.from_spec(portable.spec, portable.params, backend="numpy", dtype=portable.dtype)


def with_one_bias(portable):
    """The same parameters, of which bias_hh is zero: as Keras has one bias, only this makes the trip bit for bit."""
    for name, array in portable.params.items():
        if name.startswith("bias_hh"):
            array[:] = 0
    return portable


def numbers(tensor):
    return np.asarray(tensor.detach() if hasattr(tensor, "detach") else tensor)


def assert_same(portable, rnn):
    """Bit for bit, and with the same description."""
    found = rnn.portable()
    assert found.spec == portable.spec and found.dtype == portable.dtype
    assert list(found.params) == list(portable.params)
    for name, array in portable.params.items():
        assert found.params[name].dtype == array.dtype and found.params[name].tobytes() == array.tobytes(), name
