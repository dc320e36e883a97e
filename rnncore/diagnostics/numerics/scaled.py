"""Sequences of vectors beyond the range of any dtype: each vector has the logarithm of its scale.

A :class:`Scaled` is ``values * exp(log)``, with one scale for each step and row. :func:`linear` is the linear scan on such
sequences: it runs the backend's scan over a piece of time, keeps the steps within a safe range, and repeats the others with
another scale. The work is about that of one scan, with one transfer to the host for each piece.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rnncore.diagnostics.numerics.device import on_device, take_rows
from rnncore.network.engine import Engine
from rnncore.typing import Array, Host

# Numbers are rescaled before they leave [1 / SAFE, SAFE]. This is far from both ends of the dtype's range, so that added
# numbers that underflow are negligible.
SAFE = {"float64": 1e100, "float32": 1e12, "float16": 1e1, "bfloat16": 1e12}
FIRST_PIECE = 32
LONGEST_PIECE = 1024
# A source smaller than 1 / SAFE to this power, in units of the scale, is lost. This matters only without a state. A smaller
# power would not do: a kept scale may be SAFE^STAYS above the first source, and the largest source another factor SAFE.
TWICE = 2.0
# A scale is kept while the numbers are within this power of SAFE of it.
STAYS = 0.25


@dataclass(frozen=True)
class Scaled:
    """``values * exp(log)``.

    Attributes
    ----------
    values : array (T, B, H)
    log : host array (T, B) of float64
        Natural logarithm of the scale; arbitrary where the values are 0.
    """

    values: Array
    log: Host


def from_array(x: Array) -> Scaled:
    """Plain numbers as a :class:`Scaled` of scale 1."""
    return Scaled(x, np.zeros(tuple(x.shape[:2])))


def log_norm(x: Scaled, *, engine: Engine) -> Host:
    """ln of the 2-norm over the last axis: host (T, B) of float64, -inf for a vector of zeros, NaN for one with NaN."""
    squares = _squares(x.values, engine)
    with np.errstate(divide="ignore", invalid="ignore"):
        ln = np.ascontiguousarray(0.5 * np.log(squares) + x.log)
    # A square leaves the range long before the number does: recompute the uncertain ones on their own scale.
    unsure = ~((squares >= _smallest_sure(x.values, engine)) & (squares < np.inf))
    if unsure.any():
        zero = unsure & (squares == 0) & _all_zero(x.values, engine)
        ln[zero] = -np.inf
        rest = np.flatnonzero(unsure & ~zero)
        if len(rest):
            found = _log_norm_on_own_scale(take_rows(x.values, rest, engine), engine)[0]
            ln.reshape(-1)[rest] = found + x.log.reshape(-1)[rest]
    return ln


def add(a: Scaled, b: Scaled, *, engine: Engine) -> Scaled:
    """Add two sequences, on the larger of the two scales."""
    if np.array_equal(a.log, b.log):
        return Scaled(a.values + b.values, a.log)
    size_a, size_b = log_norm(a, engine=engine), log_norm(b, engine=engine)
    log = np.maximum(size_a, size_b)
    log = np.where(np.isfinite(log), log, 0.0)
    return Scaled(_on_scale(a, log, size_a, engine) + _on_scale(b, log, size_b, engine), log)


def times(x: Scaled, matrix: Array, *, engine: Engine) -> Scaled:
    """Multiply every vector by a matrix (H, K), from the right."""
    return Scaled(engine.product(x.values, matrix), x.log)


def divided(s: Scaled, d: Array, *, engine: Engine) -> Scaled | None:
    """s / d, which undoes the last product of a linear scan; None if some d is not positive or is too close to 0."""
    xp = engine.xp
    ends = engine.backend.to_numpy(xp.stack([xp.min(d), xp.max(d)], axis=0))
    if not (ends[0] > 1 / SAFE[engine.dtype_name] and ends[1] < SAFE[engine.dtype_name]):
        return None
    return Scaled(s.values / d, s.log)


def linear(
    u: Scaled,
    d: Array,
    m: Array,
    *,
    reverse: bool,
    engine: Engine,
    first: Scaled | None = None,
    size_of_u: Host | None = None,
) -> Scaled:
    """``s_t = d_t * (u_t + s_{t-1} M)``, from state 0 or `first` (1, B, H); with `reverse`, s_{t+1} replaces s_{t-1}.

    u and d are (T, B, H), m is (H, H). `size_of_u` is :func:`log_norm` of u, if it is already known.
    """
    xp = engine.xp
    steps, batch = int(d.shape[0]), int(d.shape[1])
    state = xp.zeros_like(d[0, ...]) if first is None else first.values[0, ...]
    state_log = np.zeros(batch) if first is None else np.array(first.log[0])
    source_log = log_norm(u, engine=engine) if size_of_u is None else size_of_u
    parts: list[Array] = []
    logs = np.zeros((steps, batch))
    safe = SAFE[engine.dtype_name]
    room = STAYS * math.log(safe)
    done, piece = 0, FIRST_PIECE
    while done < steps:
        count = min(piece, steps - done)
        a, b = (steps - done - count, steps - done) if reverse else (done, done + count)
        size = _log_largest(state, engine) + state_log
        ahead = source_log[a:b][::-1] if reverse else source_log[a:b]
        count = _before_the_state_is_dwarfed(ahead, size, math.log(safe))
        a, b = (b - count, b) if reverse else (a, a + count)
        largest = np.maximum(size, source_log[a:b].max(axis=0, initial=-np.inf))
        # Keep a scale while it works: most runs need none at all, and their numbers are not changed.
        far = np.isfinite(largest) & (np.abs(largest - state_log) > room)
        scale = np.where(far, largest, state_log)
        piece_of_u = Scaled(u.values[a:b, ...], u.log[a:b])
        sources = _on_scale(piece_of_u, np.broadcast_to(scale, (count, batch)), source_log[a:b], engine)
        begin = _on_scale(Scaled(state, state_log), scale, size, engine)
        with np.errstate(all="ignore"):  # steps out of range are discarded below and repeated
            s = engine.linear(sources, d[a:b, ...], begin, m, reverse=reverse)
        sizes = _sizes(s, engine)
        lost = source_log[a:b] < scale - TWICE * math.log(safe)
        kept = _safe_steps(sizes[::-1] if reverse else sizes, lost[::-1] if reverse else lost, np.isfinite(size), safe)
        s = s[count - kept :, ...] if reverse else s[:kept, ...]
        parts.append(s)
        logs[(b - kept if reverse else a) : (b if reverse else a + kept)] = scale
        state, state_log = s[0 if reverse else -1, ...], scale
        done += kept
        # After a shortened piece, use its length; otherwise try a longer one.
        piece = max(1, kept) if kept < count else min(2 * max(piece, count), LONGEST_PIECE)
    if not parts:
        return Scaled(xp.zeros_like(d), logs)
    if reverse:
        parts.reverse()
    return Scaled(parts[0] if len(parts) == 1 else xp.concat(parts, axis=0), logs)


def _before_the_state_is_dwarfed(ahead: Host, size: Host, room: float) -> int:
    """Number of steps, at least one, before a source so large that the state would underflow on its scale."""
    # A state of 0 begins with the first source, which may be equally small next to later ones.
    begun = ahead[np.argmax(np.isfinite(ahead), axis=0), np.arange(ahead.shape[1])]
    size = np.where(np.isfinite(size), size, begun)
    # If it is the first step, losing the state is correct: it is negligible next to the source in this dtype.
    dwarfed = (np.isfinite(size) & (ahead > size + room)).any(axis=1)
    first = int(np.argmax(dwarfed)) if dwarfed.any() else len(ahead)
    return max(1, first)


def _safe_steps(sizes: Host, lost: Host, alive: Host, safe: float) -> int:
    """Number of steps, in running order, that can be kept: at least one.

    `lost` marks sources below the scale's range, `alive` the rows that had a state at the beginning.
    """
    # A drop to exactly 0 from a safe size is a zero factor, not an underflow, and is kept. So is NaN, which no scale avoids.
    before = np.concatenate([np.ones((1, sizes.shape[1])), sizes[:-1]])
    small = (sizes < 1 / safe) & ~((sizes == 0) & ((before >= 1 / safe) | (before == 0)))
    # After such a zero the state is a small source alone, which needs its own scale.
    before[0] = alive
    wrong = (small | (sizes > safe) | (lost & (before == 0))).any(axis=1)
    first = int(np.argmax(wrong)) if wrong.any() else len(sizes)
    return max(1, first)


def _squares(values: Array, engine: Engine) -> Host:
    """Sums of squares over the last axis, as accurate as the dtype's range allows: host (T, B) of float64."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return engine.backend.to_numpy(engine.xp.vecdot(values, values)).astype(np.float64)


