"""``.weights.h5``: Keras's weights in and out, and which layers of a file are the network."""

import random

import numpy as np
import pytest

import rnncore
from rnncore.errors import ArgumentValueError, FileFormatError, InterchangeError, RnncoreError, UnknownNameError
from tests.interchange.keras.models import SHAPES, X, assert_same, network_of, numbers, rnn_of, with_one_bias
from tests.interchange.networks import reference
from tests.tools.rounding import agree

h5py = pytest.importorskip("h5py", reason="the weights are in HDF5")
MUTATIONS = 300
KERNELS = {"0": (3, 5), "1": (5, 5), "2": (5,)}


def file_of(path, groups):
    """Write the arrays of groups of variables, of these shapes, with the layer's own name after a colon."""
    with h5py.File(path, "w") as file:
        for group, shapes in groups.items():
            place, _, name = group.partition(":")
            made = file.require_group(place)
            for key, shape in shapes.items():
                made[key] = np.ones(shape, "f4")
            if name:
                file.require_group(place.removesuffix("/cell/vars") + "/vars").attrs["name"] = name
    return path


def called(portable):
    """The names of the layers of a written network, in their order."""
    kind = "bidirectional" if portable.spec.bidirectional else "simple_rnn"
    return ", ".join(kind + (f"_{k}" if k else "") for k in range(portable.spec.num_layers))


@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_keras_reads_what_is_written_and_the_trip_back_is_bit_for_bit(tmp_path, options):
    keras = pytest.importorskip("keras", reason="the file is for it")
    portable = with_one_bias(network_of(**options))
    path = tmp_path / "rnn.weights.h5"
    rnn_of(portable).save(path)
    layers = [
        keras.layers.SimpleRNN(5, return_sequences=True, use_bias=options["bias"]) for _ in range(options["num_layers"])
    ]
    if options["bidirectional"]:
        layers = [keras.layers.Bidirectional(layer) for layer in layers]
    model = keras.Sequential([keras.Input((None, 3)), *layers])
    model.load_weights(path)
    agree(numbers(model(X)), reference(portable, X)[0])
    assert_same(portable, rnncore.load(path, nonlinearity="tanh", name=called(portable)))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own, of NumPy 2
def test_keras_own_file_is_read_by_the_names_of_its_layers(tmp_path):
    keras = pytest.importorskip("keras", reason="it writes the file")
    L = keras.layers
    model = keras.Sequential(
        [
            keras.Input((None, 3)),
            L.SimpleRNN(4, return_sequences=True, name="low", use_bias=False),
            L.LSTM(3, return_sequences=True, name="other"),
            L.RNN([L.SimpleRNNCell(4), L.SimpleRNNCell(2)], return_sequences=True, name="stack"),
            L.SimpleRNN(5, return_sequences=True, name="high"),
        ]
    )
    path = tmp_path / "theirs.weights.h5"
    model.save_weights(path)
    with pytest.raises(
        ArgumentValueError, match=r"name: expected those of .*'low'.* that are called one after the other"
    ):
        rnncore.load(path, nonlinearity="tanh")
    with pytest.warns(UserWarning, match="left out: layers 'low', 'other'"):
        rnn = rnncore.load(path, nonlinearity="tanh", name="stack, high")
    below = numbers(model.layers[1](model.layers[0](X)))
    agree(numbers(model(X)), rnn(below)[0])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own, of NumPy 2
def test_a_model_that_holds_a_layer_as_an_attribute(tmp_path):
    keras = pytest.importorskip("keras", reason="it writes the file")

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.inside = keras.layers.Bidirectional(keras.layers.SimpleRNN(4, return_sequences=True))

        def call(self, x):
            return self.inside(x)

    model = Model()
    output = numbers(model(X))
    model.save_weights(tmp_path / "theirs.weights.h5")
    agree(output, rnncore.load(tmp_path / "theirs.weights.h5", nonlinearity="tanh")(X)[0])


def test_the_nonlinearity_is_demanded_and_batch_first_is_said(tmp_path):
    path = tmp_path / "rnn.weights.h5"
    # Weights say nothing of what is computed with them: any function can be written.
    portable = with_one_bias(network_of(nonlinearity=(np.sin, np.cos)))
    rnn_of(portable).save(path)
    with pytest.raises(
        ArgumentValueError, match=r"nonlinearity: expected a value, as a \.weights\.h5 file does not say"
    ):
        rnncore.load(path)
    assert_same(portable, rnncore.load(path, nonlinearity=(np.sin, np.cos)))
    with pytest.raises(ArgumentValueError, match="batch_first: expected True"):
        rnncore.load(path, nonlinearity="relu", batch_first=False)


