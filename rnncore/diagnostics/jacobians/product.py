"""Logarithms of the singular values of a long product of recurrent Jacobians, with a bound on their error.

``J_t = dh_t/dh_{t-1} = diag(f'(z_t)) W_hh`` of one layer and direction. A sweep carries a frame of directions through the
product by the linear scan and orthonormalises it between pieces of time, so the images are Q R with R a product of small
triangular matrices. The singular values of R, computed for any grading, are lower bounds. Forward and backward sweeps
alternate, each of the images of the last one's singular vectors. If a few are not enough, the frame of a forward sweep also
has the singular vectors of the last two, which makes close singular values converge as fast as with conjugate gradients.
How far a sweep's images are from the vectors that they should be bounds the error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rnncore.arguments import flag, integer, non_negative_int, real
from rnncore.diagnostics.jacobians.sweep import (
    Frame,
    JacobianChain,
    advance,
    chains,
    check_rows,
    orthonormal,
    start_frame,
)
from rnncore.diagnostics.lane import Lane
from rnncore.diagnostics.numerics.device import EPS, on_device, on_host
from rnncore.diagnostics.numerics.triangle import Triangle
from rnncore.diagnostics.recording import lane_probe
from rnncore.typing import Array, Host

__all__ = ["Product", "frame_width", "product", "singular_values"]

# Directions carried in addition to k: convergence depends on the gap after the last one.
EXTRA = 2
# Sweeps of the frame alone. They are enough for a long product, whose singular values are far apart.
ALONE = 6
MAX_SWEEPS = 100


@dataclass(frozen=True)
class Product:
    """Natural logarithms of the singular values of ``J_{stop-1} ... J_start``, rows in the requested order.

    Attributes
    ----------
    log_singular : host array (B, k)
        ln of the k largest singular values, descending; -inf for 0 and for values that the dtype cannot distinguish from 0.
        Up to rounding these are lower bounds, converged or not.
    log_condition : host array (B,)
        ``ln sigma_1 - ln sigma_k``: the logarithm of the condition number if k is the width. NaN for a row that has not
        converged: a difference of two lower bounds bounds nothing.
    sweeps : host array (n, B, k)
        The estimates of each sweep, forward and backward in turn; the last one again for rows that needed fewer.
    disagreement : host array (B, k)
        Absolute difference between the last two sweeps. It says how the iteration went, and bounds nothing.
    error : host array (B, k)
        Bound on the error of `log_singular` beside rounding, from the residuals of the singular vectors; inf before the first.
    converged : host array (B,) of bool
        Whether the error is within `tolerance` for all k.
    tolerance : float
    steps : host array (B,) of int
        Number of factors in each row's product, at most the row's length.
    rows : tuple of int
    layer, direction : int
    left, right : array (B, H, k) or None
        Singular vectors: ``product @ right = left * sigma``. On the record's device.
    """

    log_singular: Host
    log_condition: Host
    sweeps: Host
    disagreement: Host
    error: Host
    converged: Host
    tolerance: float
    steps: Host
    rows: tuple[int, ...]
    layer: int
    direction: int
    left: Array | None = None
    right: Array | None = None

    @property
    def doubt(self) -> str | None:
        """Why the numbers are lower bounds only, for a reader; None if all rows have converged."""
        count = len(self.converged)
        left = count - int(self.converged.sum())
        return f"{left} of {count} rows have not converged" if left else None


@lane_probe(alone=True)
def product(
    lane: Lane,
    k: int = 2,
    span: tuple[int, int] | None = None,
    *,
    rows: Sequence[int] | None = None,
    vectors: bool = False,
    tolerance: float | None = None,
    max_sweeps: int = MAX_SWEEPS,
    seed: int = 0,
) -> Product:
    """Compute ln of the k largest singular values of ``dh_{stop-1}/dh_{start-1}`` within one lane.

    Paths through other layers are not included. In the reverse direction the product is ``J_start ... J_{stop-1}``, in that
    direction's own time.

    Parameters
    ----------
    lane : Lane
    k : int
        In [1, width].
    span : (int, int), optional
        Steps [start, stop), the whole of each row by default; padding is never included.
    rows : sequence of int, optional
        Rows of the batch; all by default.
    vectors : bool
        Whether to return singular vectors too.
    tolerance : float, optional
        Largest accepted error, in nats; by default ``sqrt(eps) max(1, sqrt(steps) / 10)``, since rounding errors of the
        steps accumulate like a random walk.
    max_sweeps : int
        At least 2: the first one that can find the error. A sweep costs about ``min(k + 2, width)`` backward passes of the
        row, a forward one from the seventh on three times as many.
    seed : int
        Seed of the first frame.

    Returns
    -------
    Product
        Natural logarithms: (B, k) in the order of `rows`.

    Raises
    ------
    ArgumentValueError
        If k is outside [1, width], a row or the span is not in the run, or max_sweeps < 2.
    ArgumentTypeError
        If k is not an int.

    Notes
    -----
    Subspace iteration through products, orthonormalised in pieces: Stewart (1995), "On graded QR decompositions of
    products of matrices"; the forward and backward sweeps: Golub, Solna and Van Dooren (2000), "Computing the SVD of a
    general matrix product/quotient"; the larger frame: Knyazev (2001), "Toward the optimal preconditioned eigensolver:
    locally optimal block preconditioned conjugate gradient method". The small factor's singular values: one-sided Jacobi,
    which is accurate for each value however graded the rows are (Demmel and Veselic 1992, "Jacobi's method is more
    accurate than QR").

    The error is the residual rho of the singular vectors relative to their values, or ``rho^2 / (1 - exp(-2 gap))`` where
    that is less: Mathias (1998), "Quadratic residual bounds for the Hermitian eigenvalue problem". The gap is that between
    the values of the block and the next one in the frame, less the error of that one. The bounds are about the singular
    values that the frame has found. As its start is random, a larger one that it does not see has probability 0.

    Examples
    --------
    An orthogonal recurrence of gain 0.9 shrinks all directions equally, far below the range of the dtype:

    >>> import numpy as np, rnncore
    >>> from rnncore.diagnostics import record
    >>> from rnncore.diagnostics.jacobians.product import product
    >>> init = {"weight_hh": rnncore.init.orthogonal(0.9)}
    >>> rnn = rnncore.RNN(1, 3, nonlinearity="identity", bias=False, init=init, rng=0)
    >>> found = product(record(rnn, np.zeros((10_000, 1, 1))).lane(), k=3)
    >>> bool(np.allclose(found.log_singular, 10_000 * np.log(0.9), rtol=1e-12)), bool(found.converged[0])
    (True, True)
    """
    integer("max_sweeps", max_sweeps, "an int >= 2", lambda n: n >= 2)
    check_k(k, lane.width)
    seed = non_negative_int("seed", seed)
    flag("vectors", vectors)
    if tolerance is not None:
        tolerance = real("tolerance", tolerance, "a number", lambda nats: not math.isnan(nats))
    chosen = check_rows(lane, rows)
    count = len(chosen)
    last, gap, error = np.full((3, count, k), np.nan)
    steps = np.zeros(count, dtype=np.int64)
    went: list[tuple[list[int], Host]] = []
    sides: dict[int, tuple[Array, Array]] = {}
    with lane.engine.scope():
        links = chains(lane, span, chosen)
        if tolerance is None:
            longest = max((chain.steps for _, chain in links), default=1)
            tolerance = math.sqrt(EPS[lane.engine.dtype_name]) * max(1.0, math.sqrt(longest) / 10)
        for place, chain in links:
            series, error[place], left, right = singular_values(
                chain, k, tolerance=tolerance, max_sweeps=max_sweeps, seed=seed
            )
            last[place], steps[place] = series[-1], chain.steps
            gap[place] = difference(series[-1], series[-2:][0])
            went.append((place, series))
            if vectors:
                sides |= {at: (left[i, ...], right[i, ...]) for i, at in enumerate(place)}
        both = [lane.xp.stack([sides[i][side] for i in range(count)], axis=0) if sides else None for side in (0, 1)]
    sweeps = np.broadcast_to(last, (max((len(series) for _, series in went), default=0), count, k)).copy()
    for place, series in went:
        sweeps[: len(series), place] = series
    converged = np.asarray((error <= tolerance).all(axis=1))
    return Product(
        log_singular=last,
        log_condition=np.where(converged, _condition(last), np.nan),
        sweeps=sweeps,
        disagreement=gap,
        error=error,
        converged=converged,
        tolerance=tolerance,
        steps=steps,
        rows=chosen,
        layer=lane.layer,
        direction=lane.direction,
        left=both[0],
        right=both[1],
    )


def singular_values(
    chain: JacobianChain, k: int, *, tolerance: float, max_sweeps: int = MAX_SWEEPS, seed: int = 0
) -> tuple[Host, Host, Array, Array]:
    """Return the estimates of each sweep (n, B, k), the error of the last (B, k), and the left and right vectors (B, H, k)."""
    engine, xp = chain.engine, chain.engine.xp
    frame = start_frame(chain, frame_width(k, chain.width), seed)
    width = frame.width
    series: list[Host] = []
    error = np.full((chain.rows, k), np.inf)
    expected: tuple[Array, Host] | None = None  # the images of the next sweep, and their logarithms
    known: list[Array] = []
    while True:
        backward = len(series) % 2
        triangle = Triangle(chain.rows, frame.width)
        before = frame.vectors
        advance(chain, frame, 0, chain.steps, triangle.take, backward=bool(backward))
        if expected is not None:
            error = _error(_residual(frame.vectors, triangle, *expected, chain), expected[1])[:, :k]
        log, out_of, into = (x[:, :width] for x in triangle.singular())
        series.append(log[:, :k])
        end, begin = (xp.matmul(on_device(g, engine), v) for g, v in ((out_of, frame.vectors), (into, before)))
        settled = (error <= tolerance).all(axis=1) | np.isnan(log).any(axis=1)
        if settled.all() or len(series) >= max_sweeps:
            break
        expected = begin, log
        if not backward:
            known = [begin, *known[:1]]
        frame = _next_frame(end, known if backward and len(series) >= ALONE else [], frame.piece, chain)
    left, right = (xp.matrix_transpose(v[:, :k, :]) for v in ((begin, end) if backward else (end, begin)))
    return np.stack(series), error, left, right


def frame_width(k: int, width: int) -> int:
    """Number of directions of a frame for k values: all, if those that later sweeps add would make up the whole space."""
    return width if 3 * (k + EXTRA) >= width else k + EXTRA


def _next_frame(vectors: Array, known: list[Array], piece: int, chain: JacobianChain) -> Frame:
    """A frame of orthonormal vectors (B, p, H), and of the part of the known ones that is orthogonal to them."""
    engine, xp = chain.engine, chain.engine.xp
    p = int(vectors.shape[1])
    if known and p < chain.width:
        more = orthonormal(xp.concat([vectors, *known], axis=1), xp=xp, engine=engine)[0]
        vectors = xp.concat([vectors, more[:, p:, :]], axis=1)
    # A direction that underflowed in this sweep may be a normal one in the other.
    return Frame(vectors, np.ones(tuple(vectors.shape[:2]), dtype=bool), piece)


def _residual(images: Array, triangle: Triangle, wanted: Array, log: Host, chain: JacobianChain) -> Host:
    """The relative residual of each singular vector, from the images (B, m, H) of the first p and what they should be: (B, p).

    Image i is ``sum_{j <= i} r_ji q_j`` and should be ``sigma_i w_i``. Each r_ji is relative to r_jj and not to r_ii: a
    multiplicative perturbation (Ostrowski), since rounding of a far larger value j does not change a smaller one.
    """
    p, engine, xp = log.shape[1], chain.engine, chain.engine.xp
    unit, length = triangle.unit[:, :p, :p], triangle.log[:, :p]
    own = np.diagonal(unit, axis1=1, axis2=2)
    sign = np.where(own < 0, -1.0, 1.0)
    away = images[:, :p, :] * on_device(sign[..., None], engine) - wanted
    turned = on_host(xp.sum(away * away, axis=-1), engine)
    with np.errstate(all="ignore"):
        stretched = length + np.log(np.abs(own)) - log
        mixed = np.square(np.triu(unit, 1) / own[..., None])
        mixed = np.where(np.triu(np.ones((p, p), dtype=bool), 1) & (own != 0)[..., None], mixed, 0.0).sum(axis=1)
        square = turned + stretched * stretched + mixed
    # Two zeros agree, whatever their vectors are.
    return np.sqrt(np.where((log == -np.inf) & ((own == 0) | (length == -np.inf)), 0.0, square))


def _error(residual: Host, log: Host) -> Host:
    """Bound on the error of each logarithm (B, p): the best of those of the blocks that begin with the first and have it."""
    rho = np.sqrt(np.cumsum(residual * residual, axis=1))
    with np.errstate(all="ignore"):
        gap = log[:, :-1] - log[:, 1:] - rho[:, 1:]
        squared = np.where(gap > 0, rho[:, :-1] ** 2 / -np.expm1(-2 * gap), np.inf)
    bound = np.concatenate([np.fmin(rho[:, :-1], squared), rho[:, -1:]], axis=1)
    return np.minimum.accumulate(bound[:, ::-1], axis=1)[:, ::-1]


def check_k(k: int, width: int) -> None:
    """Raise unless k is an int in [1, width]."""
    integer("k", k, f"an int in [1, {width}]", lambda n: 1 <= n <= width)


def difference(a: Host, b: Host) -> Host:
    """|a - b|, 0 for two equal infinities."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(a == b, 0.0, np.abs(a - b)))


def _condition(log: Host) -> Host:
    """ln of the ratio of the first and the last singular value; inf if both are 0."""
    with np.errstate(invalid="ignore"):
        return np.where(log[:, 0] == -np.inf, np.inf, log[:, 0] - log[:, -1])
