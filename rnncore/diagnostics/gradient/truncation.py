"""The error of the gradient of W_hh when backpropagation through time stops after K steps.

The gradient is a sum over lags, ``g = sum_n C_n`` with ``C_n = sum over rows of delta^T h`` at lag n; truncated at K it lacks
``R_K``, the sum from K on. R_K is made from the farthest lag towards the loss, so that small sums are made of small numbers,
one product for each block of lags. Blocks are longer where lags are more; where the bias crosses a level they are split until
it is known between which two lags.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rnncore.diagnostics.numerics.scaled import Scaled, log_norm, rescaled
from rnncore.network.engine import Engine
from rnncore.typing import Array, Host

__all__ = ["LEVELS", "Truncation", "truncation"]

LEVELS = (0.1, 0.01)
# Follow every lag on its own if the matrices have at most this many numbers, or half of those of the states.
FEW_NUMBERS = 2**16
# Of the lags after the first ones each block is longer by this share; parts that a block is split into.
GROWTH, PARTS, SINGLE = 0.2, 4, 8
# Limit of the matrices kept until the bias is known: a multiple of the states' numbers, or a number.
KEPT, KEPT_NUMBERS, FEWEST_BLOCKS = 4, 2**22, 8
# Beyond these a product of a gradient and a state is brought back to 1 first.
LARGE_STATE = 1e6


@dataclass(frozen=True)
class Truncation:
    """The bias by lag.

    Attributes
    ----------
    lags : host array (n,) of int
        From 0 to N, ascending.
    bias : host array (n,)
        ``||R_K|| / ||g||`` for each K of `lags`: 1 at 0, and 0 at N. NaN where g is 0.
    """

    lags: Host
    bias: Host

    def smallest(self, level: float) -> int | None:
        """The smallest of the lags from which on the bias is at most `level`; None where g is 0."""
        below = self.bias <= level
        if not len(below) or not below[-1]:
            return None
        return int(self.lags[0 if below.all() else len(below) - int(np.argmin(below[::-1]))])


@dataclass
class _Tail:
    """R_K as a matrix and the logarithm of its scale; None for 0."""

    matrix: Array | None
    log: float


def truncation(delta: Scaled, before: Array, *, engine: Engine) -> Truncation:
    """The bias of truncation at each lag, from dL/dz and the states before, both (N, B, H) with lag 0 first.

    Parameters
    ----------
    delta : Scaled
        Of (N, B, H): dL/dz at each lag.
    before : array (N, B, H)
        The state that each step started from.
    """
    lags, batch, width = (int(n) for n in delta.values.shape)
    if not batch:
        return Truncation(np.arange(lags + 1), np.full(lags + 1, math.nan))
    sums = _Sums(delta, before, engine)
    edges = _edges(lags, batch, width)
    tails = {lags: _Tail(None, 0.0)}
    for a, b in zip(edges[-2::-1], edges[:0:-1], strict=True):
        tails[a] = sums.extend(tails[b], a, b)
    ln = {k: sums.log_norm(tail) for k, tail in tails.items()}
    whole = ln[0]
    if whole > -math.inf:
        for level in LEVELS:
            _narrow(sums, tails, ln, whole + math.log(level))
    known = np.asarray(sorted(ln))
    values = np.asarray([ln[int(k)] for k in known])
    with np.errstate(over="ignore"):
        bias = np.exp(values - whole) if math.isfinite(whole) else np.full(len(known), math.nan)
    return Truncation(known, bias)


def _edges(lags: int, batch: int, width: int) -> list[int]:
    """Where blocks of lags begin, and the last ends."""
    if lags * width**2 <= FEW_NUMBERS or 2 * width <= batch:
        return list(range(lags + 1))
    most = max(FEWEST_BLOCKS, min(lags, max(KEPT * lags * batch * width, KEPT_NUMBERS) // width**2))
    edges = list(range(min(SINGLE, most // 2, lags) + 1))
    while edges[-1] < lags:
        edges.append(min(lags, edges[-1] + max(1, int(GROWTH * edges[-1]))))
    if len(edges) - 1 > most:
        edges = sorted({edges[round(i)] for i in np.linspace(0, len(edges) - 1, most + 1)})
    return edges


def _narrow(sums: _Sums, tails: dict[int, _Tail], ln: dict[int, float], level: float) -> None:
    """Split the last block in which the level is crossed, until it is one lag."""
    while True:
        known = sorted(ln)
        above = [i for i, k in enumerate(known) if ln[k] > level]
        if not above or above[-1] + 1 == len(known):
            return
        a, b = known[above[-1]], known[above[-1] + 1]
        if b - a == 1:
            return
        inner = sorted({a + round((b - a) * i / PARTS) for i in range(1, PARTS)} - {a, b})
        for near, far in zip(inner[::-1], [b, *inner[:0:-1]], strict=True):
            tails[near] = sums.extend(tails[far], near, far)
            ln[near] = sums.log_norm(tails[near])


class _Sums:
    """Sums of outer products over blocks of lags, each block on the scale of what is largest in it."""

    def __init__(self, delta: Scaled, before: Array, engine: Engine) -> None:
        xp = engine.xp
        self.delta, self.engine = delta, engine
        self.size = log_norm(delta, engine=engine)
        ends = engine.backend.to_numpy(xp.stack([xp.max(before), xp.min(before)], axis=0)).astype(np.float64)
        largest = float(np.abs(ends).max())
        # Only ratios are asked for, so the states may be measured in any unit.
        usual = not math.isfinite(largest) or largest == 0 or 1 / LARGE_STATE < largest < LARGE_STATE
        self.before = before if usual else before / largest

    def extend(self, tail: _Tail, a: int, b: int) -> _Tail:
        """R_a from R_b."""
        xp, size = self.engine.xp, self.size[a:b]
        top = np.unravel_index(int(np.argmax(size)), size.shape)
        if size[top] == -np.inf:
            return tail
        log = self.delta.log[a:b]
        scale = float(log[top])
        difference = np.where(np.isfinite(size), log - scale, 0.0)
        values = self.delta.values[a:b, ...]
        if difference.any():
            values = rescaled(values, difference, engine=self.engine)
        flat = (-1, int(values.shape[2]))
        share = xp.matmul(xp.matrix_transpose(xp.reshape(values, flat)), xp.reshape(self.before[a:b, ...], flat))
        if tail.matrix is None:
            return _Tail(share, scale)
        # The smaller scale gives way; a factor of 0 is of what no sum in this dtype would show.
        low, high = sorted((scale, tail.log))
        factor = math.exp(low - high)
        if scale < tail.log:
            return _Tail(tail.matrix + share * factor, high)
        return _Tail(share + (tail.matrix if factor == 1 else tail.matrix * factor), high)

    def log_norm(self, tail: _Tail) -> float:
        """ln ||R_K||_F."""
        if tail.matrix is None:
            return -math.inf
        flat = self.engine.xp.reshape(tail.matrix, (1, 1, -1))
        return float(log_norm(Scaled(flat, np.full((1, 1), tail.log)), engine=self.engine)[0, 0])
