"""The verdict on networks whose failure is known by construction, and what its remedies, applied as given, make of them."""

from __future__ import annotations

import math

import numpy as np
import pytest

import rnncore
from rnncore import diagnostics, init
from rnncore.diagnostics import diagnose
from rnncore.diagnostics.verdict.remedies import LOUD, QUIET, SOME, free_gain
from tests.diagnostics.closed_forms import ROOT
from tests.tools.rounding import EPS, PROMISED

rng = np.random.default_rng(0)
HIDDEN, STEPS = 32, 100
X = rng.standard_normal((STEPS, 8, 3))
SIGNS = np.sign(rng.standard_normal(HIDDEN))
PULSES = np.zeros_like(X)
PULSES[::20] = 100 * rng.standard_normal((5, 8, 3))
# The theory is that of a wide network. Rates of narrow relu and sigmoid networks are spread by 0.1 nats per step about it.
WIDE = 256


def network(gain=None, *, hidden=HIDDEN, weight_ih=None, put=None, **options):
    start = {} if gain is None else {"weight_hh": init.orthogonal(gain)}
    start |= {} if weight_ih is None else {"weight_ih": weight_ih}
    rnn = rnncore.RNN(3, hidden, init=start, **{"rng": 0, **options})
    if put:
        rnn.set_params({name: np.asarray(value, rnn.params[name].dtype) for name, value in put.items()})
    return rnn


def loss(rnn, x, lengths=None):
    """On the last state of every layer and direction: a reverse direction's last output has seen one step only."""
    _, h_n = rnn(x, None, lengths)
    return None, np.ones_like(h_n) / np.asarray(math.sqrt(h_n.shape[-1]), h_n.dtype)


def look(rnn, x, **options):
    return diagnose(rnn, x, loss(rnn, x, options.get("lengths")), **options)


def apply(rnn, x, report):
    """The remedies that have a number, and the subtraction of the mean, exactly as the report gives them."""
    params = {name: np.array(value) for name, value in rnn.params.items()}
    draw = np.random.default_rng(1)
    for remedy in report.verdict.remedies:
        if remedy.parameter == "input scale":
            x = x * x.dtype.type(remedy.value)
        elif remedy.parameter == "input mean":
            x = x - x.mean(axis=(0, 1))
        if remedy.value is None or remedy.layer is None:
            continue
        directions = range(rnn.spec.num_directions) if remedy.direction is None else [remedy.direction]
        for d in directions:
            end = f"_l{remedy.layer}" + ("_reverse" if d else "")
            if remedy.parameter == "weight_hh gain":
                w = params["weight_hh" + end]
                params["weight_hh" + end] = init.orthogonal(remedy.value)(w.shape, draw).astype(w.dtype)
            elif remedy.parameter == "weight_ih scale":
                params["weight_ih" + end] *= params["weight_ih" + end].dtype.type(remedy.value)
            elif remedy.parameter == "bias":
                for name in ("bias_ih", "bias_hh"):
                    params[name + end][:] = remedy.value
    cured = rnn.to("numpy")
    cured.set_params(params)
    return cured, x


def full(value, hidden=HIDDEN):
    return {"bias_ih_l0": np.full(hidden, value)}


def integrator():
    """h_t = h_{t-1} + x_t / 5 within [0, 1]: no gradient is lost there, and all of it at an end."""
    w = {"weight_hh_l0": 5 * np.eye(HIDDEN), "weight_ih_l0": np.eye(HIDDEN, 3)[np.zeros(HIDDEN, int)]}
    return network(nonlinearity="hard_sigmoid", put=w | {"bias_hh_l0": np.zeros(HIDDEN)} | full(-2.5))


# To the middle of the range, to its end, and back.
ONE_PULSE = np.zeros_like(X)
ONE_PULSE[[0, 50, 51]] = np.asarray([2.5, 1e4, -2.5])[:, None, None]

