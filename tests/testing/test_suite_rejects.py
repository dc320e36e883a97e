"""The suite's own mutation test: every wrong backend of ``wrong_backends`` is failed by the checks named for its fault.

And the three front doors of the suite: Python, the report that comes out of it, and pytest.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from html.parser import HTMLParser
from importlib import metadata

import numpy as np
import pytest
import rnncore_numpy
from wrong_backends import ZOO, Altered, honest_tf32

import rnncore
from rnncore import get_backend
from rnncore.backend import registry
from rnncore.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    BackendUnavailableError,
    DeviceError,
    UnknownNameError,
)
from rnncore.scan import nonlinear as reference
from rnncore.testing import CHECKS, BackendConformance, Outcome, Report, check_backend
from tests.tools.places import DOUBLES

FEWEST = 24
QUICK = "RC-SCAN-001"
KNOWN = "a known fault"


# --- the wrong ones ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ZOO, ids=lambda wrong: wrong.name)
def test_a_wrong_backend_is_failed_by_every_check_named_for_its_fault(wrong):
    with wrong.plant() as backend:
        report = check_backend(backend, only=wrong.caught)
    assert not report.ok
    for outcome in report.outcomes:
        print(f"{wrong.name} | {outcome.id} | {outcome.reason}")
        assert outcome.status == "failed", f"{outcome.id} {outcome.status}: {outcome.rule}"
        assert re.search(wrong.caught[outcome.id], outcome.reason), outcome.reason


@pytest.mark.parametrize("sound", sorted({wrong.of for wrong in ZOO}))
def test_the_same_checks_pass_on_the_sound_backend(sound):
    ids = sorted({id for wrong in ZOO if wrong.of == sound for id in wrong.caught})
    report = check_backend(sound, only=ids)
    assert [o.id for o in report.outcomes if o.status != "passed"] == [], str(report)
    assert len(report.outcomes) == len(ids)


def test_planting_a_fault_leaves_nothing_behind():
    """After all of the zoo the sound backends still are."""
    for wrong in ZOO:
        with wrong.plant():
            pass
    assert check_backend("numpy", only=["RC-FWD", "RC-GRAD", "RC-KER", "RC-LEN", "RC-PURE"]).ok


def test_the_zoo_is_large_and_every_fault_has_a_name_and_a_check():
    assert len(ZOO) >= FEWEST
    repeated = [name for name, count in Counter(wrong.name for wrong in ZOO).items() if count > 1]
    assert not repeated
    for wrong in ZOO:
        assert wrong.caught, wrong.name
        assert set(wrong.caught) <= set(CHECKS), wrong.name


def test_tf32_passes_the_whole_suite_where_precision_says_so():
    with honest_tf32() as backend:
        report = check_backend(backend)
    assert report.ok, str(report)
    assert report.precision == "tf32" and "precision tf32" in str(report)
    assert report.ran > 100


# --- in Python --------------------------------------------------------------------------------------------------------


@pytest.fixture
def idle(tmp_path, monkeypatch):
    """The name of an installed plugin that has no device."""
    (tmp_path / "idle_plugin.py").write_text(
        "from rnncore_numpy import *\nname = 'idle'\ndevices = tuple\ndef unusable(): return 'its driver is too old'\n"
    )
    folder = tmp_path / "idle-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: idle\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[rnncore.backends]\nidle = idle_plugin\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry.refresh()
    yield "idle"
    registry.refresh()
    sys.modules.pop("idle_plugin", None)


def test_a_backend_by_name_and_the_plugin_itself_are_one():
    by_name, by_object = (check_backend(b, only=["RC-FWD-018", QUICK]) for b in ("numpy", get_backend("numpy")))
    assert [o.status for o in by_name.outcomes] == [o.status for o in by_object.outcomes] == ["passed", "passed"]
    assert by_name.backend == by_object.backend == "numpy"


def test_a_plugin_that_is_not_installed_is_checked_all_the_same():
    report = check_backend(Altered(get_backend("numpy"), name="mine"), only=["RC-FWD-018", QUICK])
    assert {o.id: o.status for o in report.outcomes} == {QUICK: "passed", "RC-FWD-018": "skipped"}
    assert report.backend == "mine" and report.ok


@pytest.mark.parametrize(
    ("backend", "options", "error", "words"),
    [
        ("nunpy", {}, UnknownNameError, "Did you mean 'numpy'"),
        (object(), {}, ArgumentTypeError, "a name or a backend"),
        ("numpy", {"device": "cuda:7"}, DeviceError, "cuda:7"),
        ("numpy", {"kernel": "fast"}, UnknownNameError, "kernel: expected"),
        ("numpy", {"only": ["RC-SCAN-999"]}, UnknownNameError, "'RC-SCAN-999'"),
        ("numpy", {"only": ["RC-SCA"]}, UnknownNameError, "RC-SCAN"),
        ("numpy", {"only": QUICK}, ArgumentTypeError, "put it in a list"),
        ("numpy", {"only": [1]}, ArgumentTypeError, "expected strings"),
        ("numpy", {"expected_failures": {"RC-SCAN-999": KNOWN}}, UnknownNameError, "RC-SCAN-999"),
        ("numpy", {"expected_failures": {"RC-SCAN": KNOWN}}, UnknownNameError, "no check has the id 'RC-SCAN'"),
        ("numpy", {"expected_failures": {QUICK: " "}}, ArgumentTypeError, "expected a reason"),
        ("numpy", {"expected_failures": {QUICK: None}}, ArgumentTypeError, "expected a reason"),
        ("numpy", {"expected_failures": [QUICK]}, ArgumentTypeError, "a mapping of ids to reasons"),
    ],
)
def test_what_cannot_be_run_is_an_error_before_anything_runs(backend, options, error, words):
    with pytest.raises(error, match=re.escape(words)):
        check_backend(backend, on_outcome=lambda *_: pytest.fail("a check ran"), **options)


def test_a_backend_that_cannot_be_used_is_an_error_with_its_reason(idle):
    with pytest.raises(BackendUnavailableError, match="its driver is too old"):
        check_backend(idle)


def test_ids_and_beginnings_of_ids_choose_and_the_order_is_the_suites():
    seen = []
    report = check_backend(
        "numpy", only=["RC-JVP", "RC-CON-002"], on_outcome=lambda o, n, of: seen.append((o.id, n, of))
    )
    ids = ["RC-CON-002", *(id for id in CHECKS if id.startswith("RC-JVP-"))]
    assert [o.id for o in report.outcomes] == ids
    assert seen == [(id, n, len(ids)) for n, id in enumerate(ids, start=1)]


@pytest.fixture
def wrong():
    """A backend that fails RC-SCAN-001 and passes RC-SCAN-014."""
    with next(w for w in ZOO if w.name == "W_hh is transposed").plant() as backend:
        yield backend


def test_an_expected_failure_is_no_failure(wrong):
    report = check_backend(wrong, only=[QUICK, "RC-SCAN-014"], expected_failures={QUICK: KNOWN})
    first, second = report.outcomes
    assert (first.status, second.status) == ("expected to fail", "passed")
    assert first.reason.startswith(f"{KNOWN}: float32: h (tanh)")
    assert report.ok and report.summary == "2 ran: 1 passed, 0 failed, 1 expected to fail; 0 skipped"


def test_an_expected_failure_that_passes_is_a_failure(wrong):
    report = check_backend(wrong, only=["RC-SCAN-014"], expected_failures={"RC-SCAN-014": KNOWN})
    assert not report.ok
    assert report.outcomes[0].status == "failed"
    assert report.outcomes[0].reason == f"expected to fail ({KNOWN}), and passed: take it off the list"


def test_an_expected_failure_that_cannot_run_is_taken_off_the_list_too():
    report = check_backend("numpy", only=["RC-TYPE-004", QUICK], expected_failures={"RC-TYPE-004": KNOWN})
    assert {o.status for o in report.outcomes} == {"passed", "failed"}
    reason = next(o.reason for o in report.outcomes if o.status == "failed")
    assert "cannot run here, as the backend has one device: take it off the list" in reason


def test_an_expected_failure_must_be_among_the_chosen():
    with pytest.raises(ArgumentValueError, match="'RC-NUM-001' is not among the checks"):
        check_backend("numpy", only=[QUICK], expected_failures={"RC-NUM-001": KNOWN})


def test_another_version_of_the_contract_is_refused():
    class Newer:
        contract_version = 2

        def __getattr__(self, name):
            return getattr(rnncore_numpy, name)

    with pytest.raises(BackendUnavailableError, match="speaks version 2 of the contract, and this rnncore version 1"):
        check_backend(Newer())
    with pytest.raises(BackendUnavailableError, match="speaks version 2"):
        rnncore.RNN(2, 3, backend=Newer())


@pytest.mark.parametrize(
    ("member", "value", "words"),
    [
        ("scans", lambda: 1 / 0, r"its scans.* failed: ZeroDivisionError"),
        ("scans", lambda: sys.exit(0), r"its scans.* failed: SystemExit"),
        ("devices", lambda: 1 / 0, "its devices failed: ZeroDivisionError"),
        ("devices", lambda: (), "no usable device"),
        ("device_name", lambda device: 1 / 0, "its device_name failed: ZeroDivisionError"),
        ("precision", lambda device: 1 / 0, "its precision failed: ZeroDivisionError"),
        ("namespace", lambda: None, "its namespace failed: AttributeError"),
        ("native_package", 3, "native_package must be a string"),
        ("name", b"a", "name must be a string"),
        ("to_numpy", 3, "to_numpy must be a function"),
    ],
)
def test_a_fault_in_what_a_plugin_says_of_itself_is_one_error(member, value, words):
    class Odd:
        def __getattr__(self, name):
            return value if name == member else getattr(rnncore_numpy, name)

    with pytest.raises(BackendUnavailableError, match=words):
        check_backend(Odd(), only=[QUICK])


def test_exits_panics_and_skips_of_a_backend_are_failures():
    class Panic(BaseException):
        pass

    for error in (SystemExit(0), Panic("rust"), pytest.skip.Exception("not today")):

        class Leaves:
            def __getattr__(self, name):
                return getattr(rnncore_numpy, name)

            def to_numpy(self, x, /, error=error):
                raise error

        report = check_backend(Leaves(), only=["RC-CON-004"])
        assert report.count("failed") == 1 and type(error).__name__ in report.outcomes[0].reason
        assert "begin with RC-CON-004" in str(report)


def test_a_namespace_without_dtypes_is_no_backend_and_not_a_pass():
    class Info:
        def __getattr__(self, name):
            return getattr(rnncore_numpy.namespace().__array_namespace_info__(), name)

        def dtypes(self, **options):
            return {}

    class Namespace:
        __array_namespace_info__ = Info

        def __getattr__(self, name):
            return getattr(rnncore_numpy.namespace(), name)

    class Bare:
        namespace = Namespace

        def __getattr__(self, name):
            return getattr(rnncore_numpy, name)

    with pytest.raises(BackendUnavailableError, match="lists float32 or float64"):
        check_backend(Bare())


class _Partial:
    """NumPy's scans, honest about what they take."""

    def __init__(self, takes):
        self.takes = takes

    def __getattr__(self, name):
        return getattr(rnncore_numpy.scans(), name)

    def unsupported(self, request, /):
        return rnncore_numpy.scans().unsupported(request) or (None if self.takes(request) else "not taken here")


