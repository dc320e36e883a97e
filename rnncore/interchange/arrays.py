"""Networks in plain mappings of names to arrays: state dicts, the fields of a cell, and nested ones as JAX's users have them.

The names say which array is which. Four layouts are known, each under any path: those of torch and of Equinox's cells, MLX's,
and those of both of Flax's modules, whose kernels are transposed. No layout says the nonlinearity or the order of the axes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rnncore.arguments import brief, describe, flag
from rnncore.backend.arrays import dtype_name
from rnncore.backend.registry import get_backend, owner_name
from rnncore.errors import ArgumentTypeError, ArgumentValueError, InterchangeError
from rnncore.interchange.portable import Asked, Direction, Portable, assemble
from rnncore.typing import Host

__all__ = ["make", "owns", "read", "read_arrays"]

ROLES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
WEIGHTS = frozenset(ROLES[:2])
# By the last parts of a name, the role of the array; and whether the weights are stored as (I, H) and (H, H) transposed.
LAYOUTS: tuple[tuple[dict[str, str], bool], ...] = (
    ({role: role for role in ROLES} | {"bias": "bias_ih"}, False),  # torch; one bias as in Equinox's cells
    ({"Wxh": "weight_ih", "Whh": "weight_hh", "bias": "bias_ih"}, False),  # mlx.nn.RNN
    ({"dense_i.kernel": "weight_ih", "dense_h.kernel": "weight_hh", "dense_i.bias": "bias_ih"}, True),  # flax.nnx
    ({"i.kernel": "weight_ih", "h.kernel": "weight_hh", "i.bias": "bias_ih"}, True),  # flax.linen
)
# torch's names of a layer and a direction, after the role.
LAYER = r"(?:_l(?P<layer>\d{1,4})(?P<reverse>_reverse)?)?"
PATTERNS = [
    re.compile(rf"(?:(?P<path>.+)\.)?(?P<leaf>{'|'.join(map(re.escape, roles))}){'' if transposed else LAYER}", re.S)
    for roles, transposed in LAYOUTS
]
# A place in a list: "layers.0" of flax.nnx and of MLX, "layers_0" of flax.linen.
PLACE = re.compile(r"(?P<path>.*?)[._]?(?P<place>\d{1,4})", re.S)
# What a Sequential calls its list, whose members run one after another.
SEQUENTIAL = "layers"
# The two members of Flax's Bidirectional.
BOTH = ("forward_rnn", "backward_rnn")
GATED = {3: "a GRU", 4: "an LSTM"}
DEEPEST = 64  # of a mapping within mappings


@dataclass
class Cell:
    """One layer in one direction: the names of its arrays by role."""

    transposed: bool
    names: dict[str, str] = field(default_factory=dict)


Rows = list[list[Cell]]


def read_arrays(
    arrays: Mapping[str, Host], asked: Asked, *, source: str, bfloat16: Collection[str] = (), backend: str | None = None
) -> Portable:
    """Read a network from arrays by their names.

    Parameters
    ----------
    arrays : mapping of str to numpy.ndarray
        Only those of the network are looked up.
    asked : Asked
        With the nonlinearity and the order of the axes, which names do not say. Its name is the path of the network, without
        the point that ends it: "encoder.rnn" for "encoder.rnn.weight_ih_l0".
    source : str
        What holds the arrays, for messages: "a state dict".
    bfloat16 : collection of str
        The names of the float32 arrays that stand for bfloat16.
    backend : str, optional
        See :class:`Portable`.

    Raises
    ------
    ArgumentValueError, UnknownNameError
        If something has to be said, or was said wrong.
    InterchangeError
        If there is no network, or none that rnncore can express.
    """
    path, rows = _select(arrays, asked, source)
    used = [name for row in rows for cell in row for name in cell.names.values()]
    halves = sum(name in bfloat16 for name in used)
    if halves not in (0, len(used)):
        raise InterchangeError(f"{source}: expected arrays of one dtype, got bfloat16 and others in {path!r}")
    rest = sorted(set(arrays) - set(used))
    kind = "array" if len(rest) == 1 else "arrays"
    return assemble(
        [[_direction(cell, arrays) for cell in row] for row in rows],
        nonlinearity=asked.need("nonlinearity", f"{source} does not say it"),
        batch_first=asked.need("batch_first", f"{source} does not say it"),
        dtype="bfloat16" if halves else None,
        backend=backend,
        left_out=[f"{len(rest)} {kind} beside the network {path!r}: {brief(', '.join(rest))}"] if rest else [],
    )


def owns(module: object) -> bool:
    """Whether it is a mapping, and no module: MLX's are mappings too."""
    return isinstance(module, Mapping) and not callable(getattr(module, "parameters", None))


