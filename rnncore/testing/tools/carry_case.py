"""Arguments of both scans in the form "carry", for its checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from rnncore.backend.abilities import abilities_of
from rnncore.carry import Carry
from rnncore.network.engine import Engine
from rnncore.testing.tools.case import BATCH, STEPS, WIDTH
from rnncore.testing.tools.subject import Subject
from rnncore.typing import Array, Host

__all__ = ["FACTOR_SHAPES", "CarryCase", "carry_of", "engines", "summed", "what"]

Shape: TypeAlias = tuple[int, ...] | None

FULL = (STEPS, BATCH, WIDTH)
# Shapes of a, g and i, None for a factor at its default. They include those of leaks, resets, padding and dropout.
FACTOR_SHAPES: tuple[tuple[Shape, Shape, Shape], ...] = (
    (FULL, FULL, FULL),
    ((WIDTH,), (WIDTH,), None),
    ((STEPS, 1, 1), None, (STEPS, 1, 1)),
    ((STEPS, BATCH, 1), (STEPS, BATCH, 1), None),
    (None, None, (BATCH, WIDTH)),
    ((), (STEPS, 1, WIDTH), (1, 1, WIDTH)),
    (None, FULL, None),
)


class CarryCase:
    """Host numbers, by the names of the nonlinear scan's arguments: p, h0, w, a, g, i.

    The linear scan takes the same numbers: c = p, o = g, i, a, x0 = h0, m = w.
    """

    def __init__(
        self, s: Subject, factors: Sequence[Shape] = FACTOR_SHAPES[0], shape: tuple[int, int, int] = FULL
    ) -> None:
        self.s, self.shape = s, shape
        _, batch, width = shape
        self.numbers: dict[str, Host] = {
            "p": s.draw(*shape), "h0": s.draw(batch, width), "w": s.weights(width)
        }  # fmt: skip
        for name, own in zip("agi", factors, strict=True):
            if own is not None:
                self.numbers[name] = np.clip(np.abs(s.draw(*own)), 0.25, 1.0)
                if own == FULL:
                    self.numbers[name][2, 0] = 0.0

    def given(self, numbers: Mapping[str, Host] | None = None) -> dict[str, Array]:
        """The numbers as arrays of the backend."""
        return {name: self.s.give(x) for name, x in (self.numbers if numbers is None else numbers).items()}

    def full(self) -> dict[str, Host]:
        """All arguments of the oracle's nonlinear scan: each factor or its default as (T, B, H)."""
        found = {name: self.numbers[name] for name in ("p", "h0", "w")}
        for name, default in (("a", 0.0), ("g", 1.0), ("i", 1.0)):
            found[name] = np.array(np.broadcast_to(self.numbers.get(name, np.asarray(default)), self.shape))
        return found

    def full_linear(self) -> dict[str, Host]:
        """All arguments of the oracle's linear scan, by name."""
        full = self.full()
        return {"c": full["p"], "o": full["g"], "i": full["i"], "a": full["a"], "x0": full["h0"], "m": full["w"]}

    def dots(self) -> dict[str, Host]:
        """Draw tangents of the numbers."""
        return {name: self.s.draw(*x.shape, scale=0.5) for name, x in self.numbers.items()}

    def full_dots(self, dots: Mapping[str, Host]) -> dict[str, Host]:
        """Tangents for the oracle's nonlinear scan: 0 for a factor at its default."""
        zero = np.zeros(self.shape)
        full = {n: np.array(np.broadcast_to(dots.get(n, zero), self.shape)) for n in ("a", "g", "i")}
        return {name: dots[name] for name in ("p", "h0", "w")} | full


def carry_of(arrays: Mapping[str, Array]) -> Carry:
    """The factors among these arrays."""
    return Carry(arrays.get("a"), arrays.get("g"), arrays.get("i"))


def engines(s: Subject, *forms: str) -> list[tuple[str, Engine]]:
    """The reference, and the backend's own scans if it names these forms."""
    found = [("reference", s.engine("reference"))]
    if set(forms) <= set(abilities_of(s.backend).scans):
        found.append(("kernel", s.engine("auto")))
    return found


def what(name: str, path: str, reverse: bool, factors: Sequence[Shape] | None = None) -> str:
    """The name of a result, with the path, direction and factors that produced it."""
    end = "" if factors is None else f", factors {factors}"
    return f"{name} ({path}{', reverse' if reverse else ''}{end})"


def summed(x: Host, like: Host) -> Host:
    """Sum x over the axes along which an array of the shape of `like` was broadcast."""
    lead = x.ndim - like.ndim
    axes: Any = tuple(k for k in range(x.ndim) if k < lead or (like.shape[k - lead] == 1 and x.shape[k] != 1))
    return np.asarray(x.sum(axis=axes)).reshape(like.shape)