# name: (label, network, x, options of diagnose)
CURABLE = {
    "torch's weights": ("vanishing", network(), X, {}),
    "torch's weights in float32": ("vanishing", network(dtype="float32"), X.astype("f4"), {}),
    "gain 0.1": ("vanishing", network(0.1), X, {}),
    "orthogonal, but tanh bends": ("vanishing", network(1.0), X, {}),
    "gain 0, loud input": ("vanishing", network(0.02), 6 * X, {}),
    "relu, gain 0.5": ("vanishing", network(0.5, hidden=WIDE, nonlinearity="relu"), X, {}),
    "sigmoid": ("vanishing", network(1.0, hidden=WIDE, nonlinearity="sigmoid"), X, {}),
    "two layers": ("vanishing", network(num_layers=2), X, {}),
    "three layers": ("vanishing", network(num_layers=3), X, {}),
    "both directions": ("vanishing", network(bidirectional=True), X, {}),
    "two layers, both directions": ("vanishing", network(num_layers=2, bidirectional=True), X, {}),
    "lengths": ("vanishing", network(), X, {"lengths": [100, 90, 80, 100, 70, 95, 60, 100], "dependency_length": 60}),
    "relu, gain 2": ("exploding", network(2.0, hidden=WIDE, nonlinearity="relu"), X, {}),
    "identity, gain 1.2": ("exploding", network(1.2, nonlinearity="identity"), X, {}),
    "chaos": ("exploding", network(3.0), X, {}),
    "input times 100": ("saturated", network(), 100 * X, {}),
    "input times 100, orthogonal": ("saturated", network(1.0), 100 * X, {}),
    "input times 10: a sixth is at an end": ("saturated", network(), 10 * X, {}),
    "input times 10, orthogonal": ("saturated", network(1.0), 10 * X, {}),
    "input times 1000 in float32": ("saturated", network(1.0, dtype="float32"), (1000 * X).astype("f4"), {}),
    "loud and silent nine steps of ten": ("saturated", network(1.0), PULSES, {}),
    "input about 100": ("saturated", network(1.0), X + 100, {}),
    "bias 5": ("saturated", network(1.0, put=full(5.0)), X, {}),
    "bias of both signs": ("saturated", network(put={"bias_ih_l0": 5 * SIGNS}), X, {}),
    "bias and input": ("saturated", network(put={"bias_ih_l0": 5 * SIGNS}), 30 * X, {}),
    "3 I holds what it has": ("saturated", network(put={"weight_hh_l0": 3 * np.eye(HIDDEN)}), X, {}),
    "20 I": ("saturated", network(put={"weight_hh_l0": 20 * np.eye(HIDDEN)}), X, {}),
    "2.4 I: a sixth is at an end, by the weights alone": (
        "saturated",
        network(put={"weight_hh_l0": 2.4 * np.eye(HIDDEN)}),
        X,
        {},
    ),
    "softsign": ("saturated", network(1.0, nonlinearity="softsign"), 1e4 * X, {}),
    "sigmoid, input times 100": ("saturated", network(8.0, hidden=WIDE, nonlinearity="sigmoid"), 100 * X, {}),
    "loud, both directions": ("saturated", network(1.0, bidirectional=True), 100 * X, {}),
    "loud, two layers": ("saturated", network(1.0, num_layers=2), 100 * X, {}),
    "loud, the layer above has torch's weights": ("saturated", network(num_layers=2), 100 * X, {}),
    "dead by bias": ("dead", network(hidden=WIDE, nonlinearity="relu", put=full(-100.0, WIDE)), X, {}),
}
OTHERS = {
    "identity, orthogonal": ("healthy", network(1.0, nonlinearity="identity"), X, {}),
    "tanh at its critical gain": ("healthy", network(1.33), X, {}),
    "relu at its critical gain": ("healthy", network(math.sqrt(2), hidden=WIDE, nonlinearity="relu"), X, {}),
    "a short dependency": ("healthy", network(), X, {"dependency_length": 5}),
    "a short dependency, loud": ("vanishing", network(0.02), X, {"dependency_length": 5}),
    "dead by input": ("dead", network(nonlinearity="relu", weight_ih=init.constant(1.0)), -np.abs(X), {}),
    "dead, hard_sigmoid": ("dead", network(nonlinearity="hard_sigmoid", put=full(-100.0)), X, {}),
    "every slope is 0 at one step": ("saturated", integrator(), ONE_PULSE, {}),
    "NaN in a weight": ("nonfinite", network(put={"weight_hh_l0": np.full((HIDDEN, HIDDEN), np.nan)}), X, {}),
    "one step": ("inconclusive", network(), X[:1], {}),
    "too short a run": ("inconclusive", network(1.33), X[:10], {"dependency_length": 1000}),
}


