"""Every picture of a report can be drawn, for every kind of network; what a level left out is named."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.text import Text

import rnncore
from rnncore.diagnostics import diagnose
from rnncore.diagnostics.figures.plot import KINDS
from rnncore.errors import RnncoreError

rng = np.random.default_rng(0)
ALWAYS = {"flow", "horizon", "decomposition", "eigenvalues", "saturation"}
REPORTS = {
    "vanishing": lambda: diagnose(rnncore.RNN(3, 16, rng=0), rng.standard_normal((100, 4, 3)), level="deep"),
    "exploding": lambda: diagnose(
        rnncore.RNN(3, 8, nonlinearity="relu", init=rnncore.init.orthogonal(2.0), rng=0),
        rng.standard_normal((60, 2, 3)),
        level="deep",
    ),
    "ragged stack": lambda: diagnose(
        rnncore.RNN(3, 6, 3, bidirectional=True, rng=0),
        rng.standard_normal((50, 4, 3)),
        lengths=[50, 20, 3, 0],
        level="deep",
    ),
}


@pytest.mark.parametrize("name", REPORTS)
def test_every_kind_is_drawn(name, tmp_path):
    report = REPORTS[name]()
    for kind in KINDS:
        path = tmp_path / f"{kind}.png"
        figure = report.plot(kind, path)
        assert path.stat().st_size > 5000
        assert len({t.get_text() for t in figure.findobj(Text)} - {""}) > 3  # labels, units, ticks


def test_what_was_left_out_is_named_and_so_is_an_unknown_kind():
    report = diagnose(rnncore.RNN(3, 6, rng=0), rng.standard_normal((40, 2, 3)))
    for kind in ALWAYS:
        report.plot(kind)
    with pytest.raises(RnncoreError, match=r"standard|deep"):
        report.plot("spectrum")
    with pytest.raises(RnncoreError, match="flow"):
        report.plot("flw")


def test_a_run_that_is_not_finite_has_no_picture_and_says_why():
    x = np.full((10, 1, 3), np.nan)
    with pytest.raises(RnncoreError, match="not finite"):
        diagnose(rnncore.RNN(3, 6, rng=0), x).plot("flow")
