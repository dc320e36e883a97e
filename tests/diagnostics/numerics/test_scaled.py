"""Scaled sequences beyond the range of a dtype."""

from __future__ import annotations

import math

import numpy as np
import pytest

import rnncore
from rnncore.diagnostics.numerics import scaled as scaled_file
from tests.diagnostics.gradient.sources import CLOSE_32, normal


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("rate", [-11.0, 11.0])
def test_sources_that_span_more_than_the_dtype_are_all_heard(rate, reverse):
    """Sources of e^0, e^11, e^22, ...: on the scale of the last, float32 has none of the first."""
    steps, width = 30, 4
    engine = rnncore.RNN(1, 1, dtype="float32", rng=0).network.engine
    u, d = normal(steps, 1, width).astype("f4"), np.full((steps, 1, width), 0.5, "f4")
    log = rate * np.arange(float(steps))[:, None]
    m = 1e-3 * np.linalg.qr(normal(width, width))[0].astype("f4")
    found = scaled_file.linear(scaled_file.Scaled(u, log), d, m, reverse=reverse, engine=engine)
    got = scaled_file.log_norm(found, engine=engine)[:, 0]
    state, want = np.zeros(width, np.longdouble), np.zeros(steps)
    for t in range(steps)[:: -1 if reverse else 1]:
        state = d[t, 0] * (u[t, 0] * np.exp(np.longdouble(log[t, 0])) + state @ m)
        want[t] = float(np.log(np.sqrt((state**2).sum())))
    np.testing.assert_allclose(got, want, rtol=0, atol=CLOSE_32)


def test_a_source_after_a_slope_of_zero_has_a_scale_of_its_own():
    engine = rnncore.RNN(1, 1, dtype="float32", rng=0).network.engine
    u, d = np.ones((4, 1, 2), "f4"), np.ones((4, 1, 2), "f4")
    d[1] = 0
    log = np.asarray([0.0, 0.0, -200.0, -190.0])[:, None]
    found = scaled_file.linear(scaled_file.Scaled(u, log), d, 0 * np.eye(2, dtype="f4"), reverse=False, engine=engine)
    want = 0.5 * math.log(2) + np.asarray([0.0, -math.inf, -200.0, -190.0])
    np.testing.assert_allclose(scaled_file.log_norm(found, engine=engine)[:, 0], want, rtol=0, atol=CLOSE_32)
