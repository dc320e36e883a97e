"""Student's quantiles against closed forms and the incomplete beta function to 30 digits."""

from __future__ import annotations

import math

import mpmath
import pytest

from rnncore.diagnostics.numerics.student import student
from tests.diagnostics.closed_forms import EPS

CONFIDENCE = (1e-9, 0.5, 0.95, 0.999, 1 - 1e-9)


def close(found, want, confidence, freedom=1):
    """The sum of n/2 terms has as many roundings, and 1 - confidence has 1 / (1 - confidence) fewer digits than 1."""
    assert abs(found - want) <= (8 + freedom) / (1 - confidence) * EPS["float64"] * want


@pytest.mark.parametrize("confidence", CONFIDENCE)
def test_closed_forms(confidence):
    close(student(confidence, 1), math.tan(math.pi * confidence / 2), confidence)
    rest = (1 - confidence) * (1 + confidence)
    close(student(confidence, 2), confidence * math.sqrt(2 / rest), confidence)
    # Shaw (2006), "Sampling Student's T distribution - use of the inverse cumulative distribution function".
    with mpmath.workdps(40):
        root = mpmath.sqrt(1 - mpmath.mpf(confidence) ** 2)
        want = 2 * mpmath.sqrt(mpmath.cos(mpmath.acos(root) / 3) / root - 1)
    close(student(confidence, 4), float(want), confidence)


@pytest.mark.parametrize("freedom", [3, 5, 6, 7, 19, 100, 1999])
@pytest.mark.parametrize("confidence", CONFIDENCE)
def test_the_probability_within_the_quantile_is_the_confidence(confidence, freedom):
    t = student(confidence, freedom)
    with mpmath.workdps(30):
        x = mpmath.mpf(t) ** 2 / (freedom + mpmath.mpf(t) ** 2)
        within = mpmath.betainc(mpmath.mpf(1) / 2, mpmath.mpf(freedom) / 2, 0, x, regularized=True)
    # The sum has freedom / 2 terms, each rounded; the sine and the cosine once.
    assert abs(float(within) - confidence) <= (8 + freedom) * EPS["float64"] * confidence
