"""JAX: the same numbers as NumPy, every transformation and their compositions, a model as a pytree, precision and devices.

64-bit numbers are switched on for each test and off again behind it; what needs a process of its own has one.
"""

from __future__ import annotations

import copy
import functools
import itertools
import pickle
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rnncore_jax
from jax import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from rnncore_jax import _namespace
from rnncore_jax._scans import SCANS, _compiled_linear, _compiled_nonlinear

import rnncore
from rnncore.errors import ArgumentTypeError, DTypeError, KernelUnsupportedError
from rnncore.functional import rnn as frnn
from rnncore.functional import vjp as fvjp
from tests.tools import differences

EPS = 2.0**-52
EPS_ALLOWED = 64  # DESIGN, section 6: of max|reference|, and of 1 for states
STEPS, BATCH, INPUT, HIDDEN = 4, 2, 3, 3
ARGUMENTS = tuple(range(6))
TANH = rnncore.get_nonlinearity("tanh")


@pytest.fixture(autouse=True)
def _sixty_four_bits():
    with jax.enable_x64(True):
        yield


def in_process(code, **variables):
    """Run code in a process of its own, where every warning is an error."""
    import os

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **variables},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- the same numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("lengths", [None, [9, 4, 0]], ids=["full", "ragged"])
@pytest.mark.parametrize(
    ("kernel", "name"), [("require", "tanh"), ("require", "relu"), ("require", "sigmoid"), ("reference", "tanh")]
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
    [
        ("tanh", None, None),
        ("tanh", None, [4, 2]),
        ("relu", None, [4, 0]),
        ("sigmoid", None, [3, 3]),
        ("tanh", 0.7, [4, 2]),
    ],
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


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_every_floating_dtype_is_kept_from_end_to_end(dtype):
    model = rnncore_jax.RNN(INPUT, HIDDEN, dtype=dtype, rng=0)
    x = jnp.ones((STEPS, BATCH, INPUT), dtype)
    output, h_n, pullback = model.vjp(x, lengths=[4, 1])
    found = pullback(output, h_n)
    assert {str(a.dtype) for a in (output, h_n, found.x, found.h0, *found.params.values())} == {dtype}
    wide = model.to("numpy", dtype="float64")(np.ones((STEPS, BATCH, INPUT)), lengths=[4, 1])[0]
    assert np.abs(np.asarray(output, "float64") - wide).max() <= 4 * float(jnp.finfo(dtype).eps)


# --- derivatives of every order ---------------------------------------------------------------------------------------


def draw(seed, *shapes, size=0.5):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.standard_normal(shape) * size) for shape in shapes)


def problem(seed=0):
    shapes = [(STEPS, BATCH, INPUT), (1, BATCH, HIDDEN), (HIDDEN, INPUT), (HIDDEN, HIDDEN), (HIDDEN,), (HIDDEN,)]
    return draw(seed, *shapes)


NAMES = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


def run(x, h0, *values, **options):
    return frnn(x, dict(zip(NAMES, values, strict=True)), h0, kernel="require", **options)


def scalar(*values):
    output, h_n = run(*values)
    return jnp.sum(output**2) + jnp.sum(h_n**3)


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


def assert_trees_close(got, want, rtol=1e-12, atol=1e-13):
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, rtol=rtol, atol=atol)


@pytest.mark.parametrize("outer", [jacrev, jacfwd], ids=["jacrev", "jacfwd"])
def test_jacobians_equal_a_plain_loops(outer):
    values = problem()
    got = jax.jit(outer(lambda *v: run(*v)[0], argnums=ARGUMENTS))(*values)
    assert_trees_close(got, jax.jit(jacrev(plain_output, argnums=ARGUMENTS))(*values))


SECOND = {
    "hessian": hessian,
    "reverse-reverse": lambda f, argnums: jacrev(jacrev(f, argnums), argnums),
    "forward-forward": lambda f, argnums: jacfwd(jacfwd(f, argnums), argnums),
    "reverse-forward": lambda f, argnums: jacrev(jacfwd(f, argnums), argnums),
}


