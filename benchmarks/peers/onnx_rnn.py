"""ONNX Runtime's RNN operator, one node for each layer; forward only, because the runtime has no gradients."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from benchmarks.case import Numbers, Problem
from benchmarks.peers import Prepared, Unsupported

OPSET, IR_VERSION = 14, 8  # the RNN operator since 2021, which every runtime reads


def rnn(problem: Problem) -> Prepared:
    """A session with default options, except the number of threads."""
    if problem.case.dtype != "float32":
        raise Unsupported("its RNN takes float32 only")
    onnxruntime: Any = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = problem.case.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(_model(problem), options, providers=["CPUExecutionProvider"])
    feeds = {"x": problem.x, "h0": problem.h0[:, None]}

    def forward() -> Any:
        return session.run(None, feeds)

    def read(found: Any) -> Numbers:
        output, *last = found
        return {"output": output, "h_n": np.concatenate(last)}

    return Prepared(forward, None, read)


def _model(problem: Problem) -> bytes:
    onnx: Any = importlib.import_module("onnx")
    helper, of = onnx.helper, onnx.numpy_helper.from_array
    case = problem.case
    nodes, constants = [], [of(np.asarray([1]), "axis")]
    below = "x"
    for k in range(case.layers):
        w_ih, w_hh, b_ih, b_hh = problem.layer(k)
        constants += [of(w_ih[None], f"w{k}"), of(w_hh[None], f"r{k}"), of(np.concatenate([b_ih, b_hh])[None], f"b{k}")]
        constants.append(of(np.asarray(k), f"index{k}"))
        nodes += [
            helper.make_node("Gather", ["h0", f"index{k}"], [f"first{k}"], axis=0),
            helper.make_node(
                "RNN",
                [below, f"w{k}", f"r{k}", f"b{k}", "", f"first{k}"],
                [f"all{k}", f"last{k}"],
                hidden_size=case.width,
                activations=[case.nonlinearity.capitalize()],
            ),
            helper.make_node("Squeeze", [f"all{k}", "axis"], [f"states{k}"]),
        ]
        below = f"states{k}"
    real = onnx.TensorProto.FLOAT
    inputs = [
        helper.make_tensor_value_info("x", real, list(problem.x.shape)),
        helper.make_tensor_value_info("h0", real, [case.layers, 1, case.batch, case.width]),
    ]
    outputs = [helper.make_tensor_value_info(below, real, list(problem.x.shape))]
    outputs += [
        helper.make_tensor_value_info(f"last{k}", real, [1, case.batch, case.width]) for k in range(case.layers)
    ]
    graph = helper.make_graph(nodes, "rnn", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = IR_VERSION
    serialized: bytes = model.SerializeToString()
    return serialized
