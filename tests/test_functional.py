"""The pure functions give what a model gives."""

import numpy as np
import pytest
import torch

import rnncore
from rnncore.errors import StateDictError
from tests.tools.models import backends, give, host
from tests.tools.rounding import agree


@backends
def test_the_functions_and_the_model_give_the_same(backend):
    rnn = rnncore.RNN(5, [6, 4], nonlinearity="relu", bidirectional=True, batch_first=True, backend=backend, rng=0)
    x = give(rnn, np.random.default_rng(0).standard_normal((3, 4, 5)))
    options = {"nonlinearity": "relu", "batch_first": True, "lengths": [2, 4, 0]}
    params = dict(rnn.params)
    f = rnncore.functional
    assert f.spec_of(params, nonlinearity="relu", batch_first=True) == rnn.spec
    output, h_n = f.rnn(x, params, **options)
    want, want_h = rnn(x, lengths=[2, 4, 0])
    np.testing.assert_array_equal(host(rnn, output), host(rnn, want))
    np.testing.assert_array_equal(host(rnn, h_n[1]), host(rnn, want_h[1]))
    a, b = f.vjp(x, params, **options)[2](output), rnn.vjp(x, lengths=[2, 4, 0])[2](output)
    np.testing.assert_array_equal(host(rnn, a.x), host(rnn, b.x))
    a, b = f.jvp(x, params, x_dot=x, **options)[2], rnn.jvp(x, lengths=[2, 4, 0], x_dot=x)[2]
    np.testing.assert_array_equal(host(rnn, a.output), host(rnn, b.output))
    a, b = f.trace(x, params, **options), rnn.trace(x, lengths=[2, 4, 0])
    np.testing.assert_array_equal(host(rnn, a.z[1]), host(rnn, b.z[1]))


def test_the_functional_cell_is_torchs():
    torch.manual_seed(0)
    peer = torch.nn.RNNCell(5, 6)
    x, h = torch.randn(3, 5), torch.randn(3, 6)
    got = rnncore.functional.rnn_cell(x, h, peer.weight_ih, peer.weight_hh, peer.bias_ih, peer.bias_hh)
    agree(got, peer(x, h))


def test_parameters_that_make_up_no_network_are_all_listed():
    params = rnncore.RNN(5, 6, 2, bidirectional=True).state_dict()
    del params["weight_ih_l1"], params["bias_hh_l0_reverse"]
    params["weight_hh_l0_reverse"] = np.ones((2, 2))
    with pytest.raises(StateDictError) as error:
        rnncore.functional.rnn(np.ones((2, 3, 5)), params)
    assert all(n in str(error.value) for n in ("weight_ih_l1", "bias_hh_l0_reverse", "weight_hh_l0_reverse"))
