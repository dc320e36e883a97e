"""The scans with carry: derivatives under JAX's transformations, against the reference and against numbers of the host."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import grad, jacfwd, jacrev, jvp
from rnncore_jax._scans import SCANS

import rnncore
from rnncore import scan
from rnncore.carry import Carry
from tests.tools import differences
from tests.tools.jax_problem import assert_trees_close, draw, inner_jaxprs
from tests.tools.rounding import SECOND

STEPS, BATCH, WIDTH = 3, 2, 2
FULL = (STEPS, BATCH, WIDTH)
# A leak with a gate, and one factor of each kind left out.
KINDS = {
    "units": {"a": (WIDTH,), "g": (WIDTH,)},
    "steps": {"a": FULL, "g": FULL, "i": FULL},
    "mixed": {"a": FULL, "i": (WIDTH,)},
    "reading": {"i": FULL},
}
SOFTPLUS = rnncore.get_nonlinearity("softplus")
kinds = pytest.mark.parametrize("kind", KINDS)
both_ways = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


def arguments(kind):
    names = ["p", "h0", "w", *KINDS[kind]]
    return dict(zip(names, draw(0, FULL, FULL[1:], (WIDTH, WIDTH), *KINDS[kind].values()), strict=True))


def nonlinear(run, reverse, v):
    carry = Carry(v.get("a"), v.get("g"), v.get("i"))
    return jnp.sum(run(v["p"], v["h0"], v["w"], nonlinearity=SOFTPLUS, reverse=reverse, carry=carry) ** 3)


def linear(run, reverse, v):
    return jnp.sum(run(v["p"], v.get("g"), v.get("i"), v.get("a"), v["h0"], v["w"], reverse=reverse) ** 3)


SCAN_OF = {
    "nonlinear": (nonlinear, SCANS.nonlinear, functools.partial(scan.nonlinear, xp=jnp)),
    "linear": (linear, SCANS.linear_carry, functools.partial(scan.linear_carry, xp=jnp)),
}
scans = pytest.mark.parametrize("which", SCAN_OF)


@scans
@kinds
@both_ways
def test_gradients_and_second_derivatives_equal_the_references(which, kind, reverse):
    """The reference is differentiated by JAX's own rules, once in each mode and twice in each pair of modes."""
    call, kernel, reference = SCAN_OF[which]
    v, dot = arguments(kind), jax.tree.map(lambda x: x[::-1] * 0.5, arguments(kind))

    def along(f):
        return lambda v: jvp(f, (v,), (dot,))[1]

    def found(run):
        f = functools.partial(call, run, reverse)
        backwards = grad(f)
        inner = lambda v: sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (backwards(v), dot)), strict=True))  # noqa: E731
        return lambda v: (backwards(v), along(f)(v), grad(along(f))(v), along(backwards)(v), grad(inner)(v))

    got, want = jax.jit(found(kernel))(v), jax.jit(found(reference))(v)
    assert_trees_close(got, want, SECOND)


def test_the_loops_of_the_backward_pass_sum_no_matrix():
    """dW_hh is one product after the loop: no loop carries more than a state."""
    v = arguments("steps")
    jaxpr = jax.make_jaxpr(grad(functools.partial(nonlinear, SCANS.nonlinear, False)))(v).jaxpr
    loops = [e for e in inner_jaxprs(jaxpr) if e.primitive.name == "scan"]
    assert len(loops) >= 2
    for loop in loops:
        body, skip = loop.params["jaxpr"].jaxpr, loop.params["num_consts"]
        assert [x.aval.shape for x in body.invars[skip : skip + loop.params["num_carry"]]] == [FULL[1:]]


@both_ways
def test_an_overflow_before_a_reset_reaches_no_gradient_after_it(reverse):
    """Of what comes after: a factor of exactly 0 cuts, in the loop that JAX transposes too."""
    v = arguments("steps")
    at, old = (STEPS - 2, slice(STEPS - 1, None)) if reverse else (1, slice(0, 1))
    v["a"], v["i"] = v["a"].at[at].set(0), v["i"].at[at].set(0)

    def after(p):
        carry = Carry(v["a"], v["g"], v["i"])
        h = SCANS.nonlinear(p, v["h0"], v["w"], nonlinearity=SOFTPLUS, reverse=reverse, carry=carry)
        return jnp.sum(h.at[old].set(0) ** 2)

    clean, dirty = grad(after)(v["p"]), grad(after)(v["p"].at[old].set(jnp.inf))
    np.testing.assert_array_equal(dirty.at[old].set(0), clean.at[old].set(0))
    assert jacfwd(after)(v["p"]).shape == jacrev(after)(v["p"]).shape == FULL


def test_the_gradient_of_a_factor_that_is_0_is_that_of_central_differences():
    """Where a factor cuts only NaN and infinity, its gradient is not 0."""
    v = arguments("steps")
    v["g"] = v["g"].at[1].set(0)
    f = jax.jit(functools.partial(nonlinear, SCANS.nonlinear, False))
    got = grad(f)(v)["g"]
    want = differences.directional(lambda g: float(f(v | {"g": g})), (v["g"],), (jnp.ones(FULL),))
    differences.assert_close(float(jnp.sum(got)), want)
