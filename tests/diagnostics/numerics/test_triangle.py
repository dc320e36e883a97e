"""Singular values of graded triangular products."""

from __future__ import annotations

import numpy as np

from rnncore.diagnostics.numerics.triangle import Triangle
from tests.diagnostics.jacobians.networks import exact_log_singular
from tests.tools.rounding import agree


def test_singular_values_of_a_graded_factor():
    """Rows that differ by e^1000 and two that are nearly parallel, against mpmath."""
    rng = np.random.default_rng(5)
    factors = [np.triu(rng.standard_normal((1, 4, 4))) for _ in range(3)]
    grading = np.exp([300.0, 2.0, 1.9, -300.0])
    factors[1][0] = np.diag(grading)
    triangle = Triangle(1, 4)
    for _ in range(3):
        for f in factors:
            triangle.take(f)
    log, left, right = triangle.singular()
    want = exact_log_singular([f[0] for f in factors] * 3, 3000)
    agree(log[0], want, 9)  # each of nine factors is added to logarithms of up to 900
    agree(right[0] @ right[0].T, np.eye(4))
    agree(left[0] @ left[0].T, np.eye(4))


def test_a_row_of_nan_leaves_the_others_as_they_are():
    factors = np.random.default_rng(1).standard_normal((2, 6, 6))
    both, alone = Triangle(2, 6), Triangle(1, 6)
    alone.take(np.triu(factors[1:]))
    factors[0, 2, 3] = np.nan
    both.take(np.triu(factors))
    np.testing.assert_array_equal(both.singular()[0][1], alone.singular()[0][0])