@pytest.mark.parametrize("second", list(SECOND.values()), ids=list(SECOND))
def test_hessians_equal_a_plain_loops(second):
    values = problem()
    got = jax.jit(second(scalar, argnums=ARGUMENTS))(*values)
    assert_trees_close(got, jax.jit(hessian(plain_scalar, argnums=ARGUMENTS))(*values), 1e-11, 1e-12)


def test_a_hessian_vector_product_equals_central_differences_of_numpys_gradients():
    values, tangents = problem(), problem(seed=5)
    gradients = jax.jit(grad(scalar, argnums=ARGUMENTS))
    _, got = jvp(gradients, values, tangents)
    _, pull = vjp(gradients, *values)
    assert_trees_close(got, pull(tangents), 1e-11, 1e-12)

    def numpy_gradients(*v):
        x, h0, *rest = (np.asarray(a) for a in v)
        output, h_n, pullback = fvjp(x, dict(zip(NAMES, rest, strict=True)), h0)
        found = pullback(2 * output, 3 * h_n**2)
        return np.concatenate([g.ravel() for g in (found.x, found.h0, *(found.params[n] for n in NAMES))])

    want = differences.directional(numpy_gradients, [np.asarray(v) for v in values], [np.asarray(t) for t in tangents])
    differences.assert_close(np.concatenate([np.ravel(g) for g in got]), want)


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
        assert third(getattr(SCANS, scan), kinds) == pytest.approx(want, rel=1e-11)


