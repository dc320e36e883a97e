"""Backends and dtypes, and arrays of a network's own."""

from __future__ import annotations

import math

import numpy as np

import rnncore

LN2 = math.log(2.0)


# (backend, dtype): JAX has float64 only where its own setting says so.
WHERE = [("numpy", "float64"), ("numpy", "float32"), ("torch", "float32"), ("strict", "float64")]


def model(weights, where=("numpy", "float64"), **options):
    """An RNN of these host weights under torch's names, the layer's suffix _l0 left out where there is one layer."""
    full = {k if "_l" in k else f"{k}_l0": np.asarray(v, dtype=np.float64) for k, v in weights.items()}
    hidden, inputs = full["weight_hh_l0"].shape[0], full["weight_ih_l0"].shape[1]
    bias = any(k.startswith("bias") for k in full)
    spec = rnncore.spec.RNNSpec.make(inputs, hidden, bias=bias, **options)
    return rnncore.RNN.from_spec(spec, full, backend=where[0], dtype=where[1])


def on(rnn, x):
    engine = rnn.network.engine
    return engine.backend.asarray(np.asarray(x, dtype=np.float64), dtype=engine.dtype, device=engine.device)


def drawn(where, seed=0, shape=(7, 3, 2), **options):
    """A network, an input and its cotangent, on the backend."""
    rnn = rnncore.RNN(shape[2], 4, rng=seed, backend=where[0], dtype=where[1], **options)
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    u = rng.standard_normal((*shape[:2], 4 * rnn.spec.num_directions))
    return rnn, x, u


BACKWARD_FLOAT32 = [("numpy", "float32"), ("torch", "float32"), ("strict", "float32")]
