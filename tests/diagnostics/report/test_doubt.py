"""Numbers that have not converged, or are bounds: every reader of a report says so, or leaves them out with the reason."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

import rnncore
from rnncore.diagnostics import diagnose, run
from rnncore.diagnostics.figures.spectrum import AT_LEAST
from rnncore.diagnostics.gradient.horizon import lag_text
from rnncore.diagnostics.jacobians.product import product
from rnncore.diagnostics.report.compare import compare
from rnncore.diagnostics.results import Lanes
from rnncore.diagnostics.verdict.verdict import CEILING, SIGMA
from tests.diagnostics.report.networks import _x

pytest.importorskip("matplotlib")

AT_LEAST_OF = f"{SIGMA}, at least (3 of 3 rows have not converged),"


def report_of(monkeypatch, log_singular, error, *, gain=1.01, converged=False):
    """The report of a healthy network whose product of Jacobians has these numbers."""

    def found(lane, k, **options):
        real, shape = product(lane, k, **options), (lane.batch, k)
        return replace(
            real,
            log_singular=np.full(shape, log_singular),
            error=np.full(shape, error),
            converged=np.full(lane.batch, converged),
        )

    monkeypatch.setattr(run, "product", found)
    rnn = rnncore.RNN(3, 8, nonlinearity="identity", init={"weight_hh": rnncore.init.orthogonal(gain)}, rng=0)
    return diagnose(rnn, _x(30), level="standard")


def shown(report):
    """All that a reader sees of a report."""
    return str(report), report.to_html(), json.dumps(report.to_dict()["verdict"])


@pytest.mark.parametrize("error", [0.1, math.inf, math.nan])
def test_a_lower_bound_below_the_ceiling_is_evidence_of_nothing_and_is_shown_as_one(monkeypatch, error):
    report = report_of(monkeypatch, CEILING - 0.05, error)
    assert report.verdict.label == "healthy"
    assert [e.metric for e in report.verdict.evidence][1:] == [AT_LEAST_OF]
    assert all(AT_LEAST_OF in text for text in shown(report))
    assert f"{AT_LEAST_OF} is 6.858 (threshold 6.908) at layer 0, lag 30" in str(report)


@pytest.mark.parametrize(
    ("log_singular", "error", "converged"), [(CEILING - 0.2, 0.1, False), (1.0, 1e-9, True), (-math.inf, 0.0, False)]
)
def test_a_bound_that_settles_it_is_no_doubt(monkeypatch, log_singular, error, converged):
    report = report_of(monkeypatch, log_singular, error, converged=converged)
    assert report.verdict.label == "healthy" and len(report.verdict.evidence) == 1


@pytest.mark.parametrize("number", [-math.inf, math.nan])
def test_zero_with_an_unknown_error_and_no_number_are_doubts(monkeypatch, number):
    report = report_of(monkeypatch, number, math.inf)
    assert report.verdict.label == "healthy"
    assert [e.metric for e in report.verdict.evidence][1:] == [AT_LEAST_OF]


def test_a_lower_bound_above_the_ceiling_is_enough_and_the_growth_is_at_least_that(monkeypatch):
    report = report_of(monkeypatch, CEILING + 1, math.inf)
    assert report.verdict.label == "exploding"
    assert report.verdict.summary == "the gradient grows by at least e^8 over 30 steps"
    assert [e.metric for e in report.verdict.evidence] == [AT_LEAST_OF]
    sure = report_of(monkeypatch, CEILING + 1, 0.0, converged=True)
    assert sure.verdict.summary == "the gradient grows by e^8 over 30 steps"
    assert [e.metric for e in sure.verdict.evidence] == [SIGMA]


def test_a_gradient_that_was_measured_is_not_at_least(monkeypatch):
    """It grew by more than the lower bound of the product says, so that the product did not decide."""
    report = report_of(monkeypatch, CEILING, math.inf, gain=1.5)
    assert report.verdict.label == "exploding" and "at least" not in report.verdict.summary


def test_the_table_says_at_least_and_has_no_condition(monkeypatch):
    columns = ("ln sigma_1, median of rows", "ln of the condition, median", "rows converged")

    def cells(report):
        page = report.to_html()
        return [page.split(f'<td data-of="{name}">')[1].split("</td>")[0] for name in columns]

    assert cells(report_of(monkeypatch, 1.5, math.inf)) == ["at least 1.5", "not converged", "0 of 3"]
    assert cells(report_of(monkeypatch, 1.5, 0.0, converged=True)) == ["1.5", "0", "3 of 3"]


def test_the_figure_marks_lower_bounds(monkeypatch):
    def legend(report):
        return [t.get_text() for t in report.plot("spectrum").legends[0].get_texts()]

    assert legend(report_of(monkeypatch, 1.5, math.inf)).count(AT_LEAST) == 1
    assert AT_LEAST not in legend(report_of(monkeypatch, 1.5, 0.0, converged=True))


def test_the_reason_for_a_condition_that_is_not_there(monkeypatch):
    monkeypatch.setattr(run, "product", partial(product, max_sweeps=2))
    rnn = rnncore.RNN(3, 40, init={"weight_hh": rnncore.init.gaussian(1.0)}, rng=0)
    report = diagnose(rnn, _x(2), level="standard")
    assert np.isnan(report.product[0][0].log_condition).all() and not report.product[0][0].converged.any()
    assert "have not converged" in report.missing["product.log_condition"]
    assert "product.log_singular" not in report.missing


def test_what_has_not_converged_is_not_compared(monkeypatch):
    sure = report_of(monkeypatch, 1.5, 0.0, converged=True)
    open_one = report_of(monkeypatch, 1.5, math.inf)
    for pair in ((sure, open_one), (open_one, sure), (open_one, open_one)):
        found = compare(*pair)
        assert found.not_converged == ("product[0][0].log_singular", "product[0][0].log_condition")
        assert not any(name in found.differences or name in found.unlike for name in found.not_converged)
        assert not found.agrees(math.inf) and "not converged (2): product[0][0].log_singular, " in str(found)
    found = compare(sure, sure)
    assert found.agrees(0.0) and not found.not_converged and "not converged" not in str(found)
    # Two backends need not go through the same number of sweeps.
    other = replace(sure.product[0][0], sweeps=sure.product[0][0].sweeps[:1], error=np.ones((3, 1)))
    assert compare(sure, replace(sure, product=Lanes([(other,)]))).agrees(0.0)


def test_a_gain_that_was_not_followed_is_not_never():
    assert [lag_text(7, None), lag_text(7, 9), lag_text(None, None), lag_text(None, 9), lag_text(None, 0)] == [
        "7",
        "7",
        "never",
        "not within 9 lags",
        "not measured",
    ]


def test_losses_that_were_followed_for_some_lags_only():
    rnn = rnncore.RNN(3, 8, nonlinearity="identity", init=rnncore.init.orthogonal(1.0), rng=0)
    report = diagnose(rnn, _x(300), (np.ones((300, 3, 8)), None))
    found = report.horizon[0][0]
    assert not found.complete and found.followed == len(found.median) - 1 < 300 and found.lag_small is None
    text = f"not within {found.followed} lags"
    assert report.to_html().count(text) == 2
    change = compare(report, report).changes[0]
    assert change.followed == (found.followed, found.followed)
    assert re.search(rf"below 1e-3 from lag +{text} -> {text}\n", str(compare(report, report)))
    whole = diagnose(rnn, _x(300))
    assert whole.horizon[0][0].followed is None and whole.to_html().count(">never<") == 2
    nothing = compare(replace(whole, horizon=None), whole)
    assert re.search(r"below eps from lag +not measured -> never\n", str(nothing))


@pytest.mark.parametrize(
    ("exponents", "interval", "residual", "entropy", "doubling"),
    [
        ([0.5, 0.2], [[0.4, 0.1], [0.6, 0.3]], None, "at least 0.7", "1.386"),
        ([0.5, 0.2], [[0.4, 0.1], [0.6, 0.3]], np.zeros(3), "0.7", "1.386"),
        ([0.5, -0.2], [[-0.1, -0.3], [1.1, -0.1]], None, "0.5", "1.386, if at all"),
        ([-0.5, -0.7], [[-0.6, -0.8], [0.1, 0.1]], None, "0", "inf"),
    ],
)
def test_exponents_that_are_bounds_or_may_be_0(reports, exponents, interval, residual, entropy, doubling):
    real = reports["vanishing"].lyapunov[0][0]
    positive = [e for e in exponents if e > 0]
    made = replace(
        real,
        exponents=np.asarray(exponents),
        interval=np.asarray(interval),
        sum_residual=residual,
        entropy_rate=float(sum(positive)),
        predictability=math.log(2) / positive[0] if positive else math.inf,
    )
    page = replace(reports["vanishing"], lyapunov=Lanes([(made,)])).to_html()
    cells = [
        page.split(f'<td data-of="{name}">')[1].split("</td>")[0]
        for name in ("entropy rate, nats per step", "an error doubles in, steps")
    ]
    assert cells == [entropy, doubling]
