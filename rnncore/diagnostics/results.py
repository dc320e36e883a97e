"""Results by layer and direction, and a walk over all numbers of a result.

A probe returns one result for each lane: one layer in one direction. :class:`Lanes` holds those of a whole network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Generic, TypeVar

import numpy as np

__all__ = ["SHARED", "Lanes", "Stacked", "leaves", "plain"]

R = TypeVar("R")

# Metadata of a field that is the same in every lane.
SHARED = {"shared": True}


class Stacked:
    """Base of results that a report writes field by field: {"total": [layer][direction]}, not [layer][direction]{"total"}."""


class Lanes(tuple[tuple[R, ...], ...], Generic[R]):
    """Results as ``lanes[layer][direction]``.

    An attribute of the results is an attribute of the whole: ``lanes.total[layer][direction]``. For each layer it is one
    array with a leading axis of directions, where the results have arrays or floats. Options such as `threshold`, which
    all results share, come once.

    Examples
    --------
    >>> import numpy as np, rnncore
    >>> from rnncore.diagnostics import record, saturation
    >>> found = record(rnncore.RNN(3, 4, num_layers=2, rng=0), np.ones((5, 2, 3))).map(saturation)
    >>> found[1][0].dead, found.dead[1], found.threshold
    (0.0, array([0.]), 0.99)
    """

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        first = self[0][0] if self and self[0] else None
        if name.startswith("_") or not hasattr(first, name):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        if callable(getattr(first, name)):
            raise AttributeError(f"call it for one lane: [layer][direction].{name}(...)")
        values = [[getattr(result, name) for result in row] for row in self]
        if any(f.name == name and f.metadata.get("shared") for f in fields(first)):  # type: ignore[arg-type]
            return values[0][0]
        if all(v is None for row in values for v in row):
            return None
        if isinstance(values[0][0], Stacked):
            return Lanes(map(tuple, values))
        if isinstance(values[0][0], (np.ndarray, np.generic, float, bool)):
            return tuple(np.stack(row) for row in values)
        return tuple(map(tuple, values))

    def map(self, function: Callable[..., Any], *args: Any, **options: Any) -> Lanes[Any]:
        """Apply a function to the result of each lane."""
        return Lanes(tuple(function(result, *args, **options) for result in row) for row in self)


def _fields(value: Any) -> dict[str, Any] | None:
    """The fields of a dataclass, or of stacked results; None for anything else."""
    if isinstance(value, Lanes) and value and value[0] and isinstance(value[0][0], Stacked):
        return {f.name: getattr(value, f.name) for f in fields(value[0][0])}  # type: ignore[arg-type]
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    return None


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield everything that is no dataclass, mapping or sequence, with its path, such as "horizon[0][1].slope"."""
    if (named := _fields(value)) is not None:
        inner = [(f"{path}.{name}" if path else name, v) for name, v in named.items()]
    elif isinstance(value, Mapping):
        inner = [(f"{path}[{key!r}]", v) for key, v in value.items()]
    elif isinstance(value, (tuple, list)):
        inner = [(f"{path}[{i}]", v) for i, v in enumerate(value)]
    else:
        yield path, value
        return
    for name, v in inner:
        yield from leaves(v, name)


def plain(value: Any) -> Any:
    """Return a value as plain data that JSON can hold: arrays as nested lists, "nan", "inf" and "-inf" as strings."""
    if (named := _fields(value)) is not None:
        value = named
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    # An array on a device is kept for further work; its numbers are in the fields beside it.
    return value if value is None or isinstance(value, (bool, int, float, str)) else None
