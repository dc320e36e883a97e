"""Keras's ``.weights.h5``: the arrays of a model by path, without what is computed with them.

Layers are named in paths by their classes, and their own names are attributes; neither says in which order they are called,
nor the activation. ``save`` needs h5py, and ``load`` ``nonlinearity=``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from rnncore.arguments import brief
from rnncore.errors import ArgumentValueError, FileFormatError, InterchangeError
from rnncore.interchange.keras.cells import Weights, cells_of, one_dtype
from rnncore.interchange.keras.config import Step, find
from rnncore.interchange.keras.describe import arrays_of, describe
from rnncore.interchange.keras.hdf5 import BFLOAT16, Tree, opened, write
from rnncore.interchange.portable import Asked, Portable, assemble

__all__ = ["OPTIONS", "decode", "encode", "path_of", "read_cell", "write_weights"]

OPTIONS: tuple[str, ...] = ()
WHAT = "a .weights.h5 file"
DEPTH = 16
# The group of what training keeps, which is of no layer.
OPTIMIZER = "optimizer"
NUMBERED = re.compile(r"(.*?)(?:_([0-9]{1,6}))?", re.DOTALL)


@dataclass(frozen=True)
class Candidate:
    """A layer that holds what a vanilla RNN layer does: the paths of its cells by [layer][direction]."""

    path: str
    name: str
    rows: tuple[tuple[str, ...], ...]


def decode(file: BinaryIO, asked: Asked) -> Portable:
    """Read a network.

    ``asked.name`` is the name of a layer, or the names of several in the order in which they are called, with commas between
    them. It may be left out where the file holds only one such layer.

    Raises
    ------
    FileFormatError, InterchangeError, ArgumentValueError, BackendUnavailableError
    """
    with opened(file, WHAT) as tree:
        candidates: list[Candidate] = []
        others: list[str] = []
        _search(tree, "", candidates, others, DEPTH)
        chain = _chosen(candidates, others, asked)
        nonlinearity = asked.need("nonlinearity", "a .weights.h5 file does not say the activation")
        batch_first = asked.settle("batch_first", True)
        rows = [row for candidate in chain for row in candidate.rows]
        weights = [[read_cell(tree, path) for path in row] for row in rows]
        optimizer = ["the state of its optimizer"] if tree.names(OPTIMIZER) else []
    outside = [repr(c.name) for c in candidates if c not in chain] + [repr(other) for other in others]
    return assemble(
        [[own.direction() for own in row] for row in weights],
        nonlinearity=nonlinearity,
        batch_first=batch_first,
        dtype=one_dtype(own for row in weights for own in row),
        left_out=[*([f"layers {brief(', '.join(outside))}"] if outside else []), *optimizer],
    )


def encode(file: BinaryIO, network: Portable) -> None:
    """Write a network as the weights of a Sequential model of SimpleRNN layers, bidirectional ones in Bidirectional.

    Raises
    ------
    BackendUnavailableError
    """
    write_weights(file, network, describe(network, activation="linear"), WHAT)  # of which weights say nothing


def write_weights(file: BinaryIO, network: Portable, described: Any, what: str) -> None:
    """Write the weights of a network by the paths of the model that describes it."""
    chain = find(described).chains[0]
    cells = [cell for row in cells_of(chain) for cell in row]
    texts = {f"{path_of(layer.where)}/vars": layer.name for layer in chain.layers}
    texts |= {f"{path_of(cell.where)}/vars": "simple_rnn_cell" for cell in cells}
    arrays = {
        f"{path_of(cell.where)}/vars/{k}": array
        for cell, given in zip(cells, arrays_of(network), strict=True)
        for k, array in enumerate(given)
    }
    write(file, what, arrays, texts, bfloat16=network.dtype == BFLOAT16)


def path_of(where: Sequence[Step]) -> str:
    """Return the path of a layer's group."""
    return "/".join(name for step in where for name in (step.attribute, step.group) if name)


