"""The scans: derivatives of any order, nonlinearities of users, and compiled programs found again."""

import functools
import itertools

import jax
import jax.numpy as jnp
import pytest
import rnncore_jax
from jax import grad, hessian, jacfwd, jvp, vmap
from rnncore_jax._scans import SCANS, _compiled_linear, _compiled_nonlinear

import rnncore
from rnncore.errors import KernelUnsupportedError
from rnncore.functional import rnn as frnn
from tests.tools import differences
from tests.tools.jax_problem import (
    ARGUMENTS,
    BATCH,
    HIDDEN,
    INPUT,
    NAMES,
    STEPS,
    TANH,
    assert_trees_close,
    draw,
    inner_jaxprs,
    problem,
)
from tests.tools.rounding import EPS, SECOND, THIRD, agree


@pytest.mark.slow
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("scan", ["nonlinear", "linear"])
def test_every_composition_of_three_derivatives_of_a_scan_is_right(scan, reverse):
    """Along three directions, against the reference, which JAX differentiates by its own rules."""
    shapes = [(3, 2, 2), (2, 2), (2, 2)] if scan == "nonlinear" else [(3, 2, 2), (3, 2, 2), (2, 2), (2, 2)]
    options = {"reverse": reverse} | ({"nonlinearity": TANH} if scan == "nonlinear" else {})
    directions = [draw(k, *shapes) for k in range(1, 4)]

    def forward(f, t):
        return lambda *v: jvp(f, v, t)[1]

    def backward(f, t):
        dot = lambda a, b: sum(jnp.vdot(x, y) for x, y in zip(a, b, strict=True))  # noqa: E731
        return lambda *v: dot(grad(f, argnums=tuple(range(len(v))))(*v), t)

    def third(call, kinds):
        f = lambda *v: jnp.sum(call(*v, **options) ** 3)  # noqa: E731
        for kind, t in zip(kinds, directions, strict=True):
            f = kind(f, t)
        return float(jax.jit(f)(*draw(0, *shapes)))

    reference = functools.partial(getattr(rnncore.scan, scan), xp=jnp)
    want = third(reference, [forward] * 3)
    for kinds in itertools.product((forward, backward), repeat=3):
        assert third(getattr(SCANS, scan), kinds) == pytest.approx(want, rel=THIRD * EPS)


def scans_in(function, *args):
    """Every scan in the jaxpr of a function: the shapes of what it carries, and its body's equations."""
    for equation in inner_jaxprs(jax.make_jaxpr(function)(*args).jaxpr):
        if equation.primitive.name == "scan":
            body, skip = equation.params["jaxpr"].jaxpr, equation.params["num_consts"]
            carried = body.invars[skip : skip + equation.params["num_carry"]]
            yield [v.aval.shape for v in carried], [e.primitive.name for e in body.eqns]


@pytest.mark.parametrize("wrapped", [lambda f: f, jax.checkpoint, jax.jit], ids=["plain", "checkpoint", "jit"])
def test_the_loop_of_the_backward_pass_sums_no_matrix(wrapped):
    """dW_hh is one product after the loop. By JAX's own rule an (H, H) array is carried and added to at each step."""
    steps, batch, width = 7, 5, 3

    def loss(scan):
        return lambda p, h0, w: jnp.sum(scan(p, h0, w) ** 2)

    def plain(p, h0, w):
        return jax.lax.scan(lambda h, p_t: (jnp.tanh(p_t + h @ w.mT),) * 2, h0, p)[1]

    def ours(p, h0, w):
        return SCANS.nonlinear(p, h0, w, nonlinearity=TANH, reverse=False)

    args = draw(0, (steps, batch, width), (batch, width), (width, width))
    found = list(scans_in(grad(wrapped(loss(ours)), argnums=(0, 1, 2)), *args))
    assert len(found) >= 2
    for carried, body in found:
        assert carried == [(batch, width)], carried
        assert body.count("dot_general") == 1, body
    theirs = [carried for carried, _ in scans_in(grad(loss(plain), argnums=(0, 1, 2)), *args)]
    assert any((width, width) in carried for carried in theirs)


def soft(z):
    return z / (1 + abs(z))


def soft_slope(z):
    return 1 / (1 + abs(z)) ** 2


CUSTOM = rnncore.custom_nonlinearity(lambda z: jnp.sin(z) + z / 2, lambda z: jnp.cos(z) + 0.5)


