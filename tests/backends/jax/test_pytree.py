"""Models as pytrees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rnncore_jax
from jax import export, grad, vmap

import rnncore
from rnncore.errors import ArgumentTypeError, ArgumentValueError, DTypeError
from rnncore.functional import rnn as frnn
from tests.tools.jax_problem import BATCH, HIDDEN, INPUT, STEPS, assert_trees_close, draw, loss, model_and_input


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


# --- parameters and results -------------------------------------------------------------------------------------------


def test_the_parameters_can_be_arguments_and_are_differentiated():
    model, x = model_and_input()
    run = lambda params, x: jnp.mean(frnn(x, params)[0] ** 2)  # noqa: E731
    found = jax.jit(grad(run))(model.params, x)
    assert type(found) is type(model.params) and list(found) == list(model.params)
    assert_trees_close(dict(found), dict(grad(loss)(model, x).params))
    with pytest.raises(TypeError):
        found["weight_hh_l0"] = found["weight_hh_l0"]
    paths = [path[0].key for path, _ in jax.tree_util.tree_flatten_with_path(model.params)[0]]
    assert paths == list(model.params)
    before = float(loss(model, x))
    model.set_params(jax.tree.map(lambda p, g: p - 0.5 * g, model.params, found))
    assert float(loss(model, x)) < before


def results(model, x):
    """The model, its parameters, and every kind of result."""
    output, _, pullback = model.vjp(x)
    cell = model.cell()
    h, pull = cell.vjp(x[0])
    return model, model.params, pullback(output), model.jvp(x, x_dot=x)[2], model.trace(x), cell, pull(h)


def test_results_of_calls_can_leave_a_compiled_function():
    model, x = model_and_input()
    got, want = jax.jit(results)(model, x), results(model, x)
    assert [type(r) for r in got] == [type(r) for r in want]
    assert_trees_close(got, want)


@pytest.mark.parametrize("kind", [rnncore.RNN, rnncore_jax.RNN], ids=["rnncore", "rnncore_jax"])
def test_models_and_results_are_written_by_export_and_read_again(kind):
    model = kind(
        INPUT, HIDDEN, nonlinearity="leaky_relu", clip=0.5, backend="jax", dtype="float64", rng=0, kernel="require"
    )
    model.label = "mine"
    (x,) = draw(2, (STEPS, BATCH, INPUT))
    written = export.export(jax.jit(results))(model, x).serialize()
    got, want = export.deserialize(written).call(model, x), results(model, x)
    assert [type(r) for r in got] == [type(r) for r in want]
    assert_trees_close(got, want)
    assert got[0].spec == model.spec and got[0].kernel == "require" and got[0].label == "mine"
    assert_trees_close(got[0](x), model(x))


def test_what_cannot_be_written_is_named():
    def write(model):
        return export.export(jax.jit(lambda m: m.params))(model).serialize()

    with pytest.raises(ArgumentValueError, match=r"nonlinearity: expected one of rnncore's .*rnncore.functional"):
        write(rnncore_jax.RNN(INPUT, HIDDEN, nonlinearity=(jnp.sin, jnp.cos)))
    model = rnncore_jax.RNN(INPUT, HIDDEN)
    model.tag = (1, 2)
    with pytest.raises(ArgumentTypeError, match=r"tag: expected text, a number, a flag or None .* got \(1, 2\)"):
        write(model)


def test_a_class_that_is_defined_again_is_registered_again():
    """As in a notebook. In an exported function its name stands for the first one."""

    def define():
        @rnncore_jax.register
        class Again(rnncore_jax.RNN):
            pass

        return Again

    first, second = define(), define()
    for kind in (first, second):
        assert type(jax.tree.map(lambda p: 2 * p, kind(INPUT, HIDDEN, rng=0))) is kind
    written = export.export(jax.jit(lambda m: m.params))(first(INPUT, HIDDEN, rng=0)).serialize()
    assert export.deserialize(written).in_tree == jax.tree.structure(((first(INPUT, HIDDEN, rng=0),), {}))
