"""Logarithms of the singular values of a long product of recurrent Jacobians, with evidence of convergence.

``J_t = dh_t/dh_{t-1} = diag(f'(z_t)) W_hh`` of one layer and direction. A sweep carries k directions through the product by
the linear scan and orthonormalises them between pieces of time, so the product is Q R with R a product of small triangular
matrices. The sums of ln diag R of one sweep are not the singular values, as its first frame does not consist of singular
vectors. Instead the singular values of R are computed, for any grading. Forward and backward sweeps, each starting from the
last frame of the other, are repeated until they agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rnncore.arguments import flag, integer, non_negative_int, real
from rnncore.diagnostics.jacobians.sweep import JacobianChain, advance, chains, check_rows, start_frame
from rnncore.diagnostics.lane import Lane
from rnncore.diagnostics.numerics.device import EPS, on_device
from rnncore.diagnostics.numerics.triangle import Triangle
from rnncore.diagnostics.recording import lane_probe
from rnncore.typing import Array, Host

__all__ = ["Product", "product", "singular_values"]


# Directions carried in addition to k: the convergence of subspace iteration depends on the gap after the last one.
EXTRA = 2


@dataclass(frozen=True)
class Product:
    """Natural logarithms of the singular values of ``J_{stop-1} ... J_start``, rows in the requested order.

    Attributes
    ----------
    log_singular : host array (B, k)
        ln of the k largest singular values, descending; -inf for 0 and for values that the dtype cannot distinguish from 0.
    log_condition : host array (B,)
        ``ln sigma_1 - ln sigma_k``: the logarithm of the condition number if k is the width.
    sweeps : host array (n, B, k)
        The estimates of each sweep, forward and backward in turn.
    disagreement : host array (B, k)
        Absolute difference between the last two sweeps.
    converged : host array (B,) of bool
        Whether the disagreement is within `tolerance` for all k.
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
    converged: Host
    tolerance: float
    steps: Host
    rows: tuple[int, ...]
    layer: int
    direction: int
    left: Array | None = None
    right: Array | None = None


@lane_probe(alone=True)
def product(
    lane: Lane,
    k: int = 2,
    span: tuple[int, int] | None = None,
    *,
    rows: Sequence[int] | None = None,
    vectors: bool = False,
    tolerance: float | None = None,
    max_sweeps: int = 10,
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
        Largest accepted disagreement of two sweeps, in nats; by default ``sqrt(eps) max(1, sqrt(steps) / 10)``, since rounding
        errors of the steps accumulate like a random walk.
    max_sweeps : int
        At least 2. A sweep costs about ``min(k + 2, width)`` backward passes of the row.
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
    general matrix product/quotient". The small factor's singular values: one-sided Jacobi, which is accurate for each
    value however graded the rows are (Demmel and Veselic 1992, "Jacobi's method is more accurate than QR").

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
    estimates = np.full((2, count, k), np.nan)
    steps, used = np.zeros((2, count), dtype=np.int64)
    sides: dict[int, tuple[Array, Array]] = {}
    with lane.engine.scope():
        links = chains(lane, span, chosen)
        if tolerance is None:
            longest = max((chain.steps for _, chain in links), default=1)
            tolerance = math.sqrt(EPS[lane.engine.dtype_name]) * max(1.0, math.sqrt(longest) / 10)
        for place, chain in links:
            series, left, right = singular_values(chain, k, tolerance=tolerance, max_sweeps=max_sweeps, seed=seed)
            if len(series) > len(estimates):  # rows that took fewer sweeps keep their last estimate
                estimates = np.concatenate([estimates, np.repeat(estimates[-1:], len(series) - len(estimates), axis=0)])
            estimates[: len(series), place] = series
            estimates[len(series) :, place] = series[-1]
            steps[place], used[place] = chain.steps, len(series)
            if vectors:
                sides |= {at: (left[i, ...], right[i, ...]) for i, at in enumerate(place)}
        both = [lane.xp.stack([sides[i][side] for i in range(count)], axis=0) if sides else None for side in (0, 1)]
    last, before = (estimates[used - n, np.arange(count)] for n in (1, 2))
    gap = difference(last, before)
    return Product(
        log_singular=last,
        log_condition=_condition(last),
        sweeps=estimates[: int(used.max(initial=2))],
        disagreement=gap,
        converged=np.asarray((gap <= tolerance).all(axis=1)),
        tolerance=tolerance,
        steps=steps,
        rows=chosen,
        layer=lane.layer,
        direction=lane.direction,
        left=both[0],
        right=both[1],
    )


def singular_values(
    chain: JacobianChain, k: int, *, tolerance: float, max_sweeps: int = 10, seed: int = 0
) -> tuple[Host, Array, Array]:
    """Return the estimates of each sweep (n, B, k) over the whole chain, and the left and right vectors (B, H, k)."""
    engine, xp = chain.engine, chain.engine.xp
    frame = start_frame(chain, min(chain.width, k + EXTRA), seed)
    series: list[Host] = []
    backward = False
    while True:
        triangle = Triangle(chain.rows, frame.width)
        before = frame.vectors
        advance(chain, frame, 0, chain.steps, triangle.take, backward=backward)
        log, out_of, into = triangle.singular()
        series.append(log[:, :k])
        agreed = len(series) > 1 and bool((difference(series[-1], series[-2]) <= tolerance).all())
        if agreed or len(series) >= max_sweeps or np.isnan(log).any():
            break
        # A direction that underflowed in this sweep may be a normal one in the other.
        frame.alive[:] = True
        backward = not backward
    turned = [xp.matmul(on_device(g[:, :k], engine), v) for g, v in ((out_of, frame.vectors), (into, before))]
    left, right = (xp.matrix_transpose(v) for v in (turned[::-1] if backward else turned))
    return np.stack(series), left, right


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
