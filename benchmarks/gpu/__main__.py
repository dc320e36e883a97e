"""Check rnncore on this machine's GPU, and measure it: one command, no network.

Writes report.json and report.md, by default to docs/gpu, after each step, so that an interrupted check loses nothing.

Exit status: 0 if all that ran passed; 1 if something failed or the report cannot be written; 2 if no library sees a GPU (then
nothing is written) or the call or the environment is wrong; 3 if the time was over before everything had run; 130 or 143 after
a signal.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from benchmarks.gpu import measure, parts
from benchmarks.gpu import report as report_of
from benchmarks.pool import ROOT
from benchmarks.suite import dumps, replaced
from benchmarks.tables import COLUMNS

PASSED, FAILED, NONE_RAN, UNFINISHED = 0, 1, 2, 3
STAND_IN = "RNNCORE_FAKE_CUPY"  # set where the tests' stand-in for CuPy is imported
PARTS = ("conformance", "sanitizer", "benchmark")
ROUNDS = 3
# An earlier report has to agree in these for its other parts to be kept.
SAME = ("source", "versions", "python", "system", "gpus", "libraries")

Record = dict[str, Any]


class Stopped(BaseException):
    """A signal, by its number."""


def main(arguments: list[str] | None = None) -> int:
    """Read the command line, and check."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "gpu", help="the folder to write to")
    parser.add_argument(
        "--only",
        action="append",
        choices=PARTS,
        help="run this part; those of an earlier report stay if source, versions and devices are the same",
    )
    parser.add_argument("--minutes", type=minutes, help="stop after this time, and report what was done")
    parser.add_argument("--rounds", type=int, choices=range(1, 100), metavar="N", default=ROUNDS)
    options = parser.parse_args(arguments)
    reason = unable()
    if reason:
        say(reason)
        return NONE_RAN
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        with parts.Machine(options.minutes) as machine:
            return check(options.output.resolve(), machine, tuple(options.only or PARTS), options.rounds)
    except Stopped as by:  # before there was anything to report
        return 128 + int(by.args[0])


def unable() -> str | None:
    """Return why this Python cannot check anything, or None."""
    if os.environ.get(STAND_IN):
        return f"{STAND_IN} is set: this would check the stand-in of the tests, and no GPU"
    missing = [name for name in ("rnncore", "numpy", "array_api_compat") if importlib.util.find_spec(name) is None]
    plugins = {entry.name for entry in entry_points(group="rnncore.backends")}
    missing += [f"backend {name!r} of rnncore" for name in parts.LIBRARIES if name not in plugins]
    return f'{sys.executable} has no {missing[0]}: pip install -e ".[cupy,torch,jax]"' if missing else None


def check(output: Path, machine: Any, asked: tuple[str, ...] = PARTS, rounds: int = ROUNDS) -> int:
    """Run the parts for every library that sees a GPU, write the report, and return the exit status."""
    seen = machine.look()
    for name, found in seen.items():
        say(f"{name}: {found if isinstance(found, str) else ', '.join(found['devices'])}")
    able = [name for name, found in seen.items() if not isinstance(found, str)]
    if not able:
        say("No library sees a GPU on this machine: nothing was run and nothing is verified.")
        return NONE_RAN
    report: Record = {**parts.described(), "libraries": seen, "stopped": None, "seconds": {}, "faults": {}}
    report |= {"conformance": {}, "sanitizer": {}, "columns": COLUMNS, "comparisons": tuple(measure.COMPARISONS)}
    report |= {"benchmark": []}
    if asked != PARTS:
        _keep(report, output / "report.json", asked)
    if not _write(report, output):
        return FAILED
    stopped_by = 0
    try:
        for name, step in _steps(report, machine, asked, able, rounds, lambda: _write(report, output)):
            if machine.left() <= 0:
                report["stopped"] = f"before {name}, as the time was over"
                break
            say(f"--- {name}")
            start = time.monotonic()
            try:
                step()
            except Exception as error:  # the other parts can still run
                report["faults"][name] = " ".join(f"{type(error).__name__}: {error}".split())
            report["seconds"][name] = round(time.monotonic() - start, 1)
            _write(report, output)
        else:
            report["stopped"] = "in its last part, as the time was over" if machine.cut else None
    except Stopped as by:
        report["stopped"] = f"by {signal.Signals(by.args[0]).name}"
        stopped_by = 128 + int(by.args[0])
    whole = _write(report, output)
    say(f"{output / 'report.md'}: {report_of.verdict(report)}")
    if not whole:
        print(report_of.page(report))
    if report["failed"] or not whole:
        return stopped_by or FAILED
    return stopped_by or (UNFINISHED if report["stopped"] else PASSED)


def _steps(
    report: Record, machine: Any, asked: tuple[str, ...], able: list[str], rounds: int, write: Callable[[], Any]
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield everything to do: what passes or fails comes before what is only fast or slow."""

    def conform() -> None:
        for name, ran in machine.conform(able):
            report["conformance"][name] = ran
            write()

    if "conformance" in asked:
        yield "conformance", conform
    if "sanitizer" in asked and "cupy" in able:

        def sanitize(tool: str) -> None:
            report["sanitizer"][tool] = machine.sanitize(tool)

        for tool in parts.SANITIZER_TOOLS:
            yield tool, partial(sanitize, tool)
    if "benchmark" in asked:

        def bench(shape: tuple[int, int, int]) -> None:
            entry = machine.measure(shape, able, rounds)
            report["benchmark"] += [] if entry is None else [entry]

        for shape in measure.SHAPES:
            yield f"benchmark of {shape}", partial(bench, shape)


def say(line: str) -> None:
    """Print to the terminal."""
    print(line, file=sys.stderr, flush=True)


def _keep(report: Record, file: Path, asked: tuple[str, ...]) -> None:
    """Keep the other parts of an earlier report, if it is of the same source and machine."""
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    other = [key for key in SAME if before.get(key) != report[key]]
    if other:
        say(f"{file} is of another {', '.join(other)}: nothing of it is kept")
        return
    for part in set(PARTS) - set(asked):
        report[part] = before.get(part, report[part])


def _write(report: Record, output: Path) -> bool:
    """Write both files; return whether that was possible."""
    report["failed"] = report_of.failures(report)
    try:
        output.mkdir(parents=True, exist_ok=True)
        replaced(output / "report.json", dumps(report))
        replaced(output / "report.md", report_of.page(report))
    except OSError as error:
        say(f"The report cannot be written: {error}; --output names another folder.")
        return False
    return True


def minutes(text: str) -> float:
    """Read a positive number, for the parser."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise ValueError(text)
    return number


def _stop(number: int, frame: Any) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):  # the report has to be written before another one
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(number)


if __name__ == "__main__":
    sys.exit(main())
