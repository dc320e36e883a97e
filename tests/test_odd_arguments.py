"""Every public function with odd values in the place of each argument: it takes them, or its error is an RnncoreError.

The error says what was expected and is short, whatever was given. The tables of single arguments are in test_arguments.py.
"""

import re

import numpy as np
import pytest
import torch

import rnncore
from rnncore import diagnostics, functional, init, io, optim, testing
from rnncore.diagnostics.faults.first import nonfinite
from rnncore.errors import RnncoreError

# Odd numbers may warn; what is tested is the errors.
pytestmark = pytest.mark.filterwarnings("ignore")
LONGEST = 3000  # characters of a message; it may quote a few values and list some names


class Unspeakable:
    """A value that cannot be printed, compared or counted."""

    __hash__ = None

    def __repr__(self):
        raise RuntimeError("no repr")

    def __len__(self):
        raise RuntimeError("no length")

    def __eq__(self, other):
        raise RuntimeError("no comparison")

    def __bool__(self):
        raise RuntimeError("no truth")


class Pretender:
    """What looks like an array and is none."""

    shape, dtype, ndim = "abc", 3, 2


ODD = {
    "None": None,
    "a string": "abc",
    "an empty string": "",
    "a long string": "a" * 10**5,
    "bytes": b"ab",
    "7": 7,
    "-1": -1,
    "0": 0,
    "10**30": 10**30,
    "10**5000": 10**5000,
    "True": True,
    "False": False,
    "2.5": 2.5,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "1j": 1j,
    "a list": [1.0],
    "a ragged list": [[1.0], [2.0, 3.0]],
    "a long list": [0.5] * 10**5,
    "an empty list": [],
    "a tuple": (1, 2, 3),
    "a mapping": {"a": 1},
    "a mapping of numbers": {1: 2},
    "a set": {1},
    "a range": range(3),
    "an object": object(),
    "the unspeakable": Unspeakable(),
    "a pretender": Pretender(),
    "a 0-d array": np.ones(()),
    "a vector": np.ones(3),
    "NaN in an array": np.full((5, 2, 3), np.nan),
    "another shape": np.ones((5, 2, 7)),
    "another dtype": np.ones((5, 2, 3), "f4"),
    "integers": np.ones((5, 2, 3), int),
    "objects": np.asarray([None, "a"], object),
    "strings": np.asarray(["a"]),
    "structs": np.zeros(2, [("a", "f8"), ("b", "i4")]),
    "dates": np.zeros(2, "M8[s]"),
    "no rows": np.ones((0, 2, 3)),
    "a masked array": np.ma.ones((5, 2, 3)),
    "a tensor": torch.ones(5, 2, 3),
    "a NumPy bool": np.bool_(True),
    "a NumPy int": np.int64(2),
    "a NumPy float": np.float32(2.0),
}

QUICK = "RC-SCAN-001"
rnn = rnncore.RNN(3, 4, 2, rng=0, backend="numpy")
cell = rnncore.RNNCell(3, 4, rng=0, backend="numpy")
x = np.random.default_rng(0).standard_normal((5, 2, 3))
h0, d, h = np.zeros((2, 2, 4)), np.ones((5, 2, 4)), np.ones((2, 4))
params, config = rnn.state_dict(), rnn.spec.to_config()
seen = diagnostics.record(rnn, x)
lane = seen.lane()
flows, deltas = diagnostics.flow(seen, d)
top, delta = flows[-1][0], deltas[-1][0]
report = diagnostics.diagnose(rnn, x)
call = {"lengths": [5, 2], "training": False, "rng": 0}
place = {"backend": "numpy", "device": None, "dtype": None, "kernel": "auto", "check_finite": False}
single = rnncore.RNN(3, 1, rng=0, backend="numpy")


def fresh(**changes):
    return rnncore.RNN(3, 4, 2, rng=0, backend="numpy", **changes)


def monitored(*args, **options):
    with diagnostics.Monitor(1) as monitor:
        monitor.step(*args, **options)


def resumed(name, value):
    optimiser = optim.Adam(0.1)
    optimiser.step(params, params)
    state = optimiser.state_dict()
    other = optim.Adam(0.1)
    other.load_state_dict(
        {**state, name: value} if name in state else {**state, "exp_avg": {**params, "weight_hh_l0": value}}
    )
    other.step(params, params)


