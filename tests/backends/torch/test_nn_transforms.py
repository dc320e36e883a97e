"""rnncore_torch.nn under what transforms, compiles and exports modules."""

import copy

import pytest
import torch
from rnncore_torch import nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap
from torch.nn.utils.rnn import pack_sequence

import rnncore
from tests.tools.rounding import SECOND, agree
from tests.tools.sample import sample

INPUT, HIDDEN, STEPS, BATCH = 3, 4, 5, 2


def close(got, want):
    if isinstance(want, torch.Tensor):
        return agree(got, want, SECOND)
    if isinstance(want, dict):
        assert got.keys() == want.keys()
        got, want = got.values(), want.values()
    for g, w in zip(got, want, strict=True):
        close(g, w)


def pair(**options):
    made = []
    for kind in (torch.nn.RNN, nn.RNN):
        torch.manual_seed(0)
        made.append(kind(INPUT, HIDDEN, dtype=torch.float64, **options))
    return made


def drawn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_name(module):
    """The module as a function of x, h0 and its parameters."""
    names = [n for n, _ in module.named_parameters()]

    def run(x, h0, *weights):
        return functional_call(module, dict(zip(names, weights, strict=True)), (x, h0))

    return run, tuple(p.detach().clone().requires_grad_() for p in module.parameters())


