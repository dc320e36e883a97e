"""One step of the network and its derivative, as pure functions of (state, input): the loop is somebody else's.

``h' = f(x W_ih^T + b + h W_hh^T)``, Elman (1990), "Finding structure in time". b is the sum of torch's two biases.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from rnncore.nonlinearity.nonlinearity import Nonlinearity
from rnncore.typing import Array, Namespace

__all__ = ["StepCotangents", "Weights", "pre_activation", "step", "step_jvp", "step_vjp", "sum_rows"]

# So many rows are added one after the other; then their sums are, and so on.
GROUP = 32
SINGLE_BITS = 32


class Weights(NamedTuple):
    """The numbers of one layer in one direction, or their cotangents or tangents.

    weight_ih (H, I), weight_hh (H, H), and bias (H,), the sum of bias_ih and bias_hh, or None.
    """

    weight_ih: Array
    weight_hh: Array
    bias: Array | None


class StepCotangents(NamedTuple):
    """What :func:`step_vjp` returns."""

    weights: Weights
    x: Array
    h: Array


def pre_activation(w: Weights, x: Array, h: Array, /, *, xp: Namespace) -> Array:
    """z (B, H) for x (B, I) and h (B, H)."""
    z = xp.matmul(x, xp.matrix_transpose(w.weight_ih)) + xp.matmul(h, xp.matrix_transpose(w.weight_hh))
    return z if w.bias is None else z + w.bias


def step(w: Weights, x: Array, h: Array, /, *, nonlinearity: Nonlinearity, xp: Namespace) -> Array:
    """The next state (B, H) from x (B, I) and h (B, H)."""
    return nonlinearity(pre_activation(w, x, h, xp=xp), xp=xp)


def step_vjp(
    d_next: Array, w: Weights, x: Array, h: Array, /, *, nonlinearity: Nonlinearity, xp: Namespace
) -> StepCotangents:
    """Cotangents of the weights, x and h for the cotangent d_next (B, H) of the next state."""
    delta = nonlinearity.derivative(pre_activation(w, x, h, xp=xp), xp=xp) * d_next
    delta_t = xp.matrix_transpose(delta)
    weights = Weights(xp.matmul(delta_t, x), xp.matmul(delta_t, h), None if w.bias is None else sum_rows(delta, xp=xp))
    return StepCotangents(weights, xp.matmul(delta, w.weight_ih), xp.matmul(delta, w.weight_hh))


def step_jvp(
    w_dot: Weights | None,
    x_dot: Array | None,
    h_dot: Array | None,
    w: Weights,
    x: Array,
    h: Array,
    /,
    *,
    nonlinearity: Nonlinearity,
    xp: Namespace,
) -> Array:
    """The tangent (B, H) of the next state; None stands for a tangent of zero."""
    z = pre_activation(w, x, h, xp=xp)
    z_dot = xp.zeros_like(z)
    if x_dot is not None:
        z_dot = z_dot + xp.matmul(x_dot, xp.matrix_transpose(w.weight_ih))
    if h_dot is not None:
        z_dot = z_dot + xp.matmul(h_dot, xp.matrix_transpose(w.weight_hh))
    if w_dot is not None:
        z_dot = z_dot + pre_activation(w_dot, x, h, xp=xp)
    return nonlinearity.derivative(z, xp=xp) * z_dot


def sum_rows(x: Array, /, *, xp: Namespace) -> Array:
    """The sum (H,) of x (..., H) over every axis but the last, as accurate as a product is.

    A library may add row to row, and lose an eps with each: so groups of rows are added, then groups of their sums. Half
    precision, where a long sum stops growing altogether, is added in float32.
    """
    dtype, width = x.dtype, x.shape[-1]
    rows = xp.reshape(x, (math.prod(x.shape[:-1]), width))
    if xp.finfo(dtype).bits < SINGLE_BITS:
        rows = xp.astype(rows, xp.float32)
    while rows.shape[0] > GROUP:
        groups = rows.shape[0] // GROUP
        # Row k, k + groups, ... are one group: then all groups are added in lines as long as they all are together.
        sums = xp.sum(xp.reshape(rows[: groups * GROUP, :], (GROUP, groups, width)), axis=0)
        rest = rows[groups * GROUP :, :]
        rows = xp.concat([sums, rest], axis=0) if rest.shape[0] else sums
    return xp.astype(xp.sum(rows, axis=0), dtype, copy=False)
