"""Keras's layers and models in, and networks as Keras's models out: the same numbers on Keras's own code."""

import re
import warnings

import numpy as np
import pytest

import rnncore
from rnncore.errors import ArgumentTypeError, ArgumentValueError, InterchangeError, UnknownNameError
from rnncore.interchange.keras import module
from rnncore.interchange.portable import Asked
from tests.interchange.keras.models import SHAPES, X, assert_same, network_of, numbers, rnn_of, with_one_bias
from tests.interchange.networks import reference
from tests.tools.rounding import agree

keras = pytest.importorskip("keras", reason="the numbers are compared with Keras's own")
L = keras.layers


def read(module_of_keras, **asked):
    return module.read(module_of_keras, Asked(**asked))


def built(*layers, size=3):
    """A Sequential whose weights, biases too, are random."""
    model = keras.Sequential([keras.Input((None, size)), *layers])
    rng = np.random.default_rng(2)
    for variable in model.trainable_variables:
        variable.assign(rng.standard_normal(variable.shape).astype("f4") / 4)
    return model


def assert_computes(model, portable, x=X):
    agree(numbers(model(x)), reference(portable, x)[0])


# --- out --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_a_network_becomes_a_model_with_the_same_numbers(options):
    portable = network_of(**options)
    model = rnncore.to_module(rnn_of(portable), "keras")
    assert isinstance(model, keras.Sequential)
    output, h_n = reference(portable, X)
    agree(numbers(model(X)), output)
    with_states = rnncore.to_module(rnn_of(portable), "keras", return_state=True)
    found, *states = with_states(X)
    agree(numbers(found), output)
    agree(np.stack([numbers(state) for state in states]), h_n)


@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_the_round_trip_is_bit_for_bit_where_no_biases_are_added(options):
    portable = with_one_bias(network_of(**options))
    for more in ({}, {"return_state": True}):
        assert_same(
            portable, rnncore.from_module(rnncore.to_module(rnn_of(portable), "keras", **more), backend="numpy")
        )


def test_two_biases_are_added_and_come_back_as_one():
    portable = network_of()
    found = read(rnncore.to_module(rnn_of(portable), "keras")).params
    np.testing.assert_array_equal(found["bias_ih_l0"], portable.params["bias_ih_l0"] + portable.params["bias_hh_l0"])
    assert not found["bias_hh_l0"].any()


def test_a_model_may_return_the_last_step_alone():
    portable = network_of(num_layers=2)
    model = rnncore.to_module(rnn_of(portable), "keras", return_sequences=False)
    agree(numbers(model(X)), reference(portable, X)[0][:, -1])


def test_widths_may_differ_and_the_order_of_axes_is_always_keras_own():
    portable = network_of(hidden_size=[5, 4], batch_first=False)
    model = rnncore.to_module(rnn_of(portable), "keras")
    agree(numbers(model(X)), reference(portable, X.swapaxes(0, 1))[0].swapaxes(0, 1))
    assert read(model).spec.batch_first


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_keeps_its_bits(dtype):
    portable = with_one_bias(network_of(dtype="float32"))
    halves = {n: (a.view("u4") & 0xFFFF0000).view("f4") for n, a in portable.params.items()}
    given = type(portable)(
        portable.spec, halves if dtype == "bfloat16" else {n: a.astype("f2") for n, a in halves.items()}, dtype
    )
    found = read(module.make(given))
    assert found.dtype == dtype
    assert all(np.array_equal(found.params[n], a) for n, a in given.params.items())


def test_a_dtype_that_keras_backend_does_not_hold_is_refused_and_never_rounded():
    portable = network_of(dtype="float64")
    if keras.backend.backend() == "torch":
        assert read(module.make(portable)).dtype == "float64"
        return
    words = r"Keras's backend jax holds float64 as float32; .* rnn.to\(dtype='float32'\)"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as JAX's own
        with pytest.raises(InterchangeError, match=words):
            module.make(portable)


def test_dropout_between_the_layers_goes_out_and_in():
    model = rnncore.to_module(rnn_of(network_of(num_layers=3, dropout=0.25)), "keras")
    assert [layer.rate for layer in model.layers if isinstance(layer, L.Dropout)] == [0.25, 0.25]
    found = read(model)
    assert found.spec.dropout == 0.25 and not found.left_out
    ones = model(np.ones((1, 400, 3), "f4"), training=True)  # that it runs: which numbers are dropped is drawn
    assert ones.shape == (1, 400, 5)


