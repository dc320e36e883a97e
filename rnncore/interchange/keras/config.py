"""A Keras model's configuration: the chains of vanilla RNN layers in it, and what each of their cells computes.

A configuration is what ``keras.saving.serialize_keras_object`` returns and ``config.json`` in a ``.keras`` file holds. The
file may be untrusted, so each value is checked before it is used; what nothing here understands is refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rnncore.arguments import brief, shown
from rnncore.errors import FileFormatError, InterchangeError
from rnncore.interchange.portable import Asked

__all__ = ["Chain", "Found", "Layer", "Step", "chosen", "find", "kind_of", "label", "object_of"]

MODELS = ("Sequential", "Functional", "Model")
CELLS = ("SimpleRNNCell", "StackedRNNCells")
# Where Keras's functions come from, which are nodes of a graph and no layers.
FUNCTIONS = ("keras.src.ops", "keras.ops", "keras.src.activations")
DEPTH = 16  # of models within models


@dataclass(frozen=True)
class Step:
    """A step from a layer to one inside it: an attribute, and in a list the layer's name or place and its group in HDF5."""

    attribute: str
    key: str | int | None = None
    group: str = ""


@dataclass(frozen=True)
class Layer:
    """A layer of a model: its name with those of the models around it, its class, configuration and place."""

    name: str
    kind: str
    config: Mapping[str, Any]
    where: tuple[Step, ...]
    notes: tuple[str, ...] = ()  # what its place in the model feeds it beside the sequence


@dataclass(frozen=True)
class Chain:
    """RNN layers of which each reads the one before, and the rates of dropout between them."""

    layers: tuple[Layer, ...]
    rates: tuple[float, ...]


@dataclass
class Found:
    """What a model holds: the chains, and every other layer in words."""

    chains: list[Chain] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def find(described: Any) -> Found:
    """Find the chains of a configuration: of a model, of one layer, or of a cell.

    Raises
    ------
    FileFormatError
    """
    found = Found()
    kind, config = object_of(described, "the model")
    if _is_model(described, kind):
        _search(kind, config, (), "", found, DEPTH)
    elif _is_vanilla(described) or (kind in CELLS and _cells_are_vanilla(described)):
        found.chains.append(Chain((Layer(_name(config, kind), kind, config, ()),), ()))
    else:
        found.others.append(label(described))
    return found


def chosen(found: Found, asked: Asked) -> tuple[Chain, list[str]]:
    """Return the chain that is asked for, by the name of any of its layers, and the layers outside it in words.

    Raises
    ------
    ArgumentValueError, UnknownNameError
        If there are several and none is named, or none of that name.
    InterchangeError
        If there is none.
    """
    if not found.chains:
        raise InterchangeError(
            f"it holds no layer of a vanilla RNN, only {brief(', '.join(found.others)) or 'nothing'}"
        )
    names = {layer.name: chain for chain in found.chains for layer in chain.layers}
    short = [name.rpartition("/")[2] for name in names]
    names |= {
        name.rpartition("/")[2]: chain for name, chain in names.items() if short.count(name.rpartition("/")[2]) == 1
    }
    chain = names[asked.choose([chain.layers[0].name for chain in found.chains], names, "the model")]
    others = [f"{x.kind} {x.name!r}" for c in found.chains if c is not chain for x in c.layers]
    return chain, [*found.others, *others]


def object_of(described: Any, what: str) -> tuple[str, Mapping[str, Any]]:
    """Return the class and the configuration of a serialised object.

    Raises
    ------
    FileFormatError
    """
    if isinstance(described, dict):
        kind, config = described.get("class_name"), described.get("config")
        if isinstance(kind, str) and isinstance(config, dict):
            return kind, config
    raise FileFormatError(f"{what}: expected an object with class_name and config, got {shown(described)}")


def kind_of(described: Any) -> str:
    """Return the class of a serialised layer of Keras's own; "" for any other, whose code is not known, and for a function."""
    if not isinstance(described, dict) or _is_function(described):
        return ""
    own = str(described.get("module")).partition(".")[0] == "keras"
    return str(described.get("class_name")) if own else ""


def label(described: Any) -> str:
    """Name a layer for a message by its class and name."""
    kind, config = object_of(described, "a layer")
    return f"{brief(kind)} {_name(config, kind)!r}"


