"""``rnncore conform``: a run, its files and its errors."""

import json

import pytest

from tests.tools.command import rnn


@pytest.mark.slow
def test_jax_by_the_command_with_float64():
    """JAX has float64 only in a process that asks for it before anything else."""
    done = rnn("conform", "jax", "--json", "-", env={"JAX_ENABLE_X64": "1"})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] and report["counts"]["failed"] == 0
    assert {o["dtype"] for o in report["outcomes"]} >= {"float32", "float64"}
    assert all(o["status"] == "passed" for o in report["outcomes"] if o["id"].startswith("RC-SECOND"))


@pytest.mark.parametrize("kernel", ["auto", "require"])
def test_the_command_prints_the_report_and_writes_it(tmp_path, kernel):
    done = rnn("conform", "numpy", "--only", "RC-SCAN-001", "--only", "RC-ANA", "--kernel", kernel,
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
def test_the_command_names_what_is_wrong_in_one_line(call, arguments, status, words):
    done = call("conform", *arguments)
    assert done.returncode == status and done.stdout == ""
    assert words in done.stderr and done.stderr.count("\n") == 1


def test_the_command_fails_where_a_check_does_and_where_none_ran():
    stale = rnn("conform", "numpy", "--only", "RC-ANA-001", "--expect-failure", "RC-ANA-001=issue 3")
    assert stale.returncode == 1 and "expected to fail (issue 3), and passed" in stale.stdout
    nothing = rnn("conform", "strict", "--only", "RC-KER-001")
    assert nothing.returncode == 1 and nothing.stdout.startswith("0 ran") and "no check ran" in nothing.stdout
