"""Quantiles of gradient norms in constant memory."""

from __future__ import annotations

import math

import numpy as np
import pytest

import rnncore
from rnncore.diagnostics.monitor.norms import GradientNorms
from tests.diagnostics.places import drawn, on
from tests.tools.rounding import EPS, EPS_OF


@pytest.fixture(autouse=True)
def _quiet():
    """NumPy warns of the overflows that are planted here."""
    with np.errstate(all="ignore"):
        yield


@pytest.mark.parametrize(("centre", "spread"), [(0.0, 1.0), (-50.0, 3.0), (300.0, 0.01)])
def test_quantiles_of_log_normal_norms_are_within_one_per_cent(centre, spread):
    drawn_norms = np.exp(centre + spread * np.random.default_rng(0).standard_normal(10_000))
    norms = GradientNorms()
    for norm in drawn_norms:
        norms.add(norm)
    seen = norms.summary()
    for q, got in seen.quantiles.items():
        want = np.quantile(drawn_norms, q, method="lower")
        # The edges of bins are exponentials, of numbers up to 340.
        assert abs(got / want - 1) <= 0.01 + 340 * EPS, q
    assert seen.recommended == (seen.quantiles[0.9], seen.quantiles[0.95])
    walk = 4 * math.sqrt(len(drawn_norms)) * EPS  # roundings of a sum, one after the other, as of a random walk
    assert seen.mean == pytest.approx(drawn_norms.mean(), rel=walk)
    assert seen.band == pytest.approx((drawn_norms.mean() / 2, 10 * drawn_norms.mean()), rel=walk)
    for q in (0.3, 0.9, 0.999):
        threshold = float(np.quantile(drawn_norms, q))
        low, high = ((drawn_norms > threshold * f).mean() for f in (1.0101, 0.9899))
        assert low <= norms.clipped(threshold) <= high
    assert len(norms._bins) <= 2 + 2 * 4.5 * spread / 0.02  # what is held follows the spread, not the number of steps


def test_memory_is_bounded_and_the_high_quantiles_survive():
    rng = np.random.default_rng(0)
    wide = np.exp(rng.uniform(-700, 700, 10_000))
    norms = GradientNorms()
    for norm in wide:
        norms.add(norm)
    assert len(norms._bins) == 2048
    # 2048 bins of 2 % hold the upper 41 nats at least.
    for q in (0.98, 0.99, 1.0):
        assert norms.quantile(q) == pytest.approx(np.quantile(wide, q, method="lower"), rel=0.0101)


@pytest.mark.parametrize(
    "where", [("numpy", "float32"), ("torch", "float32"), ("strict", "float32"), ("jax", "float32")]
)
@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_norms_whose_squares_float32_has_not(where, size):
    rnn, _, _ = drawn(where)
    norms = GradientNorms()
    got = norms.add({"a": on(rnn, [3 * size, 0.0]), "b": on(rnn, [[4 * size]])})
    assert got == pytest.approx(5 * size, rel=4 * EPS_OF["float32"])
    assert norms.quantile(0.5) == pytest.approx(5 * size, rel=0.0101)


def test_norms_that_are_none_are_counted_apart_and_merging_adds_up():
    a, b, both = GradientNorms(), GradientNorms(), GradientNorms()
    assert math.isnan(a.summary().mean) and math.isnan(a.quantile(0.5)) and math.isnan(a.clipped(1.0))
    for i, norm in enumerate([1.0, 0.0, 2.0, 1e300, 1e300, math.inf, 4.0, math.nan]):
        (a if i < 4 else b).add(norm)
        both.add(norm)
    b.add({"w": np.asarray([1.0, np.nan])})
    both.add({"w": np.asarray([1.0, np.nan])})
    a.merge(b)
    assert a.summary() == both.summary()
    seen = a.summary()
    assert (seen.steps, seen.finite, seen.nonfinite, seen.first_nonfinite) == (9, 6, 3, 5)
    assert seen.mean == pytest.approx(2e300 / 6, rel=4 * EPS)
    assert (a.quantile(0.0), a.clipped(0.0), a.clipped(math.inf)) == (0.0, 5 / 6, 0.0)
    for bad, error in ((-1.0, "a norm >= 0"), (True, "expected a float"), (np.ones(2), "expected a float")):
        with pytest.raises(rnncore.errors.RnncoreError, match=error):
            a.add(bad)
    with pytest.raises(rnncore.errors.ArgumentValueError, match=r"q: expected a number in \[0, 1\]"):
        a.quantile(1.5)
    top = GradientNorms()
    top.add(1.7976931348623157e308)
    top.add(5e-324)
    assert math.isfinite(top.quantile(1.0))
    assert 0 < top.quantile(0.0) < 2 * np.nextafter(0.0, 1.0)
