"""Quantiles of Student's t for a whole number of degrees of freedom."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["student"]


def student(confidence: float, freedom: int) -> float:
    """The t of ``P(|T| < t) = confidence``, for a confidence in (0, 1) and at least one degree of freedom.

    With ``t = sqrt(freedom) tan(angle)`` the probability is a finite sum (Abramowitz and Stegun 26.7.3 and 26.7.4). Bisection
    finds the angle to the last bit.
    """
    i = np.arange(1.0, freedom // 2)
    ratios = (2 * i - 1) / (2 * i) if freedom % 2 == 0 else 2 * i / (2 * i + 1)

    def probability(angle: float) -> float:
        sine, cosine = math.sin(angle), math.cos(angle)
        terms = 1 + float(np.cumprod(ratios * cosine * cosine).sum())
        if freedom % 2 == 0:
            return sine * terms
        return 2 / math.pi * (angle + (sine * cosine * terms if freedom > 1 else 0.0))

    low, high = 0.0, math.pi / 2
    while low < (middle := 0.5 * (low + high)) < high:
        low, high = (middle, high) if probability(middle) < confidence else (low, middle)
    return math.sqrt(freedom) * math.tan(low)
