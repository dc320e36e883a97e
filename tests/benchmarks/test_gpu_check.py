"""scripts/gpu-check and what it is made of: what it runs, how it ends and what it reports, on a machine without a GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

import rnncore
from tests.tools.fake_cupy import needs_real_cupy, on_fake_cupy, python
from tests.tools.places import DOUBLES, FAKE, ROOT

SCRIPT = ROOT / "scripts" / "gpu-check"


@pytest.fixture
def gpu_check(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    loader = SourceFileLoader("gpu_check", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("gpu_check", loader))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setitem(sys.modules, "gpu_check", module)  # where dataclasses look for their types
    loader.exec_module(module)
    return module


def test_gpu_check_says_where_there_is_no_gpu(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    out = tmp_path / "records"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--output", str(out)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines()[-1] == (
        "No library sees a GPU on this machine: nothing was run and nothing is verified."
    )
    for name in ("cupy", "torch", "jax"):
        assert f"{name}: " in done.stderr
    assert not out.exists()


def test_gpu_check_is_not_taken_in_by_the_stand_in(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(FAKE), "RNNCORE_FAKE_CUPY": "2"}
    command = [sys.executable, str(SCRIPT), "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 2 and "stand-in" in done.stderr and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["rnncore", "typer"])
def test_a_python_without_what_is_needed_is_not_taken_for_a_machine_without_a_gpu(
    gpu_check, monkeypatch, capsys, missing
):
    find = gpu_check.importlib.util.find_spec
    monkeypatch.setattr(gpu_check.importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    monkeypatch.delenv(gpu_check.STAND_IN, raising=False)
    assert gpu_check.main([]) == 2
    assert f"{sys.executable} has no {missing}: activate the environment" in capsys.readouterr().err


# --- what it runs and how it ends ----------------------------------------------------------------------------------------

GPU = {"version": "14.2.0", "cuda": "13000, driver 13010", "devices": ["NVIDIA Some GPU", "NVIDIA Some GPU"]}
SOFTWARE = {
    "date": "2026-01-02",
    "rnncore": rnncore.__version__,
    "commit": "4002576",
    "source": "0123456789ab",
    "numpy": "2.4",
    "python": "3.11",
    "system": "Linux x86_64",
    "gpus": ["NVIDIA Some GPU, 580.65.06, 81559 MiB, 700.00 W"],
}


def parts(gpu_check, statuses, sanitizer=0, measured=None, **others):
    """The check with nothing really run: conformance ends as told, the benchmark is a library's one record."""

    def conform(name, file):
        status = statuses[name.partition(",")[0]]
        if status is not None and status >= 0:
            counts = {"passed": 150, "failed": status, "skipped": 0}
            bad = {"id": "RC-FWD-001", "rule": "right", "status": "failed", "reason": "off by\none"}
            outcomes = [{**bad, "status": "passed"}] + status * [bad]
            file.write_text(
                json.dumps({"counts": counts, "precision": "full", "device": "cuda:0", "outcomes": outcomes})
            )
        return status

    given = {
        "look": lambda name: GPU if name in statuses else "RuntimeError: no | GPU",
        "conform": conform,
        "sanitize": lambda tool: {"status": sanitizer, "words": "compute-sanitizer was not found"},
        "measure": measured or (lambda name: []),
        "described": lambda: dict(SOFTWARE),
    }
    return gpu_check.Parts(**{**given, **others})


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
def test_gpu_check_runs_what_sees_a_gpu_and_reports(gpu_check, tmp_path, statuses, code, headline):
    out = tmp_path / "gpu"
    assert gpu_check.check(out, parts(gpu_check, statuses)) == code
    assert sorted(path.name for path in out.iterdir()) == ["report.json", "report.md"]
    report = (out / "report.md").read_text()
    assert headline in report.splitlines()[0]
    # Device, driver, versions and commit.
    for told in (rnncore.__version__, "4002576", "0123456789ab", "580.65.06", "NVIDIA Some GPU, NVIDIA Some GPU"):
        assert told in report
    for name in {"cupy", "torch", "jax"} - set(statuses):
        assert f"| {name} | sees no GPU: RuntimeError: no / GPU |  |  |" in report
    for name, status in statuses.items():
        assert any("14.2.0" in line for line in report.splitlines() if line.startswith(f"| {name} | "))
        line = [line for line in report.splitlines() if line.startswith(f"| {name} | ")][-1]
        told = {
            0: "passed: 150 passed; ",
            1: "FAILED, status 1: 150 passed, 1 failed; ",
            -11: "FAILED, status -11, with",
        }
        assert told[status] in line and ("precision full on cuda:0" in line) == (status >= 0)
        assert (f"- {name}: RC-FWD-001, right: off by one" in report) == (status == 1)
    record = json.loads((out / "report.json").read_text())
    assert record["libraries"].keys() == {"cupy", "torch", "jax"} and bool(record["failed"]) == (code == 1)