def read_cell(tree: Tree, path: str) -> Weights:
    """Read the weights of a cell.

    Raises
    ------
    FileFormatError
    """
    numbers = set(tree.names(f"{path}/vars"))
    if not {"0", "1"} <= numbers <= {"0", "1", "2"}:
        raise FileFormatError(f"{path}/vars: expected 0, 1 and, with a bias, 2, got {brief(sorted(numbers))}")
    recurrent, dtype = tree.array(f"{path}/vars/1", (None, None))
    units = recurrent.shape[1]
    kernel, other = tree.array(f"{path}/vars/0", (None, units))
    bias, last = tree.array(f"{path}/vars/2", (units,)) if "2" in numbers else (None, dtype)
    if not dtype == other == last:
        raise FileFormatError(f"{path}/vars: expected one dtype, got {other}, {dtype} and {last}")
    return Weights(kernel, recurrent, bias, dtype)


# --- which layers -----------------------------------------------------------------------------------------------------


def _chosen(candidates: Sequence[Candidate], others: Sequence[str], asked: Asked) -> list[Candidate]:
    if not candidates:
        raise InterchangeError(f"it holds no layer of a vanilla RNN, only {brief(', '.join(others)) or 'nothing'}")
    if asked.name is not None:
        owns = [candidate.name for candidate in candidates]
        names = {c.path: c for c in candidates} | {c.name: c for c in candidates if owns.count(c.name) == 1}
        return [names[Asked(name.strip()).choose(names, names, "the file")] for name in str(asked.name).split(",")]
    if len(candidates) == 1:
        return list(candidates)
    known = brief(", ".join(repr(c.name) for c in sorted(candidates, key=lambda c: _place(c.path))))
    raise ArgumentValueError(
        f"name: expected those of {known} that are called one after the other, with commas between them, as the file does not "
        "say it; got None"
    )


def _search(tree: Tree, path: str, candidates: list[Candidate], others: list[str], depth: int) -> None:
    """Add the layers inside a group, by whatever attributes a model holds them."""
    if not depth:
        return
    for name in tree.names(path):
        inner = f"{path}/{name}" if path else name
        if name == "vars" or inner == OPTIMIZER:
            continue
        within = tree.names(inner)
        rows = _rows(tree, inner, within)
        own = tree.text(f"{inner}/vars", "name") or inner
        if rows is not None:
            candidates.append(Candidate(inner, own, rows))
            continue
        before, inside = len(candidates), list[str]()
        _search(tree, inner, candidates, inside, depth - 1)
        if "vars" not in within or len(candidates) > before:
            others += inside
        elif not own.startswith("input_layer"):
            others.append(own)


def _rows(tree: Tree, path: str, names: Sequence[str]) -> tuple[tuple[str, ...], ...] | None:
    """The paths of the cells in a layer's group, if they are vanilla ones."""
    if "forward_layer" in names and "backward_layer" in names:
        ways = [
            _rows(tree, f"{path}/{way}", tree.names(f"{path}/{way}")) for way in ("forward_layer", "backward_layer")
        ]
        one = [way[0][0] for way in ways if way is not None and len(way) == 1]
        return (tuple(one),) if len(one) == len(ways) else None
    if "cell" not in names:
        return None
    cell = f"{path}/cell"
    found = [f"{cell}/cells/{name}" for name in sorted(tree.names(f"{cell}/cells"), key=_place)] or [cell]
    return tuple((p,) for p in found) if all(_is_vanilla(tree, p) for p in found) else None


def _is_vanilla(tree: Tree, path: str) -> bool:
    """Whether a cell's kernel is as wide as its square recurrent kernel, which an LSTM's is not."""
    kernel, recurrent = (tree.shape(f"{path}/vars/{k}") for k in (0, 1))
    return kernel is not None and recurrent is not None and len(kernel) == 2 and recurrent == (kernel[1], kernel[1])


def _place(path: str) -> tuple[str, int]:
    """The class in a group's name, and the number after it."""
    found = re.fullmatch(NUMBERED, path)
    assert found is not None  # for the types: it matches any name
    return found[1], int(found[2] or 0)