@pytest.mark.parametrize("level", ["cheap", "standard"])
@pytest.mark.parametrize("name", CURABLE | OTHERS)
def test_the_label_is_that_of_what_was_built_in(name, level):
    label, rnn, x, options = (CURABLE | OTHERS)[name]
    # The singular values of a wide network take seconds, and its label does not depend on them.
    report = look(rnn, x, level="cheap" if rnn.spec.hidden_sizes[0] == WIDE else level, **options)
    assert report.verdict.label == label, str(report)


@pytest.mark.parametrize("name", CURABLE)
def test_the_remedies_as_they_are_given_make_it_healthy(name):
    _, rnn, x, options = CURABLE[name]
    report = look(rnn, x, **options)
    cured, y = apply(rnn, x, report)
    after = look(cured, y, **options)
    assert after.verdict.label == "healthy", f"{report}\n\n{after}"
    assert any(r.value is not None for r in report.verdict.remedies)


def remedies(name):
    _, rnn, x, options = CURABLE[name]
    return look(rnn, x, **options).verdict.remedies


# --- saturated --------------------------------------------------------------------------------------------------------


def test_slopes_below_one_are_not_saturation_where_nothing_is_at_an_end():
    """0.14 nats a step by the slopes over 100 steps, none by the weights: yet no state is beyond 0.99."""
    report = look(network(1.0), X)
    assert report.saturation.saturated[0][0] < SOME and report.initial.input_variance[0][0] < LOUD
    assert np.nanmean(report.decomposition.saturation[0]) * STEPS < math.log(1e-3)
    assert report.verdict.label == "vanishing"


def test_where_the_weights_take_more_than_the_slopes_it_is_vanishing():
    rnn, x = network(0.02), 10 * X
    report = look(rnn, x)
    assert SOME < report.saturation.saturated[0][0] < 0.5 and report.verdict.label == "vanishing"
    assert [r.parameter for r in report.verdict.remedies] == ["input scale", "weight_hh gain"]


def test_a_logistic_function_at_the_middle_of_its_range_is_not_saturated():
    """Its slope is 1/4 there, ln 4 nats a step: that is the function and not where it stands."""
    report = look(network(1.0, nonlinearity="sigmoid"), 0.01 * X)
    by = {e.metric: e.value for e in report.verdict.evidence}
    assert report.verdict.label == "vanishing" and -0.1 < by["nats per step by saturation"] < 0
    assert by["nats per step by the weights"] == pytest.approx(math.log(0.25), abs=PROMISED * EPS)


def test_the_gain_is_for_the_input_after_it_is_scaled():
    scale, gain = remedies("input times 100, orthogonal")
    assert (scale.parameter, gain.parameter) == ("input scale", "weight_hh gain")
    rnn = network(1.0)
    seen = diagnostics.record(rnn, 100 * X * scale.value)
    part = seen.inputs[0] @ rnn.params["weight_ih_l0"].T
    np.testing.assert_allclose((part**2).mean(), QUIET, rtol=PROMISED * EPS)
    np.testing.assert_allclose(gain.value, seen.map(diagnostics.initial).critical[0][0].g, rtol=ROOT)
    assert diagnostics.record(rnn, 100 * X).map(diagnostics.initial).critical[0][0].g > 4 * gain.value


def test_at_the_variance_that_is_aimed_at_the_pre_activations_have_variance_one():
    assert diagnostics.critical_gain(rnncore.get_nonlinearity("tanh"), QUIET).q == pytest.approx(1.0, abs=0.01)


def test_what_dominates_is_named():
    assert [r.parameter for r in remedies("bias 5")] == ["bias", "weight_hh gain"]
    assert [r.parameter for r in remedies("input about 100")] == ["input mean", "weight_hh gain"]
    assert [r.parameter for r in remedies("bias and input")] == ["bias", "input scale", "weight_hh gain"]
    assert [r.parameter for r in remedies("3 I holds what it has")] == ["weight_hh gain"]
    assert remedies("dead by bias")[0].parameter == "bias"
    assert remedies("bias 5")[0].value == 0.0


