"""The numerical tests, once for each kind of processor, number of threads and order: ``python -m tests.matrix [cell ...]``.

A cell is one setting in which sums may be rounded otherwise. What this processor cannot run is not run, and said to be so.
docs/testing.md explains the table.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path

from tests.tools.places import ROOT

# Everything but what is about text, files, pages, commands, plugins that are found and the benchmarks' bookkeeping: no
# number there depends on how a sum is rounded. The examples of docstrings and pages print numbers, so they are run too.
PATHS = ("tests", "rnncore", "README.md", "docs")
LEFT_OUT = (
    "tests/backend",
    "tests/benchmarks",
    "tests/commands/test_backends.py",
    "tests/commands/test_cli.py",
    "tests/diagnostics/figures",
    "tests/diagnostics/report/test_page.py",
    "tests/docs",
    "tests/io",
    "tests/test_arguments.py",
    "tests/test_matrix.py",
    "tests/test_structure.py",
)
SEED = 20260725  # of the random order, the same in each run
AVX2 = ("avx2", "fma")
AVX512 = ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
BASE = "+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16"
WIDE = f"{BASE},+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+movbe"
PRINTED = 20_000  # characters of pytest's output, of a cell in which something failed
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Cell:
    """One setting: variables and options of pytest, and what the processor has to have for it.

    Attributes
    ----------
    flags : tuple of str
        The flags of /proc/cpuinfo that the instructions need.
    kernels : tuple of str
        What threadpoolctl may call OpenBLAS's kernels in this setting.
    """

    name: str
    variables: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()
    needs: str | None = None

    def setting(self) -> str:
        """The variables and options in one line."""
        return " ".join([*(f"{k}={v or '(empty)'}" for k, v in self.variables.items()), *self.options])


@dataclass(frozen=True)
class Outcome:
    """What became of a cell; `reason` if it was not run, or if pytest did not come to its end."""

    cell: Cell
    passed: int = 0
    failed: tuple[str, ...] = ()
    skipped: int = 0
    seconds: float = 0.0
    reason: str = ""
    ran: bool = True

    @property
    def good(self) -> bool:
        return self.ran and not self.failed and not self.reason


def openblas(kernel: str, flags: tuple[str, ...], *aliases: str) -> Cell:
    return Cell(f"openblas-{kernel.lower()}", {"OPENBLAS_CORETYPE": kernel}, flags=flags, kernels=(kernel, *aliases))


def numba(name: str, features: str, flags: tuple[str, ...]) -> Cell:
    return Cell(f"numba-{name}", {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features}, flags=flags)


CELLS = (
    # A 64-bit OpenBLAS has Prescott's kernels for all that are older, and gives them the name of the oldest.
    openblas("Prescott", ("pni",), "Katmai"),
    openblas("Haswell", AVX2),
    openblas("Zen", AVX2),
    openblas("SkylakeX", AVX512),
    numba("generic", "", ()),
    numba("haswell", WIDE, AVX2),
    numba("skylake-avx512", ",".join([WIDE, *(f"+{f}" for f in AVX512)]), AVX512),
    *(Cell(f"threads-{n}", dict.fromkeys(THREADS, str(n))) for n in (1, 2)),
    Cell("order-random", options=("-p", "randomly", f"--randomly-seed={SEED}"), needs="pytest_randomly"),
    *(Cell(f"workers-{n}", options=("-n", str(n))) for n in (0, 2)),
)


def left_alone(cells: tuple[Cell, ...], environment: dict[str, str]) -> tuple[Cell, ...]:
    """The cells, with one in the place of all that would set a variable which the environment has set already."""
    kept: list[Cell] = []
    for cell in cells:
        variable = next(iter(cell.variables), "")
        if variable in ("OPENBLAS_CORETYPE", "NUMBA_CPU_NAME") and variable in environment:
            own = Cell(f"{cell.name.partition('-')[0]}-as-it-is")
            if own not in kept:
                kept.append(own)
        else:
            kept.append(cell)
    return tuple(kept)


def flags(cpuinfo: str) -> set[str]:
    """The flags of a /proc/cpuinfo, of the first processor."""
    line = next((line for line in cpuinfo.splitlines() if line.startswith("flags")), "")
    return set(line.partition(":")[2].split())


PROBE = """
import json, numpy, threadpoolctl
numpy.ones((2, 2)) @ numpy.ones((2, 2))
found = [lib["architecture"] for lib in threadpoolctl.threadpool_info() if lib["internal_api"] == "openblas"]
try:
    from rnncore_numba._vectors import target
    compiled = sorted(target()[1])
except ImportError:
    compiled = None