def test_layers_are_not_guessed_to_be_a_stack(tmp_path):
    groups = {"layers/simple_rnn/cell/vars": {**KERNELS}, "layers/simple_rnn_1/cell/vars": {**KERNELS, "0": (5, 5)}}
    path = file_of(tmp_path / "y.weights.h5", {**groups, "layers/dropout/vars": {}})
    for stored in (file_of(tmp_path / "x.weights.h5", groups), path):
        with pytest.raises(ArgumentValueError, match="with commas between them, as the file does not say it; got None"):
            rnncore.load(stored, nonlinearity="tanh")
    for wrong in ("layers/simple_rnn, x", "simple_rnn_2"):
        with pytest.raises(
            UnknownNameError, match="name: expected a network that the file holds, 'layers/simple_rnn', "
        ):
            rnncore.load(path, nonlinearity="tanh", name=wrong)
    with pytest.warns(UserWarning, match="'layers/dropout'"):
        rnn = rnncore.load(path, nonlinearity="tanh", name="layers/simple_rnn,layers/simple_rnn_1")
    assert rnn.spec.num_layers == 2


def test_twelve_layers_are_listed_in_the_order_of_their_numbers(tmp_path):
    portable = with_one_bias(network_of(hidden_size=[4] * 12))
    rnn_of(portable).save(tmp_path / "x.weights.h5")
    with pytest.raises(ArgumentValueError, match=", ".join(map(repr, called(portable).split(", ")))):
        rnncore.load(tmp_path / "x.weights.h5", nonlinearity="tanh")
    assert_same(portable, rnncore.load(tmp_path / "x.weights.h5", nonlinearity="tanh", name=called(portable)))


def test_the_state_of_an_optimizer_is_left_out(tmp_path):
    groups = {"layers/simple_rnn/cell/vars": KERNELS, "optimizer/vars": {"0": (3, 5)}}
    with pytest.warns(UserWarning, match="left out: the state of its optimizer"):
        rnncore.load(file_of(tmp_path / "x.weights.h5", groups), nonlinearity="tanh")


def test_layers_of_two_names_are_told_by_the_path(tmp_path):
    groups = {"a/cell/vars:same": KERNELS, "b/cell/vars:same": {**KERNELS, "0": (2, 5)}}
    path = file_of(tmp_path / "x.weights.h5", groups)
    with pytest.raises(UnknownNameError, match="the file holds, 'a', 'b', got 'same'"):
        rnncore.load(path, nonlinearity="tanh", name="same")
    with pytest.warns(UserWarning, match="left out: layers 'same'"):
        assert rnncore.load(path, nonlinearity="tanh", name="b").spec.input_size == 2


@pytest.mark.parametrize(
    ("groups", "error", "words"),
    [
        (
            {"layers/lstm/cell/vars": {"0": (3, 20), "1": (5, 20), "2": (20,)}},
            InterchangeError,
            "no layer of a vanilla RNN",
        ),
        ({}, InterchangeError, "no layer of a vanilla RNN, only nothing"),
        (
            {"layers/simple_rnn/cell/vars": {**KERNELS, "3": (5,)}},
            FileFormatError,
            r"expected 0, 1 and, with a bias, 2",
        ),
        ({"layers/simple_rnn/cell/vars": {**KERNELS, "2": (4,)}}, FileFormatError, r"vars/2: expected shape \(5,\)"),
        ({"layers/simple_rnn/cell/vars": {**KERNELS, "2": (5, 1)}}, FileFormatError, r"vars/2: expected shape \(5,\)"),
        (
            {"layers/simple_rnn/cell/vars": KERNELS, "layers/simple_rnn_1/cell/vars": KERNELS},
            InterchangeError,
            r"weight_ih_l1: expected shape \(5, 5\), got \(5, 3\)",
        ),
    ],
)
def test_what_is_no_network_is_refused(tmp_path, groups, error, words):
    path = file_of(tmp_path / "x.weights.h5", groups)
    several = ", ".join(place.removesuffix("/cell/vars") for place in groups) if len(groups) > 1 else None
    with pytest.raises(error, match=words):
        rnncore.load(path, nonlinearity="tanh", name=several)


def test_numbers_of_two_dtypes_are_refused(tmp_path):
    """float32 and bfloat16 too, which is read as float32."""
    for dtype, mark in (("f8", None), ("V2", "bfloat16")):
        path = file_of(tmp_path / "x.weights.h5", {"layers/simple_rnn/cell/vars": {"0": (3, 5), "2": (5,)}})
        with h5py.File(path, "a") as file:
            made = file["layers/simple_rnn/cell/vars"].create_dataset("1", data=np.zeros((5, 5), dtype))
            if mark:
                made.attrs["dtype"] = mark
        with pytest.raises(
            FileFormatError, match=r"vars: expected one dtype, got float32, (float64|bfloat16) and float32"
        ):
            rnncore.load(path, nonlinearity="tanh")


def test_damaged_files_raise_only_rnncores_errors(tmp_path):
    path = tmp_path / "rnn.weights.h5"
    portable = network_of(num_layers=2, bidirectional=True)
    rnn_of(portable).save(path)
    whole, draw = path.read_bytes(), random.Random(0)
    for _ in range(MUTATIONS):
        raw = bytearray(whole)
        if draw.random() < 0.1:
            del raw[draw.randrange(len(raw)) :]
        else:
            raw[draw.randrange(len(raw))] = draw.randrange(256)
        path.write_bytes(raw)
        try:
            rnncore.load(path, nonlinearity="tanh", name=called(portable))
        except RnncoreError:
            continue
