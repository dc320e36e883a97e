"""Lengths that JAX traces: an array of integers inside jit, vmap and export."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rnncore_jax
from jax import export, grad, vmap

from rnncore.errors import ArgumentTypeError, ShapeError
from rnncore.functional import rnn as frnn
from tests.tools.jax_problem import INPUT, assert_trees_close, draw
from tests.tools.rounding import SECOND, agree

STEPS, WIDTH = 6, 4
LENGTHS = (4, 0, 6, 1)
BATCH = len(LENGTHS)
PADDING = np.arange(STEPS)[:, None] >= np.asarray(LENGTHS)
NETWORKS = {
    "one layer": {},
    "relu, both directions": {"num_layers": 2, "nonlinearity": "relu", "bidirectional": True},
    "clip, both directions": {"num_layers": 2, "bidirectional": True, "clip": 0.4},  # slopes come from pre-activations
    "softplus, reference": {"nonlinearity": "softplus", "kernel": "reference"},
}
networks = pytest.mark.parametrize("name", NETWORKS)


class Problem:
    """A network, its arrays, and everything that its calls and JAX's own derivatives give, compiled once."""

    def __init__(self, kernel="require", steps=STEPS, **options):
        self.model = rnncore_jax.RNN(INPUT, WIDTH, **options, kernel=kernel, dtype="float64", rng=0)
        states = self.model.num_layers * self.model.spec.num_directions
        out = WIDTH * self.model.spec.num_directions
        shapes = (steps, BATCH, INPUT), (states, BATCH, WIDTH), (steps, BATCH, out), (states, BATCH, WIDTH)
        self.arrays = draw(1, *shapes)
        self.calls = jax.jit(calls)
        self.derivatives = jax.jit(derivatives)


problem = functools.cache(lambda name: Problem(**NETWORKS[name]))


def calls(model, x, h0, d_output, d_h_n, lengths):
    output, h_n, pullback = model.vjp(x, h0, lengths)
    tangents = model.jvp(x, h0, lengths, x_dot=2 * x, h0_dot=d_h_n, params_dot=dict(model.params))[2]
    found = model(x, h0, lengths), output, h_n, vars(pullback(d_output, d_h_n)), vars(tangents)
    return *found, vars(model.trace(x, h0, lengths))


def derivatives(model, x, h0, d_output, d_h_n, lengths):
    def loss(model, x, h0):
        output, h_n = model(x, h0, lengths)
        return jnp.sum(output * d_output) + jnp.sum(h_n * d_h_n)

    return grad(loss, argnums=(0, 1, 2))(model, x, h0)


@networks
def test_traced_lengths_give_what_plain_numbers_give(name):
    p = problem(name)
    host = p.model.to("numpy")
    want = calls(host, *map(np.asarray, p.arrays), LENGTHS)
    assert_trees_close(p.calls(p.model, *p.arrays, jnp.asarray(LENGTHS)), want)
    d_model, *d_arrays = p.derivatives(p.model, *p.arrays, jnp.asarray(LENGTHS))
    gradients = want[3]
    assert_trees_close([dict(d_model.params), *d_arrays], [gradients["params"], gradients["x"], gradients["h0"]])


@networks
def test_padding_has_no_effect(name):
    """Nor has the state of a row without steps, except on its own last state."""
    p = problem(name)
    lengths, padding, empty = jnp.asarray(LENGTHS), jnp.asarray(PADDING)[..., None], LENGTHS.index(0)
    x, h0, d_output, d_h_n = p.arrays
    clean, by_jax = (f(p.model, *p.arrays, lengths) for f in (p.calls, p.derivatives))
    for garbage in (np.nan, np.inf):
        dirty_x, dirty_d = jnp.where(padding, garbage, x), jnp.where(padding, garbage, d_output)
        dirty = p.calls(p.model, dirty_x, h0, dirty_d, d_h_n, lengths)
        assert_same(dirty, clean)
        (output, _), *_, found, tangents, traced = dirty
        for a in (output, found["x"], tangents["output"], *(k for h in traced["h"] + traced["z"] for k in h)):
            assert not np.asarray(a)[PADDING].any()
        dirty = p.derivatives(p.model, dirty_x, h0, d_output, d_h_n, lengths)
        assert_same(dirty, by_jax)
        assert not np.asarray(dirty[1])[PADDING].any()
        dirty_h0 = h0.at[:, empty].set(garbage)
        assert_same(p.calls(p.model, dirty_x, dirty_h0, dirty_d, d_h_n, lengths)[3], clean[3])
        assert_same(p.derivatives(p.model, dirty_x, dirty_h0, d_output, d_h_n, lengths), by_jax)


