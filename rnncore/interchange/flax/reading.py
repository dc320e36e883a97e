"""Flax's modules read: ``RNN`` and ``Bidirectional`` of ``SimpleCell``, stacks of them, and cells, of nnx and of linen.

Modules of both interfaces have the same attributes. Only the weights are elsewhere: nnx's modules hold them, and linen's are
given with them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from rnncore.arguments import brief, describe, shown
from rnncore.backend.arrays import FLOATS, dtype_name
from rnncore.backend.registry import get_backend
from rnncore.errors import ArgumentTypeError, ArgumentValueError, InterchangeError
from rnncore.interchange import arrays
from rnncore.interchange.flax.activations import nonlinearity_of
from rnncore.interchange.flax.trees import KERNELS
from rnncore.interchange.portable import Asked, Direction, Portable, assemble
from rnncore.typing import Host

__all__ = ["owns", "read"]

RECURRENT = ("RNN", "Bidirectional", "SimpleCell")
STACKS = (*RECURRENT, "Sequential", "List")
EXPECTED = "Flax's RNN, Bidirectional or SimpleCell"
SIDES = ("forward_rnn", "backward_rnn")


@dataclass(frozen=True)
class Item:
    """A module of a stack, its path, and its parameters if it does not hold them."""

    path: str
    module: Any
    params: Any = None

    def inner(self, name: str) -> Item:
        """Return the module of an attribute."""
        if not hasattr(self.module, name):
            raise InterchangeError(f"{self.named}: expected its {name}, which it has not")
        return Item(_joined(self.path, name), getattr(self.module, name), self.below(name))

    def below(self, name: str) -> Any:
        """Return the parameters of a part, or None where the modules hold them."""
        if self.params is None:
            return None
        if not isinstance(self.params, Mapping) or name not in self.params:
            got = ", ".join(map(str, self.params)) if isinstance(self.params, Mapping) else describe(self.params)
            raise InterchangeError(f"params: expected {name!r} in those of {self.named}, got {brief(got) or 'none'}")
        return self.params[name]

    @property
    def named(self) -> str:
        """The path, or the class where it has none."""
        return self.path or type(self.module).__name__


def owns(module: object) -> bool:
    """Whether it is a module of nnx, a module of linen with its parameters, a list of these, or a state of nnx."""
    if isinstance(module, (list, tuple)):
        return bool(module) and all(map(owns, module[:1] if _is_pair(module) else module))
    return isinstance(module, (*_classes("Module"), *_classes("State")))


def read(module: Any, asked: Asked) -> Portable:
    """Read a network from a module, a pair of one of linen's and its parameters, or a list of these that run in order.

    Raises
    ------
    ArgumentTypeError
        If it is no recurrent module, and holds none that can be found.
    ArgumentValueError, UnknownNameError
        If it holds several and `asked` names none of them, or if `asked` contradicts it.
    InterchangeError
        If it has what no network of rnncore's has.
    """
    if isinstance(module, _classes("State")):
        return arrays.read(sys.modules["flax.nnx"].to_pure_dict(module), asked)
    left_out: list[str] = []
    if isinstance(module, _classes("Module", "nnx")) and (asked.name is not None or _interface(module, STACKS) is None):
        path, module = _held(module, asked)
        left_out += [f"all but {path!r}"] if path else []
    elif asked.name is not None:
        raise ArgumentValueError(f"name: expected None, as {describe(module)} is one network, got {shown(asked.name)}")
    items, dropout = _stack(_items(Item("", module)), left_out)
    reading = Reading(asked, left_out)
    layers = [reading.layer(item) for item in items]
    order = reading.one("time_major", reading.time_major)
    if order is not None:
        asked.settle("batch_first", not order)
    return assemble(
        layers,
        nonlinearity=reading.one("activation_fn", reading.nonlinearities),
        # A cell alone says nothing of sequences: (T, B, I), as of a torch.nn.RNNCell.
        batch_first=bool(asked.batch_first) if order is None else not order,
        dropout=dropout,
        dtype=reading.one("dtype", reading.dtypes),
        backend="jax",
        left_out=left_out,
    )


class Reading:
    """Layers as they are read, with what each says of the whole network."""

    def __init__(self, asked: Asked, left_out: list[str]) -> None:
        self.asked, self.left_out = asked, left_out
        self.nonlinearities: dict[str, Any] = {}
        self.time_major: dict[str, Any] = {}
        self.dtypes: dict[str, Any] = {}
        self.cells: list[Any] = []

    def one(self, what: str, found: Mapping[str, Any]) -> Any:
        """Return what all parts say, or None if none does."""
        (first, value), *others = found.items() or [("", None)]
        for path, other in others:
            if other != value:
                raise InterchangeError(
                    f"{what}: expected one in all layers, got {value} in {first!r} and {other} in {path!r}"
                )
        return value

    def layer(self, item: Item) -> list[Direction]:
        """Read a layer with its one direction or two."""
        kind = _kind(item)
        if kind == "SimpleCell":
            return [self.cell(item)]
        self.time_major[item.path] = bool(item.module.time_major)
        if kind == "RNN":
            if item.module.reverse:
                raise InterchangeError(
                    f"{item.named}: reverse=True is a network of the reverse direction alone, which rnncore has not; flip its "
                    "input in time"
                )
            return [self.cell(item.inner("cell"))]
        if item.module.merge_fn is not _interface(item.module, RECURRENT).Bidirectional.merge_fn:
            raise InterchangeError(
                f"{item.named}: expected a merge_fn that concatenates, got {shown(item.module.merge_fn)}"
            )
        sides = [item.inner(side) for side in SIDES]
        if wrong := [side for side in sides if _kind(side) != "RNN"]:
            raise InterchangeError(f"{wrong[0].named}: expected an RNN, got {describe(wrong[0].module)}")
        return [self.cell(side.inner("cell")) for side in sides]

    def cell(self, item: Item) -> Direction:
        """Read a SimpleCell."""
        cell = item.module
        if _kind(item) != "SimpleCell":
            raise InterchangeError(f"{item.named}: expected a SimpleCell, got {describe(cell)}")
        if item.params is None and _name(cell) == "linen":
            raise ArgumentTypeError(
                f"module: expected (module, params), as {describe(cell)} does not hold its parameters"
            )
        if any(cell is other for other in self.cells):
            raise InterchangeError(f"{item.named}: it is another direction's or layer's too; rnncore shares no weights")
        self.cells.append(cell)
        self.nonlinearities[item.path] = nonlinearity_of(cell.activation_fn, f"{item.named}.activation_fn", self.asked)
        zeros = sys.modules["jax"].nn.initializers.zeros
        if cell.carry_init is not None and cell.carry_init is not zeros:
            self.left_out.append(f"carry_init of {item.named}, an initial state, which is h0 here")
        (w_ih, bias_ih), (w_hh, bias_hh) = (self.dense(item, part) for part in KERNELS[_name(cell)])
        if cell.residual:
            if w_hh.ndim != 2 or w_hh.shape[0] != w_hh.shape[1]:
                raise InterchangeError(f"{item.named}: expected a square kernel of the state, got shape {w_hh.shape}")
            w_hh = w_hh + np.eye(len(w_hh), dtype=w_hh.dtype)
        return Direction(w_ih, w_hh, bias_ih, bias_hh)

    def dense(self, item: Item, part: str) -> tuple[Host, Host | None]:
        """Read one of a cell's two layers: the weight as torch has it, and the bias."""
        if _name(item.module) == "nnx":
            layer = _genuine(item.inner(part), "Linear")
            for option, usual in (
                ("dot_general", sys.modules["jax"].lax.dot_general),
                ("preferred_element_type", None),
            ):
                if getattr(layer, option, usual) is not usual:
                    raise InterchangeError(f"{_joined(item.path, part)}: expected {option}={shown(usual)}, got another")
            kernel, bias, dtype = self.value(layer.kernel, item), layer.bias, layer.dtype
            bias = None if bias is None else self.value(bias, item)
        else:
            found = Item(_joined(item.path, part), None, item.below(part))
            kernel, bias, dtype = found.below("kernel"), found.params.get("bias"), item.module.dtype
        for kind, x in (("kernel", kernel), ("bias", bias)):
            if x is not None:
                self.dtypes[_joined(item.path, f"{part}.{kind}")] = self.computed(x, dtype, item)
        return np.ascontiguousarray(self.host(kernel, item).T), None if bias is None else self.host(bias, item)

    def value(self, variable: Any, item: Item) -> Any:
        """Return the array of one of nnx's variables; those of `nnx.eval_shape` have none."""
        if isinstance(variable.get_value(), sys.modules["jax"].ShapeDtypeStruct):
            raise InterchangeError(f"{item.named}: expected parameters with numbers, got a shape and a dtype alone")
        return variable[...]

    def computed(self, kernel: Any, dtype: Any, item: Item) -> str:
        """Return the dtype of an array, in which the cell has to compute."""
        if not hasattr(kernel, "dtype"):
            raise InterchangeError(f"{item.named}: expected arrays of JAX or NumPy, got {describe(kernel)}")
        name = dtype_name(kernel.dtype)
        wanted = name if dtype is None else dtype_name(sys.modules["jax"].dtypes.canonicalize_dtype(dtype))
        if name not in FLOATS or wanted != name:
            raise InterchangeError(
                f"{item.named}: expected parameters of the floating dtype that it computes in, got {name} and dtype {wanted}"
            )
        return name

    def host(self, x: Any, item: Item) -> Host:
        """Return an array's numbers; float32 for bfloat16."""
        jax = get_backend("jax")
        host = jax.to_numpy(x) if jax.is_native(x) else x
        if not isinstance(host, np.ndarray):
            raise InterchangeError(f"{item.named}: expected arrays of JAX or NumPy, got {describe(x)}")
        return host.astype(np.float32) if dtype_name(host.dtype) == "bfloat16" else host


