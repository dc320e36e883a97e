"""Ratios of the same round, and their intervals."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import ratios
from tests.tools.rounding import EPS


def test_a_slow_moment_of_the_machine_leaves_the_ratio_as_it_is():
    slow = np.array([1, 1, 30, 1, 1, 20, 1, 1, 10.0])
    ours = slow * np.linspace(0.99, 1.01, 9)
    found = ratios.ratio(2.0 * slow, ours)
    assert found.value == pytest.approx(2.0, rel=4 * EPS)
    assert 1.97 < found.low <= found.value <= found.high < 2.03
    # Unpaired, against times in another order, the interval would hold almost anything.
    assert ratios.ratio(2.0 * slow, ours[[2, 0, 1, 5, 3, 4, 8, 6, 7]]).low < 1.5


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(200):
        noise = np.exp(0.2 * rng.standard_normal(15))
        found = ratios.ratio(3.0 * noise, np.ones(15))
        held += found.low <= 3.0 <= found.high
    # 95 % is 190, the bootstrap of a median of 15 is known to be a little off; four standard deviations are 12.
    assert 174 <= held <= 200


def test_the_geometric_mean_is_over_shapes_and_its_interval_shrinks_with_them():
    rng = np.random.default_rng(0)
    two, half = (factor * np.exp(0.1 * rng.standard_normal(15)) for factor in (2.0, 0.5))
    assert ratios.geometric_mean([two, half]).value == pytest.approx(
        np.sqrt(np.median(two) * np.median(half)), rel=8 * EPS
    )
    one, many = ratios.geometric_mean([two]), ratios.geometric_mean([two] * 9)
    assert many.high / many.low < one.high / one.low
