"""Network: parameters, spec and engine bound together, the argument of every call, model and probe.

A :class:`Network` is immutable: replacing a model's parameters gives it another network, so a call sees one set of
parameters throughout.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from rnncore.network.engine import Engine
from rnncore.network.stack import Parameters
from rnncore.network.step import Weights
from rnncore.spec import RNNSpec
from rnncore.typing import Array

__all__ = ["Network"]

# Calls that a network remembers before it clears them.
REMEMBERED = 64


@dataclass(frozen=True, eq=False)
class Network:
    """A network ready to run.

    Attributes
    ----------
    spec : RNNSpec
    params : mapping of str to array
        By torch's names.
    engine : Engine
    check_finite : bool
        Whether calls refuse NaN and infinity.
    """

    spec: RNNSpec
    params: Mapping[str, Array]
    engine: Engine
    check_finite: bool = False
    # Layouts and plans by the shapes of a call; see rnncore.network.calls.prepare.
    plans: dict[Hashable, Any] = field(init=False, default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "params", MappingProxyType(dict(self.params)))

    def remember(self, key: Hashable, value: Any) -> None:
        """Keep what the checks of a call found, by what they depend on. None is not kept."""
        if key is not None:
            if len(self.plans) >= REMEMBERED:
                self.plans.clear()
            self.plans[key] = value

    def with_params(self, params: Mapping[str, Array]) -> Network:
        """Return the network with some or all parameters replaced."""
        other = replace(self, params={**self.params, **params})
        object.__setattr__(other, "plans", self.plans)  # which depend on shapes alone
        return other

    def weights(self, params: Mapping[str, Array] | None = None) -> Parameters:
        """Return the weights by [layer][direction], with the two biases added up.

        `params` replaces the network's own parameters, for example by their tangents.
        """
        given = self.params if params is None else params
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
