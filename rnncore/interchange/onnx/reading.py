"""The network in an ONNX graph: RNN nodes, each of which reads the output of the one below."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from rnncore.arguments import brief, check_bytes, one_of, shown
from rnncore.errors import ArgumentValueError, FileFormatError, InterchangeError
from rnncore.interchange.libraries import needed
from rnncore.interchange.onnx.graph import GRAPH, GRAPHS, OWN_DOMAINS, Graph, describe, moved
from rnncore.interchange.onnx.nodes import LENGTHS, STATE, Cell, X, is_cell
from rnncore.interchange.portable import Asked, Portable, assemble

__all__ = ["LARGEST", "decode"]

# Protocol buffers measure a message in 32 bits with a sign.
LARGEST = 2**31 - 1
# A parsed message is a copy of its bytes.
COPIES = 2
# Ten times what the largest graphs have. A node may be two bytes of the file, and takes a hundred times that here.
MOST_NODES = 100_000
NAMED = 6
# What may stand between an input of the graph and a node's initial state or lengths.
HANDED_ON = ("Identity", "Slice", "Split", "Squeeze", "Unsqueeze", "Reshape", "Transpose", "Cast")
# More of these than a graph has by itself make an unrolled network.
PRODUCTS, STEPS = ("MatMul", "Gemm"), ("Tanh", "Relu", "Sigmoid")
UNROLLED = 2


def decode(file: BinaryIO, asked: Asked) -> Portable:
    """Read the network in an ONNX graph.

    Parameters
    ----------
    file : BinaryIO
        Its external data must be in its own folder.
    asked : Asked
        ``name`` is that of an RNN node or of an output, of any layer of the network.

    Raises
    ------
    FileFormatError
        If the file is malformed. The caller adds the path.
    InterchangeError
        If it has no RNN node, or has one that no network of rnncore's can be; the message names it.
    ArgumentValueError
        If it has several networks, and none or another is asked for.
    """
    model, size = _model(file)
    try:
        graph = Graph(model.graph, os.path.dirname(os.path.abspath(file.name)), size)
        cells = [Cell(graph, k) for k, node in enumerate(graph.nodes) if is_cell(node)]
        if not cells:
            raise InterchangeError(_why_none(model))
        stacks = _stacks(cells)
        chosen = _chosen(stacks, asked)
        return _read(graph, chosen, asked)
    except UnicodeDecodeError as error:
        raise FileFormatError(f"it has a name that is not text: {error}") from error


def _model(file: BinaryIO) -> tuple[Any, int]:
    onnx = needed("onnx", "onnx", "reading .onnx")
    decode_error = needed("google.protobuf.message", "onnx", "reading .onnx").DecodeError
    size = os.fstat(file.fileno()).st_size
    if size > LARGEST:
        raise FileFormatError(
            f"it has {size} bytes, and a message of ONNX has at most {LARGEST}; more weights are external data"
        )
    check_bytes(file.name, size, COPIES)
    try:
        model = onnx.ModelProto.FromString(file.read())
    except decode_error as error:
        raise FileFormatError(f"it is no ONNX model: {brief(error)}") from error
    count = len(model.graph.node)
    if count > MOST_NODES:
        raise FileFormatError(f"its graph has {count} nodes, and at most {MOST_NODES} are read")
    if not model.HasField("graph") or not model.graph.node:
        raise FileFormatError("it is no ONNX model: it has no graph with nodes")
    return model, size


# --- networks of a graph ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stack:
    """RNN nodes from the bottom up."""

    cells: tuple[Cell, ...]
    apart: str = ""  # why it does not go on from another, if it could

    @property
    def label(self) -> str:
        """Name of the top node."""
        return self.cells[-1].label

    @property
    def names(self) -> set[str]:
        """The names that it can be asked for by."""
        own = {name for cell in self.cells for name in cell.names}
        graph = self.cells[-1].graph
        try:
            joined = {name for index in _joined(self) for name in graph.nodes[index].output}
            return own.union(joined, *(views for cell in self.cells for views in (cell.output_views, cell.state_views)))
        except (FileFormatError, InterchangeError):  # a network that cannot be read, and may not be asked for
            return own


def _stacks(cells: Sequence[Cell]) -> list[Stack]:
    """Join the nodes to networks: each reads another, which no further one reads, and computes the same function."""
    below: dict[int, Cell] = {}
    apart: dict[int, str] = {}
    by_input: dict[str, list[Cell]] = {}
    for cell in cells:
        by_input.setdefault(cell.graph.input_of(cell.index), []).append(cell)
    for lower in cells:
        above = [cell for name in _outputs_of(lower) for cell in by_input.get(name, ()) if _reads(cell, lower)]
        why = "it is read by several" if len(above) > 1 else ""
        for cell in above:
            reason = why or _difference(lower, cell)
            if reason:
                apart[cell.index] = f"{cell.label!r} reads {lower.label!r}, but {reason}"
            else:
                below[cell.index] = lower
    lowers = {cell.index for cell in below.values()}
    stacks = []
    for top in cells:
        if top.index in lowers:
            continue
        row = [top]
        while row[-1].index in below:
            row.append(below[row[-1].index])
        stacks.append(Stack(tuple(reversed(row)), apart.get(row[-1].index, "")))
    if not stacks:
        raise FileFormatError("its RNN nodes read each other in a circle")
    return stacks


def _outputs_of(cell: Cell) -> Iterable[str]:
    try:
        return cell.output_views
    except (FileFormatError, InterchangeError):
        return ()  # it cannot be read: said when it is asked for


def _reads(cell: Cell, lower: Cell) -> bool:
    try:
        return lower.output_views[cell.input(X)] == lower.sequence(cell.batch_first)
    except (FileFormatError, InterchangeError):
        return False  # as above


def _difference(lower: Cell, upper: Cell) -> str:
    """Why two nodes are not layers of one network, or ""."""
    try:
        faults = [
            what
            for what, a, b in (
                ("directions", lower.directions, upper.directions),
                ("activations", lower.function, upper.function),
                ("dtypes", lower.dtype, upper.dtype),
                ("lengths", lower.input(LENGTHS), upper.input(LENGTHS)),
            )
            if a != b
        ]
    except (FileFormatError, InterchangeError) as error:
        return str(error)
    return f"their {' and '.join(faults)} differ" if faults else ""


def _chosen(stacks: Sequence[Stack], asked: Asked) -> Stack:
    if asked.name is not None:
        fitting = [stack for stack in stacks if asked.name in stack.names]
        if not fitting:
            one_of("name", asked.name, [stack.label for stack in stacks])
        return fitting[0]
    if len(stacks) == 1:
        return stacks[0]
    apart = "; ".join(stack.apart for stack in stacks if stack.apart)
    raise ArgumentValueError(
        f"name: expected one of {brief(', '.join(shown(stack.label) for stack in stacks))}, the networks in the file, got "
        f"None{'; ' if apart else ''}{brief(apart)}"
    )


# --- one network ------------------------------------------------------------------------------------------------------


def _read(graph: Graph, stack: Stack, asked: Asked) -> Portable:
    layers = [cell.read() for cell in stack.cells]
    function = stack.cells[0].function
    own = {cell.index for cell in stack.cells}
    for cell in stack.cells:
        own |= graph.ancestors(cell.input(place) for place in (1, 2, 3))
    left_out = []
    for cell in stack.cells:
        left_out += _state(graph, cell, own)
    left_out += _lengths(graph, stack.cells[0], own)
    batch_first = _batch_first(graph, stack.cells[0], own)
    left_out += _outputs(graph, stack, batch_first, own)
    left_out += _others(graph, own)
    return assemble(
        layers,
        nonlinearity=asked.settle("nonlinearity", function),
        batch_first=asked.settle("batch_first", batch_first),
        dtype=stack.cells[0].dtype,
        left_out=left_out,
    )


def _state(graph: Graph, cell: Cell, own: set[int]) -> list[str]:
    """What is left out of a node's initial state: zeros and an input of the graph are what rnncore's h0 is."""
    name = cell.input(STATE)
    if not name:
        return []
    if graph.is_zero(name) or _handed_on(graph, name):
        own |= graph.ancestors([name])
        return []
    kind = "computed" if graph.constant(name) is None else "constant"
    if kind == "constant":
        own |= graph.ancestors([name])
    return [f"the {kind} initial state {shown(name)} of {shown(cell.label)}, which h0 can give"]


def _lengths(graph: Graph, cell: Cell, own: set[int]) -> list[str]:
    name = cell.input(LENGTHS)
    if not name:
        return []
    given = name
    longer = graph.operation(graph.maker(name))
    if longer is not None and longer.kind == "Max" and len(longer.inputs) == 2:  # for rows of length 0
        least = graph.constant(longer.inputs[1])
        given = longer.inputs[0] if least is not None and least.size and least.max() <= 1 else name
    if _handed_on(graph, given):
        own |= graph.ancestors([name])
        return []
    if graph.constant(name) is not None:
        own |= graph.ancestors([name])
    return [f"the lengths {shown(name)} that the graph has of its own"]


def _handed_on(graph: Graph, name: str) -> bool:
    """Whether a name is an input of the graph, or a part of one."""
    found = graph.source(name, HANDED_ON)
    return found in graph.inputs and graph.maker(found) is None and graph.constant(found) is None


def _batch_first(graph: Graph, cell: Cell, own: set[int]) -> bool:
    """Whether the network's input is (B, T, I), by the node's layout and the transposition before it."""
    name, batch_first = cell.input(X), cell.batch_first
    if not name:
        raise FileFormatError(f"{shown(cell.label)} has no input")
    seen = set()
    while name not in seen:
        seen.add(name)
        operation = graph.operation(graph.maker(name))
        if operation is None or operation.kind not in ("Identity", "Dropout", "Transpose") or not operation.inputs:
            break
        axes = moved(graph, operation, (("a",), ("b",), ("I",)), {})
        if axes is None or axes[-1] != ("I",):
            break
        batch_first ^= axes[0] == ("b",)
        own.add(operation.index)
        name = operation.inputs[0]
    return batch_first


def _outputs(graph: Graph, stack: Stack, batch_first: bool, own: set[int]) -> list[str]:
    """Take in the nodes that give output and h_n their shapes."""
    left_out = []
    for lower in stack.cells[:-1]:
        _take(graph, lower.output_views, own)
        outer = [name for name in lower.output_views if name in graph.outputs]
        left_out += [f"the output {shown(name)} of a lower layer" for name in outer]
    top = stack.cells[-1]
    _take(graph, top.output_views, own)
    found = top.output_views.values()
    if top.sequence(not batch_first) in found and top.sequence(batch_first) not in found:
        left_out.append(f"the axes of its output: here they are {'(B, T, .)' if batch_first else '(T, B, .)'}")
    for cell in stack.cells:
        _take(graph, cell.state_views, own)
    own.update(_joined(stack))
    return left_out


def _joined(stack: Stack) -> Iterator[int]:
    """The nodes that make one array of the last states of all layers."""
    graph = stack.cells[0].graph
    states = [cell.state_views for cell in stack.cells]
    for index in (index for name in states[0] for index in graph.readers(name)):
        operation = graph.operation(index)
        if operation is None or operation.kind != "Concat" or len(operation.inputs) != len(states):
            continue
        if all(name in views for name, views in zip(operation.inputs, states, strict=True)):
            yield index


def _take(graph: Graph, views: dict[str, Any], own: set[int]) -> None:
    for name in list(views)[1:]:
        index = graph.maker(name)
        if index is not None:
            own.add(index)
            own |= graph.ancestors(given for given in graph.nodes[index].input if given not in views)


def _others(graph: Graph, own: set[int]) -> list[str]:
    """The nodes outside the network, but for constants."""
    outside = [node for k, node in enumerate(graph.nodes) if k not in own and node.op_type != "Constant"]
    if not outside:
        return []
    more = len(outside) - NAMED
    said = ", ".join(map(describe, outside[:NAMED])) + (f" and {more} more" if more > 0 else "")
    return [f"other nodes of the graph: {said}"]


# --- no network -------------------------------------------------------------------------------------------------------


def _why_none(model: Any) -> str:
    """Why a graph without RNN nodes is no network, by what it has instead."""
    nodes = model.graph.node
    counts = Counter(node.op_type for node in nodes)
    gated = [kind for kind in ("LSTM", "GRU") if counts[kind]]
    if gated:
        return (
            f"expected RNN nodes in the graph, got {' and '.join(gated)}: rnncore has the plain recurrent network alone"
        )
    foreign = [node for node in nodes if node.domain not in OWN_DOMAINS]
    inner = [node for node in nodes if any(a.type in (GRAPH, GRAPHS) for a in node.attribute)]
    if foreign or inner:
        return (
            f"expected RNN nodes in the graph, got none; the insides of {', '.join(map(describe, (*foreign, *inner)[:NAMED]))} "
            "are not read: of functions and other domains, and of If, Loop and Scan"
        )
    if sum(counts[kind] for kind in PRODUCTS) >= UNROLLED and sum(counts[kind] for kind in STEPS) >= UNROLLED:
        said = ", ".join(f"{counts[kind]} {kind}" for kind in (*PRODUCTS, "Add", *STEPS) if counts[kind])
        return (
            f"expected RNN nodes in the graph, got none, but {said}: a network that was unrolled for one number of steps, as "
            "torch.onnx.export does it by default; export it with dynamo=False, which writes RNN nodes, or convert the module "
            "itself with rnncore.from_module"
        )
    return f"expected RNN nodes in the graph, got {brief(', '.join(sorted(counts)))}"