def inner_jaxprs(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for part in value if isinstance(value, (tuple, list)) else [value]:
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    yield from inner_jaxprs(inner)


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


def test_checkpoint_and_value_and_grad_change_no_number():
    values = problem()
    want = grad(scalar, argnums=ARGUMENTS)(*values)
    assert_trees_close(grad(jax.checkpoint(scalar), argnums=ARGUMENTS)(*values), want)
    value, found = jax.jit(jax.value_and_grad(scalar, argnums=ARGUMENTS))(*values)
    assert_trees_close(found, want)
    np.testing.assert_allclose(value, scalar(*values), rtol=1e-14)


def test_the_explicit_pullback_is_itself_differentiable():
    x, *rest = problem()

    def penalty(x):
        output, _, pullback = fvjp(x, dict(zip(NAMES, rest[1:], strict=True)), rest[0])
        return jnp.sum(pullback(jnp.ones_like(output)).x ** 2)

    want = grad(lambda x: jnp.sum(grad(lambda x: jnp.sum(plain_output(x, *rest)))(x) ** 2))(x)
    assert_trees_close(grad(penalty)(x), want, 1e-11, 1e-12)


# --- vmap -------------------------------------------------------------------------------------------------------------


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


# --- users' functions -------------------------------------------------------------------------------------------------


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
    assert_trees_close(got, want, 1e-11, 1e-12)


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
    assert "'mine' has none" in str(model.explain())
    x = jnp.ones((STEPS, BATCH, INPUT), model.dtype)
    np.testing.assert_allclose(model(x)[0], rnncore_jax.RNN(INPUT, HIDDEN, rng=0)(x)[0], rtol=1e-6)


# --- jit --------------------------------------------------------------------------------------------------------------


def model_and_input(**options):
    model = rnncore_jax.RNN(INPUT, HIDDEN, 2, bidirectional=True, dropout=0.5, dtype="float64", rng=0, **options)
    return model, draw(2, (STEPS, BATCH, INPUT))[0]


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
    assert_trees_close(jax.jit(call)(model, x), call(model, x), 1e-13, 1e-15)


def test_jit_follows_a_model_that_it_closes_over():
    model, x = model_and_input()
    assert_trees_close(jax.jit(lambda x: model(x, lengths=[3, 4]))(x), model(x, lengths=[3, 4]), 1e-13, 1e-15)


def test_lengths_and_checks_that_need_numbers_are_refused_inside_jit():
    model, x = model_and_input()
    with pytest.raises(ArgumentTypeError, match="numbers are known, got DynamicJaxprTracer int64\\[2\\]"):
        jax.jit(lambda n: model(x, lengths=n))(jnp.asarray([1, 2]))
    with pytest.raises(ArgumentTypeError, match="BatchTracer"):
        vmap(lambda n: model(x, lengths=n))(jnp.asarray([[1, 2]]))
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


# --- pytrees ----------------------------------------------------------------------------------------------------------


def loss(model, x):
    return jnp.mean(model(x)[0] ** 2)


@pytest.mark.parametrize("kind", [rnncore.RNN, rnncore_jax.RNN], ids=["rnncore", "rnncore_jax"])
def test_a_model_trains_as_a_pytree(kind):
    model = kind(INPUT, HIDDEN, 2, backend="jax", dtype="float64", rng=0)
    (x,) = draw(0, (STEPS, BATCH, INPUT))

    @jax.jit
    def step(model):
        value, gradient = jax.value_and_grad(loss)(model, x)
        return value, jax.tree.map(lambda p, g: p - 0.5 * g, model, gradient)

    values = []
    for _ in range(5):
        value, model = step(model)
        values.append(float(value))
    assert type(model) is kind
    assert values == sorted(values, reverse=True) and values[-1] < 0.9 * values[0]
    assert step._cache_size() == 1
    assert model(x)[0].shape == (STEPS, BATCH, HIDDEN)


def test_the_leaves_are_the_parameters_under_their_names():
    model, _ = model_and_input()
    with_path, structure = jax.tree_util.tree_flatten_with_path(model)
    assert [path[0].key for path, _ in with_path] == list(model.params)
    assert all(leaf is model.params[path[0].key] for path, leaf in with_path)
    again = jax.tree.unflatten(structure, range(len(with_path)))
    assert list(again.params.values()) == list(range(len(with_path)))  # JAX puts anything in: nothing is checked
    assert again.spec == model.spec
    assert hash(structure) == hash(
        jax.tree.structure(rnncore_jax.RNN(INPUT, HIDDEN, 2, bidirectional=True, dropout=0.5))
    )


def test_a_cell_of_a_network_is_a_pytree_of_its_own_parameters():
    model, _ = model_and_input()
    cell = model.cell(1, reverse=True)
    x = jnp.ones((BATCH, 2 * HIDDEN))
    assert len(jax.tree.leaves(cell)) == 4
    found = grad(lambda c: jnp.sum(c(x)))(cell)
    want = cell.vjp(x)[1](jnp.ones((BATCH, HIDDEN))).params
    assert_trees_close(dict(found.params), want)
    assert_trees_close(jax.jit(lambda c, x: c(x))(cell, x), cell(x))
    own = rnncore_jax.RNNCell(INPUT, HIDDEN, dtype="float64", rng=0)
    assert_trees_close(
        jax.lax.scan(lambda h, x: (own(x, h),) * 2, jnp.zeros((BATCH, HIDDEN)), jnp.ones((STEPS, BATCH, INPUT)))[0],
        rnncore_jax.RNN.from_spec(own.spec, {k: np.asarray(v) for k, v in own.params.items()}, dtype="float64")(
            jnp.ones((STEPS, BATCH, INPUT))
        )[1][0],
    )


def test_vmap_runs_an_ensemble_of_models():
    models = [rnncore_jax.RNN(INPUT, HIDDEN, dtype="float64", rng=seed) for seed in range(3)]
    (x,) = draw(0, (STEPS, BATCH, INPUT))
    together = jax.tree.map(lambda *p: jnp.stack(p), *models)
    got = vmap(grad(loss), in_axes=(0, None))(together, x).params["weight_hh_l0"]
    assert_trees_close(list(got), [grad(loss)(model, x).params["weight_hh_l0"] for model in models])


def test_a_mapped_model_knows_its_new_dtype():
    model, x = model_and_input()
    for dtype in (jnp.float32, jnp.bfloat16):
        narrow = jax.tree.map(lambda p, dtype=dtype: p.astype(dtype), model)
        assert narrow.dtype == dtype and narrow(x.astype(dtype))[0].dtype == dtype
        with pytest.raises(DTypeError):
            narrow(x)
    assert (
        jax.jit(lambda m: jax.tree.map(lambda p: p.astype("float32"), m)(x.astype("float32"))[0])(model).dtype
        == "float32"
    )
    assert jax.tree.map(jnp.isfinite, model).dtype == model.dtype


def test_a_subclass_can_be_registered():
    @rnncore_jax.register
    class Mine(rnncore_jax.RNN):
        pass

    model = Mine(INPUT, HIDDEN, dtype="float64", rng=0)
    assert isinstance(jax.tree.map(lambda p: 2 * p, model), Mine)


def test_a_numpy_model_maps_as_well():
    doubled = jax.tree.map(lambda p: 2 * p, rnncore.RNN(INPUT, HIDDEN, backend="numpy", rng=0))
    assert doubled.backend == "numpy"
    assert doubled(np.ones((STEPS, BATCH, INPUT)))[0].shape == (STEPS, BATCH, HIDDEN)


# --- conversions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_come_and_go_bit_for_bit(dtype):
    model = rnncore.RNN(INPUT, HIDDEN, 2, backend="numpy", dtype=dtype, rng=0)
    there = model.to("jax")
    back = there.to("numpy")
    for copied in (back, pickle.loads(pickle.dumps(there)).to("numpy"), copy.deepcopy(there).to("numpy")):
        for name, value in model.params.items():
            assert copied.params[name].dtype == value.dtype
            assert copied.params[name].tobytes() == value.tobytes()
    assert back.params["weight_hh_l0"].flags.writeable


def test_pickles_and_copies_keep_class_and_place():
    model, x = model_and_input()
    for copied in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), copy.deepcopy(jax.jit(lambda m: m)(model))):
        assert type(copied) is rnncore_jax.RNN and repr(copied) == repr(model)
        assert copied.params["weight_hh_l0"] is not model.params["weight_hh_l0"]
        assert_trees_close(copied(x), model(x), 0, 0)


