"""Carry directions through a long product of recurrent Jacobians, in pieces that keep accuracy and range.

A :class:`JacobianChain` applies the Jacobians ``J_t = diag(f'(z_t)) W_hh`` to vectors, by the linear scan. A :class:`Frame`
holds a few orthonormal directions. After each piece of time they are orthonormalised and the triangular factor is passed to
the caller: the product of the Jacobians is the frame times the product of the factors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnncore.arguments import integer, sequence, shown
from rnncore.backend.arrays import find_dtype
from rnncore.diagnostics.lane import Lane
from rnncore.diagnostics.numerics.device import EPS, indices, on_device, on_host
from rnncore.diagnostics.numerics.scaled import SAFE
from rnncore.errors import ArgumentValueError
from rnncore.network.engine import Engine
from rnncore.typing import Array, Host, Namespace

__all__ = ["Frame", "JacobianChain", "advance", "chains", "orthonormal", "start_frame"]


FIRST_PIECE = 4
LONGEST_PIECE = 64
# Pieces between two transfers to the host, and the largest number of elements of their factors on the device.
PIECES = 16
WAITING = 2**22


@dataclass(frozen=True)
class JacobianChain:
    """The Jacobians of some rows over some steps, as functions of vectors.

    Attributes
    ----------
    steps, rows, width : int
    push : callable
        ``push(v, a, b)``: ``J_{b-1} ... J_a v`` of row vectors v (B, k, H), and the largest magnitude on the way (B,).
    pull : callable
        ``pull(v, a, b)``: the same for the transpose, ``J_a^T ... J_{b-1}^T v``.
    """

    steps: int
    rows: int
    width: int
    engine: Engine
    push: Callable[[Array, int, int], tuple[Array, Array]]
    pull: Callable[[Array, int, int], tuple[Array, Array]]

    @staticmethod
    def of_network(d: Array, w: Array, *, engine: Engine, reverse: bool = False) -> JacobianChain:
        """``J_t = diag(d_t) W``: d (T, B, H), w (H, H). With `reverse`, step 0 of the chain is the last of d."""
        steps, rows, width = (int(n) for n in d.shape)
        xp, w_t = engine.xp, engine.xp.matrix_transpose(w)

        def slopes(k: int, a: int, b: int) -> Array:
            part = d[steps - b : steps - a, ...] if reverse else d[a:b, ...]
            repeated = xp.broadcast_to(xp.expand_dims(part, axis=2), (b - a, rows, k, width))
            return xp.reshape(repeated, (b - a, rows * k, width))

        def largest(s: Array, k: int) -> Array:
            return xp.max(xp.reshape(xp.max(xp.abs(s), axis=(0, 2)), (rows, k)), axis=1)

        def push(v: Array, a: int, b: int) -> tuple[Array, Array]:
            k = int(v.shape[1])
            d_ab = slopes(k, a, b)
            s = engine.linear(xp.zeros_like(d_ab), d_ab, xp.reshape(v, (rows * k, width)), w_t, reverse=reverse)
            return xp.reshape(s[0 if reverse else -1, ...], (rows, k, width)), largest(s, k)

        def pull(v: Array, a: int, b: int) -> tuple[Array, Array]:
            # v^T J = (v * d) W: d is applied before W, so v is the source of the piece's last step, and the W of its first
            # step is applied after the scan.
            k = int(v.shape[1])
            d_ab = slopes(k, a, b)
            source = xp.reshape(v, (1, rows * k, width))
            rest = xp.zeros_like(d_ab[1:, ...])
            u = xp.concat([source, rest] if reverse else [rest, source], axis=0)
            e = engine.linear(u, d_ab, xp.zeros_like(d_ab[0, ...]), w, reverse=not reverse)
            arrived = xp.reshape(xp.matmul(e[-1 if reverse else 0, ...], w), (rows, k, width))
            return arrived, xp.maximum(largest(e, k), xp.max(xp.abs(arrived), axis=(1, 2)))

        return JacobianChain(steps, rows, width, engine, push, pull)


@dataclass
class Frame:
    """k orthonormal vectors for each row: the state of a sweep.

    Attributes
    ----------
    vectors : array (B, k, H)
        A dead direction is replaced by zero or by any vector orthogonal to the others.
    alive : host array (B, k) of bool
        Whether the direction is alive: not multiplied by 0 or by a number that the dtype cannot distinguish from 0.
    piece : int
        Steps between two orthonormalisations, a power of 2.
    """

    vectors: Array
    alive: Host
    piece: int = FIRST_PIECE

    @property
    def width(self) -> int:
        """Number of directions, k."""
        return int(self.vectors.shape[1])


def start_frame(chain: JacobianChain, k: int, seed: int) -> Frame:
    """Draw random orthonormal directions, the same for every row and on every backend."""
    # Not unit vectors: a product may map one of them to 0 or not mix them, which would hide other singular values.
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((chain.width, k)))[0].T
    whole = np.broadcast_to(q, (chain.rows, k, chain.width))
    return Frame(on_device(whole, chain.engine), np.ones((chain.rows, k), dtype=bool))


def advance(
    chain: JacobianChain, frame: Frame, start: int, stop: int, take: Callable[[Host], None], *, backward: bool = False
) -> None:
    """Carry the frame over steps [start, stop), forward by ``J_t`` from the left or backward by ``J_t^T``.

    `take` receives the triangular factor (B, k, k) of every piece, in the order of the sweep. A piece is as long as the frame
    keeps three quarters of its digits and stays in range. A group of pieces runs without transfers to the host, and is repeated
    with shorter pieces if the factors show a larger loss.
    """
    engine, xp = chain.engine, chain.engine.xp
    eps = EPS[engine.dtype_name]
    allowed, reach = -math.log(eps) / 4, math.log(SAFE[engine.dtype_name])
    done, total = 0, stop - start
    while done < total:
        if not chain.rows:
            return
        group = max(1, min(PIECES, WAITING // (chain.rows * frame.width**2)))
        vectors, at = frame.vectors, done
        factors, sizes = [], []
        for _ in range(group):
            if at == total:
                break
            count = min(frame.piece, total - at)
            with np.errstate(all="ignore"):  # a piece that leaves the range is repeated with shorter ones
                if backward:
                    moved, largest = chain.pull(vectors, stop - at - count, stop - at)
                else:
                    moved, largest = chain.push(vectors, start + at, start + at + count)
                vectors, r = orthonormal(moved, xp=xp, engine=engine)
            factors.append(r)
            sizes.append(largest)
            at += count
        r_host = np.array(on_host(xp.stack(factors, axis=0), engine))
        size = on_host(xp.stack(sizes, axis=0), engine)
        alive = frame.alive.copy()
        worst = 0.0
        for r, s in zip(r_host, size, strict=True):
            alive &= _resolve(r, eps, chain.width)
            worst = max(worst, _lost(r, s, alive, allowed, reach))
        if (frame.alive & ~alive).any():  # which a shorter piece may still distinguish from 0
            worst = max(worst, 2.0)
        if worst > 1 and frame.piece > 1:
            # As long as the measured rate allows, with a margin: the next group may be slightly worse.
            frame.piece = min(frame.piece // 2, 1 << max(0, int(math.log2(max(1.0, 0.8 * frame.piece / worst)))))
            continue
        for r in r_host:
            take(r)
        frame.vectors, frame.alive, done = vectors, alive, at
        if worst < 0.4 and frame.piece < LONGEST_PIECE:
            frame.piece *= 2


def orthonormal(v: Array, *, xp: Namespace, engine: Engine, extension: bool = True) -> tuple[Array, Array]:
    """Factorise ``v = R^T q`` for v (B, k, H): q with orthonormal rows and R (B, k, k) upper triangular (QR of the transpose).

    Uses ``linalg.qr`` if the namespace has it; otherwise, or without `extension`, Gram-Schmidt, twice for each vector ("twice
    is enough", Giraud, Langou, Rozloznik and van den Eshof 2005, "Rounding error analysis of the classical Gram-Schmidt
    orthogonalization process"), which gives 0 for a vector that depends linearly on the others.
    """
    if extension and hasattr(xp, "linalg") and hasattr(xp.linalg, "qr"):
        half = engine.dtype_name in ("float16", "bfloat16")  # which linear algebra packages lack
        wide = find_dtype("float32", xp=xp, device=engine.device) if half else engine.dtype
        q, r = xp.linalg.qr(xp.matrix_transpose(xp.astype(v, wide) if half else v))
        q = xp.matrix_transpose(q)
        return (xp.astype(q, engine.dtype) if half else q), r
    k, width = int(v.shape[1]), int(v.shape[2])
    largest = xp.max(xp.abs(v), axis=(1, 2), keepdims=True)
    unit = xp.where(largest > 0, largest, xp.ones_like(largest))
    v = v / unit
    found, columns = xp.zeros_like(v[:, :0, :]), []
    none = 4 * math.sqrt(width) * EPS[engine.dtype_name]
    for j in range(k):
        rest = v[:, j : j + 1, :]
        before = xp.sqrt(xp.sum(rest * rest, axis=-1, keepdims=True))
        share = xp.zeros_like(rest[..., :0]) if j == 0 else None
        for _ in range(2 if j else 0):
            part = xp.matmul(rest, xp.matrix_transpose(found))
            rest = rest - xp.matmul(part, found)
            share = part if share is None else share + part
        norm = xp.sqrt(xp.sum(rest * rest, axis=-1, keepdims=True))
        own = norm > none * before
        safe = xp.where(own, norm, xp.ones_like(norm))
        found = xp.concat([found, xp.where(own, rest / safe, xp.zeros_like(rest))], axis=1)
        below = xp.zeros((int(v.shape[0]), 1, k - j - 1), dtype=v.dtype, device=engine.device)
        columns.append(xp.concat([share, xp.where(own, norm, xp.zeros_like(norm)), below], axis=2))
    return found, xp.matrix_transpose(xp.concat(columns, axis=1) * unit)


def check_rows(lane: Lane, rows: Any) -> tuple[int, ...]:
    """Return the chosen rows of the batch as ints; all for None."""
    if rows is None:
        return tuple(range(lane.batch))
    expected = f"an int in [0, {lane.batch - 1}]"
    given = sequence("rows", rows, "a sequence of int, or None")
    return tuple(integer(f"rows[{i}]", row, expected, lambda n: 0 <= n < lane.batch) for i, row in enumerate(given))


def check_span(argument: str, span: Any, steps: int) -> tuple[int, int]:
    """Return a span (start, stop) within the steps as ints."""
    expected = f"a pair of int with 0 <= start <= stop <= {steps}"
    given = sequence(argument, span, expected)
    if len(given) != 2:
        raise ArgumentValueError(f"{argument}: expected {expected}, got {shown(span)}")
    start = integer(f"{argument}[0]", given[0], f"an int in [0, {steps}]", lambda n: 0 <= n <= steps)
    stop = integer(f"{argument}[1]", given[1], f"an int in [{start}, {steps}]", lambda n: start <= n <= steps)
    return start, stop


def chains(lane: Lane, span: tuple[int, int] | None, rows: Sequence[int]) -> list[tuple[list[int], JacobianChain]]:
    """Build one chain for each group of rows that have the same steps in the span, with their positions in `rows`."""
    start, stop = (0, lane.steps) if span is None else check_span("span", span, lane.steps)
    groups: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(max(start, min(stop, lane.lengths[row])), []).append(place)
    d, made = lane.slope(), []
    for end, places in groups.items():
        part, own = d[start:end, ...], [rows[p] for p in places]
        if own != list(range(lane.batch)):
            part = lane.xp.take(part, indices(np.asarray(own, dtype=np.int64), lane.engine), axis=1)
        chain = JacobianChain.of_network(part, lane.weights.weight_hh, engine=lane.engine, reverse=lane.reverse)
        made.append((places, chain))
    return made


def _resolve(r: Host, eps: float, width: int) -> Host:
    """Set rounding errors in the rows of linearly dependent directions to 0, in place; return which are independent (B, k)."""
    length = np.sqrt((r * r).sum(axis=1))
    if r.shape[1] < width:  # rounding of the largest is as large in every direction that the frame does not have
        length = np.broadcast_to(length.max(axis=1, keepdims=True), length.shape)
    none = 4 * math.sqrt(width) * eps * length
    own = np.abs(np.diagonal(r, axis1=1, axis2=2)) > none  # not of NaN
    r[(~own)[:, :, None] & (np.abs(r) <= none[:, None, :])] = 0.0
    return np.asarray(own)


def _lost(r: Host, size: Host, alive: Host, allowed: float, reach: float) -> float:
    """The loss of digits and of range in one piece, as a fraction of the allowed loss: more than 1 is too much."""
    with np.errstate(divide="ignore", invalid="ignore"):
        own = np.where(alive, np.log(np.abs(np.diagonal(r, axis1=1, axis2=2))), np.inf).min(axis=1)
        top = np.log(size)
        spread = np.where(alive.any(axis=1), top - own, 0.0)
        far = np.where(size > 0, np.abs(top), 0.0)
    # A shorter piece does not avoid NaN, so it stays in the result.
    return float(max(np.nan_to_num(spread / allowed, nan=0.0).max(), np.nan_to_num(far / reach, nan=0.0).max()))
