"""The cells of a chain of Keras layers, by rnncore's layers and directions; what rnncore cannot say is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnncore.arguments import brief, shown
from rnncore.errors import FileFormatError, InterchangeError
from rnncore.interchange.keras.activations import nonlinearity_of
from rnncore.interchange.keras.config import Chain, Found, Layer, Step, chosen, object_of
from rnncore.interchange.portable import Asked, Direction, Portable, assemble
from rnncore.typing import Host

__all__ = ["Cell", "Weights", "cells_of", "one_dtype", "portable"]

PLAIN, MIXED = ("float16", "bfloat16", "float32", "float64"), ("mixed_float16", "mixed_bfloat16")
# What only training reads, beside the network.
TRAINING = (
    *(f"{array}_{kind}" for kind in ("regularizer", "constraint") for array in ("kernel", "recurrent", "bias")),
    "activity_regularizer",
)


@dataclass(frozen=True)
class Cell:
    """One layer in one direction: where its weights are, and what it computes."""

    name: str
    where: tuple[Step, ...]
    units: int
    bias: bool
    activation: Any
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Weights:
    """The weights of a cell as Keras has them: kernel (I, H), recurrent kernel (H, H), bias (H,) or None.

    The arrays are float32 if the dtype is "bfloat16".
    """

    kernel: Host
    recurrent: Host
    bias: Host | None
    dtype: str

    def direction(self) -> Direction:
        """Convert them: both kernels are transposed, and the one bias is bias_ih."""
        return Direction(np.ascontiguousarray(self.kernel.T), np.ascontiguousarray(self.recurrent.T), self.bias)


def portable(
    found: Found,
    asked: Asked,
    load: Callable[[Cell], Weights],
    *,
    backend: str | None = None,
    notes: Sequence[str] = (),
) -> Portable:
    """Make the network of the chain that is asked for.

    Parameters
    ----------
    found : Found
    asked : Asked
    load : callable
        Returns the weights of a cell.
    backend : str, optional
    notes : sequence of str
        What is left out beside layers.

    Raises
    ------
    FileFormatError, InterchangeError, ArgumentValueError
    """
    chain, others = chosen(found, asked)
    rows = cells_of(chain)
    cells = [cell for row in rows for cell in row]
    nonlinearity = _nonlinearity(cells, asked)
    batch_first = asked.settle("batch_first", True)
    rates = sorted(set(chain.rates))
    if len(rates) > 1:
        raise InterchangeError(f"dropout between the layers: expected one rate, got {', '.join(map(str, rates))}")
    weights = [load(cell) for cell in cells]
    for cell, own in zip(cells, weights, strict=True):
        _check(cell, own)
    parts = iter(weights)
    left_out = [f"layers {brief(', '.join(others))}"] if others else []
    left_out += dict.fromkeys(note for cell in cells for note in cell.notes)
    return assemble(
        [[next(parts).direction() for _ in row] for row in rows],
        nonlinearity=nonlinearity,
        batch_first=batch_first,
        dropout=rates[0] if rates else 0.0,
        dtype=one_dtype(weights),
        backend=backend,
        left_out=[*left_out, *notes],
    )


def cells_of(chain: Chain) -> list[list[Cell]]:
    """Return the cells by [layer][direction].

    Raises
    ------
    FileFormatError, InterchangeError
    """
    rows: list[list[Cell]] = []
    for layer in chain.layers:
        rows += _rows(layer, first=not rows)
    return rows


def one_dtype(weights: Iterable[Weights]) -> str:
    """Return the dtype of all cells.

    Raises
    ------
    InterchangeError
    """
    found = sorted({own.dtype for own in weights})
    if len(found) != 1:
        raise InterchangeError(f"expected weights of one dtype, got {', '.join(found)}")
    return found[0]


def _check(cell: Cell, weights: Weights) -> None:
    units, shapes = cell.units, (weights.kernel.shape, weights.recurrent.shape)
    if shapes[0][1:] != (units,) or shapes[1] != (units, units):
        raise FileFormatError(
            f"{cell.name}: expected kernels (I, {units}) and ({units}, {units}), got {shapes[0]} and {shapes[1]}"
        )
    if (weights.bias is not None) != cell.bias:
        raise FileFormatError(f"{cell.name}: expected {'a bias' if cell.bias else 'no bias'}, as its use_bias says")


def _nonlinearity(cells: Sequence[Cell], asked: Asked) -> Any:
    kinds = [cell.activation for cell in cells]
    functions = [nonlinearity_of(kind) for kind in kinds]
    for cell, function in zip(cells, functions, strict=True):
        if function is None and (asked.nonlinearity is None or cell.activation != kinds[0]):
            raise InterchangeError(
                f"activation of {cell.name}: {_shown(cell.activation)} is none of rnncore's nonlinearities; pass one as "
                "nonlinearity=(function, derivative)"
            )
        if function != functions[0]:
            raise InterchangeError(
                f"activation of {cell.name}: expected one for all layers, got {_shown(cell.activation)} after "
                f"{_shown(kinds[0])}"
            )
    return asked.nonlinearity if functions[0] is None else asked.settle("nonlinearity", functions[0])


def _shown(activation: Any) -> str:
    return shown(activation.get("class_name", "a function") if isinstance(activation, dict) else activation)


def _rows(layer: Layer, first: bool) -> list[list[Cell]]:
    """The rows that one layer of a chain makes; `first` if it reads the network's own input."""
    if layer.kind == "Bidirectional":
        return [_bidirectional(layer, first)]
    if layer.kind in ("SimpleRNNCell", "StackedRNNCells"):
        return [[cell] for cell in _cells(layer.name, layer.kind, layer.config, layer.where, first)]
    return [[cell] for cell in _sequence(layer.name, layer, layer.where, first, go_backwards=False)]


