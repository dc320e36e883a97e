"""What ``python -m benchmarks.gpu`` runs: suites and tools in processes of their own, and the benchmark, with time limits."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import suite
from benchmarks.gpu import measure
from benchmarks.gpu.suite import SUITES
from benchmarks.pool import PATIENCE, ROOT, Pool
from benchmarks.rounds import Numbers

LIBRARIES = ("cupy", "torch", "jax")
CHECKED = ("rnncore", "backends", "benchmarks")  # the folders that a report is about

Record = dict[str, Any]

SANITIZER = "compute-sanitizer"
SANITIZER_TOOLS = ("memcheck", "racecheck")
FOUND_ERRORS = 99  # the tool's status for errors that it finds, apart from those of the program
# Both scans in every regime that small arrays reach. CuPy's pool is off: memory past the end of an array would belong to the
# pool, and memcheck would not report it.
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

# Seconds after which a part counts as hanging: more than twice what any is known to take.
LOOK, SUITE, SANITIZE = 180.0, 600.0, 300.0
TIMED_OUT = 124  # as of the command `timeout`
NO_TIME = "no time was left"


@dataclass(frozen=True)
class Command:
    """A process: its arguments, the seconds after which it is killed, and variables beside those of this process."""

    arguments: list[str]
    limit: float
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """The status of a process, or None if the time ran out, and what it printed."""

    status: int | None
    output: str

    def words(self, lines: int = 20) -> str:
        """Return the last lines."""
        return NO_TIME if self.status is None else "\n".join(self.output.strip().splitlines()[-lines:])


class Machine:
    """Runs every part, until its own limit or the end of the time.

    Parameters
    ----------
    minutes : float, optional
        For everything.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self.end = float("inf") if minutes is None else time.monotonic() + 60 * minutes
        self.cut = False  # whether the end of the time stopped a part
        self.scratch = tempfile.TemporaryDirectory()
        self.pool = Pool(measure.PEERS, lambda: min(PATIENCE, max(self.left(), 0.0)))
        self.numbers = Numbers(Path(self.scratch.name) / "numbers")

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *error: Any) -> None:
        self.pool.__exit__(*error)
        self.scratch.cleanup()

    def left(self) -> float:
        """Return the seconds left."""
        return self.end - time.monotonic()

    def look(self) -> dict[str, Record | str]:
        """Return what each library sees, or why it sees no GPU."""
        found: dict[str, Record | str] = {}
        commands = {name: self._module("look", LOOK, name) for name in LIBRARIES}
        for name, ended in self.run(commands):
            line = (ended.output.strip().splitlines() or ["no output"])[-1]
            found[name] = json.loads(line) if ended.status == 0 else f"status {ended.status}: {line}"
        return {name: found[name] for name in LIBRARIES}

    def conform(self, able: Collection[str]) -> Iterator[tuple[str, Record]]:
        """Run the suites of these libraries side by side; yield each when it ends, with its outcomes so far."""
        folder = Path(self.scratch.name)
        suites = {name: suite for name, suite in SUITES.items() if set(suite.needs) <= set(able)}
        commands = {n: self._module("suite", SUITE, n, str(folder / n), **s.environment) for n, s in suites.items()}
        for name, ended in self.run(commands):
            lines = _objects(folder / name)
            record = {"status": ended.status, "words": ended.words(), "outcomes": [o for o in lines if "id" in o]}
            yield name, record | next((o for o in lines if "device" in o), {})

    def sanitize(self, tool: str) -> Record:
        """Run a tool of compute-sanitizer over the kernels on small arrays."""
        program = sanitizer()
        if program is None:
            return {"status": None, "words": f"{SANITIZER} was not found"}
        # CuPy itself checks what CUDA's functions return, and calls some that may fail.
        options = ["--tool", tool, "--error-exitcode", str(FOUND_ERRORS), "--report-api-errors", "no"]
        command = Command([program, *options, sys.executable, "-c", SMALL], SANITIZE)
        ((_, ended),) = self.run({tool: command})
        return {"status": ended.status, "words": ended.words()}

    def measure(self, shape: tuple[int, int, int], able: Collection[str], rounds: int) -> Record | None:
        """Measure one shape, or return None if the time ran out."""
        entry = measure.of_shape(self.pool, measure.able(able), shape, self.numbers, rounds)
        self.cut |= self.left() <= 0
        return None if self.cut else entry

    def run(self, commands: Mapping[str, Command]) -> Iterator[tuple[str, Ended]]:
        """Run processes side by side, and yield each at its end; kill those that run too long, with all their children."""
        running: dict[str, tuple[subprocess.Popen[bytes], Any, float]] = {}
        try:
            for name, command in commands.items():
                output = tempfile.TemporaryFile()  # noqa: SIM115
                process = subprocess.Popen(
                    command.arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **command.environment},
                    cwd=ROOT,
                    start_new_session=True,  # a group, so that no child outlives it
                )
                running[name] = process, output, time.monotonic() + command.limit
            while running:
                for name, (process, output, end) in list(running.items()):
                    status, now = process.poll(), time.monotonic()
                    if status is None and now < min(end, self.end):
                        continue
                    if status is None and end <= self.end:
                        status = TIMED_OUT
                    self.cut |= status is None
                    _kill(process)
                    del running[name]
                    output.seek(0)
                    with output:
                        words = output.read().decode(errors="replace")
                    yield name, Ended(status, words)
                time.sleep(0.02)
        finally:
            for process, output, _ in running.values():
                _kill(process)
                output.close()

    def _module(self, name: str, limit: float, *arguments: str, **environment: str) -> Command:
        return Command([sys.executable, "-W", "ignore", "-m", f"benchmarks.gpu.{name}", *arguments], limit, environment)


def sanitizer() -> str | None:
    """Find compute-sanitizer: on the path, in CUDA's toolkit, or from the package ``cuda-toolkit[sanitizer]``."""
    places = [Path(os.environ.get(name, "/usr/local/cuda")) / "bin" for name in ("CUDA_HOME", "CUDA_PATH")]
    found = importlib.util.find_spec("nvidia")
    for folder in found.submodule_search_locations or () if found else ():
        places += sorted(Path(folder).glob("*/bin"))
    near = (str(place / SANITIZER) for place in places if os.access(place / SANITIZER, os.X_OK))
    return shutil.which(SANITIZER) or next(near, None)


def described() -> Record:
    """Return what is checked and where: versions, machine, and the state of this checkout."""
    at, changed = (_words("git", *of) for of in (("rev-parse", "HEAD"), ("status", "--porcelain", "--", *CHECKED)))
    query = "--query-gpu=name,driver_version,memory.total,power.limit"
    gpus = _words("nvidia-smi", query, "--format=csv,noheader") or "nvidia-smi printed nothing"
    return {
        **suite.environment(),
        "commit": "unknown" if at is None else f"{at} with changes" if changed else at,
        "source": _digest(),
        "gpus": gpus.splitlines(),
    }


def _digest() -> str:
    """Hash everything that is checked, which distinguishes uncommitted changes too."""
    digest = hashlib.sha256()
    files = (file for folder in CHECKED for file in (ROOT / folder).rglob("*") if file.is_file())
    for file in sorted(file for file in files if "__pycache__" not in file.parts):
        digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _words(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _objects(file: Path) -> list[Record]:
    """Read lines of JSON, except a last one that was cut off."""
    found = []
    with suppress(OSError, ValueError):
        for line in file.read_text(encoding="utf-8").splitlines():
            found.append(json.loads(line))
    return found


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
