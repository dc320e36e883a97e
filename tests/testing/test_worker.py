"""A limit for each check: checks that hang, natively too, or end their process, and the run that goes on."""

import re
import signal
import sys

import pytest
import rnncore_numpy
import stuck_plugin
from wrong_backends import Altered

from rnncore.errors import ArgumentTypeError, ArgumentValueError, BackendUnavailableError, DeviceError, UnknownNameError
from rnncore.testing import check_backend
from rnncore.testing.worker import _fate

# Of a check that never ends, any limit is exceeded; every other check here ends long before the other.
SHORT, LONG = 0.5, 3600.0
HANG = ["RC-CON-007", "RC-CON-011"]
AROUND = ["RC-CON-010", "RC-CON-011", "RC-CON-012"]


@pytest.fixture
def stuck(monkeypatch, tmp_path):
    """A backend that gets stuck in this way."""
    monkeypatch.setenv("STUCK_NO_MORE", str(tmp_path / "no more"))
    mark = tmp_path / "mark"
    mark.touch()
    monkeypatch.setenv("STUCK_MARK", str(mark))

    def choose(way):
        monkeypatch.setenv("STUCK", way)
        return stuck_plugin

    yield choose
    mark.unlink()


def statuses(report):
    return [(o.id, o.status) for o in report.outcomes]


@pytest.mark.parametrize("backend", ["numpy", rnncore_numpy, stuck_plugin.AsObject(name="object")])
def test_outcomes_are_those_without_a_limit(backend, stuck):
    stuck("")
    only = ["RC-CON", "RC-SCAN-001", "RC-ANA"]
    here, there = (check_backend(backend, only=only, limit=limit) for limit in (None, LONG))
    assert there.ok and there.count("passed") > 10
    for one, other in zip(here.outcomes, there.outcomes, strict=True):
        assert (one.id, one.status, one.reason, one.error_eps) == (
            other.id,
            other.status,
            other.reason,
            other.error_eps,
        )
    assert (here.backend, here.device, here.versions) == (there.backend, there.device, there.versions)


@pytest.mark.parametrize("way", ["in Python", "natively"])
def test_a_check_that_hangs_fails_and_the_next_one_runs(stuck, way):
    started = []
    report = check_backend(stuck(way), only=HANG, limit=SHORT, on_start=lambda c, n, of: started.append((c.id, n, of)))
    assert statuses(report) == [(id, "failed") for id in HANG]
    for outcome in report.outcomes:
        assert outcome.reason.startswith("did not end in 0.5 s")
        assert outcome.seconds >= SHORT
    assert started == [(HANG[0], 1, 2), (HANG[1], 2, 2)]


def test_a_hang_can_be_expected(stuck):
    known = dict.fromkeys(HANG, "it is known to hang")
    report = check_backend(stuck("in Python"), only=HANG, limit=SHORT, expected_failures=known)
    assert report.ok and [o.status for o in report.outcomes] == ["expected to fail"] * 2
    assert report.outcomes[0].reason.startswith("it is known to hang: did not end in 0.5 s")


def test_a_check_that_crashes_its_process_fails_alone_and_shows_where(stuck):
    report = check_backend(stuck("crash"), only=AROUND, limit=LONG)
    assert statuses(report) == list(zip(AROUND, ["passed", "failed", "passed"], strict=True))
    reason = report.outcomes[1].reason
    assert re.fullmatch(
        r"the process was ended by SIGSEGV; it was in string_at \(ctypes/__init__.py:\d+\), called by crash "
        r"\(doubles/stuck_plugin.py:\d+\), called by synchronize \(.*\), called by synchronizes \(checks/contract.py:\d+\)",
        reason,
    )


def test_a_process_that_the_system_kills_has_not_exceeded_its_limit(stuck):
    report = check_backend(stuck("be killed"), only=AROUND, limit=LONG)
    assert statuses(report) == list(zip(AROUND, ["passed", "failed", "passed"], strict=True))
    assert report.outcomes[1].reason == "the process was ended by SIGKILL"


def test_a_signal_without_a_name_has_its_number():
    assert 32 not in set(signal.Signals)
    assert _fate("", -32) == "the process was ended by signal 32"


