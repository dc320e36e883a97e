"""No NaN and no None in a report is silent, and input that is only large or wrong is met with a verdict or a named error."""

import json
import tracemalloc
from functools import partial

import numpy as np
import pytest

import rnncore
from rnncore import diagnostics, init
from rnncore.diagnostics import diagnose
from rnncore.diagnostics.findings.missing import UNKNOWN
from rnncore.errors import ArgumentTypeError, ArgumentValueError, DTypeError, RnncoreError, ShapeError

FUNCTIONS = ("tanh", "relu", "sigmoid", "identity", "elu")
LEVELS = ("cheap", "standard", "deep")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def lacking(value, path=()):
    """The paths without indices of what plain data do not have."""
    if value is None or value == "nan":
        yield ".".join(path)
    elif isinstance(value, dict):
        for key, v in value.items():
            yield from lacking(v, (*path, key))
    elif isinstance(value, list):
        for v in value:
            yield from lacking(v, path)


def strict(text):
    """JSON of the standard: no NaN, no Infinity."""

    def refuse(constant):
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


def check(report):
    data = strict(report.to_json())
    reasons = data["missing"]
    silent = [
        path
        for path in set(lacking(data))
        if path not in data["left_out"] and path != "nonfinite" and reasons.get(_field(path), UNKNOWN) == UNKNOWN
    ]
    assert not silent, (silent, str(report))
    assert "nan nats" not in str(report)
    return data


def _field(path):
    """A mapping's own keys, such as the names of parameters, are not part of a field's path."""
    parts = path.split(".")
    if parts[:2] in (["nonfinite", "ranges"], ["gradcheck", "checks"]):
        del parts[2]
    return ".".join(parts)


@pytest.mark.parametrize("seed", range(40))
def test_every_number_that_is_not_there_has_a_reason(seed):
    rng = np.random.default_rng(seed)
    steps, batch, width = int(rng.choice([1, 2, 3, 20])), int(rng.choice([0, 1, 3])), int(rng.choice([1, 2, 5]))
    layers, both = int(rng.integers(1, 4)), bool(rng.random() < 0.4)
    planted = float(rng.choice([0.0, 1e200, 1e-300, np.nan, np.inf]))
    weights = init.gaussian(float(10 ** rng.uniform(-3, 1))) if rng.random() < 0.7 else init.constant(planted)
    rnn = rnncore.RNN(
        2, width, layers, bidirectional=both, nonlinearity=FUNCTIONS[seed % 5], rng=seed, init={"weight_hh": weights}
    )
    x = rng.standard_normal((steps, batch, 2)) * float(rng.choice([0.0, 1.0, 1.0, 1.0, 1e13, 1e200]))
    pull = rng.standard_normal((steps, batch, width * (1 + both)))
    pull[rng.random((steps, batch)) < 0.5] = 0
    lengths = None if rng.random() < 0.5 else rng.integers(0, steps + 1, batch).tolist()
    cotangent = None if rng.random() < 0.5 else (pull, None)
    check(diagnose(rnn, x, cotangent, lengths=lengths, level=LEVELS[seed % 3]))


@pytest.mark.parametrize("where", ["x", "h0", "cotangent", "weight"])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_says_what_it_does_not_know(number, where):
    rnn, x, h0, pull = rnncore.RNN(3, 4, rng=0), normal(9, 2, 3), np.zeros((1, 2, 4)), normal(9, 2, 4)
    if where == "weight":
        w = np.array(rnn.state_dict()["weight_hh_l0"])
        w[1, 2] = number
        rnn.set_params({"weight_hh_l0": w})
    else:
        {"x": x, "h0": h0, "cotangent": pull}[where][0, 1, 2] = number
    data = check(diagnose(rnn, x, (pull, None), h0=h0, level="deep"))
    assert data["verdict"]["label"] == "nonfinite" and data["nonfinite"]["unit"] in (1, 2)


@pytest.mark.parametrize("f", ["tanh", "relu", "identity", "softsign", "sigmoid"])
@pytest.mark.parametrize("size", [1e12, 1e13, 1e160, 1e300])
def test_a_large_input_has_a_verdict_and_a_remedy_with_its_number(size, f):
    """The mean square of the input's share is beyond the theory's grid at 1e13, and beyond float64 at 1e160."""
    rnn = rnncore.RNN(3, 16, nonlinearity=f, init={"weight_hh": init.orthogonal(0.7)}, rng=0)
    x = normal(40, 4, 3)
    report = diagnose(rnn, size * x)
    check(report)
    if f in ("tanh", "sigmoid"):
        assert report.verdict.label == "saturated"
        scales = [r.value for r in report.verdict.remedies if r.parameter == "input scale"]
        # As of an input of 1e6, of which the biases are a millionth.
        usual = [r.value for r in diagnose(rnn, 1e6 * x).verdict.remedies if r.parameter == "input scale"]
        assert len(scales) == 1 and scales[0] * size == pytest.approx(usual[0] * 1e6, rel=1e-6)