def test_asarray_shares_no_memory_and_keeps_the_dtype_or_refuses():
    room = np.zeros(64)
    host = room[-room.ctypes.data % 64 // room.itemsize :][:32]  # at a multiple of 64 bytes: JAX would go on using it
    made = rnncore_jax.asarray(host, dtype=jnp.float64, device=None)
    host[:] = 1
    assert not bool(made.any())
    assert rnncore_jax.asarray(host, dtype=jnp.bfloat16, device=None).dtype == jnp.bfloat16
    with jax.enable_x64(False), pytest.raises(DTypeError, match="got float64, which would become float32"):
        rnncore_jax.asarray(host, dtype=np.dtype("float64"), device=None)


def test_to_numpy_gives_numbers_that_cannot_be_overwritten():
    x = jnp.arange(3.0)
    host = rnncore_jax.to_numpy(x)
    assert host.dtype == np.float64
    with pytest.raises(ValueError, match="read-only"):
        host[0] = 1
    assert rnncore_jax.to_numpy(x.astype(jnp.bfloat16)).dtype == np.float32


def test_the_contracts_own_grad_and_jit():
    a, b = draw(0, (3,), (3,))
    d_a, d_b = rnncore_jax.grad(lambda a, b: jnp.sum(a * b**2))(a, b)
    assert_trees_close((d_a, d_b), (b**2, 2 * a * b))
    assert_trees_close(rnncore_jax.jit(jnp.sin)(a), jnp.sin(a))


def test_every_array_and_tracer_of_jax_is_native_and_nothing_else_is():
    seen = []
    see = lambda x: (seen.append(rnncore_jax.is_native(x)), jnp.sum(x))[1]  # noqa: E731
    x = jnp.ones(3)
    see(x), jax.jit(see)(x), grad(see)(x), vmap(see)(x), jax.jvp(see, (x,), (x,))
    assert seen == [True] * 5
    assert not any(map(rnncore_jax.is_native, (np.ones(3), 1.0, [1.0], jax.ShapeDtypeStruct((3,), jnp.float32))))


# --- precision --------------------------------------------------------------------------------------------------------


def precisions(function, *args):
    dots = [e for e in inner_jaxprs(jax.make_jaxpr(function)(*args).jaxpr) if e.primitive.name == "dot_general"]
    assert dots
    return {str(e.params["precision"]) for e in dots}


HIGHEST = str((jax.lax.Precision.HIGHEST,) * 2)


def test_products_are_full_precision_until_the_user_says_otherwise():
    model, x = model_and_input()

    def everything(model, x):
        output, h_n, pullback = model.vjp(x, lengths=[2, 4])
        return vars(pullback(output, h_n)), vars(model.jvp(x, x_dot=x)[2]), grad(loss)(model, x)

    assert precisions(everything, model, x) == {HIGHEST}
    with jax.default_matmul_precision("tensorfloat32"):
        assert precisions(lambda m, x: everything(m, x), model, x) == {str((jax.lax.Precision.HIGH,) * 2)}
    assert precisions(lambda m, x: everything(m, x), model, x) == {HIGHEST}
    assert precisions(_namespace.vecdot, x, x) == {HIGHEST}
    assert precisions(lambda x: _namespace.tensordot(x, x, axes=([2], [2])), x) == {HIGHEST}


class Gpu:
    platform, id = "gpu", 1

    def __str__(self):
        return "cuda:1"


class OldHost:
    platform, id = "cpu", 3

    def __str__(self):
        return "TFRT_CPU_3"


@pytest.mark.parametrize(
    ("setting", "want"),
    [
        (None, "full"),
        ("highest", "full"),
        ("float32", "full"),
        ("F32_F32_F32", "full"),
        ("default", "tf32"),
        ("high", "tf32"),
        ("tensorfloat32", "tf32"),
        ("BF16_BF16_F32", "tf32"),
    ],
)
def test_precision_follows_the_users_setting_on_a_device_that_rounds(setting, want):
    with jax.default_matmul_precision(setting):
        assert rnncore_jax.precision(Gpu()) == want
        assert rnncore_jax.precision(rnncore_jax.devices()[0]) == "full"


# --- devices ----------------------------------------------------------------------------------------------------------


def test_devices_have_the_names_that_users_call_them():
    assert rnncore_jax.device_name(Gpu()) == "cuda:1"
    assert rnncore_jax.device_name(OldHost()) == "cpu:3"
    assert rnncore_jax.device_name(rnncore_jax.devices()[0]) == "cpu:0"
    assert rnncore_jax.device_name(None) == "cpu:0"


def test_synchronize_waits_for_what_any_thread_started():
    @jax.jit
    def long(x):
        return jax.lax.fori_loop(0, 40, lambda i, y: y @ x, x)

    x = jnp.eye(500, dtype=jnp.float32)  # the test's 64 bits are this thread's alone
    started = [long(x)]
    thread = threading.Thread(target=lambda: started.append(long(x)))
    thread.start()
    thread.join()
    rnncore_jax.synchronize(rnncore_jax.devices()[0])
    assert [y.is_ready() for y in started] == [True, True]


FOUR_HOSTS = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}