PASSES = ("forward", "forward and backward")


def records(library, ms, **others):
    """A round of a library's at one shape."""
    of = {"library": library, "shape": [512, 64, 512], "ms": ms, "error": 1e-7, "gradient_error": 1e-7, **others}
    return [{**of, "pass": which, "peak_bytes": 10 if library == "torch_cudnn" else 7} for which in PASSES]


def test_gpu_check_reports_every_ratio_and_what_was_not_measured(gpu_check, tmp_path):
    times = {"torch_cudnn": 5.0, "cupy_loop": 40.0, "rnncore_torch": 4.0}
    ours, order = [2.0, 3.0, 100.0], []

    def measured(name):
        order.append(name)
        if name == "jax_scan":
            return [{"library": name, "fault": "it ended with status 1: no room"}]
        if name == "rnncore_cupy":
            return records(name, ours.pop(0), runs="nonlinear grid_scan<float> linear grid_scan<float>")
        return records(name, times[name])

    every = dict.fromkeys(("cupy", "torch", "jax"), 0)
    assert gpu_check.check(tmp_path, parts(gpu_check, every, sanitizer=None, measured=measured)) == 1
    assert order == 3 * ["rnncore_cupy", "rnncore_torch", "torch_cudnn", "jax_scan", "cupy_loop"]
    report = (tmp_path / "report.md").read_text()
    # The median of the rounds' ratios counts: 5 / 3 is over 1 forwards, and under 2 with the gradients; so is memory.
    both = "3.000 [2.000, 100.000] | {} [0.05, 2.50] ({}) | not measured | 13.33 [0.40, 20.00] (5) | {} |"
    assert f"| 512, 64, 512 | forward | grid_scan | {both.format('1.67', 1, '')}" in report
    assert f"| 512, 64, 512 | forward and backward | grid_scan | {both.format('**1.67**', 2, '**0.70**')}" in report
    assert (
        "3 of 4 ratios reach their goal. Under it: \n- (512, 64, 512) forward and backward against torch_cudnn\n"
        in report
    )
    assert "Not measured: jax_scan." in report and "- jax_scan: it ended with status 1: no room" in report
    assert report.count("jax_scan: it ended") == 1 and "Medians of 3 rounds at most" in report
    assert "- memcheck: not run: compute-sanitizer was not found" in report
    assert report.splitlines()[0].endswith("failed: the benchmark of jax_scan")


def test_gpu_check_fails_by_a_race_and_by_wrong_numbers(gpu_check, tmp_path):
    wrong = {
        "rnncore_cupy": records("rnncore_cupy", 1.0, error=None),  # NaN
        "rnncore_torch": records("rnncore_torch", 1.0, gradient_error=1e-3),
        "torch_cudnn": records("torch_cudnn", 5.0, error=1e-3),  # as with TF32
    }
    given = {"sanitizer": 99, "measured": lambda name: wrong.get(name, [])}
    assert gpu_check.check(tmp_path, parts(gpu_check, {"cupy": 0, "torch": 0}, **given), rounds=1) == 1
    assert json.loads((tmp_path / "report.json").read_text())["failed"] == [
        "memcheck of the kernels",
        "racecheck of the kernels",
        "the states of rnncore_cupy at (512, 64, 512)",
        "the gradients of rnncore_torch at (512, 64, 512)",
    ]
    report = (tmp_path / "report.md").read_text()
    assert "- torch_cudnn at (512, 64, 512): its states are not those of float64" in report
    assert (
        "Not measured: torch_cudnn, jax_scan, cupy_loop." in report
        and "      compute-sanitizer was not found" in report
    )


