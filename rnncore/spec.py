"""RNNSpec: the frozen, validated description of a network: sizes, layers, directions, nonlinearity, bias.

It holds no array and no backend. Every size is checked here with Python integers, before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rnncore.arguments import _digits, check_bytes, positive_int, probability
from rnncore.errors import ArgumentTypeError, ArgumentValueError
from rnncore.nonlinearity.nonlinearity import Nonlinearity, as_nonlinearity
from rnncore.nonlinearity.nonlinearity import from_config as nonlinearity_from_config

__all__ = ["RNNSpec"]

# Parameters are drawn on the host in float64 whatever the model's dtype, so this is what making them takes.
HOST_ITEM_BYTES = 8


@dataclass(frozen=True)
class RNNSpec:
    """A vanilla (Elman) RNN without its numbers. Make one with :meth:`RNNSpec.make`.

    Attributes
    ----------
    input_size : int
    hidden_sizes : tuple of int
        The width of each layer; its length is the number of layers.
    nonlinearity : Nonlinearity
        The clip is part of it.
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
        """Check every argument and build the description. The arguments are those of :class:`rnncore.RNN`.

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
            if positive_int("num_layers", num_layers) not in (1, layers):  # 1 is what stands there if nothing was said
                raise ArgumentValueError(
                    f"num_layers: expected {layers}, the number of widths in hidden_size, got {num_layers}"
                )
        else:
            width = positive_int("hidden_size", hidden_size)
            layers = positive_int("num_layers", num_layers)
            widths = (width, width)[:layers]  # two are enough to count; the whole tuple could be too large to make
        for name, value in (("bias", bias), ("batch_first", batch_first), ("bidirectional", bidirectional)):
            if not isinstance(value, bool):
                raise ArgumentTypeError(f"{name}: expected True or False, got {value!r}")
        directions = 2 if bidirectional else 1
        _check_total(input_size, widths, layers, directions, bias)
        if len(widths) != layers:
            widths = widths[:1] * layers
        return cls(
            input_size,
            widths,
            as_nonlinearity(nonlinearity, clip=clip),
            bias,
            batch_first,
            probability("dropout", dropout),
            bidirectional,
        )

    @property
    def num_layers(self) -> int:
        """Number of layers, L."""
        return len(self.hidden_sizes)

    @property
    def num_directions(self) -> int:
        """D: 2 for a bidirectional network, else 1."""
        return 2 if self.bidirectional else 1

    @cached_property
    def uniform(self) -> bool:
        """Whether every layer has the same width, so that h_n is one array."""
        return len(set(self.hidden_sizes)) == 1

    def layer_input_size(self, layer: int) -> int:
        """What the layer reads: input_size for the first, D times the width below for the others."""
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
        """torch's suffix of a parameter's name: ``l0``, ``l0_reverse``, ``l1``, ..."""
        return f"l{layer}" + ("_reverse" if direction else "")

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """torch's names in torch's order, each with its shape.

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
        """Plain data that JSON can hold; :meth:`from_config` reads it."""
        return {
            "input_size": self.input_size,
            "hidden_sizes": list(self.hidden_sizes),
            "nonlinearity": self.nonlinearity.to_config(),
            "custom_nonlinearity": self.nonlinearity.is_custom,
            "bias": self.bias,
            "batch_first": self.batch_first,
            "dropout": self.dropout,
            "bidirectional": self.bidirectional,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, nonlinearity: Any = None) -> RNNSpec:
        """The inverse of :meth:`to_config`, checking everything: the mapping may come from a stranger's file.

        `nonlinearity` stands in for a user's own function, which no configuration can hold.
        """
        known = {
            "input_size",
            "hidden_sizes",
            "nonlinearity",
            "custom_nonlinearity",
            "bias",
            "batch_first",
            "dropout",
            "bidirectional",
        }
        if not isinstance(config, Mapping) or set(config) != known:
            got = sorted(map(str, config)) if isinstance(config, Mapping) else type(config).__name__
            raise ArgumentValueError(f"spec: expected a mapping with the keys {sorted(known)}, got {got}")
        if not isinstance(config["hidden_sizes"], (list, tuple)):
            raise ArgumentTypeError(f"hidden_sizes: expected a list of int, got {config['hidden_sizes']!r}")
        stored, custom = config["nonlinearity"], config["custom_nonlinearity"]
        if not isinstance(stored, Mapping) or not isinstance(custom, bool):
            raise ArgumentTypeError(f"nonlinearity: expected a mapping and custom_nonlinearity a bool, got {stored!r}")
        if custom and nonlinearity is None:
            raise ArgumentValueError(
                f"nonlinearity: this network was made with a user's own function, {stored.get('name')!r}; "
                "give it as nonlinearity="
            )
        if not custom and nonlinearity is not None:
            raise ArgumentValueError(
                f"nonlinearity: this network has {stored.get('name')!r}, which needs none to be given, got {nonlinearity!r}"
            )
        if custom:
            nonlinearity = as_nonlinearity(nonlinearity, clip=stored.get("clip"))
        else:
            nonlinearity = nonlinearity_from_config(stored)
        return cls.make(
            config["input_size"],
            tuple(config["hidden_sizes"]),
            len(config["hidden_sizes"]),
            nonlinearity,
            config["bias"],
            config["batch_first"],
            config["dropout"],
            config["bidirectional"],
        )


def _check_total(input_size: int, widths: tuple[int, ...], layers: int, directions: int, bias: bool) -> None:
    extra = 2 if bias else 0
    counts = []
    for k, h in enumerate(widths):
        read = input_size if k == 0 else directions * widths[k - 1]
        counts.append(directions * h * (read + h + extra))
    total = sum(counts) + (layers - len(widths)) * counts[-1]
    width = _digits(widths[0]) if len(set(widths)) == 1 else f"({', '.join(map(_digits, widths))})"
    sizes = f"input_size={_digits(input_size)}, hidden_size={width}, num_layers={_digits(layers)}"
    check_bytes(sizes, total, HOST_ITEM_BYTES)