# --- which modules --------------------------------------------------------------------------------------------------------


def _items(item: Item) -> list[Item]:
    """Return the modules of a stack in the order in which they run."""
    module: Any = item.module
    if _is_pair(module):
        module, variables = module
        return _items(Item(item.path, module, variables.get("params", variables)))
    lists: tuple[Any, ...] = (list, tuple, *_classes("List", "nnx"))
    if isinstance(module, lists):
        return [part for k, one in enumerate(module) for part in _items(Item(_joined(item.path, k), one))]
    lib = _interface(module, ("Sequential",))
    if lib is None:
        return [item]
    layers = _genuine(item, "Sequential").layers
    # linen numbers its parameters by the place, and has none for a function or a Dropout.
    params: Any = item.params if isinstance(item.params, Mapping) or item.params is None else {}
    below = [None if params is None else params.get(f"layers_{k}", {}) for k in range(len(layers))]
    path = _joined(item.path, "layers")
    return [part for k, one in enumerate(layers) for part in _items(Item(_joined(path, k), one, below[k]))]


def _stack(items: list[Item], left_out: list[str]) -> tuple[list[Item], float]:
    """Return the recurrent layers of a stack, which run one after another, and the dropout between them."""
    places = [k for k, item in enumerate(items) if _interface(item.module, RECURRENT) is not None]
    if not places:
        kinds = brief(", ".join(describe(item.module) for item in items))
        raise ArgumentTypeError(f"module: expected {EXPECTED}, or a Sequential of them, got {kinds}")
    for k, item in enumerate(items):
        if not places[0] <= k <= places[-1]:
            left_out.append(f"{item.named} ({describe(item.module)})")
    rates: list[float] = []
    for here, after in pairwise(places):
        between = items[here + 1 : after]
        if len(between) > 1 or any(_interface(item.module, ("Dropout",)) is None for item in between):
            raise InterchangeError(
                f"{between[0].named}: expected recurrent layers one after another with at most a Dropout between, got "
                f"{describe(between[0].module)}; give a list of the layers to take"
            )
        rates.append(float(_genuine(between[0], "Dropout").rate) if between else 0.0)
        if between and between[0].module.broadcast_dims:
            raise InterchangeError(
                f"{between[0].named}: expected no broadcast_dims, as each number is dropped by itself"
            )
    if len(set(rates)) > 1:
        raise InterchangeError(f"expected one rate of dropout between all layers, got {', '.join(map(str, rates))}")
    return [items[k] for k in places], rates[0] if rates else 0.0