print(json.dumps([found, compiled]))
"""


def impossible(cell: Cell, here: set[str], environment: dict[str, str]) -> str:
    """Why the cell cannot be run here, or nothing: by the flags, and by what OpenBLAS and Numba say that they run."""
    if missing := [f for f in cell.flags if f not in here]:
        return f"the processor has no {', '.join(missing)}"
    if cell.needs and importlib.util.find_spec(cell.needs) is None:
        return f"{cell.needs.replace('_', '-')} is not installed"
    if not (cell.kernels or "NUMBA_CPU_NAME" in cell.variables):
        return ""
    done = subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"a first product ended with status {done.returncode}: {last(done.stderr)}"
    return unlike(cell, *json.loads(done.stdout))


def unlike(cell: Cell, kernels: list[str], compiled: list[str] | None) -> str:
    """What runs instead of what the cell asks for, or nothing."""
    if cell.kernels:
        same = kernels and set(kernels) <= set(cell.kernels)
        return "" if same else f"OpenBLAS's kernels here are {', '.join(kernels) or 'none'}"
    if compiled is None:
        return "Numba is not installed"
    wanted = {f for f in cell.variables["NUMBA_CPU_FEATURES"].split(",") if f}
    return "" if wanted == {f for f in compiled if f} else "Numba compiles for other features"


def last(text: str) -> str:
    """Python's own word about a crash, above the stacks that it prints, or else the last line."""
    lines = text.strip().splitlines() or ["no output"]
    return next((line for line in lines if line.startswith("Fatal Python error")), lines[-1])


def outcome(cell: Cell, report: str | None, status: int, words: str, seconds: float) -> Outcome:
    """Read pytest's report in JUnit's format; without one, pytest itself has ended otherwise than it should."""
    try:
        cases = list(ET.fromstring(report or "").iter("testcase"))
    except ET.ParseError:
        return Outcome(cell, seconds=seconds, reason=f"pytest crashed, status {status}: {words}")
    failed = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    skipped = sum(c.find("skipped") is not None for c in cases)
    names = tuple(dict.fromkeys(f"{c.get('file', c.get('classname'))}::{c.get('name')}" for c in failed))
    # 1 is that of tests that failed; others have a reason that no test tells.
    reason = "" if status == (1 if failed else 0) else f"pytest ended with status {status}: {words}"
    return Outcome(cell, len(cases) - len(failed) - skipped, names, skipped, seconds, reason)


def run(cell: Cell, arguments: list[str]) -> Outcome:
    """Run the tests in a process of their own, with a cache of Numba's that no other cell has seen."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.pathsep.join([str(ROOT), str(ROOT / "backends"), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder, "PYTHONPATH": path, **cell.variables}
        cpuinfo = Path("/proc/cpuinfo")
        why = impossible(cell, flags(cpuinfo.read_text() if cpuinfo.exists() else ""), environment)
        if why:
            return Outcome(cell, reason=why, ran=False)
        report = Path(folder) / "report.xml"
        randomly = () if cell.needs else ("-p", "no:randomly")
        command = [sys.executable, "-m", "pytest", "-q", "-o", "junit_family=xunit1", f"--junitxml={report}", *randomly]
        ignored = () if arguments else [f"--ignore={p}" for p in LEFT_OUT]
        start = time.monotonic()
        done = subprocess.run(
            [*command, *cell.options, *ignored, *(arguments or PATHS)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        seconds, found = time.monotonic() - start, report.read_text() if report.exists() else None
        result = outcome(cell, found, done.returncode, last(done.stdout), seconds)
        if not result.good:
            print(done.stdout[-PRINTED:])
        return result


def table(outcomes: list[Outcome]) -> str:
    """The outcomes as a table of Markdown, with the tests that failed below it."""
    lines = ["| cell | passed | failed | skipped | seconds | |", "|---|---|---|---|---|---|"]
    for o in outcomes:
        numbers = [f"{o.passed}", f"{len(o.failed)}", f"{o.skipped}", f"{o.seconds:.0f}"] if o.ran else ["-"] * 4
        words = o.reason if o.ran else f"not possible here: {o.reason}"
        lines.append(f"| {' | '.join([o.cell.name, *numbers, words.replace('|', '/')])} |")
    for o in (o for o in outcomes if o.failed):
        lines += ["", f"Failed in {o.cell.name}:", "", *(f"- `{name}`" for name in o.failed)]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Run the cells; return 1 if a test failed in one of them, pytest crashed, or none could be run."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    parser.add_argument("cells", nargs="*", metavar="cell", help="names, all by default")
    parser.add_argument("--list", action="store_true", help="print the cells and their settings")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table to this file too")
    parser.add_argument(
        "--tests", nargs="+", default=[], metavar="PATH", help="these tests in the place of the numerical ones"
    )
    options = parser.parse_args(argv)
    cells = left_alone(CELLS, dict(os.environ))
    for variable in ("OPENBLAS_CORETYPE", "NUMBA_CPU_NAME"):
        if variable in os.environ:
            print(f"{variable}={os.environ[variable]} is set already, and left alone: its cells are run once, as it is")
    if options.list:
        print("\n".join(f"{c.name:22} {c.setting()}".rstrip() for c in cells))
        return 0
    if unknown := set(options.cells) - {c.name for c in cells}:
        parser.error(f"no such cell: {', '.join(sorted(unknown))}; --list prints them")
    outcomes = []
    for cell in cells:
        if options.cells and cell.name not in options.cells:
            continue
        outcomes.append(run(cell, options.tests))
        print(table(outcomes[-1:]).split("\n", 2)[2].rstrip(), flush=True)
    text = table(outcomes)
    print(f"\n{text}")
    if options.markdown:
        options.markdown.write_text(text)
    return 0 if any(o.ran for o in outcomes) and all(o.good for o in outcomes if o.ran) else 1


if __name__ == "__main__":
    sys.exit(main())
