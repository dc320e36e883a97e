"""Two reports side by side."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest

import rnncore
from rnncore.diagnostics import diagnose
from rnncore.diagnostics.report.compare import _difference, compare
from rnncore.errors import ArgumentTypeError, ArgumentValueError
from tests.diagnostics.jacobians.networks import CLOSE
from tests.diagnostics.report.networks import _x
from tests.tools.rounding import EPS

pytest.importorskip("matplotlib")


def test_a_repair_shows():
    before = diagnose(rnncore.RNN(3, 8, rng=0), _x(100))
    after = diagnose(rnncore.RNN(3, 8, nonlinearity="identity", init=rnncore.init.orthogonal(1.0), rng=0), _x(100))
    found = compare(before, after)
    change = found.changes[0]
    assert found.verdict == ("vanishing", "healthy") and change.lags == (1, 2, 4, 8, 16, 32, 64, 100)
    assert change.log_gain[-1] == (before.horizon[0][0].median[100], after.horizon[0][0].median[100])
    assert change.lag_small[1] is None and abs(change.weights[1]) < 8 * EPS and math.isnan(change.saturated[1])
    assert "horizon[0][0].lag_small" in found.unlike and not found.agrees()
    text = str(found)
    assert text.startswith("vanishing -> healthy\n") and "ln gain at lag 64" in text
    assert re.search(r"below 1e-3 from lag +\d+ -> never", text)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["changes"][0]["saturated"][1] == "nan"


def test_a_report_agrees_with_itself(reports):
    for report in reports.values():
        found = compare(report, report)
        assert found.agrees(0.0) and str(found).startswith(f"{report.verdict.label}, as before")
        json.dumps(found.to_dict(), allow_nan=False)


def test_two_backends_agree():
    torch = pytest.importorskip("torch")
    x = _x(60)
    mine = rnncore.RNN(3, 8, num_layers=2, bidirectional=True, rng=0)
    other = rnncore.RNN(3, 8, num_layers=2, bidirectional=True, backend="torch", dtype="float64")
    other.load_state_dict({name: torch.asarray(value) for name, value in mine.state_dict().items()})
    before = diagnose(mine, x, level="standard")
    found = compare(before, diagnose(other, torch.asarray(x), level="standard"))
    assert found.agrees(CLOSE), str(found)
    assert len(found.differences) > 100
    assert not compare(before, diagnose(mine, x * (1 + 1e-6), level="standard")).agrees(CLOSE)


def test_one_that_is_infinite_where_the_other_is_not():
    a, b = (np.asarray([np.inf, -np.inf, np.nan, x]) for x in (1.0, 3.0))
    assert _difference(a, a) == 0.0 and _difference(a, b) == 2.0
    assert math.isinf(_difference(a, np.zeros(4))) and math.isinf(_difference(np.zeros(4), np.full(4, np.nan)))


def test_reports_that_cannot_be_compared(reports):
    both = r"RNN\(3, 16, .* steps 120\), got RNN\(3, 6, num_layers=3, .*directions 2"
    with pytest.raises(ArgumentValueError, match=both):
        compare(reports["vanishing"], reports["ragged"])
    with pytest.raises(ArgumentTypeError, match=r"after: expected a Report, got "):
        compare(reports["vanishing"], None)
