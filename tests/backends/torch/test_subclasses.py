"""Tensors of a user's subclass: they come back as from torch.nn, and see the functions that they see there."""

import pytest
import torch
from rnncore_torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils._pytree import tree_map

import rnncore
from tests.tools.rounding import PROMISED, agree

INPUT, HIDDEN, STEPS, BATCH = 3, 4, 5, 2
SEEN = []


class Tagged(torch.Tensor):
    """With the default rules of a subclass."""


class Recording(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        SEEN.append(getattr(func, "__name__", str(func)))
        return super().__torch_function__(func, types, args, kwargs or {})


class Wrapping(torch.Tensor):
    """Has no memory of its own: it sees every operation below autograd."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        options = {"dtype": inner.dtype, "device": inner.device, "requires_grad": inner.requires_grad}
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, strides=inner.stride(), **options)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        SEEN.append(func.overloadpacket.__name__)
        args, kwargs = tree_map(lambda a: a.inner if isinstance(a, cls) else a, (args, kwargs or {}))
        return tree_map(lambda a: cls(a) if isinstance(a, torch.Tensor) else a, func(*args, **kwargs))


KINDS = {
    "tagged": lambda a: a.as_subclass(Tagged),
    "recording": lambda a: a.as_subclass(Recording),
    "wrapping": Wrapping,
}
OPTIONS = [{}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True, "nonlinearity": "relu", "bias": False}]


def plain(a):
    return a.inner if isinstance(a, Wrapping) else a.as_subclass(torch.Tensor)


def call(kind, which, wrap, packed, **options):
    """Output, h_n and the names of what was called."""
    torch.manual_seed(0)
    module = kind(INPUT, HIDDEN, dtype=torch.float64, **options)
    rows = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    batch = STEPS if options.get("batch_first") and not packed else BATCH
    x, h0 = torch.randn(STEPS, BATCH, INPUT, dtype=torch.float64), torch.ones(rows, batch, HIDDEN, dtype=torch.float64)
    if packed:
        sequences = pack_sequence([x[:, 0], x[:2, 1]])
        x = sequences.data
    weights = {n: p.detach() for n, p in module.named_parameters()}
    if which == "x":
        x = wrap(x)
    elif which == "h0":
        h0 = wrap(h0)
    else:
        weights["weight_hh_l0"] = wrap(weights["weight_hh_l0"])
    SEEN.clear()
    given = sequences._replace(data=x) if packed else x
    output, h_n = torch.func.functional_call(module, weights, (given, h0))
    return (output.data if isinstance(output, PackedSequence) else output), h_n, list(SEEN)


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("wrap", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("which", ["x", "h0", "weight"])
def test_the_output_is_of_the_kind_that_torchs_is(which, options, wrap, packed):
    *want, theirs = call(torch.nn.RNN, which, wrap, packed, **options)
    *got, ours = call(nn.RNN, which, wrap, packed, **options)
    for g, w in zip(got, want, strict=True):
        assert type(g) is type(w)
        agree(plain(g), plain(w), PROMISED)
    wanted = {name for name in theirs if name.startswith("rnn_")}
    assert wanted <= set(ours)  # the function itself is seen, not its parts


@pytest.mark.parametrize("wrap", KINDS.values(), ids=KINDS)
def test_gradients_flow_through_them(wrap):
    found = []
    for kind in (torch.nn.RNN, nn.RNN):
        torch.manual_seed(0)
        module = kind(INPUT, HIDDEN, dtype=torch.float64)
        x = wrap(torch.ones(STEPS, BATCH, INPUT, dtype=torch.float64)).requires_grad_()
        output, h_n = module(x, wrap(torch.zeros(1, BATCH, HIDDEN, dtype=torch.float64)))
        found.append(torch.autograd.grad(output.square().sum() + h_n.sum(), [x, *module.parameters()]))
    for want, got in zip(*found, strict=True):
        assert type(got) is type(want)
        agree(plain(got), plain(want), PROMISED)


@pytest.mark.parametrize("wrap", KINDS.values(), ids=KINDS)
def test_the_cell_keeps_them_too(wrap):
    for kind in (torch.nn.RNNCell, nn.RNNCell):
        x, h = (wrap(torch.ones(BATCH, n)) for n in (INPUT, HIDDEN))
        assert type(kind(INPUT, HIDDEN)(x, h)) is type(x)


def test_a_network_of_rnncores_keeps_a_tagged_tensor():
    rnn = rnncore.RNN(INPUT, HIDDEN, 2, bidirectional=True, backend="torch", rng=0)
    output, h_n = rnn(torch.ones(STEPS, BATCH, INPUT).as_subclass(Tagged))
    assert type(output) is Tagged
    assert type(h_n) is Tagged
