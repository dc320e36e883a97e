"""What the check on a GPU runs: processes with time limits, suites, the sanitizer."""

from __future__ import annotations

import json
import os
import sys
import time
import types
from pathlib import Path

import pytest

import rnncore
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import parts
from benchmarks.gpu.suite import REQUIRED, SUITES, WITHOUT_KERNEL
from tests.benchmarks.tools import gone
from tests.tools.fake_cupy import needs_real_cupy, on_fake_cupy, python
from tests.tools.places import DOUBLES, FAKE, ROOT
from tests.tools.process import PATIENCE

# Like compute-sanitizer: a program that starts another, which keeps the output open.
HANGS = f"""
import os, pathlib, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep({PATIENCE})"])
print(child.pid, flush=True)
pathlib.Path(os.environ["NOTE"]).touch()
child.wait()
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc to look processes up in")
@pytest.mark.parametrize(("limit", "minutes", "status"), [(2.0, None, 124), (50.0, 2 / 60, None)])
def test_a_part_that_hangs_is_killed_with_all_that_it_started(limit, minutes, status, tmp_path, monkeypatch):
    """By a clock that stands still until the one has ended and the other hangs, however long both take."""
    done, note = {}, tmp_path / "hangs"
    clock = lambda: 10.0 if "quick" in done and note.exists() else 0.0  # noqa: E731
    monkeypatch.setattr(parts, "time", types.SimpleNamespace(monotonic=clock, sleep=time.sleep))
    with parts.Machine(minutes) as machine:
        quick = parts.Command([sys.executable, "-c", "print('done')"], 50.0)
        hangs = parts.Command([sys.executable, "-c", HANGS], limit, {"NOTE": str(note)})
        for name, ended in machine.run({"hangs": hangs, "quick": quick}):
            done[name] = ended
        assert done["quick"] == parts.Ended(0, "done\n") and done["hangs"].status == status
        assert gone(int(done["hangs"].output)) and machine.cut == (status is None)


def test_every_suite_has_the_device_and_the_variables_of_its_library(monkeypatch):
    assert {name: suite.needs for name, suite in SUITES.items() if "kernels" in name} == {
        "cupy, kernels required": ("cupy",),
        "torch, on the kernels": ("torch", "cupy"),
    }
    assert SUITES["cupy, kernels required"].arguments == REQUIRED
    assert all(SUITES[name].arguments["device"] == "cuda" for name in ("torch", "torch, on the kernels", "jax"))
    ways = [SUITES[name].environment["RNNCORE_TORCH_CUDA"] for name in ("torch", "torch, on the kernels")]
    assert ways == ["rule", "kernels"] and SUITES["jax"].environment["JAX_ENABLE_X64"] == "1"


@pytest.mark.slow
def test_the_suites_run_side_by_side_and_keep_their_outcomes(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FAKE), str(DOUBLES), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("RNNCORE_FAKE_CUPY", "2")
    monkeypatch.delitem(SUITES, "cupy, every kernel")
    with parts.Machine() as machine:
        found = dict(machine.conform(["cupy"]))
    assert set(found) == {"cupy", "cupy, kernels required"}
    for name, ran in found.items():
        assert ran["status"] == 0 and (ran["precision"], ran["device"]) == ("full", "cuda:0")
        statuses = [outcome["status"] for outcome in ran["outcomes"]]
        assert statuses.count("passed") > 150
        assert statuses.count("expected to fail") == (len(WITHOUT_KERNEL) if "required" in name else 0)


def test_outcomes_before_a_suite_died_are_kept(monkeypatch):
    def run(self, commands):
        for name, given in commands.items():
            Path(given.arguments[-1]).write_text('{"id": 1}\n{"id": 2}\n{"id')
            yield name, parts.Ended(None, "")

    monkeypatch.setattr(parts.Machine, "run", run)
    with parts.Machine() as machine:
        ran = dict(machine.conform(["jax"]))["jax"]
    assert ran == {"status": None, "words": "no time was left", "outcomes": [{"id": 1}, {"id": 2}]}


def test_the_sanitizer_is_found_where_pip_puts_it(tmp_path, monkeypatch):
    for name in ("CUDA_HOME", "CUDA_PATH", "PATH"):
        monkeypatch.setenv(name, str(tmp_path))
    program = tmp_path / "nvidia" / "cu13" / "bin" / "compute-sanitizer"
    program.parent.mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    with parts.Machine() as machine:
        assert machine.sanitize("memcheck") == {"status": None, "words": "compute-sanitizer was not found"}
        program.write_text('#!/bin/sh\necho "$1 $2 $4"; exit 99\n')
        program.chmod(0o755)
        assert machine.sanitize("racecheck") == {"status": 99, "words": "--tool racecheck 99"}


def test_what_the_sanitizer_watches_runs():
    """On the stand-in: every regime is launched, and no pool hides what is past the end of an array."""
    code = "import cupy; allocators = []; cupy.cuda.set_allocator = allocators.append\n" + parts.SMALL
    code += """
