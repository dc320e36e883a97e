"""Every kind of figure of every kind of report, and numbers that no axis has."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import rnncore
from rnncore.diagnostics import diagnose
from rnncore.diagnostics.figures.plot import KINDS, available, plot
from rnncore.diagnostics.report.page import WIDTH
from rnncore.diagnostics.results import Lanes
from rnncore.errors import ArgumentValueError, UnknownNameError
from tests.diagnostics.report.networks import NETWORKS, _x, texts_of
from tests.tools.rounding import EPS

pytest.importorskip("matplotlib")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_is_drawn_or_says_why_not(reports, name, kind, tmp_path):
    report, path = reports[name], tmp_path / "figure.png"
    if available(report, kind) is None:
        report.plot(kind, path)
        assert path.read_bytes().startswith(b"\x89PNG")
        for width in (8.0, WIDTH):
            assert_every_text_can_be_read(plot(report, kind, width=width))
    else:
        with pytest.raises(ArgumentValueError, match=f"{kind!r} cannot be drawn: the run is not finite: see nonfinite"):
            report.plot(kind, path)
        assert name == "nonfinite" and not path.exists()


def assert_every_text_can_be_read(figure):
    """Neither cut off nor over another: by more than two pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).draw()
    edge = figure.bbox
    boxes = [
        (t.get_text(), t.get_window_extent()) for t in texts_of(figure) if t.get_visible() and t.get_text().strip()
    ]
    for i, (a, first) in enumerate(boxes):
        out = max(edge.x0 - first.x0, first.x1 - edge.x1, edge.y0 - first.y0, first.y1 - edge.y1)
        assert out < 2, f"{a!r} is cut off by {out:.0f} pixels"
        for b, second in boxes[i + 1 :]:
            wide = min(first.x1, second.x1) - max(first.x0, second.x0)
            high = min(first.y1, second.y1) - max(first.y0, second.y0)
            assert wide < 2 or high < 2, f"{a!r} overlaps {b!r}"


def test_an_unknown_kind_names_the_closest(reports):
    with pytest.raises(
        UnknownNameError, match=r"kind: expected one of flow, .* got 'horizn'; did you mean 'horizon'\?"
    ):
        reports["vanishing"].plot("horizn")


def test_what_was_left_out_says_so(reports):
    report = diagnose(rnncore.RNN(3, 4, rng=0), _x(5))
    with pytest.raises(ArgumentValueError, match='level="standard" runs it'):
        report.plot("spectrum")
    texts = [t.get_text() for a in reports["exploding"].plot("spectrum").axes for t in a.texts]
    assert texts == ['left out:\nlevel="deep" runs it']


def test_a_path_that_cannot_be_used(reports, tmp_path):
    with pytest.raises(ArgumentValueError, match=r"path: expected a file that ends in one of .*png"):
        reports["vanishing"].plot("flow", tmp_path / "figure.xyz")
    with pytest.raises(OSError, match="nowhere"):
        reports["vanishing"].plot("flow", tmp_path / "nowhere" / "figure.png")


def test_what_is_not_a_number_is_in_the_legend(reports):
    def legend(name, kind):
        return [t.get_text() for t in reports[name].plot(kind).legends[0].get_texts()]

    assert "exactly 0 (-inf)" in legend("dead", "flow")
    assert "exactly 0 (-inf)" in legend("dead", "horizon")
    assert "exactly 0 (-inf)" in legend("dead", "spectrum")
    assert "no such step" in legend("ragged", "flow")
    assert any("-inf" in t for t in legend("dead", "decomposition"))
    assert "below eps = 2.2e-16 of its row's largest" in legend("vanishing", "flow")


def test_nan_and_infinity_in_a_map_have_colours_of_their_own(reports):
    report = reports["vanishing"]
    total = report.flow[0][0].total.copy()
    total[5], total[6] = np.nan, np.inf
    figure = replace(report, flow=Lanes([(replace(report.flow[0][0], total=total),)])).plot("flow")
    texts = [t.get_text() for t in figure.legends[0].get_texts()]
    assert "not a number (NaN)" in texts and "infinite (+inf)" in texts
    image = figure.axes[0].images[0].get_array()
    assert len({tuple(np.round(image[0, t], 6)) for t in (4, 5, 6)}) == 3


def test_matplotlib_is_imported_for_a_figure_and_pyplot_never():
    code = (
        "import sys, numpy as np, rnncore; from rnncore.diagnostics import diagnose\n"
        "r = diagnose(rnncore.RNN(3, 4, rng=0), np.ones((5, 2, 3))); assert 'matplotlib' not in sys.modules\n"
        "r.to_html(); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_matplotlib_the_extra_is_named(reports, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for call in (lambda: reports["dead"].plot("flow"), lambda: reports["dead"].to_html(tmp_path / "p.html")):
        with pytest.raises(ImportError, match=r'needs matplotlib: pip install "rnncore\[demo\]"'):
            call()
    assert not os.listdir(tmp_path)


def test_eigenvalues_are_those_of_the_weights(reports):
    rnn = rnncore.RNN(3, 16, rng=0)
    w = rnn.state_dict()["weight_hh_l0"]
    values, vectors = np.linalg.eig(w)
    # Bauer and Fike (1960): LAPACK's are those of a matrix n eps away, and move by as much times the vectors' condition.
    bound = 2 * 16 * EPS * np.linalg.norm(w, 2) * np.linalg.cond(vectors)
    found = np.sort(np.hypot(*reports["vanishing"].eigenvalues[0][0].T))
    np.testing.assert_allclose(found, np.sort(np.abs(values)), rtol=0, atol=bound)