def read(module: Mapping[Any, Any], asked: Asked) -> Portable:
    """Read a network from a mapping of names to arrays of any backend, which may hold further mappings, lists and tuples.

    Raises
    ------
    ArgumentTypeError
        If an array of the network belongs to no registered backend.
    ArgumentValueError, UnknownNameError, InterchangeError
        As :func:`read_arrays`.
    """
    leaves = dict(flat(module))
    _, rows = _select(leaves, asked, "a mapping")
    arrays, kinds, owners = dict(leaves), {}, set()
    for name in [name for row in rows for cell in row for name in cell.names.values()]:
        owner = owner_name(leaves[name])
        if owner is None:
            raise ArgumentTypeError(f"{name}: expected an array of a registered backend, got {describe(leaves[name])}")
        owners.add(owner)
        kinds[name] = dtype_name(leaves[name].dtype)
        arrays[name] = get_backend(owner).to_numpy(leaves[name])
    halves = [name for name, kind in kinds.items() if kind == "bfloat16"]
    return read_arrays(
        arrays, asked, source="a mapping", bfloat16=halves, backend=owners.pop() if len(owners) == 1 else None
    )


def make(network: Portable, *, one_bias: bool = False) -> dict[str, Host]:
    """Make a dict of NumPy's arrays under torch's names.

    Parameters
    ----------
    network : Portable
    one_bias : bool
        Whether each layer has the sum of its biases, under "bias_l0", in place of "bias_ih_l0" and "bias_hh_l0".
    """
    flag("one_bias", one_bias)
    params = {name: a.copy() for name, a in network.params.items()}
    for name in [n for n in params if one_bias and n.startswith("bias_ih")]:
        params[name.replace("_ih", "", 1)] = params.pop(name) + params.pop(name.replace("_ih", "_hh", 1))
    return params


