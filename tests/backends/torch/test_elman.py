"""rnncore_torch.nn.ElmanRNN: rnncore's networks among the modules of torch.nn."""

import copy
import io
import pickle

import pytest
import torch
from rnncore_torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.utils import parametrizations

import rnncore
from tests.tools.rounding import PROMISED, agree
from tests.tools.sample import sample

INPUT, STEPS, BATCH = 3, 5, 4
LENGTHS = [5, 2, 0, 3]


def cubed(z):
    return z * z * z / (1 + z * z)


def slope_of_cubed(z):
    return z * z * (3 + z * z) / ((1 + z * z) * (1 + z * z))


CONFIGURATIONS = [
    {"hidden_size": [2, 3]},
    {"hidden_size": 4, "num_layers": 2, "bidirectional": True, "nonlinearity": "softplus", "clip": 0.5},
    {"hidden_size": [6, 4], "nonlinearity": rnncore.get_nonlinearity("leaky_relu", alpha=0.2), "batch_first": True},
    {"hidden_size": 4, "nonlinearity": (cubed, slope_of_cubed), "bias": False},
    {"hidden_size": [3, 6], "bidirectional": True, "nonlinearity": rnncore.get_nonlinearity("elu", alpha=0.7)},
]


def made(hidden_size, seed=0, dtype=torch.float64, **options):
    torch.manual_seed(seed)
    return nn.ElmanRNN(INPUT, hidden_size, dtype=dtype, **options)


def drawn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def example(module):
    x = drawn(BATCH, STEPS, INPUT) if module.spec.batch_first else drawn(STEPS, BATCH, INPUT)
    h0 = [drawn(module.spec.num_directions, BATCH, width, seed=2) for width in module.spec.hidden_sizes]
    return x, torch.cat(h0) if module.spec.uniform else h0


def flat(output, h_n):
    return [output, *(h_n if isinstance(h_n, tuple) else [h_n])]


def as_function(module, lengths=None):
    """The module as a function of x, the states of its layers and its parameters."""
    names, layers = [n for n, _ in module.named_parameters()], 1 if module.spec.uniform else module.spec.num_layers

    def run(x, *others):
        h0 = others[0] if layers == 1 else list(others[:layers])
        weights = dict(zip(names, others[layers:], strict=True))
        return tuple(flat(*functional_call(module, weights, (x, h0, lengths))))

    x, h0 = example(module)
    tensors = [x, *([h0] if layers == 1 else h0), *(p.detach() for p in module.parameters())]
    return run, tuple(a.clone().requires_grad_() for a in tensors)


@pytest.mark.parametrize("options", CONFIGURATIONS, ids=range(len(CONFIGURATIONS)))
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
def test_the_numbers_are_those_of_rnncores_own_model(options, lengths):
    module = made(**options)
    model = rnncore.RNN(INPUT, backend="torch", dtype="float64", **options)
    model.load_state_dict(module.state_dict())
    x, h0 = example(module)
    for h in (None, h0):
        for got, want in zip(flat(*module(x, h, lengths)), flat(*model(x, h, lengths)), strict=True):
            agree(got, want, PROMISED)
    got, want = module.trace(x, h0, lengths), model.trace(x, h0, lengths)
    for a, b in zip((*got.h, *got.z), (*want.h, *want.z), strict=True):
        agree(a, b, PROMISED)


@pytest.mark.parametrize(
    "options", sample([{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}], 2), ids=str
)
def test_the_parameters_their_draws_and_the_numbers_are_torchs(options):
    made_by = []
    for kind in (torch.nn.RNN, nn.ElmanRNN):
        torch.manual_seed(0)
        made_by.append(kind(INPUT, 4, dtype=torch.float64, **options))
    theirs, ours = made_by
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for got, want in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(got, want)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    for got, want in zip(ours(example(ours)[0]), theirs(example(ours)[0]), strict=True):
        agree(got, want, PROMISED)


@pytest.mark.parametrize("options", sample([(o,) for o in CONFIGURATIONS], 3), ids=range(len(CONFIGURATIONS)))
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
def test_gradcheck_and_gradgradcheck_pass(options, lengths):
    run, args = as_function(made(**options), lengths)
    assert gradcheck(run, args, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(run, args, check_batched_grad=True)


@pytest.mark.parametrize("options", CONFIGURATIONS[:2], ids=range(2))
def test_padding_is_never_read_and_has_no_gradient(options):
    module = made(**options)
    x, _ = example(module)
    padded = x.clone()
    for row, n in enumerate(LENGTHS):
        padded[n:, row] = float("nan")
    found = []
    for given, lengths in ((x, torch.tensor(LENGTHS)), (padded, LENGTHS)):
        leaf = given.clone().requires_grad_()
        output, h_n = module(leaf, None, lengths)
        loss = output.square().sum() + sum(h.sum() for h in flat(output, h_n)[1:])
        found.append([output, *torch.autograd.grad(loss, [leaf, *module.parameters()])])
    for got, want in zip(found[1], found[0], strict=True):
        assert torch.equal(got, want)
    assert all(not found[1][1][n:, row].any() for row, n in enumerate(LENGTHS))


def test_it_trains_among_other_modules():
    """To tell apart sequences of several lengths by their sum."""
    torch.manual_seed(0)
    rnn, head = nn.ElmanRNN(1, [8, 6], nonlinearity="softsign", clip=5.0), torch.nn.Linear(6, 1)
    parameters = [*rnn.parameters(), *head.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=0.02)
    x, lengths = torch.randn(8, 32, 1), torch.randint(1, 9, (32,))
    valid = torch.arange(8)[:, None] < lengths
    wanted = ((x[..., 0] * valid).sum(0) > 0).float()
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            head(rnn(x, lengths=lengths)[1][1][0])[:, 0], wanted
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2


def test_moved_copied_pickled_and_saved():
    module = made(**CONFIGURATIONS[3])
    x, h0 = example(module)
    want = module(x, h0)[0]
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(file, weights_only=False)):
        assert torch.equal(other(x, h0)[0], want)
        with torch.no_grad():
            other.weight_hh_l0.zero_()
        assert torch.equal(module(x, h0)[0], want)
    single = module.float()
    assert single(x.float())[0].dtype == torch.float32
    assert torch.equal(single.double()(x.float().double())[0], module(x.float().double())[0])
    assert module.to("meta").weight_ih_l0.is_meta