def test_remedies_say_where_and_one_input_is_scaled_once():
    found = remedies("loud, both directions")
    assert [(r.parameter, r.layer, r.direction) for r in found] == [
        ("input scale", 0, None),
        ("weight_hh gain", 0, 0),
        ("weight_hh gain", 0, 1),
    ]
    assert "weight_hh_l0_reverse" in found[2].action


def test_a_scaled_input_gives_the_other_direction_a_new_gain_too():
    """The default loss is on the last output, where the reverse direction has seen one step: it is not judged."""
    report = diagnose(network(1.0, bidirectional=True), 100 * X)
    assert {e.where.split(", lag")[0] for e in report.verdict.evidence} == {"layer 0"}
    assert [(r.parameter, r.direction) for r in report.verdict.remedies] == [
        ("input scale", None),
        ("weight_hh gain", 0),
        ("weight_hh gain", 1),
    ]


def test_the_layer_that_is_named_is_the_saturated_one():
    """Layer 1 has less of its gradient left, by its weights; layer 0 is what the label is about."""
    rnn = network(1.0, num_layers=2)
    rnn.set_params({"weight_hh_l1": init.orthogonal(0.01)((HIDDEN, HIDDEN), np.random.default_rng(0))})
    report = look(rnn, 100 * X)
    assert report.horizon[1][0].median[-1] < report.horizon[0][0].median[-1] - 10
    assert report.verdict.label == "saturated"
    assert "of the states of layer 0 are" in report.verdict.summary
    assert {e.where for e in report.verdict.evidence if "saturated states" in e.metric} == {"layer 0"}


def test_only_the_layer_that_fails_is_changed():
    rnn = network(1.33, num_layers=2)
    rnn.set_params({"weight_hh_l0": init.orthogonal(0.1)((HIDDEN, HIDDEN), np.random.default_rng(0))})
    report = look(rnn, X)
    assert report.verdict.label == "vanishing" and {r.layer for r in report.verdict.remedies} == {0}
    assert all(e.where.startswith("layer 0") for e in report.verdict.evidence)


def test_a_loud_upper_layer_has_its_own_weights_scaled():
    rnn = network(1.33, num_layers=2)
    rnn.set_params({"weight_ih_l1": 50 * rnn.params["weight_ih_l1"]})
    report = look(rnn, X)
    assert report.verdict.label == "saturated"
    assert [(r.parameter, r.layer) for r in report.verdict.remedies] == [("weight_ih scale", 1), ("weight_hh gain", 1)]
    cured, y = apply(rnn, X, report)
    assert look(cured, y).verdict.label == "healthy"


def test_padding_does_not_count_in_what_drives_a_layer():
    lengths = [100, 50, 20, 100, 60, 100, 100, 40]
    loud = 100 * X
    for row, n in enumerate(lengths):
        loud[n:, row] = 1e9
    a = look(network(1.0), loud, lengths=lengths, dependency_length=20).verdict.remedies
    for row, n in enumerate(lengths):
        loud[n:, row] = 0
    b = look(network(1.0), loud, lengths=lengths, dependency_length=20).verdict.remedies
    assert a == b and a[0].parameter == "input scale"
    rnn = network(1.0)
    part = np.concatenate([(loud[:n, row] @ rnn.params["weight_ih_l0"].T) for row, n in enumerate(lengths)])
    np.testing.assert_allclose(a[0].value, math.sqrt(QUIET / (part**2).mean()), rtol=PROMISED * EPS)


@pytest.mark.parametrize("backend", ["torch", "strict"])
def test_the_same_remedies_on_another_backend(backend):
    here = network(1.0, num_layers=2, bidirectional=True, put={"bias_ih_l1": 5 * SIGNS})
    there, plugin, lengths = (
        here.to(backend, dtype="float64"),
        rnncore.get_backend(backend),
        [100, 60, 80, 0] + 4 * [100],
    )
    give = lambda a: plugin.asarray(a, dtype=there.dtype, device=there.device)  # noqa: E731
    want = diagnose(here, 100 * X + 50, lengths=lengths).verdict
    got = diagnose(there, give(100 * X + 50), lengths=lengths).verdict
    assert got.label == want.label == "saturated"
    assert {"input scale", "bias", "weight_hh gain"} <= {r.parameter for r in want.remedies}
    for a, b in zip(want.remedies, got.remedies, strict=True):
        assert (a.parameter, a.layer, a.direction, a.action) == (b.parameter, b.layer, b.direction, b.action)
        assert b.value == pytest.approx(a.value, rel=ROOT)


