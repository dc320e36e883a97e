"""The page: complete, valid, readable on a phone, light and dark."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
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
from rnncore.diagnostics.report.page import WIDTH
from rnncore.errors import ArgumentValueError
from tests.diagnostics.report.networks import NETWORKS, _x, texts_of

pytest.importorskip("matplotlib")


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
            for text in texts_of(figure):
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


HANGS = 600.0  # seconds: a page takes a few; a browser that waits for a display or a lock takes forever
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
        found = subprocess.run(command, capture_output=True, text=True, timeout=HANGS, check=True)
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
    subprocess.run(command, capture_output=True, timeout=HANGS, check=True)
    seen = np.round(255 * imread(shot)[..., :3]).astype(int)
    assert np.median(seen, axis=(0, 1)).tolist() == list(paper)
    far = np.abs(seen - paper).max(axis=2)
    assert 0.05 < (far > 40).mean() < 0.5  # letters and figures, and no sheet of another colour
    assert ((seen > 250).all(axis=2).mean() < 0.01) == (scheme == 0)
