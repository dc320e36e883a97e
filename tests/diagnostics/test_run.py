"""diagnose: the label of every kind of failure, its evidence and remedies, the report as data, bad input, every backend."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import rnncore
from rnncore import diagnostics
from rnncore.diagnostics import diagnose
from rnncore.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    DTypeError,
    RnncoreError,
    ShapeError,
    UnknownNameError,
)
from tests.diagnostics.jacobians.networks import CLOSE
from tests.tools.rounding import EPS, EPS_OF

rng = np.random.default_rng(0)
X = rng.standard_normal((200, 4, 3))
orthogonal = rnncore.init.orthogonal


def network(gain=None, hidden=32, **options):
    return rnncore.RNN(3, hidden, rng=0, **options, **({} if gain is None else {"init": orthogonal(gain)}))


def dead():
    rnn = network(nonlinearity="relu")
    rnn.set_params({"bias_ih_l0": np.full(32, -100.0)})
    return rnn


CASES = {
    "vanishing": (network(), X, {}),
    "exploding": (network(2.0, nonlinearity="relu"), X, {}),
    "saturated": (network(), 100 * X, {}),
    "dead": (dead(), X, {}),
    "healthy": (network(1.0, nonlinearity="identity"), X, {}),
}


@pytest.mark.parametrize("level", ["cheap", "standard", "deep"])
@pytest.mark.parametrize("label", CASES)
def test_each_kind_of_failure_has_its_label_at_every_level(label, level):
    rnn, x, options = CASES[label]
    report = diagnose(rnn, x, level=level, **options)
    assert report.verdict.label == label, str(report)
    assert report.verdict.evidence and report.verdict.summary
    assert bool(report.verdict.remedies) == (label != "healthy")
    for e in report.verdict.evidence:
        assert not math.isnan(e.value) and e.where.startswith("layer ")


def test_a_chaotic_network_explodes_though_its_states_are_bounded():
    """The median gain of one cotangent may hide it; the largest singular value does not."""
    report = diagnose(network(3.0), X, level="standard")
    assert report.verdict.label == "exploding"
    assert "singular value" in report.verdict.evidence[0].metric
    assert np.abs(rnncore.diagnostics.record(network(3.0), X).h[0][0]).max() <= 1


def test_a_relu_network_of_spectral_radius_zero_that_doubles_at_every_step():
    """W^2 = 0, and one unit is active in turn: eigenvalues say nothing, the measured gain says ln 2 a step."""
    rnn = rnncore.RNN(1, 2, nonlinearity="relu", bias=False)
    rnn.set_params({"weight_hh_l0": np.asarray([[2.0, 2.0], [-2.0, -2.0]]), "weight_ih_l0": np.asarray([[1.0], [1.0]])})
    # Unit 0 is active after a positive input, unit 1 never helps it: an input that keeps exactly one active.
    x = np.zeros((60, 1, 1))
    seen = diagnostics.record(rnn, x, np.asarray([[[1.0, 0.0]]]))
    radius = seen.map(diagnostics.bounds).log_spectral_radius[0][0]
    assert radius < -20
    d_last = [[np.asarray([[1.0, 0.0]])]]
    flow, _ = diagnostics.flow(seen, None, d_last)
    active = seen.h[0][0][:, 0, 0] > 0
    assert active.all()
    np.testing.assert_allclose(flow.total[0][0, 0, 0] - flow.total[0][0, -1, 0], 59 * math.log(2), atol=1)
    report = diagnose(rnn, x, (None, np.asarray([[[1.0, 0.0]]])), h0=np.asarray([[[1.0, 0.0]]]))
    assert report.verdict.label == "exploding"


def test_rows_that_go_different_ways_are_mixed():
    """Two rows grow by 1.6 a step, two are switched off by their input: no one number says what the network does."""
    rnn = network(nonlinearity="relu", bias=False)
    rnn.set_params({"weight_hh_l0": 1.6 * np.eye(32), "weight_ih_l0": np.ones((32, 3))})
    x = np.full((80, 4, 3), 1e-3)
    x[40:, :2] = -1e6
    x[-3:, :2] = 1e9
    report = diagnose(rnn, x)
    gains = report.horizon[0][0].gain[-1]
    assert np.isneginf(gains[:2]).all() and (gains[2:] > math.log(1e3)).all()
    assert report.verdict.label == "mixed", str(report)


def test_the_remedy_is_a_number_and_works():
    sick = network()
    report = diagnose(sick, X, dependency_length=30)
    remedy = next(r for r in report.verdict.remedies if r.parameter == "weight_hh gain")
    cured = network(remedy.value)
    before, after = (r.horizon[0][0].median[30] for r in (report, diagnose(cured, X)))
    assert report.verdict.label == "vanishing" and after > before + 10


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (lambda rnn, x: x.__setitem__((5, 1, 2), np.nan), "step 5, row 1, unit 2: input"),
        (lambda rnn, x: x.__setitem__((7, 0, 0), np.inf), "step 7, row 0, unit 0: input"),
        (
            lambda rnn, x: rnn.set_params(
                {"weight_hh_l0": np.where(np.eye(32) > 0, np.nan, rnn.params["weight_hh_l0"])}
            ),
            "weight_hh_l0 is nan",
        ),
    ],
)
def test_what_is_not_finite_is_a_verdict_with_a_place(plant, words):
    rnn, x = network(), X.copy()
    plant(rnn, x)
    report = diagnose(rnn, x, level="deep")
    assert report.verdict.label == "nonfinite" and words in report.verdict.summary
    assert report.nonfinite is not None and report.flow is None
    assert set(report.left_out) >= {"flow", "horizon", "gradcheck"}
    json.loads(report.to_json())


def test_overflow_in_the_backward_pass_of_a_bounded_forward_one():
    rnn = rnncore.RNN(1, 1, nonlinearity="relu", bias=False, dtype="float32")
    rnn.set_params({"weight_hh_l0": np.asarray([[2.0]], "f4"), "weight_ih_l0": np.asarray([[1.0]], "f4")})
    x = np.zeros((200, 1, 1), "f4")
    report = diagnose(rnn, x, h0=np.full((1, 1, 1), 1e-30, "f4"))
    assert report.verdict.label == "nonfinite" and report.nonfinite.phase == "backward"
    assert report.nonfinite.cause == "overflow" and "backward pass" in report.verdict.summary


# --- cotangents, lengths, layouts -------------------------------------------------------------------------------------


def test_the_cotangent_may_be_a_pair_a_function_or_nothing():
    rnn = network(1.0)
    output, _ = rnn(X)
    d = np.zeros_like(output)
    d[-1] = 1 / math.sqrt(32)
    reports = [diagnose(rnn, X), diagnose(rnn, X, (d, None)), diagnose(rnn, X, lambda output, h_n: (d, None))]
    last = diagnose(rnn, X, (None, np.full((1, 4, 32), 1 / math.sqrt(32))))
    for report in (*reports[1:], last):
        np.testing.assert_array_equal(report.flow.total[0], reports[0].flow.total[0])
    everywhere = diagnose(rnn, X, lambda output, h_n: (output, None))
    assert np.isfinite(everywhere.flow.direct[0]).all()


def test_batch_first_unbatched_and_ragged():
    want = diagnose(network(1.0, bidirectional=True), X, lengths=[200, 100, 3, 0])
    got = diagnose(network(1.0, bidirectional=True, batch_first=True), np.swapaxes(X, 0, 1), lengths=[200, 100, 3, 0])
    steps = 200 * 32 * EPS  # sums of 32 products in each
    for a, b in zip(want.flow.total, got.flow.total, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=steps)
    assert np.isnan(want.flow.total[0][:, 3:, 2]).all() and not np.isnan(want.flow.total[0][:, :3, 2]).any()
    lone = diagnose(network(1.0), X[:, 0])
    np.testing.assert_allclose(
        lone.flow.total[0][:, :, 0], diagnose(network(1.0), X).flow.total[0][:, :, 0], rtol=0, atol=steps
    )
    d_output, d_h_n = rng.standard_normal((200, 32)), rng.standard_normal((1, 32))
    assert diagnose(network(1.0), X[:, 0], (d_output, d_h_n)).flow is not None


def test_a_dependency_longer_than_the_run_is_not_judged():
    report = diagnose(network(1.0), X[:10], dependency_length=1000)
    assert report.verdict.label == "inconclusive" and "1000" in report.verdict.summary
    assert diagnose(network(1.0), X[:1]).verdict.label == "inconclusive"
    assert diagnose(network(1.0), X[:, :0]).verdict.label == "inconclusive"
    zero = diagnose(network(1.0), X, (np.zeros((200, 4, 32)), None))
    assert zero.verdict.label == "inconclusive" and "cotangent is zero" in zero.verdict.summary


def test_dependency_length_moves_the_verdict():
    assert diagnose(network(1.0), X, dependency_length=5).verdict.label == "healthy"
    assert diagnose(network(1.0), X, dependency_length=150).verdict.label == "vanishing"


# --- the report -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["cheap", "standard", "deep"])
def test_a_report_is_json_without_nan(level):
    report = diagnose(network(bidirectional=True, num_layers=2, hidden=6), X[:50], level=level, lengths=[50, 20, 1, 0])
    data = json.loads(report.to_json())
    assert data["schema_version"] == 2 and data["verdict"]["label"] == report.verdict.label
    assert "NaN" not in report.to_json() and "Infinity" not in report.to_json()
    for name, value in data.items():
        if value is None and name != "nonfinite":
            assert name in data["left_out"], name
    assert data["subject"]["level"] == level and data["subject"]["lengths"] == [50, 20, 1, 0]
    assert np.asarray(data["flow"]["total"][0]).shape == (2, 50, 4)


def test_what_a_level_leaves_out_is_said():
    assert set(diagnose(network(), X).left_out) == {"jacobian", "product", "lyapunov", "gradcheck"}
    assert set(diagnose(network(), X, level="standard").left_out) == {"lyapunov", "gradcheck"}
    assert not diagnose(network(hidden=6), X[:50], level="deep").left_out


def test_as_text_and_on_a_console(capsys):
    report = diagnose(network(), X)
    lines = str(report).splitlines()
    assert lines[0].startswith("vanishing: ") and "because" in lines[2] and "try" in lines[-1]
    report.show()
    assert capsys.readouterr().out.splitlines()[0] == lines[0]


def test_assert_healthy():
    healthy = diagnose(network(1.0, nonlinearity="identity"), X)
    healthy.assert_healthy()
    healthy.assert_healthy(min_horizon=200)
    with pytest.raises(AssertionError, match="vanishing: after 200 steps"):
        diagnose(network(), X).assert_healthy()
    short = diagnose(network(1.0), X, dependency_length=5)
    with pytest.raises(AssertionError, match=r"falls below 1e-3 after \d+ steps, and min_horizon is 100"):
        short.assert_healthy(min_horizon=100)
    for bad, kind in ((0, ArgumentValueError), (True, ArgumentValueError), (201, ArgumentValueError)):
        with pytest.raises(kind, match="min_horizon: expected"):
            healthy.assert_healthy(min_horizon=bad)


# --- every backend ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["torch", "strict"])
def test_the_same_report_on_another_backend(backend):
    here = network(hidden=8, num_layers=2, bidirectional=True)
    there = here.to(backend, dtype="float64")
    plugin = rnncore.get_backend(backend)
    give = lambda a: plugin.asarray(a, dtype=there.dtype, device=there.device)  # noqa: E731
    d = rng.standard_normal((60, 4, 16))
    a = diagnose(here, X[:60], (d, None), level="standard", lengths=[60, 31, 4, 0])
    b = diagnose(there, give(X[:60]), (give(d), None), level="standard", lengths=[60, 31, 4, 0])
    assert a.verdict.label == b.verdict.label and a.verdict.summary == b.verdict.summary
    for name in ("flow", "horizon", "saturation", "bounds", "decomposition", "jacobian", "weight_gradient", "product"):
        _same(getattr(a, name), getattr(b, name), name)


def _same(a, b, where):
    from rnncore.diagnostics.results import plain

    def flat(value):
        if isinstance(value, dict):
            for key, v in value.items():
                if key not in ("sweeps", "disagreement", "error"):  # how the iteration went, not what it found
                    yield from flat(v)
        elif isinstance(value, list):
            for v in value:
                yield from flat(v)
        elif isinstance(value, (int, float)) or value in ("nan", "inf", "-inf"):
            yield float(value)

    x, y = np.fromiter(flat(plain(a)), float), np.fromiter(flat(plain(b)), float)
    np.testing.assert_allclose(x, y, rtol=0, atol=CLOSE, err_msg=where)


def test_on_jax_in_float32():
    rnn = network(hidden=8).to("jax", dtype="float32")
    plugin = rnncore.get_backend("jax")
    x = plugin.asarray(X[:100], dtype=rnn.dtype, device=rnn.device)
    report = diagnose(rnn, x)
    assert report.verdict.label == "vanishing"
    want = diagnose(network(hidden=8), X[:100]).flow.total[0]
    # 100 steps of sums of 8 products, of a matrix that is rounded itself.
    np.testing.assert_allclose(report.flow.total[0], want, rtol=0, atol=2 * 8 * 100 * EPS_OF["float32"])


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: diagnose(network(), X, level="chep"), UnknownNameError, "did you mean 'cheap'"),
        (lambda: diagnose(network(), X, level=None), UnknownNameError, "level: expected one of cheap, standard, deep"),
        (lambda: diagnose(network(), X, dependency_length=0), ArgumentValueError, "dependency_length"),
        (lambda: diagnose(network(), X, dependency_length=1.5), ArgumentTypeError, "dependency_length"),
        (lambda: diagnose(network(), X.astype("f4")), DTypeError, "float64"),
        (lambda: diagnose(network(), X[..., :2]), ShapeError, "input_size 3"),
        (lambda: diagnose(network(), X, 3.0), ArgumentTypeError, "cotangent: expected a pair"),
        (lambda: diagnose(network(), X, (1, 2, 3)), ArgumentTypeError, "cotangent: expected a pair"),
        (lambda: diagnose(network(), X, (X, None)), ShapeError, r"cotangent\[0\]"),
        (lambda: diagnose(network(), X, (None, X)), ShapeError, r"cotangent\[1\]"),
        (lambda: diagnose(network(), X, lambda o, h: o), ArgumentTypeError, "cotangent: expected a pair"),
        (lambda: diagnose(network(), X, lengths=[300, 1, 1, 1]), ArgumentValueError, r"lengths\[0\]"),
        (lambda: diagnose(network(), X, max_bytes=1000), ArgumentValueError, "max_bytes: expected at least"),
        (lambda: diagnose(network(), X, max_bytes=-1), ArgumentValueError, "max_bytes"),
        (lambda: diagnose([1], X), RnncoreError, "rnn"),
    ],
)
def test_bad_input_is_named(call, kind, words):
    with pytest.raises(kind, match=words):
        call()


def test_nothing_is_changed():
    rnn, x = network(), X.copy()
    before = {k: v.copy() for k, v in rnn.params.items()}
    diagnose(rnn, x, level="deep")
    np.testing.assert_array_equal(x, X)
    for k, v in before.items():
        np.testing.assert_array_equal(rnn.params[k], v)
