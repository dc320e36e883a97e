"""diagnose on PyTorch's own modules: the same report as for the network with the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import rnncore
from rnncore import diagnostics
from rnncore.errors import ArgumentTypeError

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