TRANSFORMED = {
    "jit": jax.jit,
    "grad": lambda g: grad(g, argnums=ARGUMENTS),
    "jacfwd": lambda g: jacfwd(g, argnums=ARGUMENTS),
    "hessian": lambda g: hessian(g, argnums=(0, 3)),
    "vmap": lambda g: (
        lambda *v: vmap(g, in_axes=(None,) * 3 + (0, None, None))(*v[:3], jnp.stack([v[3], -v[3]]), *v[4:])
    ),
}


@pytest.mark.parametrize("transformed", list(TRANSFORMED.values()), ids=list(TRANSFORMED))
@pytest.mark.parametrize("f", [(soft, soft_slope), CUSTOM], ids=["operators", "jax.numpy"])
def test_a_users_nonlinearity_runs_in_the_kernel_under_every_transformation(f, transformed):
    def with_kernel(kernel):
        return lambda x, h0, *w: jnp.sum(
            frnn(x, dict(zip(NAMES, w, strict=True)), h0, nonlinearity=f, kernel=kernel)[0] ** 2
        )

    values = problem()
    got, want = (jax.jit(transformed(with_kernel(kernel)))(*values) for kernel in ("require", "reference"))
    assert_trees_close(got, want, SECOND)


@pytest.mark.parametrize("outer", [grad, lambda f: grad(jax.jit(f)), lambda f: jax.jit(grad(f))])
def test_a_value_that_a_nonlinearity_closes_over_has_its_gradient(outer):
    """A rule for p, h0 and w_hh would leave it out without a word, so the reference runs."""
    x, h0, *weights = problem()

    def loss(a, kernel="auto"):
        f = (lambda z: jnp.tanh(a * z), lambda z: a * (1 - jnp.tanh(a * z) ** 2))
        return jnp.sum(frnn(x, dict(zip(NAMES, weights, strict=True)), h0, nonlinearity=f, kernel=kernel)[0])

    want = differences.directional(lambda a: float(loss(a)), (0.5,), (1.0,))
    differences.assert_close(float(outer(loss)(0.5)), want)
    with pytest.raises(KernelUnsupportedError, match="uses values that JAX is tracing"):
        outer(lambda a: loss(a, "require"))(0.5)


def test_a_nonlinearity_without_a_hash_runs_on_the_reference_and_says_so():
    class Unhashable:
        __name__ = "mine"
        __hash__ = None

        def __call__(self, z):
            return jnp.tanh(z)

    model = rnncore_jax.RNN(INPUT, HIDDEN, nonlinearity=(Unhashable(), lambda z: 1 - jnp.tanh(z) ** 2), rng=0)
    assert "'mine' is not hashable" in str(model.explain())
    x = jnp.ones((STEPS, BATCH, INPUT), model.dtype)
    agree(model(x)[0], rnncore_jax.RNN(INPUT, HIDDEN, rng=0)(x)[0])


def test_an_eager_call_finds_the_compiled_code_of_the_one_before():
    x = jnp.ones((STEPS, BATCH, INPUT), jnp.float32)

    def calls(clip):
        model = rnncore_jax.RNN(
            INPUT, HIDDEN, nonlinearity="softsign", clip=clip, dtype="float32"
        )  # another one each time
        output, h_n, pullback = model.vjp(x)
        return pullback(output, h_n), grad(lambda m: jnp.sum(m(x)[0]))(model)

    calls(0.25)
    compiled = _compiled_nonlinear._cache_size(), _compiled_linear._cache_size()
    calls(0.25)
    assert (_compiled_nonlinear._cache_size(), _compiled_linear._cache_size()) == compiled
    calls(0.5)
    assert _compiled_nonlinear._cache_size() == compiled[0] + 1


@pytest.mark.parametrize(("steps", "batch"), [(0, 2), (3, 0), (0, 0)])
def test_scans_of_no_steps_and_of_no_rows(steps, batch):
    p, h0, w = jnp.zeros((steps, batch, 3)), jnp.zeros((batch, 3)), jnp.eye(3)
    for reverse in (False, True):
        assert SCANS.nonlinear(p, h0, w, nonlinearity=TANH, reverse=reverse).shape == p.shape
        assert SCANS.linear(p, p, h0, w, reverse=reverse).shape == p.shape
    if steps:
        model = rnncore_jax.RNN(3, 4, dtype="float64", rng=0)
        found = grad(lambda m: jnp.sum(m(p)[0]))(model)
        assert all(not bool(jnp.any(g)) for g in found.params.values())
