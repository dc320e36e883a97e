"""Versions of PyTorch that lack a private name: a warning, and PyTorch's own operations with the same numbers."""

import importlib.util

import pytest
import torch
from rnncore_torch import _private, nn

STEPS, BATCH, INPUT, HIDDEN = 5, 3, 4, 6
EPS = torch.finfo(torch.float64).eps
# Sums of at most STEPS * BATCH terms, in two orders, of numbers about 1.
BOUND = 4 * STEPS * BATCH * EPS


def test_this_version_has_them_all():
    assert _private.MISSING == ()


def test_a_missing_name_is_said(monkeypatch):
    monkeypatch.delattr(torch._C, "_get_tracing_state")
    spec = importlib.util.spec_from_file_location("a_copy", _private.__file__)
    copy = importlib.util.module_from_spec(spec)
    with pytest.warns(RuntimeWarning, match=r"has no torch\._C\._get_tracing_state: .* own operations"):
        spec.loader.exec_module(copy)
    assert copy.MISSING == ("_C._get_tracing_state",)
    x = torch.ones(2)
    assert copy.is_transformed() and copy.is_differentiated() and copy.needs_plain_operations(x)
    assert not copy.is_concrete(x) and not copy.is_unfollowed(x)


def test_without_the_names_the_numbers_are_the_same(monkeypatch):
    torch.manual_seed(0)
    rnn = nn.RNN(INPUT, HIDDEN, 2, bidirectional=True, dtype=torch.float64)
    x = torch.randn(STEPS, BATCH, INPUT, dtype=torch.float64, requires_grad=True)

    def found():
        output, h_n = rnn(x)
        loss = output.square().sum() + h_n.sin().sum()
        first = torch.autograd.grad(loss, [x, *rnn.parameters()], create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), x)
        with torch.no_grad():
            unfollowed = rnn(x)[0]
        mapped = torch.func.vmap(lambda one: rnn(one)[0], in_dims=1, out_dims=1)(x)
        _, tangent = torch.func.jvp(lambda x: rnn(x)[0], (x,), (x.detach(),))
        return [output, h_n, *first, *second, unfollowed, mapped, tangent]

    expected = found()
    monkeypatch.setattr(_private, "MISSING", ("_C.some_name",))
    for got, want in zip(found(), expected, strict=True):
        assert (got - want).abs().max() <= BOUND * max(1.0, float(want.detach().abs().max()))
