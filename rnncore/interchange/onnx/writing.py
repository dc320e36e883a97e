"""A network as an ONNX graph: one RNN node for each layer, any number of steps and rows."""

from __future__ import annotations

import warnings
from typing import Any, BinaryIO

import numpy as np

from rnncore.arguments import digits, flag
from rnncore.errors import InterchangeError
from rnncore.interchange.libraries import needed
from rnncore.interchange.onnx.functions import single, written
from rnncore.interchange.portable import Direction, Portable, layers_of
from rnncore.typing import Host

__all__ = ["IR_VERSION", "OPSET", "OPTIONS", "encode"]

OPTIONS = ("lengths", "h0")
# The RNN of version 14 has been read since 2021, and is the same up to 21; 7 is the version of the format that came with it.
OPSET, IR_VERSION = 14, 7
# Protocol buffers measure a message in 32 bits with a sign; names, nodes and sizes are beside the weights.
LARGEST = 2**31 - 1 - 2**20
DTYPES = ("float16", "float32", "float64")
STEPS, ROWS = "T", "B"


def encode(file: BinaryIO, network: Portable, *, lengths: bool = False, h0: bool = False) -> None:
    """Write a network as an ONNX graph.

    Its inputs are ``x``, and ``lengths`` and ``h0`` if they are asked for; its outputs ``output`` and ``h_n``, all of them in
    the shapes of a call of :class:`rnncore.RNN`. Where the layers differ in width, ``h0_l0``, ``h0_l1``, ... and ``h_n_l0``,
    ... are one for each layer.

    Parameters
    ----------
    file : BinaryIO
    network : Portable
        Of float16, float32 or float64.
    lengths : bool
        Whether the graph takes the valid steps of each sequence, int32 (B,). They may be 0, which runtimes do not agree on: the
        nodes have no length below 1, and the graph itself says the output and the last state of such a row.
    h0 : bool
        Whether it takes the initial states, which are zero otherwise.

    Raises
    ------
    InterchangeError
        If the graph cannot be the same network: its function is custom, its dtype bfloat16, its clip no float32.

    Warns
    -----
    UserWarning
        Of dropout, which a graph for inference has none of.
    """
    flag("lengths", lengths), flag("h0", h0)
    spec, dtype = network.spec, network.dtype
    if dtype not in DTYPES:
        raise InterchangeError(f"dtype: expected {', '.join(DTYPES)}, as ONNX's RNN before version 22, got {dtype}")
    size = sum(array.nbytes for array in network.params.values())
    if size > LARGEST:
        raise InterchangeError(f"its weights have {digits(size)} bytes, and a message of ONNX has at most {LARGEST}")
    activation = _activation(network)
    onnx = needed("onnx", "onnx", "writing .onnx")
    graph = _Writer(onnx, network, activation, lengths, h0).graph()
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="rnncore"
    )
    if spec.dropout:
        warnings.warn(
            f"left out: dropout={spec.dropout}, which is for training", UserWarning, stacklevel=6
        )  # RNN.save's caller
    file.write(model.SerializeToString(deterministic=True))


def _activation(network: Portable) -> dict[str, Any]:
    """Attributes of the function, for every direction."""
    spec = network.spec
    name, alpha, beta = written(spec.nonlinearity, network.dtype)
    count = spec.num_directions
    found: dict[str, Any] = {"activations": [name] * count}
    if alpha:
        found["activation_alpha"] = alpha * count
    if beta:
        found["activation_beta"] = beta * count
    if spec.nonlinearity.clip is not None:
        found["clip"] = single("clip", spec.nonlinearity.clip, network.dtype)
    return found