def _all_zero(values: Array, engine: Engine) -> Host:
    """Whether all numbers of a vector are 0: host (T, B) of bool."""
    xp = engine.xp
    both = engine.backend.to_numpy(xp.stack([xp.max(values, axis=-1), xp.min(values, axis=-1)], axis=0))
    return np.asarray((both == 0).all(axis=0))


def _smallest_sure(values: Array, engine: Engine) -> float:
    """The smallest accurate sum of squares: squares below the normal range add at most an eps to it."""
    info = engine.xp.finfo(engine.dtype)
    return float(info.smallest_normal) * int(values.shape[-1]) / float(info.eps)


def _sizes(values: Array, engine: Engine) -> Host:
    """Norms over the last axis, or the largest magnitude where a square may have left the range: host (T, B)."""
    squares = _squares(values, engine)
    if ((squares >= _smallest_sure(values, engine)) & (squares < np.inf)).all():
        return np.asarray(np.sqrt(squares))
    return engine.backend.to_numpy(engine.xp.max(engine.xp.abs(values), axis=-1)).astype(np.float64)


def _log_norm_on_own_scale(values: Array, engine: Engine) -> Host:
    """ln of the norm of every vector, divided by its largest magnitude before squaring: host (T, B)."""
    xp = engine.xp
    largest = xp.max(xp.abs(values), axis=-1)
    usable = xp.logical_and(largest > 0, xp.isfinite(largest))
    unit = xp.where(usable, largest, xp.ones_like(largest))
    # Divide twice by the root: a library may divide by the reciprocal, which is subnormal for the largest `unit`.
    root = xp.expand_dims(1 / xp.sqrt(unit), axis=-1)
    scaled = values * root * root
    squares = xp.sum(scaled * scaled, axis=-1)
    both = engine.backend.to_numpy(xp.stack([largest, squares], axis=0)).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        ln = np.log(np.where(both[0] > 0, both[0], 1.0)) + 0.5 * np.log(both[1])
    return np.where(
        both[0] == 0, -np.inf, np.where(np.isfinite(both[0]), ln, np.where(np.isnan(both[0]), np.nan, np.inf))
    )


def _log_largest(values: Array, engine: Engine) -> Host:
    xp = engine.xp
    largest = engine.backend.to_numpy(xp.max(xp.abs(values), axis=-1)).astype(np.float64)
    with np.errstate(divide="ignore"):
        return np.where(np.isnan(largest), np.inf, np.log(largest))


def _on_scale(x: Scaled, log: Host, size: Host, engine: Engine) -> Array:
    """The values in units of exp(log), given ln of their norm; vectors of zeros are unchanged."""
    difference = np.where(np.isfinite(size) & np.isfinite(log), x.log - log, 0.0)
    return rescaled(x.values, difference, engine=engine)


def rescaled(values: Array, log: Host, *, engine: Engine) -> Array:
    """Multiply values (T, B, H) by exp(log), with log on the host (T, B)."""
    if not log.any():
        return values
    safe = bool((np.abs(log) < math.log(SAFE[engine.dtype_name])).all())
    # In two factors: the scale alone may be out of the dtype's range although the product is not.
    factor = on_device(np.exp(log if safe else log / 2)[..., None], engine)
    return values * factor if safe else values * factor * factor