def test_an_unknown_option_and_an_unsupported_function_are_refused():
    with pytest.raises(
        ArgumentTypeError, match="unexpected option 'go_backwards'; it has return_sequences, return_state"
    ):
        rnncore.to_module(rnn_of(network_of()), "keras", go_backwards=True)
    with pytest.raises(InterchangeError, match=r"no activation that is 'tanh', clip=2.0"):
        rnncore.to_module(rnn_of(network_of(clip=2.0)), "keras")


# --- in ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer",
    [
        lambda: L.SimpleRNN(4, return_sequences=True),
        lambda: L.SimpleRNN(4, return_sequences=True, use_bias=False, activation="relu"),
        lambda: L.SimpleRNN(4, return_sequences=True, unroll=False, trainable=False),
        lambda: L.Bidirectional(L.SimpleRNN(4, return_sequences=True)),
        lambda: L.Bidirectional(
            L.SimpleRNN(4, return_sequences=True),
            backward_layer=L.SimpleRNN(4, return_sequences=True, go_backwards=True),
        ),
        lambda: L.Bidirectional(L.RNN(L.SimpleRNNCell(4), return_sequences=True)),
        lambda: L.RNN(L.SimpleRNNCell(4), return_sequences=True),
        lambda: L.RNN([L.SimpleRNNCell(4), L.SimpleRNNCell(5), L.SimpleRNNCell(2)], return_sequences=True),
    ],
    ids=range(8),
)
def test_a_layer_alone_and_in_a_model_is_a_network(layer):
    model = built(layer())
    for given in (model, model.layers[0]):
        assert_computes(model, read(given))


def test_a_stack_of_all_kinds_is_one_network():
    model = built(
        L.SimpleRNN(4, return_sequences=True),
        L.RNN([L.SimpleRNNCell(5), L.SimpleRNNCell(6)], return_sequences=True),
        L.SimpleRNN(2, return_sequences=True, use_bias=False),
    )
    found = read(model)
    assert found.spec.hidden_sizes == (4, 5, 6, 2)
    assert not found.left_out
    assert_computes(model, found)


def test_cells_are_networks_of_their_own():
    cell = L.SimpleRNNCell(4)
    cell.build((None, 3))
    portable = read(cell)
    state = np.ones((2, 4), "f4")
    found, _ = cell(X[:, 0], [state])
    agree(numbers(found), reference(portable, X[:, :1], state[None])[0][:, 0])


def test_a_functional_chain_is_a_network_and_what_is_around_it_is_left_out():
    inputs = keras.Input((None, 3))
    masked = L.Masking(name="mask")(inputs)
    first, state = L.SimpleRNN(4, return_sequences=True, return_state=True, name="first")(masked)
    second = L.SimpleRNN(4, return_sequences=True, name="second")(first, initial_state=state)
    model = keras.Model(inputs, L.Dense(2, name="out")(second))
    found = read(model)
    assert found.spec.hidden_sizes == (4, 4)
    # Functions are named by how many there were in the process.
    layers, *more = found.left_out
    assert re.sub(r"_[0-9]+'", "'", layers) == "layers NotEqual 'not_equal', Masking 'mask', Any 'any', Dense 'out'"
    fed = "an initial state or a mask from other layers, which are h0 and lengths here, of"
    assert more == [f"{fed} first", f"{fed} second"]
    with pytest.warns(UserWarning, match="left out: layers NotEqual"):
        assert rnncore.from_module(model).backend == keras.backend.backend()


def test_layers_whose_output_others_read_too_are_networks_apart():
    inputs = keras.Input((None, 3))
    first = L.SimpleRNN(4, return_sequences=True, name="first")(inputs)
    second = L.SimpleRNN(4, return_sequences=True, name="second")(first)
    model = keras.Model(inputs, L.Add()([first, second]))
    with pytest.raises(
        ArgumentValueError, match="name: expected a network that the model holds, 'first', 'second', got None"
    ):
        read(model)
    assert read(model, name="second").spec.input_size == 4
    with pytest.raises(UnknownNameError, match="'first', 'second', got 'third'"):
        read(model, name="third")


def test_models_in_models_are_searched():
    inner = keras.Sequential([keras.Input((None, 3)), L.SimpleRNN(4, return_sequences=True, name="deep")], name="inner")
    model = keras.Sequential([keras.Input((None, 3)), inner, L.Dense(2, name="between"), L.SimpleRNN(3, name="top")])
    found = read(model, name="inner/deep")
    assert found.spec.hidden_sizes == read(model, name="deep").spec.hidden_sizes == (4,)
    assert found.left_out == ("layers Dense 'between', SimpleRNN 'top'",)


