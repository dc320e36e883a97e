"""A run as JSON Lines: what each line says, and that none waits for the next."""

import json

from rnncore.testing import SUITE_VERSION
from rnncore.testing.lines import JsonLines
from rnncore.testing.report import Outcome
from rnncore.testing.run import Run

ONLY = ["RC-CON-012", "RC-CON-013", "RC-ANA-006"]


def test_every_event_is_a_line_of_its_own():
    run, written = Run("strict", only=ONLY), []
    lines = JsonLines(run.setting, written.append)
    lines.plan(run.checks, 2.5)
    for check in run.checks:
        lines.started(check)
        lines.outcome(run.one(check))
    lines.summary(run.report())
    assert all(text.count("\n") == 1 and text.endswith("\n") and text.isascii() for text in written)
    plan, *events, summary = map(json.loads, written)
    common = {"schema": 1, "suite": SUITE_VERSION, "backend": "strict", "device": "device1", "kernel": "auto"}
    for line in (plan, *events, summary):
        assert common.items() <= line.items()
    assert plan["event"] == "plan" and plan["checks"] == ONLY and plan["limit"] == 2.5
    assert plan["versions"]["suite"] == SUITE_VERSION and plan["precision"] == "full"
    assert [(e["event"], e["id"]) for e in events] == [(e, id) for id in ONLY for e in ("started", "outcome")]
    outcomes = [e for e in events if e["event"] == "outcome"]
    assert [o["status"] for o in outcomes] == ["passed", "skipped", "passed"]
    assert outcomes[0]["rule"] == "precision, if given, is 'full' or 'tf32'" and outcomes[0]["reason"] == ""
    assert "read_only" in outcomes[1]["reason"]
    assert 0 < outcomes[2]["error_eps"] < outcomes[2]["allowed_eps"] and outcomes[2]["seconds"] > 0
    assert summary["event"] == "summary" and summary["ok"] is True and summary["ran"] == 2
    assert summary["counts"]["skipped"] == 1 and summary["not_run"] == [] and summary["seconds"] > 0


def test_a_line_is_json_whatever_was_measured_or_said():
    written = []
    setting = Run("numpy", only=ONLY).setting
    outcome = Outcome("RC-X-001", "rule", "X", "failed", "a\nb \ud800", error_eps=float("inf"), allowed_eps=64.0)
    JsonLines(setting, written.append).outcome(outcome)
    line = json.loads(written[0], parse_constant=lambda name: 1 / 0)
    assert line["error_eps"] == "inf" and line["reason"] == "a\nb \ud800"
    assert written[0].count("\n") == 1


def test_a_run_that_is_not_complete_says_what_is_missing_and_is_not_ok():
    run = Run("numpy", only=ONLY)
    run.one(run.checks[0])
    report = run.report()
    assert report.not_run == tuple(ONLY[1:]) and not report.ok and report.count("passed") == 1
    assert "interrupted in RC-CON-013: 2 did not end" in str(report).splitlines()
    assert "interrupted in RC-CON-013" in report.to_html()
    assert json.loads(report.to_json())["not_run"] == ONLY[1:]