@pytest.mark.parametrize(
    "takes",
    [lambda r: r.dtype == "float32", lambda r: r.scan == "nonlinear", lambda r: r.scan == "linear"],
    ids=["float32 only", "nonlinear only", "linear only"],
)
def test_scans_that_decline_honestly_pass(takes):
    class Backend:
        def __getattr__(self, name):
            return getattr(rnncore_numpy, name)

        def scans(self):
            return _Partial(takes)

    report = check_backend(Backend())
    assert report.ok, str(report)


def test_scans_that_take_nothing_are_no_scans():
    class Backend:
        def __getattr__(self, name):
            return getattr(rnncore_numpy, name)

        def scans(self):
            return _Partial(lambda r: False)

    report = check_backend(Backend(), only=["RC-KER-001"])
    assert report.count("failed") == 1 and "refuse a tanh network" in report.outcomes[0].reason


@pytest.mark.parametrize(
    ("wrong", "ids"),
    [
        (lambda f, reverse, dtype: reverse and f.name == "sigmoid", {"RC-KER-005", "RC-FWD-010", "RC-GRAD-008"}),
        (lambda f, reverse, dtype: reverse and f.clip is not None, {"RC-KER-005", "RC-FWD-011", "RC-GRAD-009"}),
        (lambda f, reverse, dtype: dtype == "float16" and f.name != "tanh", {"RC-KER-005"}),
    ],
    ids=["sigmoid in reverse", "a clip in reverse", "float16 but for tanh"],
)
def test_a_scan_that_is_wrong_in_one_corner_is_caught(wrong, ids):
    class Scans:
        def __getattr__(self, name):
            return getattr(rnncore_numpy.scans(), name)

        def unsupported(self, request, /):
            return None if request.dtype == "float16" else rnncore_numpy.scans().unsupported(request)

        def nonlinear(self, p, h0, w_hh, /, *, nonlinearity, reverse, overwrite=False):
            h = reference(p, h0, w_hh, nonlinearity=nonlinearity, reverse=reverse, xp=rnncore_numpy.namespace())
            return h * 0 + 0.25 if wrong(nonlinearity, reverse, p.dtype.name) else h

    class Backend:
        def __getattr__(self, name):
            return getattr(rnncore_numpy, name)

        def scans(self):
            return Scans()

    report = check_backend(Backend(), only=sorted(ids))
    assert {o.id for o in report.outcomes if o.status == "failed"} == ids, str(report)


