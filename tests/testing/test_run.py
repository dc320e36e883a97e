"""check_backend: which checks run on what, expected failures, and plugins that fail before any check."""

import contextlib
import re
import sys

import pytest
import rnncore_numpy
from wrong_backends import Altered

import rnncore
from rnncore import get_backend
from rnncore.backend import registry
from rnncore.errors import ArgumentTypeError, ArgumentValueError, BackendUnavailableError, DeviceError, UnknownNameError
from rnncore.testing import CHECKS, check_backend

QUICK = "RC-SCAN-001"
KNOWN = "a known fault"


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


def test_a_plugin_that_is_not_installed_is_checked_as_well():
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


@pytest.mark.parametrize("place", ["scan", "reason", "words"])
@pytest.mark.parametrize("text", ["first" + "x" * 10**6 + "last", "first\x1b[2J \x07\ud800\nlast", None])
def test_a_plugins_text_does_not_flood_the_report(place, text):
    """Whether it is the text of an error, of a refusal or of an explanation; None: an error that cannot be printed."""

    class Odd(BaseException):
        def __str__(self):
            raise SystemExit if text is None else RuntimeError(text)

    def fail(*_, **__):
        raise Odd if text is None else RuntimeError(text)

    answer = str(text)
    scans = Altered(
        get_backend("numpy").scans(),
        **{
            "scan": {"nonlinear": fail},
            "reason": {"unsupported": lambda request: answer},
            "words": {"explain": lambda request: answer},
        }[place],
    )
    plugin = Altered(get_backend("numpy"), name="mine", scans=lambda: scans)
    report = check_backend(plugin, only=[QUICK, "RC-KER"])
    texts = [str(report), report.to_json(), report.to_html(), *(o.reason for o in report.outcomes)]
    with contextlib.suppress(Exception):  # the scan's own
        texts.append(str(rnncore.RNN(2, 3, backend=plugin).explain()))
    for shown in texts:
        assert len(shown) < 10**5  # of some ten checks, with style
        assert shown.replace("\n", "").isprintable()
        shown.encode("utf-8")
    if place != "words":
        assert "failed" in {o.status for o in report.outcomes}


def test_ids_and_beginnings_of_ids_choose_and_the_order_is_the_suites():
    seen = []
    report = check_backend(
        "numpy", only=["RC-JVP", "RC-CON-002"], on_outcome=lambda o, n, of: seen.append((o.id, n, of))
    )
    ids = ["RC-CON-002", *(id for id in CHECKS if id.startswith("RC-JVP-"))]
    assert [o.id for o in report.outcomes] == ids
    assert seen == [(id, n, len(ids)) for n, id in enumerate(ids, start=1)]


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
    newer = Altered(rnncore_numpy, contract_version=3)
    with pytest.raises(
        BackendUnavailableError, match="speaks version 3 of the contract, and this rnncore versions 1 and 2"
    ):
        check_backend(newer)
    with pytest.raises(BackendUnavailableError, match="speaks version 3"):
        rnncore.RNN(2, 3, backend=newer)


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
    with pytest.raises(BackendUnavailableError, match=words):
        check_backend(Altered(rnncore_numpy, **{member: value}), only=[QUICK])


def test_exits_panics_and_skips_of_a_backend_are_failures():
    class Panic(BaseException):
        pass

    for error in (SystemExit(0), Panic("rust"), pytest.skip.Exception("not today")):

        def to_numpy(x, /, error=error):
            raise error

        report = check_backend(Altered(rnncore_numpy, to_numpy=to_numpy), only=["RC-CON-004"])
        assert report.count("failed") == 1 and type(error).__name__ in report.outcomes[0].reason
        assert "begin with RC-CON-004" in str(report)


def test_a_namespace_without_dtypes_is_no_backend_and_not_a_pass():
    xp = rnncore_numpy.namespace()
    bare = Altered(
        xp, __array_namespace_info__=lambda: Altered(xp.__array_namespace_info__(), dtypes=lambda **options: {})
    )
    with pytest.raises(BackendUnavailableError, match="lists float32 or float64"):
        check_backend(Altered(rnncore_numpy, namespace=lambda: bare))


def test_nothing_run_is_a_failure():
    report = check_backend("numpy", only=["RC-TYPE-004", "RC-TYPE-005"])
    assert report.ran == 0 and not report.ok
    assert report.summary == "0 ran: 0 passed, 0 failed, 0 expected to fail; 2 skipped"
    assert str(report).startswith(report.summary)
    assert "no check ran: that is a failure" in str(report)
    assert [o.reason for o in report.outcomes] == ["the backend has one device"] * 2
