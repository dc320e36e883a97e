"""A network under JAX's transformations: grad, jacobians, Hessians, vmap and jit."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rnncore_jax
from jax import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import rnncore
from rnncore.errors import ArgumentTypeError
from rnncore.functional import rnn as frnn
from rnncore.functional import vjp as fvjp
from tests.tools import differences
from tests.tools.jax_problem import (
    ARGUMENTS,
    BATCH,
    HIDDEN,
    INPUT,
    NAMES,
    STEPS,
    assert_trees_close,
    draw,
    model_and_input,
    problem,
    run,
    scalar,
)
from tests.tools.rounding import SECOND, agree
from tests.tools.sample import sample

EPS = 2.0**-52
EPS_ALLOWED = 64  # DESIGN, section 6: of max|reference|, and of 1 for states


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("lengths", [None, [9, 4, 0]], ids=["full", "ragged"])
@pytest.mark.parametrize(
    ("kernel", "name"),
    sample([("require", "tanh"), ("require", "relu"), ("require", "sigmoid"), ("reference", "tanh")], 4),
)
def test_states_and_gradients_agree_with_numpys(kernel, name, lengths, bidirectional):
    rng = np.random.default_rng(3)
    host = rnncore.RNN(
        INPUT, 5, 2, name, bidirectional=bidirectional, backend="numpy", dtype="float64", rng=0, kernel="reference"
    )
    model = rnncore_jax.RNN.from_spec(host.spec, host.state_dict(), dtype="float64", kernel=kernel)
    directions = 4 if bidirectional else 2
    arrays = {
        "x": rng.standard_normal((9, 3, INPUT)),
        "h0": rng.standard_normal((directions, 3, 5)),
        "d_output": rng.standard_normal((9, 3, 5 * directions // 2)),
        "d_h_n": rng.standard_normal((directions, 3, 5)),
    }
    want = run_both_ways(host, arrays, lengths)
    got = run_both_ways(model, {k: jnp.asarray(v) for k, v in arrays.items()}, lengths)
    for key, reference in want.items():
        scale = max(np.abs(reference).max(), 1.0 if key in ("output", "h_n") else 0.0)
        error = np.abs(np.asarray(got[key]) - reference).max() / scale / EPS
        assert error <= EPS_ALLOWED, f"{key}: {error:.1f} eps"


def run_both_ways(model, arrays, lengths):
    output, h_n, pullback = model.vjp(arrays["x"], arrays["h0"], lengths)
    found = pullback(arrays["d_output"], arrays["d_h_n"])
    tangents = model.jvp(arrays["x"], arrays["h0"], lengths, x_dot=arrays["x"], h0_dot=arrays["h0"])[2]
    return {"output": output, "h_n": h_n, "x": found.x, "h0": found.h0, **found.params, "tangent": tangents.output}


@pytest.mark.parametrize(
    ("name", "clip", "lengths"),
    sample(
        [
            ("tanh", 0.7, [4, 2]),
            ("tanh", None, None),
            ("tanh", None, [4, 2]),
            ("relu", None, [4, 0]),
            ("sigmoid", None, [3, 3]),
        ],
        5,
    ),
)
def test_jax_grad_equals_the_explicit_pullback(name, clip, lengths):
    model = rnncore_jax.RNN(INPUT, HIDDEN, 2, name, bidirectional=True, clip=clip, dtype="float64", rng=0)
    x, h0 = draw(0, (STEPS, BATCH, INPUT), (4, BATCH, HIDDEN))

    def loss(model, x, h0):
        output, h_n = model(x, h0, lengths)
        return jnp.sum(output**2) + jnp.sum(h_n**3)

    d_model, d_x, d_h0 = jax.jit(grad(loss, argnums=(0, 1, 2)))(model, x, h0)
    output, h_n, pullback = model.vjp(x, h0, lengths)
    found = pullback(2 * output, 3 * h_n**2)
    for got, want in [(d_x, found.x), (d_h0, found.h0), *((d_model.params[k], v) for k, v in found.params.items())]:
        assert float(jnp.abs(got - want).max()) <= EPS_ALLOWED * EPS * float(jnp.abs(want).max())


@pytest.mark.parametrize("dtype", sample(["bfloat16", "float16", "float32"], 3))
def test_every_floating_dtype_is_kept_from_end_to_end(dtype):
    model = rnncore_jax.RNN(INPUT, HIDDEN, dtype=dtype, rng=0)
    x = jnp.ones((STEPS, BATCH, INPUT), dtype)
    output, h_n, pullback = model.vjp(x, lengths=[4, 1])
    found = pullback(output, h_n)
    assert {str(a.dtype) for a in (output, h_n, found.x, found.h0, *found.params.values())} == {dtype}
    wide = model.to("numpy", dtype="float64")(np.ones((STEPS, BATCH, INPUT)), lengths=[4, 1])[0]
    assert np.abs(np.asarray(output, "float64") - wide).max() <= 4 * float(jnp.finfo(dtype).eps)


def plain_output(*values):
    x, h0, w_ih, w_hh, b_ih, b_hh = values
    h, states = h0[0], []
    for x_t in x:
        h = jnp.tanh(x_t @ w_ih.mT + b_ih + h @ w_hh.mT + b_hh)
        states.append(h)
    return jnp.stack(states)


def plain_scalar(*values):
    states = plain_output(*values)
    return jnp.sum(states**2) + jnp.sum(states[-1] ** 3)


@pytest.mark.parametrize("outer", [jacrev, jacfwd], ids=["jacrev", "jacfwd"])
def test_jacobians_equal_a_plain_loops(outer):
    values = problem()
    got = jax.jit(outer(lambda *v: run(*v)[0], argnums=ARGUMENTS))(*values)
    assert_trees_close(got, jax.jit(jacrev(plain_output, argnums=ARGUMENTS))(*values))


SECOND_DERIVATIVES = {
    "hessian": hessian,
    "reverse-reverse": lambda f, argnums: jacrev(jacrev(f, argnums), argnums),
    "forward-forward": lambda f, argnums: jacfwd(jacfwd(f, argnums), argnums),
    "reverse-forward": lambda f, argnums: jacrev(jacfwd(f, argnums), argnums),
}


@pytest.mark.slow
@pytest.mark.parametrize("second", list(SECOND_DERIVATIVES.values()), ids=list(SECOND_DERIVATIVES))
def test_hessians_equal_a_plain_loops(second):
    values = problem()
    got = jax.jit(second(scalar, argnums=ARGUMENTS))(*values)
    assert_trees_close(got, jax.jit(hessian(plain_scalar, argnums=ARGUMENTS))(*values), SECOND)


def test_a_hessian_vector_product_equals_central_differences_of_numpys_gradients():
    values, tangents = problem(), problem(seed=5)
    gradients = jax.jit(grad(scalar, argnums=ARGUMENTS))
    _, got = jvp(gradients, values, tangents)
    _, pull = vjp(gradients, *values)
    assert_trees_close(got, pull(tangents), SECOND)

    def numpy_gradients(*v):
        x, h0, *rest = (np.asarray(a) for a in v)
        output, h_n, pullback = fvjp(x, dict(zip(NAMES, rest, strict=True)), h0)
        found = pullback(2 * output, 3 * h_n**2)
        return np.concatenate([g.ravel() for g in (found.x, found.h0, *(found.params[n] for n in NAMES))])

    want = differences.directional(numpy_gradients, [np.asarray(v) for v in values], [np.asarray(t) for t in tangents])
    differences.assert_close(np.concatenate([np.ravel(g) for g in got]), want)


@pytest.mark.slow
def test_checkpoint_and_value_and_grad_change_no_number():
    values = problem()
    want = grad(scalar, argnums=ARGUMENTS)(*values)
    assert_trees_close(grad(jax.checkpoint(scalar), argnums=ARGUMENTS)(*values), want)
    value, found = jax.jit(jax.value_and_grad(scalar, argnums=ARGUMENTS))(*values)
    assert_trees_close(found, want)
    agree(value, scalar(*values))


def test_the_explicit_pullback_is_itself_differentiable():
    x, *rest = problem()

    def penalty(x):
        output, _, pullback = fvjp(x, dict(zip(NAMES, rest[1:], strict=True)), rest[0])
        return jnp.sum(pullback(jnp.ones_like(output)).x ** 2)

    want = grad(lambda x: jnp.sum(grad(lambda x: jnp.sum(plain_output(x, *rest)))(x) ** 2))(x)
    assert_trees_close(grad(penalty)(x), want, SECOND)


@pytest.mark.parametrize("mapped", [m for m in itertools.product((False, True), repeat=6) if any(m)][::5])
def test_vmap_over_any_arguments_equals_a_loop(mapped):
    size, single = 3, problem(seed=3)
    many = draw(4, *((size, *v.shape) for v in single))
    values = [many[k] if m else single[k] for k, m in enumerate(mapped)]
    got = vmap(run, in_axes=tuple(0 if m else None for m in mapped))(*values)
    for k in range(size):
        assert_trees_close([g[k] for g in got], run(*(v[k] if m else v for v, m in zip(values, mapped, strict=True))))


def test_nested_vmap_with_a_matrix_for_each_example():
    x, h0, w_ih, _, b_ih, b_hh = problem()
    (many,) = draw(1, (2, 3, HIDDEN, HIDDEN))
    one = lambda w: run(x, h0, w_ih, w, b_ih, b_hh)[0]  # noqa: E731
    got = vmap(vmap(one))(many)
    for i, j in itertools.product(range(2), range(3)):
        assert_trees_close(got[i, j], one(many[i, j]))


def test_per_example_gradients_by_vmap_of_grad():
    x, h0, *weights = problem()
    one = jax.jit(grad(lambda x, h, *w: scalar(x[:, None], h[:, None], *w), argnums=(2, 3, 4, 5)))
    got = vmap(one, in_axes=(1, 1, None, None, None, None))(x, h0, *weights)
    for b in range(BATCH):
        assert_trees_close([g[b] for g in got], one(x[:, b], h0[:, b], *weights))


@pytest.mark.parametrize(
    "call",
    [
        lambda m, x: m(x),
        lambda m, x: m(x, lengths=[4, 0]),
        lambda m, x: m(x, lengths=(1, 3), training=True, rng=5),
        lambda m, x: frnn(x, m.state_dict()),
        lambda m, x: vars(m.vjp(x, lengths=[2, 4])[2](jnp.ones((STEPS, BATCH, 2 * HIDDEN)))),
        lambda m, x: vars(m.vjp(x, checkpoint=2, truncate=3)[2](jnp.ones((STEPS, BATCH, 2 * HIDDEN)))),
        lambda m, x: vars(m.jvp(x, x_dot=x)[2]),
        lambda m, x: vars(m.trace(x)),
        lambda m, x: m.state_dict(),
        lambda m, x: m.cell(1, reverse=True)(jnp.ones((BATCH, 2 * HIDDEN))),
        lambda m, x: m.cell().vjp(x[0])[1](jnp.ones((BATCH, HIDDEN)))._asdict(),
    ],
)
def test_every_call_is_the_same_inside_jit(call):
    model, x = model_and_input()
    assert_trees_close(jax.jit(call)(model, x), call(model, x))


def test_jit_follows_a_model_that_it_closes_over():
    model, x = model_and_input()
    assert_trees_close(jax.jit(lambda x: model(x, lengths=[3, 4]))(x), model(x, lengths=[3, 4]))


def test_what_needs_numbers_is_refused_inside_jit():
    model, x = model_and_input()
    with pytest.raises(ArgumentTypeError, match="numbers are known, got DynamicJaxprTracer float64\\[4, 2, 3\\]"):
        jax.jit(lambda x: model.to("numpy")(rnncore.get_backend("jax").to_numpy(x)))(x)
    with pytest.raises(ArgumentTypeError, match="BatchTracer"):
        vmap(rnncore.get_backend("jax").to_numpy)(x)
    with pytest.raises(ArgumentTypeError, match="lengths: expected numbers, which a record reads, got a traced "):
        jax.jit(lambda n: rnncore.diagnostics.record(model, x, lengths=n).h)(jnp.asarray([1, 2]))
    careful, _ = model_and_input(check_finite=True)
    with pytest.raises(ArgumentTypeError, match="check_finite must be off"):
        jax.jit(careful)(x)
    assert_trees_close(model(x, lengths=jnp.asarray([1, 2])), model(x, lengths=[1, 2]))


def test_check_finite_sees_the_numbers_under_grad():
    model = rnncore_jax.RNN(INPUT, HIDDEN, dtype="float64", rng=0, check_finite=True)
    x = jnp.ones((STEPS, BATCH, INPUT))
    assert bool(jnp.isfinite(grad(lambda x: jnp.sum(model(x)[0]))(x)).all())
    with pytest.raises(rnncore.errors.NonFiniteError, match=r"x\[1, 0, 2\]"):
        grad(lambda x: jnp.sum(model(x)[0]))(x.at[1, 0, 2].set(jnp.nan))
