"""Modules of torch.nn in and out: the same numbers, and what has no place there is named."""

import pytest
import rnncore_torch
import torch
from torch.nn.utils import prune

import rnncore
from rnncore.errors import ArgumentTypeError, ArgumentValueError, DeviceError, InterchangeError, UnknownNameError
from tests.interchange.networks import network, reference
from tests.tools.rounding import EPS_OF, agree

OPTIONS = [
    {},
    {"num_layers": 3},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "nonlinearity": "relu"},
    {"bias": False},
    {"batch_first": True, "dropout": 0.25, "num_layers": 2},
]
options = pytest.mark.parametrize("options", OPTIONS, ids=str)
modules = pytest.mark.parametrize("module", ["torch", "rnncore"])


def model(dtype="float32", backend="numpy", **options):
    given = network(dtype=dtype, **options)
    return rnncore.RNN.from_spec(given.spec, given.params, dtype=dtype, backend=backend)


def x_of(options, dtype=torch.float32):
    torch.manual_seed(0)
    return torch.randn((2, 7, 3) if options.get("batch_first") else (7, 2, 3), dtype=dtype)


@options
@modules
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_module_computes_what_the_network_does_and_comes_back(options, module, dtype):
    rnn = model(dtype, **options)
    theirs = rnncore.to_module(rnn, "torch", module=module)
    assert isinstance(theirs, torch.nn.RNN if module == "torch" else rnncore_torch.nn.RNN)
    x = x_of(options, getattr(torch, dtype))
    for got, want in zip(theirs.eval()(x), reference(rnn.portable(), x), strict=True):
        agree(got.detach().numpy(), want)
    back = rnncore.from_module(theirs)
    assert back.backend == "torch" and back.spec == rnn.spec
    assert all(torch.equal(back.params[n], torch.tensor(a)) for n, a in rnn.params.items())


@options
def test_three_steps_of_training_are_the_same_on_either_side(options):
    rnn = model("float64", backend="torch", **options | {"dropout": 0.0})
    theirs = rnncore.to_module(rnn, "torch")
    ours = rnncore.to_module(rnn, "torch", module="rnncore")
    x = x_of(options, torch.float64)
    for made in (theirs, ours):
        optimiser = torch.optim.SGD(made.parameters(), lr=0.1)
        for _ in range(3):
            optimiser.zero_grad()
            made(x)[0].square().mean().backward()
            optimiser.step()
    for n, p in rnncore.from_module(theirs).params.items():
        # Each step adds a gradient that is right to 64 eps of the largest, times 0.1: three of them.
        agree(p, rnncore.from_module(ours).params[n], 64, what=n)


def test_the_options_of_a_module():
    rnn = model()
    theirs = rnncore.to_module(rnn, "torch", dtype="float64", device="cpu", requires_grad=False)
    assert {p.dtype for p in theirs.parameters()} == {torch.float64}
    assert not any(p.requires_grad for p in theirs.parameters())
    assert all(p.requires_grad for p in rnncore.to_module(rnn, "torch").parameters())
    half = rnncore.to_module(rnn, "torch", dtype=torch.bfloat16)
    assert rnncore.from_module(half).dtype == torch.bfloat16


def test_no_random_numbers_are_drawn_and_the_weights_are_copies():
    rnn = model(backend="torch")
    before = torch.get_rng_state()
    theirs = rnncore.to_module(rnn, "torch")
    assert torch.equal(before, torch.get_rng_state())
    with torch.no_grad():
        theirs.weight_hh_l0.zero_()
    assert rnn.params["weight_hh_l0"].any()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"hidden_size": [6, 4]}, r"hidden_size=\[6, 4\]"),
        ({"clip": 3.0}, "clip=3.0"),
        ({"nonlinearity": "softsign"}, "nonlinearity='softsign'"),
        ({"nonlinearity": (lambda z: z, lambda z: z * 0 + 1)}, "nonlinearity="),
        ({"hidden_size": [6, 4], "clip": 1.0}, "hidden_size=.*, clip="),
    ],
)
@modules
def test_what_torch_cannot_say_is_named(given, words, module):
    with pytest.raises(InterchangeError, match=words):
        rnncore.to_module(rnncore.RNN(3, **{"hidden_size": 4} | given), "torch", module=module)


class Model(torch.nn.Module):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def rnn_of(**options):
    torch.manual_seed(0)
    return torch.nn.RNN(3, 5, **options)


def test_the_only_rnn_in_a_model_is_taken_and_the_rest_is_named():
    inner = rnn_of()
    held = Model(body=torch.nn.Sequential(torch.nn.Linear(3, 3), inner), head=torch.nn.Linear(5, 1))
    with pytest.warns(UserWarning, match="left out: Linear 'body.0', Linear 'head' beside the RNN 'body.1'"):
        found = rnncore.from_module(held)
    assert torch.equal(found.params["weight_hh_l0"], inner.weight_hh_l0)
    named = rnncore.from_module(held, name="body.1", backend="numpy")  # a choice, of which there is nothing to warn
    assert named.backend == "numpy"
    assert rnncore.from_module(Model(rnn=inner)).spec == found.spec
    assert rnncore.from_module(Model(a=inner, b=inner)).spec == found.spec  # one module in two places
    assert rnncore.from_module(Model(cell=torch.nn.RNNCell(3, 5))).spec.num_layers == 1


