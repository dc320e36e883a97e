"""What scripts/gpu-check runs, each part in a process of its own that is ended when its time is over."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "from rnncore.commands.cli import main; main()"
LIBRARIES = ("cupy", "torch", "jax")
CHECKED = ("rnncore", "backends", "benchmarks", "scripts")  # the folders whose code it is

Record = dict[str, Any]

# Functions that have no kernel are in these checks, and kernel="require" has to refuse them: what passes everywhere else is
# the kernels' own.
WITHOUT_KERNEL = (
    "RC-SCAN-005",
    "RC-FWD-010",
    "RC-FWD-011",
    "RC-GRAD-008",
    "RC-DIFF-001",
    "RC-NUM-001",
    "RC-NUM-005",
)
REFUSED = tuple(
    word for check in WITHOUT_KERNEL for word in ("--expect-failure", f"{check}=a function without a kernel")
)
RULE = "RNNCORE_TORCH_CUDA"


@dataclass(frozen=True)
class Suite:
    """A run of the conformance suite: what has to see a GPU, the arguments, the environment; and another program than it."""

    needs: tuple[str, ...]
    arguments: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    program: tuple[str, ...] = ("-c", COMMAND, "conform")


CONFORMANCE = {
    "cupy": Suite(("cupy",), ("cupy",)),
    "cupy, kernels required": Suite(("cupy",), ("cupy", "--kernel", "require", *REFUSED)),
    # The suite's networks are so small that one kernel has them all.
    "cupy, every kernel": Suite(("cupy",), (), program=(str(ROOT / "scripts" / "gpu_kernels.py"),)),
    # The rule leaves scans as short as the suite's to PyTorch, so that the kernels have a run of their own.
    "torch": Suite(("torch",), ("torch", "--device", "cuda"), {RULE: "rule"}),
    "torch, on the kernels": Suite(("torch", "cupy"), ("torch", "--device", "cuda"), {RULE: "kernels"}),
    # JAX has no float64 without it, and the suite's tightest checks are in float64.
    "jax": Suite(("jax",), ("jax", "--device", "cuda"), {"JAX_ENABLE_X64": "1"}),
}
# What is measured, by the library that has to see a GPU for it.
MEASURED = {
    "rnncore_cupy": "cupy",
    "rnncore_torch": "torch",
    "torch_cudnn": "torch",
    "jax_scan": "jax",
    "cupy_loop": "cupy",
}
SANITIZER = "compute-sanitizer"
SANITIZER_TOOLS = ("memcheck", "racecheck")
FOUND_ERRORS = 99  # the tool's own status for errors that it found, apart from those of the program
# Both scans in every regime that small arrays reach: the block's, the grid's and, with the largest, one step of products.
# Without CuPy's pool, in which what lies past the end of an array is other memory of the pool's, and no error to memcheck.
SMALL = """
import cupy, rnncore
cupy.cuda.set_allocator(None)
from rnncore_cupy import scans
s, relu = scans(), rnncore.get_nonlinearity("relu", clip=3.0)
for dtype in ("float32", "float64", "float16"):
    for steps, batch, width in ((5, 3, 37), (4, 2, 256), (3, 5, 333), (2, 2, 4100)):
        x = cupy.full((steps, batch, width), 0.25).astype(dtype)
        w = (cupy.eye(width) / 2).astype(dtype)
        for reverse in (False, True):
            s.nonlinear(x, x[0], w, nonlinearity=relu, reverse=reverse)
            s.linear(x, x, x[0], w.T, reverse=reverse)