def test_steps_that_are_masked_are_lengths():
    """Right-hand padding: Keras carries the state over it, so h_n is the same; ours reads no padding."""
    model = built(L.Masking(), L.Bidirectional(L.SimpleRNN(4, return_sequences=True)))
    padded = X.copy()
    padded[1, 4:] = 0
    agree(numbers(model(padded)), reference(read(model), padded, lengths=[7, 4])[0])


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (lambda: L.SimpleRNN(4, activation="gelu"), "activation of simple: 'gelu' is none of rnncore's"),
        (lambda: L.SimpleRNN(4, activation=lambda x: x * x), "activation of simple: .* is none of rnncore's"),
        (
            lambda: L.SimpleRNN(4, activation=np.tanh),
            "SimpleRNN: it has no configuration",
        ),
        (lambda: L.SimpleRNN(4, go_backwards=True), "go_backwards of simple: expected False, got True"),
        (lambda: L.SimpleRNN(4, recurrent_dropout=0.5), "recurrent_dropout of simple: expected 0, got 0.5"),
        (lambda: L.LSTM(4), "no layer of a vanilla RNN, only LSTM 'simple'"),
        (lambda: L.RNN(L.GRUCell(4)), "no layer of a vanilla RNN, only RNN 'simple'"),
        (lambda: L.Bidirectional(L.LSTM(4)), "only Bidirectional 'simple'"),
        (
            lambda: L.Bidirectional(L.SimpleRNN(4), merge_mode="sum"),
            "merge_mode of simple: expected 'concat'.*got 'sum'",
        ),
        (
            lambda: L.Bidirectional(L.RNN([L.SimpleRNNCell(4), L.SimpleRNNCell(4)])),
            "simple/forward_layer: expected one cell, as layers read both directions, got 2",
        ),
        (
            lambda: L.RNN([L.SimpleRNNCell(4), L.SimpleRNNCell(4, activation="relu")]),
            "expected one for all layers, got 'relu' after 'tanh'",
        ),
        (
            lambda: L.RNN([L.SimpleRNNCell(4), L.SimpleRNNCell(4, dropout=0.1)]),
            "dropout of simple/simple_rnn_cell_1: expected 0, got 0.1",
        ),
    ],
    ids=range(12),
)
def test_what_rnncore_has_not_is_refused_by_name(layer, words):
    made = layer()
    made.name = "simple"
    made.build((None, None, 3))
    with pytest.raises(InterchangeError, match=words):
        read(made)


def test_layers_with_other_activations_are_networks_of_their_own():
    both = L.Bidirectional(L.SimpleRNN(5, return_sequences=True), name="low")
    model = built(both, L.SimpleRNN(4, activation="relu", return_sequences=True, name="high"))
    with pytest.raises(ArgumentValueError, match="'high', 'low'"):
        read(model)
    low, high = read(model, name="low"), read(model, name="high")
    assert [n.spec.nonlinearity.name for n in (low, high)] == ["tanh", "relu"]
    assert low.spec.bidirectional and high.spec.input_size == 10
    assert low.left_out == ("layers SimpleRNN 'high'",)


def test_a_function_of_the_callers_own_stands_in_for_one_that_rnncore_has_not():
    model = built(L.SimpleRNN(4, activation="exponential", return_sequences=True))
    assert_computes(model, read(model, nonlinearity=(np.exp, np.exp)), X / 4)


def test_a_function_with_a_name_of_keras_is_not_taken_for_it():
    def relu(x):
        return -x

    layer = L.SimpleRNN(4, activation=relu)
    layer.build((None, None, 3))
    with pytest.raises(InterchangeError, match="expected one of Keras's own"):
        read(layer)


def test_a_class_of_the_users_own_is_refused_as_its_code_is_not_known():
    class Twice(L.SimpleRNN):
        def call(self, *args, **options):
            return 2 * super().call(*args, **options)

    class Model(keras.Model):
        def call(self, x):
            return x

    layer = Twice(4)
    layer.build((None, None, 3))
    with pytest.raises(InterchangeError, match="no layer of a vanilla RNN, only Twice"):
        read(layer)
    with pytest.raises(InterchangeError, match="no layer of a vanilla RNN, only Model"):
        read(Model())


def test_a_layer_without_weights_says_what_to_do():
    with pytest.raises(InterchangeError, match=r"build it, as by layer.build\(\(None, None, input_size\)\)"):
        read(L.SimpleRNN(4))


def test_what_only_training_or_other_calls_read_is_left_out_by_name():
    layer = L.SimpleRNN(4, dropout=0.1, stateful=True, kernel_regularizer="l2", bias_constraint="non_neg", name="x")
    layer.build((2, None, 3))
    assert read(layer).left_out == (
        "the state that x keeps between calls, stateful=True: pass h0",
        "dropout=0.1 of the input of x",
        "kernel_regularizer of x",
        "bias_constraint of x",
    )


