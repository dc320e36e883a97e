"""A network of random inputs and losses at every step."""

from __future__ import annotations

import numpy as np

import rnncore
from rnncore import diagnostics
from tests.tools.rounding import EPS

FLOAT64 = ("numpy", "torch", "strict")


# Up to 60 steps of sums of 5 products and a slope, 7 roundings in each, on either side, and their logarithms.
CLOSE = 512 * EPS


def driven(backend="numpy", *, steps=40, batch=2, width=5, gain=0.9, lengths=None, f="tanh", bidirectional=False):
    init = {"weight_hh": rnncore.init.orthogonal(gain)}
    rnn = rnncore.RNN(
        3, width, nonlinearity=f, init=init, rng=0, backend=backend, dtype="float64", bidirectional=bidirectional
    )
    eng = rnn.network.engine
    numbers = np.random.default_rng(1)

    def on(x):
        return eng.backend.asarray(x, dtype=eng.dtype, device=eng.device)

    record = diagnostics.record(rnn, on(0.5 * numbers.standard_normal((steps, batch, 3))), lengths=lengths)
    u = numbers.standard_normal((steps, batch, width * (2 if bidirectional else 1)))
    return record, u, on
