"""``.keras``: what Keras writes is read without it, what is written Keras reads, and hostile files are refused."""

import io
import json
import random
import sys
import zipfile

import numpy as np
import pytest

import rnncore
from rnncore.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    BackendUnavailableError,
    FileFormatError,
    InterchangeError,
    RnncoreError,
    UnknownNameError,
)
from rnncore.interchange.keras import archive
from rnncore.interchange.portable import Asked, Portable
from tests.interchange.keras.models import SHAPES, X, assert_same, network_of, numbers, rnn_of, with_one_bias
from tests.interchange.networks import reference
from tests.tools.rounding import agree

pytest.importorskip("h5py", reason="the weights are in HDF5")
MUTATIONS = 300


@pytest.fixture
def saved(tmp_path):
    """Save a network, and return the path."""

    def save(name="rnn.keras", options=None, **of):
        path = tmp_path / name
        rnn_of(with_one_bias(network_of(**of))).save(path, **(options or {}))
        return path

    return save


def entries(path):
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def rewritten(path, compression=zipfile.ZIP_STORED, **changes):
    """The file with the configuration changed by a function, or other entries put in or, where None, taken out."""
    found = entries(path)
    change = changes.pop("config", None)
    if change is not None:
        config = json.loads(found["config.json"])
        changed = change(config)
        found["config.json"] = json.dumps(config if changed is None else changed).encode()
    found |= {name.replace("__", "."): content for name, content in changes.items()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in found.items():
            if content is not None:
                archive.writestr(name, content)
    return path


# --- Keras reads and writes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_keras_reads_what_is_written_and_the_trip_back_is_bit_for_bit(tmp_path, options):
    keras = pytest.importorskip("keras", reason="the file is for it")
    portable = with_one_bias(network_of(**options))
    path = tmp_path / "rnn.keras"
    rnn_of(portable).save(path)
    model = keras.saving.load_model(path)
    agree(numbers(model(X)), reference(portable, X)[0])
    assert_same(portable, rnncore.load(path))
    assert model.count_params() == sum(a.size for n, a in portable.params.items() if not n.startswith("bias_hh"))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own, of NumPy 2
def test_a_model_of_keras_own_is_read_by_itself_and_in_another(tmp_path):
    keras = pytest.importorskip("keras", reason="it writes the file")
    L = keras.layers
    model = keras.Sequential(
        [
            keras.Input((None, 3)),
            L.Masking(name="mask"),
            L.Bidirectional(L.SimpleRNN(4, return_sequences=True, activation=L.LeakyReLU(0.1)), name="first"),
            L.Dropout(0.5),
            L.Bidirectional(L.SimpleRNN(5, return_sequences=True, activation=L.LeakyReLU(0.1)), name="second"),
        ]
    )
    model.compile(optimizer="adam", loss="mse")
    model.train_on_batch(X, np.ones((2, 7, 10)))
    path = tmp_path / "theirs.keras"
    model.save(path)
    with pytest.warns(UserWarning, match="left out: layers Masking 'mask'; how it was compiled"):
        rnn = rnncore.load(path)
    assert rnn.spec.dropout == 0.5 and rnn.spec.nonlinearity.alpha == 0.1 and rnn.spec.hidden_sizes == (4, 5)
    agree(numbers(model(X)), rnn(X)[0])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own, of NumPy 2
def test_a_functional_model_with_functions_and_models_inside_is_read_by_name(tmp_path):
    keras = pytest.importorskip("keras", reason="it writes the file")
    L = keras.layers
    inner = keras.Sequential([keras.Input((None, 3)), L.SimpleRNN(4, return_sequences=True, name="deep")], name="inner")
    inputs = keras.Input((None, 3))
    between = keras.ops.tanh(inner(inputs)) + 1
    stack = L.RNN([L.SimpleRNNCell(5), L.SimpleRNNCell(2)], return_sequences=True, name="stack")(between)
    model = keras.Model(inputs, [L.SimpleRNN(6, return_sequences=True, name="top")(stack), between])
    path = tmp_path / "theirs.keras"
    model.save(path)
    with pytest.raises(ArgumentValueError, match="holds, 'deep', 'inner/deep', 'stack', 'top', got None"):
        rnncore.load(path)
    with pytest.warns(UserWarning, match="left out: .*SimpleRNN 'inner/deep'"):
        rnn = rnncore.load(path, name="top")
    output, read = (numbers(a) for a in model(X))
    agree(output, rnn(read)[0])
    with pytest.warns(UserWarning, match="left out: .*RNN 'stack'"):
        rnn = rnncore.load(path, name="deep")
    agree(read, np.tanh(rnn(X)[0]) + 1)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_every_dtype_keeps_its_bits(tmp_path, dtype):
    portable = with_one_bias(network_of(dtype="float64" if dtype == "float64" else "float16"))
    host = {n: a.astype("f4") for n, a in portable.params.items()} if dtype == "bfloat16" else portable.params
    if dtype == "bfloat16":
        host = {n: (a.view("u4") & 0xFFFF0000).view("f4") for n, a in host.items()}
    path = tmp_path / "rnn.keras"
    with open(path, "wb") as file:
        archive.encode(file, Portable(portable.spec, host, dtype))
    with open(path, "rb") as file:
        found = archive.decode(file, Asked())
    assert found.dtype == dtype
    assert all(found.params[n].tobytes() == a.tobytes() for n, a in host.items())


def test_the_model_may_return_the_last_step_alone(saved):
    keras = pytest.importorskip("keras", reason="the file is for it")
    path = saved(options={"return_sequences": False}, num_layers=2)
    assert keras.saving.load_model(path)(X).shape == (2, 5)
    assert rnncore.load(path).spec.num_layers == 2
    with pytest.raises(ArgumentTypeError, match="return_sequences: expected True or False, got 1"):
        saved(options={"return_sequences": 1})
    with pytest.raises(ArgumentTypeError, match="unexpected option 'sequences'"):
        saved(options={"sequences": True})


def test_keras_need_not_be_installed(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "keras", None)
    assert rnncore.load(saved()).spec.batch_first
    with pytest.raises(BackendUnavailableError, match=r'a Keras model needs keras.*: pip install "rnncore\[keras\]"'):
        rnncore.to_module(rnn_of(network_of()), "keras")


def test_the_same_network_gives_the_same_bytes(saved):
    assert saved("a.keras").read_bytes() == saved("b.keras").read_bytes()


def test_what_the_file_says_may_be_said_again_and_not_otherwise(saved):
    path = saved()
    assert rnncore.load(path, batch_first=True, name="simple_rnn").spec.batch_first
    with pytest.raises(ArgumentValueError, match="batch_first: expected True, as the source says, got False"):
        rnncore.load(path, batch_first=False)
    with pytest.raises(ArgumentValueError, match=r"nonlinearity: expected .*tanh.*, as the source says, got .*relu"):
        rnncore.load(path, nonlinearity="relu")
    with pytest.raises(UnknownNameError, match="name: expected a network that the model holds, 'simple_rnn', got 'x'"):
        rnncore.load(path, name="x")


def test_a_network_that_keras_cannot_say_leaves_no_file(tmp_path):
    with pytest.raises(InterchangeError, match=r"no activation that is 'softsign', clip=0\.5"):
        rnn_of(network_of(nonlinearity="softsign", clip=0.5)).save(tmp_path / "x.keras")
    assert not list(tmp_path.iterdir())


# --- hostile files ----------------------------------------------------------------------------------------------------


def layer(config):
    return config["config"]["layers"][1]


def set_in(key, value):
    return lambda config: layer(config)["config"].__setitem__(key, value)


HOSTILE = {
    "no zip": (lambda path: path.write_bytes(b"x" * 100), "does not end as a zip"),
    "empty": (lambda path: path.write_bytes(b""), "truncated: 0 bytes"),
    "no configuration": (lambda path: rewritten(path, config__json=None), "no config.json"),
    "no weights": (lambda path: rewritten(path, model__weights__h5=None), "no model.weights.h5"),
    "compressed": (lambda path: rewritten(path, zipfile.ZIP_DEFLATED), "compressed or encrypted"),
    "a list": (lambda path: rewritten(path, config=lambda c: [1]), "expected an object with class_name and config"),
    "no JSON": (lambda path: rewritten(path, config__json=b"{"), "config.json is not valid JSON"),
    "deep": (lambda path: rewritten(path, config__json=b"[" * 10**6), "nested too deeply|not valid JSON"),
    "large": (lambda path: rewritten(path, config__json=b" " * (2**24 + 1)), "has more than 16777216 bytes"),
    "no layers": (lambda path: rewritten(path, config=lambda c: c["config"].pop("layers") and None), "expected a list"),
    "layers of numbers": (
        lambda path: rewritten(path, config=lambda c: c["config"].update(layers=[1])),
        "expected an object",
    ),
    "graph without nodes": (
        lambda path: rewritten(path, config=lambda c: c.update(class_name="Functional")),
        "inbound_nodes",
    ),
    "units": (lambda path: rewritten(path, config=set_in("units", "5")), "expected units, an int >= 1"),
    "no bias in the file": (lambda path: rewritten(path, config=set_in("use_bias", False)), "expected no bias"),
    "other units": (lambda path: rewritten(path, config=set_in("units", 10**9)), r"expected kernels \(I, 1000000000\)"),
    "HDF5 of garbage": (
        lambda path: rewritten(path, model__weights__h5=b"\x89HDF\r\n\x1a\n" + b"x" * 99),
        "damaged or not an HDF5",
    ),
}
HOSTILE["models in models"] = (
    lambda path: rewritten(path, config=lambda c: nested(c, 40)),
    "nested more than 16 deep",
)
FOREIGN = {
    "code": (lambda c: layer(c).update(class_name="Lambda"), "no layer of a vanilla RNN, only Lambda 'simple_rnn'"),
    "a class of another module": (lambda c: layer(c).update(module="os"), "only SimpleRNN 'simple_rnn'"),
    "a function of code": (
        set_in("activation", {"class_name": "__lambda__", "config": {"value": "4wEA"}}),
        "'__lambda__' is none",
    ),
    "a dtype": (set_in("dtype", "int8"), "dtype of simple_rnn: expected one of"),
    "time major": (set_in("time_major", True), "time_major of simple_rnn: expected False, got True"),
    "backwards": (set_in("go_backwards", True), "go_backwards of simple_rnn"),
}


def nested(config, depth):
    for _ in range(depth):
        config = {"module": "keras", "class_name": "Sequential", "config": {"name": "x", "layers": [config]}}
    return config


@pytest.mark.parametrize(("make", "words"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused(saved, make, words):
    path = saved()
    make(path)
    with pytest.raises(FileFormatError, match=words) as caught:
        rnncore.load(path)
    assert str(caught.value).startswith(f"{path}: ") and len(str(caught.value)) < 1500


@pytest.mark.parametrize(("change", "words"), FOREIGN.values(), ids=FOREIGN)
def test_what_the_configuration_names_and_this_room_does_not_know_is_refused_by_name(saved, change, words):
    with pytest.raises(InterchangeError, match=words):
        rnncore.load(rewritten(saved(), config=change))


def test_a_graph_in_a_circle_is_no_endless_search(saved):
    def circle(config):
        config["class_name"] = "Functional"
        first = {**layer(config), "inbound_nodes": [node("b")]}
        second = {**first, "config": {**first["config"], "name": "b"}, "inbound_nodes": [node("simple_rnn")]}
        config["config"]["layers"] = [first, second]

    def node(name):
        tensor = {"class_name": "__keras_tensor__", "config": {"keras_history": [name, 0, 0]}}
        return {"args": [tensor], "kwargs": {}}

    with pytest.raises(InterchangeError, match="no layer of a vanilla RNN"):
        rnncore.load(rewritten(saved(), config=circle))


@pytest.mark.filterwarnings("ignore:left out")  # of a damaged file there may be more to leave out
def test_damaged_files_raise_only_rnncores_errors(saved):
    """Single bytes anywhere; and, with true checksums, in the configuration's text and in the weights."""
    path = saved(num_layers=2, bidirectional=True)
    whole, parts, draw = path.read_bytes(), entries(path), random.Random(0)
    for k in range(MUTATIONS):
        name = ("config.json", "model.weights.h5", None)[k % 3]
        raw = bytearray(whole if name is None else parts[name])
        if draw.random() < 0.1:
            del raw[draw.randrange(len(raw)) :]
        else:
            raw[draw.randrange(len(raw))] = draw.randrange(256)
        if name is None:
            path.write_bytes(raw)
        else:
            out = io.BytesIO()
            with zipfile.ZipFile(out, "w") as archive:
                for entry, content in {**parts, name: bytes(raw)}.items():
                    archive.writestr(entry, content)
            path.write_bytes(out.getvalue())
        try:
            rnncore.load(path)
        except RnncoreError:
            continue