def test_a_network_without_a_rate_does_not_quote_one():
    rnn = rnncore.RNN(3, 4, init={"weight_hh": init.constant(0.0)}, rng=0)
    verdict = diagnose(rnn, normal(20, 2, 3)).verdict
    assert verdict.label == "vanishing" and verdict.summary.endswith("is seen in this dtype")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("width", "layers", "both"),
    [(1, 1, False), pytest.param(4, 2, True, marks=pytest.mark.slow), (64, 1, False), (128, 1, False)],
)
def test_the_budget_is_what_a_run_needs(width, layers, both, dtype, level):
    """Never less than the peak, and no more than a run that is long enough for its arrays to be most of it can use."""
    rnn = rnncore.RNN(3, width, layers, bidirectional=both, rng=0, dtype=dtype)
    x, pull = normal(400, 8, 3).astype(dtype), normal(400, 8, width * (1 + both)).astype(dtype)
    with pytest.raises(ArgumentValueError, match="max_bytes: expected at least") as refused:
        diagnose(rnn, x, (pull, None), level=level, max_bytes=1)
    needed = int(str(refused.value).split("at least ")[1].split()[0])
    diagnose(rnn, x[:9], (pull[:9], None), level=level)  # what is made once in a process is not this run's
    tracemalloc.start()
    diagnose(rnn, x, (pull, None), level=level, max_bytes=needed)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= needed < 8 * peak


@pytest.mark.parametrize(
    ("rng", "kind"), [(-1, ArgumentValueError), (1.5, ArgumentTypeError), ("a", ArgumentTypeError)]
)
def test_a_seed_that_is_none(rng, kind):
    for level in LEVELS:
        with pytest.raises(kind, match="rng: expected an int >= 0, got"):
            diagnose(rnncore.RNN(3, 4, rng=0), normal(9, 2, 3), level=level, rng=rng)


@pytest.mark.parametrize(
    ("d_output", "d_last", "kind", "words"),
    [
        (normal(9, 2, 5), None, ShapeError, r"d_output: expected shape \(9, 2, 4\), got \(9, 2, 5\)"),
        (normal(9, 2, 4).astype("f4"), None, DTypeError, "d_output: expected dtype float64"),
        ([[1.0]], None, ArgumentTypeError, "d_output: expected an array"),
        (None, normal(1, 2, 4), ArgumentTypeError, "d_last: expected a list of 1 layers, each a list of 1 directions"),
        (None, [[None], [None]], ArgumentTypeError, r"d_last: expected .* got \[1, 1\]"),
        (None, [[normal(1, 2, 4)]], ShapeError, r"d_last\[0\]\[0\]: expected shape \(2, 4\)"),
    ],
)
def test_flow_names_what_is_wrong_with_a_cotangent(d_output, d_last, kind, words):
    seen = diagnostics.record(rnncore.RNN(3, 4, rng=0), normal(9, 2, 3))
    with pytest.raises(kind, match=words):
        diagnostics.flow(seen, d_output, d_last)


@pytest.mark.parametrize(
    "options", [{"layer": 1}, {"layer": 0.0}, {"layer": True}, {"direction": 1}, {"direction": "a"}, {"max_lag": 0},
                {"max_lag": 1.5}, {"max_lag": True}],
)  # fmt: skip
def test_horizon_names_what_is_wrong_with_an_option(options):
    seen = diagnostics.record(rnncore.RNN(3, 4, rng=0), normal(9, 2, 3))
    flow, deltas = diagnostics.flow(seen, normal(9, 2, 4))
    probe = partial(diagnostics.horizon, seen.lane(), flow[0][0], deltas[0][0]) if "max_lag" in options else seen.lane
    with pytest.raises(RnncoreError, match=f"^{next(iter(options))}: expected an int"):
        probe(**options)


@pytest.mark.parametrize("name", ["bounds", "initial", "saturation", "decompose", "weight_gradient", "flow", "horizon"])
def test_a_probe_of_what_is_no_record_says_how_to_have_one(name):
    more = {"decompose": (None,), "weight_gradient": (None,), "flow": (None,), "horizon": (None, None)}.get(name, ())
    with pytest.raises(
        ArgumentTypeError, match=r"(record|lane): expected .*what rnncore.diagnostics.record\(rnn, x\) returns"
    ):
        getattr(diagnostics, name)(rnncore.RNN(3, 4, rng=0), *more)


def test_a_flow_of_another_run_is_not_decomposed():
    rnn = rnncore.RNN(3, 4, rng=0)
    one, other = (diagnostics.record(rnn, normal(n, 2, 3)) for n in (9, 8))
    with pytest.raises(ArgumentValueError, match=r"flow: expected that of this lane, .* got \(9, 2\)"):
        diagnostics.decompose(other.lane(), diagnostics.flow(one, normal(9, 2, 4))[0][0][0])
