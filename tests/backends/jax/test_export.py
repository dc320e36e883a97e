"""Networks in ``jax.export``, with sizes that are not known until the exported function is called."""

import jax
import jax.numpy as jnp
import pytest
import rnncore_jax
from jax import export

from rnncore.errors import ArgumentValueError
from rnncore.functional import rnn as frnn
from rnncore.functional import vjp as fvjp
from tests.tools.jax_problem import HIDDEN, INPUT, assert_trees_close, draw

SIZES = [(1, 3), (40, 2)]  # one step; and more rows than are added in one go for a bias
SYMBOLS = ["T, 2", "5, B", "T, B"]


def network(bidirectional=False, **options):
    return rnncore_jax.RNN(INPUT, HIDDEN, 2, bidirectional=bidirectional, dtype="float64", rng=0, **options)


def there_and_back(function, *specs):
    """The exported function, written as bytes and read again."""
    return export.deserialize(export.export(jax.jit(function))(*specs).serialize()).call


def spec_of(x, shape=None):
    return jax.ShapeDtypeStruct(x.shape if shape is None else shape, x.dtype)


def given(symbols, steps, batch):
    """(T, B) that fit the symbols."""
    fixed = [part.strip() for part in symbols.split(",")]
    return tuple(int(f) if f.isdigit() else n for f, n in zip(fixed, (steps, batch), strict=True))


CALLS = {
    "forward": lambda p, x, h0: frnn(x, p, h0),
    "vjp": lambda p, x, h0: vars(fvjp(x, p, h0)[2](x[..., :HIDDEN], h0)),
    "grad": lambda p, x, h0: jax.grad(lambda *a: jnp.sum(frnn(a[1], a[0], a[2])[0] ** 2), argnums=(0, 1, 2))(p, x, h0),
}


@pytest.mark.parametrize("symbols", SYMBOLS)
@pytest.mark.parametrize("call", list(CALLS.values()), ids=list(CALLS))
def test_functions_are_exported_for_any_time_and_batch(call, symbols):
    params = network().state_dict()
    sizes = export.symbolic_shape(symbols)
    x, h0 = jnp.ones((1, 1, INPUT)), jnp.ones((2, 1, HIDDEN))
    specs = jax.tree.map(spec_of, params), spec_of(x, (*sizes, INPUT)), spec_of(h0, (2, sizes[1], HIDDEN))
    exported = there_and_back(call, *specs)
    for steps, batch in dict.fromkeys(given(symbols, *size) for size in SIZES):
        x, h0 = draw(1, (steps, batch, INPUT), (2, batch, HIDDEN))
        assert_trees_close(exported(params, x, h0), jax.jit(call)(params, x, h0))


def every_result(model, x, d_output):
    """Everything that a call of a model gives."""
    output, h_n, pullback = model.vjp(x)
    found = pullback(d_output)
    by_jax = jax.grad(lambda x: jnp.sum(model(x)[0] ** 2))(x)
    tangents = model.jvp(x, x_dot=x)[2]
    traced = model.trace(x)
    return output, h_n, vars(found), by_jax, vars(tangents), vars(traced)


@pytest.mark.parametrize(
    "options", [{}, {"bidirectional": True, "clip": 0.5, "batch_first": True}], ids=["plain", "all"]
)
def test_a_model_is_exported_with_all_of_its_calls(options):
    model = network(**options)
    width = HIDDEN * model.spec.num_directions
    sizes = export.symbolic_shape("T, B")
    call = lambda x, d: every_result(model, x, d)  # noqa: E731
    exported = there_and_back(call, *(jax.ShapeDtypeStruct((*sizes, n), jnp.dtype("float64")) for n in (INPUT, width)))
    for size in SIZES:
        x, d_output = draw(2, (*size, INPUT), (*size, width))
        assert_trees_close(exported(x, d_output), jax.jit(call)(x, d_output))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_gradient_of_many_rows_is_as_accurate_as_with_known_sizes(dtype):
    """A running sum in half precision stops growing at 256 or 2048."""
    model = rnncore_jax.RNN(1, 1, nonlinearity="identity", dtype=dtype, rng=0)
    call = lambda x: model.vjp(x)[2](jnp.ones_like(x)).params["bias_ih_l0"]  # noqa: E731
    sizes = export.symbolic_shape("T, B")
    x = jnp.ones((1, 5000, 1), dtype)
    assert float(there_and_back(call, spec_of(x, (*sizes, 1)))(x)[0]) == float(call(x)[0]) == float(x.dtype.type(5000))


@pytest.mark.parametrize(
    ("what", "call"),
    [
        ("checkpoint", lambda m, x: m.vjp(x, checkpoint=True)),
        ("checkpoint", lambda m, x: m.vjp(x, checkpoint=2)),
        ("truncate", lambda m, x: m.vjp(x, truncate=2)),
        ("training", lambda m, x: m(x, training=True, rng=0)),
    ],
)
def test_what_is_laid_out_on_the_host_needs_known_sizes(what, call):
    model = network(dropout=0.5)
    sizes = export.symbolic_shape("T, 2")
    with pytest.raises(ArgumentValueError, match=f"{what}: expected known sizes.* got T"):
        export.export(jax.jit(lambda x: call(model, x)[:2]))(
            jax.ShapeDtypeStruct((*sizes, INPUT), jnp.dtype("float64"))
        )
