"""How far back the gradient reaches, and what truncating backpropagation to K steps costs.

Lag n is the distance between a loss and the state that it is differentiated by: ``dL/dh_{T-n}`` for a loss of the last
state. The bias of truncation is that of the gradient of W_hh itself, from the signed contributions of the lags, which may
cancel: norms that are added up do not tell it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rnncore.arguments import check_kind, flag, positive_int
from rnncore.diagnostics.gradient.flow import FLOW_OF_A_LANE, Delta, Flow
from rnncore.diagnostics.gradient.lags import Lags, follow_all, follow_some, subtract
from rnncore.diagnostics.gradient.truncation import LEVELS, truncation
from rnncore.diagnostics.lane import Lane
from rnncore.diagnostics.numerics.device import EPS
from rnncore.diagnostics.numerics.scaled import Scaled
from rnncore.diagnostics.recording import lane_probe
from rnncore.typing import Host

__all__ = ["MAX_LAG", "SMALL", "Horizon", "horizon", "lag_text", "theil_sen"]

SMALL = 1e-3
MAX_LAG = 256
# The slope is fitted to at most this many lags.
POINTS = 256


@dataclass(frozen=True)
class Horizon:
    """Natural logarithms; lags in steps of the direction's own time.

    Attributes
    ----------
    gain : host array (N + 1, B)
        ln of the norm of what arrives n steps before the loss, less ln of the norm at the loss. For a loss of the last
        state ``ln ||dL/dh_{T-n}|| - ln ||dL/dh_T||``, with n = T for h_0; the same of a loss of any other one step. For
        losses at many steps both norms are over those that lie n steps or more behind the row's first state, each seen
        from its own step; h_0 is left out. NaN past a row's first state and in a row without a loss, -inf where nothing
        arrives.
    median : host array (n,)
        Over the rows that have the lag; no longer than the longest of them.
    lag_small, lag_eps : int or None
        The smallest lag from which on the median gain stays below 1e-3, and below the dtype's eps, where it no longer
        changes a sum in this arithmetic. None where it does not within the lags looked at.
    slope : float
        Nats per step, negative for vanishing: the median of the slopes between all pairs of lags (Theil and Sen). NaN
        with fewer than two finite gains.
    e_fold : float
        ``1 / |slope|``: the lags in which the gradient changes by a factor of e.
    bias_lags : host array (n,) of int
        The K at which the truncation bias is known: 0, 1, ..., then fewer, but where it passes 10 % and 1 % every one.
    bias : host array (n,)
        ``||g_K - g|| / ||g||`` at them, where g_K is the gradient of weight_hh from lags 0 to K - 1 alone, summed over the
        rows. ``bias[0]`` is 1. NaN where g is 0.
    k_10, k_1 : int or None
        The smallest K of `bias_lags` from which on the bias is at most 10 %, and 1 %.
    complete : bool
        Whether all lags were looked at.
    losses : int
        Of how many steps with a loss each row's were followed back, at most.
    layer, direction : int
    """

    gain: Host
    median: Host
    lag_small: int | None
    lag_eps: int | None
    slope: float
    e_fold: float
    bias_lags: Host
    bias: Host
    k_10: int | None
    k_1: int | None
    complete: bool
    losses: int
    layer: int
    direction: int

    @property
    def followed(self) -> int | None:
        """Number of lags that were looked at; None if that is all of them."""
        return None if self.complete else len(self.median) - 1


def lag_text(lag: int | None, followed: int | None) -> str:
    """A lag for a reader. None is "never" only if all lags were looked at."""
    if lag is not None:
        return str(lag)
    if followed is None:
        return "never"
    return f"not within {followed} lags" if followed else "not measured"


@lane_probe("flow", "deltas", alone=True)
def horizon(lane: Lane, flow: Flow, delta: Delta, *, max_lag: int = MAX_LAG, every_loss: bool = True) -> Horizon:
    """Compute the gain by lag, and the bias of truncation at K, of one lane's recurrence.

    The gradient from the layer above enters as it is: truncated there too it would be a little smaller.

    Parameters
    ----------
    lane : Lane
    flow, delta
        Of this lane, from the two results of :func:`rnncore.diagnostics.flow`.
    max_lag : int
        The most lags to follow, for rows with losses at several steps. A loss at one step has all.
    every_loss : bool
        Whether to follow all such losses, or only one in each max_lag steps, from a row's last loss back.

    Returns
    -------
    Horizon

    Raises
    ------
    ArgumentTypeError, ArgumentValueError
        For a max_lag that is no int, or below 1.

    Notes
    -----
    For a loss at one step, every step before is a lag: the work is that of one product ``delta^T h``, ``2 T B H^2``
    operations as in one backward pass. Losses that stand max_lag steps apart do not meet within that many lags, so they
    are followed as rows of a batch, by one linear scan and the same product: ``6 T B H^2``. With every_loss each lag takes
    one product of all steps with W and one with the states, ``4 T B H^2``, until what is left is below eps of the whole
    or max_lag is reached. Memory is a few arrays (T, B, H).

    Truncation bias and its geometric decay: Tallec and Ollivier (2017), "Unbiasing truncated backpropagation through
    time"; Aicher, Foti and Fox (2019), "Adaptively truncating backpropagation through time to control gradient bias".

    Examples
    --------
    ``h_t = 0.9 h_{t-1} + 0.1`` at its fixed point, the loss on the last of 200 steps:

    >>> import numpy as np, rnncore
    >>> from rnncore import diagnostics
    >>> from rnncore.diagnostics.gradient.horizon import horizon
    >>> rnn = rnncore.RNN(1, 1, nonlinearity="identity", bias=False, rng=0)
    >>> rnn.load_state_dict({"weight_ih_l0": np.array([[0.1]]), "weight_hh_l0": np.array([[0.9]])})
    >>> seen = diagnostics.record(rnn, np.ones((200, 1, 1)), np.ones((1, 1, 1)))
    >>> flows, deltas = diagnostics.flow(seen, None, [[np.ones((1, 1))]])
    >>> found = horizon(seen.lane(), flows[0][0], deltas[0][0])
    >>> found.lag_small, found.k_10, found.k_1
    (66, 22, 44)
    >>> round(100 * float(found.bias[22]), 3), round(100 * float(found.bias[44]), 3)
    (9.848, 0.97)
    """
    max_lag = positive_int("max_lag", max_lag)
    flag("every_loss", every_loss)
    check_kind("flow", flow, Flow, FLOW_OF_A_LANE)
    check_kind("delta", delta, Delta, FLOW_OF_A_LANE)
    lags = Lags(lane, delta)
    with lane.engine.scope(), np.errstate(invalid="ignore", over="ignore"):
        if _only_one(delta.source_log):
            gain, complete, losses = _gain_of_one(lane, flow, lags.reach), True, int(lags.reach.any())
            e = Scaled(lags.ordered(delta.values), lags.ordered_log(delta.log))
            bias = truncation(e, lags.ordered(lane.previous()), engine=lane.engine)
        elif every_loss:
            gain, bias, complete = follow_all(lags, max_lag)
            losses = int((delta.source_log != -np.inf).sum(axis=0).max())
        else:
            gain, bias, losses, complete = follow_some(lags, max_lag)
    median = _median(gain)
    slope = theil_sen(median)
    return Horizon(
        gain=gain,
        median=median,
        lag_small=_from_on(median < math.log(SMALL)),
        lag_eps=_from_on(median < math.log(EPS[lane.engine.dtype_name])),
        slope=slope,
        e_fold=1 / abs(slope) if slope else math.inf,
        bias_lags=bias.lags,
        bias=bias.bias,
        k_10=bias.smallest(LEVELS[0]),
        k_1=bias.smallest(LEVELS[1]),
        complete=complete,
        losses=losses,
        layer=lane.layer,
        direction=lane.direction,
    )


def theil_sen(y: Host) -> float:
    """The median slope between all pairs of finite y against their index; of POINTS of them where there are more."""
    x = np.flatnonzero(np.isfinite(y))
    if len(x) < 2:
        return math.nan
    x = x[np.unique(np.linspace(0, len(x) - 1, POINTS).round().astype(np.int64))]
    i, j = _pairs(len(x))
    return float(np.median((y[x[j]] - y[x[i]]) / (x[j] - x[i])))


@lru_cache(maxsize=8)
def _pairs(n: int) -> tuple[Host, Host]:
    i, j = np.triu_indices(n, 1)
    return i, j


def _only_one(source_log: Host) -> bool:
    """Whether no row has a loss at more steps than one: usually its last."""
    return bool(((source_log != -np.inf).sum(axis=0) <= 1).all())


def _gain_of_one(lane: Lane, flow: Flow, reach: Host) -> Host:
    out = np.full((int(reach.max(initial=0)) + 1, lane.batch), np.nan)
    for b, n in enumerate(reach):
        if n:
            series = flow.total[lane.lengths[b] - n : lane.lengths[b], b] if lane.reverse else flow.total[:n, b][::-1]
            series = np.append(series, flow.initial[b])
            out[: n + 1, b] = subtract(series, series[0])
    return out


def _median(gain: Host) -> Host:
    ordered = np.sort(gain, axis=1)  # NaN goes to the end
    count = (~np.isnan(gain)).sum(axis=1)
    if not count.any():
        return np.full(1, np.nan)
    rows = np.arange(len(gain))
    low, high = (ordered[rows, np.maximum(at, 0)] for at in ((count - 1) // 2, count // 2))
    with np.errstate(invalid="ignore"):
        out = np.where(low == high, low, (low + high) / 2)
    return np.asarray(out[: np.flatnonzero(count)[-1] + 1])


def _from_on(below: Host) -> int | None:
    """The first index from which on it is true to the end."""
    if not len(below) or not below[-1]:
        return None
    return int(len(below) - np.argmin(below[::-1])) if not below.all() else 0