# --- the search -------------------------------------------------------------------------------------------------------


def _search(
    kind: str, config: Mapping[str, Any], where: tuple[Step, ...], prefix: str, found: Found, depth: int
) -> None:
    """Add the chains and other layers of a model."""
    if not depth:
        raise FileFormatError(f"its models are nested more than {DEPTH} deep")
    entries = config.get("layers")
    if not isinstance(entries, list):
        raise FileFormatError(f"layers of {_name(config, kind)!r}: expected a list, got {shown(entries)}")
    layers: list[Layer] = []
    groups: dict[str, int] = {}
    links, fed = _links(entries) if kind != "Sequential" else ({k - 1: k for k in range(1, len(entries))}, {})
    for index, entry in enumerate(entries):
        own, inner = object_of(entry, "a layer")
        group = _snake(own)
        if not _is_function(entry):
            groups[group] = groups.get(group, -1) + 1
        step = Step("layers", _name(inner, own), f"{group}_{groups[group]}" if groups.get(group) else group)
        name = prefix + _name(inner, own)
        layers.append(Layer(name, own, inner, (*where, step), tuple(fed.get(index, ()))))
        if _is_model(entry, own):
            calls = entry.get("inbound_nodes")
            if isinstance(calls, list) and len(calls) > 1:
                found.others.append(f"{own} {name!r} ({_calls(calls)})")
            _search(own, inner, (*where, step), f"{name}/", found, depth - 1)
    _join(entries, layers, links, found)


def _join(entries: list[Any], layers: list[Layer], links: dict[int, int], found: Found) -> None:
    """Make chains of the vanilla layers that follow each other with one activation, in as many directions, at most one dropout
    between them."""
    vanilla = [_is_vanilla(entry) for entry in entries]

    def joins(k: int, after: int) -> bool:
        both = {kind_of(entries[place]) == "Bidirectional" for place in (k, after)}
        return vanilla[after] and len(both) == 1 and _activations(entries[k]) == _activations(entries[after])

    follow: dict[int, tuple[int, float]] = {}
    between = set()
    for k, is_vanilla in enumerate(vanilla):
        after, rate = links.get(k), 0.0
        if not is_vanilla or not _returns_sequences(layers[k]):
            continue
        if after is not None and _is_dropout(entries[after]):
            over, rate = after, float(layers[after].config["rate"])
            after = links.get(after)
            if after is not None and joins(k, after):
                between.add(over)
        if after is not None and joins(k, after):
            follow[k] = after, rate
    inner = {after for after, _ in follow.values()}
    for k in (k for k, is_vanilla in enumerate(vanilla) if is_vanilla and k not in inner):
        chain, rates = [layers[k]], []
        while k in follow:
            k, rate = follow[k]
            chain.append(layers[k])
            rates.append(rate)
        found.chains.append(Chain(tuple(chain), tuple(rates)))
    for k, entry in enumerate(entries):
        if not (vanilla[k] or k in between or _is_model(entry, layers[k].kind) or kind_of(entry) == "InputLayer"):
            found.others.append(f"{brief(layers[k].kind)} {layers[k].name!r}")


def _links(entries: list[Any]) -> tuple[dict[int, int], dict[int, list[str]]]:
    """Of a graph: the layer that alone reads a layer's first output; and by layer what it is fed beside its sequence."""
    places: dict[str, int] = {}
    for k, entry in enumerate(entries):
        _, config = object_of(entry, "a layer")
        places[_name(config, "")] = k
    readers: dict[tuple[str, int], list[int]] = {}
    first: dict[int, tuple[str, int]] = {}
    fed: dict[int, list[str]] = {}
    for k, entry in enumerate(entries):
        nodes = entry.get("inbound_nodes")
        if not isinstance(nodes, list):
            raise FileFormatError(f"inbound_nodes of {label(entry)}: expected a list, got {shown(nodes)}")
        if len(nodes) > 1:
            fed[k] = [_calls(nodes)]
        for node in nodes:
            args = node.get("args") if isinstance(node, dict) else None
            if not isinstance(args, list):
                raise FileFormatError(f"inbound_nodes of {label(entry)}: expected args, got {shown(node)}")
            tensors = list(_tensors([args, node.get("kwargs")]))
            for source in tensors:
                readers.setdefault(source, []).append(k)
            sequence = next(_tensors(args[:1]), None)
            if len(nodes) == 1 and sequence is not None and isinstance(args[0], dict):
                first[k] = sequence
                if len(tensors) > 1:
                    fed[k] = ["an initial state or a mask from other layers, which are h0 and lengths here"]
    links = {
        places[source]: k
        for k, (source, tensor) in first.items()
        if tensor == 0 and source in places and readers[source, 0] == [k]
    }
    return links, fed


