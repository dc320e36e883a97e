"""Figures that can be read, the page, and the comparison of reports."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest

import rnncore
from rnncore.diagnostics import diagnose
from rnncore.diagnostics.figures.parts import BLUE, GREY, RED
from rnncore.diagnostics.figures.plot import KINDS, available, plot
from rnncore.diagnostics.report.compare import _difference, compare
from rnncore.diagnostics.report.page import WIDTH
from rnncore.errors import ArgumentTypeError, ArgumentValueError, UnknownNameError

pytest.importorskip("matplotlib")


def _x(steps, batch=3, size=3, dtype="float64"):
    return np.random.default_rng(0).standard_normal((steps, batch, size)).astype(dtype)


def _vanishing():
    return diagnose(rnncore.RNN(3, 16, rng=0), _x(120), level="deep")


def _exploding():
    init = {"weight_hh": rnncore.init.orthogonal(1.8)}
    return diagnose(rnncore.RNN(3, 16, nonlinearity="relu", init=init, rng=0), _x(60), level="standard")


def _ragged():
    rnn = rnncore.RNN(3, 6, num_layers=3, bidirectional=True, rng=0)
    return diagnose(rnn, _x(30), lambda o, h: (np.ones_like(o), None), lengths=[25, 9, 0], level="deep")


def _stack():
    init = {"weight_hh": rnncore.init.orthogonal(1.8)}
    rnn = rnncore.RNN(3, 8, num_layers=4, bidirectional=True, nonlinearity="relu", init=init, rng=0)
    return diagnose(rnn, _x(60), level="standard")


def _dead():
    init = {"weight_ih": rnncore.init.constant(1.0), "weight_hh": rnncore.init.identity()}
    return diagnose(rnncore.RNN(1, 4, nonlinearity="relu", bias=False, init=init), -np.ones((9, 2, 1)), level="deep")


def _nonfinite():
    init = {"weight_hh": rnncore.init.orthogonal(3.0)}
    rnn = rnncore.RNN(3, 8, nonlinearity="relu", init=init, rng=0, dtype="float32")
    return diagnose(rnn, _x(300, dtype="float32"))


def _one_step():
    return diagnose(rnncore.RNN(3, 1, rng=0), _x(1, 1), level="standard")


NETWORKS = {
    "vanishing": _vanishing,
    "exploding": _exploding,
    "ragged": _ragged,
    "stack": _stack,
    "dead": _dead,
    "nonfinite": _nonfinite,
    "one step": _one_step,
}


@pytest.fixture(scope="module")
def reports():
    return {name: make() for name, make in NETWORKS.items()}


# --- figures ----------------------------------------------------------------------------------------------------------


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
    boxes = [(t.get_text(), t.get_window_extent()) for t in _texts(figure) if t.get_visible() and t.get_text().strip()]
    for i, (a, first) in enumerate(boxes):
        out = max(edge.x0 - first.x0, first.x1 - edge.x1, edge.y0 - first.y0, first.y1 - edge.y1)
        assert out < 2, f"{a!r} is cut off by {out:.0f} pixels"
        for b, second in boxes[i + 1 :]:
            wide = min(first.x1, second.x1) - max(first.x0, second.x0)
            high = min(first.y1, second.y1) - max(first.y0, second.y0)
            assert wide < 2 or high < 2, f"{a!r} overlaps {b!r}"


def _texts(figure):
    """All that are drawn: matplotlib keeps ticks outside the limits, and their labels."""
    yield from figure.texts
    for legend in figure.legends:
        yield from legend.get_texts()
    for axes in figure.axes:
        if axes.get_visible():
            yield from (axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts)
            for axis in (axes.xaxis, axes.yaxis):
                low, high = sorted(axis.get_view_interval())
                ticks = [t for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
                yield from (t.label1 for t in ticks)
                yield from (t.label2 for t in ticks)


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
    total = report.flow.total[0].copy()
    total[0, 5], total[0, 6] = np.nan, np.inf
    figure = replace(report, flow=replace(report.flow, total=(total,))).plot("flow")
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
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_without_matplotlib_the_extra_is_named(reports, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for call in (lambda: reports["dead"].plot("flow"), lambda: reports["dead"].to_html(tmp_path / "p.html")):
        with pytest.raises(ImportError, match=r'needs matplotlib: pip install "rnncore\[demo\]"'):
            call()
    assert not os.listdir(tmp_path)


def test_eigenvalues_are_those_of_the_weights(reports):
    rnn = rnncore.RNN(3, 16, rng=0)
    want = np.sort(np.abs(np.linalg.eigvals(rnn.state_dict()["weight_hh_l0"])))
    np.testing.assert_allclose(np.sort(np.hypot(*reports["vanishing"].eigenvalues[0][0].T)), want, atol=1e-12)


# --- the page ---------------------------------------------------------------------------------------------------------


class _Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs


@pytest.mark.parametrize("name", NETWORKS)
def test_the_page_holds_everything_and_needs_nothing(reports, name, tmp_path):
    report, path = reports[name], tmp_path / "page.html"
    text = report.to_html(path)
    assert path.read_text(encoding="utf-8") == text == report.to_html()
    assert len(text) < 2_000_000
    page = _Page(text)
    assert page.tags.count("figure") == sum(available(report, kind) is None for kind in KINDS)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    ids = [value for key, value in page.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    links = [v for key, v in page.attributes if key in ("src", "href", "xlink:href", "data", "action")]
    assert all(v.startswith("data:image/png;base64,") or v[1:] in ids for v in links)
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(ids)
    for probe, reason in report.left_out.items():
        assert f"<li>{probe}: {reason}</li>".replace('"', "&quot;") in text
    assert text.index("<h1") < text.index(report.verdict.label, text.index("<h1")) < text.index("Figures")
    for one in report.verdict.evidence:
        assert one.metric.replace("'", "&#x27;").replace("<", "&lt;") in text
    assert text.index("<h2>Figures") < text.index("<h2>Numbers")


def test_a_long_run_makes_a_small_page():
    report = diagnose(rnncore.RNN(3, 4, num_layers=2, bidirectional=True, rng=0), _x(10_000, 2))
    assert len(report.to_html()) < 2_000_000
    labels = [a.get_xlabel() for a in report.plot("flow").axes]
    assert "step t; each column is the median of about 10 steps" in labels


def test_what_a_user_named_is_text(reports):
    name = "RNN(<script>alert('1')</script>, \"&\")"
    subject = replace(reports["dead"].subject, network=name)
    text = replace(reports["dead"], subject=subject, left_out={"<b>": "<i>&"}).to_html()
    assert "<script" not in text and "<i>&" not in text and "&lt;script&gt;alert(&#x27;1&#x27;)" in text


def test_a_page_that_cannot_be_written_leaves_nothing(reports, tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        reports["dead"].to_html(tmp_path / "nowhere" / "page.html")
    (tmp_path / "folder").mkdir()
    with pytest.raises((OSError, ArgumentValueError), match="folder"):
        reports["dead"].to_html(tmp_path / "folder")
    assert os.listdir(tmp_path) == ["folder"] and not os.listdir(tmp_path / "folder")


PHONE = 390 - 2 * 16  # pixels, less the page's margins


def test_letters_can_be_read_on_a_phone(reports):
    for report in reports.values():
        for kind in (k for k in KINDS if available(report, k) is None):
            figure = plot(report, kind, width=WIDTH)
            pixels = PHONE / (72 * figure.get_figwidth())  # for each point
            for text in _texts(figure):
                assert not text.get_text().strip() or text.get_fontsize() * pixels > 9, (kind, text.get_text())


def _light(colour):
    """Relative luminance: WCAG 2.2."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(a, b):
    low, high = sorted((_light(a), _light(b)))
    return (high + 0.05) / (low + 0.05)


