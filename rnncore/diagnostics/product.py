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
    >>> init = {"weight_hh": rnncore.init.orthogonal(0.9), "bias": rnncore.init.constant(0.0)}
    >>> rnn = rnncore.RNN(1, 3, nonlinearity="identity", init=init | {"weight_ih": rnncore.init.constant(0.0)}, rng=0)
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
        both: tuple[Array | None, Array | None] = (None, None)
        if vectors and count:
            ordered = sorted((i, s) for p, group in zip(places, range(len(sides)), strict=True) for s, i in enumerate(p))
            where = {i: (g, s) for g, p in enumerate(places) for s, i in enumerate(p)}
            picked = [sides[where[i][0]][where[i][1]] for i, _ in ordered]
            both = (xp.stack([p[0] for p in picked], axis=0), xp.stack([p[1] for p in picked], axis=0))
    chosen = tuple(range(record.batch)) if rows is None else tuple(rows)
    return Product(
        log_singular=last,
        log_condition=difference(last[:, 0], last[:, -1]),
        sweeps=estimates[: int(used.max(initial=2))],
        disagreement=gap,
        converged=(gap <= limit).all(axis=1),
        tolerance=limit,
        steps=steps,
        rows=chosen,
        layer=layer,
        direction=direction,
        left=both[0],
        right=both[1],
    )