def _calls(nodes: list[Any]) -> str:
    """What is lost of a layer that a graph calls several times, as a network of its own runs once."""
    return f"all but one of the {len(nodes)} calls"


def _tensors(value: Any) -> Iterator[tuple[str, int]]:
    """The layer and the number of each output that arguments name."""
    if isinstance(value, list):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        config = value.get("config")
        history = config.get("keras_history") if isinstance(config, dict) else None
        if value.get("class_name") == "__keras_tensor__":
            if not (isinstance(history, list) and len(history) == 3 and isinstance(history[0], str)):
                raise FileFormatError(f"keras_history: expected a layer and two numbers, got {shown(history)}")
            yield history[0], history[2] if isinstance(history[2], int) else -1
        else:
            yield from _tensors(list(value.values()))


def _is_function(described: dict[str, Any]) -> bool:
    return str(described.get("module")).startswith(FUNCTIONS)


def _is_model(described: Any, kind: str) -> bool:
    return kind in MODELS and kind_of(described) == kind


def _is_vanilla(described: Any) -> bool:
    """Whether it is an RNN layer of Keras's own with vanilla cells, whatever its options."""
    kind = kind_of(described)
    if kind == "SimpleRNN":
        return True
    config = described.get("config") if isinstance(described, dict) else None
    if not isinstance(config, dict):
        return False
    if kind == "Bidirectional":
        return kind_of(config.get("layer")) in ("SimpleRNN", "RNN") and _is_vanilla(config.get("layer"))
    return kind == "RNN" and _cells_are_vanilla(config.get("cell"))


def _cells_are_vanilla(described: Any) -> bool:
    if kind_of(described) != "StackedRNNCells":
        return kind_of(described) == "SimpleRNNCell"
    config = described.get("config")
    cells = config.get("cells") if isinstance(config, dict) else None
    return isinstance(cells, list) and bool(cells) and all(kind_of(cell) == "SimpleRNNCell" for cell in cells)


def _activations(described: Any) -> set[str]:
    """The activations of all cells in an entry, each as text."""
    if isinstance(described, list):
        return set().union(*map(_activations, described))
    if not isinstance(described, dict):
        return set()
    own = {_as_text(described["activation"])} if "activation" in described else set()
    return own.union(*(_activations(value) for name, value in described.items() if name != "activation"))


def _as_text(activation: Any) -> str:
    """An activation as text; of a layer such as LeakyReLU without what each has of its own: name, shape and identity."""
    config = activation.get("config") if isinstance(activation, dict) else None
    if isinstance(config, dict):
        kept = {key: value for key, value in config.items() if key != "name"}
        activation = [activation.get("module"), activation.get("class_name"), activation.get("registered_name"), kept]
    return json.dumps(activation, sort_keys=True, default=repr)


def _returns_sequences(layer: Layer) -> bool:
    config = layer.config if layer.kind != "Bidirectional" else object_of(layer.config["layer"], layer.name)[1]
    return config.get("return_sequences") is True


def _is_dropout(described: Any) -> bool:
    """Whether it is dropout of single numbers, as between rnncore's layers."""
    if kind_of(described) != "Dropout":
        return False
    config = described["config"]
    rate = config.get("rate")
    return config.get("noise_shape") is None and type(rate) in (int, float) and 0 <= rate <= 1


def _name(config: Mapping[str, Any], kind: str) -> str:
    name = config.get("name")
    return name if isinstance(name, str) else _snake(kind)


def _snake(kind: str) -> str:
    """The name of a class in HDF5 paths: words in small letters with underscores between them, as Keras divides them."""
    kind = re.sub(r"(?<=.)(?=[A-Z][a-z])", "_", re.sub(r"\W", "", kind))
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind).lower()