def _held(module: Any, asked: Asked) -> tuple[str, Any]:
    """Return the network within a module of nnx's, and its path: the one that was asked for, or the only one."""
    nnx = sys.modules["flax.nnx"]
    every = {".".join(map(str, path)): part for path, part in nnx.iter_modules(module)}
    recurrent = _outermost(path for path, part in every.items() if _interface(part, RECURRENT) is not None)
    holding = {path for path in every if any(_within(inner, path) for inner in recurrent)}
    every = {
        path: every[path]
        for path in recurrent | {p for p in holding if isinstance(every[p], (nnx.Sequential, nnx.List))}
    }
    # The members of a mere list need not run one after another.
    outermost = _outermost(path for path, part in every.items() if not isinstance(part, nnx.List))
    if not outermost:
        raise ArgumentTypeError(f"module: expected {EXPECTED}, or a module that holds one, got {describe(module)}")
    path = asked.choose(outermost, every, describe(module))
    return path, every[path]


def _outermost(paths: Iterable[str]) -> set[str]:
    every = set(paths)
    return {path for path in every if not any(_within(path, other) for other in every)}


def _within(path: str, other: str) -> bool:
    return path != other and path.startswith(f"{other}." if other else "")


def _kind(item: Item) -> str | None:
    """Return the name of the recurrent class that a module is of, whose call must be Flax's own."""
    for name in RECURRENT:
        if _interface(item.module, (name,)) is not None:
            _genuine(item, name)
            return name
    return None


def _genuine(item: Item, name: str) -> Any:
    """Return the module, if it is of this class and has its own call."""
    lib = _interface(item.module, (name,))
    if lib is None or type(item.module).__call__ is not getattr(lib, name).__call__:
        raise InterchangeError(f"{item.named}: expected Flax's own {name}, got {describe(item.module)}")
    return item.module


def _interface(module: Any, names: Iterable[str]) -> Any:
    """Return the interface that has the module's class by one of these names, or None."""
    for lib in ("nnx", "linen"):
        if any(isinstance(module, _classes(name, lib)) for name in names):
            return sys.modules[f"flax.{lib}"]
    return None


def _name(cell: Any) -> str:
    return str(_interface(cell, RECURRENT).__name__).rpartition(".")[2]


def _classes(name: str, *libs: str) -> tuple[type, ...]:
    """Return the classes of that name of the interfaces, those that are imported: of the others there is no object."""
    found = [getattr(sys.modules.get(f"flax.{lib}"), name, None) for lib in libs or ("nnx", "linen")]
    return tuple(kind for kind in found if isinstance(kind, type))


def _is_pair(module: Any) -> bool:
    """Whether it is a module with its parameters."""
    return isinstance(module, tuple) and len(module) == 2 and isinstance(module[1], Mapping) and owns(module[0])


def _joined(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)