def test_arrays_of_numpy_are_not_another_backends():
    strict = rnncore.get_backend("strict")

    class Greedy:
        def __getattr__(self, name):
            return getattr(strict, name)

        def is_native(self, x, /):
            return isinstance(x, np.ndarray) or strict.is_native(x)

    report = check_backend(Greedy(), only=["RC-CON-007"])
    assert report.count("failed") == 1


LEAKS = {
    "a mask": lambda h: h[h > 0],
    "to('cpu')": lambda h: h.to("cpu"),
    "dlpack": lambda h: np.from_dlpack(h.detach()),
    "torch.equal": lambda h: __import__("torch").equal(h, h),
    "torch.allclose": lambda h: __import__("torch").allclose(h, h),
    "nonzero": lambda h: h.nonzero(),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_a_way_to_the_host_in_every_step_is_seen(leak):
    torch = rnncore.get_backend("torch")

    class Scans:
        def __getattr__(self, name):
            return getattr(torch.scans(), name)

        def nonlinear(self, p, h0, w_hh, /, *, nonlinearity, reverse, overwrite=False):
            h = torch.scans().nonlinear(p, h0, w_hh, nonlinearity=nonlinearity, reverse=reverse)
            for t in range(len(h)):
                LEAKS[leak](h[t])
            return h

    class Backend:
        def __getattr__(self, name):
            return getattr(torch, name)

        def scans(self):
            return Scans()

    report = check_backend(Backend(), only=["RC-SYNC-001", "RC-SYNC-002"])
    assert report.count("failed") == 2, str(report)


def test_runs_at_once_do_not_see_each_other_and_leave_nothing_behind():
    import torch

    before = {name: getattr(torch.Tensor, name) for name in ("__bool__", "item", "to", "__getitem__")}
    reports = []
    run = lambda: reports.append(check_backend("torch", only=["RC-SYNC", "RC-NUM-011"]))  # noqa: E731
    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reports) == 3 and all(r.ok for r in reports)
    assert {name: getattr(torch.Tensor, name) for name in before} == before


