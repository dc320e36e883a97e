"""Sequences of different lengths in one batch: masks, ends, and time segments in which the batch is rectangular.

The nonlinear scan must not run over padding, where a relu network could explode. So rows are sorted by length and time is
cut wherever a row ends: each segment holds the rows still running, and its last state is the first of the next segment.
Padding is exactly 0 in every result. The linear scan needs no segments, as d = 0 in the padding.

Lengths that a compiler traces have no numbers to sort or cut by. With them the nonlinear scan runs over all steps in the form
with carry, which keeps the state in the padding as it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from rnncore.backend.arrays import device_of, index_dtype
from rnncore.backend.contract import Backend
from rnncore.carry import Carry
from rnncore.typing import Array, Device, Namespace

__all__ = ["Lengths", "Ragged", "TracedLengths"]


class Lengths(ABC):
    """What every kind of lengths has: masks of steps and rows, and the operations that are made of them."""

    xp: Namespace
    steps: int
    _valid: Array  # (T, B, 1): whether a step is within its row
    _is_end: Array  # (T, B, 1): whether it is the row's last
    _nonempty: Array  # (B, 1): whether the row has any
    _flat_ends: Array  # (B,): where the row's last step, or else its first, is in an array of T*B rows

    @abstractmethod
    def piece(self, start: int, stop: int) -> Lengths:
        """Restrict to the time window [start, stop)."""

    def masked(self, x: Array) -> Array:
        """x (T, B, ...) with the padding replaced by 0, whatever it holds."""
        return self.xp.where(self._valid, x, self.xp.zeros_like(x))

    def at_ends(self, x: Array) -> Array:
        """x (T, B, H) at each row's last valid step: (B, H), 0 where the length is 0."""
        xp, (steps, batch, width) = self.xp, x.shape
        rows = xp.take(xp.reshape(x, (steps * batch, width)), self._flat_ends, axis=0)
        return xp.where(self._nonempty, rows, xp.zeros_like(rows))

    def last_or(self, h: Array, h0: Array) -> Array:
        """The last valid state of each row, h0 where the length is 0: (B, H)."""
        return self.xp.where(self._nonempty, self.at_ends(h), h0)

    def nonempty_or(self, x: Array, otherwise: Array) -> Array:
        """x (B, H) where the row has any step, else `otherwise`."""
        return self.xp.where(self._nonempty, x, otherwise)

    def add_at_ends(self, u: Array, x: Array) -> Array:
        """u (T, B, H) with x (B, H) added at each row's last valid step."""
        return self.xp.where(self._is_end, u + x[None, ...], u)

    def put_at_ends(self, u: Array, x: Array) -> Array:
        """u (T, B, H) with x (B, H) in place of each row's last valid step."""
        return self.xp.where(self._is_end, x[None, ...], u)


@dataclass(frozen=True)
class Ragged(Lengths):
    """The lengths of a batch as numbers, with masks and indices derived from them. `lengths` must be valid.

    Attributes
    ----------
    lengths : tuple of int
        One per row of the batch, each in [0, steps].
    steps : int
    backend, device, xp
        Where the index arrays and masks are made.
    """

    lengths: tuple[int, ...]
    steps: int
    backend: Backend
    device: Device
    xp: Namespace

    def piece(self, start: int, stop: int) -> Ragged:
        """Restrict to the time window [start, stop)."""
        inside = tuple(min(max(n - start, 0), stop - start) for n in self.lengths)
        return Ragged(inside, stop - start, self.backend, self.device, self.xp)

    @cached_property
    def segments(self) -> list[tuple[int, int, int]]:
        """(start, stop, rows): in [start, stop) the first `rows` rows of the sorted batch are running."""
        ends = sorted(set(self.lengths) - {0})
        return [(a, b, sum(n >= b for n in self.lengths)) for a, b in pairwise([0, *ends])]

    @cached_property
    def longest_first(self) -> Array:
        """Indices that sort the rows, the longest first."""
        return self._indices(self._order)

    @cached_property
    def original_order(self) -> Array:
        """Indices that undo :attr:`longest_first`."""
        return self._indices(np.argsort(self._order, kind="stable"))

    @cached_property
    def _order(self) -> np.ndarray[Any, Any]:
        return np.argsort(-np.asarray(self.lengths, dtype=np.int64), kind="stable")

    @cached_property
    def _valid(self) -> Array:
        steps = np.arange(self.steps)[:, None, None]
        return self._truth(steps < np.asarray(self.lengths, dtype=np.int64)[None, :, None])

    @cached_property
    def _is_end(self) -> Array:
        steps = np.arange(self.steps)[:, None, None]
        return self._truth(steps == np.asarray(self.lengths, dtype=np.int64)[None, :, None] - 1)

    @cached_property
    def _nonempty(self) -> Array:
        return self._truth(np.asarray(self.lengths, dtype=np.int64)[:, None] > 0)

    @cached_property
    def _flat_ends(self) -> Array:
        batch = len(self.lengths)
        ends = np.maximum(np.asarray(self.lengths, dtype=np.int64) - 1, 0)
        return self._indices(ends * batch + np.arange(batch))

    def _indices(self, x: np.ndarray[Any, Any]) -> Array:
        dtype = index_dtype(xp=self.xp, device=self.device)
        return self.backend.asarray(x.astype(np.int64), dtype=dtype, device=self.device)

    def _truth(self, x: np.ndarray[Any, Any]) -> Array:
        return self.backend.asarray(x, dtype=self.xp.bool, device=self.device)


@dataclass(frozen=True)
class TracedLengths(Lengths):
    """The lengths of a batch as an array of integers in [0, steps] whose numbers are not known yet.

    Attributes
    ----------
    lengths : array (B,)
    steps : int
    xp
    """

    lengths: Array
    steps: int
    xp: Namespace

    def piece(self, start: int, stop: int) -> TracedLengths:
        """Restrict to the time window [start, stop)."""
        inside = self.xp.clip(self.lengths - start, 0, stop - start)
        return TracedLengths(inside, stop - start, self.xp)

    def carry(self, like: Array) -> Carry:
        """The factors, in the dtype of `like`, with which a scan keeps its state in the padding and reads nothing there."""
        runs = self.xp.astype(self._valid, like.dtype)
        return Carry(a=1 - runs, g=runs, i=runs)

    @cached_property
    def _valid(self) -> Array:
        return self._step < self.lengths[None, :, None]

    @cached_property
    def _is_end(self) -> Array:
        return self._step == self.lengths[None, :, None] - 1

    @cached_property
    def _nonempty(self) -> Array:
        return self.lengths[:, None] > 0

    @cached_property
    def _flat_ends(self) -> Array:
        batch = self.lengths.shape[0]
        return self.xp.clip(self.lengths - 1, 0, self.steps) * batch + self._count(batch)

    @property
    def _step(self) -> Array:
        return self._count(self.steps)[:, None, None]

    def _count(self, n: int) -> Array:
        return self.xp.arange(n, dtype=self.lengths.dtype, device=device_of(self.lengths))
