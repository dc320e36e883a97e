"""An ONNX graph: which node makes a name and which read it, its constants, and tensors that are views of another."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from rnncore.arguments import brief, elements, shown
from rnncore.errors import FileFormatError
from rnncore.interchange.onnx.tensors import array, check_texts
from rnncore.typing import Host

__all__ = ["Axes", "Graph", "attribute", "attributes", "describe", "label", "moved"]

# The axes of a view, each a tuple of names of sizes: ("T",), or ("D", "H") where both are one axis; () has size 1.
Axes: TypeAlias = tuple[tuple[str, ...], ...]
# A size, or the file's name for it where it is free.
Size: TypeAlias = int | str | bytes | None

# By onnx.AttributeProto.AttributeType: the field.
ATTRIBUTES = {1: "f", 2: "i", 3: "s", 4: "t", 5: "g", 6: "floats", 7: "ints", 8: "strings", 10: "graphs"}
FLOAT, INT, STRING, TENSOR, GRAPH, FLOATS, INTS, STRINGS, GRAPHS = ATTRIBUTES
OWN_DOMAINS = ("", "ai.onnx")
# Operations between a constant and what reads it; a file's own graph may go in a circle.
DEPTH = 200
# Of these the first input holds all numbers of the output.
SAME_NUMBERS = ("Identity", "Transpose", "Unsqueeze", "Squeeze", "Reshape")
ZERO_IF_INPUT_IS = (*SAME_NUMBERS, "Slice", "Expand", "Split", "Cast")
# How many times the file's bytes all folded constants may have, beside as many in any case.
FOLDED, FOLDED_ANYWAY = 4, 2**20


@dataclass(frozen=True)
class Operation:
    """A node of ONNX's own, with its attributes of the kinds that are known here."""

    index: int
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


