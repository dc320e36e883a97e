"""Run tests against mutants, each in a process of its own, in a copy of the project.

The copy stands first on the path, of the tests' own child processes too; nothing is ever written where the project is. A
process is forked for each mutant after the libraries were imported and before the core is, so that it starts at once.

The limit is processor time, which a loaded machine hardly changes: at least `seconds`, and a multiple of what the tests
take without a mutant. What waits without computing ends after a much longer time of the clock.
"""

import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from tests.mutants.modules import Module
from tests.mutants.operators import Mutant, mutated

COPIED = ("rnncore", "backends", "tests", "pyproject.toml")
# What the tests import besides the core. One thread for products, as tests/conftest.py has it, set before NumPy is there.
PRELOADED = ("numpy", "pytest", "array_api_compat.numpy", "array_api_strict", "mpmath", "torch")
ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
TIMES_UNMUTATED = 5
# Of the clock for each second of the processor: only what waits for ever reaches it.
PATIENCE = 30
# Bytes that a mutant may take beside what the libraries have mapped: a loop without end stops here at the latest.
MEMORY = 8 * 2**30
# Seconds between two looks at the processes that run.
PAUSE = 0.01


class Result(NamedTuple):
    """What became of a mutant: "killed", "timeout" or "survived"; `seconds` of the processor, and what pytest printed."""

    mutant: Mutant
    outcome: str
    seconds: float
    output: str


class BrokenTests(Exception):
    """The tests fail without a mutant."""


@dataclass
class _Place:
    """A copy of the project, and the process that runs in it."""

    root: Path
    pid: int = 0
    mutant: Mutant | None = None
    started: float = field(default=0.0)

    @property
    def printed(self) -> Path:
        return self.root / "printed.txt"


def run(
    project: Path,
    module: Module,
    chosen: Iterable[Mutant],
    *,
    seconds: float = 10,
    processes: int = 2,
    told: Callable[[str], None] = print,
) -> Iterator[Result]:
    """Yield the result of each mutant as it is known; raise BrokenTests if the tests fail without one."""
    preload()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what runs is ended, too
    source = (project / module.path).read_text()
    with TemporaryDirectory(prefix="mutants-") as folder:
        places = [_copied(project, Path(folder) / str(k)) for k in range(processes)]
        try:
            limit = seconds
            for place in places:  # each copy's modules are compiled by the way, so the last time is that of a mutant
                _start(place, module, 60 * seconds, compiled=True)
                status, limit = _end(place, wait=True) or (1, 0.0)
                if status != 0:
                    raise BrokenTests(f"status {status}\n{place.printed.read_text()}")
                for compiled in (place.root / module.path).parent.glob(f"__pycache__/{Path(module.path).stem}.*"):
                    compiled.unlink()
            told(f"{module.path}: the tests take {limit:.1f} s of the processor")
            yield from _all(places, module, source, chosen, max(seconds, TIMES_UNMUTATED * limit))
        finally:
            for place in places:
                if place.pid:
                    os.killpg(place.pid, signal.SIGKILL)
                    _end(place, wait=True)


def _all(places: list[_Place], module: Module, source: str, chosen: Iterable[Mutant], limit: float) -> Iterator[Result]:
    waiting = iter(chosen)
    while True:
        for place in places:
            if not place.pid and (mutant := next(waiting, None)) is not None:
                (place.root / module.path).write_text(mutated(source, mutant.number))
                _start(place, module, limit)
                place.mutant = mutant
        if not any(place.pid for place in places):
            return
        time.sleep(PAUSE)
        for place in places:
            if not place.pid:
                continue
            if time.monotonic() - place.started > PATIENCE * limit:
                os.killpg(place.pid, signal.SIGKILL)
            ended = _end(place)
            if ended is not None and place.mutant is not None:
                status, used = ended
                outcome = "survived" if status == 0 else "killed"
                if status in (-signal.SIGXCPU, -signal.SIGKILL):
                    outcome = "timeout"
                yield Result(place.mutant, outcome, used, place.printed.read_text())


def preload() -> None:
    """Import the libraries that the tests use; those that are not installed are left to the tests."""
    for variable in ONE_THREAD:
        os.environ.setdefault(variable, "1")
    for name in PRELOADED:
        if find_spec(name.partition(".")[0]) is not None:
            import_module(name)
    early = sorted(name for name in sys.modules if name.partition("_")[0].partition(".")[0] == "rnncore")
    assert not early, f"imported before a mutant could be: {early}"


def _copied(project: Path, root: Path) -> _Place:
    root.mkdir()
    for name in COPIED:
        if (project / name).is_dir():
            shutil.copytree(project / name, root / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        elif (project / name).exists():
            shutil.copy2(project / name, root / name)
    return _Place(root)


def _start(place: _Place, module: Module, limit: float, *, compiled: bool = False) -> None:
    place.started = time.monotonic()
    sys.stdout.flush()
    place.pid = os.fork()
    if place.pid:
        return
    status = 70
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        printed = os.open(place.printed, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        sys.dont_write_bytecode = not compiled
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit) + 1))
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
        status = _tests(place.root, module, compiled)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def _tests(root: Path, module: Module, compiled: bool) -> int:
    """The status of pytest, run in this process as if the copy were the project."""
    import pytest

    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    os.chdir(root)
    own = [str(root), str(root / "backends")]
    sys.path[:0] = own
    os.environ["PYTHONPATH"] = os.pathsep.join(own)
    os.environ["TMPDIR"] = str(root)
    if not compiled:
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--no-header", "--rootdir", str(root)]
    return int(pytest.main([*options, "-k", module.select, *module.tests]))


def _end(place: _Place, *, wait: bool = False) -> tuple[int, float] | None:
    """The exit status and processor time of the process in this place, None if it is still running."""
    pid, status, used = os.wait4(place.pid, 0 if wait else os.WNOHANG)
    if pid == 0:
        return None
    place.pid = 0
    return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