def _bidirectional(layer: Layer, first: bool) -> list[Cell]:
    config = layer.config
    if config.get("merge_mode") != "concat":
        raise InterchangeError(
            f"merge_mode of {layer.name}: expected 'concat', as the next layer reads both directions, got "
            f"{shown(config.get('merge_mode'))}"
        )
    row: list[Cell] = []
    for attribute in ("forward_layer", "backward_layer"):
        described = config.get("layer" if attribute == "forward_layer" else attribute)
        kind, inner = object_of(described, f"{attribute} of {layer.name}")
        if kind not in ("SimpleRNN", "RNN"):
            raise InterchangeError(f"{attribute} of {layer.name}: expected a SimpleRNN, got {brief(kind)}")
        name = f"{layer.name}/{attribute}"
        own = Layer(name, kind, inner, (*layer.where, Step(attribute)), layer.notes)
        cells = _sequence(name, own, own.where, first, go_backwards=attribute == "backward_layer")
        if len(cells) != 1:
            raise InterchangeError(f"{name}: expected one cell, as layers read both directions, got {len(cells)}")
        row += cells
    return row


def _sequence(name: str, layer: Layer, where: tuple[Step, ...], first: bool, *, go_backwards: bool) -> list[Cell]:
    """The cells of a SimpleRNN or an RNN."""
    config = layer.config
    if config.get("go_backwards", False) is not go_backwards:
        raise InterchangeError(
            f"go_backwards of {name}: expected {go_backwards}, got {shown(config.get('go_backwards', False))}; rnncore has a "
            "reverse direction only beside a forward one: convert the layer without it, and reverse the input in time"
        )
    if config.get("time_major", False) is not False:
        raise InterchangeError(f"time_major of {name}: expected False, got {shown(config['time_major'])}")
    notes = [f"{note}, of {name}" for note in layer.notes]
    if config.get("stateful", False) is not False:
        notes.append(f"the state that {name} keeps between calls, stateful=True: pass h0")
    inside = (*where, Step("cell"))
    if layer.kind == "SimpleRNN":
        cells = [_cell(name, config, inside, first)]
    else:
        kind, inner = object_of(config.get("cell"), f"cell of {name}")
        cells = list(_cells(name, kind, inner, inside, first))
    noted = cells[0]
    return [
        Cell(noted.name, noted.where, noted.units, noted.bias, noted.activation, (*notes, *noted.notes)),
        *cells[1:],
    ]


def _cells(name: str, kind: str, config: Mapping[str, Any], where: tuple[Step, ...], first: bool) -> Iterator[Cell]:
    """The cells of a cell, which is one or a stack."""
    if kind == "SimpleRNNCell":
        yield _cell(name, config, where, first)
        return
    if kind != "StackedRNNCells":
        raise InterchangeError(f"cell of {name}: expected SimpleRNNCell, got {brief(kind)}")
    for k, described in enumerate(config["cells"]):
        _, inner = object_of(described, f"cells of {name}")
        step = Step("cells", k, f"simple_rnn_cell_{k}" if k else "simple_rnn_cell")
        yield _cell(f"{name}/{step.group}", inner, (*where, step), first and not k)


def _cell(name: str, config: Mapping[str, Any], where: tuple[Step, ...], first: bool) -> Cell:
    units, bias = config.get("units"), config.get("use_bias", True)
    if type(units) is not int or units < 1 or not isinstance(bias, bool):
        raise FileFormatError(
            f"{name}: expected units, an int >= 1, and use_bias, got {shown(units)} and {shown(bias)}"
        )
    for option in ("recurrent_dropout", *(() if first else ("dropout",))):
        if config.get(option, 0) != 0:
            raise InterchangeError(
                f"{option} of {name}: expected 0, got {shown(config[option])}: it draws one mask for all steps, and "
                "rnncore has no such dropout inside a network"
            )
    notes = [f"dropout={shown(config['dropout'])} of the input of {name}"] if config.get("dropout", 0) != 0 else []
    notes += [f"{option} of {name}" for option in TRAINING if config.get(option) is not None]
    policy = _policy(config.get("dtype"), name)
    if policy in MIXED:
        notes.append(f"the products of {name} in {policy.removeprefix('mixed_')}, policy {policy}")
    activation = config.get("activation", "tanh")
    if isinstance(activation, dict) and isinstance(activation.get("config"), dict):
        own = _policy(activation["config"].get("dtype"), f"the activation of {name}")
        if own != policy:
            raise InterchangeError(
                f"activation of {name}: expected its dtype to be {policy}, as the layer's, got {own}"
            )
    return Cell(name, where, units, bias, activation, tuple(notes))


def _policy(dtype: Any, what: str) -> str:
    """The name of a dtype policy: the dtype of weights and of results."""
    if isinstance(dtype, dict) and isinstance(dtype.get("config"), dict):
        dtype = dtype["config"].get("name")
    if dtype is None:
        return "float32"
    if not isinstance(dtype, str) or dtype not in (*PLAIN, *MIXED):
        raise InterchangeError(f"dtype of {what}: expected one of {', '.join((*PLAIN, *MIXED))}, got {shown(dtype)}")
    return dtype
