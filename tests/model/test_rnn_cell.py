"""RNNCell: one step, of its own or of a network."""

import copy
import pickle

import numpy as np
import pytest
import torch

import rnncore
from rnncore.errors import KernelUnsupportedError
from tests.tools.models import backends, give, host
from tests.tools.rounding import agree


@backends
def test_a_cell_is_torchs_cell(backend):
    peer = torch.nn.RNNCell(5, 6, nonlinearity="relu", dtype=torch.float64)
    cell = rnncore.RNNCell(5, 6, nonlinearity="relu", backend=backend, dtype="float64")
    cell.load_state_dict(peer.state_dict())
    rng = np.random.default_rng(0)
    for shape, state in (((3, 5), (3, 6)), ((5,), (6,))):
        x, h = rng.standard_normal(shape), rng.standard_normal(state)
        want = peer(torch.tensor(x), torch.tensor(h)).detach().numpy()
        agree(host(cell, cell(give(cell, x), give(cell, h))), want)
        want = peer(torch.tensor(x)).detach().numpy()
        agree(host(cell, cell(give(cell, x))), want)


@backends
def test_a_networks_cells_stream_it(backend):
    rnn = rnncore.RNN(5, [6, 4], backend=backend, dtype="float64", rng=0)
    x = np.random.default_rng(0).standard_normal((4, 3, 5))
    cells, h = [rnn.cell(k) for k in range(2)], [None, None]
    for x_t in x:
        below = give(rnn, x_t)
        for k, cell in enumerate(cells):
            below = h[k] = cell(below, h[k])
    _, h_n = rnn(give(rnn, x))
    for k in range(2):
        agree(host(rnn, h[k]), host(rnn, h_n[k][0]))


@backends
def test_a_networks_cell_has_the_arrays_of_its_layer_under_its_own_names(backend):
    rnn = rnncore.RNN(5, [6, 4], bidirectional=True, backend=backend, rng=0)
    cell = rnn.cell(1, reverse=True)
    assert (cell.input_size, cell.hidden_size) == (12, 4) and repr(cell).startswith("RNNCell(12, 4, backend=")
    assert list(cell.params) == list(cell.state_dict()) == list(rnncore.RNN(12, 4).params)
    for name in ("num_layers", "bidirectional", "explain"):  # those are a network's
        assert not hasattr(cell, name)
    before = dict(cell.params)
    assert all(before[k] is rnn.params[k.replace("_l0", "_l1_reverse")] for k in before)
    rnn.set_params({k: v * 0.5 for k, v in rnn.params.items()})
    assert all(cell.params[k] is v for k, v in before.items())
    cell.set_params({"bias_ih_l0": before["bias_ih_l0"] * 3})
    assert rnn.params["bias_ih_l1_reverse"] is not cell.params["bias_ih_l0"]


def test_a_cell_that_requires_a_kernel_runs_it_or_says_why_not():
    x = np.ones((3, 2))
    cell = rnncore.RNNCell(2, 3, kernel="require", backend="strict")
    with pytest.raises(KernelUnsupportedError, match="backend 'strict' has no scans"):
        cell(give(cell, x))
    with pytest.raises(KernelUnsupportedError, match="softplus"):
        rnncore.RNN(2, 3, nonlinearity="softplus", kernel="require").cell()(x)
    asked, plain = rnncore.RNNCell(2, 3, kernel="require", rng=0), rnncore.RNNCell(2, 3, rng=0)
    h_next, pullback = asked.vjp(x)
    want, pull = plain.vjp(x)
    agree(h_next, want)
    agree(pullback(want).x, pull(want).x)
    agree(asked.jvp(x, x_dot=x)[1], plain.jvp(x, x_dot=x)[1])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batched", [True, False])
@backends
def test_a_cells_derivatives_are_those_of_one_step(backend, batched, bias):
    rnn = rnncore.RNN(5, 6, bias=bias, backend=backend, dtype="float64", rng=0)
    cell, rng = rnn.cell(), np.random.default_rng(1)
    lead = (3,) if batched else ()
    x, h, d = (give(rnn, rng.standard_normal((*lead, n))) for n in (5, 6, 6))
    h_next, pullback = cell.vjp(x, h)
    found = pullback(d)
    output, _, whole = rnn.vjp(x[None], h[None])
    want = whole(d[None])
    agree(host(rnn, h_next), host(rnn, output[0]))
    agree(host(rnn, found.x), host(rnn, want.x[0]))
    agree(host(rnn, found.h), host(rnn, want.h0[0]))
    assert found.params.keys() == want.params.keys()
    for k in want.params:
        agree(host(rnn, found.params[k]), host(rnn, want.params[k]))
    t = {k: give(rnn, rng.standard_normal(v.shape)) for k, v in cell.params.items()}
    got = cell.jvp(x, h, x_dot=x, h_dot=h, params_dot=t)[1]
    wanted = rnn.jvp(x[None], h[None], x_dot=x[None], h0_dot=h[None], params_dot=t)[2].output[0]
    agree(host(rnn, got), host(rnn, wanted))


def test_a_cell_of_a_bidirectional_network():
    rnn = rnncore.RNN(5, 6, 2, bidirectional=True, rng=0)
    x = np.ones((3, 12))
    forward, backward = rnn.cell(1), rnn.cell(1, reverse=True)
    assert not np.array_equal(forward(x), backward(x))
    one = rnncore.RNN(12, 6, rng=1)
    one.load_state_dict({k.replace("_l1_reverse", "_l0"): v for k, v in backward.state_dict().items()})
    np.testing.assert_array_equal(one(x[None])[1][0], backward(x))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(
    "clone",
    [lambda c: c.to("torch"), lambda c: c.to(dtype="float64"), copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))],
    ids=["backend", "dtype", "deepcopy", "pickle"],
)
def test_a_cell_stays_the_cell_that_it_is(clone, layer, reverse):
    cell = rnncore.RNN(3, [4, 6], bidirectional=True, rng=0).cell(layer, reverse=reverse)
    twin = clone(cell)
    x = np.random.default_rng(0).standard_normal((2, (3, 8)[layer]))
    plugin = rnncore.get_backend(twin.backend)
    got = plugin.to_numpy(twin(plugin.asarray(x, dtype=twin.dtype, device=twin.device)))
    agree(got, cell(x))
    assert list(twin.state_dict()) == list(cell.state_dict())
    assert f"RNNCell({(3, 8)[layer]}, {(4, 6)[layer]}," in repr(twin)


def test_under_autocast_gradients_have_the_cells_dtype():
    cell = rnncore.RNNCell(3, 4, backend="torch")
    with torch.autocast("cpu", torch.bfloat16):
        output, pullback = cell.vjp(torch.ones(2, 3))
        grads = pullback(torch.ones_like(output))
    assert {g.dtype for g in (*grads.params.values(), grads.x, grads.h)} == {torch.float32}
