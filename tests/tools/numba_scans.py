"""Arguments of the scans and the bound that they are compared with."""

import numpy as np
import pytest
import rnncore_numba
from rnncore_numba._vectors import target

from rnncore.backend.contract import ScanRequest
from rnncore.nonlinearity.nonlinearity import get_nonlinearity

SCANS = rnncore_numba.scans()
FUNCTIONS = ("tanh", "relu", "sigmoid", "identity")
DTYPES = ("float32", "float64")
# A sum of products in another order than the oracle's, through a few contracting steps; the suite allows 64.
EPS_ALLOWED = 64


def arguments(dtype, steps, batch, width, seed=0):
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((width, width)) * 0.9 / np.sqrt(width)
    shapes = [(steps, batch, width), (steps, batch, width), (batch, width)]
    return [x.astype(dtype) for x in (*(rng.uniform(-1, 1, s) for s in shapes), w)]


def assert_close(got, want):
    assert got.shape == want.shape
    scale = max(1.0, np.abs(want).max(initial=0))
    assert np.abs(got - want).max(initial=0) <= EPS_ALLOWED * np.finfo(got.dtype).eps * scale


def request(steps, batch, width, dtype="float32", name="tanh"):
    return ScanRequest("nonlinear", steps, batch, width, dtype, "cpu", False, get_nonlinearity(name))


X86 = target()[0] == "x86_64"
needs_x86 = pytest.mark.skipif(not X86, reason="the instructions and the flag are those of x86")
