"""Sequences of vectors beyond the range of any dtype: each carries the logarithm of its scale, so 10,000 steps lose nothing.

A :class:`Scaled` is ``values * exp(log)``, with one scale for each step and row. :func:`linear` is the linear scan on such
sequences: it runs the backend's own scan over a piece of time, and keeps of it what stayed within a safe range; the rest is
run again from there with another scale. So the work is that of one scan, and the host is asked once for each piece.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnncore.backend import Array
from rnncore.dispatch import Engine

__all__ = ["Scaled", "add", "from_array", "linear", "log_norm", "times"]

# Numbers are rescaled before they leave [1 / SAFE, SAFE]: far from both ends of the dtype, so that what is added to them
# and is too small for the dtype is too small to matter.
SAFE = {"float64": 1e100, "float32": 1e12, "float16": 1e1, "bfloat16": 1e12}
FIRST_PIECE = 32
LONGEST_PIECE = 1024

Host = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Scaled:
    """``values * exp(log)``.

    Attributes
    ----------
    values : array (T, B, H)
    log : host array (T, B) of float64
        Natural logarithm of the scale; what it is where the values are 0 does not matter.
    """

    values: Array
    log: Host


def from_array(x: Array) -> Scaled:
    """Plain numbers."""
    return Scaled(x, np.zeros(tuple(x.shape[:2])))


def log_norm(x: Scaled, *, engine: Engine) -> Host:
    """ln of the 2-norm over the last axis: host (T, B) of float64, -inf for a vector of zeros, NaN for one with NaN."""
    xp = engine.xp
    # Divided by the largest magnitude first: a square leaves the range long before the number does.
    largest = xp.max(xp.abs(x.values), axis=-1)
    usable = xp.logical_and(largest > 0, xp.isfinite(largest))
    unit = xp.where(usable, largest, xp.ones_like(largest))
    # Twice by the root: a library may divide by way of the reciprocal, which is no normal number where `unit` is the largest.
    root = xp.expand_dims(1 / xp.sqrt(unit), axis=-1)
    scaled = x.values * root * root
    squares = xp.sum(scaled * scaled, axis=-1)
    both = engine.backend.to_numpy(xp.stack([largest, squares], axis=0)).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        ln = np.log(np.where(both[0] > 0, both[0], 1.0)) + 0.5 * np.log(both[1]) + x.log
    return np.where(
        both[0] == 0, -np.inf, np.where(np.isfinite(both[0]), ln, np.where(np.isnan(both[0]), np.nan, np.inf))
    )


def add(a: Scaled, b: Scaled, *, engine: Engine) -> Scaled:
    """The sum, on the larger of the two scales."""
    size_a, size_b = _effective(a, engine), _effective(b, engine)
    log = np.maximum(size_a, size_b)
    log = np.where(np.isfinite(log), log, 0.0)
    return Scaled(_on_scale(a, log, size_a, engine) + _on_scale(b, log, size_b, engine), log)


def times(x: Scaled, matrix: Array, *, engine: Engine) -> Scaled:
    """Every vector times a matrix (H, K), from the right."""
    return Scaled(engine.xp.matmul(x.values, matrix), x.log)


def linear(u: Scaled, d: Array, m: Array, *, reverse: bool, engine: Engine, first: Scaled | None = None) -> Scaled:
    """``s_t = d_t * (u_t + s_{t-1} M)``, from state 0 or `first` (1, B, H); with `reverse`, s_{t+1} takes its place.

    u and d are (T, B, H), m is (H, H).
    """
    xp = engine.xp
    steps, batch = int(d.shape[0]), int(d.shape[1])
    state = xp.zeros_like(d[0, ...]) if first is None else first.values[0, ...]
    state_log = np.zeros(batch) if first is None else np.array(first.log[0])
    source_log = _effective(u, engine)
    parts: list[Array] = []
    logs = np.zeros((steps, batch))
    safe = SAFE[engine.dtype_name]
    done, piece = 0, FIRST_PIECE
    while done < steps:
        count = min(piece, steps - done)
        a, b = (steps - done - count, steps - done) if reverse else (done, done + count)
        size = _log_largest(state, engine) + state_log
        ahead = source_log[a:b][::-1] if reverse else source_log[a:b]
        count = _before_the_state_is_dwarfed(ahead, size, math.log(safe))
        a, b = (b - count, b) if reverse else (a, a + count)
        scale = np.maximum(size, source_log[a:b].max(axis=0, initial=-np.inf))
        scale = np.where(np.isfinite(scale), scale, 0.0)
        piece_of_u = Scaled(u.values[a:b, ...], u.log[a:b])
        sources = _on_scale(piece_of_u, np.broadcast_to(scale, (count, batch)), source_log[a:b], engine)
        begin = _on_scale(Scaled(state, state_log), scale, size, engine)
        with np.errstate(all="ignore"):  # what leaves the dtype's range is thrown away below, and run again
            s = engine.linear(sources, d[a:b, ...], begin, m, reverse=reverse)
        sizes = engine.backend.to_numpy(xp.max(xp.abs(s), axis=-1)).astype(np.float64)
        kept = _safe_steps(sizes[::-1] if reverse else sizes, safe)
        s = s[count - kept :, ...] if reverse else s[:kept, ...]
        parts.append(s)
        logs[(b - kept if reverse else a) : (b if reverse else a + kept)] = scale
        state, state_log = s[0 if reverse else -1, ...], scale
        done += kept
        # A piece that was cut short says how far one can go; one that was not may be longer.
        piece = max(1, kept) if kept < count else min(2 * max(piece, count), LONGEST_PIECE)
    if not parts:
        return Scaled(xp.zeros_like(d), logs)
    if reverse:
        parts.reverse()
    return Scaled(parts[0] if len(parts) == 1 else xp.concat(parts, axis=0), logs)


def _before_the_state_is_dwarfed(ahead: Host, size: Host, room: float) -> int:
    """How many steps until a source so large comes that the state, on its scale, would be lost: at least one."""
    # Of that first step the state is lost rightly: what is added to it there is all that its dtype can hold.
    dwarfed = (np.isfinite(size) & (ahead > size + room)).any(axis=1)
    first = int(np.argmax(dwarfed)) if dwarfed.any() else len(ahead)
    return max(1, first)


def _safe_steps(sizes: Host, safe: float) -> int:
    """How many of the steps, in the order in which they ran, may be kept: at least one."""
    # A fall to exactly 0 from a safe size is a zero factor, not an underflow, and may stay. So may NaN: no scale made it.
    before = np.concatenate([np.ones((1, sizes.shape[1])), sizes[:-1]])
    small = (sizes < 1 / safe) & ~((sizes == 0) & ((before >= 1 / safe) | (before == 0)))
    wrong = (small | (sizes > safe)).any(axis=1)
    first = int(np.argmax(wrong)) if wrong.any() else len(sizes)
    return max(1, first)


def _effective(x: Scaled, engine: Engine) -> Host:
    """ln of the largest magnitude, scale included: host (T, B)."""
    return _log_largest(x.values, engine) + x.log


def _log_largest(values: Array, engine: Engine) -> Host:
    xp = engine.xp
    largest = engine.backend.to_numpy(xp.max(xp.abs(values), axis=-1)).astype(np.float64)
    with np.errstate(divide="ignore"):
        return np.where(np.isnan(largest), np.inf, np.log(largest))


def _on_scale(x: Scaled, log: Host, size: Host, engine: Engine) -> Array:
    """The values in units of exp(log), given ln of their largest magnitude; zeros have no scale, and stay."""
    difference = np.where(np.isfinite(size) & np.isfinite(log), x.log - log, 0.0)
    if not difference.any():
        return x.values
    # In two factors: the scale alone may lie outside of the dtype where the product does not.
    half = engine.backend.asarray(np.exp(difference / 2)[..., None], dtype=engine.dtype, device=engine.device)
    return x.values * half * half