class Graph:
    """A graph of the file.

    Parameters
    ----------
    graph : onnx.GraphProto
    folder : str
        Where external data must be.
    size : int
        Bytes of the file, which bound those of folded constants.

    Raises
    ------
    FileFormatError
        If two nodes make one name, or a name is no text.
    """

    def __init__(self, graph: Any, folder: str, size: int) -> None:
        self.nodes = list(graph.node)
        check_texts(
            *(part.name for kind in (graph.input, graph.output, graph.value_info, graph.initializer) for part in kind)
        )
        self.inputs = {value.name: value for value in graph.input}
        self._values = {value.name: value for kind in (graph.value_info, graph.output, graph.input) for value in kind}
        self.outputs = [value.name for value in graph.output]
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._folder = folder
        self._left = FOLDED * size + FOLDED_ANYWAY
        self._known: dict[str, Host | None] = {}
        self._maker: dict[str, int] = {}
        self._readers: dict[str, list[int]] = {}
        for k, node in enumerate(self.nodes):
            check_texts(
                node.name, node.op_type, node.domain, *node.input, *node.output, *(a.name for a in node.attribute)
            )
            for name in node.output:
                if name and name in self._maker:
                    raise FileFormatError(f"expected one node to make {shown(name)}, got two")
                self._maker[name] = k
            for name in dict.fromkeys(node.input):
                self._readers.setdefault(name, []).append(k)

    def maker(self, name: str) -> int | None:
        """Index of the node that makes a name, or None."""
        return self._maker.get(name) if name else None

    def readers(self, name: str) -> list[int]:
        """Indices of the nodes that read a name."""
        return self._readers.get(name, [])

    def input_of(self, index: int) -> str:
        """Name of a node's first input; "" where it has none."""
        return next(iter(self.nodes[index].input), "")

    def operation(self, index: int | None) -> Operation | None:
        """The node as an operation, or None if it is of another domain."""
        node = None if index is None else self.nodes[index]
        if index is None or node is None or node.domain not in OWN_DOMAINS:
            return None
        return Operation(index, node.op_type, tuple(node.input), tuple(node.output), attributes(node))

    def source(self, name: str, kinds: Collection[str]) -> str:
        """The name that a name comes from by the first inputs of operations of some kinds."""
        seen = set()
        while name not in seen:
            seen.add(name)
            operation = self.operation(self.maker(name))
            if operation is None or operation.kind not in kinds or not operation.inputs:
                break
            name = operation.inputs[0]
        return name

    def ancestors(self, names: Iterable[str]) -> set[int]:
        """Indices of all nodes that the names depend on."""
        found: set[int] = set()
        rest = list(names)
        while rest:
            index = self.maker(rest.pop())
            if index is not None and index not in found:
                found.add(index)
                rest.extend(self.nodes[index].input)
        return found

    def constant(self, name: str, depth: int = 0) -> Host | None:
        """The numbers of a constant, or None where the name is none, or not by the few operations that are folded.

        Raises
        ------
        FileFormatError, InterchangeError
        """
        if name not in self._known:
            if depth > DEPTH:
                raise FileFormatError(f"{shown(name)} depends on more than {DEPTH} operations in a row, or on itself")
            self._known[name] = self._folded(name, depth)
        return self._known[name]

    def is_zero(self, name: str) -> bool:
        """Whether all numbers of a tensor are zero by the way it is made, whatever its shape is."""
        rest, seen = [name], set()
        while rest:
            here = rest.pop()
            if here in seen:
                continue
            seen.add(here)
            operation = self.operation(self.maker(here))
            known = self.constant(here)
            if known is not None:
                if _nonzero(known):
                    return False
            elif operation is None:
                return False
            elif operation.kind == "ConstantOfShape":
                value = attribute(operation, "value", TENSOR)
                if value is not None and _nonzero(array(value, self._folder)):
                    return False
            elif operation.kind in ZERO_IF_INPUT_IS:
                rest.extend(operation.inputs[:1])
            elif operation.kind == "Concat":
                rest.extend(operation.inputs)
            else:
                return False
        return True

    def views(self, name: str, axes: Axes, sizes: Mapping[str, Size]) -> dict[str, Axes]:
        """All names that are views of this one, with their axes, the name itself first."""
        found = {name: axes}
        rest = [name]
        while rest:
            here = rest.pop()
            for index in self.readers(here):
                operation = self.operation(index)
                if operation is None or operation.inputs[0] != here:
                    continue
                made = next(iter(operation.outputs), "")
                kept = moved(self, operation, found[here], sizes)
                if made and kept is not None and made not in found:
                    found[made] = kept
                    rest.append(made)
        return found

    def shape(self, name: str) -> list[Size] | None:
        """The shape that the file says of a name: a number or a name for each axis, or None; None where it says no shape."""
        value = self._values.get(name)
        if value is None or not value.type.tensor_type.HasField("shape"):
            return None
        axes = value.type.tensor_type.shape.dim
        return [axis.dim_value if axis.HasField("dim_value") else axis.dim_param or None for axis in axes]

    def integers(self, operation: Operation, name: str, place: int) -> list[int] | None:
        """Integers of an attribute, or in newer versions of an input; None where there are none or they are no constants."""
        if name in operation.attributes:
            return list(attribute(operation, name, INTS))
        given = operation.inputs[place] if len(operation.inputs) > place else ""
        known = self.constant(given) if given else None
        return None if known is None or known.dtype.kind != "i" else [int(n) for n in known.reshape(-1)]

    def _folded(self, name: str, depth: int) -> Host | None:
        if name in self._tensors:
            return array(self._tensors[name], self._folder)
        operation = self.operation(self.maker(name))
        if operation is None or not operation.outputs or operation.outputs[0] != name:
            return None
        if operation.kind == "Constant":
            return self._given(operation)
        if operation.kind not in (*SAME_NUMBERS, "Concat", "Slice") or not operation.inputs:
            return None
        count = len(operation.inputs) if operation.kind == "Concat" else 1
        parts = [self.constant(given, depth + 1) for given in operation.inputs[:count]]
        known = [part for part in parts if part is not None]
        if len(known) != len(parts):
            return None
        try:
            return self._computed(operation, known)
        except FileFormatError:
            raise
        except (ValueError, TypeError, IndexError, OverflowError) as error:
            raise FileFormatError(f"{describe(self.nodes[operation.index])}: {brief(error)}") from error

    def _given(self, operation: Operation) -> Host | None:
        values = operation.attributes
        if "value" in values:
            return array(attribute(operation, "value", TENSOR), self._folder)
        kinds = {"value_float": FLOAT, "value_floats": FLOATS, "value_int": INT, "value_ints": INTS}
        for name, kind in kinds.items():
            if name in values:
                dtype = np.float32 if "float" in name else np.int64
                return np.asarray(attribute(operation, name, kind), dtype)
        return None

    def _computed(self, operation: Operation, parts: list[Host]) -> Host | None:
        first = parts[0]
        if operation.kind == "Identity":
            return first
        if operation.kind == "Transpose":
            return first.transpose(attribute(operation, "perm", INTS, None))
        if operation.kind == "Concat":
            if len({part.dtype for part in parts}) != 1:
                raise ValueError("expected tensors of one type")
            self._left -= sum(part.nbytes for part in parts)
            if self._left < 0:
                raise FileFormatError("its constants, put together, hold many times what the file does")
            return np.concatenate(parts, attribute(operation, "axis", INT, 1))
        if operation.kind == "Slice":
            return self._sliced(operation, first)
        if operation.kind == "Reshape":
            shape = self.integers(operation, "shape", 1)
            if shape is None:
                return None
            keep = not attribute(operation, "allowzero", INT, 0)
            return first.reshape([first.shape[k] if n == 0 and keep else n for k, n in enumerate(shape)])
        axes = self.integers(operation, "axes", 1)
        if operation.kind == "Unsqueeze":
            return None if axes is None else np.expand_dims(first, tuple(axes))
        return first.squeeze(None if axes is None else tuple(axes))

    def _sliced(self, operation: Operation, first: Host) -> Host | None:
        starts, ends = (self.integers(operation, name, place) for name, place in (("starts", 1), ("ends", 2)))
        if starts is None or ends is None:
            return None
        axes = self.integers(operation, "axes", 3) or list(range(len(starts)))
        steps = self.integers(operation, "steps", 4) or [1] * len(starts)
        chosen = [slice(None)] * first.ndim
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            chosen[axis] = slice(start, end, step)  # Python limits them to the axis as ONNX does
        return first[tuple(chosen)]


