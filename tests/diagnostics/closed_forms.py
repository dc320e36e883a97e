"""Networks with given weights or pre-activations, for tests in closed form."""

from __future__ import annotations

import dataclasses
import math

import mpmath
import numpy as np

import rnncore
from rnncore.diagnostics.gradient.flow import flow
from rnncore.diagnostics.recording import record
from rnncore.diagnostics.units.mean_field import ROUNDING

# JAX compiles every operation: it runs the tests that go once through each probe, and its float64 is the user's setting.
PLACES = [("numpy", "float64"), ("numpy", "float32"), ("torch", "float64"), ("torch", "float32"), ("strict", "float64")]


PLACES += [("strict", "float32")]


WITH_JAX = [*PLACES, ("jax", "float32")]


# The roots of the mean field are known to this: chi is above 1 by ROUNDING there, and g makes up to ten times as much of it.
ROOT = 10 * ROUNDING


EPS = {"float32": 2.0**-23, "float64": 2.0**-52}


xp = rnncore.get_backend("numpy").namespace()


def device_array(backend, dtype, x):
    plugin = rnncore.get_backend(backend)
    return plugin.asarray(
        np.asarray(x, dtype=dtype), dtype=getattr(plugin.namespace(), dtype), device=plugin.devices()[0]
    )


def fixed(array):
    return lambda shape, rng: np.broadcast_to(np.asarray(array, dtype=np.float64), shape).copy()


def network(backend, dtype, w, nonlinearity="identity", inputs=1, w_ih=0.0, bias=0.0, **more):
    """One whose W_hh is w in every layer and direction."""
    init = {"weight_hh": fixed(w), "weight_ih": fixed(w_ih), "bias_ih": fixed(bias), "bias_hh": fixed(0.0)}
    return rnncore.RNN(inputs, len(w), nonlinearity=nonlinearity, init=init, backend=backend, dtype=dtype, **more)


def seen(backend, dtype, w, nonlinearity="identity", steps=3, batch=1, z=None, lengths=None, **more):
    """A run; with z (T, B, H), one in which every layer and direction had these pre-activations."""
    if z is not None:
        z = np.asarray(z, dtype=dtype)
        steps, batch = z.shape[:2]
    rnn = network(backend, dtype, w, nonlinearity, **more)
    found = record(rnn, device_array(backend, dtype, np.zeros((steps, batch, 1))), lengths=lengths)
    if z is None:
        return found
    zs = device_array(backend, dtype, z)
    h = found.nonlinearity(zs, xp=found.xp)
    many = [[zs] * found.directions for _ in range(found.spec.num_layers)]
    return dataclasses.replace(found, z=many, h=[[h] * found.directions for _ in many])


def gaussian(width, g, seed=0):
    return np.random.default_rng(seed).standard_normal((width, width)) * g / math.sqrt(width)


def orthogonal(width, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width)))[0]


def rounded(x, dtype):
    return np.asarray(x, dtype=dtype).astype(np.float64)


def backward(rec, seed=7, only_last=True):
    """flow of a loss of the last states, or of all outputs."""
    backend, dtype = rec.engine.backend.name, rec.engine.dtype_name
    rng = np.random.default_rng(seed)
    if only_last:
        last = [
            [device_array(backend, dtype, rng.standard_normal((rec.batch, n))) for _ in range(rec.directions)]
            for n in rec.spec.hidden_sizes
        ]
        return flow(rec, None, last)
    shape = (rec.steps, rec.batch, rec.directions * rec.spec.hidden_sizes[-1])
    return flow(rec, device_array(backend, dtype, rng.standard_normal(shape)))


def exact_log_slope(name, z):
    """ln |f'(z)| to fifty digits."""
    z = mpmath.mpf(float(z))
    return {
        "tanh": lambda: 2 * mpmath.log(mpmath.sech(z)),
        "sigmoid": lambda: -abs(z) - 2 * mpmath.log1p(mpmath.exp(-abs(z))),
        "identity": lambda: mpmath.mpf(0),
        "softsign": lambda: -2 * mpmath.log1p(abs(z)),
    }[name]()