# --- healthy, exploding, nonfinite ------------------------------------------------------------------------------------


def test_healthy_with_many_states_at_an_end_says_so_and_offers_a_remedy():
    x = 10 * X
    v = diagnostics.record(network(), x).map(diagnostics.initial).input_variance[0][0]
    rnn = network(diagnostics.critical_gain(rnncore.get_nonlinearity("tanh"), v).g)
    report = look(rnn, x)
    share = float(report.saturation.saturated[0][0])
    assert report.verdict.label == "healthy" and SOME < share < 0.5
    assert f"but {share:.0%} of the states of layer 0 are saturated" in report.verdict.summary
    assert [(e.value, e.threshold) for e in report.verdict.evidence[1:]] == [(share, SOME)]
    assert [r.parameter for r in report.verdict.remedies] == ["input scale", "weight_hh gain"]
    cured, y = apply(rnn, x, report)
    after = look(cured, y)
    assert after.verdict.label == "healthy" and not after.verdict.remedies and "but" not in after.verdict.summary
    report.assert_healthy()


def test_a_new_gain_stands_before_the_clip():
    assert [r.parameter for r in remedies("relu, gain 2")] == ["weight_hh gain", "clip_grad_norm"]


def test_a_relu_network_that_overflows_is_given_its_gain_too():
    report = diagnose(network(1e8, nonlinearity="relu"), X)
    assert report.verdict.label == "nonfinite"
    gain = report.verdict.remedies[0]
    assert (gain.parameter, gain.layer) == ("weight_hh gain", 0) and gain.value == pytest.approx(math.sqrt(2), abs=ROOT)


@pytest.mark.parametrize(("name", "want"), [("relu", math.sqrt(2)), ("identity", 1.0), ("tanh", None)])
def test_a_gain_that_no_input_changes(name, want):
    assert free_gain(rnncore.get_nonlinearity(name)) == (None if want is None else pytest.approx(want, abs=ROOT))


def test_a_logistic_network_is_told_that_tanh_is_better():
    found = remedies("sigmoid")
    assert found[0].parameter == "nonlinearity" and "tanh instead of sigmoid" in found[0].action
    assert "% of its states" in found[0].expected


# --- that it learns ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shift", "factor"), [(0.0, 100.0), (500.0, 25.0)])
def test_a_network_with_a_loud_input_learns_after_its_remedies(shift, factor):
    """The sign of the first of 20 inputs: chance is 0.5. Measured: 0.45 to 0.98, and 0.52 to 0.97."""
    draw = np.random.default_rng(1)
    x = shift + factor * draw.standard_normal((20, 1024, 1))
    y = np.where(x[0, :, 0] > shift, 1.0, -1.0)
    rnn = rnncore.RNN(1, HIDDEN, init={"weight_hh": init.orthogonal(1.0)}, rng=0)
    report = look(rnn, x)
    assert report.verdict.label == "saturated"
    cured, z = apply(rnn, x, report)
    before, after = _learnt(rnn, x, y), _learnt(cured, z, y)
    assert before < 0.65 and after > 0.85, (before, after)


def _learnt(rnn, x, y):
    """The share of held-out signs that are right after 150 steps of Adam on the squared error of half of the rows."""
    optimiser, half, out = rnncore.optim.Adam(3e-3), x.shape[1] // 2, np.zeros(rnn.spec.hidden_sizes[-1])
    for _ in range(150):
        _, h_n, pullback = rnn.vjp(x[:, :half])
        error = h_n[0] @ out - y[:half]
        grads = {**pullback(d_h_n=(error[:, None] * out)[None] / half).params, "out": h_n[0].T @ error / half}
        grads, _ = rnncore.optim.clip_grad_norm(grads, 1.0)
        stepped = optimiser.step({**rnn.params, "out": out}, grads)
        out = stepped.pop("out")
        rnn.set_params(stepped)
    _, h_n = rnn(x[:, half:])
    return float((np.sign(h_n[0] @ out) == y[half:]).mean())
