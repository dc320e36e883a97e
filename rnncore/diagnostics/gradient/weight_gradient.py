"""How much each step adds to the gradient of the weights.

The gradient of a matrix is a sum over the steps, ``dL/dW = sum_t G_t`` with ``G_t = sum_b delta_tb a_tb^T`` (Werbos 1990,
"Backpropagation through time: what it does and how to do it"), where a is what the matrix multiplies. Its norm needs no
G_t: ``||G_t||_F^2 = tr((D D^T)(A A^T))`` with the rows of the batch as D (B, H) and A (B, K), the trick of per-example
gradient norms (Goodfellow 2015, "Efficient per-example gradient computations", arXiv:1510.01799) applied to steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rnncore.arguments import check_kind
from rnncore.diagnostics.gradient.flow import FLOW_OF_A_LANE, Delta
from rnncore.diagnostics.lane import Lane
from rnncore.diagnostics.numerics.device import indices, on_device
from rnncore.diagnostics.numerics.scaled import Scaled
from rnncore.diagnostics.recording import lane_probe
from rnncore.diagnostics.results import Stacked
from rnncore.errors import ArgumentValueError
from rnncore.network.engine import Engine
from rnncore.typing import Array, Host

__all__ = ["WeightGradient", "weight_gradient"]

PIECE_NUMBERS = 2**22  # what one piece of time may hold of G or of the two Gram matrices
# A Gram sum that cancels to this share of its terms has lost 10 bits, and its step is made again from G itself.
CANCELLED = 2.0**-10
SHARE = 0.9


@dataclass(frozen=True)
class WeightGradient(Stacked):
    """Natural logarithms of Frobenius norms of one lane: host arrays (T,) of float64.

    -inf for a step that adds nothing, NaN for one that no row has or where something is NaN, inf where it is infinite.

    Attributes
    ----------
    weight_hh, weight_ih : array (T,)
        ln ||G_t||_F.
    share_hh, share_ih : float
        The smallest fraction of the steps whose norms make up 90 % of the sum of all norms; NaN where that sum is 0 or not
        finite. 0.9 for an even spread, 1/T where one step makes the whole update.
    """

    weight_hh: Host
    weight_ih: Host
    share_hh: float
    share_ih: float

    def largest(self, *, share: float = SHARE) -> Host:
        """The fewest steps whose norms of weight_hh make up `share` of the sum, the largest first: host array of int."""
        return _largest(self.weight_hh, share)


@lane_probe("deltas")
def weight_gradient(lane: Lane, delta: Scaled) -> WeightGradient:
    """Compute the norm of each step's part of the gradients of W_hh and W_ih.

    Parameters
    ----------
    lane : Lane
    delta : Scaled
        dL/dz_t of this lane, from the second result of :func:`rnncore.diagnostics.flow`.

    Returns
    -------
    WeightGradient
        Host arrays (T,), and the shares.

    Raises
    ------
    ArgumentValueError
        If delta is not that of this lane.

    Examples
    --------
    Of 100 steps before a loss at the last one, few matter with torch's default weights:

    >>> import numpy as np, rnncore
    >>> from rnncore.diagnostics import flow, record
    >>> from rnncore.diagnostics.gradient.weight_gradient import weight_gradient
    >>> seen = record(rnncore.RNN(3, 8, rng=0), np.random.default_rng(0).standard_normal((100, 2, 3)))
    >>> _, deltas = flow(seen, None, [[np.ones((2, 8))]])
    >>> found = weight_gradient(seen.lane(), deltas[0][0])
    >>> found.weight_hh.shape, found.share_hh < 0.06, int(found.largest()[0])
    ((100,), True, 99)
    """
    check_kind("delta", delta, (Scaled, Delta), FLOW_OF_A_LANE)
    if tuple(delta.values.shape) != tuple(lane.z.shape):
        raise ArgumentValueError(
            f"delta: expected that of this lane, of shape {tuple(lane.z.shape)}, got {tuple(delta.values.shape)}"
        )
    with lane.engine.scope(), np.errstate(all="ignore"):  # the result shows what is not finite
        hh, ih = _norms(delta, lane.previous(), lane), _norms(delta, lane.x, lane)
    return WeightGradient(hh, ih, _share(hh), _share(ih))


def _norms(delta: Scaled, a: Array, lane: Lane) -> Host:
    """ln ||sum_b delta_tb a_tb^T||_F: (T,)."""
    engine = lane.engine
    ln_d, ln_a = _log_largest(delta.values, engine), _log_largest(a, engine)
    # The size of each row's outer product, on the scale of the step's largest: what lies below the dtype adds nothing.
    size = np.where(lane.valid, ln_d + delta.log + ln_a, -np.inf)
    top = size.max(axis=1, initial=-np.inf)
    usable = np.isfinite(top)
    out = np.where(lane.valid.any(axis=1), top, np.nan)
    if not usable.any():
        return out
    share = np.exp(np.where(np.isfinite(size), size - np.where(usable, top, 0.0)[:, None], -np.inf))
    # Each row to magnitude 1 and then to its share; a row that is not finite spoils the result by `top` alone.
    left = _scaled(delta.values, ln_d, share, engine)
    right = _scaled(a, ln_a, np.isfinite(size).astype(np.float64), engine)
    squares = _frobenius(left, right, engine)
    ln = 0.5 * np.log(squares) + top
    return np.where(usable, ln, out)


def _scaled(x: Array, ln: Host, share: Host, engine: Engine) -> Array:
    """``x share / exp(ln)``, 0 where the share is; at least in float32."""
    wide = engine.xp.float32 if engine.xp.finfo(engine.dtype).bits < 32 else engine.dtype
    ln = np.where(np.isfinite(ln) & (share > 0), ln, 0.0)
    x = engine.xp.astype(x, wide, copy=False)
    kept = on_device((share > 0)[..., None], engine, engine.xp.bool)
    x = engine.xp.where(kept, x, engine.xp.zeros_like(x))
    # In two factors: 1 / |x| may lie outside of the dtype, or be flushed to 0, where x does not and is not.
    for factor in (np.exp(-ln / 2), np.exp(-ln / 2), share):
        x = x * on_device(factor[..., None], engine, wide)
    return x


def _frobenius(left: Array, right: Array, engine: Engine) -> Host:
    """||left_t^T right_t||_F^2 for (T, B, H) and (T, B, K), by what is cheaper: (T,) of float64."""
    steps, batch, height = left.shape
    width = right.shape[2]
    if batch * (height + width) > height * width:
        return _by_matrix(left, right, engine)
    xp = engine.xp
    out = np.zeros(steps)
    terms = np.zeros(steps)
    piece = max(1, PIECE_NUMBERS // max(1, 2 * batch * batch))
    for a in range(0, steps, piece):
        b = min(a + piece, steps)  # the standard leaves slices beyond the end open
        d, x = left[a:b, ...], right[a:b, ...]
        product = xp.matmul(d, xp.matrix_transpose(d)) * xp.matmul(x, xp.matrix_transpose(x))
        both = xp.stack([xp.sum(product, axis=(1, 2)), xp.sum(xp.abs(product), axis=(1, 2))])
        out[a:b], terms[a:b] = engine.backend.to_numpy(both).astype(np.float64)
    # Rows that cancel each other leave of the square of a norm only roundings, and of their square root far too much.
    lost = np.flatnonzero((out <= CANCELLED * terms) & (terms > 0))
    if len(lost):
        at = indices(lost, engine)
        out[lost] = _by_matrix(xp.take(left, at, axis=0), xp.take(right, at, axis=0), engine)
    return out


def _by_matrix(left: Array, right: Array, engine: Engine) -> Host:
    xp = engine.xp
    steps = left.shape[0]
    piece = max(1, PIECE_NUMBERS // (left.shape[2] * right.shape[2]))
    out = np.zeros(steps)
    for a in range(0, steps, piece):
        b = min(a + piece, steps)
        g = xp.matmul(xp.matrix_transpose(left[a:b, ...]), right[a:b, ...])
        # The sum over rows may have cancelled: brought to magnitude 1 before it is squared.
        ln = _log_largest(xp.reshape(g, (g.shape[0], 1, -1)), engine)[:, 0]
        unit = np.where(np.isfinite(ln), ln, 0.0)
        g = g * on_device(np.exp(-unit)[:, None, None], engine, g.dtype)
        squares = engine.backend.to_numpy(xp.sum(g * g, axis=(1, 2))).astype(np.float64)
        out[a:b] = squares * np.exp(2 * unit)
    return out


def _log_largest(x: Array, engine: Engine) -> Host:
    """ln of the largest magnitude over the last axis: host (T, B)."""
    largest: Host = engine.backend.to_numpy(engine.xp.max(engine.xp.abs(x), axis=-1)).astype(np.float64)
    return np.asarray(np.log(largest))


def _largest(ln: Host, share: float) -> Host:
    known = np.flatnonzero(~np.isnan(ln))
    order = known[np.argsort(-ln[known], kind="stable")]
    if not len(order) or not math.isfinite(ln[order[0]]):
        return order[:0]
    total = np.cumsum(np.exp(ln[order] - ln[order[0]]))
    return order[: int(np.searchsorted(total, share * total[-1] * (1 - 1e-12))) + 1]


def _share(ln: Host) -> float:
    steps = int((~np.isnan(ln)).sum())
    found = len(_largest(ln, SHARE))
    return found / steps if found else math.nan
