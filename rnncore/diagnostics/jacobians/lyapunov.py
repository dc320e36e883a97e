"""Lyapunov exponents of a recurrence along its own trajectory, with a confidence interval.

``lambda_i = lim (1/T) ln sigma_i(J_T ... J_1)`` with ``J_t = dh_t/dh_{t-1} = diag(f'(z_t)) W_hh`` of one layer and
direction. Each J_t in turn is applied to a frame of k directions, which is orthonormalised repeatedly; the exponents are the
means of the logarithms of the diagonal factors. lambda_1 > 0 means that gradients through time grow without bound, even if
all states are bounded (Mikhaeil, Monfared and Durstewitz 2022, "On the difficulty of learning chaotic dynamics with RNNs").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rnncore.arguments import non_negative_int, positive_int, real
from rnncore.diagnostics.jacobians.product import check_k, difference
from rnncore.diagnostics.jacobians.sweep import JacobianChain, advance, chains, check_rows, start_frame
from rnncore.diagnostics.lane import Lane
from rnncore.diagnostics.numerics.student import student
from rnncore.diagnostics.recording import lane_probe
from rnncore.errors import ArgumentValueError
from rnncore.typing import Host

__all__ = ["Lyapunov", "exponents", "kaplan_yorke", "lyapunov"]

BURN_IN = 0.1
WINDOWS = 20


@dataclass(frozen=True)
class Lyapunov:
    """Exponents in nats per step, in the frame's order, which is descending in the limit.

    Attributes
    ----------
    exponents : host array (k,)
        The mean over the rows, each weighted by its steps; -inf for a direction that is mapped to 0.
    interval : host array (2, k)
        Student's interval of the mean over windows and rows (batch means). It is valid if a window is longer than the
        trajectory's memory; NaN if there is only one window of one row.
    confidence : float
    by_row : host array (B, k)
        NaN for a row without a step after the burn-in.
    windows : host array (n, B, k)
        Finite-time exponents, over consecutive windows of equal length (to one step).
    steps, burn_in : host array (B,) of int
        Number of averaged steps, and of steps skipped before them.
    sum_residual : host array (B,) or None
        For k = H: the sum of the exponents minus the mean of ``ln |det J_t|``, 0 up to rounding. The determinant is computed
        from z, so precision lost in f' shows here. None for k < H.
    kaplan_yorke : float
        Kaplan-Yorke dimension; NaN if it needs more than the k exponents.
    entropy_rate : float
        The sum of the positive exponents (Pesin); a lower bound if all k are positive and k < H.
    predictability : float
        ``ln 2 / lambda_1``: the number of steps in which an error doubles; inf if it does not.
    rows : tuple of int
    layer, direction : int
    """

    exponents: Host
    interval: Host
    confidence: float
    by_row: Host
    windows: Host
    steps: Host
    burn_in: Host
    sum_residual: Host | None
    kaplan_yorke: float
    entropy_rate: float
    predictability: float
    rows: tuple[int, ...]
    layer: int
    direction: int


@lane_probe(alone=True)
def lyapunov(
    lane: Lane,
    k: int = 1,
    *,
    burn_in: int | None = None,
    windows: int = WINDOWS,
    confidence: float = 0.95,
    rows: Sequence[int] | None = None,
    seed: int = 0,
) -> Lyapunov:
    """Compute the k largest Lyapunov exponents of the recurrence of one lane.

    Parameters
    ----------
    lane : Lane
    k : int
        In [1, width].
    burn_in : int, optional
        Steps skipped before averaging, while the trajectory and the frame settle; a tenth of each row by default.
    windows : int
        Number of windows for the interval; fewer if the rows are short.
    confidence : float
    rows : sequence of int, optional
        Rows of the batch; all by default.
    seed : int
        Seed of the first frame.

    Returns
    -------
    Lyapunov
        In nats per step.

    Raises
    ------
    ArgumentValueError
        If k is outside [1, width], a row is not in the run, windows < 1, the confidence is outside (0, 1), or the burn-in
        leaves a row without steps.
    ArgumentTypeError
        If k is not an int.

    Notes
    -----
    Benettin, Galgani, Giorgilli and Strelcyn (1980), "Lyapunov characteristic exponents for smooth dynamical systems";
    dimension: Kaplan and Yorke (1979); for recurrent networks: Engelken, Wolf and Abbott (2023), "Lyapunov spectra of
    chaotic recurrent neural networks". The cost is that of k backward passes, and the orthonormalisations.

    Examples
    --------
    The exponents of a linear network are ln |eigenvalue| of its W_hh:

    >>> import numpy as np, rnncore
    >>> from rnncore.diagnostics import record
    >>> from rnncore.diagnostics.jacobians.lyapunov import lyapunov
    >>> rnn = rnncore.RNN(1, 2, nonlinearity="identity", rng=0)
    >>> w = np.array([[0.5, 3.0], [0.0, 0.25]])
    >>> rnn.load_state_dict(dict(rnn.state_dict()) | {"weight_hh_l0": w})
    >>> found = lyapunov(record(rnn, np.zeros((1000, 1, 1))).lane(), k=2)
    >>> np.round(found.exponents - np.log([0.5, 0.25]), 12) + 0.0
    array([0., 0.])
    >>> bool(abs(found.sum_residual[0]) < 1e-12)
    True
    """
    positive_int("windows", windows)
    real("confidence", confidence, "a number in (0, 1)", lambda p: 0 < p < 1)
    check_k(k, lane.width)
    seed = non_negative_int("seed", seed)
    burn_in = None if burn_in is None else min(non_negative_int("burn_in", burn_in), lane.steps)
    windows = min(windows, lane.steps)
    chosen = check_rows(lane, rows)
    count = len(chosen)
    with lane.engine.scope():
        links = chains(lane, None, chosen)
        ends = np.asarray([lane.lengths[r] for r in chosen], dtype=np.int64)
        burn = (ends * BURN_IN).astype(np.int64) if burn_in is None else np.full(count, burn_in, dtype=np.int64)
        if ((burn >= ends) & (ends > 0)).any():
            shortest = int(ends[ends > 0].min(initial=lane.steps))
            raise ArgumentValueError(f"burn_in: expected an int in [0, {shortest - 1}], got {burn_in}")
        burn = np.minimum(burn, ends)  # of a row without steps
        steps = ends - burn
        n = max(1, min(windows, int(steps[steps > 0].min(initial=windows))))
        series = np.full((n, count, k), np.nan)
        by_row = np.full((count, k), np.nan)
        for place, chain in links:
            if chain.steps:
                found, mean = exponents(chain, k, burn_in=int(burn[place[0]]), windows=n, seed=seed)
                series[:, place], by_row[place] = found, mean
        residual = None
        if k == lane.width:
            residual = difference(by_row.sum(axis=1), _log_det(lane, chosen, ends, burn))
    used = steps > 0
    share = steps[used] / steps[used].sum()
    pooled = (by_row[used] * share[:, None]).sum(axis=0) if used.any() else np.full(k, np.nan)
    return Lyapunov(
        exponents=pooled,
        interval=_interval(series[:, used].reshape(-1, k), pooled, confidence),
        confidence=confidence,
        by_row=by_row,
        windows=series,
        steps=steps,
        burn_in=burn,
        sum_residual=residual,
        kaplan_yorke=kaplan_yorke(pooled, complete=k == lane.width),
        entropy_rate=float(pooled[pooled > 0].sum()) if used.any() else math.nan,
        predictability=math.log(2) / float(pooled[0]) if pooled[0] > 0 else math.inf,
        rows=chosen,
        layer=lane.layer,
        direction=lane.direction,
    )


def exponents(chain: JacobianChain, k: int, *, burn_in: int = 0, windows: int = 1, seed: int = 0) -> tuple[Host, Host]:
    """Finite-time exponents of consecutive windows (n, B, k) and over all steps after the burn-in (B, k)."""
    frame = start_frame(chain, k, seed)
    advance(chain, frame, 0, burn_in, lambda r: None)
    # Directions that died during the burn-in stay dead, but its factors are not averaged.
    edges = np.round(np.linspace(burn_in, chain.steps, windows + 1)).astype(np.int64)
    sums = np.zeros((windows, chain.rows, k))

    def add(r: Host) -> None:
        with np.errstate(divide="ignore"):
            sums[w] += np.log(np.abs(np.diagonal(r, axis1=1, axis2=2)))

    for w in range(windows):
        advance(chain, frame, int(edges[w]), int(edges[w + 1]), add)
    return sums / np.diff(edges)[:, None, None], sums.sum(axis=0) / (chain.steps - burn_in)


def kaplan_yorke(spectrum: Host, *, complete: bool) -> float:
    """``j + (lambda_1 + ... + lambda_j) / |lambda_{j+1}|`` with the largest j whose sum is not negative.

    NaN if the sum of all is not negative and the spectrum is not complete.
    """
    if np.isnan(spectrum).any():
        return math.nan
    sums = np.cumsum(spectrum)
    j = int((np.cumsum(sums < 0) == 0).sum())
    if j == 0:
        return 0.0
    if j == len(spectrum):
        return float(j) if complete else math.nan
    return j + float(sums[j - 1]) / abs(float(spectrum[j]))


def _interval(samples: Host, mean: Host, confidence: float) -> Host:
    """Confidence interval (2, k) of the mean of independent samples (n, k)."""
    n = len(samples)
    if n < 2:
        return np.full((2, samples.shape[1]), np.nan)
    dead = ~np.isfinite(samples).all(axis=0)
    error = np.where(dead, 0.0, samples).std(axis=0, ddof=1) / math.sqrt(n)
    half = np.where(dead, 0.0, student(confidence, n - 1) * error)
    return np.stack([mean - half, mean + half])


def _log_det(lane: Lane, rows: tuple[int, ...], ends: Host, burn: Host) -> Host:
    """The mean of ``ln |det J_t| = sum_i ln |f'(z_ti)| + ln |det W|`` over each row's own steps after the burn-in: (B,)."""
    slopes = lane.host(lane.xp.sum(lane.log_slope(), axis=-1))
    with np.errstate(divide="ignore"):
        w = float(np.linalg.slogdet(lane.matrix)[1])
    out = np.full(len(rows), np.nan)
    for i, row in enumerate(rows):
        end, first = int(ends[i]), int(burn[i])
        part = slopes[: end - first, row] if lane.reverse else slopes[first:end, row]
        if len(part):
            out[i] = part.mean() + w
    return out
