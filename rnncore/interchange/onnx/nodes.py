"""One RNN node: its weights by direction, its function, and where its input and its initial state come from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rnncore.arguments import digits, shown
from rnncore.errors import FileFormatError, InterchangeError
from rnncore.interchange.onnx.functions import read_function
from rnncore.interchange.onnx.graph import (
    FLOAT,
    FLOATS,
    INT,
    OWN_DOMAINS,
    STRING,
    STRINGS,
    Axes,
    Graph,
    Operation,
    Size,
    attribute,
    describe,
    label,
)
from rnncore.interchange.onnx.tensors import FLOATING, widened
from rnncore.interchange.portable import Direction
from rnncore.nonlinearity.nonlinearity import Nonlinearity
from rnncore.typing import Host

__all__ = ["LENGTHS", "STATE", "Cell", "X", "is_cell"]

DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
# output_sequence is of the first version: whether there is a Y.
KNOWN = {
    "activations",
    "activation_alpha",
    "activation_beta",
    "clip",
    "direction",
    "hidden_size",
    "layout",
    "output_sequence",
}
WEIGHTS = ("W", "R", "B")
X, LENGTHS, STATE = 0, 4, 5


def is_cell(node: Any) -> bool:
    """Whether a node is ONNX's RNN."""
    return node.op_type == "RNN" and node.domain in OWN_DOMAINS


