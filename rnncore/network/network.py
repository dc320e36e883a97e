"""Network: parameters, spec and engine bound together, the argument of every call, model and probe.

A :class:`Network` is immutable: replacing a model's parameters gives it another network, so a call sees one set of
parameters throughout.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rnncore.network.engine import Engine
from rnncore.network.stack import Parameters
from rnncore.network.step import Weights
from rnncore.spec import RNNSpec
from rnncore.typing import Array

__all__ = ["Network", "Params"]

# Calls that a network remembers before it clears them.
REMEMBERED = 64


class Params(Mapping[str, Array]):
    """A read-only mapping from names to arrays, which holds the arrays themselves.

    It is a class of its own so that a library that maps functions over containers of arrays can be told of it.

    Examples
    --------
    >>> import rnncore
    >>> rnncore.RNN(5, 6).params["weight_hh_l0"].shape
    (6, 6)
    """

    __slots__ = ("_arrays",)

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._arrays = dict(arrays)

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        return f"Params({self._arrays!r})"


@dataclass(frozen=True, eq=False)
class Network:
    """A network ready to run.

    Attributes
    ----------
    spec : RNNSpec
    params : Params
        By torch's names.
    engine : Engine
    check_finite : bool
        Whether calls refuse NaN and infinity.
    """

    spec: RNNSpec
    params: Mapping[str, Array]
    engine: Engine
    check_finite: bool = False
    # The same arrays, in a dict that costs less to read.
    _given: dict[str, Array] = field(init=False, repr=False)
    # Layouts and plans by the shapes of a call; see rnncore.network.calls.prepare.
    plans: dict[Hashable, Any] = field(init=False, default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_given", dict(self.params))
        object.__setattr__(self, "params", Params(self._given))

    def remember(self, key: Hashable, value: Any) -> None:
        """Keep what the checks of a call found, by what they depend on. None is not kept."""
        if key is not None:
            if len(self.plans) >= REMEMBERED:
                self.plans.clear()
            self.plans[key] = value

    def with_params(self, params: Mapping[str, Array]) -> Network:
        """Return the network with some or all parameters replaced."""
        other = replace(self, params={**self._given, **params})
        object.__setattr__(other, "plans", self.plans)  # which depend on shapes alone
        return other

    def weights(self, params: Mapping[str, Array] | None = None) -> Parameters:
        """Return the weights by [layer][direction], with the two biases added up.

        `params` replaces the network's own parameters, for example by their tangents.
        """
        given = self._given if params is None else params
        nested = []
        for row in self.spec.names:
            weights = []
            for w_ih, w_hh, *bias in row:
                b = given[bias[0]] + given[bias[1]] if bias else None
                weights.append(Weights(given[w_ih], given[w_hh], b))
            nested.append(weights)
        return nested

    def named(self, nested: Parameters) -> dict[str, Array]:
        """Return gradients by torch's names from gradients by [layer][direction]."""
        named: dict[str, Array] = {}
        cast = self.engine.cast
        for names, row in zip(self.spec.names, nested, strict=True):
            for (w_ih, w_hh, *bias), w in zip(names, row, strict=True):
                named[w_ih], named[w_hh] = cast(w.weight_ih), cast(w.weight_hh)
                if bias:
                    named[bias[0]] = cast(w.bias)
                    # A copy, so that scaling gradients in place cannot scale this one twice.
                    named[bias[1]] = self.engine.copy(named[bias[0]])
        return named