class _Writer:
    """The nodes, constants, inputs and outputs of a graph while it is made."""

    def __init__(self, onnx: Any, network: Portable, activation: dict[str, Any], lengths: bool, h0: bool) -> None:
        self.onnx, self.network, self.activation = onnx, network, activation
        self.kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(network.dtype))
        self.lengths, self.h0 = lengths, h0
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        spec = network.spec
        # By layer the names of its initial and its last state, which are one array in and out where the widths are the same.
        self.joined = spec.uniform and spec.num_layers > 1
        layers = range(spec.num_layers)
        self.first = [f"h0_l{k}" if spec.num_layers > 1 else "h0" for k in layers]
        self.last = [f"h_n_l{k}" if spec.num_layers > 1 else "h_n" for k in layers]

    def graph(self) -> Any:
        """Make the graph."""
        spec = self.network.spec
        above = "x"
        if spec.batch_first:
            above = self.node("Transpose", ["x"], "x_time_first", perm=[1, 0, 2])
        if self.lengths:
            empty = self.node("Equal", ["lengths", self.constant("zero", np.asarray(0, np.int32))], "empty")
            self.node("Unsqueeze", [empty, self.constant("width_axis", np.asarray([1]))], "empty_rows")
            # Runtimes read outside of their arrays for a length of 0: such a row takes one step, which nobody sees.
            self.node("Max", ["lengths", self.constant("one", np.asarray(1, np.int32))], "steps")
        if self.h0 and self.joined:
            sizes = self.constant("h0_sizes", np.full(spec.num_layers, spec.num_directions, np.int64))
            self.nodes.append(self.onnx.helper.make_node("Split", ["h0", sizes], self.first, "h0_split", axis=0))
        for k, layer in enumerate(layers_of(self.network)):
            above = self.layer(k, layer, above)
        if self.lengths:
            name = "output_time_first" if spec.batch_first else "output"
            above = self.node("Where", ["empty_rows", self.zero(), above], name)
        if spec.batch_first:
            self.node("Transpose", [above], "output", perm=[1, 0, 2])
        if self.joined:
            self.node("Concat", self.last, "h_n", axis=0)
        return self.onnx.helper.make_graph(self.nodes, "rnncore", self.inputs(), self.outputs(), self.constants)

    def layer(self, k: int, layer: list[Direction], above: str) -> str:
        """Add a layer that reads `above`, and return the name of its output (T, B, D*H)."""
        spec = self.network.spec
        d, h = spec.num_directions, spec.hidden_sizes[k]
        given = [
            above,
            self.constant(f"weight_ih_l{k}", np.stack([part.weight_ih for part in layer])),
            self.constant(f"weight_hh_l{k}", np.stack([part.weight_hh for part in layer])),
        ]
        if spec.bias:
            rows = [np.concatenate([b for b in (part.bias_ih, part.bias_hh) if b is not None]) for part in layer]
            given.append(self.constant(f"bias_l{k}", np.stack(rows)))
        else:
            given.append("")
        given += ["steps" if self.lengths else "", self.first[k] if self.h0 else ""]
        while not given[-1]:
            given.pop()
        direction = "bidirectional" if d == 2 else "forward"
        made = [f"states_l{k}", f"ended_l{k}" if self.lengths else self.last[k]]
        self.nodes.append(
            self.onnx.helper.make_node(
                "RNN", given, made, f"rnn_l{k}", direction=direction, hidden_size=h, **self.activation
            )
        )
        if self.lengths:
            start = self.first[k] if self.h0 else self.zero()
            self.node("Where", ["empty_rows", start, made[1]], self.last[k])
        top = k == spec.num_layers - 1
        name = "output" if top and not spec.batch_first and not self.lengths else f"output_l{k}"
        if d == 1:
            return self.node("Squeeze", [made[0], self.constant("direction_axis", np.asarray([1]))], name)
        side = self.node("Transpose", made[:1], f"states_rows_first_l{k}", perm=[0, 2, 1, 3])
        # Not -1 for the last size: of an array with no rows it could be any.
        return self.node("Reshape", [side, self.constant(f"joined_l{k}", np.asarray([0, 0, d * h]))], name)

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node with one output, and return its name."""
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [output], f"{kind.lower()}_{output}", **attributes))
        return output

    def constant(self, name: str, values: Host) -> str:
        """Add a constant if it is new, and return its name."""
        if all(known.name != name for known in self.constants):
            self.constants.append(self.onnx.numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def zero(self) -> str:
        """Add a number 0 of the network's dtype, and return its name."""
        return self.constant("no_state", np.zeros((), self.network.dtype))

    def inputs(self) -> list[Any]:
        """What the graph takes."""
        found = [self.value("x", self.sequence(self.network.spec.input_size))]
        if self.h0:
            found += self.states("h0", self.first)
        if self.lengths:
            kind = self.onnx.TensorProto.INT32
            found.append(self.onnx.helper.make_tensor_value_info("lengths", kind, [ROWS]))
        return found

    def outputs(self) -> list[Any]:
        """What the graph gives."""
        spec = self.network.spec
        whole = self.value("output", self.sequence(spec.num_directions * spec.hidden_sizes[-1]))
        return [whole, *self.states("h_n", self.last)]

    def states(self, joined: str, names: list[str]) -> list[Any]:
        """The initial or the last states."""
        spec = self.network.spec
        d = spec.num_directions
        if self.joined:
            return [self.value(joined, [d * spec.num_layers, ROWS, spec.hidden_sizes[0]])]
        return [self.value(name, [d, ROWS, h]) for name, h in zip(names, spec.hidden_sizes, strict=True)]

    def sequence(self, features: int) -> list[Any]:
        """Shape of the input or the output."""
        return [ROWS, STEPS, features] if self.network.spec.batch_first else [STEPS, ROWS, features]

    def value(self, name: str, shape: list[Any]) -> Any:
        """An array that goes in or out."""
        return self.onnx.helper.make_tensor_value_info(name, self.kind, shape)