def test_dropout_follows_pytorchs_seed_and_the_mode():
    module = made([4, 4], dropout=0.5)
    x, _ = example(module)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(module(x)[0])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert torch.equal(module.eval()(x)[0], made([4, 4])(x)[0])


def test_parametrised_and_replaced_weights_are_read_at_every_call():
    module = made(4)
    x, _ = example(module)
    parametrizations.orthogonal(module, "weight_hh_l0")
    model = rnncore.RNN.from_network(module.network)
    agree(model.params["weight_hh_l0"] @ model.params["weight_hh_l0"].T, torch.eye(4, dtype=torch.float64), PROMISED)
    assert torch.equal(module(x)[0], model(x)[0])
    module(x)[0].sum().backward()
    assert module.parametrizations.weight_hh_l0.original.grad is not None


def test_torch_func_maps_and_differentiates_it():
    module = made([4, 3], nonlinearity="sigmoid")
    x, _ = example(module)
    agree(vmap(lambda one: module(one)[0], in_dims=1, out_dims=1)(x), module(x)[0], PROMISED)
    params = {n: p.detach() for n, p in module.named_parameters()}
    each = vmap(grad(lambda p, one: functional_call(module, p, (one,))[0].square().sum()), in_dims=(None, 1))(params, x)
    want = torch.autograd.grad(module(x)[0].square().sum(), list(module.parameters()))
    for got, whole in zip(each.values(), want, strict=True):
        agree(got.sum(0), whole, PROMISED)
    agree(
        jvp(lambda x: module(x)[0], (x,), (x,))[1],
        torch.autograd.functional.jvp(lambda x: module(x)[0], x, x)[1],
        PROMISED,
    )


def test_the_output_may_be_changed_in_place():
    module = made(4)
    found = []
    for change in (torch.relu, torch.relu_):
        output, _ = module(example(module)[0])
        found.append(torch.autograd.grad(change(output).square().sum(), list(module.parameters())))
    for got, want in zip(*found, strict=True):
        assert torch.equal(got, want)


def test_its_text_and_what_it_refuses():
    module = made([6, 4], nonlinearity="softplus", clip=3.0)
    assert str(module) == "ElmanRNN(3, [6, 4], nonlinearity='softplus', clip=3.0)"
    assert (module.input_size, module.hidden_size, made(4).hidden_size) == (3, (6, 4), 4)
    assert "softplus" in str(module.explain())
    with pytest.raises(rnncore.RnncoreError, match="nonlinearity: expected one of"):
        made(4, nonlinearity="tanhh")
    with pytest.raises(rnncore.RnncoreError, match="x: expected input_size 3"):
        module(torch.zeros(STEPS, BATCH, 2, dtype=torch.float64))
    with pytest.warns(UserWarning, match="dropout"):
        made(4, dropout=0.5)


@pytest.mark.parametrize(
    "options",
    sample([{"hidden_size": [6, 4]}, *CONFIGURATIONS[1:3]], 3),
    ids=str,
)
def test_it_compiles_whole(options):
    module = made(**options)
    x, h0 = example(module)
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    found = []
    for run in (module, compiled):
        results = flat(*run(x, h0))
        found.append(
            [*results, *torch.autograd.grad(sum(r.square().sum() for r in results), list(module.parameters()))]
        )
    torch._dynamo.reset()
    for got, want in zip(found[1], found[0], strict=True):
        agree(got, want, PROMISED)


@pytest.mark.parametrize(
    ("options", "lengths"),
    [({"hidden_size": 4}, LENGTHS), (CONFIGURATIONS[3], None), ({"hidden_size": [4, 4], "dropout": 0.5}, None)],
    ids=["lengths", "a function of the user's", "dropout"],
)
def test_what_the_host_does_breaks_the_graph_and_keeps_the_numbers(options, lengths):
    module = made(**options)
    x, _ = example(module)
    torch._dynamo.reset()
    found = []
    for run in (module, torch.compile(module, backend="aot_eager")):
        torch.manual_seed(0)
        found.append(run(x, None, lengths)[0])
    torch._dynamo.reset()
    agree(found[1], found[0], PROMISED)
