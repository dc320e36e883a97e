"""A layer as one node of autograd's graph: outputs that are changed in place before the backward pass, as torch's may be."""

import pytest
import torch
from rnncore_torch import _layer, _private, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tests.tools.rounding import PROMISED, SECOND, agree

INPUT, HIDDEN, STEPS, BATCH = 3, 4, 5, 2
OPTIONS = [
    {},
    {"num_layers": 2},
    {"bidirectional": True},
    {"batch_first": True},
    {"nonlinearity": "relu", "bias": False},
]


def pair(**options):
    made = []
    for kind in (torch.nn.RNN, nn.RNN):
        torch.manual_seed(0)
        made.append(kind(INPUT, HIDDEN, dtype=torch.float64, **options))
    return made


def drawn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def masked(output):
    output[1:, 0] = 0
    return output


def unrecorded(output):
    with torch.no_grad():
        output.mul_(2)
    return output


CHANGES = {
    "relu_": torch.relu_,
    "dropout": lambda output: functional.dropout(output, 0.5, True, inplace=True),
    "masked": masked,
    "unrecorded": unrecorded,
}


def losses(module, change, h0=None):
    torch.manual_seed(3)  # of the dropout
    x = drawn(STEPS, BATCH, INPUT).requires_grad_()
    output, h_n = module(x, h0)
    return change(output).square().sum() + h_n.sin().sum(), [x, *module.parameters()]


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_output_may_be_changed_before_the_backward_pass(options, change):
    found = []
    for module in pair(**options):
        loss, leaves = losses(module, change)
        found.append(torch.autograd.grad(loss, leaves, retain_graph=True))
        found[-1] += torch.autograd.grad(loss, leaves)  # and once more
    for want, got in zip(*found, strict=True):
        agree(got, want, PROMISED)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_so_it_may_before_a_derivative_of_a_derivative(change):
    found = []
    for module in pair(num_layers=2):
        loss, leaves = losses(module, change)
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    for want, got in zip(*found, strict=True):
        agree(got, want, SECOND)


def test_so_it_may_before_a_batched_backward_pass():
    found = []
    for module in pair():
        x = drawn(STEPS, BATCH, INPUT).requires_grad_()
        output, _ = module(x)
        changed = output.relu_()
        many = drawn(3, *changed.shape, seed=5)
        found.append(torch.autograd.grad(changed, x, many, is_grads_batched=True)[0])
    agree(found[1], found[0], PROMISED)


def test_the_states_are_computed_again_only_after_a_change(monkeypatch):
    computed = []
    real = _layer._states
    monkeypatch.setattr(_layer, "_states", lambda *a: computed.append(1) or real(*a))
    _, ours = pair()
    for change, times in ((torch.relu, 1), (torch.relu_, 2)):
        computed.clear()
        loss, leaves = losses(ours, change)
        torch.autograd.grad(loss, leaves)
        assert len(computed) == times


@pytest.mark.parametrize("which", ["x", "h0", "weight_ih_l0", "weight_hh_l0"])
@pytest.mark.parametrize("again", [False, True])
def test_what_was_given_may_not_be_changed(which, again):
    """As with torch's: the gradient would be of other numbers."""
    for module in pair():
        given = {"x": drawn(STEPS, BATCH, INPUT).requires_grad_() * 1, "h0": drawn(1, BATCH, HIDDEN)}
        output, _ = module(*given.values())
        if again:
            output.mul_(2)
        with torch.no_grad():
            (given | dict(module.named_parameters()))[which].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()


def test_a_change_under_checkpointing_and_with_tensors_saved_elsewhere():
    theirs, ours = pair()
    found = []
    for module, run in (
        (theirs, lambda m, x: m(x)[0]),
        (ours, lambda m, x: checkpoint(lambda x: m(x)[0], x, use_reentrant=False)),
        (ours, lambda m, x: m(x)[0]),
    ):
        x = drawn(STEPS, BATCH, INPUT).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda saved: saved):
            output = run(module, x)
        found.append(torch.autograd.grad(output.relu_().square().sum(), [x, *module.parameters()]))
    for want, *gots in zip(*found, strict=True):
        for got in gots:
            agree(got, want, PROMISED)


TRANSFORMED = {
    "grad": lambda f, x: torch.func.grad(lambda x: f(x).square().sum())(x),
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,))[1],
    "hessian": lambda f, x: torch.func.hessian(lambda x: f(x).square().sum())(x),
}


@pytest.mark.parametrize("run", TRANSFORMED.values(), ids=TRANSFORMED)
def test_a_change_inside_a_transformed_function(run):
    theirs, ours = (run(lambda x, m=m: m(x)[0].relu_(), drawn(STEPS, BATCH, INPUT)) for m in pair())
    agree(ours, theirs, SECOND)


@pytest.mark.parametrize("inside", [True, False])
def test_a_change_in_a_compiled_function_and_of_what_it_returned(inside):
    theirs, ours = pair()
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x: ours(x)[0].relu_() if inside else ours(x)[0], backend="aot_eager", fullgraph=True
    )
    found = []
    for run in (lambda x: theirs(x)[0], compiled):
        x = drawn(STEPS, BATCH, INPUT).requires_grad_()
        found.append(torch.autograd.grad(run(x).relu_().square().sum(), x)[0])
    torch._dynamo.reset()
    agree(found[1], found[0], PROMISED)


def test_the_counter_keeps_no_memory_alive():
    x = torch.zeros(3)
    counter = _private.counter(x)
    x.view(-1)[0] = 1
    with torch.no_grad():
        x.mul_(2)
    assert counter._version == x._version == 2
    assert counter.untyped_storage().nbytes() == 0


def test_nothing_of_the_states_is_held_after_the_backward_pass():
    _, ours = pair()
    output, _ = ours(drawn(STEPS, BATCH, INPUT))
    memory, loss = StorageWeakRef(output.untyped_storage()), output.sum()
    del output
    assert not memory.expired()
    loss.backward()
    assert memory.expired()
