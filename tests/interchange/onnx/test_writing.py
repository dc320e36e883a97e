"""Networks as ONNX graphs: what the runtimes make of them, and that they come back as they were."""

import importlib
import io

import numpy as np
import pytest

import rnncore
from rnncore.errors import ArgumentTypeError, BackendUnavailableError, InterchangeError
from rnncore.interchange.onnx import writing
from rnncore.interchange.portable import Portable
from tests.interchange.networks import network, reference
from tests.tools.rounding import agree

pytest.importorskip("onnx", reason="writes ONNX files")
from tests.interchange.onnx.graphs import onnx, run

SHAPES = [
    {},
    {"num_layers": 3},
    {"bidirectional": True},
    {"bidirectional": True, "num_layers": 2, "batch_first": True},
    {"num_layers": 2, "batch_first": True, "bias": False},
    {"hidden_size": [5, 4, 6]},
    {"hidden_size": [5, 4], "bidirectional": True, "batch_first": True},
]
PARAMETERS = [
    ("tanh", None, None),
    ("relu", None, None),
    ("sigmoid", None, None),
    ("identity", None, None),
    ("affine", 0.5, 0.25),
    ("leaky_relu", 0.3, None),
    ("leaky_relu", None, None),
    ("thresholded_relu", 0.25, None),
    ("scaled_tanh", 0.8, 1.5),
    ("hard_sigmoid", 0.3, 0.4),
    ("hard_sigmoid", None, None),
    ("elu", 0.7, None),
    ("softsign", None, None),
    ("softplus", None, None),
]


def model_of(portable):
    return rnncore.RNN.from_spec(portable.spec, portable.params, dtype=portable.dtype)


