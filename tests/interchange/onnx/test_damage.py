"""Damaged and hostile ONNX files: every failure is one of rnncore's errors, before memory is taken for a claim."""

import io
import warnings

import numpy as np
import pytest

import rnncore
from rnncore.errors import FileFormatError, RnncoreError
from rnncore.interchange.onnx import decode, reading
from rnncore.interchange.portable import Asked
from tests.interchange.networks import network

pytest.importorskip("onnx", reason="reads ONNX files")
from tests.interchange.onnx.graphs import constants, model, node, onnx, rnn, save, tensor

MUTANTS = 3000


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A file with every kind of node that is written."""
    portable = network(hidden_size=2, input_size=2, num_layers=2, bidirectional=True, batch_first=True, clip=2.0)
    path = tmp_path_factory.mktemp("whole") / "rnn.onnx"
    rnncore.RNN.from_spec(portable.spec, portable.params, dtype="float32").save(path, h0=True, lengths=True)
    return path.read_bytes()


def read(data, folder):
    """Whether the bytes are a network; anything but one of rnncore's errors is a failure of the test."""
    path = folder / "damaged.onnx"
    path.write_bytes(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is left out
            rnncore.load(path)
    except RnncoreError:
        return False
    return True


def test_a_file_cut_at_any_place_is_refused_or_read(tmp_path, whole):
    for size in range(0, len(whole), 7):
        read(whole[:size], tmp_path)
    assert not read(b"", tmp_path)
    assert not read(whole[: len(whole) // 2], tmp_path)


@pytest.mark.parametrize("seed", range(4))
def test_any_byte_may_be_another(tmp_path, whole, seed):
    rng = np.random.default_rng(seed)
    for _ in range(MUTANTS // 4):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            data[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, data[place] ^ (1 << rng.integers(8)), rng.integers(256)])
        read(bytes(data), tmp_path)


@pytest.mark.parametrize("seed", range(2))
def test_any_piece_may_be_missing_or_twice(tmp_path, whole, seed):
    rng = np.random.default_rng(seed)
    for _ in range(MUTANTS // 10):
        a, b = sorted(rng.integers(0, len(whole), 2))
        read(whole[:a] + whole[b:], tmp_path)
        read(whole[:b] + whole[a:], tmp_path)


def test_fields_of_a_parsed_file_may_be_anything(tmp_path, whole):
    """Of a file that parses: names, kinds, sizes and attributes exchanged, which bytes seldom reach."""
    rng = np.random.default_rng(0)
    sizes = [-1, 0, 1, 2, 2**31, 2**62, -(2**63)]
    for _ in range(MUTANTS // 4):
        made = onnx.ModelProto.FromString(whole)
        graph = made.graph
        names = [n for part in graph.node for n in (*part.input, *part.output)] + ["", "nobody"]
        kinds = [
            "RNN",
            "Squeeze",
            "Transpose",
            "Reshape",
            "Concat",
            "Slice",
            "Where",
            "Identity",
            "Constant",
            "Unsqueeze",
        ]
        part = graph.node[rng.integers(len(graph.node))]
        kept = graph.initializer[rng.integers(len(graph.initializer))]
        what = rng.integers(9)
        if what == 0 and part.input:
            part.input[rng.integers(len(part.input))] = rng.choice(names)
        elif what == 1:
            part.output[rng.integers(len(part.output))] = rng.choice(names)
        elif what == 2:
            part.op_type = rng.choice(kinds)
        elif what == 3:
            kept.dims[rng.integers(len(kept.dims))] = int(rng.choice(sizes)) if kept.dims else 0
        elif what == 4:
            kept.dims.append(int(rng.choice(sizes)))
        elif what == 5:
            kept.data_type = int(rng.integers(25))
        elif what == 6 and part.attribute:
            given = part.attribute[rng.integers(len(part.attribute))]
            given.type = int(rng.integers(14))
            given.ints.extend(int(n) for n in rng.choice(sizes, 2))
        elif what == 7:
            del part.input[:]
        elif what == 8:
            del part.output[:]
        read(made.SerializeToString(), tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        b"\x00",
        b"garbage that is no message",
        b"\x3a\xff\xff\xff\xff\x0f",
        b"PK\x03\x04",
        b"\x89HDF\r\n\x1a\n",
        b"\x08\x07",
    ],
)
def test_garbage_is_no_model(tmp_path, data):
    path = tmp_path / "x.onnx"
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match=r"x\.onnx: it is no ONNX model"):
        rnncore.load(path)


@pytest.mark.parametrize(
    ("attributes", "kept", "words"),
    [
        ({"direction": "sideways"}, constants(), "expected direction forward, reverse, bidirectional, got 'sideways'"),
        ({"layout": 2}, constants(), "expected layout 0 or 1, got 2"),
        ({"layout": "1"}, constants(), "RNN: expected attribute layout to be of kind 'i'"),
        ({"activations": ["Tanh"] * 2}, constants(), "expected 1 activations, got 2"),
        ({"clip": np.nan}, constants(), "expected clip to be a number, got nan"),
        ({"hidden_size": 6}, constants(), r"expected W of shape \(1, 6, 3\), got \(1, 5, 3\)"),
        ({"hidden_size": 0}, constants(h=0), r"expected W of shape \(1, 0, 3\), got \(1, 0, 3\)"),
        ({"hidden_size": -5}, constants(), r"expected W of shape \(1, -5, 3\)"),
        ({"direction": "bidirectional"}, constants(), r"expected W of shape \(2, 5, 3\), got \(1, 5, 3\)"),
        ({}, [*constants()[:2], tensor(np.zeros((1, 9), "f4"), "B")], r"expected B of shape \(1, 10\), got \(1, 9\)"),
        ({}, [*constants()[:2], tensor(np.zeros((1, 10), "f8"), "B")], "expected W, R and B of one dtype"),
        ({}, [tensor(np.float32(1), n) for n in "WRB"], "RNN 'rnn': expected W of shape"),
        ({}, [tensor(np.zeros((1, 5, 5), "i8"), n) for n in "WRB"], "expected floating numbers for W, got int64"),
    ],
)
def test_a_node_that_does_not_fit_itself_is_malformed(tmp_path, attributes, kept, words):
    with pytest.raises(FileFormatError, match=words):
        rnncore.load(save(model([rnn(outputs=["", "y"], **attributes)], kept), tmp_path))


def test_attributes_that_no_rnn_has_may_change_it_and_are_refused(tmp_path):
    path = save(model([rnn(outputs=["", "y"], linear_before_reset=1)], constants()), tmp_path)
    with pytest.raises(RnncoreError, match="RNN 'rnn': unknown attributes \\['linear_before_reset'\\]"):
        rnncore.load(path)


def test_a_node_without_inputs_or_outputs_is_refused(tmp_path):
    for made in (rnn(inputs=[], outputs=["y"]), rnn(inputs=["", "W", "R"], outputs=["y"]), rnn(outputs=[])):
        assert not read(model([made], constants()).SerializeToString(), tmp_path) or not made.output


def test_a_name_that_is_no_text_is_malformed(tmp_path):
    data = save(model([rnn(outputs=["", "y"])], constants()), tmp_path).read_bytes()
    assert not read(data.replace(b"rnn", b"r\xffn"), tmp_path)


def test_a_long_row_of_nodes_is_read_or_refused_and_not_recursed_into(tmp_path):
    """Deeper than Python recurses, before, in and after the network."""
    before = [node("Identity", ["x" if k == 0 else f"b{k}"], f"b{k + 1}") for k in range(5000)]
    after = [node("Identity", ["Y" if k == 0 else f"a{k}"], f"a{k + 1}") for k in range(5000)]
    made = model([*before, rnn(["b5000", "W", "R", "B"], ["Y"]), *after], constants())
    assert read(made.SerializeToString(), tmp_path)
    inner = [node("Identity", ["V" if k == 0 else f"w{k}"], f"w{k + 1}") for k in range(5000)]
    made = model(
        [*inner, rnn(["x", "w5000", "R", "B"], ["y"])], [*constants()[1:], tensor(np.zeros((1, 5, 3), "f4"), "V")]
    )
    assert not read(made.SerializeToString(), tmp_path)


def test_a_file_larger_than_a_message_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LARGEST", 100)
    path = tmp_path / "x.onnx"
    path.write_bytes(bytes(101))
    with pytest.raises(FileFormatError, match="it has 101 bytes, and a message of ONNX has at most 100"):
        rnncore.load(path)


def test_more_nodes_than_any_graph_has_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MOST_NODES", 3)
    made = model([rnn(outputs=["", "y"]), *(node("Identity", ["y"], f"y{k}") for k in range(3))], constants())
    with pytest.raises(FileFormatError, match="its graph has 4 nodes, and at most 3 are read"):
        rnncore.load(save(made, tmp_path))


def test_a_file_must_be_a_real_one():
    with pytest.raises(io.UnsupportedOperation):
        decode(io.BytesIO(b""), Asked())