def test_what_cannot_be_looked_at_is_skipped_and_says_so():
    skipped = {o.id: o.reason for o in check_backend("numpy").outcomes if o.status == "skipped"}
    assert "cannot be changed for a check to look at it" in skipped["RC-SYNC-005"]
    hidden = {o.id: o.reason for o in check_backend("strict").outcomes if o.status == "skipped"}
    assert "does not tell where an array lies" in hidden["RC-PURE-002"]


def test_nothing_run_is_a_failure():
    report = check_backend("numpy", only=["RC-TYPE-004", "RC-TYPE-005"])
    assert report.ran == 0 and not report.ok
    assert report.summary == "0 ran: 0 passed, 0 failed, 0 expected to fail; 2 skipped"
    assert str(report).startswith(report.summary)
    assert "no check ran: that is a failure" in str(report)
    assert [o.reason for o in report.outcomes] == ["the backend has one device"] * 2


# --- the report -------------------------------------------------------------------------------------------------------


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


# --- under pytest -----------------------------------------------------------------------------------------------------


def pytest_of(folder, body, *tests):
    """(exit code, counts by outcome, output) of a test file in a process of its own."""
    path = folder / "test_mine.py"
    path.write_text("from rnncore.testing import BackendConformance\n" + textwrap.dedent(body))
    nodes = [f"{path}::{test}" for test in tests] or [str(path)]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={folder}", *nodes],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(DOUBLES), "PYTEST_ADDOPTS": ""},
    )
    last = run.stdout.strip().splitlines()[-1]
    return run.returncode, {kind: int(n) for n, kind in re.findall(r"(\d+) (\w+)", last)}, run.stdout + run.stderr