def one_check(backend, only, **options):
    return testing.check_backend(backend, only=[QUICK] if only is None else only, **options)  # None is all of them


# name: (the function, its arguments, its options): each argument in turn is replaced by every odd value.
TARGETS = {
    "RNN": (
        rnncore.RNN,
        (3, 4, 1, "tanh", True, False, 0.0, False),
        {"clip": None, "init": "uniform", "rng": 0, **place},
    ),
    "RNNCell": (rnncore.RNNCell, (3, 4, True, "tanh"), {"clip": None, "init": "uniform", "rng": 0, **place}),
    "a call": (rnn, (x, h0), call),
    "vjp": (rnn.vjp, (x, h0), {**call, "checkpoint": False, "truncate": None}),
    "a pullback": (rnn.vjp(x, h0)[2], (d, h0), {}),
    "jvp": (rnn.jvp, (x, h0), {**call, "x_dot": x, "h0_dot": h0, "params_dot": {}}),
    "jvp, a tangent": (lambda v: rnn.jvp(x, params_dot={"weight_ih_l0": v}), (params["weight_ih_l0"],), {}),
    "trace": (rnn.trace, (x, h0), call),
    "a cell's call": (cell, (x[0], h), {}),
    "a cell's vjp": (cell.vjp, (x[0], h), {}),
    "a cell's pullback": (cell.vjp(x[0], h)[1], (h,), {}),
    "a cell's jvp": (cell.jvp, (x[0], h), {"x_dot": x[0], "h_dot": h, "params_dot": {}}),
    "set_params": (lambda v: fresh().set_params(v), ({},), {}),
    "set_params, one": (lambda v: fresh().set_params({"weight_ih_l0": v}), (params["weight_ih_l0"],), {}),
    "load_state_dict": (lambda v: fresh().load_state_dict(v), (params,), {}),
    "load_state_dict, one": (
        lambda v: fresh().load_state_dict({**params, "weight_ih_l0": v}),
        (params["weight_ih_l0"],),
        {},
    ),
    "to": (rnn.to, ("numpy",), {"device": None, "dtype": None}),
    "cell": (rnn.cell, (0,), {"reverse": False}),
    "explain": (rnn.explain, (), {"steps": 3, "batch": 2}),
    "from_spec": (rnncore.RNN.from_spec, (rnn.spec, params), place),
    "from_network": (rnncore.RNN.from_network, (rnn.network,), {}),
    "bound_to": (rnncore.bound_to, ("numpy",), {}),
    "get_backend": (rnncore.get_backend, ("numpy",), {}),
    "asarray": (rnncore.get_backend("numpy").asarray, (x,), {"dtype": "float64", "device": "cpu"}),
    "asarray on torch": (rnncore.get_backend("torch").asarray, (x,), {"dtype": "float64", "device": "cpu"}),
    "get_nonlinearity": (rnncore.get_nonlinearity, ("elu",), {"alpha": 1.0, "clip": None}),
    "custom_nonlinearity": (
        rnncore.custom_nonlinearity,
        (np.tanh, np.cos),
        {"name": "mine", "gamma": None, "clip": None},
    ),
    "RNNSpec.make": (rnncore.RNNSpec.make, (3, 4, 1, "tanh", True, False, 0.0, False), {"clip": None}),
    "RNNSpec.from_config": (rnncore.RNNSpec.from_config, (config,), {"nonlinearity": None}),
    **{
        f"RNNSpec.from_config, {key}": (
            lambda v, key=key: rnncore.RNNSpec.from_config({**config, key: v}),
            (config[key],),
            {},
        )
        for key in config
    },
    "functional.rnn": (
        functional.rnn,
        (x, params, h0),
        {**call, "nonlinearity": "tanh", "batch_first": False, "dropout": 0.0, "clip": None, "check_finite": False},
    ),
    "functional.rnn, one": (
        lambda v: functional.rnn(x, {**params, "weight_ih_l0": v}),
        (params["weight_ih_l0"],),
        {},
    ),
    "functional.vjp": (functional.vjp, (x, params, h0), {"checkpoint": False, "truncate": None}),
    "functional.jvp": (functional.jvp, (x, params, h0), {"x_dot": x, "h0_dot": h0, "params_dot": {}}),
    "functional.trace": (functional.trace, (x, params, h0), {"kernel": "auto"}),
    "functional.bind": (functional.bind, (params,), {}),
    "functional.spec_of": (functional.spec_of, (params,), {}),
    "functional.rnn_cell": (
        functional.rnn_cell,
        (x[0], h, params["weight_ih_l0"], params["weight_hh_l0"], params["bias_ih_l0"], params["bias_hh_l0"]),
        {"nonlinearity": "tanh", "clip": None},
    ),
    "SGD": (optim.SGD, (0.1,), {"momentum": 0.0, "weight_decay": 0.0, "nesterov": False}),
    "Adam": (optim.Adam, (0.1,), {"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0}),
    "clip_grad_norm": (optim.clip_grad_norm, (params, 1.0), {"error_if_nonfinite": False}),
    "clip_grad_norm, one": (lambda v: optim.clip_grad_norm({"a": v}, 1.0), (x,), {}),
    "step": (lambda p, g: optim.SGD(0.1).step(p, g), (params, params), {}),
    "step, one": (lambda p, g: optim.SGD(0.1).step({"a": p}, {"a": g}), (x, x), {}),
    **{
        f"an optimiser's state, {name}": (lambda v, name=name: resumed(name, v), (good,), {})
        for name, good in {
            "type": "Adam",
            "options": optim.Adam(0.1).state_dict()["options"],
            "steps": dict.fromkeys(params, 1),
            "exp_avg": params,
            "one array": params["weight_hh_l0"],
        }.items()
    },
    **{
        f"init.{name}": (getattr(init, name), (1.0,), {})
        for name in init.__all__
        if name not in ("INITIALISERS", "draw")
    },
    **{
        f"init.{name}, its call": (getattr(init, name)(1.0), ((4, 4), np.random.default_rng(0)), {})
        for name in init.__all__
        if name not in ("INITIALISERS", "draw")
    },
    "init.draw": (init.draw, (rnn.spec, np.random.default_rng(0)), {"init": "uniform"}),
    "io.Stored": (io.Stored, (config, params, "float64"), {}),
    "io.read": (io.read, (__file__ + ".npz",), {}),
    "diagnose": (
        diagnostics.diagnose,
        (rnn, x, (d, h0)),
        {
            "h0": h0,
            "lengths": [5, 2],
            "dependency_length": 3,
            "level": "cheap",
            "rng": 0,
            "max_bytes": 10**9,
        },
    ),
    "diagnose, d_output": (lambda v: diagnostics.diagnose(rnn, x, (v, None)), (d,), {}),
    "diagnose, d_h_n": (lambda v: diagnostics.diagnose(rnn, x, (None, v)), (h0,), {}),
    "diagnose, a function's answer": (lambda v: diagnostics.diagnose(rnn, x, lambda *_: v), ((d, None),), {}),
    "as_rnn": (diagnostics.as_rnn, (rnn,), {}),
    "record": (diagnostics.record, (rnn, x, h0), call),
    "record.lane": (seen.lane, (0, 0), {}),
    "record.layer": (seen.layer, (0,), {}),
    "record.mask_below": (seen.mask_below, (0,), {}),
    "record.map": (seen.map, (diagnostics.saturation,), {}),
    "record.map, by lane": (lambda *by: seen.map(diagnostics.horizon, *by), (flows, deltas), {}),
    "record.host": (seen.host, (x,), {}),
    "flow": (diagnostics.flow, (seen, d, [[h], [h]]), {}),
    "flow, d_last": (lambda v: diagnostics.flow(seen, None, [[v], [None]]), (h,), {}),
    "horizon": (diagnostics.horizon, (lane, top, delta), {"max_lag": 4, "every_loss": True}),
    "decompose": (diagnostics.decompose, (lane, top), {}),
    "weight_gradient": (diagnostics.weight_gradient, (lane, delta), {}),
    "bounds": (diagnostics.bounds, (lane,), {}),
    "initial": (diagnostics.initial, (lane,), {}),
    "saturation": (diagnostics.saturation, (lane,), {"threshold": 0.9, "q": (0.5, 1.0)}),
    "saturation, one of q": (lambda v: diagnostics.saturation(lane, q=(v,)), (0.5,), {}),
    "jacobian": (diagnostics.jacobian, (lane,), {"sigma_max": True, "rng": 0, "steps": 4}),
    "span_bounds": (diagnostics.span_bounds, (diagnostics.jacobian(lane), 0, 3), {}),
    "lyapunov": (
        diagnostics.lyapunov,
        (lane, 1),
        {"burn_in": 0, "windows": 2, "confidence": 0.9, "rows": [0], "seed": 0},
    ),
    "lyapunov, one of rows": (lambda v: diagnostics.lyapunov(lane, rows=[v]), (0,), {}),
    "product": (
        diagnostics.product,
        (lane, 2, (0, 3)),
        {"rows": [0], "vectors": False, "tolerance": 0.1, "max_sweeps": 3, "seed": 0},
    ),
    "product, one of rows": (lambda v: diagnostics.product(lane, 1, rows=[v]), (0,), {}),
    "product, its span": (lambda *span: diagnostics.product(lane, 1, span), (0, 3), {}),
    "nonfinite": (nonfinite, (seen, d, [[h], [h]]), {}),
    "chain": (diagnostics.chain, (np.ones(5), 0.5, "tanh"), {}),
    "chain_of_record": (diagnostics.chain_of_record, (diagnostics.record(single, x), 0, 0), {}),
    "critical_gain": (diagnostics.critical_gain, (rnn.spec.nonlinearity, 0.0), {}),
    "gradcheck": (diagnostics.gradcheck, (rnn, x, h0), {"lengths": [5, 2], "rng": 0}),
    "compare": (diagnostics.compare, (report, report), {}),
    "assert_healthy": (diagnostics.diagnose(fresh(nonlinearity="relu"), x).assert_healthy, (), {"min_horizon": None}),
    "Monitor": (
        diagnostics.Monitor,
        (1, None, "cheap"),
        {"rows": None, "dependency_length": None, "rng": 0, "max_bytes": None},
    ),
    "Monitor.step": (monitored, (rnn, x, (d, h0), 1.0, 1.0, [5, 2], h0), {}),
    "Monitor.step, one gradient": (lambda v: monitored(rnn, x, grad_norm={"w": v}), (x,), {}),
    "GradientNorms.add": (lambda v: diagnostics.GradientNorms().add(v), (1.0,), {}),
    "GradientNorms.merge": (lambda v: diagnostics.GradientNorms().merge(v), (diagnostics.GradientNorms(),), {}),
    "GradientNorms.quantile": (lambda v: diagnostics.GradientNorms().quantile(v), (0.5,), {}),
    "GradientNorms.clipped": (lambda v: diagnostics.GradientNorms().clipped(v), (0.5,), {}),
    "check_backend": (
        one_check,
        ("numpy",),
        {
            "device": None,
            "kernel": "auto",
            "only": [QUICK],
            "expected_failures": None,
            "on_outcome": None,
        },
    ),
}
# Arguments that name a file, where the system may object too.
FILES = {("io.read", 0), ("Monitor", 1)}
ATTACKS = [(name, k) for name, (_, args, options) in TARGETS.items() for k in (*range(len(args)), *options)]


@pytest.mark.parametrize(("name", "place"), ATTACKS, ids=[f"{name}: {place}" for name, place in ATTACKS])
def test_odd_values_are_taken_or_named(name, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a Monitor with a string writes a file of that name
    function, args, options = TARGETS[name]
    faults = []
    for kind, value in ODD.items():
        given, named = list(args), dict(options)
        if isinstance(place, int):
            given[place] = value
        else:
            named[place] = value
        try:
            made = function(*given, **named)
            if hasattr(made, "close"):
                made.close()
        except RnncoreError as error:
            text = str(error)
            if isinstance(error, OSError) and (name, place) in FILES:
                continue  # the system's own words, about a name of any length
            if len(text) > LONGEST or not re.search("expected|unexpected|needs? |bytes", text):
                faults.append(f"{kind}: {text[:200]}")
        except AssertionError:
            if name != "assert_healthy":
                raise
        except Exception as error:
            faults.append(f"{kind}: {type(error).__name__}: {error}"[:200])
    assert not faults, "\n".join(faults)