def test_light_and_dark_can_be_told_from_their_paper(reports):
    """By WCAG 2.2, level AA: 4.5 for letters, 3 for the lines and marks of a figure; those of the maps stand on maps."""
    text = reports["vanishing"].to_html()
    light, dark = (dict(re.findall(r"--(\w+): (#\w+);", block)) for block in re.findall(r":root \{(.*?)\}", text, re.S))
    assert set(dark) == set(light) - {"line"} and "prefers-color-scheme: dark" in text
    for scheme in (light, dark):
        for name in ("ink", "good", "bad", "quiet"):
            assert _contrast(scheme[name], scheme["paper"]) > 4.5, (name, scheme)
        for colour in (BLUE, RED, GREY):
            assert _contrast(colour, scheme["paper"]) > 3, (colour, scheme)
    for kind in ("horizon", "decomposition", "spectrum", "eigenvalues"):
        figure = re.search(rf'aria-label="{kind}".*?</svg>', text, re.S)[0]
        assert not re.search(r"fill: #f[\w]f[\w]f[\w]\b", figure), kind  # a box that is white on dark paper, too
        assert "#000000" not in figure and "currentColor" in figure


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
OPTIONS = (
    "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update "
    "disable-sync hide-scrollbars virtual-time-budget=5000 window-size=1400,900 dump-dom"
)
# In frames, since a browser's window is never as narrow as a phone.
PROBE = """<!doctype html><title>-</title><body>FRAMES<script>
addEventListener("load", () => {
  document.title = [...document.querySelectorAll("iframe")].map(f => {
    const page = f.contentDocument.documentElement, fetched = f.contentWindow.performance.getEntriesByType("resource");
    return [page.clientWidth, page.scrollWidth - page.clientWidth,
            fetched.filter(r => !r.name.startsWith("data:")).length].join(":");
  }).join(" ");
});
</script>"""
FRAME = '<iframe src="{}.html" style="width:{}px;height:900px;border:0"></iframe>'
WIDE = '<!doctype html><body><script src="a.js"></script><p style="width:2000px">wide</p>'


@pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")
def test_in_a_browser_nothing_overflows_and_nothing_is_fetched(reports, tmp_path):
    pages, widths, asked = ("ragged", "nonfinite", "wide"), (390, 1200), []
    for name in pages[:2]:
        reports[name].to_html(tmp_path / f"{name}.html")
    frames = "".join(FRAME.format(name, width) for name in pages for width in widths)
    for name, text in (("wide.html", WIDE), ("a.js", ""), ("probe.html", PROBE.replace("FRAMES", frames))):
        (tmp_path / name).write_text(text, encoding="utf-8")

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    # From a server, as a browser keeps no record of what it reads from files.
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        options = [f"--{option}" for option in OPTIONS.split()]
        address = f"http://127.0.0.1:{server.server_port}/probe.html"
        command = [BROWSER, *options, f"--user-data-dir={tmp_path / 'profile'}", address]
        found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        server.shutdown()
    seen = [tuple(map(int, part.split(":"))) for part in re.search(r"<title>(.*?)</title>", found.stdout)[1].split()]
    assert seen[:4] == [(width, 0, 0) for _ in pages[:2] for width in widths]
    assert all(over > 0 and fetched == 1 for _, over, fetched in seen[4:]), seen  # the probe sees what it looks for
    allowed = {"/probe.html", "/a.js", "/favicon.ico", *(f"/{name}.html" for name in pages)}
    assert set(asked) <= allowed and "/ragged.html" in asked


@pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")
@pytest.mark.parametrize(("scheme", "paper"), [(0, (0x15, 0x18, 0x1C)), (1, (255, 255, 255))], ids=["dark", "light"])
def test_the_page_follows_the_readers_scheme(reports, scheme, paper, tmp_path):
    from matplotlib.image import imread

    page, shot = tmp_path / "page.html", tmp_path / "shot.png"
    reports["ragged"].to_html(page)
    options = [f"--{option}" for option in OPTIONS.split() if option not in ("dump-dom", "window-size=1400,900")]
    options += [f"--blink-settings=preferredColorScheme={scheme}", "--window-size=1200,2600", f"--screenshot={shot}"]
    command = [BROWSER, *options, f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    seen = np.round(255 * imread(shot)[..., :3]).astype(int)
    assert np.median(seen, axis=(0, 1)).tolist() == list(paper)
    far = np.abs(seen - paper).max(axis=2)
    assert 0.05 < (far > 40).mean() < 0.5  # letters and figures, and no sheet of another colour
    assert ((seen > 250).all(axis=2).mean() < 0.01) == (scheme == 0)


# --- two reports ------------------------------------------------------------------------------------------------------


def test_a_repair_shows():
    before = diagnose(rnncore.RNN(3, 8, rng=0), _x(100))
    after = diagnose(rnncore.RNN(3, 8, nonlinearity="identity", init=rnncore.init.orthogonal(1.0), rng=0), _x(100))
    found = compare(before, after)
    change = found.changes[0]
    assert found.verdict == ("vanishing", "healthy") and change.lags == (1, 2, 4, 8, 16, 32, 64, 100)
    assert change.log_gain[-1] == (before.horizon[0][0].median[100], after.horizon[0][0].median[100])
    assert change.lag_small[1] is None and abs(change.weights[1]) < 1e-9 and math.isnan(change.saturated[1])
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
    assert found.agrees(1e-9), str(found)
    assert len(found.differences) > 100
    assert not compare(before, diagnose(mine, x * (1 + 1e-6), level="standard")).agrees(1e-9)


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
