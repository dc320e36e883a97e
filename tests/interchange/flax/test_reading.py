"""Flax's own modules as networks, and what in them is none."""

import numpy as np
import pytest

import rnncore
from rnncore.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    InterchangeError,
    RnncoreError,
    UnknownNameError,
)
from tests.tools.rounding import agree

nnx = pytest.importorskip("flax.nnx", reason="Flax is not installed")
linen = pytest.importorskip("flax.linen", reason="Flax is not installed")
jax = pytest.importorskip("jax", reason="JAX is not installed")
jnp, FrozenDict = jax.numpy, pytest.importorskip("flax.core", reason="Flax is not installed").FrozenDict

X = jnp.asarray(np.random.default_rng(1).standard_normal((2, 4, 3)).astype("f4"))
KEY = jax.random.key(0)


def cell(i=3, h=5, **options):
    """A cell of nnx's with a bias that is not zero, as it is when it is drawn."""
    made = nnx.SimpleCell(i, h, rngs=nnx.Rngs(0), **options)
    made.dense_i.bias = nnx.Param(jnp.linspace(-1, 1, h, dtype=made.dense_i.bias[...].dtype))
    return made


def layer(i=3, h=5, options=(), **of_cell):
    return nnx.RNN(cell(i, h, **of_cell), **dict(options))


def drawn(module, x=X):
    """A module of linen's with its variables, whose biases are not zero."""
    variables = module.init(KEY, *([x] if not isinstance(module, linen.SimpleCell) else [jnp.zeros((2, 5)), x[:, 0]]))
    return module, jax.tree.map(lambda a: a if a.ndim == 2 else jnp.linspace(-1, 1, len(a), dtype=a.dtype), variables)


def both(i=3, **options):
    return nnx.Bidirectional(layer(i), layer(i), **options)


NNX = {
    "one": lambda: layer(),
    "time_major": lambda: layer(options={"time_major": True}),
    "relu": lambda: layer(activation_fn=nnx.relu),
    "both": both,
    "both, and what is unused": lambda: nnx.Bidirectional(
        layer(options={"reverse": True, "time_major": True}), layer()
    ),
    "stack": lambda: nnx.Sequential(layer(), layer(5, 4), layer(4, 4)),
    "within": lambda: nnx.Sequential(nnx.Sequential(layer(), layer(5, 4)), layer(4, 4)),
    "stack of both": lambda: nnx.Sequential(both(), both(10)),
    "dropout": lambda: nnx.Sequential(layer(), nnx.Dropout(0.5, deterministic=True), layer(5, 5)),
}


@pytest.mark.parametrize("kind", NNX)
def test_modules_of_nnx(kind):
    theirs = NNX[kind]()
    x = X.swapaxes(0, 1) if kind == "time_major" else X
    ours = rnncore.from_module(theirs)
    assert ours.backend == "jax" and ours.spec.batch_first == (kind != "time_major")
    assert ours.spec.dropout == (0.5 if kind == "dropout" else 0)
    agree(ours(x)[0], theirs(x))


def linen_layer(h=5, options=(), **of_cell):
    return linen.RNN(linen.SimpleCell(h, **of_cell), **dict(options))


LINEN = {
    "one": lambda: linen_layer(),
    "time_major": lambda: linen_layer(options={"time_major": True}),
    "relu": lambda: linen_layer(activation_fn=linen.relu, options={"name": "any"}),
    "both": lambda: linen.Bidirectional(linen_layer(), linen_layer()),
    "stack": lambda: linen.Sequential([linen_layer(), linen_layer(4)]),
    "within": lambda: linen.Sequential([linen.Sequential([linen_layer(), linen_layer(4)]), linen_layer(4)]),
    "dropout": lambda: linen.Sequential([linen_layer(), linen.Dropout(0.5, deterministic=True), linen_layer(5)]),
}


@pytest.mark.parametrize("kind", LINEN)
def test_modules_of_linen_with_their_parameters(kind):
    module, variables = drawn(LINEN[kind]())
    x = X.swapaxes(0, 1) if kind == "time_major" else X
    ours = rnncore.from_module((module, variables))
    assert ours.spec.batch_first == (kind != "time_major")
    agree(ours(x)[0], module.apply(variables, x))
    again = rnncore.from_module((module, jax.tree.map(np.asarray, variables["params"])))
    assert all(jnp.array_equal(again.params[n], a) for n, a in ours.params.items())


def test_cells_alone_are_networks_of_one_layer():
    h = jnp.ones((2, 5), "f4")
    alone, (module, variables) = cell(), drawn(linen.SimpleCell(5))
    for theirs, step in ((alone, alone), ((module, variables), lambda h, x: module.apply(variables, h, x))):
        ours = rnncore.from_module(theirs)
        assert not ours.spec.batch_first and rnncore.from_module(theirs, batch_first=True).spec.batch_first
        agree(ours(X[None, :, 0], h[None])[0][0], step(h, X[:, 0])[1])


