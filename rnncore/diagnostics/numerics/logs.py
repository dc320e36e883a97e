"""Logarithms of norms, sums, singular values and determinants, beyond the range of a dtype."""

from __future__ import annotations

import math

import numpy as np

from rnncore.diagnostics.numerics.device import on_device, on_host
from rnncore.network.engine import Engine
from rnncore.typing import Array, Host


def row_scales(w: Host) -> tuple[Host, Host]:
    """Return (ln of each row's largest magnitude, the rows divided by it); -inf and zeros for a row of zeros."""
    largest = np.abs(w).max(axis=1)
    usable = (largest > 0) & np.isfinite(largest)
    with np.errstate(divide="ignore"):
        return np.log(largest), w / np.where(usable, largest, 1.0)[:, None]


def log_frobenius(log_d: Array, log_rows: Host, engine: Engine) -> Host:
    """``ln sqrt(sum_i d_i^2 r_i)`` from ln |d_i| (T, B, H) and ln sqrt(r_i) (H,): host (T, B)."""
    largest, unit = split(log_d + on_device(log_rows, engine), engine)
    squares = engine.xp.sum(unit * unit, axis=-1)
    with np.errstate(divide="ignore"):
        return np.asarray(on_host(largest, engine) + 0.5 * np.log(on_host(squares, engine)))


def log_norms(w: Host) -> Host:
    """ln of the 2-norm of each row of a host matrix, at any scale: (H,)."""
    scale, unit = row_scales(w)
    with np.errstate(divide="ignore"):
        return np.where(np.isneginf(scale), -np.inf, scale + 0.5 * np.log((unit * unit).sum(axis=1)))


def log_sum(logs: Host) -> float:
    """ln of the sum of exp(logs)."""
    largest = float(np.max(logs))
    return largest + math.log(float(np.exp(logs - largest).sum())) if math.isfinite(largest) else largest


def log_sigma_max(w: Host) -> float:
    """ln of the largest singular value of a host matrix; NaN if it is not finite."""
    largest = float(np.abs(w).max())
    if not math.isfinite(largest):
        return math.nan
    if largest == 0:
        return -math.inf
    return math.log(largest) + math.log(float(np.linalg.norm(w / largest, 2)))


def log_abs_det(w: Host) -> float:
    """ln |det| of a host matrix; -inf if it is singular, NaN if it is not finite."""
    if not np.isfinite(w).all():
        return math.nan
    scale, unit = row_scales(w)  # small rows could underflow next to large ones
    return float(scale.sum()) + float(np.linalg.slogdet(unit)[1])


def split(logs: Array, engine: Engine) -> tuple[Array, Array]:
    """Return (the largest over the last axis, exp(logs - largest)); all factors are 0 where the largest is -inf."""
    xp = engine.xp
    largest = xp.max(logs, axis=-1)
    usable = xp.isfinite(largest)
    shift = xp.expand_dims(xp.where(usable, largest, xp.zeros_like(largest)), axis=-1)
    return largest, xp.exp(logs - shift)