def flat(tree: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of mappings, lists and tuples within each other, by their paths with points."""
    if depth > DEEPEST:
        raise ArgumentValueError(f"expected mappings within at most {DEEPEST} others, got more at {brief(path)}")
    if isinstance(tree, Mapping):
        items: Iterable[tuple[Any, Any]] = tree.items()
    elif isinstance(tree, (list, tuple)):
        items = enumerate(tree)
    else:
        yield path, tree
        return
    for key, value in items:
        yield from flat(value, f"{path}.{key}" if path else str(key), depth + 1)


# --- which network, by the names ------------------------------------------------------------------------------------------


def _select(names: Collection[str], asked: Asked, source: str) -> tuple[str, Rows]:
    """Return the path of the network that was asked for, or of the only one, and its cells."""
    cells = _cells(names)
    networks = _numbered(cells)
    layers = _layers({path: cell for (path, layer, _), cell in cells.items() if layer is None})
    lists = _lists(layers)
    stacks = {path: rows for path, (rows, sure) in lists.items() if sure}
    inside = {path for path in layers if (place := PLACE.fullmatch(path)) and place["path"] in stacks}
    plain = {path: [row] for path, row in layers.items()}
    first = networks | stacks | {path: rows for path, rows in plain.items() if path not in inside}
    every = first | {path: rows for path, (rows, _) in lists.items()} | plain
    if not first:
        raise InterchangeError(
            f"{source} has no network of this kind: expected names such as weight_ih_l0 and weight_hh_l0, Wxh and Whh, or "
            f"cell.i.kernel and cell.h.kernel, got {brief(', '.join(sorted(map(str, names)))) or 'none'}"
        )
    path = asked.choose(first, every, source)
    for cell in (cell for row in every[path] for cell in row):
        if missing := WEIGHTS - cell.names.keys():
            raise InterchangeError(
                f"{source}: {' and '.join(sorted(missing))} is missing beside {sorted(cell.names.values())}"
            )
    return path, every[path]


def _cells(names: Collection[str]) -> dict[tuple[str, int | None, int], Cell]:
    """The cells by path, layer and direction; the layer is None where the names have not torch's number of it."""
    found: dict[tuple[str, int | None, int, int], Cell] = {}
    for name in names:
        for layout, ((roles, transposed), pattern) in enumerate(zip(LAYOUTS, PATTERNS, strict=True)):
            part = pattern.fullmatch(name)
            if part is None:
                continue
            number = part.groupdict().get("layer")
            layer, direction = (None, 0) if number is None else (int(number), int(part["reverse"] is not None))
            cell = found.setdefault((part["path"] or "", layer, direction, layout), Cell(transposed))
            role = roles[part["leaf"]]
            if role in cell.names:
                raise InterchangeError(f"expected one of {cell.names[role]} and {name}, got both")
            cell.names[role] = name
    # A bias alone is any layer's, and one weight without a number may be anything.
    cells = {
        key: cell
        for key, cell in found.items()
        if cell.names.keys() >= WEIGHTS or (key[1] is not None and cell.names.keys() & WEIGHTS)
    }
    ways: dict[str, set[tuple[bool, int]]] = {}
    for path, layer, _, layout in cells:
        ways.setdefault(path, set()).add((layer is None, layout))
    if several := [path for path, kinds in ways.items() if len(kinds) > 1]:
        raise InterchangeError(f"expected one network at each path, got names of several kinds at {several[0]!r}")
    return {key[:3]: cell for key, cell in cells.items()}


def _numbered(cells: Mapping[tuple[str, int | None, int], Cell]) -> dict[str, Rows]:
    """The networks by path whose names have torch's numbers of the layers."""
    networks: dict[str, dict[tuple[int, int], Cell]] = {}
    for (path, layer, direction), cell in cells.items():
        if layer is not None:
            networks.setdefault(path, {})[layer, direction] = cell
    rows: dict[str, Rows] = {}
    for path, found in networks.items():
        layers, directions = (1 + max(numbers) for numbers in zip(*found, strict=True))
        if len(found) != layers * directions:
            raise InterchangeError(
                f"expected {layers} layers of {directions} directions in {path!r}, got {len(found)} of {layers * directions}"
            )
        rows[path] = [[found[k, d] for d in range(directions)] for k in range(layers)]
    return rows


def _layers(cells: Mapping[str, Cell]) -> dict[str, list[Cell]]:
    """The layers by path; Flax's two directions are one layer, and a cell within its RNN has the path of the RNN."""
    within = {path: path.removesuffix("cell").removesuffix(".") for path in cells if path.rpartition(".")[2] == "cell"}
    cells = {path if within.get(path, path) in cells else within[path]: cell for path, cell in cells.items()}
    layers: dict[str, list[Cell]] = {}
    for path, cell in cells.items():
        head, _, last = path.rpartition(".")
        pair = [f"{head}.{side}" if head else side for side in BOTH]
        if last in BOTH and all(side in cells for side in pair):
            layers[head] = [cells[side] for side in pair]
        else:
            layers[path] = [cell]
    return layers


def _lists(layers: Mapping[str, list[Cell]]) -> dict[str, tuple[Rows, bool]]:
    """The lists of layers by path, in order, and whether they surely run one after another, with nothing between."""
    places: dict[str, dict[int, list[Cell]]] = {}
    for path, row in layers.items():
        if place := PLACE.fullmatch(path):
            places.setdefault(place["path"], {})[int(place["place"])] = row
    return {
        path: (
            [rows[k] for k in sorted(rows)],
            path.rpartition(".")[2] == SEQUENTIAL and max(rows) - min(rows) + 1 == len(rows),
        )
        for path, rows in places.items()
    }


def _direction(cell: Cell, arrays: Mapping[str, Host]) -> Direction:
    found = {role: arrays[name] for role, name in cell.names.items()}
    for role in WEIGHTS:
        if cell.transposed:
            found[role] = np.ascontiguousarray(found[role].T)
    shape = found["weight_hh"].shape
    for gates, kind in GATED.items():
        if len(shape) == 2 and shape[0] == gates * shape[1] > 0:
            raise InterchangeError(f"{cell.names['weight_hh']}: expected weights (H, H), got those of {kind}, {shape}")
    return Direction(**found)