def test_a_list_runs_in_its_order():
    parts = [layer(), layer(5, 4)]
    want = nnx.Sequential(*parts)(X)
    for given in (parts, tuple(parts), nnx.List(parts)):
        agree(rnncore.from_module(given)(X)[0], want)
    pairs = [drawn(linen_layer()), drawn(linen_layer(4), jnp.zeros((2, 4, 5)))]
    first = pairs[0][0].apply(pairs[0][1], X)
    agree(rnncore.from_module(pairs)(X)[0], pairs[1][0].apply(pairs[1][1], first))


def test_a_residual_is_the_identity_in_weight_hh():
    """Within one rounding of each number of its diagonal."""
    module, variables = drawn(linen_layer(residual=True))
    for theirs, output in ((layer(residual=True), None), ((module, variables), module.apply(variables, X))):
        ours = rnncore.from_module(theirs)
        agree(ours(X)[0], theirs(X) if output is None else output)
    plain = rnncore.from_module(layer()).params["weight_hh_l0"]
    assert jnp.array_equal(rnncore.from_module(layer(residual=True)).params["weight_hh_l0"], plain + jnp.eye(5))


def test_what_runs_before_and_after_is_left_out():
    stack = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), layer(), layer(5, 4), nnx.relu)
    with pytest.warns(UserWarning, match=r"left out: layers\.0 \(flax.*Linear\); layers\.3 \("):
        ours = rnncore.from_module(stack)
    assert ours.spec.hidden_sizes == (5, 4)
    with pytest.warns(UserWarning, match="left out: carry_init of cell, an initial state, which is h0 here"):
        rnncore.from_module(drawn(linen_layer(carry_init=jax.nn.initializers.ones)))


class Model(nnx.Module):
    def __init__(self, **parts):
        for name, part in parts.items():
            setattr(self, name, part)


def test_a_network_is_found_within_a_module():
    model = Model(encoder=Model(stack=nnx.Sequential(layer(), layer(5, 4))), head=nnx.Linear(4, 2, rngs=nnx.Rngs(0)))
    with pytest.warns(UserWarning, match=r"left out: all but 'encoder\.stack'"):
        ours = rnncore.from_module(model)
    agree(ours(X)[0], model.encoder.stack(X))
    with pytest.warns(UserWarning, match="left out"):
        assert rnncore.from_module(model, name="encoder.stack.layers.1").input_size == 5


def test_of_several_networks_one_is_named():
    model = Model(left=layer(), right=both(), cells=nnx.List([cell(), cell(5, 5)]))
    with pytest.raises(ArgumentValueError, match=r"holds, 'cells', 'cells\.0', 'cells\.1', 'left', 'right', got None"):
        rnncore.from_module(model)
    with pytest.raises(UnknownNameError, match="got 'rigth'; did you mean 'right'"):
        rnncore.from_module(model, name="rigth")
    with pytest.warns(UserWarning, match="all but 'right'"):
        agree(rnncore.from_module(model, name="right")(X)[0], model.right(X))
    with pytest.warns(UserWarning, match="all but 'cells'"):
        assert rnncore.from_module(model, name="cells").spec.num_layers == 2


def test_the_members_of_a_list_need_not_run_one_after_another():
    model = Model(cells=nnx.List([cell(), cell(5, 5)]))
    with pytest.raises(ArgumentValueError, match=r"holds, 'cells', 'cells\.0', 'cells\.1', got None"):
        rnncore.from_module(model)


def test_a_state_of_nnx_says_neither_the_nonlinearity_nor_the_axes():
    theirs = nnx.Sequential(layer(), both(5))
    state = nnx.state(theirs.layers[1])
    with pytest.raises(ArgumentValueError, match="nonlinearity: expected a value"):
        rnncore.from_module(state)
    with pytest.warns(UserWarning, match=r"rngs\.key"):
        ours = rnncore.from_module(state, nonlinearity="tanh", batch_first=True)
    agree(ours(X @ jnp.ones((3, 5)))[0], theirs.layers[1](X @ jnp.ones((3, 5))))
    assert rnncore.from_module(
        nnx.state(nnx.Sequential(layer(), layer(5)), nnx.Param), nonlinearity="tanh", batch_first=True
    )


def test_variables_of_linen_say_neither():
    module, variables = drawn(linen.Sequential([linen_layer(), linen_layer(4)]))
    for given in (variables, variables["params"], FrozenDict(variables)):
        ours = rnncore.from_module(given, nonlinearity="tanh", batch_first=True)
        agree(ours(X)[0], module.apply(variables, X))


def test_half_precision_is_kept():
    theirs = linen_layer(param_dtype=jnp.bfloat16, recurrent_kernel_init=jax.nn.initializers.normal())
    assert rnncore.from_module(drawn(theirs, X.astype(jnp.bfloat16))).dtype == jnp.bfloat16


class Leaky(nnx.SimpleCell):
    def __call__(self, carry, inputs):
        new, _ = super().__call__(carry, inputs)
        return 0.5 * (carry + new), new


def own_dense():
    made = cell()
    made.dense_h = nnx.Conv(5, 5, (1,), rngs=nnx.Rngs(0))
    return made


def shared():
    one = cell()
    return nnx.Bidirectional(nnx.RNN(one), nnx.RNN(one))


