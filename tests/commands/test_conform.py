"""``rnncore conform``: a run, its files and its errors."""

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from tests.tools.command import PLAIN, on_a_terminal, rnn
from tests.tools.places import DOUBLES
from tests.tools.process import PATIENCE

STUCK = ("--only", "RC-CON-010", "--only", "RC-CON-011", "--only", "RC-CON-012")


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
        (["numpy", "--json-lines", "/no/such/folder/x"], 2, "--json-lines: expected a file that can be written"),
        (
            ["numpy", "--json-lines", "-", "--json", "-"],
            2,
            "--json-lines: expected another file than --json's, got '-'",
        ),
        (["numpy", "--json", "x", "--html", "./x"], 2, "--html: expected another file than --json's, got './x'"),
        (["numpy", "--limit", "0"], 2, "limit: expected a finite number > 0"),
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


def test_a_log_has_a_line_for_each_check():
    done = rnn("conform", "numpy", "--only", "RC-CON-012", "--only", "RC-TYPE-004",
               "--only", "RC-ANA-001", "--expect-failure", "RC-ANA-001=issue 3")  # fmt: skip
    lines = done.stderr.splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["[1/3]", "RC-CON-012", "passed"],
        ["[2/3]", "RC-TYPE-004", "skipped"],
        ["[3/3]", "RC-ANA-001", "failed"],
    ]
    assert lines[2].endswith("take it off the list")


def test_a_terminal_has_a_bar_and_no_log():
    shown, report = on_a_terminal("conform", "numpy", "--only", "RC-ANA", stream="stderr")
    assert "RC-ANA-006" in shown and "6/6" in shown
    assert "passed in" not in shown and report.startswith("6 ran: 6 passed")


@pytest.mark.parametrize("limit", [(), ("--limit", "3600")])
def test_lines_of_json_go_to_a_file_or_to_standard_output_alone(tmp_path, limit):
    path = tmp_path / "lines"
    done = rnn("conform", "numpy", "--only", "RC-ANA", "--json-lines", str(path), *limit)
    assert done.returncode == 0 and done.stdout.startswith("6 ran")
    written = [json.loads(line) for line in path.read_text().splitlines()]
    events = ["plan", *["started", "outcome"] * 6, "summary"]
    assert [line["event"] for line in written] == events
    assert written[0]["limit"] == (3600 if limit else None)
    done = rnn("conform", "numpy", "--only", "RC-ANA", "--json-lines", "-", *limit)
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()] == events


def test_a_page_goes_to_standard_output_alone():
    done = rnn("conform", "numpy", "--only", "RC-ANA-001", "--html", "-")
    assert done.returncode == 0 and done.stdout.startswith("<!doctype html>") and done.stdout.endswith("</html>\n")


def test_a_run_that_does_not_begin_leaves_the_lines_of_the_last_one(call, tmp_path):
    path = tmp_path / "lines"
    path.write_text("of the last run")
    assert call("conform", "nump", "--json-lines", str(path)).returncode == 2
    assert path.read_text() == "of the last run"


@contextmanager
def stuck(folder, way, *options):
    """The command on a backend that gets stuck in RC-CON-011, once it is there: the process and its lines so far."""
    (folder / "stuck-1.0.dist-info").mkdir()
    (folder / "stuck-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: stuck\nVersion: 1.0\n")
    entry = "[rnncore.backends]\nstuck = stuck_plugin\n"
    (folder / "stuck-1.0.dist-info" / "entry_points.txt").write_text(entry)
    # A shell starts jobs in the background with Ctrl-C ignored, and what they start inherits that.
    heeding = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heeding}; import sys; from rnncore.commands.cli import main; sys.exit(main())"
    path = os.pathsep.join([str(folder), str(DOUBLES), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", code, "conform", "stuck", *STUCK, "--json-lines", "-", *options]
    pipe, environment = subprocess.PIPE, {**PLAIN, "PYTHONPATH": path, "STUCK": way}
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, encoding="utf-8", env=environment) as process:
        guard = threading.Timer(PATIENCE, process.kill)  # for lines that never come
        guard.start()
        try:
            lines = []
            for line in process.stdout:
                lines.append(json.loads(line))
                if (lines[-1]["event"], lines[-1].get("id")) == ("started", "RC-CON-011"):
                    break
            yield process, lines
        finally:
            guard.cancel()
            process.kill()


@pytest.mark.parametrize(
    ("way", "options", "number", "status"),
    [
        ("in Python", (), signal.SIGINT, 130),
        pytest.param("in Python", ("--limit", "3600"), signal.SIGINT, 130, marks=pytest.mark.slow),
        ("natively", ("--limit", "3600"), signal.SIGINT, 130),
        ("natively", ("--limit", "3600"), signal.SIGTERM, 143),
        pytest.param("natively", (), signal.SIGTERM, -signal.SIGTERM, marks=pytest.mark.slow),
        ("natively", (), signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_an_interrupted_run_says_what_passed_and_what_hung(tmp_path, way, options, number, status):
    with stuck(tmp_path, way, "--json", str(tmp_path / "report"), *options) as (process, before):
        process.send_signal(number)
        after = [json.loads(line) for line in process.stdout]
        log = process.stderr.read()
        assert process.wait() == status
    assert before[0]["checks"] == list(STUCK[1::2])
    assert [(line["event"], line["id"], line.get("status")) for line in before[1:]] == [
        ("started", "RC-CON-010", None),
        ("outcome", "RC-CON-010", "passed"),
        ("started", "RC-CON-011", None),
    ]
    assert "[2/3] RC-CON-011" in log and "Traceback" not in log
    if status < 0:  # the system has ended it
        assert not after
        return
    (summary,) = after
    assert summary["event"] == "summary" and summary["ok"] is False
    assert summary["not_run"] == ["RC-CON-011", "RC-CON-012"]
    assert json.loads((tmp_path / "report").read_text())["counts"]["passed"] == 1


def test_a_check_that_hangs_is_named_and_the_status_is_that_of_a_failure(tmp_path):
    with stuck(tmp_path, "natively", "--only", "RC-CON-007", "--limit", "0.5") as (process, before):
        after = [json.loads(line) for line in process.stdout]
        assert process.wait() == 1
    hung = [line for line in before + after if line.get("status") == "failed"]
    assert {line["id"] for line in hung} >= {"RC-CON-007", "RC-CON-011"}
    assert all(line["reason"].startswith("did not end in 0.5 s") for line in hung)
