"""The command: ``python -m benchmarks`` measures, ``python -m benchmarks report FILE`` makes the page from the numbers."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# Before NumPy is imported, because its BLAS starts its threads then; this process computes almost nothing.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from benchmarks import report, suite
from benchmarks.case import DTYPES, LAYERS, NONLINEARITIES, QUICK_SHAPES, SHAPES, THREADS
from benchmarks.peers import PEERS


def parser() -> argparse.ArgumentParser:
    """Return the parser of a run's options."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure every backend against every peer that is installed."
    )
    made.add_argument(
        "--json",
        type=Path,
        default=Path("performance.json"),
        help="the file of the numbers; the page is written beside it",
    )
    made.add_argument(
        "--add",
        action="store_true",
        help="add what the file lacks; machine and versions must be the same",
    )
    made.add_argument("--quick", action="store_true", help="tiny shapes and few rounds, to see that it runs")
    made.add_argument("--minutes", type=float, default=math.inf, help="time for all cases; the page lists the rest")
    made.add_argument("--rounds", type=int, default=15)
    made.add_argument("--shapes", nargs="+", type=_shape, metavar="T,B,H", help="by default the eight fixed ones")
    made.add_argument("--layers", nargs="+", type=int, default=LAYERS)
    made.add_argument("--nonlinearities", nargs="+", choices=NONLINEARITIES, default=NONLINEARITIES)
    made.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    made.add_argument("--threads", nargs="+", type=int, help="by default 1 and 2, as far as there are processors")
    made.add_argument("--peers", nargs="+", choices=tuple(PEERS), default=tuple(PEERS))
    made.add_argument("--parts", nargs="+", choices=suite.PARTS, default=suite.PARTS)
    return made


def options(arguments: Sequence[str]) -> tuple[suite.Options, Path, bool]:
    """Return the options of a command line, the file, and whether to add to it.

    >>> options(["--quick", "--peers", "numpy"])[0].shapes
    ((20, 1, 8), (12, 6, 16))
    """
    asked = parser().parse_args(arguments)
    threads = asked.threads or [t for t in THREADS if t <= (os.cpu_count() or 1)]
    chosen = {n: tuple(getattr(asked, n)) for n in ("layers", "nonlinearities", "dtypes", "peers", "parts")}
    shapes = tuple(asked.shapes or (QUICK_SHAPES if asked.quick else SHAPES))
    rounds = min(asked.rounds, 3) if asked.quick else asked.rounds
    made = suite.Options(
        shapes, threads=tuple(threads), rounds=rounds, minutes=asked.minutes, quick=asked.quick, **chosen
    )
    return made, asked.json, asked.add


def main(arguments: Sequence[str]) -> None:
    """Measure and write the page, or write only the page."""
    if arguments[:1] == ["report"]:
        written = [path for source in arguments[1:] for path in report.write(Path(source))]
    else:
        chosen, path, add = options(arguments)
        suite.run(chosen, path, before=json.loads(path.read_text()) if add and path.exists() else None)
        written = [path, *report.write(path)]
    print("\n".join(map(str, written)))


def _shape(text: str) -> tuple[int, int, int]:
    sizes = text.split(",")
    if len(sizes) != 3 or not all(s.strip().isdigit() and int(s) > 0 for s in sizes):
        raise argparse.ArgumentTypeError(f"expected T,B,H as in 256,1,64, got {text!r}")
    steps, batch, width = map(int, sizes)
    return steps, batch, width


if __name__ == "__main__":
    main(sys.argv[1:])