@pytest.mark.parametrize(
    "options",
    sample([{}, {"nonlinearity": "relu"}, {"num_layers": 2, "bidirectional": True}, {"bias": False}], 4),
    ids=str,
)
def test_gradcheck_and_gradgradcheck_pass(options):
    _, ours = pair(**options)
    run, weights = by_name(ours)
    rows = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    args = (drawn(3, BATCH, INPUT).requires_grad_(), drawn(rows, BATCH, HIDDEN).requires_grad_(), *weights)
    assert gradcheck(run, args, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(run, args, check_fwd_over_rev=True, check_batched_grad=True)


@pytest.mark.slow
def test_gradgradcheck_passes_for_packed_sequences():
    _, ours = pair(bidirectional=True)
    run, weights = by_name(ours)
    packed = pack_sequence([drawn(k, INPUT) for k in (1, 3, 2)], enforce_sorted=False)

    def on_data(data, h0, *weights):
        output, h_n = run(packed._replace(data=data), h0, *weights)
        return output.data, h_n

    args = (packed.data.clone().requires_grad_(), drawn(2, 3, HIDDEN).requires_grad_(), *weights)
    assert gradcheck(on_data, args, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(on_data, args, check_batched_grad=True)


def test_a_tangent_that_comes_in_only_on_the_way_back_is_carried():
    """Forward mode over a backward pass whose forward ran outside of it."""
    theirs, ours = pair()
    x, g, g_dot = drawn(STEPS, BATCH, INPUT), drawn(STEPS, BATCH, HIDDEN, seed=2), drawn(STEPS, BATCH, HIDDEN, seed=3)
    found = []
    for module in (theirs, ours):
        leaf = x.clone().requires_grad_()
        output, _ = module(leaf)
        with forward_ad.dual_level():
            (d_x,) = torch.autograd.grad(output, leaf, forward_ad.make_dual(g, g_dot))
            found.append(forward_ad.unpack_dual(d_x).tangent)
    assert found[1] is not None
    close(found[1], found[0])


def test_gradients_of_gradients_after_an_ordinary_forward_pass():
    theirs, ours = pair(num_layers=2)
    found = []
    for module in (theirs, ours):
        x = drawn(STEPS, BATCH, INPUT).requires_grad_()
        (d_x,) = torch.autograd.grad(module(x)[0].square().sum(), x, create_graph=True)
        penalty = d_x.square().sum()
        found.append(torch.autograd.grad(penalty, [x, *module.parameters()]))
    close(found[1], found[0])


def test_several_backward_passes_and_batched_ones():
    theirs, ours = pair()
    found = []
    for module in (theirs, ours):
        x = drawn(STEPS, BATCH, INPUT).requires_grad_()
        output = module(x)[0]
        many = drawn(3, *output.shape, seed=5)
        batched = torch.autograd.grad(output, x, many, is_grads_batched=True, retain_graph=True)[0]
        single = [torch.autograd.grad(output, x, g, retain_graph=True)[0] for g in many]
        found.append([batched, *single])
    close(found[1], found[0])
    close(found[1][0], torch.stack(found[1][1:]))


def test_vmap_over_inputs_and_over_ensembles_of_weights():
    theirs, ours = pair(num_layers=2, bidirectional=True)
    x = drawn(6, STEPS, BATCH, INPUT)
    close(vmap(lambda one: ours(one)[0])(x), torch.stack([theirs(one)[0] for one in x]))
    members = []
    for k in range(3):
        torch.manual_seed(k)
        members.append(nn.RNN(INPUT, HIDDEN, dtype=torch.float64))
    params, buffers = stack_module_state(members)
    skeleton = copy.deepcopy(members[0]).to("meta")
    got = vmap(lambda p, b: functional_call(skeleton, (p, b), (x[0],))[0])(params, buffers)
    close(got, torch.stack([m(x[0])[0] for m in members]))


@pytest.mark.parametrize("randomness", ["different", "same"])
def test_vmap_through_dropout_draws_as_randomness_says(randomness):
    _, ours = pair(num_layers=2, dropout=0.5)
    x = drawn(STEPS, BATCH, INPUT).expand(2, STEPS, BATCH, INPUT)
    a, b = vmap(lambda one: ours(one)[0], randomness=randomness)(x)
    assert torch.equal(a, b) == (randomness == "same")


def test_gradients_of_every_example():
    theirs, ours = pair()
    x = drawn(STEPS, BATCH, INPUT)
    params = {n: p.detach() for n, p in ours.named_parameters()}

    def loss(params, one):
        return functional_call(ours, params, (one,))[0].square().sum()

    got = vmap(grad(loss), in_dims=(None, 1))(params, x)
    for k in range(BATCH):
        want = torch.autograd.grad(theirs(x[:, k])[0].square().sum(), list(theirs.parameters()))
        close([got[n][k] for n in params], list(want))


@pytest.mark.parametrize("outer", [jacrev, jacfwd], ids=["jacrev", "jacfwd"])
def test_jacobians_of_the_module(outer):
    theirs, ours = pair()
    run, weights = by_name(ours)
    reference, _ = by_name(theirs)
    args = (drawn(STEPS, BATCH, INPUT), drawn(1, BATCH, HIDDEN), *(w.detach() for w in weights))
    every = tuple(range(len(args)))
    got = outer(lambda *a: run(*a)[0], argnums=every)(*args)
    want = torch.autograd.functional.jacobian(lambda *a: reference(*a)[0], args)
    close(got, want)


@pytest.mark.parametrize(
    "second",
    [hessian, lambda f: jacrev(jacrev(f)), lambda f: jacfwd(jacfwd(f)), lambda f: jacrev(jacfwd(f))],
    ids=["hessian", "reverse-reverse", "forward-forward", "reverse-forward"],
)
def test_hessians_of_the_module(second):
    theirs, ours = pair()
    x = drawn(STEPS, BATCH, INPUT)
    got = second(lambda x: ours(x)[0].square().sum())(x)
    want = torch.autograd.functional.hessian(lambda x: theirs(x)[0].square().sum(), x)
    close(got, want)


@pytest.mark.parametrize("outer", ["reverse-mode", "forward-mode"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_vectorised_hessians_of_autograd(outer, options):
    theirs, ours = pair(**options)
    x, found = drawn(STEPS, BATCH, INPUT), []
    for module in (theirs, ours):
        found.append(
            torch.autograd.functional.hessian(
                lambda x, m=module: m(x)[0].square().sum(), x, vectorize=True, outer_jacobian_strategy=outer
            )
        )
    close(found[1], found[0])


def test_forward_mode_of_the_cell_and_the_module():
    for kind, shape in ((nn.RNNCell, (BATCH, INPUT)), (nn.RNN, (STEPS, BATCH, INPUT))):
        module = kind(INPUT, HIDDEN, dtype=torch.float64)
        x, x_dot = drawn(*shape), drawn(*shape, seed=2)

        def run(x, module=module):
            found = module(x)
            return found if isinstance(found, torch.Tensor) else found[0]

        _, got = jvp(run, (x,), (x_dot,))
        _, want = torch.autograd.functional.jvp(run, x, x_dot)
        close(got, want)


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}], ids=str)
def test_compiled_without_a_break_for_every_length(options, fresh_compiler):
    """Traced to forward and backward graphs, without code generation, which would only add a C++ compiler's time."""
    theirs, ours = pair(**options)
    seen = []

    def counting(graph, inputs):
        seen.append([str(node.target) for node in graph.graph.nodes])
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend=counting)
    graphs = []
    for steps, batch in ((5, 2), (9, 3), (4, 6)):
        shape = (batch, steps, INPUT) if options.get("batch_first") else (steps, batch, INPUT)
        found = []
        for module in (theirs, compiled):
            x = drawn(*shape).requires_grad_()
            output, h_n = module(x)
            loss = output.square().sum() + h_n.sum()
            found.append([output, h_n, *torch.autograd.grad(loss, [x, *module.parameters()])])
        close(found[1], found[0])
        graphs.append(len(seen))
    assert graphs == graphs[:1] * 3  # nothing is compiled anew for another length or batch
    assert sum("rnncore.nonlinear_scan" in target for target in seen[-1]) == (4 if options else 1)