def test_a_limit_beyond_what_the_system_counts_is_none():
    assert check_backend("numpy", only=["RC-CON-010"], limit=sys.float_info.max).ok


@pytest.mark.parametrize("way", ["leave", "leave a child"])
def test_a_check_that_ends_its_process_fails_alone(stuck, way):
    report = check_backend(stuck(way), only=AROUND, limit=LONG)
    assert statuses(report) == list(zip(AROUND, ["passed", "failed", "passed"], strict=True))
    assert report.outcomes[1].reason == "the process ended with status 3"


def test_where_no_new_process_starts_the_rest_fails_with_the_reason(stuck):
    report = check_backend(stuck("leave for good"), only=AROUND, limit=LONG)
    assert [o.status for o in report.outcomes] == ["passed", "failed", "failed"]
    assert report.outcomes[2].reason == (
        "not run: the process did not start again: the process of the checks did not start: the process ended with status 4"
    )


def test_a_traceback_of_several_threads_shows_that_of_the_checks():
    text = (
        "Timeout (0:00:02)!\n"
        'Thread 0x01 (most recent call first):\n  File "/a/b/pool.py", line 3 in wait\n\n'
        'Thread 0x02 (most recent call first):\n  File "/a/b/c.py", line 5 in inner\n  File "/a/b/d.py", line 6 in outer\n'
        '  File "/x/rnncore/testing/session.py", line 7 in _fault\n  File "/x/rnncore/testing/worker.py", line 8 in serve\n\n'
        'Thread 0x03 (most recent call first):\n  File "/a/b/other.py", line 9 in wait\n'
    )
    assert _fate(text, 1, 2.0) == "did not end in 2 s; it was in inner (b/c.py:5), called by outer (b/d.py:6)"


@pytest.mark.parametrize(
    ("backend", "options", "error", "words"),
    [
        ("numpy", {"limit": 0}, ArgumentValueError, "limit: expected a finite number > 0"),
        ("numpy", {"limit": "1"}, ArgumentTypeError, "limit: expected a finite number > 0"),
        ("nunpy", {}, UnknownNameError, "Did you mean 'numpy'"),
        (object(), {}, ArgumentTypeError, "a name or a backend"),
        ("numpy", {"device": "cuda:7"}, DeviceError, "cuda:7"),
        ("numpy", {"kernel": "fast"}, UnknownNameError, "kernel: expected"),
        (Altered(rnncore_numpy, scans=lambda: None), {}, ArgumentTypeError, "or an object that can be pickled"),
        (sys.modules["__main__"], {}, ArgumentTypeError, "an importable module"),
        (stuck_plugin.AsObject(contract_version=3), {}, BackendUnavailableError, "speaks version 3"),
    ],
)
def test_errors_before_the_first_check_are_those_without_a_limit(backend, options, error, words):
    with pytest.raises(error, match=re.escape(words)):
        check_backend(backend, **{"limit": LONG, **options}, on_start=lambda *_: pytest.fail("a check ran"))


def test_a_backend_that_ends_the_first_process_is_an_error(stuck, tmp_path):
    (tmp_path / "no more").touch()
    with pytest.raises(BackendUnavailableError, match=r"the process of the checks did not start: .* status 4"):
        check_backend(stuck(""), limit=LONG)


def test_a_backend_of_a_script_is_refused_with_what_to_do():
    from tests.tools.process import python

    out = python("""
        import rnncore_numpy
        from rnncore.errors import BackendUnavailableError
        from rnncore.testing import check_backend
        class Mine:
            def __getattr__(self, name):
                return getattr(rnncore_numpy, name)
            def __reduce__(self):
                return Mine, ()
        try:
            check_backend(Mine(), limit=3600)
        except BackendUnavailableError as error:
            print(error)
    """)
    assert "must be moved to a module" in out and "Mine" in out


def test_what_a_script_does_is_not_done_again():
    """The process does not import the script, so that no guard is needed."""
    from tests.tools.process import python

    code = """
        from rnncore.testing import check_backend
        print(check_backend("numpy", only=["RC-CON-010"], limit=3600).summary)
    """
    assert python(code) == "1 ran: 1 passed, 0 failed, 0 expected to fail; 0 skipped"
