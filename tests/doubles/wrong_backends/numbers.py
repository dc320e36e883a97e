"""Numbers of too little precision or range, and special numbers that are lost."""

from __future__ import annotations

import array_api_compat.numpy as xp
import numpy as np
from rnncore_numpy._scans import NumpyScans

from rnncore.backend.registry import get_backend
from rnncore.model.base import Parameterised
from wrong_backends.planting import Plant, _times, core, linear, members, namespace, nonlinear, steps_of


def tf32(x):
    """float32 numbers with the ten bits of mantissa that a tensor core reads."""
    if str(x.dtype) != "float32":
        return x
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.round(mantissa * np.float32(2**11)) / np.float32(2**11), exponent)


class Tf32Scans(NumpyScans):
    def nonlinear(self, p, h0, w_hh, /, *, nonlinearity, reverse, overwrite=False):
        out, h, w_t = np.empty_like(p), h0, tf32(w_hh).T
        for t in _times(len(p), reverse):
            h = out[t] = nonlinearity(p[t] + tf32(h) @ w_t, xp=xp)
        return out

    def linear(self, u, d, s0, m, /, *, reverse, overwrite=False):
        out, s, m = np.empty_like(u), s0, tf32(m)
        for t in _times(len(u), reverse):
            s = out[t] = d[t] * (u[t] + tf32(s) @ m)
        return out


def tensor_cores(**also) -> Plant:
    """Every product of float32 arrays rounds its inputs to TF32."""
    return namespace(matmul=lambda matmul, a, b: matmul(tf32(a), tf32(b)), also={"scans": Tf32Scans, **also})


def single(x):
    return x.astype("f4").astype(x.dtype)


def centred(p, h, w):
    mean = h.mean(axis=0)
    return p + (h - mean) @ w.T + mean @ w.T


def tanh_by_exponentials(f, z):
    if f.name != "tanh":
        return f(z, xp=xp)
    e = np.exp(2 * z)
    return (e - 1) / (e + 1)


def maximum_that_drops_nan(f, z):
    return np.fmax(z, 0) if f.name == "relu" and f.clip is None else f(z, xp=xp)


def limit_that_drops_nan(f, z):
    return f(z if f.clip is None else np.fmin(np.fmax(z, -f.clip), f.clip), xp=xp)


NUMBERS = {
    "asarray makes float64 by way of float32": (
        members(asarray=lambda x, /, *, dtype, device: np.asarray(x).astype("f4").astype(dtype)),
        {"RC-CON-004": r"float64: to_numpy\(asarray\(x\)\)", "RC-NUM-008": r"float64: output"},
    ),
    "to_numpy rounds to float32": (
        members(to_numpy=lambda x, /: x.astype("f4") if x.dtype == np.float64 else x),
        {"RC-CON-004": r"float64: to_numpy\(asarray\(x\)\)"},
    ),
    "the scan computes in float32": (
        nonlinear(lambda run, *a, **o: run(*(x.astype("f4") for x in a), **o).astype(a[0].dtype)),
        {"RC-NUM-008": r"float64: output.*eps", "RC-NUM-009": r"float64: h\["},
    ),
    "the namespace's products are float32": (
        namespace(matmul=lambda matmul, a, b: matmul(single(a), single(b))),
        {"RC-NUM-008": r"float64: output.*eps", "RC-NUM-009": r"float64: matmul\["},
    ),
    "products round their inputs to TF32, and precision does not say so": (
        tensor_cores(),
        {"RC-NUM-009": r"float32: matmul\[", "RC-SCAN-001": r"float32: h \(tanh\)"},
    ),
    "the scans' products round to TF32, and precision does not say so": (
        linear(lambda run, u, d, s0, m, /, **o: run(u, d, tf32(s0), tf32(m), **o)),
        {"RC-NUM-009": r"float32: s\["},
    ),
    "models are saved and moved in float32": (
        core(Parameterised, "_host_params", lambda right, self: {k: single(v) for k, v in right(self).items()}),
        {"RC-IO-003": r"float64: to\('numpy'\) weight_ih_l0\[.*eps"},
    ),
    "modules hold float32": (
        members(
            "torch", to_module=lambda rnn: get_backend("torch").to_module(rnn.to(dtype="float32"), dtype=rnn.dtype)
        ),
        {"RC-IO-004": r"float64: weight_ih_l0\[.*eps"},
        "torch",
    ),
    "the sign of a zero is lost": (
        members(asarray=lambda x, /, *, dtype, device: np.where(x == 0, 0, x).astype(dtype)),
        {"RC-CON-004": r"the sign of a zero is lost"},
    ),
    "NaN is turned into 0": (
        nonlinear(lambda run, *a, **o: np.nan_to_num(run(*a, **o), nan=0.0, posinf=np.inf, neginf=-np.inf)),
        {"RC-NUM-005": r"expected NaN in every unit", "RC-NUM-004": r"expected NaN"},
    ),
    "relu is a maximum that drops NaN": (
        steps_of(lambda p, h, w: p + h @ w.T, maximum_that_drops_nan),
        {"RC-NUM-005": r"output \(relu, clip None\): expected NaN"},
    ),
    "the limit drops NaN": (
        steps_of(lambda p, h, w: p + h @ w.T, limit_that_drops_nan),
        {"RC-NUM-005": r"output \(tanh, clip 0.5\): expected NaN"},
    ),
    "NaN leaks by way of the batch's mean": (steps_of(centred), {"RC-NUM-004": r"of row [02] \(tanh\)"}),
    "overflow saturates": (
        nonlinear(lambda run, *a, **o: (lambda h: np.minimum(h, np.finfo(h.dtype).max))(run(*a, **o))),
        {"RC-NUM-003": r"h\[.*expected inf, got"},
    ),
    "the linear scan turns NaN into 0": (
        linear(lambda run, *a, **o: np.nan_to_num(run(*a, **o), nan=0.0, posinf=np.inf, neginf=-np.inf)),
        {"RC-NUM-010": r"s\[.*expected nan, got"},
    ),
    "the linear scan saturates": (
        linear(lambda run, *a, **o: (lambda s: np.minimum(s, np.finfo(s.dtype).max))(run(*a, **o))),
        {"RC-NUM-010": r"s\[.*expected inf, got"},
    ),
    "tanh is made of exponentials": (
        steps_of(lambda p, h, w: p + h @ w.T, tanh_by_exponentials),
        {"RC-NUM-001": r"tanh at .*expected 1.0, got nan"},
    ),
    "small numbers are flushed to 0": (
        namespace(matmul=lambda matmul, a, b: (lambda c: np.where(np.abs(c) < 1e-28, 0, c))(matmul(a, b))),
        {"RC-NUM-007": r"output.*got \S*\b0\.0\b"},
    ),
    "results are float64 whatever the input": (
        nonlinear(lambda run, *a, **o: run(*a, **o).astype("f8")),
        {"RC-TYPE-001": r"expected dtype float32, got float64|array is not acceptable \(must have the right datatype"},
    ),
    "creation ignores the dtype": (
        namespace(zeros=lambda zeros, shape, *, dtype=None, device=None: zeros(shape)),
        {"RC-CON-008": r"zeros: expected dtype float(16|32), got float64"},
    ),
    "indices count from 1": (
        namespace(take=lambda take, x, indices, **o: take(x, indices - 1, **o)),
        {"RC-CON-009": r"take\["},
    ),
    "asarray reads the host array's memory without its strides": (
        members(asarray=lambda x, /, *, dtype, device: np.ravel(x, order="K").reshape(np.shape(x)).astype(dtype)),
        {"RC-CON-006": r"asarray of a transposed array"},
    ),
}