@pytest.mark.slow
def test_compiled_with_the_default_backend(fresh_compiler):
    _, ours = pair()
    x = drawn(STEPS, BATCH, INPUT).requires_grad_()
    got = torch.compile(ours, fullgraph=True)(x)[0]
    close(got, ours(x)[0])
    close(torch.autograd.grad(got.sum(), x), torch.autograd.grad(ours(x)[0].sum(), x))


def test_compiled_under_vmap_without_gradients_and_in_autocast(fresh_compiler):
    _, ours = pair()
    x = drawn(3, STEPS, BATCH, INPUT)
    mapped = torch.compile(lambda x: vmap(lambda one: ours(one)[0])(x), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        close(mapped(x), torch.stack([ours(one)[0] for one in x]))
    single = nn.RNN(INPUT, HIDDEN)
    compiled = torch.compile(single, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(compiled(x[0].float())[0], single(x[0].float())[0])


def test_the_cell_compiles(fresh_compiler):
    cell = nn.RNNCell(INPUT, HIDDEN, dtype=torch.float64)
    compiled = torch.compile(cell, fullgraph=True, backend="aot_eager")
    close(compiled(drawn(BATCH, INPUT)), cell(drawn(BATCH, INPUT)))


def test_a_compiled_cell_is_compiled_once_although_eager_calls_come_between(fresh_compiler):
    cell, seen = rnncore.RNNCell(INPUT, HIDDEN, backend="torch"), []

    def counting(graph, inputs):
        seen.append(graph)
        return graph

    compiled = torch.compile(lambda x: cell(x), backend=counting, dynamic=True, fullgraph=True)
    for batch in range(2, 9):
        x = torch.ones(batch, INPUT)
        torch.testing.assert_close(compiled(x), cell(x), rtol=0, atol=0)
    assert len(seen) == 1


def test_exported_with_time_and_batch_left_open():
    _, ours = pair(num_layers=2, bidirectional=True)
    steps, batch = torch.export.Dim("steps"), torch.export.Dim("batch")
    program = torch.export.export(
        ours, (drawn(STEPS, BATCH, INPUT), drawn(4, BATCH, HIDDEN)), dynamic_shapes=({0: steps, 1: batch}, {1: batch})
    )
    x, h0 = drawn(11, 3, INPUT), drawn(4, 3, HIDDEN)
    close(program.module()(x, h0), ours(x, h0))


@pytest.mark.parametrize("reverse", [False, True])
def test_the_operators_keep_pytorchs_rules(reverse):
    from rnncore_torch import _ops

    def leaf(*shape):
        return drawn(*shape).requires_grad_()

    three = (leaf(3, 2, 4), leaf(2, 4), leaf(4, 4))
    torch.library.opcheck(_ops.nonlinear_scan, (*three, "tanh", reverse))
    torch.library.opcheck(_ops.linear_scan, (three[0], leaf(3, 2, 4), *three[1:], reverse))
    assert gradcheck(_ops.linear_scan, (three[0], leaf(3, 2, 4), *three[1:], reverse))
    assert gradgradcheck(_ops.nonlinear_scan, (*three, "tanh", reverse))


def test_a_trace_records_operations_and_not_numbers():
    """Whoever watches PyTorch's operations sees them all: nothing runs on memory behind its back."""
    from torch.fx.experimental.proxy_tensor import make_fx

    _, ours = pair()
    graph = make_fx(lambda x: ours(x)[0].detach())(drawn(STEPS, BATCH, INPUT))
    other = drawn(STEPS, BATCH, INPUT, seed=9)
    with torch.no_grad():
        close(graph(other), ours(other)[0])
