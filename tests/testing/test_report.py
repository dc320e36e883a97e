"""The report of a run, as JSON and as a page."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

from rnncore.testing import Outcome, Report, check_backend

QUICK = "RC-SCAN-001"


def made(**changed):
    """A report of one outcome."""
    outcome = Outcome(QUICK, "a < b & c", "SCAN", "failed", "<script>alert('x')</script>", **changed)
    return Report("<b>mine</b>", 'cpu"', "auto", "full", {"rnncore": "<1>"}, (outcome,), 0.5)


def strictly(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_is_json_whatever_was_measured(wrong):
    found = strictly(check_backend(wrong, only=[QUICK, "RC-SCAN-014", "RC-TYPE-004"]).to_json())
    assert found["ok"] is False and found["ran"] == 2
    assert found["counts"] == {"failed": 1, "expected to fail": 0, "passed": 1, "skipped": 1}
    assert [o["status"] for o in found["outcomes"]] == ["skipped", "failed", "passed"]
    for eps in (float("nan"), float("inf"), -float("inf")):
        outcome = strictly(made(error_eps=eps, allowed_eps=64.0).to_json())["outcomes"][0]
        assert outcome["error_eps"] == str(eps)


def test_the_json_has_every_field_of_version_0_1():
    """``report_0_1.json`` is one that version 0.1 wrote, without all but the first outcomes."""
    older = json.loads(Path(__file__).with_name("report_0_1.json").read_text())
    today = strictly(check_backend("numpy", only=[QUICK]).to_json())
    assert today["schema"] == older["schema"] == 1
    assert older.keys() <= today.keys()
    assert older["counts"].keys() <= today["counts"].keys()
    assert older["outcomes"][0].keys() <= today["outcomes"][0].keys()


def test_html_is_one_page_that_escapes_what_it_shows():
    page = made(error_eps=1.0, allowed_eps=64.0).to_html()
    tags, shown = [], []
    reader = HTMLParser()
    reader.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))
    reader.handle_data = shown.append
    reader.feed(page)
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in tags}
    assert not {"src", "href"} & {name for _, attributes in tags for name in attributes}
    assert "http" not in page and "url(" not in page and "@import" not in page
    text = "".join(shown)
    for whole in ("<b>mine</b>", 'cpu"', "a < b & c", "<script>alert('x')</script>", "rnncore <1>", "1 failed"):
        assert whole in text


def test_html_of_a_run_has_a_row_for_each_check_and_failures_first(wrong):
    report = check_backend(wrong, only=["RC-SCAN"])
    rows = re.findall(r'<tr class="(\w+)"><td class="id">(RC-[\w-]+)', report.to_html())
    assert sorted(id for _, id in rows) == sorted(o.id for o in report.outcomes)
    kinds = [kind for kind, _ in rows]
    assert kinds == sorted(kinds, key=["failed", "expected", "passed", "skipped"].index)
    assert set(kinds) == {"failed", "passed"}