def test_several_devices():
    in_process(
        """
import jax, jax.numpy as jnp, rnncore, rnncore_jax
from rnncore.errors import DeviceError
d = jax.devices()
x = jnp.ones((5, 8, 2))
for where in ("cpu:2", d[2]):
    rnn = rnncore_jax.RNN(2, 3, device=where, rng=0)
    assert rnn.device == d[2] and "device='cpu:2'" in repr(rnn)
    y, _, pullback = rnn.vjp(jax.device_put(x, d[2]), lengths=[1, 2, 3, 4, 5, 0, 1, 2])
    assert {a.device for a in (y, pullback(y).x, *rnn.params.values(), *rnn.state_dict().values())} == {d[2]}
    rnncore_jax.synchronize(d[2])
try:
    rnn(x)
except DeviceError as error:
    assert "'cpu:2', the model's, got 'cpu:0'" in str(error), error
else:
    raise AssertionError("an array of another device was taken")
moved = jax.device_put(rnn, d[1])
assert moved.device == d[1] and moved(jax.device_put(x, d[1]))[0].device == d[1]
assert rnn.to(device="cpu:3").device == d[3]
with jax.default_device(d[3]):
    assert rnncore_jax.devices() == (d[3], d[0], d[1], d[2])
    assert rnncore_jax.RNN(2, 3)(jnp.ones((5, 8, 2)))[0].device == d[3]
with jax.default_device("cpu"):
    assert rnncore_jax.devices() == tuple(d)
""",
        **FOUR_HOSTS,
    )