def test_a_mixed_policy_is_left_out_and_an_activation_of_another_dtype_refused():
    layer = L.SimpleRNN(4, dtype="mixed_float16", name="x")
    layer.build((None, None, 3))
    found = read(layer)
    assert found.dtype == "float32" and found.left_out == ("the products of x in float16, policy mixed_float16",)
    other = L.SimpleRNN(4, dtype="float16", activation=L.LeakyReLU(), recurrent_initializer="zeros", name="x")
    other.build((None, None, 3))
    with pytest.raises(
        InterchangeError, match="activation of x: expected its dtype to be float16, as the layer's, got float32"
    ):
        read(other)


def test_a_backend_that_cannot_be_used_is_not_chosen(monkeypatch):
    model = built(L.SimpleRNN(4))
    assert read(model).backend == keras.backend.backend()
    monkeypatch.setattr(module, "backends", list)
    assert read(model).backend is None


def test_dropout_at_two_rates_is_refused():
    layers = [
        L.SimpleRNN(4, return_sequences=True),
        L.Dropout(0.5),
        L.SimpleRNN(4, return_sequences=True),
        L.SimpleRNN(4),
    ]
    with pytest.raises(InterchangeError, match=r"dropout between the layers: expected one rate, got 0.0, 0.5"):
        read(built(*layers))


def test_only_keras_objects_are_owned():
    assert module.owns(L.SimpleRNN(4)) and module.owns(keras.Sequential())
    assert (
        not module.owns(keras.losses.MeanSquaredError()) and not module.owns(object()) and not module.owns(L.SimpleRNN)
    )


# --- training ---------------------------------------------------------------------------------------------------------


def test_three_steps_of_training_are_the_same():
    """Of plain gradient descent; a step adds gradients that agree within 64 eps of the largest, times 0.1.

    The weights are of size 1, so that they agree within 64 eps of the largest too.
    """
    portable = with_one_bias(network_of(num_layers=2, bidirectional=True))
    model = rnncore.to_module(rnn_of(portable), "keras")
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse")
    y = np.random.default_rng(3).standard_normal((2, 7, 10)).astype("f4")
    params = {n: a.astype("f8") for n, a in portable.params.items()}
    for _ in range(3):
        model.train_on_batch(X, y)
        rnn = rnncore.RNN.from_spec(portable.spec, params, backend="numpy", dtype="float64")
        output, _, pullback = rnn.vjp(X.astype("f8"))
        grads = pullback(2 * (output - y) / y.size).params
        # Keras has one bias, which is bias_ih here; bias_hh stays zero.
        params = {n: a - 0.1 * grads[n] * (not n.startswith("bias_hh")) for n, a in params.items()}
    found = read(model).params
    for name, want in params.items():
        agree(found[name], want, what=name)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own, of NumPy 2
def test_a_layer_that_a_model_calls_twice_is_one_call_and_says_so(tmp_path):
    inputs = keras.Input((None, 3))
    twice = L.SimpleRNN(3, return_sequences=True, name="twice")
    model = keras.Model(inputs, twice(twice(inputs)))
    found = read(model)
    assert found.spec.num_layers == 1
    assert found.left_out == ("all but one of the 2 calls, of twice",)
    model.save(tmp_path / "twice.keras")
    with pytest.warns(UserWarning, match="left out: all but one of the 2 calls, of twice"):
        rnncore.load(tmp_path / "twice.keras")
    inner = keras.Sequential([keras.Input((None, 3)), L.SimpleRNN(3, return_sequences=True)], name="inner")
    held = read(keras.Model(inputs, inner(inner(inputs))))
    assert held.left_out == ("layers Sequential 'inner' (all but one of the 2 calls)",)


def test_layers_of_one_and_of_two_directions_are_networks_of_their_own():
    both = L.Bidirectional(L.SimpleRNN(5, return_sequences=True), name="both")
    model = built(both, L.SimpleRNN(4, return_sequences=True, name="one"))
    with pytest.raises(ArgumentValueError, match="'both', 'one', got None"):
        read(model)
    below = np.asarray(numbers(both(X)), "f4")
    found = [read(model, name="both"), read(model, name="one")]
    assert [(f.spec.input_size, f.spec.bidirectional) for f in found] == [(3, True), (10, False)]
    agree(below, reference(found[0], X)[0])
    agree(numbers(model(X)), reference(found[1], below)[0])
