"""PyTorch's autograd and torch.func through the scans: every order of derivative, by autograd's own checkers."""

import itertools

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import rnncore
from rnncore.functional import rnn as frnn
from tests.tools.rounding import SECOND, agree

STEPS, BATCH, INPUT, HIDDEN = 4, 2, 3, 3
# Smooth ones everywhere; the kinked ones are checked away from their kinks by the seed.
NAMES = ("tanh", "sigmoid", "relu", "identity", "softplus", "softsign", "elu", "scaled_tanh", "hard_sigmoid")


def problem(name="tanh", *, bidirectional=False, layers=1, lengths=None, clip=None, seed=0):
    rng = np.random.default_rng(seed)
    model = rnncore.RNN(INPUT, HIDDEN, layers, bidirectional=bidirectional, backend="torch", dtype="float64", rng=seed)
    params = {k: v.requires_grad_() for k, v in model.state_dict().items()}
    directions = layers * (2 if bidirectional else 1)
    x = torch.tensor(rng.standard_normal((STEPS, BATCH, INPUT)), requires_grad=True)
    h0 = torch.tensor(rng.standard_normal((directions, BATCH, HIDDEN)), requires_grad=True)

    def run(x, h0, *values):
        return frnn(x, dict(zip(params, values, strict=True)), h0, nonlinearity=name, lengths=lengths, clip=clip)

    return run, (x, h0, *params.values())