@dataclass(frozen=True)
class Cell:
    """An RNN node of a graph. What is wrong with it is said when it is asked for: it may not be of the network that is read."""

    graph: Graph
    index: int

    @property
    def label(self) -> str:
        """Its name."""
        return label(self.graph.nodes[self.index])

    @property
    def names(self) -> set[str]:
        """The names that it can be asked for by: its own and those of its outputs."""
        node = self.graph.nodes[self.index]
        return {name for name in (node.name, *node.output) if name}

    @cached_property
    def operation(self) -> Operation:
        """The node with its attributes.

        Raises
        ------
        InterchangeError
            If it has attributes that no RNN has: they may change what it computes.
        """
        found = self.graph.operation(self.index)
        assert found is not None  # by is_cell
        if unknown := sorted(set(found.attributes) - KNOWN):
            raise InterchangeError(f"{self._said}: unknown attributes {shown(unknown)}")
        return found

    def input(self, place: int) -> str:
        """Name of an input by its place; "" where it is not given."""
        given = self.operation.inputs
        return given[place] if place < len(given) else ""

    def output(self, place: int) -> str:
        """Name of an output by its place; "" where it is not given."""
        given = self.operation.outputs
        return given[place] if place < len(given) else ""

    @cached_property
    def directions(self) -> int:
        """1 or 2.

        Raises
        ------
        InterchangeError
            If it runs in reverse alone.
        """
        direction = attribute(self.operation, "direction", STRING, "forward")
        if direction not in DIRECTIONS:
            raise FileFormatError(f"{self._said}: expected direction {', '.join(DIRECTIONS)}, got {shown(direction)}")
        if direction == "reverse":
            raise InterchangeError(
                f"{self._said}: expected direction forward or bidirectional, got 'reverse': rnncore has no network that runs "
                "in reverse alone; a forward one computes the same of a reversed input"
            )
        return DIRECTIONS[direction]

    @cached_property
    def batch_first(self) -> bool:
        """Whether its layout is 1."""
        layout = attribute(self.operation, "layout", INT, 0)
        if layout not in (0, 1):
            raise FileFormatError(f"{self._said}: expected layout 0 or 1, got {digits(layout)}")
        return bool(layout)

    @cached_property
    def arrays(self) -> dict[str, Host]:
        """W (D, H, I), R (D, H, H), and B (D, 2H) if it has one.

        Raises
        ------
        FileFormatError, InterchangeError
        """
        found = {}
        for place, kind in enumerate(WEIGHTS, 1):
            name = self.input(place)
            if not name and kind == "B":
                continue
            values = self.graph.constant(name) if name else None
            if values is None:
                raise InterchangeError(f"{self._said}: expected a constant for {kind}, got {self._source(name)}")
            if values.dtype not in FLOATING:
                raise FileFormatError(f"{self._said}: expected floating numbers for {kind}, got {values.dtype}")
            found[kind] = values
        d, h = self.directions, found["R"].shape[-1] if found["R"].ndim else 0
        said = attribute(self.operation, "hidden_size", INT, h)
        read = found["W"].shape[-1] if found["W"].ndim else 0
        shapes = {"W": (d, said, read), "R": (d, said, said), "B": (d, 2 * said)}
        for kind, values in found.items():
            if values.shape != shapes[kind] or 0 in values.shape:
                raise FileFormatError(f"{self._said}: expected {kind} of shape {shapes[kind]}, got {values.shape}")
        if len({values.dtype for values in found.values()}) != 1:
            raise FileFormatError(f"{self._said}: expected W, R and B of one dtype")
        return found

    @property
    def dtype(self) -> str:
        """Dtype of the weights."""
        return FLOATING[self.arrays["R"].dtype]

    @property
    def hidden_size(self) -> int:
        """H."""
        return int(self.arrays["R"].shape[-1])

    @cached_property
    def function(self) -> Nonlinearity:
        """The activation of all directions, with the clip.

        Raises
        ------
        InterchangeError
        """
        names = attribute(self.operation, "activations", STRINGS, ["Tanh"] * self.directions)
        if len(names) != self.directions:
            raise FileFormatError(f"{self._said}: expected {self.directions} activations, got {len(names)}")
        clip = attribute(self.operation, "clip", FLOAT, None)
        if clip is not None and math.isnan(clip):
            raise FileFormatError(f"{self._said}: expected clip to be a number, got {clip}")
        alphas, betas = (
            attribute(self.operation, name, FLOATS, []) for name in ("activation_alpha", "activation_beta")
        )
        try:
            return read_function(names, alphas, betas, clip, self.dtype)
        except InterchangeError as error:
            raise InterchangeError(f"{self._said}: {error}") from error

    @cached_property
    def output_views(self) -> dict[str, Axes]:
        """Names that are views of its Y, with their axes; empty where it has none.

        Among them is what a Where makes of Y in the rows of length 0, which is 0.
        """
        if not self.output(0):
            return {}
        own = (("D",), ("B",), ("H",)) if self.directions == 2 else ((), ("B",), ("H",))
        axes = (("B",), ("T",), own[0], own[2]) if self.batch_first else (("T",), *own)
        return self._views(self.output(0), axes, "")

    @cached_property
    def state_views(self) -> dict[str, Axes]:
        """Names that are views of its Y_h, with their axes; empty where it has none.

        Among them is what a Where makes of Y_h and initial_h: the last state of rows of length 0 is the initial one.
        """
        if not self.output(1):
            return {}
        d: tuple[str, ...] = ("D",) if self.directions == 2 else ()
        axes = (("B",), d, ("H",)) if self.batch_first else (d, ("B",), ("H",))
        return self._views(self.output(1), axes, self.input(STATE))

    def _views(self, name: str, axes: Axes, start: str) -> dict[str, Axes]:
        """Views of an output, also of what is `start` in the rows of length 0: "" for 0."""
        found = self.graph.views(name, axes, self._sizes)
        for here in list(found):
            for index in self.graph.readers(here):
                node = self.graph.operation(index)
                if node is None or node.kind != "Where" or not node.outputs or node.inputs[2:] != (here,):
                    continue
                fits = node.inputs[1] == start if start else self.graph.is_zero(node.inputs[1])
                if fits and self._empty(node.inputs[0]):
                    found |= self.graph.views(node.outputs[0], found[here], self._sizes)
        return found

    def _empty(self, name: str) -> bool:
        """Whether a name says which rows have length 0."""
        given = self.graph.source(self.input(LENGTHS), ("Max", "Cast", "Identity"))
        equal = self.graph.operation(self.graph.maker(self.graph.source(name, ("Unsqueeze", "Identity"))))
        if equal is None or equal.kind != "Equal" or len(equal.inputs) != 2 or not given:
            return False
        return self.graph.source(equal.inputs[0], ("Cast", "Identity")) == given and self.graph.is_zero(equal.inputs[1])

    def sequence(self, batch_first: bool) -> Axes:
        """Axes of the output as another layer reads it."""
        last = ("D", "H") if self.directions == 2 else ("H",)
        return (("B",), ("T",), last) if batch_first else (("T",), ("B",), last)

    def read(self) -> list[Direction]:
        """The layer, by direction.

        Raises
        ------
        FileFormatError, InterchangeError
        """
        arrays = {kind: widened(values) for kind, values in self.arrays.items()}
        h = self.hidden_size
        biases = [(None, None)] * self.directions
        if "B" in arrays:
            biases = [(row[:h], row[h:]) for row in arrays["B"]]
        return [Direction(w, r, *b) for w, r, b in zip(arrays["W"], arrays["R"], biases, strict=True)]

    @property
    def _said(self) -> str:
        return describe(self.graph.nodes[self.index])

    @property
    def _sizes(self) -> dict[str, Size]:
        """D and H, and T and B where the file says them of its input."""
        found: dict[str, Size] = {"D": self.directions, "H": self.hidden_size}
        given = self.graph.shape(self.input(X))
        if given is not None and len(given) == 3:
            found |= zip("BT" if self.batch_first else "TB", given[:2], strict=True)
        return found

    def _source(self, name: str) -> str:
        maker = self.graph.maker(name)
        if maker is not None:
            return f"the output of {describe(self.graph.nodes[maker])}"
        if not name:
            return "none"
        return (
            f"{shown(name)}, an input of the graph"
            if name in self.graph.inputs
            else f"{shown(name)}, which nothing makes"
        )
