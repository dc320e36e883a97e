"""scripts/gpu-check and what it is made of: what it runs, how it ends and what it reports, on a machine without a GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from importlib.machinery import SourceFileLoader

import pytest
from test_cupy_backend import FAKE, HERE, python

import rnncore

SCRIPT = HERE.parent / "scripts" / "gpu-check"


@pytest.fixture
def gpu_check(monkeypatch):
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


GPU = {"version": "14.2.0", "cuda": "13000, driver 13010", "devices": ["NVIDIA Some GPU", "NVIDIA Some GPU"]}


def parts(gpu_check, statuses, sanitizer=0, measured=None):
    """The check with nothing really run: conformance ends as told, the benchmark is a library's one record."""

    def conform(name, file):
        if statuses[name] >= 0:
            counts = {"passed": 150, "failed": statuses[name], "skipped": 0}
            file.write_text(json.dumps({"counts": counts, "precision": "full", "device": "cuda:0"}))
        return statuses[name]

    return gpu_check.Parts(
        look=lambda name: GPU if name in statuses else "RuntimeError: no | GPU",
        conform=conform,
        sanitize=lambda tool: {"status": sanitizer, "words": "compute-sanitizer was not found"},
        measure=measured or (lambda name: []),
    )


@pytest.mark.parametrize(
    ("statuses", "code", "headline"),
    [
        ({"cupy": 0, "torch": 0}, 0, "passed: cupy, torch"),
        ({"cupy": 0, "torch": 1}, 1, "failed: conformance of torch"),
        ({"cupy": -11}, 1, "failed: conformance of cupy"),
    ],
)
def test_gpu_check_runs_what_sees_a_gpu_and_reports(gpu_check, tmp_path, statuses, code, headline):
    out = tmp_path / "gpu"
    assert gpu_check.check(out, parts(gpu_check, statuses)) == code
    assert sorted(path.name for path in out.iterdir()) == ["report.json", "report.md"]
    report = (out / "report.md").read_text()
    assert report.splitlines()[0].endswith(headline) and rnncore.__version__ in report
    assert "| jax |  |  |  | not run: RuntimeError: no / GPU |" in report
    for name, status in statuses.items():
        line = next(line for line in report.splitlines() if line.startswith(f"| {name} "))
        assert "14.2.0" in line and "NVIDIA Some GPU, NVIDIA Some GPU" in line
        told = {
            0: "passed: 150 passed; ",
            1: "FAILED, status 1: 150 passed, 1 failed; ",
            -11: "FAILED, status -11, with",
        }
        assert told[status] in line and ("precision full on cuda:0" in line) == (status >= 0)
    record = json.loads((out / "report.json").read_text())
    assert record["libraries"]["cupy"] == GPU and bool(record["failed"]) == (code == 1)


def test_gpu_check_reports_every_ratio_and_what_was_not_measured(gpu_check, tmp_path):
    times = {"rnncore_cupy": (2.0, 3.0, 100.0), "torch_cudnn": 5.0, "cupy_loop": 40.0, "rnncore_torch": 4.0}

    def measured(name):
        if name == "jax_scan":
            return [{"library": name, "fault": "it ended with status 1: no room"}]
        one = times[name] if isinstance(times[name], float) else rounds.pop(0)
        of = {"library": name, "shape": [512, 64, 512], "ms": one, "least_ms": one, "error": 1e-7}
        return [{**of, "pass": which, "peak_bytes": 10 if name == "torch_cudnn" else 7} for which in PASSES]

    PASSES, rounds = ("forward", "forward and backward"), list(times["rnncore_cupy"])
    every = dict.fromkeys(("cupy", "torch", "jax"), 0)
    assert gpu_check.check(tmp_path, parts(gpu_check, every, sanitizer=None, measured=measured)) == 1
    report = (tmp_path / "report.md").read_text()
    # The median round counts: 5 / 3 is over 1 forwards, and under 2 with the gradients; and memory is over its goal.
    assert "| 512, 64, 512 | forward | 3.000 | 1.67 (1) | not measured | 13.33 (5) |  | 4.000 |" in report
    assert (
        "| 512, 64, 512 | forward and backward | 3.000 | **1.67** (2) | not measured | 13.33 (5) | **0.70** |" in report
    )
    assert "Not measured: jax_scan." in report and "- jax_scan: it ended with status 1: no room" in report
    assert report.count("jax_scan: it ended") == 1
    assert "- memcheck: not run: compute-sanitizer was not found" in report
    assert report.splitlines()[0].endswith("failed: the benchmark of jax_scan")


def test_gpu_check_fails_by_a_race_and_by_wrong_states(gpu_check, tmp_path):
    wrong = {"library": "rnncore_cupy", "shape": [7, 3, 5], "pass": "forward", "ms": 1.0, "error": float("nan")}
    measured = lambda name: [wrong] if name == "rnncore_cupy" else []  # noqa: E731
    assert gpu_check.check(tmp_path, parts(gpu_check, {"cupy": 0}, sanitizer=1, measured=measured)) == 1
    assert json.loads((tmp_path / "report.json").read_text())["failed"] == [
        "memcheck of the kernels",
        "racecheck of the kernels",
        "the states of rnncore_cupy at (7, 3, 5)",
    ]


