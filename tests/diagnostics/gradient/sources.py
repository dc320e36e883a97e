"""Orthogonal networks and arrays of theirs."""

from __future__ import annotations

import numpy as np

from tests.tools.rounding import EPS_OF

# In nats: up to 120 steps of sums of 8 products of a matrix that is rounded to float32 itself.
CLOSE_32 = 8 * 120 * EPS_OF["float32"]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)
