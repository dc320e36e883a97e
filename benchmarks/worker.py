"""The process that one library runs in: on request it prepares a case, checks it, and times one round at a time.

``python -m benchmarks.worker FACTORY THREADS`` reads requests from standard input, one line of JSON each, and answers in kind.

| request | answer |
|---|---|
| {"do": "prepare", "case": ..., "folder": ..., "steps": ...} | by pass: "errors", seconds of the "first" and second call |
| {"do": "time", "pass": "forward" or "both"} | seconds of one call: the mean of calls in a row for about `ROUND` |
| {"do": "where"} | which BLAS libraries run, on how many processors |
| {"do": "forget"} | nothing: the case's arrays are freed |

"steps" limits the check to the first steps of the case. Errors are answered as {"failed": reason}, and the process goes on.
"""

from __future__ import annotations

import gc
import importlib
import json
import math
import os
import re
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.peers import Prepared

# Seconds: a round repeats a short call for this time, and makes one call of a longer one.
ROUND = 0.05
# A call shorter than this runs once before it is timed, because the others have used the caches meanwhile.
WARM = 0.25
# A first call longer than this is not repeated to estimate the next one: compiling is a small part of it.
LONG = 5.0


def main(factory: str, threads: str) -> None:
    """Serve until standard input ends."""
    # Before any library is imported: XLA and OpenMP count the usable processors then.
    pin(int(threads))
    # What libraries print must not look like an answer.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    worker = Worker(factory)
    for line in sys.stdin:
        try:
            answer = worker.answer(**json.loads(line))
        except Exception as error:  # the parent reports it in the place of the numbers
            answer = {"failed": in_short(error)}
        answers.write(json.dumps(answer) + "\n")


def pin(threads: int) -> None:
    """Restrict this process to the first processors that it may use."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def in_short(error: Exception) -> str:
    """Return an error as one line without colours, for a table."""
    words = re.sub(r"\x1b\[[\d;]*m", "", f"{type(error).__name__}: {error}").split()
    return textwrap.shorten(" ".join(words), 200, placeholder=" ...")


@dataclass
class Worker:
    """One library and its present case."""

    factory: str
    prepared: Prepared | None = None
    estimate: dict[str, float] = field(default_factory=dict)

    def answer(self, do: str, **request: Any) -> dict[str, Any]:
        """Do what a request says."""
        if do == "prepare":
            return self.prepare(**request)
        if do == "time":
            return {"seconds": self.time(request["pass"])}
        if do == "forget":
            self.forget()
            return {}
        return where()

    def forget(self) -> None:
        """Free the case."""
        self.prepared = None
        gc.collect()

    def prepare(self, case: dict[str, Any], folder: str, steps: int | None = None) -> dict[str, Any]:
        """Lay the case out, run each pass twice, and compare the first results with the oracle."""
        from benchmarks import naive, peers
        from benchmarks.case import Case, Problem, load

        self.forget()
        problem = Problem.from_numbers(Case(**case), load(Path(folder) / "problem")).astype(Case(**case).dtype)
        short = problem.first(steps) if steps else problem
        truth = load(Path(folder) / "truth")
        try:
            checked = self.prepared = peers.prepare(self.factory, short)
        except peers.Unsupported as reason:
            return {"unsupported": str(reason)}
        found: dict[str, Any] = {"errors": {}, "first": {}, "about": checked.about, "peak": {}}
        for name, call in checked.passes().items():
            found["first"][name], result = _timed(call)
            wanted = truth if name == "both" else {n: truth[n] for n in ("output", "h_n")}
            if checked.read is not None:
                found["errors"][name] = naive.errors(checked.read(result), wanted, short.case.dtype)
            del result
        if short.case != problem.case:
            self.prepared = peers.prepare(self.factory, problem)
            found["about"] = self.prepared.about
        for name, call in self.prepared.passes().items():
            long = found["first"][name] > LONG and self.prepared is checked
            self.estimate[name] = found["first"][name] if long else self.prepared.clock(call)
            if self.prepared.peak is not None:
                found["peak"][name] = self.prepared.peak(call)
        return found | {"again": dict(self.estimate)}

    def time(self, name: str) -> float:
        """Return the seconds of a call, the mean of one round."""
        assert self.prepared is not None
        call = self.prepared.passes()[name]
        if self.estimate[name] < WARM:
            call()
        calls = max(1, math.ceil(ROUND / max(self.estimate[name], 1e-7)))
        # Garbage of one round must not slow the next; a full collection would take longer than most rounds.
        gc.collect(1)
        self.estimate[name] = self.prepared.clock(call, calls)
        return self.estimate[name]


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    found = call()
    return time.perf_counter() - began, found


def where() -> dict[str, Any]:
    """Return which BLAS libraries the process computes with, and on how many processors."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        threadpoolctl: Any = importlib.import_module("threadpoolctl")
    except ImportError:
        return {"blas": [], "processors": processors}
    pools = [p for p in threadpoolctl.threadpool_info() if p["internal_api"] in ("openblas", "mkl")]
    names = [" ".join(filter(None, (p.get(k) for k in ("internal_api", "version", "architecture")))) for p in pools]
    return {"blas": names, "processors": processors}


if __name__ == "__main__":
    main(*sys.argv[1:])