def assert_same(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_relu_network_that_would_explode_in_the_padding_does_not():
    """Over 2,000 steps of padding its states would overflow, and 0 times infinity is NaN in a gradient."""
    p = Problem(steps=2000, nonlinearity="relu", bidirectional=True)
    p.model.set_params({n: 2 * jnp.eye(WIDTH) for n in p.model.params if n.startswith("weight_hh")})
    short = [np.asarray(a[:STEPS] if a.shape[0] == 2000 else a) for a in p.arrays]
    want = calls(p.model.to("numpy"), *short, LENGTHS)
    found = p.calls(p.model, *p.arrays, jnp.asarray(LENGTHS))
    d_model, d_x, d_h0 = p.derivatives(p.model, *p.arrays, jnp.asarray(LENGTHS))
    gradients = {"params": dict(d_model.params), "x": d_x, "h0": d_h0}
    for got, small in ((found, want), (gradients, want[3])):
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(small), strict=True):
            a = np.asarray(a)
            assert np.isfinite(a).all()
            time = next((k for k, n in enumerate(a.shape) if n == 2000), None)
            agree(a if time is None else np.take(a, range(STEPS), axis=time), b)


def test_lengths_out_of_range_are_clamped():
    p = Problem(bidirectional=True)
    x = p.arrays[0]
    run = jax.jit(lambda n: p.model(x, lengths=n))
    for dtype, numbers in (
        ("int64", (99, -3, STEPS, 2**62)),
        ("int8", (STEPS, -128, 127, 6)),
        ("uint64", (255, 0, 6, 2**64 - 1)),
    ):
        assert_trees_close(run(jnp.asarray(np.asarray(numbers, dtype))), p.model(x, lengths=(STEPS, 0, STEPS, STEPS)))
    (x,) = draw(1, (300, 2, INPUT))  # more steps than the dtype of the lengths can count
    got = jax.jit(lambda n: p.model(x, lengths=n))(jnp.asarray([200, 255], "uint8"))
    assert_trees_close(got, p.model(x, lengths=(200, 255)))


def test_what_can_be_checked_of_traced_lengths_is():
    p = Problem()
    x = p.arrays[0]
    for lengths, error, message in (
        (jnp.ones(BATCH), ArgumentTypeError, "lengths: expected integers, got dtype float64"),
        (jnp.ones(BATCH, bool), ArgumentTypeError, "lengths: expected integers, got dtype bool"),
        (jnp.ones(BATCH + 1, int), ShapeError, r"lengths: expected shape \(4,\), got \(5,\)"),
        (jnp.ones((BATCH, 1), int), ShapeError, r"lengths: expected shape \(4,\), got \(4, 1\)"),
        (jnp.asarray(1), ShapeError, r"lengths: expected shape \(4,\), got \(1,\)"),
    ):
        with pytest.raises(error, match=message):
            jax.jit(lambda n: p.model(x, lengths=n))(lengths)


