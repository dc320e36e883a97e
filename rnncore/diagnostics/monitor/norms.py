"""Running quantiles of gradient norms, for choosing a clipping threshold, in constant memory.

The norms of an RNN's gradients are spread like a log-normal, so a mean says little and a threshold has to come from their
quantiles. Those are kept as in DDSketch (Masson, Rim and Lee 2019, "DDSketch: a fast and fully-mergeable quantile sketch
with relative-error guarantees"): counts in bins that are evenly wide in the logarithm, so that every quantile is right to
1 %, whatever the distribution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rnncore.arguments import check_kind, non_negative, probability, real
from rnncore.optim.clipping import clip_grad_norm
from rnncore.typing import Array

__all__ = ["GradientNorms", "NormSummary"]

ACCURACY = 0.01
LN_BIN = math.log1p(ACCURACY) - math.log1p(-ACCURACY)
MAX_BINS = 2048  # 2048 bins of 1 % span 17 orders of magnitude
QUANTILES = (0.5, 0.9, 0.95, 0.99)
# Section 3.2 of the paper: "training is not very sensitive to this hyperparameter", from half to ten times the mean.
BAND = (0.5, 10.0)
RECOMMENDED = (0.9, 0.95)


@dataclass(frozen=True)
class NormSummary:
    """Statistics of the norms so far.

    Attributes
    ----------
    steps : int
        Steps with a norm.
    nonfinite : int
        Those of them whose norm is NaN or infinite.
    first_nonfinite : int or None
        The first such step, counted from 0; None without any.
    mean : float
        Of the finite norms; NaN without any, as are the quantiles.
    quantiles : dict of float to float
        0.5, 0.9, 0.95 and 0.99 of the finite norms, each within 1 % of a norm of that rank.
    """

    steps: int
    nonfinite: int
    first_nonfinite: int | None
    mean: float
    quantiles: dict[float, float]

    @property
    def finite(self) -> int:
        """Steps with a finite norm."""
        return self.steps - self.nonfinite

    @property
    def band(self) -> tuple[float, float]:
        """[0.5, 10] times the mean: Pascanu, Mikolov and Bengio (2013), "On the difficulty of training recurrent neural
        networks", section 3.2.
        """
        return BAND[0] * self.mean, BAND[1] * self.mean

    @property
    def recommended(self) -> tuple[float, float]:
        """The 0.9 and the 0.95 quantile: a threshold between them clips one step in ten to one in twenty, the rare cliffs,
        and leaves the others unchanged.
        """
        return self.quantiles[RECOMMENDED[0]], self.quantiles[RECOMMENDED[1]]


class GradientNorms:
    """Collects the norm of the gradient at each step of training.

    Memory is bounded: at most 2048 counters. Norms that span more than 17 orders of magnitude are kept exactly only from
    the largest down so far; the rest are counted together at the lower end.

    Attributes
    ----------
    steps : int
        How many norms were added, finite or not.

    Examples
    --------
    >>> import numpy as np
    >>> from rnncore.diagnostics.monitor.norms import GradientNorms
    >>> norms = GradientNorms()
    >>> for n in range(1, 1001):
    ...     _ = norms.add(float(n))
    >>> round(norms.add({"weight": np.asarray([3e30, 4e30], dtype=np.float32)}) / 1e30, 6)
    5.0
    >>> norms.add(float("nan"))
    nan
    >>> seen = norms.summary()
    >>> round(seen.quantiles[0.5] / 501, 1), round(norms.clipped(900.5), 2), seen.first_nonfinite
    (1.0, 0.1, 1001)
    """

    def __init__(self) -> None:
        self._bins: dict[int, int] = {}
        self._zeros = self._finite = self._nonfinite = 0
        self._first_nonfinite: int | None = None
        self._mean = 0.0

    @property
    def steps(self) -> int:
        """Number of steps that were added."""
        return self._finite + self._nonfinite

    def add(self, gradient: float | Mapping[str, Array]) -> float:
        """Add the gradient of one step.

        Parameters
        ----------
        gradient : float, or mapping of str to array
            The norm, or the gradients themselves; their norm is then that of :func:`rnncore.optim.clip_grad_norm`, right
            at 1e30 and 1e-30 in float32 too. NaN and infinity are counted apart.

        Returns
        -------
        float
            The norm.
        """
        if isinstance(gradient, Mapping):
            norm = clip_grad_norm(gradient, math.inf)[1]
        else:
            norm = real(
                "gradient", gradient, "a float, which is a norm >= 0, or a mapping of arrays", lambda n: not n < 0
            )
        if not math.isfinite(norm):
            if self._first_nonfinite is None:
                self._first_nonfinite = self.steps
            self._nonfinite += 1
            return norm
        self._finite += 1
        self._mean += (norm - self._mean) / self._finite  # a sum would overflow where the mean does not
        if norm == 0:
            self._zeros += 1
        else:
            at = math.ceil(math.log(norm) / LN_BIN)
            self._bins[at] = self._bins.get(at, 0) + 1
            self._bound()
        return norm

    def merge(self, other: GradientNorms) -> None:
        """Add all steps of another, as if they had come after these."""
        check_kind("other", other, GradientNorms, "a GradientNorms")
        if other._first_nonfinite is not None and self._first_nonfinite is None:
            self._first_nonfinite = self.steps + other._first_nonfinite
        self._nonfinite += other._nonfinite
        self._finite += other._finite
        if other._finite:
            self._mean += (other._mean - self._mean) * (other._finite / self._finite)
        self._zeros += other._zeros
        for at, count in list(other._bins.items()):
            self._bins[at] = self._bins.get(at, 0) + count
        self._bound()

    def quantile(self, q: float) -> float:
        """The norm of rank ``floor(q (n - 1))`` of the n finite ones, within 1 %; NaN without any."""
        q = probability("q", q)
        if not self._finite:
            return math.nan
        left = math.floor(q * (self._finite - 1)) - self._zeros
        if left < 0:
            return 0.0
        for at in sorted(self._bins):
            left -= self._bins[at]
            if left < 0:
                break
        return _middle(at)

    def clipped(self, threshold: float) -> float:
        """The share of the finite norms above a threshold; those within 1 % of it may be on either side. NaN without any."""
        threshold = non_negative("threshold", threshold, finite=False)
        if not self._finite:
            return math.nan
        above = sum(count for at, count in self._bins.items() if _middle(at) > threshold)
        return above / self._finite

    def summary(self) -> NormSummary:
        """Statistics of all steps so far."""
        mean = self._mean if self._finite else math.nan
        quantiles = {q: self.quantile(q) for q in QUANTILES}
        return NormSummary(self.steps, self._nonfinite, self._first_nonfinite, mean, quantiles)

    def _bound(self) -> None:
        """Join the lowest bins while there are too many; the high quantiles are the ones that matter."""
        while len(self._bins) > MAX_BINS:
            lowest, second = sorted(self._bins)[:2]
            self._bins[second] += self._bins.pop(lowest)


def _middle(at: int) -> float:
    """The number that is within ACCURACY of all numbers of a bin (exp((at - 1) LN_BIN), exp(at LN_BIN)]."""
    # e^(at LN_BIN) 2 / (1 + gamma), with gamma = e^LN_BIN: 2 / (1 + gamma) = 1 - ACCURACY.
    ln = at * LN_BIN + math.log1p(-ACCURACY)
    return math.exp(min(ln, math.log(1.7976931348623157e308)))
