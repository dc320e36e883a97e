"""All probes of one trace: the same on every backend, and empty for an empty batch."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

import rnncore
from rnncore.diagnostics.gradient.decomposition import decompose
from rnncore.diagnostics.jacobians.bounds import bounds, span_bounds
from rnncore.diagnostics.jacobians.jacobian import FAILURE, jacobian
from rnncore.diagnostics.jacobians.scalar_chain import chain_of_record
from rnncore.diagnostics.recording import record
from rnncore.diagnostics.units.initial import initial
from rnncore.diagnostics.units.saturation import saturation
from tests.diagnostics.closed_forms import EPS, backward, device_array, seen
from tests.tools.rounding import PROMISED


def test_a_network_that_is_not_finite_is_no_error():
    for bad in (np.nan, np.inf):
        w = np.eye(3)
        w[1, 1] = bad
        with np.errstate(all="ignore"):  # NumPy's own warnings of the run itself
            rec = seen("numpy", "float64", w, "tanh", steps=2)
            rec = dataclasses.replace(rec, z=[[np.full((2, 1, 3), np.nan)]])
        assert np.isnan(rec.map(jacobian, sigma_max=True).log_frobenius[0]).all()
        assert np.isnan(rec.map(bounds).log_sigma_max[0]).all() and not rec.map(bounds).vanishes[0].any()
        assert rec.map(saturation).quantiles[0][0, -1] == np.inf
        rec.map(initial)
        with np.errstate(all="ignore"):
            arrived = backward(rec)
        assert np.isnan(rec.map(decompose, arrived[0]).saturation[0]).all()


def numbers(x):
    """Everything numeric in nested results, in order."""
    if dataclasses.is_dataclass(x):
        return [n for f in dataclasses.fields(x) for n in numbers(getattr(x, f.name))]
    if isinstance(x, dict):
        return [n for v in x.values() for n in numbers(v)]
    if isinstance(x, (tuple, list)):
        return [n for v in x for n in numbers(v)]
    return [math.nan] if x is None else list(np.asarray(x, dtype=np.float64).ravel())


PROBES = {
    "chain": lambda rec: chain_of_record(rec, 0, 1),
    "decomposition": lambda rec: rec.map(decompose, backward(rec, only_last=False)[0]),
    "jacobian": lambda rec: rec.map(jacobian),
    "sigma_max": lambda rec: [getattr(rec.map(jacobian, sigma_max=True).sigma_max, n) for n in ("value", "lower")],
    "saturation": lambda rec: rec.map(saturation),
    "bounds": lambda rec: rec.map(bounds),
    "span_bounds": lambda rec: span_bounds(rec.map(jacobian)),
    "initial": lambda rec: rec.map(initial),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_the_same_trace_gives_the_same_result_on_every_backend(name, nonlinearity):
    def run(backend, dtype):
        hidden = [1, 5]
        rnn = rnncore.RNN(3, hidden, 2, nonlinearity, bidirectional=True, backend=backend, dtype=dtype, rng=11)
        x = device_array(backend, dtype, 2 * np.random.default_rng(12).standard_normal((12, 3, 3)))
        return np.asarray(numbers(PROBES[name](record(rnn, x, lengths=[12, 7, 0]))))

    want = run("numpy", "float64")
    assert np.isfinite(want).any()
    for backend in ("torch", "strict"):
        # Of 12 steps and at most 100 nats, or a root of the mean field.
        assert np.allclose(run(backend, "float64"), want, rtol=0, atol=12 * PROMISED * EPS["float64"], equal_nan=True)
    if nonlinearity == "tanh" and name in ("decomposition", "jacobian", "saturation"):
        # In float32 the two traces themselves part by some eps, on numbers of up to 100 nats.
        most = PROMISED * EPS["float32"]
        assert np.allclose(run("jax", "float32"), run("numpy", "float32"), rtol=most, atol=12 * most, equal_nan=True)


@pytest.mark.parametrize("backend", ["torch", "strict"])
def test_upper_ends_of_the_brackets_agree(backend):
    """Once the space is exhausted, what they add to the value is a rounding error over the chance of failure, 1e-9."""
    found = []
    for place in ("numpy", backend):
        rnn = rnncore.RNN(3, 9, backend=place, dtype="float64", rng=11)
        x = device_array(place, "float64", 2 * np.random.default_rng(12).standard_normal((12, 3, 3)))
        found.append(record(rnn, x).map(jacobian, sigma_max=True).sigma_max.upper[0])
    assert np.abs(found[0] - found[1]).max() < 4 * EPS["float64"] / FAILURE


@pytest.mark.parametrize("name", [n for n in PROBES if n != "chain"])
@pytest.mark.parametrize("backend", ["numpy", "torch", "strict"])
def test_an_empty_batch_has_empty_results(name, backend):
    rec = seen(backend, "float64", np.eye(3), "tanh", steps=2, batch=0)
    PROBES[name](rec)
    assert rec.map(jacobian).log_chi[0].shape == (1, 2, 0)
