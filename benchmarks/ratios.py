"""Ratios of the same round, their bootstrap intervals and geometric means, and slopes.

The interval is the middle 95 % of the results of 2000 draws of the rounds with replacement: Efron (1979), "Bootstrap methods:
another look at the jackknife".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.case import Host

DRAWS, LEVEL, SEED = 2000, 0.95, 0


@dataclass(frozen=True)
class Estimate:
    """A number and its interval."""

    value: float
    low: float
    high: float


def paired(peer: Sequence[float], ours: Sequence[float]) -> Host:
    """Return how many times as long the peer takes, round by round: a slow moment of the machine slows both.

    >>> paired([2.0, 6.0, 1.0], [1.0, 2.0]).tolist()
    [2.0, 3.0]
    """
    rounds = min(len(peer), len(ours))
    result: Host = np.asarray(peer[:rounds], float) / np.asarray(ours[:rounds], float)
    return result


def ratio(peer: Sequence[float], ours: Sequence[float]) -> Estimate:
    """Return the median of the paired ratios, with its interval.

    >>> ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    Estimate(value=2.0, low=2.0, high=2.0)
    """
    return geometric_mean([paired(peer, ours)])


def geometric_mean(ratios: Sequence[Host]) -> Estimate:
    """Return the geometric mean over shapes of the median over rounds; each draw takes new rounds of every shape.

    Parameters
    ----------
    ratios : sequence of arrays (rounds,)
        Paired ratios, an array for each shape.
    """
    rng = np.random.default_rng(SEED)
    value = sum(float(np.log(np.median(r))) for r in ratios) / len(ratios)
    drawn = np.zeros(DRAWS)
    for r in ratios:
        drawn += np.log(np.median(r[rng.integers(len(r), size=(DRAWS, len(r)))], axis=1)) / len(ratios)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(*(float(np.exp(v)) for v in (value, low, high)))


def slope(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Return the exponent p of seconds ~ sizes^p, by least squares in logarithms: 1 if the cost grows linearly.

    >>> round(slope([1, 2, 4], [3.0, 12.0, 48.0]), 6)
    2.0
    """
    log_size, log_time = np.log(np.asarray(sizes, float)), np.log(np.asarray(seconds, float))
    centred = log_size - log_size.mean()
    return float(centred @ log_time / (centred @ centred))
