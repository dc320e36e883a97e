"""diagnose on PyTorch's own modules: the same report as for the network with the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import rnncore
from rnncore import diagnostics
from rnncore.diagnostics.foreign import as_rnn
from rnncore.diagnostics.run import diagnose
from rnncore.errors import ArgumentTypeError
from tests.diagnostics.monitor.networks import B, H, I, T, nn, numbers, refused, tensor
from tests.tools.rounding import EPS, PROMISED, agree

STEPS, BATCH, INPUT, WIDTH = 60, 3, 4, 6


def x_of(dtype=torch.float32, batch_first=False):
    x = torch.tensor(np.random.default_rng(0).standard_normal((STEPS, BATCH, INPUT)), dtype=dtype)
    return x.transpose(0, 1).contiguous() if batch_first else x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "options",
    [{}, {"num_layers": 2, "bidirectional": True}, {"nonlinearity": "relu"}, {"bias": False}, {"batch_first": True}],
    ids=lambda o: ",".join(o) or "plain",
)
def test_a_module_is_the_network_with_its_weights(options, dtype):
    torch.manual_seed(0)
    module = torch.nn.RNN(INPUT, WIDTH, dtype=dtype, **options)
    x = x_of(dtype, options.get("batch_first", False))
    rnn = diagnostics.as_rnn(module)
    np.testing.assert_allclose(rnn(x)[0].detach(), module(x)[0].detach(), rtol=0, atol=64 * torch.finfo(dtype).eps)
    report = rnncore.diagnose(module, x.requires_grad_())
    same = rnncore.diagnose(rnn, x.detach())
    assert report.verdict == same.verdict
    for a, b in zip(report.flow.total, same.flow.total, strict=True):
        np.testing.assert_array_equal(a, b)


def test_torchs_default_vanishes_and_the_module_is_left_alone():
    torch.manual_seed(0)
    module = torch.nn.RNN(INPUT, 32)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    report = rnncore.diagnose(module, x_of())
    assert report.verdict.label == "vanishing" and report.subject.backend == "torch"
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in module.parameters())


def test_a_cell_is_a_network_of_one_layer():
    torch.manual_seed(0)
    cell = torch.nn.RNNCell(INPUT, WIDTH, nonlinearity="relu")
    x, h = x_of(), torch.zeros(BATCH, WIDTH)
    output = diagnostics.as_rnn(cell)(x)[0]
    for t in range(STEPS):
        h = cell(x[t], h)
        torch.testing.assert_close(output[t], h, rtol=0, atol=64 * torch.finfo().eps)
    assert rnncore.diagnose(cell, x).flow.total[0].shape == (1, STEPS, BATCH)


def test_another_model_may_be_changed_without_reaching_the_module():
    module = torch.nn.RNN(INPUT, WIDTH)
    before = module.weight_hh_l0.detach().clone()
    rnn = diagnostics.as_rnn(module)
    rnn.params["weight_hh_l0"].mul_(2)
    torch.testing.assert_close(module.weight_hh_l0.detach(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    "other",
    [torch.nn.LSTM(3, 4), torch.nn.GRU(3, 4), torch.nn.Linear(3, 4), torch.nn.RNN, 3, None, object(), [1]],
    ids=lambda other: type(other).__name__,
)
def test_anything_else_is_named(other):
    with pytest.raises(ArgumentTypeError, match="expected"):
        rnncore.diagnose(other, x_of())


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


SHAPES = {
    "plain": {},
    "stack": {"num_layers": 3},
    "relu": {"nonlinearity": "relu"},
    "no bias": {"bias": False},
    "batch_first": {"batch_first": True},
    "bidirectional": {"bidirectional": True},
    "all": {"num_layers": 2, "nonlinearity": "relu", "bias": False, "batch_first": True, "bidirectional": True},
}


# Norms of gradients on either side, in nats.
NATS = 2 * PROMISED * EPS
modules = pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)


@modules
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batched", [True, False])
def test_an_rnn_computes_what_its_copy_does(options, dtype, batched):
    module = nn.RNN(I, H, dtype=dtype, **options)
    x = tensor(*((B, T, I) if options.get("batch_first") else (T, B, I)), dtype=dtype)
    x = x if batched else x[0] if options.get("batch_first") else x[:, 0]
    network = as_rnn(module)
    assert (network.backend, network.dtype, str(network.device)) == ("torch", dtype, "cpu")
    for got, want in zip(network(x), module(x), strict=True):
        agree(got, want)


@modules
def test_diagnose_of_a_module_is_that_of_the_same_network(options):
    module = nn.RNN(I, H, dtype=torch.float64, **options)
    same = rnncore.RNN(I, H, backend="numpy", **options)
    same.load_state_dict(module.state_dict())
    x = numbers(*((B, T, I) if options.get("batch_first") else (T, B, I)))
    got = rnncore.diagnose(module, torch.tensor(x), level="standard", lengths=[4, 0, 7])
    want = rnncore.diagnose(same, x, level="standard", lengths=[4, 0, 7])
    assert got.subject.backend == "torch"
    assert got.verdict.label == want.verdict.label
    for layer in range(len(got.flow.total)):
        np.testing.assert_allclose(got.flow.total[layer], want.flow.total[layer], rtol=0, atol=NATS)


@pytest.mark.parametrize("name", ["tanh", "relu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_cell_is_one_layer_over_the_sequence(name, bias, dtype):
    cell = nn.RNNCell(I, H, bias=bias, nonlinearity=name, dtype=dtype)
    x, h, states = tensor(T, B, I, dtype=dtype), torch.zeros(B, H, dtype=dtype), []
    for x_t in x:
        h = cell(x_t, h)
        states.append(h.detach())
    agree(as_rnn(cell)(x)[0], torch.stack(states))
    report = rnncore.diagnose(cell, x)
    assert (report.subject.steps, report.subject.batch) == (T, B)
    assert rnncore.diagnose(cell, x[:, 0]).subject.batch == 1


def test_flow_of_a_module_is_autograds():
    module = nn.RNN(I, H, dtype=torch.float64)
    x, h0 = tensor(T, B, I, dtype=torch.float64), tensor(1, B, H, dtype=torch.float64, seed=1).requires_grad_()
    d_output = tensor(T, B, H, dtype=torch.float64, seed=2)
    (module(x, h0)[0] * d_output).sum().backward()
    report = diagnose(module, x, (d_output, None), h0=h0)
    np.testing.assert_allclose(report.flow.initial[0][0], np.log(h0.grad[0].norm(dim=1).numpy()), rtol=0, atol=NATS)


@pytest.mark.parametrize("level", ["cheap", "standard", "deep"])
def test_what_requires_grad_is_looked_at_and_left_alone(level):
    module = nn.RNN(I, H, 2, dropout=0.5)
    x, h0 = tensor(T, B, I).requires_grad_(), tensor(2, B, H, seed=1).requires_grad_()
    d_output = tensor(T, B, H, seed=2).requires_grad_()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    plain = diagnose(module.eval(), x.detach(), (d_output.detach(), None), h0=h0.detach(), level=level)
    module.train()
    found = diagnose(module, x, (d_output, None), h0=h0, level=level)
    assert found.to_json() == plain.to_json()  # in training mode too: no mask is drawn
    assert module.training and all(p.grad is None and p.requires_grad for p in module.parameters())
    assert x.grad is None and x.requires_grad and h0.grad is None
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_weights_are_copied_and_the_dropout_is_kept():
    module = nn.RNN(I, H, 2, dropout=0.25)
    network = as_rnn(module)
    assert network.spec.dropout == 0.25
    with torch.no_grad():
        module.weight_hh_l0.zero_()
    assert network.params["weight_hh_l0"].any()
    assert not any(p.requires_grad for p in network.params.values())


def test_half_precision_and_a_parametrised_weight():
    half = nn.RNN(I, H, dtype=torch.bfloat16)
    assert diagnose(half, tensor(T, B, I, dtype=torch.bfloat16)).subject.dtype == "bfloat16"
    module = nn.RNN(I, H)
    nn.utils.parametrizations.orthogonal(module, "weight_hh_l0")
    w = as_rnn(module).params["weight_hh_l0"]
    agree(w @ w.T, torch.eye(H))


def test_an_rnncore_network_is_itself():
    network = rnncore.RNN(I, H)
    assert as_rnn(network) is network


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(I, I), nn.RNN(I, H))


class OwnForward(nn.RNN):
    def forward(self, x, h0=None):
        return super().forward(2 * x, h0)


class OwnForwardCell(nn.RNNCell):
    def forward(self, x, h0=None):
        return super().forward(2 * x, h0)


class NeedsArguments:
    def parameters(self, kind):
        raise AssertionError(kind)


class OtherParameters:
    def parameters(self):
        return {"w": np.ones(3)}


def replaced_forward():
    module = nn.RNN(I, H)
    module.forward = lambda x: x
    return module


EXPECTED = "expected an rnncore.RNN"


NO_NETWORK = {
    "LSTM": (nn.LSTM(I, H), ["torch.nn.RNN", "torch.nn.RNNCell", "got torch.nn.modules.rnn.LSTM"]),
    "LSTM with a projection": (nn.LSTM(I, H, proj_size=2), ["LSTM"]),
    "GRU": (nn.GRU(I, H), ["got torch.nn.modules.rnn.GRU"]),
    "LSTMCell": (nn.LSTMCell(I, H), ["LSTMCell"]),
    "GRUCell": (nn.GRUCell(I, H), ["GRUCell"]),
    "Linear": (nn.Linear(I, H), ["Linear"]),
    "without parameters": (nn.Tanh(), ["Tanh"]),
    "a model that holds one": (Model(), ["Model", "it holds one at 'inner.1'"]),
    "a class": (nn.RNN, ["got type"]),
    "an RNNCell of ours": (rnncore.RNNCell(I, H), ["rnncore.model.rnn_cell.RNNCell"]),
    "tensor": (torch.ones(3), ["torch.Tensor"]),
    "array": (np.ones(3), ["numpy.ndarray"]),
    "None": (None, ["NoneType"]),
    "function": (lambda x: x, ["function"]),
    "parameters with arguments": (NeedsArguments(), ["NeedsArguments"]),
    "parameters of a backend that converts none": (OtherParameters(), ["OtherParameters"]),
}


@pytest.mark.parametrize(("network", "words"), NO_NETWORK.values(), ids=NO_NETWORK)
def test_anything_else_is_refused(network, words):
    with refused(TypeError, "rnn: ", EXPECTED, *words):
        rnncore.diagnose(network, tensor(T, B, I))


@pytest.mark.parametrize("make", [lambda: OwnForward(I, H), lambda: OwnForwardCell(I, H), replaced_forward])
def test_another_forward_is_refused(make):
    with refused(TypeError, "rnn: ", "own forward"):
        rnncore.diagnose(make(), tensor(T, B, I))


def test_a_module_without_numbers_is_refused():
    with refused(ValueError, "device", "'meta'"):
        rnncore.diagnose(nn.RNN(I, H, device="meta"), tensor(T, B, I))


def test_a_plugin_that_converts_to_nonsense_is_refused(monkeypatch):
    monkeypatch.setattr(rnncore.get_backend("torch"), "from_module", lambda module: 3)
    with refused(TypeError, "backend 'torch'", "got int", "from_module"):
        as_rnn(nn.RNN(I, H))


@pytest.mark.parametrize(
    ("x", "options", "kind", "words"),
    [
        (tensor(T, B, I, dtype=torch.float64), {}, TypeError, ["x", "float32", "float64"]),
        (tensor(T, B, I + 1), {}, ValueError, ["x", f"input_size {I}"]),
        (numbers(T, B, I), {}, TypeError, ["x", "'torch'", "numpy.ndarray"]),
        (torch.ones(T, B, I, dtype=torch.int64), {}, TypeError, ["x", "int64"]),
        (nn.utils.rnn.pack_padded_sequence(tensor(T, B, I), [9, 5, 2]), {}, TypeError, ["x", "PackedSequence"]),
        (tensor(T, B, I), {"h0": tensor(1, B, H + 1)}, ValueError, ["h0"]),
        (tensor(T, B, I), {"cotangent": (tensor(T, B, H + 1), None)}, ValueError, ["cotangent[0]"]),
        (tensor(T, B, I), {"cotangent": tensor(T, B, H)}, TypeError, ["cotangent", "Tensor"]),
        (tensor(T, B, I), {"lengths": [T + 1, 1, 1]}, ValueError, ["lengths[0]"]),
        (tensor(T, B, I), {"level": "chap"}, ValueError, ["level", "did you mean 'cheap'"]),
        (tensor(T, B, I), {"max_bytes": 10}, ValueError, ["max_bytes"]),
    ],
)
def test_bad_input_to_a_module(x, options, kind, words):
    with refused(kind, *words):
        rnncore.diagnose(nn.RNN(I, H), x, **options)