def moved(graph: Graph, operation: Operation, axes: Axes, sizes: Mapping[str, Size]) -> Axes | None:
    """Axes of the output of an operation that moves no number within its array, or None if it is another operation."""
    if operation.kind == "Identity":
        return axes
    if operation.kind == "Dropout":
        training = operation.inputs[2] if len(operation.inputs) > 2 else ""
        return axes if not training or graph.is_zero(training) else None
    if operation.kind == "Transpose":
        perm = attribute(operation, "perm", INTS, None)
        perm = list(range(len(axes)))[::-1] if perm is None else perm
        return tuple(axes[k] for k in perm) if sorted(perm) == list(range(len(axes))) else None
    if operation.kind in ("Squeeze", "Unsqueeze"):
        places = graph.integers(operation, "axes", 1)
        if places is None:
            return None
        rank = len(axes) + (len(places) if operation.kind == "Unsqueeze" else 0)
        chosen = {k + rank if k < 0 else k for k in places}
        if len(chosen) != len(places) or not chosen <= set(range(rank)):
            return None
        if operation.kind == "Unsqueeze":
            kept = iter(axes)
            return tuple(() if k in chosen else next(kept) for k in range(rank))
        return None if any(axes[k] for k in chosen) else tuple(a for k, a in enumerate(axes) if k not in chosen)
    return _joined(graph, operation, axes, sizes) if operation.kind == "Reshape" else None


def _joined(graph: Graph, operation: Operation, axes: Axes, sizes: Mapping[str, Size]) -> Axes | None:
    """Axes after a Reshape that makes one of the last two: by its constant shape, or by what the file says of the result."""
    shape: Sequence[Size] | None = graph.integers(operation, "shape", 1)
    if shape is None:
        shape = graph.shape(next(iter(operation.outputs), ""))
    if shape is None or len(axes) < 2 or len(shape) != len(axes) - 1:
        return None
    last = (*axes[-2], *axes[-1])
    size = _size(last, sizes)
    # A size of 0 is the same as before; -1 is what the others leave, and there is one at most.
    open_ends = [n for n, axis in zip(shape, axes[:-2], strict=False) if n != 0 and n != _size(axis, sizes)]
    fits = (not open_ends and shape[-1] in (-1, size)) or (open_ends == [-1] and shape[-1] == size)
    return (*axes[:-2], last) if fits and size is not None else None


def _size(axis: tuple[str, ...], sizes: Mapping[str, Size]) -> Size:
    """Size of an axis, or None where it is not known or the file has no name for it."""
    if len(axis) == 1:
        return sizes.get(axis[0]) or None
    known = [n for name in axis if isinstance(n := sizes.get(name), int)]
    return elements(known) if len(known) == len(axis) else None


def _nonzero(values: Host) -> bool:
    return bool(np.any(values["bfloat16"] if values.dtype.names else values))


def attributes(node: Any) -> dict[str, Any]:
    """The attributes of a node by name."""
    return {given.name: given for given in node.attribute}


def attribute(operation: Operation, name: str, kind: int, default: Any = None) -> Any:
    """Value of an attribute of a kind, or the default where it is not given.

    Raises
    ------
    FileFormatError
        If it is of another kind.
    """
    given = operation.attributes.get(name)
    if given is None:
        return default
    if given.type != kind or given.ref_attr_name:
        raise FileFormatError(f"{operation.kind}: expected attribute {name} to be of kind {ATTRIBUTES[kind]!r}")
    value = getattr(given, ATTRIBUTES[kind])
    if kind in (STRING, STRINGS):
        texts = [value] if kind == STRING else value
        decoded = [text.decode("utf-8", "replace") for text in texts]
        return decoded[0] if kind == STRING else decoded
    return list(value) if kind in (FLOATS, INTS) else value


def label(node: Any) -> str:
    """Name of a node, or where it has none that of its first output."""
    return str(node.name or next((name for name in node.output if name), ""))


def describe(node: Any) -> str:
    """Words for a node in a message."""
    return f"{brief(node.op_type)} {shown(label(node))}"