def test_the_report_is_there_after_each_part_and_one_that_dies_takes_nothing_with_it(gpu_check, tmp_path):
    seen = []

    def sanitize(tool):
        seen.append(json.loads((tmp_path / "report.json").read_text())["conformance"].keys())
        assert (tmp_path / "report.md").read_text().startswith("# rnncore on a GPU")
        raise OSError("No space left on device")

    made = parts(gpu_check, {"cupy": 0}, measured=lambda name: records(name, 1.0), sanitize=sanitize)
    assert gpu_check.check(tmp_path, made) == 1
    assert seen == 2 * [{"cupy": 0, "cupy, kernels required": 0, "cupy, every kernel": 0}.keys()]
    record = json.loads((tmp_path / "report.json").read_text())
    assert record["failed"] == [f"{tool} (OSError: No space left on device)" for tool in ("memcheck", "racecheck")]
    assert len(record["benchmark"]) == 3 * 2 * 2  # rounds, libraries, passes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_report_of_what_was_done(gpu_check, tmp_path, number):
    def measured(name):
        if name == "cupy_loop":
            raise gpu_check.Stopped(number)
        return records(name, 1.0)

    assert gpu_check.check(tmp_path, parts(gpu_check, {"cupy": 0}, measured=measured)) == 128 + number
    report = (tmp_path / "report.md").read_text()
    assert "unfinished, passed: conformance of cupy" in report.splitlines()[0]
    assert (
        f"**Stopped by {signal.Signals(number).name}**" in report
        and "Not measured: torch_cudnn, jax_scan, cupy_l" in report
    )


def test_when_the_time_is_over_what_passes_or_fails_has_been_run_first(gpu_check, tmp_path):
    left, begun = [3, 2, 1, 0], []
    made = parts(gpu_check, {"cupy": 0, "jax": 0}, left=lambda: left.pop(0), measured=begun.append)
    assert gpu_check.check(tmp_path, made) == 3
    record = json.loads((tmp_path / "report.json").read_text())
    assert record["stopped"] == "before conformance of jax, as the time was over" and not begun
    assert list(record["conformance"]) == ["cupy", "cupy, kernels required", "cupy, every kernel"]
    # Something that failed is the more important news; a part that was cut short is no failure.
    sanitize = lambda tool: (begun.append(tool), {"status": 0, "words": ""})[1]  # noqa: E731
    made = parts(gpu_check, {"cupy": 1}, left=lambda: 0 if begun else 1, sanitize=sanitize)
    assert gpu_check.check(tmp_path, made) == 1
    made = parts(gpu_check, {"torch": None}, cut=lambda: True)
    assert gpu_check.check(tmp_path, made, ("conformance",)) == 3
    assert "| torch | not finished: no time was left |" in (tmp_path / "report.md").read_text()


def test_parts_can_be_run_one_by_one_and_are_kept_only_of_the_same(gpu_check, tmp_path, capsys):
    made = parts(gpu_check, {"cupy": 0}, measured=lambda name: records(name, 1.0))
    read = lambda: json.loads((tmp_path / "report.json").read_text())  # noqa: E731
    for part, found in (("conformance", (3, 0, 0)), ("sanitizer", (3, 2, 0)), ("benchmark", (3, 2, 12))):
        assert gpu_check.check(tmp_path, made, (part,)) == 0
        assert tuple(len(read()[name]) for name in gpu_check.PARTS) == found
    other = parts(gpu_check, {"cupy": 0}, described=lambda: {**SOFTWARE, "source": "another"})
    assert gpu_check.check(tmp_path, other, ("sanitizer",)) == 0
    assert "report.json is of another source: nothing of it is kept" in capsys.readouterr().err
    assert tuple(len(read()[name]) for name in gpu_check.PARTS) == (0, 2, 0)
    assert gpu_check.check(tmp_path, made) == 0 and len(read()["benchmark"]) == 12


