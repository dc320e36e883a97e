"""RNNSpec, the validated description of a network: sizes, layers, directions, nonlinearity, bias.

It holds no array and no backend. Sizes are checked in Python integers before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rnncore.arguments import brief, check_bytes, describe, digits, flag, positive_int, probability, shown
from rnncore.errors import ArgumentTypeError, ArgumentValueError
from rnncore.nonlinearity.nonlinearity import Nonlinearity, as_nonlinearity
from rnncore.nonlinearity.nonlinearity import from_config as nonlinearity_from_config

__all__ = ["RNNSpec"]

# Parameters are drawn on the host in float64, whatever the model's dtype.
HOST_ITEM_BYTES = 8
# What an array, its names and its places in mappings take beside its numbers, in numbers: 1 kB.
ARRAY_NUMBERS = 128
OPTIONS = ("bias", "batch_first", "dropout", "bidirectional")
# The keys of version 0.1, which every configuration has. A key of a later version belongs in OPTIONS alone: where an older
# configuration lacks it, the default of RNNSpec.make stands in. Raise VERSION in rnncore.io.header with it.
REQUIRED = frozenset(
    {
        "input_size",
        "hidden_sizes",
        "nonlinearity",
        "custom_nonlinearity",
        "bias",
        "batch_first",
        "dropout",
        "bidirectional",
    }
)


@dataclass(frozen=True)
class RNNSpec:
    """Description of a vanilla (Elman) RNN, without its parameters. Make one with :meth:`RNNSpec.make`.

    Attributes
    ----------
    input_size : int
    hidden_sizes : tuple of int
        Width of each layer; the length is the number of layers.
    nonlinearity : Nonlinearity
        Including the clip.
    bias, batch_first, bidirectional : bool
    dropout : float
    """

    input_size: int
    hidden_sizes: tuple[int, ...]
    nonlinearity: Nonlinearity
    bias: bool = True
    batch_first: bool = False
    dropout: float = 0.0
    bidirectional: bool = False

    @classmethod
    def make(
        cls,
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int = 1,
        nonlinearity: Any = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        clip: float | None = None,
    ) -> RNNSpec:
        """Check the arguments, which are those of :class:`rnncore.RNN`, and build the description.

        Raises
        ------
        ArgumentTypeError, ArgumentValueError, UnknownNameError
            Naming the argument, what was expected and what was got.
        """
        input_size = positive_int("input_size", input_size)
        if isinstance(hidden_size, (list, tuple)):
            if not hidden_size:
                raise ArgumentValueError("hidden_size: expected an int or one int per layer, got an empty sequence")
            widths = tuple(positive_int(f"hidden_size[{k}]", h) for k, h in enumerate(hidden_size))
            layers = len(widths)
            if positive_int("num_layers", num_layers) not in (1, layers):  # 1 is the default
                raise ArgumentValueError(
                    f"num_layers: expected {layers}, the number of widths in hidden_size, got {num_layers}"
                )
        else:
            width = positive_int("hidden_size", hidden_size)
            layers = positive_int("num_layers", num_layers)
            widths = (width, width)[:layers]  # enough to count parameters; the whole tuple might not fit in memory
        flags = {"bias": bias, "batch_first": batch_first, "bidirectional": bidirectional}
        for name, value in flags.items():
            flag(name, value)
        directions = 2 if bidirectional else 1
        _check_total(input_size, widths, layers, directions, bias)
        if len(widths) != layers:
            widths = widths[:1] * layers
        function = as_nonlinearity(nonlinearity, clip=clip)
        return cls(input_size, widths, function, dropout=probability("dropout", dropout), **flags)

    @property
    def num_layers(self) -> int:
        """Number of layers, L."""
        return len(self.hidden_sizes)

    @property
    def num_directions(self) -> int:
        """Number of directions, D: 2 for a bidirectional network, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def uniform(self) -> bool:
        """Whether every layer has the same width, so that h_n is one array."""
        return len(set(self.hidden_sizes)) == 1

    def layer_input_size(self, layer: int) -> int:
        """Input size of a layer: input_size for the first, D times the width below for the others."""
        return self.input_size if layer == 0 else self.num_directions * self.hidden_sizes[layer - 1]

    @cached_property
    def names(self) -> tuple[tuple[tuple[str, ...], ...], ...]:
        """By [layer][direction] the names of weight_ih, weight_hh and, with a bias, bias_ih and bias_hh."""
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if self.bias else 2]
        return tuple(
            tuple(tuple(f"{kind}_{self.suffix(k, d)}" for kind in kinds) for d in range(self.num_directions))
            for k in range(self.num_layers)
        )

    def suffix(self, layer: int, direction: int) -> str:
        """Suffix of a parameter's name, as in torch: ``l0``, ``l0_reverse``, ``l1``, ..."""
        return f"l{layer}" + ("_reverse" if direction else "")

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter, by torch's names and in torch's order.

        >>> from rnncore import RNNSpec
        >>> RNNSpec.make(5, 6).parameter_shapes()
        {'weight_ih_l0': (6, 5), 'weight_hh_l0': (6, 6), 'bias_ih_l0': (6,), 'bias_hh_l0': (6,)}
        """
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, (h, row) in enumerate(zip(self.hidden_sizes, self.names, strict=True)):
            for names in row:
                shapes |= zip(names, ((h, self.layer_input_size(layer)), (h, h), (h,), (h,)), strict=False)
        return shapes

    def to_config(self) -> dict[str, Any]:
        """Convert to plain data that JSON can hold."""
        return {
            "input_size": self.input_size,
            "hidden_sizes": list(self.hidden_sizes),
            "nonlinearity": self.nonlinearity.to_config(),
            "custom_nonlinearity": self.nonlinearity.is_custom,
            **{name: getattr(self, name) for name in OPTIONS},
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, nonlinearity: Any = None) -> RNNSpec:
        """Rebuild a description from :meth:`to_config`, checking everything: the file may be untrusted.

        Of an older version's, options that did not exist then have their defaults. An unknown key is an error.

        Parameters
        ----------
        config : mapping
        nonlinearity : optional
            The function of a network with a custom nonlinearity, which no configuration can hold.

        Raises
        ------
        ArgumentTypeError, ArgumentValueError, UnknownNameError
        """
        _check_keys(config)
        if not isinstance(config["hidden_sizes"], (list, tuple)):
            raise ArgumentTypeError(f"hidden_sizes: expected a list of int, got {shown(config['hidden_sizes'])}")
        stored, custom = config["nonlinearity"], config["custom_nonlinearity"]
        if not isinstance(stored, Mapping) or not isinstance(custom, bool):
            raise ArgumentTypeError(
                f"nonlinearity: expected a mapping and custom_nonlinearity a bool, got {shown(stored)}"
            )
        if custom and nonlinearity is None:
            raise ArgumentValueError(
                f"nonlinearity: expected this network's custom function, {shown(stored.get('name'))}, which is not stored; "
                "pass it as nonlinearity="
            )
        if not custom and nonlinearity is not None:
            raise ArgumentValueError(
                f"nonlinearity: expected None, as this network has {stored.get('name')!r}, got {shown(nonlinearity)}"
            )
        function = (
            as_nonlinearity(nonlinearity, clip=stored.get("clip")) if custom else nonlinearity_from_config(stored)
        )
        widths = config["hidden_sizes"]
        options = {name: config[name] for name in OPTIONS if name in config}
        return cls.make(config["input_size"], widths, len(widths), function, **options)


def _check_keys(config: Any) -> None:
    if not isinstance(config, Mapping):
        raise ArgumentTypeError(f"spec: expected a mapping, as from RNNSpec.to_config, got {describe(config)}")
    faults = [f"missing {key!r}" for key in sorted(REQUIRED - set(config))]
    faults += [f"unexpected {key!r}" for key in config if key not in REQUIRED and key not in OPTIONS]
    if faults:
        raise ArgumentValueError(f"spec: expected the keys of RNNSpec.to_config; {', '.join(faults)}")


def _check_total(input_size: int, widths: tuple[int, ...], layers: int, directions: int, bias: bool) -> None:
    extra = 2 if bias else 0
    counts = []
    for k, h in enumerate(widths):
        read = input_size if k == 0 else directions * widths[k - 1]
        counts.append(directions * h * (read + h + extra))
    arrays = layers * directions * (2 + extra)
    total = arrays * ARRAY_NUMBERS + sum(counts) + (layers - len(widths)) * counts[-1]
    width = digits(widths[0]) if len(set(widths)) == 1 else f"({brief(', '.join(map(digits, widths)))})"
    sizes = f"input_size={digits(input_size)}, hidden_size={width}, num_layers={digits(layers)}"
    check_bytes(sizes, total, HOST_ITEM_BYTES)
