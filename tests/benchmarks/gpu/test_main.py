"""The check on a GPU: what it runs, how it ends and what it writes, on a machine without one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import rnncore
from benchmarks import tables
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import measure, parts
from benchmarks.gpu.suite import SUITES
from benchmarks.markdown import DASH
from tests.benchmarks.tools import gone
from tests.tools.places import FAKE, ROOT
from tests.tools.process import PATIENCE

PROGRAM = [sys.executable, "-m", "benchmarks.gpu"]
GPU = {"version": "14.2.0", "cuda": "13000, driver 13010", "devices": ["NVIDIA Some GPU", "NVIDIA Some GPU"]}
SOFTWARE = {
    "date": "2026-01-02",
    "versions": {"rnncore": rnncore.__version__, "numpy": "2.4"},
    "commit": "4002576",
    "source": "0123456789ab",
    "python": "3.11",
    "system": "Linux",
    "gpus": ["NVIDIA Some GPU, 580.65.06, 81559 MiB, 700.00 W"],
}
BAD = {"id": "RC-FWD-001", "rule": "right", "status": "failed", "reason": "off by\none"}


class Machine(parts.Machine):
    """Runs nothing: the suites end with the given statuses, and every shape has the given entry."""

    def __init__(self, statuses, sanitizer=0, entry=None, **others):
        self.end, self.cut = float("inf"), False
        self.statuses, self.sanitizer, self.entry = statuses, sanitizer, entry
        vars(self).update(others)

    def look(self):
        return {name: GPU if name in self.statuses else "RuntimeError: no | GPU" for name in parts.LIBRARIES}

    def conform(self, able):
        for name, suite in SUITES.items():
            if set(suite.needs) <= set(able):
                status = self.statuses[suite.needs[0]]
                whole = {"precision": "full", "device": "cuda:0"} if status is not None and status >= 0 else {}
                outcomes = ([{**BAD, "status": "passed"}] * 150 + [BAD] * status) if whole else []
                yield name, {"status": status, "words": "no time was left", "outcomes": outcomes, **whole}

    def sanitize(self, tool):
        return {"status": self.sanitizer, "words": "compute-sanitizer was not found"}

    def measure(self, shape, able, rounds):
        return self.entry


@pytest.fixture(autouse=True)
def described(monkeypatch):
    monkeypatch.setattr(parts, "described", lambda: dict(SOFTWARE))
    monkeypatch.setattr(measure, "SHAPES", measure.SHAPES[:1])


def entry(shape=(512, 64, 512), **peers):
    """A case as it is published: a list of seconds for each round, or (kind, reason)."""
    steps, batch, width = shape
    timed = {n: v for n, v in peers.items() if isinstance(v, list)}
    found = {n: {"seconds": dict.fromkeys(("forward", "both"), v), "first": {}, "errors": {}} for n, v in timed.items()}
    found |= {n: {"left_out": v[1], "kind": v[0]} for n, v in peers.items() if n not in timed}
    case = {"steps": steps, "batch": batch, "width": width, "device": "cuda"}
    made = tables.summary({"case": case, "peers": found}, (), measure.COMPARISONS)
    runs = "the kernel of backend 'cupy': grid_scan<float> linear grid_scan<float>"
    return made | {
        "about": dict.fromkeys(("rnncore_cupy", "rnncore_torch", "kernels"), runs),
        "peak": {n: {"both": 10 if n == "torch_cudnn" else 7} for n in timed},
        "kind": {n: v[0] for n, v in peers.items() if n not in timed},
    }


EVERY = {"rnncore_cupy": [2.0, 3.0, 100.0], "torch_cudnn": [5.0] * 3, "cupy_loop": [40.0] * 3}


def test_it_reports_where_there_is_no_gpu(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    out = tmp_path / "records"
    done = subprocess.run([*PROGRAM, "--output", str(out)], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2 and done.stdout == "" and not out.exists()
    assert done.stderr.splitlines()[-1] == (
        "No library sees a GPU on this machine: nothing was run and nothing is verified."
    )
    assert all(f"{name}: " in done.stderr for name in parts.LIBRARIES)


def test_it_refuses_the_stand_in_and_a_python_without_what_it_needs(monkeypatch, capsys):
    monkeypatch.setenv(command.STAND_IN, "2")
    assert command.main([]) == 2 and "stand-in" in capsys.readouterr().err
    monkeypatch.delenv(command.STAND_IN)
    find = command.importlib.util.find_spec
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda n: None if n == "array_api_compat" else find(n))
    assert command.main([]) == 2
    assert f"{sys.executable} has no array_api_compat: pip install" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(command, "entry_points", lambda group: [])
    assert command.unable().startswith(f"{sys.executable} has no backend 'cupy' of rnncore")


@pytest.mark.parametrize(
    ("statuses", "code", "headline"),
    [
        (
            {"cupy": 0, "torch": 0},
            0,
            "passed: conformance of cupy; cupy, kernels required; cupy, every kernel; torch; ",
        ),
        ({"torch": 0}, 0, "passed: conformance of torch"),
        ({"jax": 0, "torch": 1}, 1, "failed: conformance of torch"),
        ({"cupy": -11}, 1, "failed: conformance of cupy, conformance of cupy, kernels required, conf"),
    ],
)
def test_it_runs_what_sees_a_gpu_and_reports(tmp_path, statuses, code, headline):
    out = tmp_path / "gpu"
    assert command.check(out, Machine(statuses)) == code
    assert sorted(path.name for path in out.iterdir()) == ["report.json", "report.md"]
    report = (out / "report.md").read_text()
    assert headline in report.splitlines()[0]
    for text in (rnncore.__version__, "4002576", "0123456789ab", "580.65.06", "NVIDIA Some GPU, NVIDIA Some GPU"):
        assert text in report
    for name in set(parts.LIBRARIES) - set(statuses):
        assert f"| {name} | sees no GPU: RuntimeError: no / GPU |  |  |" in report
    for name, status in statuses.items():
        lines = [line for line in report.splitlines() if line.startswith(f"| {name} | ")]
        words = {
            0: "passed: 150 passed; ",
            1: "FAILED, status 1: 150 passed, 1 failed; ",
            -11: "FAILED, status -11: with",
        }
        assert "14.2.0" in lines[0] and words[status] in lines[-1]
        assert ("precision full on cuda:0" in lines[-1]) == (status >= 0)
        assert (f"- {name}: RC-FWD-001, right: off by one" in report) == (status == 1)
    record = json.loads((out / "report.json").read_text())
    assert record["libraries"].keys() == set(parts.LIBRARIES) and bool(record["failed"]) == (code == 1)


def test_it_reports_every_ratio_and_what_was_not_measured(tmp_path):
    failing = ("failed", "RuntimeError: no room")
    given = entry(**EVERY, rnncore_torch=[4.0] * 3, kernels=[6.0] * 3, operations=[5.0] * 3, jax_scan=failing)
    machine = Machine(dict.fromkeys(parts.LIBRARIES, 0), sanitizer=None, entry=given)
    assert command.check(tmp_path, machine) == 1
    report = (tmp_path / "report.md").read_text()
    # The median of the rounds' ratios counts: 5 / 3 is above 1 forward, and below 2 with the gradients; and so is memory.
    row = f"| 512, 64, 512 | {{}} | grid_scan | 3000 | {{}} (0.05{DASH}2.50){{}} ({{}}) "
    row += f"| not measured | 13.3 (0.40{DASH}20.0) (5) |"
    assert row.format("Forward", "1.67", "", 1) in report
    assert row.format("Forward + backward", "**1.67", "**", 2) + " **0.70** |" in report
    assert (
        "3 of 4 ratios reach their goal. Below it:\n\n- (512, 64, 512) Forward + backward against torch_cudnn\n"
        in report
    )
    assert "Not measured: jax_scan." in report and "- jax_scan at (512, 64, 512): RuntimeError: no room" in report
    assert "- memcheck: not finished: compute-sanitizer was not found" in report
    assert report.splitlines()[0].endswith("failed: jax_scan at (512, 64, 512), RuntimeError: no room")
    # What the rule for PyTorch's tensors picks, beside what is fastest.
    assert "| 512, 64, 512 | Forward | kernels | 4000 | 6000 | **5000** | 5000 |" in report
    given["about"] = {}
    assert command.check(tmp_path, machine) == 1
    rule = "| 512, 64, 512 | Forward | PyTorch's operations | 4000 | not measured | **5000** | 5000 |"
    assert rule in (tmp_path / "report.md").read_text()


def test_a_race_and_wrong_numbers_fail(tmp_path):
    wrong = "both: wrong by 1e+04 eps in x"
    given = entry(rnncore_cupy=("wrong", wrong), rnncore_torch=[1.0], torch_cudnn=("wrong", wrong), operations=[1.0])
    assert command.check(tmp_path, Machine({"cupy": 0, "torch": 0}, sanitizer=99, entry=given)) == 1
    assert json.loads((tmp_path / "report.json").read_text())["failed"] == [
        "memcheck of the kernels",
        "racecheck of the kernels",
        f"rnncore_cupy at (512, 64, 512), {wrong}",
    ]
    report = (tmp_path / "report.md").read_text()
    assert f"- torch_cudnn at (512, 64, 512): {wrong}" in report and "      compute-sanitizer was not found" in report
    assert "Not measured: rnncore_cupy, torch_cudnn, jax_scan, kernels, cupy_loop." in report


def test_the_report_is_written_after_each_part_and_a_part_that_dies_leaves_the_others(tmp_path):
    seen = []

    def sanitize(tool):
        seen.append(len(json.loads((tmp_path / "report.json").read_text())["conformance"]))
        assert (tmp_path / "report.md").read_text().startswith("# rnncore on a GPU")
        raise OSError("No space left on device")

    assert command.check(tmp_path, Machine({"cupy": 0}, entry=entry(**EVERY), sanitize=sanitize)) == 1
    record = json.loads((tmp_path / "report.json").read_text())
    assert seen == [3, 3] and len(record["benchmark"]) == 1
    assert record["failed"] == [f"{tool} (OSError: No space left on device)" for tool in ("memcheck", "racecheck")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_report_of_what_was_done(tmp_path, number):
    def measured(*given):
        raise command.Stopped(number)

    assert command.check(tmp_path, Machine({"cupy": 0}, measure=measured)) == 128 + number
    report = (tmp_path / "report.md").read_text()
    assert "unfinished, passed: conformance of cupy" in report.splitlines()[0]
    assert f"**Stopped by {signal.Signals(number).name}**" in report


def test_when_the_time_is_over_what_passes_or_fails_has_run_first(tmp_path):
    read = lambda: json.loads((tmp_path / "report.json").read_text())  # noqa: E731
    left = [3, 2, 0]
    assert command.check(tmp_path, Machine({"cupy": 0, "jax": 0}, left=lambda: left.pop(0))) == 3
    assert read()["stopped"] == "before racecheck, as the time was over" and len(read()["conformance"]) == 4
    # A failure is the more important news; a part that was cut short is no failure.
    left = [1, 0]
    assert command.check(tmp_path, Machine({"cupy": 1}, left=lambda: left.pop(0))) == 1
    assert command.check(tmp_path, Machine({"torch": None}, cut=True), ("conformance",)) == 3
    assert "| torch | not finished: no time was left: without a record |" in (tmp_path / "report.md").read_text()


def test_parts_run_one_by_one_and_are_kept_only_of_the_same_source(tmp_path, capsys, monkeypatch):
    machine = Machine({"cupy": 0}, entry=entry(**EVERY))
    read = lambda: tuple(len(json.loads((tmp_path / "report.json").read_text())[name]) for name in command.PARTS)  # noqa: E731
    for part, found in (("conformance", (3, 0, 0)), ("sanitizer", (3, 2, 0)), ("benchmark", (3, 2, 1))):
        assert command.check(tmp_path, machine, (part,)) == 0 and read() == found
    monkeypatch.setattr(parts, "described", lambda: {**SOFTWARE, "source": "another"})
    assert command.check(tmp_path, machine, ("sanitizer",)) == 0 and read() == (0, 2, 0)
    assert "report.json is of another source: nothing of it is kept" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_to_is_reported_before_anything_runs(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert command.check(tmp_path / "file" / "gpu", Machine({"cupy": 0}, conform=lambda able: 1 / 0)) == 1
    assert "The report cannot be written: " in capsys.readouterr().err


def test_a_report_that_can_no_longer_be_written_is_printed(tmp_path, capsys):
    out = tmp_path / "gpu"

    def sanitize(tool):
        shutil.rmtree(out, ignore_errors=True)
        out.touch()
        return {"status": 0, "words": ""}

    assert command.check(out, Machine({"cupy": 0}, sanitize=sanitize)) == 1
    assert capsys.readouterr().out.startswith("# rnncore on a GPU, 2026-01-02: passed: conformance of cupy")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc to look processes up in")
def test_ctrl_c_ends_the_part_that_runs(tmp_path):
    """The real command up to its first look, which hangs."""
    (tmp_path / "cupy.py").write_text(
        "import os, pathlib, time\npathlib.Path(os.environ['NOTE']).write_text(str(os.getpid()))\n"
        f"time.sleep({PATIENCE})\n"
    )
    note, out = tmp_path / "note", tmp_path / "out"
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "NOTE": str(note)}
    process = subprocess.Popen([*PROGRAM, "--output", str(out)], env=environment, cwd=ROOT)
    try:
        while not (note.exists() and note.read_text()) and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
    finally:
        process.kill()
    assert gone(int(note.read_text())) and not out.exists()


def test_the_page_in_docs_does_not_claim_what_was_not_done():
    assert (ROOT / "docs" / "gpu" / "README.md").read_text().startswith("Not yet verified on a GPU: ")
    assert FAKE.is_dir()