def test_a_folder_that_cannot_be_written_to_is_told_before_anything_is_run(gpu_check, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    begun = []
    made = parts(gpu_check, {"cupy": 0}, conform=lambda name, file: begun.append(name))
    assert gpu_check.check(tmp_path / "file" / "gpu", made) == 1 and begun == []
    assert "The report cannot be written: " in capsys.readouterr().err


def test_a_report_that_can_no_longer_be_written_is_printed(gpu_check, tmp_path, capsys):
    out = tmp_path / "gpu"

    def sanitize(tool):
        shutil.rmtree(out, ignore_errors=True)
        out.touch()
        return {"status": 0, "words": ""}

    assert gpu_check.check(out, parts(gpu_check, {"cupy": 0}, sanitize=sanitize)) == 1
    assert capsys.readouterr().out.startswith("# rnncore on a GPU, 2026-01-02: passed: conformance of cupy")


# --- processes -----------------------------------------------------------------------------------------------------------


def gone(number):
    """Whether a process ends soon, or has; a zombie has."""
    for _ in range(100):
        try:
            if "State:\tZ" in Path(f"/proc/{number}/status").read_text():
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False


# Like compute-sanitizer: a program that starts another, which keeps the output open.
HANGS = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc to look processes up in")
@pytest.mark.parametrize(("limit", "minutes", "status"), [(4.0, None, 124), (50.0, 4 / 60, None)])
def test_a_part_that_hangs_is_ended_with_all_that_it_started(gpu_check, limit, minutes, status):
    runner = gpu_check.of.Runner(gpu_check.of.Clock(minutes))
    start = time.monotonic()
    done = runner.ended([sys.executable, "-c", HANGS], limit, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert time.monotonic() - start < 30
    assert done.status == status and gone(int(done.output)) and runner.clock.cut == (status is None)
    if status is None:
        assert runner.ended(["no such program"], 1.0) == gpu_check.of.Ended(None, "", "")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc to look processes up in")
def test_ctrl_c_ends_the_part_that_is_run(gpu_check, tmp_path):
    """The real script up to its first look, which hangs."""
    (tmp_path / "rnncore").mkdir()
    hang = "import os, pathlib, time\npathlib.Path(os.environ['TOLD']).write_text(str(os.getpid()))\ntime.sleep(60)\n"
    (tmp_path / "rnncore" / "__init__.py").write_text(hang)
    told = tmp_path / "told"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "TOLD": str(told)}
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, str(SCRIPT), "--output", str(out)], env=environment)
    try:
        deadline = time.monotonic() + 60
        while not (told.exists() and told.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
    assert gone(int(told.read_text())) and not out.exists()


def test_what_was_measured_before_a_benchmark_died_is_kept(gpu_check, monkeypatch):
    runner = gpu_check.of.Runner(gpu_check.of.Clock(None))
    out = '{"ms": 1.0}\n{"ms": 2.0}\n{"ms'
    ends = iter([(1, "Traceback\nMemoryError: no room"), (124, ""), (None, "")])

    def ended(*command, **options):
        status, errors = next(ends)
        return gpu_check.of.Ended(status, out, errors)

    monkeypatch.setattr(runner, "ended", ended)
    kept = [{"ms": 1.0}, {"ms": 2.0}]
    assert [runner.measure("jax_scan") for _ in range(3)] == [
        [*kept, {"library": "jax_scan", "fault": "it ended with status 1: MemoryError: no room"}],
        [*kept, {"library": "jax_scan", "fault": "it was stopped after 600 s: no word"}],
        [*kept, {"library": "jax_scan", "cut": "no time was left"}],
    ]


def test_the_sanitizer_is_found_where_pip_puts_it(gpu_check, tmp_path, monkeypatch):
    of = gpu_check.of
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    program = tmp_path / "nvidia" / "cu13" / "bin" / "compute-sanitizer"
    program.parent.mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    runner = of.Runner(of.Clock(None))
    assert runner.sanitize("memcheck") == {"status": None, "words": "compute-sanitizer was not found"}
    program.write_text('#!/bin/sh\necho "$1 $2 $4"; exit 99\n')
    program.chmod(0o755)
    assert runner.sanitize("racecheck") == {"status": 99, "words": "--tool racecheck 99"}


def test_a_report_says_of_which_source_and_machine_it_is(gpu_check):
    told = gpu_check.of.described()
    assert told["rnncore"] == rnncore.__version__ and len(told["source"]) == 12 and told["gpus"]
    assert told["commit"] == "unknown" or len(told["commit"].split()[0]) == 40
    assert set(gpu_check.SAME) <= {*told, "libraries"}


# --- what is run ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["torch_cudnn", "rnncore_torch", "jax_scan", "rnncore_cupy", "cupy_loop"])
def test_what_the_gpu_check_measures_runs_and_computes_the_same(library):
    """On the CPU, and on the stand-in: the times are no GPU's, the numbers are the network's."""
    environment = dict(os.environ)
    if "cupy" in library:
        environment |= {"PYTHONPATH": str(FAKE), "RNNCORE_FAKE_CUPY": "1"}
    command = [sys.executable, "-m", "benchmarks.gpu", library, "--device", "cpu", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(r["shape"], r["pass"]) for r in records] == [
        (shape, which) for shape in ([7, 3, 5], [4, 2, 9]) for which in ("forward", "forward and backward")
    ]
    for record in records:
        assert record["library"] == library and 0 < record["error"] < 64 * 2.0**-23
        assert 0 < record["gradient_error"] < 64 * 2.0**-23
        assert ("block_scan<float" in record.get("runs", "")) == (library == "rnncore_cupy")


def test_wrong_numbers_and_a_shape_that_fails_are_seen_before_anything_is_timed():
    from benchmarks import gpu

    library = gpu.MAKE["torch_cudnn"]("cpu")
    both, asked = library.both, []

    def broken():
        asked.append(library.x.shape[-1])
        if library.x.shape[-1] == 5:
            raise RuntimeError("CUDA out\nof memory")
        output, gradients = both()
        return output, {**gradients, "bias_hh_l0": 2 * gradients["bias_hh_l0"], "x": gradients["x"] * float("nan")}

    library.both = broken
    found = list(gpu.measured(library, gpu.QUICK, 3))
    assert found[0] == {"shape": [7, 3, 5], "fault": "RuntimeError: CUDA out of memory"} and asked[:2] == [5, 9]
    assert [r["gradient_error"] for r in found[1:]] == [None, None] and found[1]["error"] < 64 * 2.0**-23


def test_no_product_of_the_benchmark_is_rounded():
    code = """
import os, sys
from benchmarks import gpu
gpu.main(["torch_cudnn", "--device", "cpu", "--quick"])
import torch
b = torch.backends
assert not b.cudnn.allow_tf32 and not b.cuda.matmul.allow_tf32
for part in (b.cudnn.rnn, b.cudnn.conv, b.cuda.matmul):
    assert getattr(part, "fp32_precision", "ieee") in ("ieee", "none"), part
assert (os.environ["NVIDIA_TF32_OVERRIDE"], os.environ["CUPY_TF32"]) == ("0", "0")
"""
    environment = {**os.environ, "NVIDIA_TF32_OVERRIDE": "1", "CUPY_TF32": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


def test_what_the_sanitizer_watches_runs(gpu_check):
    """On the stand-in: every regime is among what it launches, and no pool hides what is past the end of an array."""
    code = "import cupy; allocators = []; cupy.cuda.set_allocator = allocators.append\n" + gpu_check.of.SMALL
    code += """
from cupy import _raw
assert allocators == [None]
names = {launch["name"].partition("<")[0] for launch in _raw.launches}
assert names == {"block_scan", "grid_scan", "step_alone"}, names
"""
    path = os.pathsep.join([str(FAKE), str(ROOT), str(DOUBLES)])
    python(code, PYTHONPATH=path, RNNCORE_FAKE_CUPY="1")


@needs_real_cupy
def test_the_real_cupy_has_what_is_measured_with():
    """Names that no CPU can call, and the memory hook's own, which can be."""
    code = """
import cupy
cuda = cupy.cuda
for name in ("Event", "Device", "MemoryHook", "get_elapsed_time", "set_allocator"):
    assert hasattr(cuda, name), name
for owner, name in ((cuda.Event, "record"), (cuda.Event, "synchronize"), (cuda.Device, "synchronize")):
    assert hasattr(owner, name), name
for name in ("malloc_postprocess", "free_postprocess"):
    assert hasattr(cuda.MemoryHook, name), name
for name in ("full", "eye", "dot", "stack", "zeros_like", "ones"):
    assert hasattr(cupy, name), name
for name in ("getDeviceProperties", "runtimeGetVersion", "driverGetVersion"):
    assert hasattr(cuda.runtime, name), name
"""
    python(code)


def test_gpu_check_asks_for_each_librarys_own_gpu(gpu_check, tmp_path, monkeypatch):
    of, calls = gpu_check.of, {}
    runner = of.Runner(of.Clock(None))

    def ended(command, limit, environment):
        calls[name] = command[2 if name == "cupy, every kernel" else 3 : -2], environment
        return of.Ended(0, "", "")

    monkeypatch.setattr(runner, "ended", ended)
    for name in of.CONFORMANCE:
        assert runner.conform(name, tmp_path / "x.json") == 0
    assert calls == {
        "cupy": (["conform", "cupy"], {}),
        "cupy, kernels required": (["conform", "cupy", "--kernel", "require", *of.REFUSED], {}),
        "cupy, every kernel": ([], {}),
        "torch": (["conform", "torch", "--device", "cuda"], {"RNNCORE_TORCH_CUDA": "rule"}),
        "torch, on the kernels": (["conform", "torch", "--device", "cuda"], {"RNNCORE_TORCH_CUDA": "kernels"}),
        "jax": (["conform", "jax", "--device", "cuda"], {"JAX_ENABLE_X64": "1"}),
    }
    assert {name: suite.needs for name, suite in of.CONFORMANCE.items() if "kernels" in name} == {
        "cupy, kernels required": ("cupy",),
        "torch, on the kernels": ("torch", "cupy"),
    }


@pytest.mark.parametrize("name", ["cupy", "cupy, kernels required"])
def test_gpu_check_speaks_the_commands_language(gpu_check, tmp_path, monkeypatch, name):
    # The run alone, which is not asked what it is that has the devices.
    monkeypatch.setenv("PYTHONPATH", str(FAKE))
    monkeypatch.setenv("RNNCORE_FAKE_CUPY", "2")
    of = gpu_check.of
    assert of.Runner(of.Clock(None)).conform(name, tmp_path / "cupy.json") == 0
    record = json.loads((tmp_path / "cupy.json").read_text())
    assert record["counts"]["failed"] == 0 and (record["precision"], record["device"]) == ("full", "cuda:0")
    required = "required" in name
    assert record["counts"]["expected to fail"] == (len(of.WITHOUT_KERNEL) if required else 0)
    assert record["kernel"] == ("require" if required else "auto") and record["counts"]["passed"] > 150


@on_fake_cupy(devices=1)
def test_every_kernel_is_held_against_float64():
    import tempfile

    from rnncore_cupy import CupyScans

    sys.path.insert(0, str(SCRIPT.parent))
    import gpu_kernels

    file = Path(tempfile.mkdtemp()) / "record.json"

    def record():
        status = gpu_kernels.main(["--json", str(file)])
        found = json.loads(file.read_text())
        failed = [o["id"] for o in found["outcomes"] if o["status"] == "failed"]
        assert found["counts"]["failed"] == len(failed) and status == bool(failed)
        return found, failed

    every = {"float32": gpu_kernels.EVERY_FUNCTION, "float16": ((7, 3, 37),)}
    gpu_kernels.DTYPES, small = every, {"float32": ((7, 3, 37),)}
    found, failed = record()
    assert failed == [] and found["counts"]["passed"] == (3 + 1) * 5 * 2 + 1
    assert found["device"] == "cuda:0, 10 of block_scan, 5 of grid_scan, 5 of step_alone"
    gpu_kernels.DTYPES = small
    found, failed = record()
    assert failed == ["kernels"] and found["outcomes"][-1]["reason"] == "never run: grid_scan, step_alone"
    # One number, some 1000 roundings away; a NaN; and another in the second run, as by a race.
    right = CupyScans.nonlinear
    for wrongs in ((1e-4, 1e-4), (float("nan"),) * 2, (0.0, 1e-7)):
        runs = iter(wrongs * 100)

        def wrong(self, p, h0, w_hh, /, *, nonlinearity, reverse, runs=runs):
            out = right(self, p, h0, w_hh, nonlinearity=nonlinearity, reverse=reverse)
            if nonlinearity.name == "sigmoid" and reverse:
                out._host[2, 1, 3] += next(runs)
            return out

        CupyScans.nonlinear = wrong
        assert record()[1] == ["sigmoid (7, 3, 37) float32 backwards", "kernels"]
    CupyScans.nonlinear = right

    def fail(*request):
        raise RuntimeError("no nvrtc")

    CupyScans.explain = fail
    assert record()[1][:2] == ["linear (7, 3, 37) float32", "tanh (7, 3, 37) float32"]
    shutil.rmtree(file.parent)


def test_gpu_docs_do_not_claim_what_was_not_done():
    assert (ROOT / "docs" / "gpu" / "README.md").read_text().startswith("Not yet verified on a GPU: ")
    assert os.access(SCRIPT, os.X_OK)