@pytest.mark.parametrize(
    ("bidirectional", "options"),
    [(False, {"checkpoint": 2}), (False, {"checkpoint": 4, "truncate": 3}), (True, {"truncate": 2})],
)
def test_windows_of_time_see_what_is_left_of_each_length(bidirectional, options):
    p = Problem(num_layers=2, bidirectional=bidirectional)

    def call(model, x, h0, d_output, d_h_n, n):
        return vars(model.vjp(x, h0, n, **options)[2](d_output, d_h_n))

    want = call(p.model.to("numpy"), *map(np.asarray, p.arrays), LENGTHS)
    assert_trees_close(jax.jit(call)(p.model, *p.arrays, jnp.asarray(LENGTHS)), want)


def test_second_derivatives_with_traced_lengths():
    p = Problem(nonlinearity="softplus")
    x, h0 = p.arrays[:2]

    def f(w, n):
        params = {**p.model.params, "weight_hh_l0": w}
        return jnp.sum(frnn(x, params, h0, lengths=n, nonlinearity="softplus")[0] ** 2)

    w = p.model.params["weight_hh_l0"]
    want = jax.jit(jax.hessian(lambda w: f(w, LENGTHS)))(w)
    for outer, inner in (
        (jax.jacfwd, jax.jacrev),
        (jax.jacrev, jax.jacrev),
        (jax.jacrev, jax.jacfwd),
        (jax.jacfwd,) * 2,
    ):
        assert_trees_close(jax.jit(outer(inner(f)))(w, jnp.asarray(LENGTHS)), want, SECOND)


def test_an_explicit_pullback_with_traced_lengths_is_differentiable():
    p = Problem(bidirectional=True)
    x, h0, d_output, d_h_n = p.arrays
    penalty = lambda x, n: jnp.sum(p.model.vjp(x, h0, n)[2](d_output, d_h_n).x ** 2)  # noqa: E731
    want = jax.jit(grad(lambda x: penalty(x, LENGTHS)))(x)
    assert_trees_close(jax.jit(grad(penalty))(x, jnp.asarray(LENGTHS)), want, SECOND)


def test_vmap_maps_lengths():
    p = Problem(bidirectional=True)
    x, h0 = p.arrays[:2]
    many = jnp.asarray([LENGTHS, LENGTHS[::-1]])
    got = vmap(lambda n: p.model(x, h0, n))(many)
    assert_trees_close(got, [jnp.stack(k) for k in zip(*(p.model(x, h0, n) for n in many), strict=True)])
    one_by_one = vmap(lambda x, h0, n: p.model(x, h0, n), in_axes=(1, 1, 0), out_axes=1)
    assert_trees_close(one_by_one(x, h0, many[0]), p.model(x, h0, LENGTHS))


def test_lengths_with_numbers_take_the_usual_way_inside_jit():
    """Sorted by length, with no step of padding; they are checked."""
    p = Problem()
    x = p.arrays[0]
    known, wrong = jnp.asarray(LENGTHS), jnp.asarray([1, 7, 2, 3])
    assert_trees_close(jax.jit(lambda x: p.model(x, lengths=known))(x), p.model(x, lengths=LENGTHS))
    with pytest.raises(ValueError, match=r"lengths\[1\]: expected an int in \[0, 6\], got 7"):
        jax.jit(lambda x: p.model(x, lengths=wrong))(x)


def test_export_with_lengths_for_any_time_and_batch():
    p = Problem(num_layers=2, bidirectional=True)
    sizes = export.symbolic_shape("T, B")

    def call(x, n):
        output, h_n, pullback = p.model.vjp(x, lengths=n)
        return output, h_n, vars(pullback(output, h_n)), grad(lambda x: jnp.sum(p.model(x, lengths=n)[0] ** 2))(x)

    specs = jax.ShapeDtypeStruct((*sizes, INPUT), jnp.float64), jax.ShapeDtypeStruct(sizes[1:], jnp.int32)
    exported = export.deserialize(export.export(jax.jit(call))(*specs).serialize()).call
    for lengths in ((3, 0, 7), (1, 1)):
        (x,) = draw(2, (7, len(lengths), INPUT))
        assert_trees_close(exported(x, jnp.asarray(lengths, "int32")), jax.jit(lambda x, n=lengths: call(x, n))(x))
