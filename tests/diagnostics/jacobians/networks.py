"""Recurrences with known Jacobians."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest

import rnncore
from rnncore import diagnostics
from rnncore.diagnostics.jacobians.sweep import JacobianChain
from tests.diagnostics.places import on
from tests.tools.rounding import EPS

FLOAT64 = ("numpy", "torch", pytest.param("strict", marks=pytest.mark.slow))


LONG = 10_000


# In nats: a piece of a sweep, some tens of steps, loses a quarter of the digits, and 10,000 steps have some hundred pieces.
CLOSE = 512 * EPS**0.75


def network(w, f="identity", *, backend="numpy", dtype="float64", w_ih=None, bias=None, **options):
    """A network of one layer with this weight_hh, and its inputs' weights the unit matrix by default."""
    h = len(w)
    rnn = rnncore.RNN(h, h, nonlinearity=f, backend=backend, dtype=dtype, rng=0, **options)
    numbers = {n: np.zeros(p.shape) for n, p in rnn.state_dict().items()}
    for tail in ("", "_reverse") if rnn.spec.bidirectional else ("",):
        numbers["weight_hh_l0" + tail] = w
        numbers["weight_ih_l0" + tail] = np.eye(h) if w_ih is None else w_ih
        numbers["bias_hh_l0" + tail] = np.zeros(h) if bias is None else bias
    rnn.load_state_dict({n: on(rnn, v) for n, v in numbers.items()})
    return rnn


def seen(rnn, x, h0=None, lengths=None):
    return diagnostics.record(rnn, on(rnn, x), None if h0 is None else on(rnn, h0), lengths)


def still(w, steps, batch=1, **options):
    """A linear network's record: J_t = W at every step."""
    return seen(network(np.asarray(w, float), **options), np.zeros((steps, batch, len(w))))


def driven(backend="numpy", *, f="tanh", h=5, steps=40, batch=2, seed=0, lengths=None, bidirectional=False, gain=1.5):
    """A network whose f' differs from step to step, so that its Jacobians do not commute."""
    rng = np.random.default_rng(seed)
    w = gain * rng.standard_normal((h, h)) / math.sqrt(h)
    rnn = network(w, f, backend=backend, bidirectional=bidirectional)
    return seen(rnn, 2 * rng.standard_normal((steps, batch, h)), lengths=lengths), w


def jacobians(record, w, row, direction=0):
    """In the direction's own order, by NumPy."""
    d = record.host(record.lane(0, direction).slope())[: record.lengths[row], row]
    return [np.diag(v) @ w for v in (d[::-1] if direction else d)]


def exact_log_singular(matrices, digits=400):
    with mpmath.workdps(digits):
        p = mpmath.eye(len(matrices[0]))
        for m in matrices:
            p = mpmath.matrix(m.tolist()) * p
        values = mpmath.svd_r(p, compute_uv=False)
        return np.array(sorted((float(mpmath.log(v)) for v in values), reverse=True))


def given(m, backend="numpy", dtype="float64"):
    """The chain of any matrices: m (T, B, H, H)."""
    rnn = rnncore.RNN(1, 1, backend=backend, dtype=dtype, rng=0)
    engine, m = rnn.network.engine, on(rnn, m)
    xp, (steps, rows, width, _) = engine.xp, map(int, m.shape)

    def run(v, order, transposed):
        largest = xp.max(xp.abs(v), axis=(1, 2))
        for t in order:
            v = xp.matmul(v, m[t, ...] if transposed else xp.matrix_transpose(m[t, ...]))
            largest = xp.maximum(largest, xp.max(xp.abs(v), axis=(1, 2)))
        return v, largest

    push = lambda v, a, b: run(v, range(a, b), False)  # noqa: E731
    pull = lambda v, a, b: run(v, range(b - 1, a - 1, -1), True)  # noqa: E731
    return JacobianChain(steps, rows, width, engine, push, pull)


def model_on(backend):
    return rnncore.RNN(1, 1, backend=backend, dtype="float64", rng=0)