cupy.cuda.Device().synchronize()
"""

# Seconds after which a part hangs: none of them is known to take half as long.
LOOK, SUITE, SANITIZE, MEASURE = 180.0, 600.0, 300.0, 600.0
TIMED_OUT = 124  # what `timeout` ends with


@dataclass(frozen=True)
class Ended:
    """How a process ended: its status, None where there was no time left for it; and what it wrote, where that is asked."""

    status: int | None
    output: str
    errors: str


class Clock:
    """The time that is left to the whole check."""

    def __init__(self, minutes: float | None) -> None:
        self.end = float("inf") if minutes is None else time.monotonic() + 60 * minutes
        self.cut = False  # whether a part was ended for it

    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()


class Runner:
    """Runs the parts, none for longer than its own limit and than the time that is left."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def look(self, name: str) -> Record | str:
        """What a library tells of the GPUs it sees; or, in its own words, why it sees none."""
        program = [sys.executable, str(ROOT / "scripts" / "gpu_look.py"), name]
        done = self.ended(program, LOOK, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if done.status != 0 or not done.output.strip():
            return f"it {how(done.status, LOOK)}: {last_line(done.errors)}"
        found: Record | str = json.loads(done.output.strip().splitlines()[-1])
        return found if isinstance(found, str) or found["devices"] else "it lists no device"

    def conform(self, name: str, file: Path) -> int | None:
        """The exit status of ``rnncore conform``, whose output goes to the terminal and whose record to the file."""
        suite = CONFORMANCE[name]
        program = [sys.executable, *suite.program, *suite.arguments, "--json", str(file)]
        return self.ended(program, SUITE, suite.environment).status

    def sanitize(self, tool: str) -> Record:
        """What a tool of compute-sanitizer's says of the kernels on small arrays; its absence is told."""
        program = sanitizer()
        if program is None:
            return {"status": None, "words": f"{SANITIZER} was not found"}
        # What CUDA's functions return is CuPy's to look at, and it asks some that may fail.
        options = ["--tool", tool, "--error-exitcode", str(FOUND_ERRORS), "--report-api-errors", "no"]
        command = [program, *options, sys.executable, "-c", SMALL]
        done = self.ended(command, SANITIZE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        words = done.output.strip().splitlines()[-20:]
        return {"status": done.status, "words": "\n".join(words if done.status is not None else ["no time was left"])}

    def measure(self, name: str) -> list[Record]:
        """One round of the benchmark of one library; what it says when it fails is told and kept."""
        program = [sys.executable, "-m", "benchmarks.gpu", name]
        environment = {RULE: "rule", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        done = self.ended(program, MEASURE, environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        records = list(_records(done.output))
        if done.status is None:
            records.append({"library": name, "cut": "no time was left"})
        elif done.status != 0:
            fault = f"it {how(done.status, MEASURE)}: {last_line(done.errors)}"
            records.append({"library": name, "fault": fault})
        return records

    def ended(
        self,
        command: list[str],
        limit: float,
        environment: dict[str, str] | None = None,
        stdout: int | IO[str] | None = None,
        stderr: int | IO[str] | None = None,
    ) -> Ended:
        """Run to the end, or until the time is over: then the process and all that it started are killed."""
        left = self.clock.left()
        if left <= 0:
            self.clock.cut = True
            return Ended(None, "", "")
        # A group of its own: compute-sanitizer's program would outlive it otherwise, and keep its output open.
        process = subprocess.Popen(
            command,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, **(environment or {})},
            cwd=ROOT,
            start_new_session=True,
        )
        status: int | None
        try:
            output, errors = process.communicate(timeout=min(limit, left))
            status = process.returncode
        except subprocess.TimeoutExpired:
            _kill(process)
            output, errors = process.communicate()
            self.clock.cut |= left < limit
            status = TIMED_OUT if limit <= left else None
        except BaseException:
            _kill(process)
            process.wait()
            raise
        return Ended(status, output or "", errors or "")


def how(status: int | None, limit: float) -> str:
    """In words how a process ended."""
    if status is None:
        return "was stopped, as no time was left"
    return f"was stopped after {limit:g} s" if status == TIMED_OUT else f"ended with status {status}"


def last_line(text: str) -> str:
    """The last line, which in Python is the error."""
    return " ".join((text.strip().splitlines() or ["no word"])[-1].split())


def sanitizer() -> str | None:
    """Where compute-sanitizer is: on the path, in CUDA's toolkit, or from the package ``cuda-toolkit[sanitizer]``."""
    places = [Path(os.environ.get(name, "/usr/local/cuda")) / "bin" for name in ("CUDA_HOME", "CUDA_PATH")]
    found = importlib.util.find_spec("nvidia")
    for folder in found.submodule_search_locations or () if found else ():
        places += sorted(Path(folder).glob("*/bin"))
    near = (str(place / SANITIZER) for place in places if os.access(place / SANITIZER, os.X_OK))
    return shutil.which(SANITIZER) or next(near, None)


def described() -> Record:
    """What was checked, on what: software, machine, and the state of this checkout."""
    import numpy

    import rnncore

    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "rnncore": rnncore.__version__,
        "commit": _commit(),
        "source": _digest(),
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "gpus": _gpus(),
    }


def _commit() -> str:
    at, changed = (_words("git", *of) for of in (("rev-parse", "HEAD"), ("status", "--porcelain", "--", *CHECKED)))
    if at is None:
        return "unknown"
    return f"{at} with changes" if changed else at


def _digest() -> str:
    """Of everything that is checked, so that what is not in a commit, or has none, is told apart."""
    digest = hashlib.sha256()
    files = (file for folder in CHECKED for file in (ROOT / folder).rglob("*") if file.is_file())
    for file in sorted(file for file in files if "__pycache__" not in file.parts):
        digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _gpus() -> list[str]:
    """Name, driver, memory and the most power of each GPU, as nvidia-smi has them."""
    query = "--query-gpu=name,driver_version,memory.total,power.limit"
    return (_words("nvidia-smi", query, "--format=csv,noheader") or "nvidia-smi told nothing").splitlines()


def _words(*command: str) -> str | None:
    """What a program says, or None."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _records(text: str) -> Iterator[Record]:
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                yield json.loads(line)
            except ValueError:  # the line that it was at when it was stopped
                return


def _kill(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()