@pytest.mark.parametrize("name", [n if n == "tanh" else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_gradcheck_and_gradgradcheck_pass_for_each_nonlinearity(name):
    run, args = problem(name)
    assert gradcheck(run, args, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(run, args, check_fwd_over_rev=True, check_batched_grad=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bidirectional", "layers", "lengths", "clip"),
    [
        (True, 1, None, None),
        (False, 2, None, None),
        (True, 2, [3, 4], None),
        (False, 1, [0, 3], None),
        (False, 1, None, 0.4),
    ],
)
def test_gradcheck_and_gradgradcheck_pass_for_each_configuration(bidirectional, layers, lengths, clip):
    run, args = problem(bidirectional=bidirectional, layers=layers, lengths=lengths, clip=clip)
    assert gradcheck(run, args, check_forward_ad=True)
    assert gradgradcheck(run, args, check_fwd_over_rev=True)


@pytest.fixture
def closure():
    run, args = problem()
    plain = tuple(a.detach() for a in args)

    def scalar(*values):
        output, h_n = run(*values)
        return (output**2).sum() + (h_n**3).sum()

    return scalar, plain


def reference_scalar(values):
    states = _plain_output(values)
    return (states**2).sum() + (states[-1] ** 3).sum()


ARGUMENTS = tuple(range(6))


@pytest.mark.parametrize("outer", [jacrev, jacfwd], ids=["jacrev", "jacfwd"])
def test_jacobians_equal_a_plain_loops(closure, outer):
    _, plain = closure
    run, _ = problem()
    got = outer(lambda *v: run(*v)[0], argnums=ARGUMENTS)(*plain)
    want = jacrev(lambda *v: _plain_output(v), argnums=ARGUMENTS)(*plain)
    for g, w in zip(got, want, strict=True):
        agree(g, w)


def _plain_output(values):
    x, h0, w_ih, w_hh, b_ih, b_hh = values
    h, states = h0[0], []
    for x_t in x:
        h = torch.tanh(x_t @ w_ih.mT + b_ih + h @ w_hh.mT + b_hh)
        states.append(h)
    return torch.stack(states)


@pytest.mark.parametrize(
    "second",
    [
        hessian,
        lambda f, argnums: jacrev(jacrev(f, argnums), argnums),
        lambda f, argnums: jacfwd(jacfwd(f, argnums), argnums),
        lambda f, argnums: jacrev(jacfwd(f, argnums), argnums),
    ],
    ids=["hessian", "reverse-reverse", "forward-forward", "reverse-forward"],
)
def test_hessians_equal_a_plain_loops(closure, second):
    scalar, plain = closure
    got = second(scalar, argnums=ARGUMENTS)(*plain)
    want = hessian(lambda *v: reference_scalar(v), argnums=ARGUMENTS)(*plain)
    for row_g, row_w in zip(got, want, strict=True):
        for g, w in zip(row_g, row_w, strict=True):
            agree(g, w, SECOND)


def test_nested_forward_mode_is_right_on_an_engine_that_has_run_the_same_shape(closure):
    """The scans decide for each call, not for each shape; kernel="require" takes the plain operations too."""
    _, (x, *_) = closure
    hessians = []
    for kernel in ("require", "reference"):
        model = rnncore.RNN(INPUT, HIDDEN, backend="torch", dtype="float64", rng=0, kernel=kernel)

        def loss(x, model=model):
            return model(x)[0].square().sum()

        loss(x)
        hessians += [jacfwd(jacfwd(loss))(x), hessian(loss)(x)]
    for found in hessians[:3]:
        agree(found, hessians[3], SECOND)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_traced_model_runs_on_other_numbers():
    model = rnncore.RNN(INPUT, HIDDEN, backend="torch", dtype="float64", rng=0)
    x = torch.randn(STEPS, BATCH, INPUT, dtype=torch.float64)
    traced = torch.jit.trace(lambda x: model(x)[0], x)
    agree(traced(2 * x), model(2 * x)[0])


@pytest.mark.parametrize("mapped", [m for m in itertools.product((False, True), repeat=6) if any(m)][::3])
def test_vmap_over_any_arguments_equals_a_loop(mapped):
    run, args = problem(seed=3)
    size = 3
    torch.manual_seed(0)
    values = [
        torch.randn(size, *a.shape, dtype=a.dtype) * 0.5 if m else a.detach() for a, m in zip(args, mapped, strict=True)
    ]
    dims = tuple(0 if m else None for m in mapped)
    got = vmap(run, in_dims=dims)(*values)
    for k in range(size):
        want = run(*(v[k] if m else v for v, m in zip(values, mapped, strict=True)))
        for g, w in zip(got, want, strict=True):
            agree(g[k], w)


def test_per_example_gradients_by_vmap_of_grad(closure):
    scalar, (x, h0, *weights) = closure

    def one(x_b, h_b, *w):
        return scalar(x_b.unsqueeze(1), h_b.unsqueeze(1), *w)

    got = vmap(grad(one, argnums=(2, 3, 4, 5)), in_dims=(1, 1, None, None, None, None))(x, h0, *weights)
    for b in range(BATCH):
        want = grad(one, argnums=(2, 3, 4, 5))(x[:, b], h0[:, b], *weights)
        for g, w in zip(got, want, strict=True):
            agree(g[b], w)


def test_nested_vmap_with_a_matrix_for_each_example():
    run, (x, h0, w_ih, _, b_ih, b_hh) = problem()
    many = torch.randn(2, 3, HIDDEN, HIDDEN, dtype=torch.float64) * 0.5
    inner = vmap(lambda w: run(x.detach(), h0.detach(), w_ih.detach(), w, b_ih.detach(), b_hh.detach())[0])
    got = vmap(inner)(many)
    for i, j in itertools.product(range(2), range(3)):
        want = run(x.detach(), h0.detach(), w_ih.detach(), many[i, j], b_ih.detach(), b_hh.detach())[0]
        agree(got[i, j], want)


def test_hessian_vector_product_forward_over_reverse(closure):
    scalar, plain = closure
    tangent = tuple(torch.ones_like(v) for v in plain)
    _, got = jvp(lambda *v: grad(scalar, argnums=ARGUMENTS)(*v), plain, tangent)
    _, pull = vjp(lambda *v: grad(scalar, argnums=ARGUMENTS)(*v), *plain)
    for g, w in zip(got, pull(tangent), strict=True):
        agree(g, w, SECOND)


def test_the_explicit_pullback_is_itself_differentiable():
    """rnn.vjp returns gradients that autograd can go on through: the scans in it are Functions too."""
    model = rnncore.RNN(INPUT, HIDDEN, backend="torch", dtype="float64", rng=0)
    x = torch.randn(STEPS, BATCH, INPUT, dtype=torch.float64, requires_grad=True)

    def input_gradient(x):
        output, _, pullback = model.vjp(x)
        return pullback(torch.ones_like(output)).x

    assert gradcheck(input_gradient, (x,))


def test_a_model_on_torch_trains_by_backward():
    model = rnncore.RNN(INPUT, HIDDEN, backend="torch", rng=0)
    for p in model.params.values():
        p.requires_grad_()
    output, _ = model(torch.randn(STEPS, BATCH, INPUT))
    output.sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.params.values())


@pytest.mark.parametrize("kernel", ["require", "reference"])
def test_the_reference_and_the_functions_give_the_same_gradients(kernel):
    torch.manual_seed(0)
    x = torch.randn(6, 3, INPUT, dtype=torch.float64, requires_grad=True)
    grads = []
    for mode in ("reference", kernel):
        model = rnncore.RNN(INPUT, HIDDEN, 2, bidirectional=True, backend="torch", dtype="float64", rng=0, kernel=mode)
        params = [p.requires_grad_() for p in model.params.values()]
        output, h_n = model(x)
        grads.append(torch.autograd.grad((output**2).sum() + h_n.sum(), [x, *params]))
    for a, b in zip(*grads, strict=True):
        agree(a, b)


@pytest.mark.parametrize("follows", [True, False], ids=["with a gradient", "without"])
def test_the_scans_change_no_argument_unless_they_may(follows):
    """Told they are by `overwrite`, and take it up only where no derivative follows."""
    scans = rnncore.get_backend("torch").scans()
    torch.manual_seed(0)
    p, d = torch.randn(STEPS, BATCH, HIDDEN), torch.randn(STEPS, BATCH, HIDDEN)
    h0, w = torch.randn(BATCH, HIDDEN), torch.randn(HIDDEN, HIDDEN)
    if follows:
        p, d, h0, w = (a.requires_grad_() for a in (p, d, h0, w))
    for overwrite in (False, True) if follows else (False,):
        before = [a.detach().clone() for a in (p, d, h0, w)]
        f = rnncore.get_nonlinearity("tanh")
        h = scans.nonlinear(p, h0, w, nonlinearity=f, reverse=False, overwrite=overwrite)
        s = scans.linear(p, d, h0, w, reverse=True, overwrite=overwrite)
        if follows:
            torch.autograd.grad(h.sum() + s.sum(), [p, d, h0, w])
        for was, now in zip(before, (p, d, h0, w), strict=True):
            assert torch.equal(was, now)


def test_a_users_derivative_keeps_what_it_hands_out():
    ones = torch.ones(STEPS, BATCH, HIDDEN)
    f = rnncore.custom_nonlinearity(lambda z: z * 1, lambda z: ones)
    model = rnncore.RNN(INPUT, HIDDEN, nonlinearity=f, backend="torch", rng=0)
    output, _ = model(torch.randn(STEPS, BATCH, INPUT, requires_grad=True))
    output.square().sum().backward()
    assert bool((ones == 1).all())
