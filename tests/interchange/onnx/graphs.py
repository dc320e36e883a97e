"""Graphs made by hand, in the file's own terms, and their results in onnxruntime."""

import numpy as np
import pytest

REASON = "a test of ONNX files"
onnx = pytest.importorskip("onnx", reason=REASON)
helper = onnx.helper


def weights(d=1, h=5, i=3, dtype="float32", seed=0):
    """W, R and B of an RNN node."""
    rng = np.random.default_rng(seed)
    shapes = ((d, h, i), (d, h, h), (d, 2 * h))
    return [(rng.standard_normal(s) / (2 * np.sqrt(s[-1]))).astype(dtype) for s in shapes]


def tensor(values, name):
    return onnx.numpy_helper.from_array(np.asarray(values), name)


def constants(d=1, h=5, i=3, dtype="float32", seed=0, suffix=""):
    """The same as initializers W, R and B."""
    return [tensor(a, n + suffix) for a, n in zip(weights(d, h, i, dtype, seed), "WRB", strict=True)]


def model(nodes, initializers=(), inputs=("x",), outputs=("y",), opset=14):
    """A model with inputs and outputs whose shapes nobody says."""
    given, made = (
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in names] for names in (inputs, outputs)
    )
    graph = helper.make_graph(list(nodes), "g", given, made, list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)


def rnn(inputs=("x", "W", "R", "B"), outputs=("Y", "Y_h"), name="rnn", **attributes):
    return helper.make_node("RNN", list(inputs), list(outputs), name, **{"hidden_size": 5, **attributes})


def node(kind, inputs, outputs, **attributes):
    return helper.make_node(kind, list(inputs), [outputs] if isinstance(outputs, str) else list(outputs), **attributes)


def save(made, folder, name="x.onnx"):
    path = folder / name
    path.write_bytes(made.SerializeToString())
    return path


def run(path, **feed):
    """What onnxruntime makes of a file."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="runs ONNX files")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {name: np.asarray(a) for name, a in feed.items()})
