"""product: the singular values of a long product of recurrent Jacobians, in logarithms, with the evidence that they are right.

``J_t = dh_t/dh_{t-1} = diag(f'(z_t)) W_hh`` of one layer and direction. A sweep carries k directions through the product by
the linear scan and orthonormalises them between pieces of time, so the product is Q R with R a product of small triangular
matrices. The sums of ln diag R of one sweep are not the singular values: the frame it started from was not made of singular
vectors. Here the singular values of R itself are taken, at any grading, and forward and backward sweeps, each starting
where the other ended, are repeated until they agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnncore.arrays import find_dtype, index_dtype
from rnncore.backend import Array, Namespace
from rnncore.diagnostics.record import Record
from rnncore.diagnostics.scaled import SAFE
from rnncore.dispatch import Engine
from rnncore.errors import ArgumentTypeError, ArgumentValueError

__all__ = ["Chain", "Frame", "Product", "advance", "chains", "orthonormal", "product", "singular_values", "start_frame"]

Host = np.ndarray[Any, Any]

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
FIRST_PIECE = 4
LONGEST_PIECE = 64
# Pieces between two questions to the host, and the numbers that wait on the device for it.
PIECES = 16
WAITING = 2**22
# Directions carried beyond the k asked for: subspace iteration converges with the gap behind them.
EXTRA = 2
JACOBI_SWEEPS = 40


@dataclass(frozen=True)
class Chain:
    """The Jacobians of some rows over some steps, as what they do to vectors.

    Attributes
    ----------
    steps, rows, width : int
    push : callable
        ``push(v, a, b)``: v (B, k, H) of row vectors to ``J_{b-1} ... J_a v`` and, (B,), the largest magnitude on the way.
    pull : callable
        ``pull(v, a, b)``: the same of the transpose, ``J_a^T ... J_{b-1}^T v``.
    """

    steps: int
    rows: int
    width: int
    engine: Engine
    push: Callable[[Array, int, int], tuple[Array, Array]]
    pull: Callable[[Array, int, int], tuple[Array, Array]]

    @staticmethod
    def of_network(d: Array, w: Array, *, engine: Engine, reverse: bool = False) -> Chain:
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
            # v^T J = (v * d) W: the factor d comes before W, so v enters as the source of the piece's last step, and the W
            # of its first step follows after the scan.
            k = int(v.shape[1])
            d_ab = slopes(k, a, b)
            source = xp.reshape(v, (1, rows * k, width))
            rest = xp.zeros_like(d_ab[1:, ...])
            u = xp.concat([source, rest] if reverse else [rest, source], axis=0)
            e = engine.linear(u, d_ab, xp.zeros_like(d_ab[0, ...]), w, reverse=not reverse)
            arrived = xp.reshape(xp.matmul(e[-1 if reverse else 0, ...], w), (rows, k, width))
            return arrived, xp.maximum(largest(e, k), xp.max(xp.abs(arrived), axis=(1, 2)))

        return Chain(steps, rows, width, engine, push, pull)

    @staticmethod
    def of_matrices(m: Array, *, engine: Engine) -> Chain:
        """Any matrices: m (T, B, H, H)."""
        steps, rows, width, _ = (int(n) for n in m.shape)
        xp = engine.xp

        def run(v: Array, order: range, transposed: bool) -> tuple[Array, Array]:
            largest = xp.max(xp.abs(v), axis=(1, 2))
            for t in order:
                v = xp.matmul(v, m[t, ...] if transposed else xp.matrix_transpose(m[t, ...]))
                largest = xp.maximum(largest, xp.max(xp.abs(v), axis=(1, 2)))
            return v, largest

        return Chain(
            steps,
            rows,
            width,
            engine,
            lambda v, a, b: run(v, range(a, b), False),
            lambda v, a, b: run(v, range(b - 1, a - 1, -1), True),
        )


@dataclass(frozen=True)
class Product:
    """The product ``J_{stop-1} ... J_start`` of each row: natural logarithms, rows in the order asked for.

    Attributes
    ----------
    log_singular : host array (B, k)
        ln of the k largest singular values, descending; -inf for 0 and for what the dtype cannot tell from 0.
    log_condition : host array (B,)
        ``ln sigma_1 - ln sigma_k``: the condition number where k is the width.
    sweeps : host array (n, B, k)
        The estimate of each sweep, forward and backward in turn.
    disagreement : host array (B, k)
        Between the last two sweeps.
    converged : host array (B,) of bool
        Whether that is within `tolerance` for all k.
    tolerance : float
    steps : host array (B,) of int
        The factors of each row's product: a row ends with its length.
    rows : tuple of int
    layer, direction : int
    left, right : array (B, H, k) or None
        Singular vectors: ``product @ right = left * sigma``. On the record's device.
    """

    log_singular: Host
    log_condition: Host
    sweeps: Host
    disagreement: Host
    converged: Host
    tolerance: float
    steps: Host
    rows: tuple[int, ...]
    layer: int
    direction: int
    left: Array | None = None
    right: Array | None = None


def product(
    record: Record,
    k: int = 2,
    span: tuple[int, int] | None = None,
    *,
    layer: int = -1,
    direction: int = 0,
    rows: Sequence[int] | None = None,
    vectors: bool = False,
    tolerance: float | None = None,
    max_sweeps: int = 10,
    seed: int = 0,
) -> Product:
    """ln of the k largest singular values of ``dh_{stop-1}/dh_{start-1}``, the recurrence's own product of Jacobians.

    One layer and one direction: what reaches the state through other layers is not in it. In the reverse direction the
    product is ``J_start ... J_{stop-1}``, in that direction's own time.

    Parameters
    ----------
    record : Record
    k : int
        In [1, width].
    span : (int, int), optional
        Steps [start, stop) of time, the whole of each row by default; a row's padding is never part of it.
    layer, direction : int
    rows : sequence of int, optional
        Rows of the batch; all by default.
    vectors : bool
    tolerance : float, optional
        Largest disagreement of two sweeps, in nats; by default ``sqrt(eps) max(1, sqrt(steps) / 10)``, since the roundings
        of the steps add up like a random walk.
    max_sweeps : int
        At least 2. A sweep costs about ``min(k + 2, width)`` backward passes of the row.
    seed : int
        Of the first frame.

    Notes
    -----
    Subspace iteration through products, orthonormalised in pieces: Stewart (1995), "On graded QR decompositions of
    products of matrices"; the forward and backward sweeps: Golub, Solna and Van Dooren (2000), "Computing the SVD of a
    general matrix product/quotient". The small factor's singular values: one-sided Jacobi, which is accurate for each
    value however graded the rows are (Demmel and Veselic 1992, "Jacobi's method is more accurate than QR").

    Examples
    --------
    An orthogonal recurrence of gain 0.9 shrinks every direction alike, far below the range of the dtype:

    >>> import numpy as np, rnncore
    >>> from rnncore.diagnostics import record
    >>> from rnncore.diagnostics.product import product
    >>> init = {"weight_hh": rnncore.init.orthogonal(0.9)}
    >>> rnn = rnncore.RNN(1, 3, nonlinearity="identity", bias=False, init=init, rng=0)
    >>> found = product(record(rnn, np.zeros((10_000, 1, 1))), k=3)
    >>> bool(np.allclose(found.log_singular, 10_000 * np.log(0.9), rtol=1e-12)), bool(found.converged[0])
    (True, True)
    """
    if max_sweeps < 2:
        raise ArgumentValueError(f"max_sweeps: expected an int >= 2, got {max_sweeps}")
    engine, xp = record.engine, record.xp
    with engine.scope():
        places, links, layer, direction = chains(record, span, layer=layer, direction=direction, rows=rows)
        width = record.spec.hidden_sizes[layer]
        check_k(k, width)
        count = sum(len(p) for p in places)
        estimates = np.full((max_sweeps, count, k), np.nan)
        steps = np.zeros(count, dtype=np.int64)
        used = np.zeros(count, dtype=np.int64)
        sides: list[list[tuple[Array, Array]]] = []
        longest = max((link.steps for link in links), default=1)
        limit = (
            math.sqrt(EPS[engine.dtype_name]) * max(1.0, math.sqrt(longest) / 10) if tolerance is None else tolerance
        )
        for place, chain in zip(places, links, strict=True):
            series, left, right = singular_values(chain, k, tolerance=limit, max_sweeps=max_sweeps, seed=seed)
            estimates[: len(series), place] = series
            estimates[len(series) :, place] = series[-1]
            steps[place], used[place] = chain.steps, len(series)
            if vectors:
                sides.append([(left[i, ...], right[i, ...]) for i in range(len(place))])
        last = estimates[used - 1, np.arange(count)]
        gap = difference(last, estimates[used - 2, np.arange(count)])
        both: list[Array | None] = [None, None]
        if vectors and count:
            made = {
                i: pair
                for place, group in zip(places, sides, strict=True)
                for i, pair in zip(place, group, strict=True)
            }
            both = [xp.stack([made[i][side] for i in range(count)], axis=0) for side in (0, 1)]
    chosen = tuple(range(record.batch)) if rows is None else tuple(rows)
    return Product(
        log_singular=last,
        log_condition=_condition(last),
        sweeps=estimates[: int(used.max(initial=2))],
        disagreement=gap,
        converged=np.asarray((gap <= limit).all(axis=1)),
        tolerance=limit,
        steps=steps,
        rows=chosen,
        layer=layer,
        direction=direction,
        left=both[0],
        right=both[1],
    )


def singular_values(
    chain: Chain, k: int, *, tolerance: float, max_sweeps: int = 10, seed: int = 0
) -> tuple[Host, Array, Array]:
    """The estimates of each sweep (n, B, k) over the whole chain, and the vectors (B, H, k), left and right."""
    engine, xp = chain.engine, chain.engine.xp
    frame = start_frame(chain, min(chain.width, k + EXTRA), seed)
    series: list[Host] = []
    backward = False
    while True:
        triangle = _Triangle(chain.rows, frame.width)
        before = frame.vectors
        advance(chain, frame, 0, chain.steps, triangle.take, backward=backward)
        log, out_of, into = triangle.singular()
        series.append(log[:, :k])
        agreed = len(series) > 1 and bool((difference(series[-1], series[-2]) <= tolerance).all())
        if agreed or len(series) >= max_sweeps or np.isnan(log).any():
            break
        # A direction that died within the dtype lives on in the other sweep, where it is a direction like any other.
        frame.alive[:] = True
        backward = not backward
    turned = [xp.matmul(_device(g[:, :k], engine), v) for g, v in ((out_of, frame.vectors), (into, before))]
    left, right = (xp.matrix_transpose(v) for v in (turned[::-1] if backward else turned))
    return np.stack(series), left, right


@dataclass
class Frame:
    """k orthonormal vectors for each row as they travel: what a sweep carries from one span to the next.

    Attributes
    ----------
    vectors : array (B, k, H)
        Zero in place of a vector that died, or any that is orthogonal to the others.
    alive : host array (B, k) of bool
        Whether the direction has survived: not multiplied by 0, nor by less than the dtype can tell from it.
    piece : int
        Steps between two orthonormalisations, a power of 2.
    """

    vectors: Array
    alive: Host
    piece: int = FIRST_PIECE

    @property
    def width(self) -> int:
        """k."""
        return int(self.vectors.shape[1])


def start_frame(chain: Chain, k: int, seed: int) -> Frame:
    """Random orthonormal directions, the same for every row and on every backend."""
    # Not the unit vectors: a product may map one of them to 0, or not mix them at all, and hide what the others do.
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((chain.width, k)))[0].T
    whole = np.broadcast_to(q, (chain.rows, k, chain.width))
    return Frame(_device(whole, chain.engine), np.ones((chain.rows, k), dtype=bool))


def advance(
    chain: Chain, frame: Frame, start: int, stop: int, take: Callable[[Host], None], *, backward: bool = False
) -> None:
    """Carry the frame over steps [start, stop), forward by ``J_t`` from the left or backward by ``J_t^T``.

    `take` is given the triangular factor (B, k, k) of every piece, in the order of the sweep. The pieces are as long as
    the frame keeps three quarters of its digits and its range in each: a group of pieces runs without a question to the
    host, and again with shorter ones where the factors say that it lost more.
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
            if backward:
                moved, largest = chain.pull(vectors, stop - at - count, stop - at)
            else:
                moved, largest = chain.push(vectors, start + at, start + at + count)
            vectors, r = orthonormal(moved, xp=xp, engine=engine)
            factors.append(r)
            sizes.append(largest)
            at += count
        r_host = _host(xp.stack(factors, axis=0), engine)
        size = _host(xp.stack(sizes, axis=0), engine)
        alive = frame.alive.copy()
        worst = 0.0
        for r, s in zip(r_host, size, strict=True):
            alive &= _resolve(r, eps, chain.width)
            worst = max(worst, _lost(r, s, alive, allowed, reach))
        if worst > 1 and frame.piece > 1:
            # As long as the rate found here would allow, with a margin: the next group may be a little worse.
            frame.piece = min(frame.piece // 2, 1 << max(0, int(math.log2(max(1.0, 0.8 * frame.piece / worst)))))
            continue
        for r in r_host:
            take(r)
        frame.vectors, frame.alive, done = vectors, alive, at
        if worst < 0.4 and frame.piece < LONGEST_PIECE:
            frame.piece *= 2


def orthonormal(v: Array, *, xp: Namespace, engine: Engine, extension: bool = True) -> tuple[Array, Array]:
    """``v = R^T q`` for v (B, k, H): q with orthonormal rows, R (B, k, k) upper triangular, which is QR of the transpose.

    By ``linalg.qr`` where the namespace has it; else, or without `extension`, by Gram-Schmidt, twice for each vector
    ("twice is enough", Giraud, Langou, Rozloznik and van den Eshof 2005, "Rounding error analysis of the classical
    Gram-Schmidt orthogonalization process"), which leaves 0 where a vector has nothing of its own.
    """
    if extension and hasattr(xp, "linalg") and hasattr(xp.linalg, "qr"):
        half = engine.dtype_name in ("float16", "bfloat16")  # of which linear algebra packages have none
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


def difference(a: Host, b: Host) -> Host:
    """|a - b|, 0 for two equal infinities."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(a == b, 0.0, np.abs(a - b)))


def chains(
    record: Record, span: tuple[int, int] | None, *, layer: int, direction: int, rows: Sequence[int] | None
) -> tuple[list[list[int]], list[Chain], int, int]:
    """One chain for the rows that have the same steps in the span, with their places among `rows`; the indices checked."""
    layers = record.spec.num_layers
    if not -layers <= layer < layers:
        raise ArgumentValueError(f"layer: expected an int in [0, {layers - 1}], got {layer}")
    if not 0 <= direction < record.directions:
        raise ArgumentValueError(f"direction: expected an int in [0, {record.directions - 1}], got {direction}")
    layer %= layers
    chosen = list(range(record.batch)) if rows is None else list(rows)
    for row in chosen:
        if not 0 <= row < record.batch:
            raise ArgumentValueError(f"rows: expected ints in [0, {record.batch - 1}], got {row}")
    start, stop = (0, record.steps) if span is None else span
    if not 0 <= start <= stop <= record.steps:
        raise ArgumentValueError(f"span: expected 0 <= start <= stop <= {record.steps}, got {(start, stop)}")
    groups: dict[int, list[int]] = {}
    for place, row in enumerate(chosen):
        groups.setdefault(max(start, min(stop, record.lengths[row])), []).append(place)
    d = record.slope(layer, direction)
    w = record.weights[layer][direction].weight_hh
    dtype = index_dtype(xp=record.xp, device=record.engine.device)
    made = []
    for end, places in groups.items():
        part = d[start:end, ...]
        if [chosen[p] for p in places] != list(range(record.batch)):
            index = np.asarray([chosen[p] for p in places], dtype=np.int64)
            at = record.engine.backend.asarray(index, dtype=dtype, device=record.engine.device)
            part = record.xp.take(part, at, axis=1)
        made.append(Chain.of_network(part, w, engine=record.engine, reverse=bool(direction)))
    return list(groups.values()), made, layer, direction


def check_k(k: int, width: int) -> None:
    """k must be a number of directions that the width has."""
    if isinstance(k, bool) or not isinstance(k, int):
        raise ArgumentTypeError(f"k: expected an int in [1, {width}], got {k!r}")
    if not 1 <= k <= width:
        raise ArgumentValueError(f"k: expected an int in [1, {width}], got {k}")


class _Triangle:
    """The product of triangular factors, ``diag(exp(log)) unit``: every row on a scale of its own, (B, k) and (B, k, k)."""

    def __init__(self, rows: int, k: int) -> None:
        self.log = np.zeros((rows, k))
        self.unit = np.broadcast_to(np.eye(k), (rows, k, k))

    def take(self, r: Host) -> None:
        """Multiply by r (B, k, k) from the left."""
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.log(np.abs(r)) + self.log[:, None, :]
            scale = terms.max(axis=2)
            terms = np.exp(terms - np.where(scale == -np.inf, 0.0, scale)[..., None])
        self.log, self.unit = _normal(scale, (np.sign(r) * terms) @ self.unit)

    def singular(self) -> tuple[Host, Host, Host]:
        """ln of the singular values (B, k), descending, and the vectors as rows (B, k, k): left ones and right ones.

        One-sided Jacobi on the rows. In the units of the longer row, with r <= 1 the ratio of the lengths and g the cosine,
        ``tan = 2 r g / (1 - r^2 + sqrt((1 - r^2)^2 + 4 r^2 g^2))``; tan / r, which is what the shorter row takes of the
        longer, stays in range where r underflows.
        """
        log, unit = self.log.copy(), self.unit.copy()
        rows, k = log.shape
        turned = np.broadcast_to(np.eye(k), (rows, k, k)).copy()
        for _ in range(JACOBI_SWEEPS if k > 1 else 0):
            off = 0.0
            for pair in _rounds(k):
                off = max(off, _rotate(log, unit, turned, pair))
            if not off > k * EPS["float64"]:
                break
        order = np.argsort(-log, axis=1, kind="stable")
        take = order[..., None]
        return (
            np.take_along_axis(log, order, axis=1),
            np.take_along_axis(turned, take, axis=1),
            np.take_along_axis(unit, take, axis=1),
        )


def _rotate(log: Host, unit: Host, turned: Host, pair: Host) -> float:
    """Make the rows of disjoint pairs (2, n) orthogonal, in place; the largest cosine that was found."""
    swap = log[:, pair[1]] > log[:, pair[0]]
    p, q = np.where(swap, pair[1], pair[0]), np.where(swap, pair[0], pair[1])
    b = np.arange(len(log))[:, None]
    n_p, n_q = unit[b, p], unit[b, q]
    g = (n_p * n_q).sum(axis=2)
    with np.errstate(invalid="ignore"):
        r = np.exp(np.where(log[b, p] == -np.inf, 0.0, log[b, q] - log[b, p]))
    rest = 1 - r * r
    below = rest + np.sqrt(rest * rest + 4 * (r * g) ** 2)
    share = 2 * g / np.where(below == 0, 1.0, below)
    c = 1 / np.sqrt(1 + (r * share) ** 2)
    s = c * r * share
    c1, s1 = c[..., None], s[..., None]
    log[b, p], unit[b, p] = _normal(log[b, p], c1 * n_p + (s * r)[..., None] * n_q)
    log[b, q], unit[b, q] = _normal(log[b, q], c1 * n_q - (c * share)[..., None] * n_p)
    t_p, t_q = turned[b, p], turned[b, q]
    turned[b, p], turned[b, q] = c1 * t_p + s1 * t_q, c1 * t_q - s1 * t_p
    return float(np.abs(g).max(initial=0.0))


def _normal(log: Host, rows: Host) -> tuple[Host, Host]:
    """Rows of length 1, and their lengths moved into the logarithms; what is left of two equal rows is 0."""
    size = np.sqrt((rows * rows).sum(axis=-1))
    none = ~(size > 4 * rows.shape[-1] * EPS["float64"]) & ~np.isnan(size)
    safe = np.where(none, 1.0, size)
    with np.errstate(divide="ignore"):
        return np.where(none, -np.inf, log + np.log(safe)), np.where(none[..., None], 0.0, rows / safe[..., None])


def _rounds(k: int) -> list[Host]:
    """Every pair of k once, in rounds of disjoint ones: a round-robin tournament."""
    seats = list(range(k + k % 2))
    out = []
    for _ in range(len(seats) - 1):
        half = len(seats) // 2
        pairs = [(a, b) for a, b in zip(seats[:half], seats[: half - 1 : -1], strict=True) if max(a, b) < k]
        out.append(np.array(pairs).T)
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return out


def _resolve(r: Host, eps: float, width: int) -> Host:
    """Set to 0, in place, what is rounding in the rows of directions without anything of their own; (B, k): which have."""
    length = np.sqrt((r * r).sum(axis=1))
    none = 4 * math.sqrt(width) * eps * length
    own = ~(np.abs(np.diagonal(r, axis1=1, axis2=2)) <= none)
    r[(~own)[:, :, None] & (np.abs(r) <= none[:, None, :])] = 0.0
    return np.asarray(own)


def _lost(r: Host, size: Host, alive: Host, allowed: float, reach: float) -> float:
    """How much of the allowed loss of digits and of range one piece used: more than 1 is too much."""
    with np.errstate(divide="ignore", invalid="ignore"):
        own = np.where(alive, np.log(np.abs(np.diagonal(r, axis1=1, axis2=2))), np.inf).min(axis=1)
        top = np.log(size)
        spread = np.where(alive.any(axis=1), top - own, 0.0)
        far = np.where(size > 0, np.abs(top), 0.0)
    # NaN is no piece's fault: it stays, and shows in the result.
    return float(max(np.nan_to_num(spread / allowed, nan=0.0).max(), np.nan_to_num(far / reach, nan=0.0).max()))


def _condition(log: Host) -> Host:
    """ln of the ratio of the first and the last; inf where both are 0."""
    with np.errstate(invalid="ignore"):
        return np.where(log[:, 0] == -np.inf, np.inf, log[:, 0] - log[:, -1])


def _device(x: Host, engine: Engine) -> Array:
    return engine.backend.asarray(np.ascontiguousarray(x), dtype=engine.dtype, device=engine.device)


def _host(x: Array, engine: Engine) -> Host:
    return np.array(engine.backend.to_numpy(x), dtype=np.float64)