def called(spec, steps=6, rows=4, seed=1):
    """Input, initial states and their names in the graph."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, steps, 3) if spec.batch_first else (steps, rows, 3)).astype("f4")
    d = spec.num_directions
    h0 = [rng.standard_normal((d, rows, h)).astype("f4") for h in spec.hidden_sizes]
    if spec.uniform:
        return x, np.concatenate(h0), {"h0": np.concatenate(h0)}
    return x, h0, {f"h0_l{k}": a for k, a in enumerate(h0)}


def wanted(portable, x, h0=None, lengths=None):
    """Output and h_n in float64, of networks whose layers may differ in width."""
    if h0 is None or portable.spec.uniform:
        output, h_n = reference(portable, x, h0, lengths)
    else:
        params = {n: np.asarray(a, "f8") for n, a in portable.params.items()}
        rnn = rnncore.RNN.from_spec(portable.spec, params, backend="numpy", dtype="float64", kernel="reference")
        output, h_n = rnn(np.asarray(x, "f8"), [np.asarray(a, "f8") for a in h0], lengths=lengths)
    return output, [h_n] if portable.spec.uniform else list(h_n)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("options", [{}, {"h0": True}, {"lengths": True}, {"lengths": True, "h0": True}], ids=str)
def test_onnxruntime_computes_the_same_for_any_number_of_steps_and_rows(tmp_path, shape, options):
    portable = network(**shape)
    path = tmp_path / "rnn.onnx"
    model_of(portable).save(path, **options)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    for steps, rows in ((6, 4), (1, 1), (9, 2)):
        x, h0, feed = called(portable.spec, steps, rows)
        lengths = [steps, 0, 1, steps - 1][:rows] if options.get("lengths") else None
        h0, feed = (h0, feed) if options.get("h0") else (None, {})
        if lengths:
            feed["lengths"] = np.asarray(lengths, "i4")
        output, *h_n = run(path, x=x, **feed)
        want, ends = wanted(portable, x, h0, lengths)
        agree(output, want)
        for got, end in zip(h_n, ends, strict=True):
            agree(got, end)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("clip", [None, 0.75])
@pytest.mark.parametrize(("name", "alpha", "beta"), PARAMETERS)
def test_every_function_with_its_parameters_and_the_clip(tmp_path, name, alpha, beta, clip, bidirectional):
    function = rnncore.get_nonlinearity(name, alpha=alpha, beta=beta, clip=clip)
    portable = network(nonlinearity=function, num_layers=2, bidirectional=bidirectional)
    path = tmp_path / "rnn.onnx"
    model_of(portable).save(path)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    x, _, _ = called(portable.spec)
    output, h_n = run(path, x=x)
    want, (end,) = wanted(portable, x)
    agree(output, want)
    agree(h_n, end)
    assert rnncore.load(path).spec == portable.spec


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [*SHAPES, {"clip": 2.0, "nonlinearity": "relu"}], ids=str)
def test_a_network_comes_back_bit_for_bit(tmp_path, shape, dtype):
    portable = network(dtype=dtype, **shape)
    path = tmp_path / "rnn.onnx"
    for options in ({}, {"lengths": True, "h0": True}):
        model_of(portable).save(path, **options)
        back = rnncore.load(path).portable()  # a warning would be an error here: nothing is left out
        assert back.spec == portable.spec and back.dtype == dtype
        for name, values in portable.params.items():
            np.testing.assert_array_equal(back.params[name], values)
            assert back.params[name].dtype == values.dtype


def test_no_rows_are_no_error(tmp_path):
    portable = network(num_layers=2, bidirectional=True)
    path = tmp_path / "rnn.onnx"
    model_of(portable).save(path)
    output, h_n = run(path, x=np.zeros((6, 0, 3), "f4"))
    assert output.shape == (6, 0, 10) and h_n.shape == (4, 0, 5)


def test_no_node_is_given_a_length_of_0(tmp_path):
    """ONNX Runtime before 1.29 reads outside of its arrays then, which no result has to show."""
    path = tmp_path / "rnn.onnx"
    model_of(network(num_layers=2)).save(path, lengths=True)
    nodes = onnx.load(path).graph.node
    (longer,) = [n for n in nodes if n.op_type == "Max"]
    assert list(longer.input) == ["lengths", "one"]
    assert [n.input[4] for n in nodes if n.op_type == "RNN"] == 2 * list(longer.output)


def test_padding_is_never_seen(tmp_path):
    portable = network(num_layers=2, bidirectional=True)
    path = tmp_path / "rnn.onnx"
    model_of(portable).save(path, lengths=True)
    x, _, _ = called(portable.spec)
    lengths = [6, 0, 2, 5]
    for row, length in enumerate(lengths):
        x[length:, row] = np.nan
    output, h_n = run(path, x=x, lengths=np.asarray(lengths, "i4"))
    want, (end,) = wanted(portable, x, None, lengths)
    agree(output, want)
    agree(h_n, end)


def test_the_names_and_shapes_are_those_of_a_call(tmp_path):
    path = tmp_path / "rnn.onnx"

    def shapes(values):
        return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}

    model_of(network(num_layers=2, bidirectional=True, batch_first=True)).save(path, lengths=True, h0=True)
    graph = onnx.load(path).graph
    assert shapes(graph.input) == {"x": ["B", "T", 3], "h0": [4, "B", 5], "lengths": ["B"]}
    assert shapes(graph.output) == {"output": ["B", "T", 10], "h_n": [4, "B", 5]}
    model_of(network(hidden_size=[5, 4])).save(path, h0=True)
    graph = onnx.load(path).graph
    assert shapes(graph.input) == {"x": ["T", "B", 3], "h0_l0": [1, "B", 5], "h0_l1": [1, "B", 4]}
    assert shapes(graph.output) == {"output": ["T", "B", 4], "h_n_l0": [1, "B", 5], "h_n_l1": [1, "B", 4]}


def test_the_same_network_always_gives_the_same_bytes(tmp_path):
    paths = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for path in paths:
        model_of(network(num_layers=2)).save(path, lengths=True)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    made = onnx.load(paths[0])
    assert made.opset_import[0].version == writing.OPSET == 14 and made.ir_version == writing.IR_VERSION == 7


@pytest.mark.parametrize(
    ("options", "dtype", "words"),
    [
        (
            {"nonlinearity": (lambda z: z, lambda z: 1 + 0 * z)},
            "float32",
            "nonlinearity: expected one of ONNX's, got the custom",
        ),
        (
            {"clip": 0.1},
            "float64",
            r"clip: expected a number that ONNX's float32 attributes hold, got 0.1; the network",
        ),
        ({"clip": 1e300}, "float32", r"clip: expected a number that ONNX's float32 attributes hold, got 1e\+300"),
        ({"nonlinearity": "leaky_relu"}, "float64", "alpha: expected a number that ONNX's float32 .* got 0.01"),
    ],
)
def test_what_onnx_cannot_say_is_refused_by_name_and_nothing_is_written(tmp_path, options, dtype, words):
    portable = network(dtype=dtype, **options)
    with pytest.raises(InterchangeError, match=words):
        model_of(portable).save(tmp_path / "rnn.onnx")
    assert list(tmp_path.iterdir()) == []


def test_bfloat16_is_refused_as_runtimes_have_no_such_rnn():
    portable = network()
    with pytest.raises(InterchangeError, match=r"dtype: expected float16, float32, float64, as .* got bfloat16"):
        writing.encode(io.BytesIO(), Portable(portable.spec, portable.params, "bfloat16"))


def test_more_weights_than_a_message_holds_are_refused_before_they_are_copied():
    spec = rnncore.RNNSpec.make(3, 2**15, bias=False)
    big = {n: np.broadcast_to(np.float32(0), shape) for n, shape in spec.parameter_shapes().items()}
    with pytest.raises(InterchangeError, match=r"its weights have 429\d+ bytes, and a message of ONNX has at most"):
        writing.encode(io.BytesIO(), Portable(spec, big, "float32"))


def test_dropout_is_said_to_be_left_out(tmp_path):
    portable = network(num_layers=2, dropout=0.25)
    with pytest.warns(UserWarning, match="left out: dropout=0.25, which is for training") as caught:
        model_of(portable).save(tmp_path / "rnn.onnx")
    assert caught[0].filename == __file__
    assert rnncore.load(tmp_path / "rnn.onnx").spec.dropout == 0


def test_options_are_checked(tmp_path):
    rnn = model_of(network())
    with pytest.raises(ArgumentTypeError, match="lengths: expected True or False, got 1"):
        rnn.save(tmp_path / "rnn.onnx", lengths=1)
    with pytest.raises(ArgumentTypeError, match="save: unexpected option 'length'; it has lengths, h0; did you mean"):
        rnn.save(tmp_path / "rnn.onnx", length=True)


def test_without_the_library_the_command_that_installs_it_is_said(tmp_path, monkeypatch):
    portable = network()
    path = tmp_path / "rnn.onnx"
    model_of(portable).save(path)
    there = path.read_bytes()

    def missing(name):
        if name == "onnx":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return importlib.import_module(name)

    monkeypatch.setattr("rnncore.interchange.libraries.import_module", missing)
    with pytest.raises(BackendUnavailableError, match=r'^writing .onnx needs onnx: pip install "rnncore\[onnx\]"$'):
        model_of(portable).save(path)
    with pytest.raises(BackendUnavailableError, match=r'^reading .onnx needs onnx: pip install "rnncore\[onnx\]"$'):
        rnncore.load(path)
    assert path.read_bytes() == there


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_openvino_computes_the_same(tmp_path, shape):
    """With lengths only where the shapes are fixed: else OpenVINO takes every row to be whole, and says nothing."""
    openvino = pytest.importorskip("openvino", reason="compares with OpenVINO where it is installed")
    portable = network(**shape)
    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for lengths in (None, [7, 1, 0]):
        path = tmp_path / "rnn.onnx"
        model_of(portable).save(path, h0=True, lengths=lengths is not None)
        x, h0, feed = called(portable.spec, steps=7, rows=3)
        feed["x"] = x
        read = core.read_model(path)
        if lengths:
            feed["lengths"] = np.asarray(lengths, "i4")
            read.reshape({name: list(a.shape) for name, a in feed.items()})
        output, *h_n = core.compile_model(read, "CPU")(feed).to_tuple()
        want, ends = wanted(portable, x, h0, lengths)
        agree(output, want)
        for got, end in zip(h_n, ends, strict=True):
            agree(got, end)