from cupy import _raw
assert allocators == [None]
names = {launch["name"].partition("<")[0] for launch in _raw.launches}
assert names == {"block_scan", "grid_scan", "step_alone"}, names
"""
    path = os.pathsep.join([str(FAKE), str(ROOT), str(DOUBLES), os.environ.get("PYTHONPATH", "")])
    python(code, PYTHONPATH=path, RNNCORE_FAKE_CUPY="1")


def test_a_report_names_its_source_and_machine():
    found = parts.described()
    assert found["versions"]["rnncore"] == rnncore.__version__ and len(found["source"]) == 12 and found["gpus"]
    assert found["commit"] == "unknown" or len(found["commit"].split()[0]) == 40
    assert set(command.SAME) <= {*found, "libraries"}


@on_fake_cupy(devices=1)
def test_every_kernel_is_compared_with_float64():
    from rnncore_cupy import CupyScans

    from benchmarks.gpu import kernels

    def run():
        outcomes = []
        return kernels.run(outcomes.append), outcomes, [o["id"] for o in outcomes if o["status"] == "failed"]

    kernels.DTYPES = {"float32": kernels.EVERY_FUNCTION, "float16": ((7, 3, 37),)}
    record, outcomes, failed = run()
    assert failed == [] and len(outcomes) == (3 + 1) * 5 * 2 + 1
    assert record["device"] == "cuda:0, 20 of block_scan, 10 of grid_scan, 10 of step_alone"
    kernels.DTYPES = {"float32": ((7, 3, 37),)}
    _, outcomes, failed = run()
    assert failed == ["kernels"] and outcomes[-1]["reason"] == "never run: grid_scan, step_alone"
    # One number, some 1000 roundings away; a NaN; and another in the second run, as in a race.
    right = CupyScans.nonlinear
    for wrongs in ((1e-4, 1e-4), (float("nan"),) * 2, (0.0, 1e-7)):
        runs = iter(wrongs * 100)

        def wrong(self, p, h0, w_hh, /, *, nonlinearity, reverse, runs=runs):
            out = right(self, p, h0, w_hh, nonlinearity=nonlinearity, reverse=reverse)
            if nonlinearity.name == "sigmoid" and reverse:
                out._host[2, 1, 3] += next(runs)
            return out

        CupyScans.nonlinear = wrong
        assert run()[2] == ["sigmoid (7, 3, 37) float32 backwards", "kernels"]
    CupyScans.nonlinear = right

    def fail(*request):
        raise RuntimeError("no nvrtc")

    CupyScans.explain = fail
    assert run()[2][:2] == ["linear (7, 3, 37) float32 forwards", "linear (7, 3, 37) float32 backwards"]
    # After an illegal access every later call fails: it stops at the first.
    kernels.rnncore = types.SimpleNamespace(get_backend=lambda name: Lost(), get_nonlinearity=rnncore.get_nonlinearity)
    assert run()[2] == ["linear (7, 3, 37) float32 forwards", "device", "kernels"]


class Lost:
    """The plugin, on a device that is lost."""

    def __getattr__(self, name):
        return getattr(rnncore.get_backend("cupy"), name)

    def synchronize(self, device):
        raise RuntimeError("an illegal memory access was encountered")


@needs_real_cupy
def test_the_real_cupy_has_what_is_measured_with():
    """Names that no CPU can call, and those of the memory hook."""
    code = """
import cupy
cuda = cupy.cuda
for owner, names in (
    (cuda, "Event Device MemoryHook get_elapsed_time set_allocator"),
    (cuda.Event, "record synchronize"),
    (cuda.Device, "synchronize"),
    (cuda.MemoryHook, "malloc_postprocess free_postprocess"),
    (cupy, "full eye dot stack zeros_like empty_like ones asarray tanh"),
    (cuda.runtime, "getDeviceProperties runtimeGetVersion driverGetVersion"),
):
    for name in names.split():
        assert hasattr(owner, name), name
"""
    python(code)


def test_a_line_of_a_suite_is_read_back(tmp_path):
    assert parts._objects(tmp_path / "none") == []
    (tmp_path / "some").write_text(json.dumps({"id": 1}) + "\n")
    assert parts._objects(tmp_path / "some") == [{"id": 1}]
