"""The suite on the backends that ship, by each of its front doors; the command; the page made from its runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from rnncore.testing import CAPABILITIES, CHECKS, TOLERANCES, BackendConformance, check_backend
from tests.tools.places import ROOT

MAIN = "from rnncore.commands.cli import main; main()"
# The promise is 60 s on two cores; here other tests may be running beside it.
SECONDS = 240


class TestNumPy(BackendConformance):
    backend = "numpy"


class TestNumPyReference(BackendConformance):
    backend = "numpy"
    kernel = "reference"


class TestNumba(BackendConformance):
    backend = "numba"


class TestTorch(BackendConformance):
    backend = "torch"


class TestTorchReference(BackendConformance):
    backend = "torch"
    kernel = "reference"


class TestStrict(BackendConformance):
    backend = "strict"


def command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", MAIN, "conform", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=SECONDS,
        check=False,
    )


def test_jax_by_the_command_with_float64():
    """JAX has float64 only in a process that asks for it before anything else."""
    done = command("jax", "--json", "-", JAX_ENABLE_X64="1")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] and report["counts"]["failed"] == 0
    assert {o["dtype"] for o in report["outcomes"]} >= {"float32", "float64"}
    assert all(o["status"] == "passed" for o in report["outcomes"] if o["id"].startswith("RC-SECOND"))


def test_there_are_at_least_80_checks_and_12_relations():
    assert len(CHECKS) >= 80
    assert len([c for c in CHECKS.values() if c.group == "META"]) >= 12


def test_ids_are_stable_and_rules_are_one_line():
    for id, check in CHECKS.items():
        assert re.fullmatch(r"RC-[A-Z]+-\d{3}", id) and check.id == id
        assert 10 < len(check.rule) < 125 and "\n" not in check.rule
        assert not check.rule[0].isupper() or check.rule.split()[0].isupper() or "NaN" in check.rule
        assert set(check.needs) <= set(CAPABILITIES) and check.tolerance in TOLERANCES
    rules = [c.rule for c in CHECKS.values()]
    assert len(set(rules)) > 0.9 * len(rules)


def test_numbers_of_a_group_are_consecutive():
    for group in {c.group for c in CHECKS.values()}:
        numbers = [int(i[-3:]) for i, c in CHECKS.items() if c.group == group]
        assert numbers == list(range(1, len(numbers) + 1)), group


def test_largest_errors_are_well_within_what_is_allowed():
    """DESIGN.md section 6: a correct backend has a few eps of the 64; more means that a check measures itself."""
    for backend in ("numpy", "torch", "strict"):
        worst = check_backend(backend).worst
        assert worst is not None and 0 < worst.error_eps < 40, worst


@pytest.mark.parametrize("kernel", ["auto", "require"])
def test_the_command_prints_the_report_and_writes_it(tmp_path, kernel):
    done = command("numpy", "--only", "RC-SCAN-001", "--only", "RC-ANA", "--kernel", kernel,
                   "--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html"))  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "7 ran: 7 passed, 0 failed, 0 expected to fail; 0 skipped"
    assert f"kernel='{kernel}'" in lines[1] and "largest error" in lines[1]
    assert lines[3].startswith("RC-SCAN-001") and len(lines) == 10
    assert json.loads((tmp_path / "r.json").read_text())["ok"] is True
    page = (tmp_path / "r.html").read_text()
    assert page.startswith("<!doctype html>") and "RC-ANA-006" in page and "http" not in page


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["nump"], 2, "Did you mean 'numpy'?"),
        (["numpy", "--only", "RC-NOTHING"], 2, "expected the id of a check"),
        (["numpy", "--kernel", "fast"], 2, "kernel: expected one of auto, reference, require, got 'fast'"),
        (["numpy", "--device", "gpu"], 2, "device: expected one of cpu"),
        (["numpy", "--json", "/no/such/folder/x"], 2, "--json: expected a file that can be written"),
        (["numpy", "--expect-failure", "RC-ANA-001"], 2, "expected ID=REASON"),
        (["numpy", "--expect-failure", "RC-X-001=why"], 2, "no check has the id 'RC-X-001'"),
        ([], 2, "Missing argument"),
    ],
)
def test_the_command_names_what_is_wrong_in_one_line(arguments, status, words):
    done = command(*arguments)
    assert done.returncode == status and done.stdout == ""
    assert words in done.stderr and done.stderr.count("\n") == 1


def test_the_command_fails_where_a_check_does_and_where_none_ran():
    stale = command("numpy", "--only", "RC-ANA-001", "--expect-failure", "RC-ANA-001=issue 3")
    assert stale.returncode == 1 and "expected to fail (issue 3), and passed" in stale.stdout
    nothing = command("strict", "--only", "RC-KER-001")
    assert nothing.returncode == 1 and nothing.stdout.startswith("0 ran") and "no check ran" in nothing.stdout


def test_the_page_has_a_row_for_every_check_and_no_failure():
    """docs/conformance.py writes it; a check added since is missing there."""
    page = (ROOT / "docs" / "conformance.md").read_text()
    rows = re.findall(r"^\| (RC-[A-Z]+-\d{3}) \| (.*?) \|", page, re.M)
    assert [id for id, _ in rows] == list(CHECKS)
    assert "✗" not in page and page.count("0 failed") >= 4
