"""The oracle of the conformance suite is itself held against central differences and PyTorch."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from rnncore.nonlinearity.nonlinearity import NONLINEARITIES
from rnncore.testing.checks.contract import FUNCTIONS_USED
from rnncore.testing.tools import oracle
from tests.tools.differences import assert_close, directional, gradients
from tests.tools.places import CORE
from tests.tools.rounding import agree

STEPS, BATCH, INPUT = 4, 3, 2
WIDTHS = (3, 2)
LENGTHS = (3, 0, 4)
stacks = pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])


def problem(bidirectional, seed=0):
    rng = np.random.default_rng(seed)
    directions = 2 if bidirectional else 1
    params, reads = {}, INPUT
    for k, width in enumerate(WIDTHS):
        for d in range(directions):
            end = f"l{k}" + ("_reverse" if d else "")
            params |= {
                f"weight_ih_{end}": rng.standard_normal((width, reads)),
                f"weight_hh_{end}": rng.standard_normal((width, width)),
                f"bias_ih_{end}": rng.standard_normal(width),
                f"bias_hh_{end}": rng.standard_normal(width),
            }
        reads = width * directions
    x, h0 = rng.standard_normal((STEPS, BATCH, INPUT)), [rng.standard_normal((directions, BATCH, h)) for h in WIDTHS]
    d_output = rng.standard_normal((STEPS, BATCH, directions * WIDTHS[-1]))
    return params, x, h0, d_output, [rng.standard_normal(h.shape) for h in h0]


def test_it_knows_every_named_function():
    assert set(oracle.FUNCTIONS) == set(NONLINEARITIES)


@pytest.mark.parametrize("name", NONLINEARITIES)
def test_derivatives_of_the_functions(name):
    f, df = oracle.FUNCTIONS[name]
    z = np.asarray([-3.1, -0.7, 0.4, 1.3, 2.9])  # away from every kink
    assert_close(df(z), directional(f, [z], [np.ones_like(z)]))


@pytest.mark.parametrize("clip", [np.inf, 0.6], ids=["", "clip"])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@stacks
def test_gradients_against_central_differences(bidirectional, lengths, clip):
    params, x, h0, d_output, d_h_n = problem(bidirectional)
    names = list(params)

    def loss(x, *rest):
        values, states = rest[: len(names)], rest[len(names) :]
        found = oracle.solve(dict(zip(names, values, strict=True)), x, states, name="tanh", lengths=lengths, clip=clip)
        return float(
            (found.output * d_output).sum() + sum((h * d).sum() for h, d in zip(found.h_n, d_h_n, strict=True))
        )

    found = oracle.solve(
        params, x, h0, name="tanh", lengths=lengths, clip=clip, cotangents=(d_output, d_h_n)
    )  # fmt: skip
    want = gradients(loss, [x, *params.values(), *h0])
    for got, value in zip([found.x, *found.params.values(), *found.h0], want, strict=True):
        assert_close(got, value)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@stacks
def test_tangents_against_central_differences(bidirectional, lengths):
    params, x, h0, *_ = problem(bidirectional)
    dots, x_dot, h0_dot, *_ = problem(bidirectional, seed=1)
    got, got_last = oracle.solve_tangent(params, x, h0, dots, x_dot, h0_dot, name="softplus", lengths=lengths)

    def run(e):
        moved = {k: v + e * dots[k] for k, v in params.items()}
        states = [h + e * t for h, t in zip(h0, h0_dot, strict=True)]
        return oracle.solve(moved, x + e * x_dot, states, name="softplus", lengths=lengths)

    assert_close(got, directional(lambda e: run(float(e)).output, [np.zeros(())], [np.ones(())]))
    for k in range(len(WIDTHS)):
        want = directional(lambda e, k=k: run(float(e)).h_n[k], [np.zeros(())], [np.ones(())])
        assert_close(got_last[k], want)


@stacks
def test_against_torch(bidirectional):
    rng = np.random.default_rng(0)
    peer = torch.nn.RNN(INPUT, 3, 2, bidirectional=bidirectional, dtype=torch.float64)
    params = {k: v.detach().numpy() for k, v in peer.named_parameters()}
    directions = 2 if bidirectional else 1
    x, h0 = rng.standard_normal((STEPS, BATCH, INPUT)), rng.standard_normal((2 * directions, BATCH, 3))
    output, h_n = peer(torch.tensor(x), torch.tensor(h0))
    c = rng.standard_normal(tuple(output.shape))
    (output * torch.tensor(c)).sum().backward()
    found = oracle.solve(params, x, list(h0.reshape(2, directions, BATCH, 3)), name="tanh", cotangents=(c, None))
    agree(found.output, output.detach().numpy())
    agree(np.concatenate(found.h_n), h_n.detach().numpy())
    for k, p in peer.named_parameters():
        agree(found.params[k], p.grad.numpy())


def test_truncation_is_a_detached_state():
    params, x, h0, d_output, _ = problem(False)
    found = oracle.solve(params, x, h0, name="tanh", cotangents=(d_output, None), truncate=2)
    second = oracle.solve(params, x[:2], h0, name="tanh", cotangents=(d_output[:2], None))
    agree(found.x[:2], second.x)
    third = oracle.solve(params, x[2:], second.h_n, name="tanh", cotangents=(d_output[2:], None))
    agree(found.x[2:], third.x)
    for k in params:
        agree(found.params[k], second.params[k] + third.params[k])


def test_it_imports_nothing_of_the_library():
    tree = ast.parse(Path(oracle.__file__).read_text())
    names = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    names += [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    assert not [n for n in names if n.startswith("rnncore")]


def test_the_suite_asks_for_every_function_that_the_core_calls():
    """Diagnostics, demonstrations and the suite itself call more, or NumPy's own."""
    used = set()
    for path in CORE.rglob("*.py"):
        if path.relative_to(CORE).parts[0] not in ("diagnostics", "commands", "testing"):
            used |= set(re.findall(r"\bxp\.([a-z_0-9]+)\(", path.read_text()))
    assert used - {"__array_namespace_info__"} == set(FUNCTIONS_USED)