def test_rnncores_own_module_keeps_what_torchs_has_not():
    own = rnncore_torch.nn.ElmanRNN(3, [5, 4], nonlinearity="softplus", clip=2.0, bidirectional=True)
    x = x_of({})
    for found in (rnncore.from_module(own), rnncore.from_module(Model(rnn=own))):
        assert found.spec == own.network.spec and found.spec.hidden_sizes == (5, 4)
        agree(found(x)[0], own(x)[0].detach())
        assert not any(p.requires_grad for p in found.params.values())


@pytest.mark.parametrize(
    ("module", "name", "error", "words"),
    [
        (Model(a=rnn_of(), b=rnn_of()), None, ArgumentValueError, "name: expected one of 'a', 'b'.*got None"),
        (Model(a=rnn_of(), b=rnn_of()), "c", UnknownNameError, "name: expected one of 'a', 'b'.*got 'c'"),
        (rnn_of(), "a", UnknownNameError, "name: expected one of ''.*got 'a'"),
        (rnn_of(), 3, UnknownNameError, "name: expected one of ''.*got 3"),
        (Model(a=torch.nn.LSTM(3, 5)), None, ArgumentTypeError, "module: .*it holds LSTM 'a', which is no vanilla RNN"),
        (Model(a=torch.nn.LSTM(3, 5)), "a", UnknownNameError, "got 'a'.*LSTM 'a', which is no vanilla RNN"),
        (torch.nn.GRU(3, 5), None, ArgumentTypeError, "module: expected .*got torch.nn.modules.rnn.GRU"),
        (torch.nn.Linear(3, 5), None, ArgumentTypeError, "module: expected .*Linear"),
        (torch.nn.Tanh(), None, ArgumentTypeError, "module: expected .*Tanh"),
        (None, None, ArgumentTypeError, "module: expected .*NoneType"),
        (torch.nn.RNN, None, ArgumentTypeError, "module: expected .*type"),
    ],
)
def test_what_holds_no_rnn_or_several_is_named(module, name, error, words):
    with pytest.raises(error, match=words):
        rnncore.from_module(module, name=name)


def pruned(module):
    prune.identity(module, "weight_hh_l0")


def old_weight_norm(module):
    with pytest.warns(FutureWarning):
        torch.nn.utils.weight_norm(module, "weight_hh_l0")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: torch.nn.utils.parametrizations.orthogonal(m, "weight_hh_l0"), "remove_parametrizations"),
        (lambda m: torch.nn.utils.parametrizations.weight_norm(m, "weight_ih_l0"), "'weight_ih_l0'.*remove_param"),
        (old_weight_norm, "weight_hh_l0_g, weight_hh_l0_v.*remove_weight_norm"),
        (pruned, "weight_hh_l0_orig"),
    ],
)
def test_weights_computed_from_others_are_refused_and_taken_once_they_are_plain(change, words):
    module = rnn_of()
    change(module)
    for given in (module, Model(rnn=module)):
        with pytest.raises(InterchangeError, match=words):
            rnncore.from_module(given)


def test_the_advice_on_parametrizations_is_right():
    module = rnn_of()
    torch.nn.utils.parametrizations.orthogonal(module, "weight_hh_l0")
    torch.nn.utils.parametrize.remove_parametrizations(module, "weight_hh_l0")
    w = rnncore.from_module(module).params["weight_hh_l0"]
    # A product of 5 x 5 matrices that PyTorch has made orthogonal by a factorisation: a few roundings of each entry.
    assert (w @ w.T - torch.eye(5)).abs().max() < 64 * EPS_OF["float32"]


def test_weights_of_several_dtypes_are_not_rounded_to_one():
    module = torch.nn.RNN(3, 4)
    module.weight_hh_l0 = torch.nn.Parameter(module.weight_hh_l0.double())
    with pytest.raises(InterchangeError, match=r"one dtype, got torch.float32, torch.float64; .*module.float\(\)"):
        rnncore.from_module(module)


def test_a_module_without_one_of_its_weights_is_refused():
    module = torch.nn.RNN(3, 4)
    del module.weight_hh_l0
    with pytest.raises(InterchangeError, match="got none for weight_hh_l0"):
        rnncore.from_module(module)


def test_tensors_in_a_mapping_may_be_negative_views_and_not_meta():
    cell = {"weight_ih": torch.ones(4, 3), "weight_hh": torch._neg_view(torch.ones(4, 4))}
    found = rnncore.from_module(cell, nonlinearity="tanh", batch_first=True)
    assert torch.equal(found.params["weight_hh_l0"], -torch.ones(4, 4))
    with pytest.raises(DeviceError, match="one on device 'meta'"):
        rnncore.from_module(torch.nn.RNN(3, 4, device="meta").state_dict(), nonlinearity="tanh", batch_first=True)


@pytest.mark.parametrize("name", [None, ""])
def test_hooks_are_left_out_with_a_warning(name):
    module = torch.nn.RNN(3, 5)
    module.register_forward_hook(lambda module, given, found: None)
    with pytest.warns(UserWarning, match="left out: forward hooks of the RNN ''"):
        rnncore.from_module(module, name=name)
