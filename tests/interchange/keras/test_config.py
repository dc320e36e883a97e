"""Configurations: names of groups as Keras makes them, and chains of layers found in graphs."""

import pytest

from rnncore.errors import FileFormatError
from rnncore.interchange.keras.config import _snake, find, kind_of, label
from rnncore.interchange.keras.describe import describe
from tests.interchange.keras.models import network_of


def layer(kind, name, module="keras.layers", **config):
    return {"module": module, "class_name": kind, "config": {"name": name, **config}}


def rnn(name, **config):
    return layer("SimpleRNN", name, units=2, **{"return_sequences": True, **config})


def sequential(*layers, name="model"):
    return layer("Sequential", name, "keras", layers=list(layers))


def graph(*layers):
    """A functional model of pairs of a layer and the names of those it reads."""
    entries = []
    for entry, *sources in layers:
        tensors = [{"class_name": "__keras_tensor__", "config": {"keras_history": [name, 0, 0]}} for name in sources]
        nodes = [{"args": tensors, "kwargs": {}}] if sources else []
        entries.append({**entry, "inbound_nodes": nodes})
    return layer("Functional", "model", "keras.src.models.functional", layers=entries)


def chains(model):
    return [[each.name for each in chain.layers] for chain in find(model).chains]


def groups(model):
    return [each.where[-1].group for chain in find(model).chains for each in chain.layers]


def test_groups_are_numbered_by_class_and_inputs_of_a_sequential_and_functions_are_none():
    others = [layer("InputLayer", "in"), layer("Dense", "d", return_sequences=False)]
    assert groups(sequential(others[0], rnn("a"), others[1], rnn("b"))) == ["simple_rnn", "simple_rnn_1"]
    function = layer("SimpleRNN", "f", "keras.src.ops.numpy")
    mine = {"module": None, "class_name": "SimpleRNN", "config": {"name": "mine"}, "registered_name": "SimpleRNN"}
    assert groups(sequential(function, rnn("a"))) == ["simple_rnn"]
    assert groups(sequential(mine, rnn("a"))) == ["simple_rnn_1"]


def test_the_groups_are_named_as_keras_names_them():
    naming = pytest.importorskip("keras.src.utils.naming", reason="its names are compared")
    for kind in (
        "SimpleRNN",
        "RNN",
        "LeakyReLU",
        "GRUV2Cell",
        "MyLSTM",
        "A",
        "aB",
        "Conv1D",
        "_X",
        "X_Y",
        "HTTPServer2Go",
        "é-x",
    ):
        assert _snake(kind) == naming.to_snake_case(kind), kind


@pytest.mark.parametrize(
    ("model", "want"),
    [
        (sequential(rnn("a"), rnn("b")), [["a", "b"]]),
        (sequential(rnn("a"), layer("Dropout", "d", rate=0.5), rnn("b")), [["a", "b"]]),
        (sequential(rnn("a"), layer("Dropout", "d", rate=0.5, noise_shape=[1, 1, 2]), rnn("b")), [["a"], ["b"]]),
        (sequential(rnn("a"), layer("Dropout", "d", rate=2), rnn("b")), [["a"], ["b"]]),
        (
            sequential(rnn("a"), layer("Dropout", "d", rate=0.1), layer("Dropout", "e", rate=0.1), rnn("b")),
            [["a"], ["b"]],
        ),
        (sequential(rnn("a"), layer("Dropout", "d", rate=0.1)), [["a"]]),
        (sequential(rnn("a", return_sequences=False), layer("RepeatVector", "r"), rnn("b")), [["a"], ["b"]]),
        (sequential(rnn("a"), layer("Dense", "d"), rnn("b")), [["a"], ["b"]]),
        (sequential(rnn("a"), sequential(rnn("b"), name="in")), [["in/b"], ["a"]]),
        (graph([layer("InputLayer", "i")], [rnn("a"), "i"], [rnn("b"), "a"]), [["a", "b"]]),
        (graph([layer("InputLayer", "i")], [rnn("b"), "a"], [rnn("a"), "i"]), [["a", "b"]]),
        (graph([layer("InputLayer", "i")], [rnn("a"), "i"], [rnn("b"), "a"], [rnn("c"), "a"]), [["a"], ["b"], ["c"]]),
        (graph([layer("InputLayer", "i")], [rnn("a"), "i"], [rnn("b"), "i"]), [["a"], ["b"]]),
        (graph([rnn("a"), "a"]), []),
    ],
)
def test_layers_that_alone_read_each_other_are_a_chain(model, want):
    assert chains(model) == want


def test_a_layer_that_is_called_twice_follows_none():
    """It reads two sequences, and only one of them is a layer's."""
    model = graph([layer("InputLayer", "i")], [rnn("a"), "i"], [rnn("b"), "a"])
    twice = model["config"]["layers"][2]
    twice["inbound_nodes"] += graph([rnn("b"), "i"])["config"]["layers"][0]["inbound_nodes"]
    assert chains(model) == [["a"], ["b"]]


def test_the_rates_of_dropout_are_kept_with_the_chain():
    model = sequential(rnn("a"), layer("Dropout", "d", rate=0.5), rnn("b"), rnn("c"), layer("Dropout", "e", rate=0.25))
    found = find(model)
    assert found.chains[0].rates == (0.5, 0.0)
    assert found.others == ["Dropout 'e'"]


@pytest.mark.parametrize(
    "model",
    [
        None,
        [],
        {"class_name": "Sequential"},
        {"class_name": 3, "config": {}},
        layer("Sequential", "x", "keras", layers={}),
        layer("Functional", "x", "keras", layers=[rnn("a")]),
        layer("Functional", "x", "keras", layers=[{**rnn("a"), "inbound_nodes": [3]}]),
        layer("Functional", "x", "keras", layers=[{**rnn("a"), "inbound_nodes": [{"args": 3}]}]),
        graph([rnn("a"), 3]),
    ],
    ids=str,
)
def test_what_is_no_configuration_is_refused(model):
    with pytest.raises(FileFormatError, match="expected"):
        find(model)


def test_classes_of_others_are_not_known():
    assert kind_of(layer("Dense", "x", "mine")) == kind_of(3) == ""
    assert label(layer("Dense", "x", "mine")) == "Dense 'x'"


def test_what_is_written_is_found():
    chain = find(describe(network_of(num_layers=3, bidirectional=True, dropout=0.5))).chains[0]
    assert [each.where[0].group for each in chain.layers] == ["bidirectional", "bidirectional_1", "bidirectional_2"]
    assert chain.rates == (0.5, 0.5)
