"""Compiled networks, compiled functions that take derivatives of them by torch.func, and forward mode around compiled ones."""

import pytest
import torch
from rnncore_torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import rnncore
from tests.tools.rounding import SECOND, agree

INPUT, HIDDEN, STEPS, BATCH = 3, 4, 5, 2
WIDE = {"num_layers": 2, "bidirectional": True, "nonlinearity": "relu"}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def made(**options):
    torch.manual_seed(0)
    return nn.RNN(INPUT, HIDDEN, dtype=torch.float64, **options)


def drawn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tangent(f):
    return lambda x: jvp(f, (x,), (x,))[1]


def cotangent(f):
    def pulled(x):
        output, pull = vjp(f, x)
        return pull(output)[0]

    return pulled


# Functions of a module as a function of x, all compiled whole.
TRANSFORMS = {
    "grad": lambda f: grad(lambda x: f(x).square().sum()),
    "grad of grad": lambda f: grad(lambda x: grad(lambda x: f(x).square().sum())(x).sin().sum()),
    "vmap": lambda f: vmap(f, in_dims=1, out_dims=1),
    "vmap of grad": lambda f: vmap(grad(lambda x: f(x).square().sum()), in_dims=1),
    "vjp": cotangent,
    "jvp": tangent,
    "jacrev": jacrev,
    "jacfwd": jacfwd,
    "hessian": lambda f: hessian(lambda x: f(x).square().sum()),
    "forward over forward": lambda f: jacfwd(jacfwd(lambda x: f(x).square().sum())),
    "reverse over forward": lambda f: jacrev(jacfwd(lambda x: f(x).square().sum())),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("options", [{}, pytest.param(WIDE, marks=pytest.mark.slow)], ids=str)
def test_a_compiled_transformation_is_what_it_is_without_a_compiler(options, transform):
    module, x = made(**options), drawn(STEPS, BATCH, INPUT)
    run = transform(lambda x: module(x)[0])
    want = run(x)
    agree(torch.compile(run, backend="aot_eager", fullgraph=True)(x), want, SECOND)


def test_gradients_of_every_example_with_respect_to_the_parameters():
    module, x = made(), drawn(STEPS, BATCH, INPUT)
    params = {n: p.detach() for n, p in module.named_parameters()}
    run = vmap(grad(lambda params, one: functional_call(module, params, (one,))[0].square().sum()), in_dims=(None, 1))
    got, want = torch.compile(run, backend="aot_eager", fullgraph=True)(params, x), run(params, x)
    assert got.keys() == want.keys()
    for name, value in want.items():
        agree(got[name], value, SECOND, name)


def test_autograd_goes_on_where_the_compiled_function_ends():
    module = made()
    run = grad(lambda x: module(x)[0].square().sum())
    found = []
    for f in (run, torch.compile(run, backend="aot_eager", fullgraph=True)):
        x = drawn(STEPS, BATCH, INPUT).requires_grad_()
        found.append(torch.autograd.grad(f(x).square().sum(), x)[0])
    agree(found[1], found[0], SECOND)


@pytest.mark.parametrize("steps", [3, 30])
def test_the_graph_has_as_many_nodes_for_every_length(steps):
    """Each scan is one operator in the graph that the compiler translates."""
    module, seen = made(), []

    def count(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    run = grad(lambda x: module(x)[0].square().sum())
    torch.compile(run, backend=aot_autograd(fw_compiler=count), fullgraph=True)(drawn(steps, BATCH, INPUT))
    scans = [target for target in seen if target.startswith("rnncore.")]
    assert scans == ["rnncore.nonlinear_scan.default", "rnncore.linear_scan.default"]
    assert not any("tanh" in target for target in seen)


@pytest.mark.parametrize("options", [{}, {"nonlinearity": "leaky_relu", "clip": 0.5}], ids=str)
def test_a_network_of_rnncores_compiles_whole(options):
    model = rnncore.RNN(INPUT, HIDDEN, 2, bidirectional=True, backend="torch", dtype="float64", rng=0, **options)
    params = [p.requires_grad_() for p in model.params.values()]

    def run(x):
        output, h_n = model(x)
        return output.square().sum() + h_n.sum()

    found = []
    for f in (run, torch.compile(run, backend="aot_eager", fullgraph=True)):
        x = drawn(STEPS, BATCH, INPUT).requires_grad_()
        found.append(torch.autograd.grad(f(x), [x, *params]))
    for got, want in zip(found[1], found[0], strict=True):
        agree(got, want, SECOND)
    slope = TRANSFORMS["hessian"](lambda x: model(x)[0])
    x = drawn(STEPS, BATCH, INPUT)
    agree(torch.compile(slope, backend="aot_eager", fullgraph=True)(x), slope(x), SECOND)


def test_forward_mode_around_a_compiled_function_keeps_its_tangents():
    """The compiler sees no tangents, so the layer is left out of the graph."""
    module, x = made().requires_grad_(False), drawn(STEPS, BATCH, INPUT)
    found = []
    for f in (module, torch.compile(module, backend="aot_eager")):
        with forward_ad.dual_level():
            found.append(forward_ad.unpack_dual(f(forward_ad.make_dual(x, x))[0]).tangent)
    agree(found[1], found[0], SECOND)


def test_the_compiler_is_not_imported_by_the_module():
    """That takes seconds, which a program that compiles nothing should not wait for."""
    from tests.tools.process import python

    assert python("import sys; from rnncore_torch import nn; print('torch._dynamo' in sys.modules)") == "False"
