"""The same run on another library is the same report, in float64: every number of it, of every kind of network."""

import functools
import json
import os
import subprocess
import sys

import numpy as np
import pytest

import rnncore
from rnncore import init
from rnncore.diagnostics import diagnose
from tests.diagnostics.jacobians.networks import CLOSE
from tests.tools.places import ROOT

pytestmark = pytest.mark.slow

# How an iteration went, or a difference of two roundings, and not what was found.
LEFT_OUT = {"sweeps", "disagreement", "sum_residual", "error", "backend", "network", "expected", "action", "summary"}

T, B = 24, 3
RAGGED = (24, 9, 0)
# By name: options of the network, its weights, lengths, where the loss is, the level.
CASES = {
    "tanh, last": ({}, init.orthogonal(0.9), None, "last", "deep"),
    "stack, ragged, every step": (
        {"num_layers": 2, "bidirectional": True},
        init.orthogonal(0.8),
        RAGGED,
        "all",
        "standard",
    ),
    "relu, grown, some steps": ({"nonlinearity": "relu"}, init.identity(1.3), None, "some", "cheap"),
    "sigmoid, batch first": (
        {"nonlinearity": "sigmoid", "batch_first": True, "bias": False},
        init.orthogonal(2.0),
        None,
        "all",
        "cheap",
    ),
    "dead": ({"nonlinearity": "relu"}, init.constant(-1.0), RAGGED, "last", "cheap"),
}


@functools.cache
def report(backend, name, device=None):
    """As plain data: what both processes speak."""
    options, weights, lengths, where, level = CASES[name]
    made = {"weight_hh": weights, "weight_ih": init.gaussian(0.3)}
    rnn = rnncore.RNN(2, 4, **options, init=made, rng=0, backend=backend, device=device, dtype="float64")
    engine = rnn.network.engine

    def on(x):
        x = np.swapaxes(x, 0, 1) if rnn.spec.batch_first and len(x) == T else x
        return engine.backend.asarray(np.ascontiguousarray(x), dtype=engine.dtype, device=engine.device)

    rng = np.random.default_rng(0)
    x, width = rng.standard_normal((T, B, 2)), 4 * rnn.spec.num_directions
    pull = rng.standard_normal((T, B, width))
    pull[{"last": slice(0), "some": slice(3, 17), "all": slice(T)}[where]] *= 1.5
    if where == "some":
        pull[17:] = 0
    d_h_n = rng.standard_normal((rnn.spec.num_layers * rnn.spec.num_directions, B, 4))
    cotangent = (None, on(d_h_n)) if where == "last" else (on(pull), None)
    return diagnose(rnn, on(x), cotangent, lengths=lengths, level=level).to_dict()


def leaves(value, path=""):
    if isinstance(value, dict):
        for key, v in value.items():
            if key not in LEFT_OUT:
                yield from leaves(v, f"{path}.{key}")
    elif isinstance(value, list):
        for n, v in enumerate(value):
            yield from leaves(v, f"{path}[{n}]")
    else:
        yield path, value


def check_same(found, want):
    a, b = dict(leaves(found)), dict(leaves(want))
    assert a.keys() == b.keys()
    assert len(a) > 300, "most of a report is numbers"
    for path, value in b.items():
        if isinstance(value, float) and isinstance(a[path], float):
            # The least exact of them are singular values of long products; relative where they are larger than 1.
            assert abs(a[path] - value) <= CLOSE * max(1.0, abs(value)), (path, a[path], value)
        else:
            assert a[path] == value, (path, a[path], value)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("backend", "device"), [("torch", None), ("strict", None), ("strict", "device1")])
def test_the_same_run_is_the_same_report(backend, device, name):
    check_same(report(backend, name, device), report("numpy", name))


@functools.cache
def on_jax():
    """JAX has float64 only in a process that asks for it."""
    code = "import json, tests.diagnostics.report.test_agreement as t\n"
    code += "print(json.dumps({n: t.report('jax', n) for n in t.CASES}))"
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", CASES)
def test_the_same_run_is_the_same_report_on_jax(name):
    pytest.importorskip("jax")
    found = on_jax()[name]
    assert found["subject"]["dtype"] == "float64" and "jax" in found["subject"]["backend"]
    check_same(found, json.loads(json.dumps(report("numpy", name))))


@pytest.mark.parametrize("level", ["cheap", "standard", "deep"])
def test_a_library_with_less_of_the_standard_has_the_report_too(level):
    """MLX: float32 only, and sums that take no dtype."""
    pytest.importorskip("mlx.core", exc_type=ImportError)
    found = {}
    for backend in ("mlx", "numpy"):
        rnn = rnncore.RNN(2, 4, 2, bidirectional=True, rng=0, backend=backend, dtype="float32")
        engine = rnn.network.engine
        x = np.random.default_rng(0).standard_normal((T, B, 2)).astype("f4")
        on = engine.backend.asarray(x, dtype=engine.dtype, device=engine.device)
        found[backend] = diagnose(rnn, on, lengths=RAGGED, level=level)
    a, b = found["mlx"], found["numpy"]
    assert a.verdict.label == b.verdict.label and a.left_out == b.left_out
    for name in ("total", "recurrent", "above"):
        for one, other in zip(getattr(a.flow, name), getattr(b.flow, name), strict=True):
            # Not rounding alone: gradients of float32 over 24 steps, in nats; slopes within 1e-3 of 0 have fewer digits.
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-3)
    np.testing.assert_array_equal(np.stack(a.saturation.saturated), np.stack(b.saturation.saturated))