@pytest.mark.parametrize("axes", ["Auto", "Explicit"])
def test_a_batch_spread_over_devices(axes):
    in_process(
        f"""
import jax, jax.numpy as jnp, numpy as np, pickle, rnncore_jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
mesh = jax.make_mesh((4,), ("b",), axis_types=(AxisType.{axes},))
rnn = rnncore_jax.RNN(2, 3, 2, bidirectional=True, rng=0)
x = jax.random.normal(jax.random.key(0), (5, 8, 2))
spread, everywhere = jax.device_put(x, NamedSharding(mesh, P(None, "b"))), jax.device_put(rnn, NamedSharding(mesh, P()))
loss = lambda m, x: (m(x)[0] ** 2).mean()
want = jax.grad(loss)(rnn, x)
close = lambda got: [np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(
    jax.tree.leaves(got), jax.tree.leaves(want), strict=True)]
assert everywhere.device is None and everywhere(spread)[0].sharding.spec[1] == "b"
close(jax.jit(jax.grad(loss))(everywhere, spread))
pickle.loads(pickle.dumps(everywhere))(x)
if "{axes}" == "Auto":  # the other kind of mesh asks every eager gradient for jax.set_mesh, its own included
    close(jax.grad(loss)(everywhere, spread))
    close(jax.jit(jax.grad(loss))(rnn, spread))
    each = jax.shard_map(lambda m, x: jax.lax.pmean(loss(m, x), "b"), mesh=mesh, in_specs=(P(), P(None, "b")), out_specs=P())
    close(jax.jit(jax.grad(each))(rnn, x))
""",
        **FOUR_HOSTS,
    )


# --- in a process of its own ------------------------------------------------------------------------------------------


def test_importing_the_plugin_imports_no_jax():
    code = "import sys, rnncore_jax, rnncore; rnncore.backends(); rnncore_jax.is_native(1); print('jax' in sys.modules)"
    assert in_process(code) == "False"


def test_without_64_bits_float64_is_refused_and_nothing_is_truncated():
    in_process(
        """
import jax, jax.numpy as jnp, numpy as np, rnncore
from rnncore.errors import DTypeError
assert not jax.config.jax_enable_x64
for make in (lambda: rnncore.RNN(2, 3, backend="jax", dtype="float64"),
             lambda: rnncore.RNN(2, 3, backend="numpy").to("jax"),
             lambda: rnncore.RNN(2, 3, backend="jax").to(dtype=np.float64)):
    try:
        make()
    except DTypeError as error:
        assert "float64" in str(error), error
    else:
        raise AssertionError("float64 was taken")
rnn = rnncore.RNN(2, 3, 2, dropout=0.5, bidirectional=True, backend="jax", rng=0)
assert rnn.dtype == jnp.float32 and rnn.state_dict()["weight_hh_l0"].dtype == "float32"
x = jnp.ones((5, 4, 2))
for lengths in ([5, 3, 0, 1], np.asarray([5, 3, 0, 1]), jnp.asarray([5, 3, 0, 1])):
    y, h, pullback = rnn.vjp(x, lengths=lengths, training=True, rng=1)
    found = pullback(y, h)
    rnn.jvp(x, lengths=lengths, x_dot=x)
    rnn.trace(x, lengths=lengths)
    assert {str(a.dtype) for a in (y, h, found.x, *found.params.values())} == {"float32"}
rnn.load_state_dict(rnn.to("numpy").state_dict())
rnncore.optim.Adam(0.1).step(rnn.params, rnncore.optim.clip_grad_norm(found.params, 1.0)[0])
"""
    )


def test_the_setting_is_never_changed():
    code = "import jax, rnncore_jax; old = jax.config.values.copy(); rnncore_jax.RNN(2, 3); print(old == jax.config.values)"
    assert in_process(code) == "True"


def test_a_missing_or_old_jax_is_a_reason(monkeypatch):
    assert rnncore_jax.unusable() is None
    monkeypatch.setattr(rnncore_jax, "version", lambda name: "0.9.2")
    assert rnncore_jax.unusable() == "jax 0.9.2 is older than 0.10"
    monkeypatch.setattr(rnncore_jax, "find_spec", lambda name: None)
    assert "jaxlib is not installed" in rnncore_jax.unusable()


def test_an_array_of_another_library_is_refused():
    model, x = model_and_input()
    with pytest.raises(ArgumentTypeError, match=r"backend 'jax' \(jax\), got numpy.ndarray"):
        model(np.ones(x.shape))
