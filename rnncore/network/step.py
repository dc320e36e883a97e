"""One step of the network and its derivatives, as pure functions of (state, input).

``h' = f(x W_ih^T + b + h W_hh^T)``, Elman (1990), "Finding structure in time". b is the sum of torch's two biases.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from rnncore import scan
from rnncore.arguments import are_known
from rnncore.nonlinearity.nonlinearity import Nonlinearity
from rnncore.typing import Array, Namespace

__all__ = ["StepCotangents", "StepTangents", "Weights", "project", "step", "step_jvp", "step_vjp", "sum_rows"]

# Rows added one after the other before their sums are added in turn.
GROUP = 32
SINGLE_BITS = 32


class Weights(NamedTuple):
    """Weights of one layer in one direction, or their cotangents or tangents.

    weight_ih (H, I), weight_hh (H, H), and bias (H,), the sum of bias_ih and bias_hh, or None.
    """

    weight_ih: Array
    weight_hh: Array
    bias: Array | None


class StepCotangents(NamedTuple):
    """Cotangents of the weights, x and h."""

    weights: Weights
    x: Array
    h: Array


class StepTangents(NamedTuple):
    """Tangents of the weights, x and h; None is a tangent of zero."""

    weights: Weights | None
    x: Array | None
    h: Array | None


def step(w: Weights, x: Array, h: Array, /, *, nonlinearity: Nonlinearity, xp: Namespace) -> Array:
    """The next state (B, H) from x (B, I) and h (B, H)."""
    z = xp.matmul(x, w.weight_ih.T) + xp.matmul(h, w.weight_hh.T)
    return nonlinearity(z if w.bias is None else z + w.bias[None, :], xp=xp)


def step_vjp(
    d_next: Array,
    w: Weights,
    x: Array,
    h: Array,
    h_next: Array,
    /,
    *,
    nonlinearity: Nonlinearity,
    xp: Namespace,
    linear_scan: Callable[..., Array] | None = None,
) -> StepCotangents:
    """Cotangents of the weights, x and h for the cotangent d_next (B, H) of the next state: BPTT over one step.

    `linear_scan`: as in :func:`rnncore.scan.nonlinear_vjp`.
    """
    found = scan.nonlinear_vjp(
        d_next[None, ...],
        project(w, x, xp=xp) if nonlinearity.derivative_needs_z else None,
        h,
        w.weight_hh,
        h_next[None, ...],
        nonlinearity=nonlinearity,
        reverse=False,
        xp=xp,
        linear_scan=linear_scan,
    )
    delta = found.p[0, ...]
    bias = None if w.bias is None else sum_rows(delta, xp=xp)
    return StepCotangents(Weights(xp.matmul(delta.T, x), found.w_hh, bias), xp.matmul(delta, w.weight_ih), found.h0)


def step_jvp(
    dots: StepTangents,
    w: Weights,
    x: Array,
    h: Array,
    h_next: Array,
    /,
    *,
    nonlinearity: Nonlinearity,
    xp: Namespace,
    linear_scan: Callable[..., Array] | None = None,
) -> Array:
    """The tangent (B, H) of the next state. `linear_scan`: as in :func:`rnncore.scan.nonlinear_jvp`."""
    p_dot = xp.zeros_like(h_next[None, ...]) if dots.weights is None else project(dots.weights, x, xp=xp)
    if dots.x is not None:
        p_dot = p_dot + xp.matmul(dots.x, w.weight_ih.T)[None, ...]
    found = scan.nonlinear_jvp(
        p_dot,
        xp.zeros_like(h) if dots.h is None else dots.h,
        xp.zeros_like(w.weight_hh) if dots.weights is None else dots.weights.weight_hh,
        project(w, x, xp=xp) if nonlinearity.derivative_needs_z else None,
        h,
        w.weight_hh,
        h_next[None, ...],
        nonlinearity=nonlinearity,
        reverse=False,
        xp=xp,
        linear_scan=linear_scan,
    )
    return found[0, ...]


def project(w: Weights, x: Array, /, *, xp: Namespace) -> Array:
    """x W_ih^T + b as a sequence of one step, (1, B, H)."""
    p = xp.matmul(x, w.weight_ih.T)
    return (p if w.bias is None else p + w.bias[None, :])[None, ...]


def sum_rows(x: Array, /, *, xp: Namespace) -> Array:
    """Sum x (..., H) over every axis but the last, (H,), as accurately as a matrix product does.

    A library may add row to row, and lose an eps with each: so groups of rows are added, then groups of their sums. Half
    precision, where a long sum stops growing altogether, is added in float32.
    """
    dtype, width = x.dtype, x.shape[-1]
    rows = x[0, ...] if x.ndim == 3 and x.shape[0] == 1 else xp.reshape(x, (math.prod(x.shape[:-1]), width))
    if rows.shape[0] == 1:
        return rows[0, ...]
    if xp.finfo(dtype).bits < SINGLE_BITS:
        rows = xp.astype(rows, xp.float32)
    if not are_known(rows.shape[0]):  # which cannot be divided into groups
        total = xp.matmul(xp.ones_like(rows[:, :1]).T, rows)[0, :]
        return xp.astype(total, dtype, copy=False)
    while rows.shape[0] > GROUP:
        groups = rows.shape[0] // GROUP
        # Row k, k + groups, ... are one group: then all groups are added in lines as long as they all are together.
        sums = xp.sum(xp.reshape(rows[: groups * GROUP, :], (GROUP, groups, width)), axis=0)
        rest = rows[groups * GROUP :, :]
        rows = xp.concat([sums, rest], axis=0) if rest.shape[0] else sums
    return xp.astype(xp.sum(rows, axis=0), dtype, copy=False)
