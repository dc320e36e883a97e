"""Join parts of a sequence along time: in place where arrays are writable, else by one concat."""

from __future__ import annotations

from rnncore.network.engine import Engine
from rnncore.typing import Array

__all__ = ["TimeJoin"]


class TimeJoin:
    """Collects the parts [a, b) of an array (T, ...) in any order.

    In place, only the result is held. With concat, the parts and the result are briefly held together.
    """

    def __init__(self, steps: int, engine: Engine) -> None:
        self._steps = steps
        self._engine = engine
        self._whole: Array | None = None
        self._parts: dict[int, Array] = {}

    def put(self, start: int, stop: int, part: Array) -> None:
        """Add the part of the times [start, stop)."""
        if not self._engine.writable or stop - start == self._steps:
            self._parts[start] = part
            return
        if self._whole is None:
            shape = (self._steps, *part.shape[1:])
            self._whole = self._engine.xp.empty(shape, dtype=part.dtype, device=self._engine.device)
        self._whole[start:stop, ...] = part

    def joined(self) -> Array:
        """Return the joined array."""
        if self._whole is not None:
            return self._whole
        parts = [self._parts[start] for start in sorted(self._parts)]
        return parts[0] if len(parts) == 1 else self._engine.xp.concat(parts, axis=0)
