"""The twelve named functions: f, f' from z and from h, ln f' without cancellation, and the bound gamma = sup |f'|.

They are the identity and the functions of ONNX's RNN operator (https://onnx.ai/onnx/operators/onnx__RNN.html), with its
defaults for alpha and beta. The table ``FAMILIES`` maps a name to the builder that binds alpha and beta, and to their
defaults. To add a function, add its formulas and a row of the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from rnncore.typing import Array, Namespace

Elementwise: TypeAlias = Callable[[Array, Namespace], Array]


@dataclass(frozen=True)
class Functions:
    """A function, its derivatives and their bound. Each function takes (array, namespace).

    df_from_h is None if h = f(z) does not determine f'(z); log_df is None if ln |f'| has no better formula; gamma is
    None if the bound is not known.
    """

    f: Elementwise
    df: Elementwise
    df_from_h: Elementwise | None = None
    log_df: Elementwise | None = None
    gamma: float | None = None


@dataclass(frozen=True)
class Family:
    """A builder of :class:`Functions` from alpha and beta, and their defaults."""

    build: Callable[..., Functions]
    defaults: Mapping[str, float] = field(default_factory=dict)


# --- the functions ----------------------------------------------------------------------------------------------------
#
# Comparisons are written so that NaN never yields a derivative of 0, which would hide it.


def _tanh(z: Array, xp: Namespace) -> Array:
    return xp.tanh(z)


def _tanh_df_h(h: Array, xp: Namespace) -> Array:
    return 1 - h * h


def _tanh_df(z: Array, xp: Namespace) -> Array:
    return _tanh_df_h(xp.tanh(z), xp)


def _tanh_log_df(z: Array, xp: Namespace) -> Array:
    # ln(1 - tanh^2) = -2 ln cosh z, with cosh z = e^|z| (1 + e^-2|z|) / 2.
    a = xp.abs(z)
    return 2 * (math.log(2.0) - a - xp.log1p(xp.exp(-2 * a)))


def _relu(z: Array, xp: Namespace) -> Array:
    # Not maximum(z, 0): with where, NaN stays NaN in every library.
    return xp.where(z <= 0, xp.zeros_like(z), z)


def _step(h: Array, xp: Namespace) -> Array:
    return xp.astype(xp.logical_not(h <= 0), h.dtype)


def _log_step(z: Array, xp: Namespace) -> Array:
    return xp.where(z <= 0, xp.full_like(z, -math.inf), xp.zeros_like(z))


def _sigmoid(z: Array, xp: Namespace) -> Array:
    # e^-|z| never overflows, and small values keep their relative accuracy.
    e = xp.exp(-xp.abs(z))
    return xp.where(z < 0, e, xp.ones_like(e)) / (1 + e)


def _sigmoid_df_h(h: Array, xp: Namespace) -> Array:
    return h * (1 - h)


def _sigmoid_df(z: Array, xp: Namespace) -> Array:
    e = xp.exp(-xp.abs(z))
    return e / ((1 + e) * (1 + e))


def _sigmoid_log_df(z: Array, xp: Namespace) -> Array:
    a = xp.abs(z)
    return -a - 2 * xp.log1p(xp.exp(-a))


def _identity(z: Array, xp: Namespace) -> Array:
    return z * 1  # a copy, by arithmetic that every transformation supports


def _one(z: Array, xp: Namespace) -> Array:
    return xp.ones_like(z)


def _zero(z: Array, xp: Namespace) -> Array:
    return xp.zeros_like(z)


def _softsign(z: Array, xp: Namespace) -> Array:
    return z / (1 + xp.abs(z))


def _softsign_df(z: Array, xp: Namespace) -> Array:
    r = 1 / (1 + xp.abs(z))
    return r * r


def _softsign_df_h(h: Array, xp: Namespace) -> Array:
    r = 1 - xp.abs(h)
    return r * r


def _softsign_log_df(z: Array, xp: Namespace) -> Array:
    return -2 * xp.log1p(xp.abs(z))


def _softplus(z: Array, xp: Namespace) -> Array:
    return _relu(z, xp) + xp.log1p(xp.exp(-xp.abs(z)))


def _softplus_df_h(h: Array, xp: Namespace) -> Array:
    return -xp.expm1(-h)


def _softplus_log_df(z: Array, xp: Namespace) -> Array:
    return -_softplus(-z, xp)


# --- the families -----------------------------------------------------------------------------------------------------


def _build_fixed(
    gamma: float, f: Elementwise, df: Elementwise, df_h: Elementwise, log_df: Elementwise
) -> Callable[..., Functions]:
    def build() -> Functions:
        return Functions(f, df, df_h, log_df, gamma=gamma)

    return build


def _log(x: float) -> float:
    return math.log(abs(x)) if x != 0 else -math.inf


def _two_slopes(z: Array, xp: Namespace, below: float, above: float) -> Array:
    return xp.where(z <= 0, xp.full_like(z, below), xp.full_like(z, above))


def _build_leaky_relu(alpha: float) -> Functions:
    def f(z: Array, xp: Namespace) -> Array:
        return xp.where(z <= 0, alpha * z, z)

    def df(z: Array, xp: Namespace) -> Array:
        return _two_slopes(z, xp, alpha, 1.0)

    def log_df(z: Array, xp: Namespace) -> Array:
        return _two_slopes(z, xp, _log(alpha), 0.0)

    # With alpha >= 0 the sign of h is the sign of z; with alpha < 0 both halves give h >= 0.
    return Functions(f, df, df if alpha >= 0 else None, log_df, gamma=max(1.0, abs(alpha)))


def _build_thresholded_relu(alpha: float) -> Functions:
    def f(z: Array, xp: Namespace) -> Array:
        return xp.where(z <= alpha, xp.zeros_like(z), z)

    def df(z: Array, xp: Namespace) -> Array:
        return xp.astype(xp.logical_not(z <= alpha), z.dtype)

    def df_h(h: Array, xp: Namespace) -> Array:
        return xp.astype(h != 0, h.dtype)

    def log_df(z: Array, xp: Namespace) -> Array:
        return xp.where(z <= alpha, xp.full_like(z, -math.inf), xp.zeros_like(z))

    # With alpha < 0, h = 0 can come from z = 0, where the slope is 1.
    return Functions(f, df, df_h if alpha >= 0 else None, log_df, gamma=1.0)


def _build_hard_sigmoid(alpha: float, beta: float) -> Functions:
    def f(z: Array, xp: Namespace) -> Array:
        return xp.clip(alpha * z + beta, 0.0, 1.0)

    def df_h(h: Array, xp: Namespace) -> Array:
        outside = xp.logical_or(h <= 0, h >= 1)
        return xp.where(outside, xp.zeros_like(h), xp.full_like(h, alpha))

    def df(z: Array, xp: Namespace) -> Array:
        return df_h(alpha * z + beta, xp)

    def log_df(z: Array, xp: Namespace) -> Array:
        y = alpha * z + beta
        outside = xp.logical_or(y <= 0, y >= 1)
        return xp.where(outside, xp.full_like(z, -math.inf), xp.full_like(z, _log(alpha)))

    return Functions(f, df, df_h, log_df, gamma=abs(alpha))


def _build_elu(alpha: float) -> Functions:
    def f(z: Array, xp: Namespace) -> Array:
        below = xp.where(z <= 0, z, xp.zeros_like(z))  # keeps expm1 of the positive half from overflowing
        return xp.where(z <= 0, alpha * xp.expm1(below), z)

    def df(z: Array, xp: Namespace) -> Array:
        below = xp.where(z <= 0, z, xp.zeros_like(z))
        return xp.where(z <= 0, alpha * xp.exp(below), xp.ones_like(z))

    def df_h(h: Array, xp: Namespace) -> Array:
        return xp.where(h <= 0, h + alpha, xp.ones_like(h))

    def log_df(z: Array, xp: Namespace) -> Array:
        return xp.where(z <= 0, z + _log(alpha), xp.zeros_like(z))

    return Functions(f, df, df_h if alpha > 0 else None, log_df, gamma=max(1.0, abs(alpha)))


def _build_scaled_tanh(alpha: float, beta: float) -> Functions:
    def f(z: Array, xp: Namespace) -> Array:
        return alpha * xp.tanh(beta * z)

    def df(z: Array, xp: Namespace) -> Array:
        return alpha * beta * _tanh_df(beta * z, xp)

    def df_h(h: Array, xp: Namespace) -> Array:
        return alpha * beta * _tanh_df_h(h / alpha, xp)

    def log_df(z: Array, xp: Namespace) -> Array:
        return _tanh_log_df(beta * z, xp) + _log(alpha * beta)

    return Functions(f, df, df_h if alpha != 0 else None, log_df, gamma=abs(alpha * beta))


def _build_affine(alpha: float, beta: float) -> Functions:
    def f(z: Array, xp: Namespace) -> Array:
        return alpha * z + beta

    def df(z: Array, xp: Namespace) -> Array:
        return xp.full_like(z, alpha)

    def log_df(z: Array, xp: Namespace) -> Array:
        return xp.full_like(z, _log(alpha))

    return Functions(f, df, df, log_df, gamma=abs(alpha))


FAMILIES: Mapping[str, Family] = {
    "tanh": Family(_build_fixed(1.0, _tanh, _tanh_df, _tanh_df_h, _tanh_log_df)),
    "relu": Family(_build_fixed(1.0, _relu, _step, _step, _log_step)),
    "sigmoid": Family(_build_fixed(0.25, _sigmoid, _sigmoid_df, _sigmoid_df_h, _sigmoid_log_df)),
    "identity": Family(_build_fixed(1.0, _identity, _one, _one, _zero)),
    "leaky_relu": Family(_build_leaky_relu, {"alpha": 0.01}),
    "thresholded_relu": Family(_build_thresholded_relu, {"alpha": 1.0}),
    "hard_sigmoid": Family(_build_hard_sigmoid, {"alpha": 0.2, "beta": 0.5}),
    "elu": Family(_build_elu, {"alpha": 1.0}),
    "softsign": Family(_build_fixed(1.0, _softsign, _softsign_df, _softsign_df_h, _softsign_log_df)),
    "softplus": Family(_build_fixed(1.0, _softplus, _sigmoid, _softplus_df_h, _softplus_log_df)),
    "scaled_tanh": Family(_build_scaled_tanh, {"alpha": 1.0, "beta": 1.0}),
    "affine": Family(_build_affine, {"alpha": 1.0, "beta": 0.0}),
}
