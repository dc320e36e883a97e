"""The suite under pytest: on the backends that ship, and as the author of a plugin uses it."""

import os
import re
import subprocess
import sys
import textwrap
from importlib import metadata

import pytest

from rnncore.errors import ArgumentTypeError, UnknownNameError
from rnncore.testing import CHECKS, BackendConformance, check_backend
from tests.tools.places import DOUBLES
from tests.tools.process import PATIENCE


class TestNumPy(BackendConformance):
    backend = "numpy"


@pytest.mark.slow
class TestNumPyReference(BackendConformance):
    backend = "numpy"
    kernel = "reference"


class TestNumba(BackendConformance):
    backend = "numba"


class TestTorch(BackendConformance):
    backend = "torch"


@pytest.mark.slow
class TestTorchReference(BackendConformance):
    backend = "torch"
    kernel = "reference"


class TestStrict(BackendConformance):
    backend = "strict"


QUICK = "RC-SCAN-001"
KNOWN = "a known fault"


def pytest_of(folder, body, *tests):
    """(exit code, counts by outcome, output) of a test file in a process of its own."""
    path = folder / "test_mine.py"
    path.write_text("from rnncore.testing import BackendConformance\n" + textwrap.dedent(body))
    nodes = [f"{path}::{test}" for test in tests] or [str(path)]
    # In the order of the file, also where pytest-randomly is installed: a test may look at what those above it did.
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:randomly", f"--rootdir={folder}"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *nodes],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(DOUBLES), *sys.path]), "PYTEST_ADDOPTS": ""},
        timeout=PATIENCE,  # for a limit that does not work
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


ONCE = """
    from rnncore.testing import conformance
    tried, Run = [], conformance.Run
    conformance.Run = lambda *given, **options: tried.append(given) or Run(*given, **options)
    class TestMissing(BackendConformance):
        backend = "nunpy"
    def test_that_it_was_tried_once():
        assert tried == [("nunpy",)]
"""


def test_a_backend_that_cannot_be_used_is_tried_once(tmp_path):
    _, counts, output = pytest_of(tmp_path, ONCE)
    assert (counts["passed"], counts["failed"]) == (1, len(CHECKS) + 1), output


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


LIMITED = """
    import os
    os.environ["STUCK"] = "natively"
    class TestHung(BackendConformance):
        import stuck_plugin as backend
        limit = 0.5
    class TestFine(BackendConformance):
        backend = "numpy"
        limit = 3600
"""


def test_with_a_limit_a_check_that_hangs_fails(tmp_path):
    ids = [*one("TestHung", "RC-CON-007", "RC-CON-011"), *one("TestFine", QUICK, "RC-TYPE-004")]
    code, counts, output = pytest_of(tmp_path, LIMITED, *ids)
    assert code == 1
    assert counts | {"in": 0} == {"failed": 2, "passed": 1, "skipped": 1, "in": 0}, output
    assert output.count("did not end in 0.5 s") >= 2