def one(name, *ids):
    return [f"{name}::test_conformance[{id}]" for id in ids]


def test_three_lines_are_enough(tmp_path):
    code, counts, output = pytest_of(tmp_path, "class TestMine(BackendConformance):\n    backend = 'numpy'\n")
    report = check_backend("numpy")
    assert code == 0, output
    assert counts["passed"] == report.count("passed") + 1  # and the test that the backend can be used
    assert counts["skipped"] == report.count("skipped")
    assert counts.keys() <= {"passed", "skipped", "in"}


WRONG = """
    from wrong_backends import ZOO
    transposed = next(w for w in ZOO if w.name == "W_hh is transposed").plant().__enter__()
    class TestWrong(BackendConformance):
        backend = transposed
    class TestKnown(BackendConformance):
        backend = transposed
        expected_failures = {"RC-SCAN-001": "issue 12", "RC-SCAN-014": "issue 13"}
"""


def test_a_wrong_backend_fails_and_an_expected_failure_is_an_xfail_until_it_is_stale(tmp_path):
    ids = [*one("TestWrong", QUICK, "RC-SCAN-014"), *one("TestKnown", QUICK, "RC-SCAN-014")]
    code, counts, output = pytest_of(tmp_path, WRONG, *ids)
    assert code == 1
    assert counts | {"in": 0} == {"failed": 2, "passed": 1, "xfailed": 1, "in": 0}, output
    assert "RC-SCAN-001: the nonlinear scan with tanh is h_t = tanh(p_t + h_{t-1} W^T)" in output
    assert "expected to fail (issue 13), and passed: take it off the list" in output


MISSING = """
    class TestMissing(BackendConformance):
        backend = "nunpy"
    class TestUnnamed(BackendConformance):
        pass
"""


def test_a_backend_that_is_missing_fails_every_test_and_skips_none(tmp_path):
    code, counts, output = pytest_of(tmp_path, MISSING)
    assert code == 1
    assert counts.keys() <= {"failed", "in"}
    assert counts["failed"] == 2 * (len(CHECKS) + 1)
    assert "Did you mean 'numpy'" in output and "expected a class attribute `backend`" in output


@pytest.mark.parametrize(
    ("expected", "error"),
    [({"RC-SCAN-999": KNOWN}, UnknownNameError), ({QUICK: ""}, ArgumentTypeError), ([QUICK], ArgumentTypeError)],
)
def test_expected_failures_are_looked_at_when_the_class_is_made(expected, error):
    with pytest.raises(error, match="expected_failures"):
        type("Mine", (BackendConformance,), {"backend": "numpy", "expected_failures": expected})


def test_no_pytest_plugin_is_registered():
    """One would import this library in every run of pytest of whoever has it installed."""
    groups = {entry.group for entry in metadata.distribution("rnncore").entry_points}
    assert "pytest11" not in groups and "rnncore.backends" in groups
