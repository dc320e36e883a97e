"""Orthogonal networks and arrays of theirs."""

from __future__ import annotations

import numpy as np

# The eps of float32 times some hundred steps, in nats.
CLOSE_32 = 2e-4


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)