@pytest.mark.parametrize("library", ["torch_cudnn", "rnncore_torch", "jax_scan", "rnncore_cupy", "cupy_loop"])
def test_what_the_gpu_check_measures_runs_and_computes_the_same(library):
    """On the CPU, and on the stand-in: the times are no GPU's, the numbers are the network's."""
    environment = dict(os.environ)
    if "cupy" in library:
        environment |= {"PYTHONPATH": str(FAKE), "RNNCORE_FAKE_CUPY": "1"}
    command = [
        sys.executable,
        str(SCRIPT.parent.parent / "benchmarks" / "gpu.py"),
        library,
        "--device",
        "cpu",
        "--quick",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(r["shape"], r["pass"]) for r in records] == [
        (shape, which) for shape in ([7, 3, 5], [4, 2, 9]) for which in ("forward", "forward and backward")
    ]
    for record in records:
        assert record["library"] == library and 0 < record["error"] < 64 * 2.0**-23


def test_what_is_measured_has_the_same_gradients_everywhere():
    """The naive loop's gradients are written by hand, and rnncore's are the yardstick."""
    code = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("gpu", sys.argv[1])
gpu = importlib.util.module_from_spec(spec)
sys.modules["gpu"] = gpu
spec.loader.exec_module(gpu)
import numpy as np
given = gpu.numbers(5, 3, 4)
ours, loop = gpu.MAKE["rnncore_cupy"]("cuda"), gpu.MAKE["cupy_loop"]("cuda")
ours.place(given), loop.place(given)
_, grads = ours.both()
_, d_ih, d_hh, d_b, d_h, d_x = loop.both()
pairs = [(grads.params["weight_ih_l0"], d_ih), (grads.params["weight_hh_l0"], d_hh), (grads.params["bias_ih_l0"], d_b)]
for a, b in [*pairs, (grads.h0[0], d_h), (grads.x, d_x)]:
    np.testing.assert_allclose(a.get(), b.get(), rtol=1e-4, atol=1e-5)
"""
    benchmark = str(SCRIPT.parent.parent / "benchmarks" / "gpu.py")
    environment = {**os.environ, "PYTHONPATH": str(FAKE), "RNNCORE_FAKE_CUPY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, benchmark], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr


def test_what_the_sanitizer_watches_runs(gpu_check):
    """On the stand-in: every regime is among what it launches."""
    code = gpu_check.SMALL.replace(
        'cupy.random.default_rng(0).random((steps, batch, width), dtype="float64").astype(dtype)',
        "cupy.full((steps, batch, width), 0.25).astype(dtype)",
    )
    code += """
from cupy import _raw
names = {launch["name"].partition("<")[0] for launch in _raw.launches}
assert names == {"block_scan", "grid_scan", "step_alone"}, names
"""
    assert gpu_check.SMALL.count("cupy.random") == 1
    path = os.pathsep.join([str(FAKE), str(HERE)])
    python(code, PYTHONPATH=path, RNNCORE_FAKE_CUPY="1")


def test_gpu_check_asks_for_each_librarys_own_gpu(gpu_check, tmp_path, monkeypatch):
    calls = []

    def recorded(command, **options):
        calls.append((command[1:], options["env"].get("JAX_ENABLE_X64")))
        return subprocess.CompletedProcess(command, 0, stdout="", stderr="")

    monkeypatch.delenv("JAX_ENABLE_X64", raising=False)
    monkeypatch.setattr(gpu_check.subprocess, "run", recorded)
    for name in ("cupy", "torch", "jax"):
        assert gpu_check.run(name, tmp_path / "x.json") == 0
    assert [c[2:-2] for c, _ in calls] == [
        ["conform", "cupy"],
        ["conform", "torch", "--device", "cuda"],
        ["conform", "jax", "--device", "cuda"],
    ]
    assert [x64 for _, x64 in calls] == [None, None, "1"]


def test_gpu_check_speaks_the_commands_language(gpu_check, tmp_path, monkeypatch):
    # The run alone, which is not asked what it is that has the devices.
    monkeypatch.setenv("PYTHONPATH", str(FAKE))
    monkeypatch.setenv("RNNCORE_FAKE_CUPY", "2")
    assert gpu_check.run("cupy", tmp_path / "cupy.json") == 0
    record = json.loads((tmp_path / "cupy.json").read_text())
    assert record["counts"]["failed"] == 0 and (record["precision"], record["device"]) == ("full", "cuda:0")


def test_gpu_docs_do_not_claim_what_was_not_done():
    assert (HERE.parent / "docs" / "gpu" / "README.md").read_text().startswith("Not yet verified on a GPU: ")
    assert os.access(SCRIPT, os.X_OK)