def linen_shared():
    one = linen.SimpleCell(5)
    return linen.Bidirectional(linen.RNN(one), linen.RNN(one))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nnx.RNN(nnx.GRUCell(3, 5, rngs=nnx.Rngs(0))), "cell: expected a SimpleCell, got .*GRUCell"),
        (lambda: drawn(linen.RNN(linen.LSTMCell(5))), "cell: expected a SimpleCell, got .*LSTMCell"),
        (lambda: layer(options={"reverse": True}), "RNN: reverse=True"),
        (lambda: both(merge_fn=lambda a, b: a + b), "Bidirectional: expected a merge_fn that concatenates"),
        (lambda: nnx.Bidirectional(both(), layer()), "forward_rnn: expected an RNN, got .*Bidirectional"),
        (shared, "backward_rnn.cell: it is another direction's"),
        (lambda: drawn(linen_shared()), "params: expected 'backward_rnn'"),
        (
            lambda: nnx.Sequential(layer(), layer(5, activation_fn=nnx.relu)),
            "activation_fn: expected one in all layers",
        ),
        (
            lambda: nnx.Sequential(layer(), layer(5, options={"time_major": True})),
            "time_major: expected one in all layers",
        ),
        (lambda: nnx.Sequential(layer(), both(5)), r"one or two directions each, got \[1, 2\]"),
        (
            lambda: nnx.Sequential(layer(), nnx.relu, layer(5)),
            r"layers\.1: expected recurrent layers one after another",
        ),
        (lambda: nnx.Sequential(layer(), nnx.Dropout(0.5), layer(5), layer(5)), "one rate of dropout.* 0.5, 0.0"),
        (lambda: nnx.Sequential(layer(), nnx.Dropout(0.5, broadcast_dims=(0,)), layer(5)), "no broadcast_dims"),
        (lambda: nnx.RNN(Leaky(3, 5, rngs=nnx.Rngs(0))), "expected Flax's own SimpleCell, got .*Leaky"),
        (own_dense, "dense_h: expected Flax's own Linear, got .*Conv"),
        (lambda: layer(dtype=jnp.float16), "got float32 and dtype float16"),
        (lambda: (linen_layer(dtype=jnp.bfloat16), drawn(linen_layer())[1]), "got float32 and dtype bfloat16"),
        (lambda: layer(activation_fn=jax.nn.gelu), "cell.activation_fn: expected a function that is known"),
        (lambda: (linen_layer(), {}), "params: expected 'cell' in those of RNN, got none"),
        (lambda: (linen_layer(), {"params": {"cell": {"i": {}, "h": {}}}}), r"'kernel' in those of cell\.i, got none"),
        (
            lambda: (linen_layer(), {"cell": {"i": {"kernel": 3}, "h": {}}}),
            "cell: expected arrays of JAX or NumPy, got int",
        ),
        (
            lambda: (linen_layer(), {"cell": {k: {"kernel": np.ones((3, 3), "i4")} for k in "ih"}}),
            "got int32 and dtype int32",
        ),
        (lambda: (linen.Sequential([linen_layer()]), {"params": 3}), "params: expected 'cell'"),
        (lambda: (linen_layer(), {"cell": {k: {"kernel": np.ones(3)} for k in "ih"}}), "expected weights"),
    ],
)
def test_what_no_network_has_is_refused_by_name(make, words):
    with pytest.raises(InterchangeError, match=words):
        rnncore.from_module(make())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nnx.Linear(3, 5, rngs=nnx.Rngs(0)), "or a module that holds one, got .*Linear"),
        (lambda: nnx.Sequential(nnx.relu), "or a Sequential of them"),
        (lambda: (linen.Dense(3), {}), "or a Sequential of them, got .*Dense"),
        (linen_layer, r"expected \(module, params\), as .*SimpleCell does not hold its parameters"),
        (list, "expected a library's own"),
    ],
)
def test_what_is_no_recurrent_module(make, words):
    with pytest.raises(ArgumentTypeError, match=words):
        rnncore.from_module(make())


def test_what_a_module_says_is_not_said_otherwise():
    for options in ({"nonlinearity": "relu"}, {"batch_first": False}):
        with pytest.raises(ArgumentValueError, match="as the source says"):
            rnncore.from_module(layer(), **options)
    with pytest.raises(ArgumentValueError, match="name: expected None"):
        rnncore.from_module(drawn(linen_layer()), name="cell")
    own = layer(activation_fn=lambda z: jnp.tanh(z))
    assert rnncore.from_module(own, nonlinearity="tanh").spec.nonlinearity.name == "tanh"


def test_no_numbers_under_jit():
    with pytest.raises(RnncoreError, match="whose numbers are known"):
        jax.jit(lambda v: rnncore.from_module((linen_layer(), v))(X)[0])(drawn(linen_layer())[1])


def test_a_module_without_numbers_or_without_a_part_is_refused():
    with pytest.raises(InterchangeError, match="cell: expected parameters with numbers"):
        rnncore.from_module(nnx.eval_shape(layer))
    part = cell()
    del part.dense_h
    with pytest.raises(InterchangeError, match="SimpleCell: expected its dense_h"):
        rnncore.from_module(part)
