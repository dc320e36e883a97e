"""The process that one library runs in: it prepares a case, checks it, and times one round at a time, when asked.

``python -m benchmarks.worker FACTORY THREADS`` reads requests from standard input, a line of JSON each, and answers likewise.

| request | answer |
|---|---|
| {"do": "prepare", "case": ..., "folder": ...} | by pass: "errors" in eps, seconds of the "first" call and of one "again" |
| {"do": "time", "pass": "forward" or "both"} | seconds of one call: the mean of calls one after another for about `ROUND` |
| {"do": "where"} | which BLAS and OpenMP run, with how many threads, on which processors |
| {"do": "forget"} | nothing: the case's arrays are given back |

What goes wrong is answered too, as {"failed": why}, and the process goes on.
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
from pathlib import Path
from typing import Any

# Seconds: a round of a call of 50 microseconds is a thousand calls, of a call that takes longer it is one.
ROUND = 0.05
# A call shorter than this runs once before it is timed: the others have had the caches meanwhile.
WARM = 0.25
# A first call longer than this is not repeated to see how long the next one takes: compiling is little of it.
LONG = 5.0


def main(arguments: list[str]) -> None:
    """Serve until standard input ends."""
    factory, threads = arguments[0], int(arguments[1])
    # Before any library is imported: XLA and OpenMP count the processors that they may use then.
    pin(threads)
    # What libraries print must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    worker = Worker(factory)
    for line in sys.stdin:
        try:
            answer = worker.answer(json.loads(line))
        except Exception as error:  # the parent prints it in the place of the numbers
            answer = {"failed": _in_short(error)}
        answers.write(json.dumps(answer) + "\n")


def pin(threads: int) -> None:
    """Let this process have so many processors, the first of those it is allowed."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


class Worker:
    """One library and the case that it is at."""

    def __init__(self, factory: str) -> None:
        self.factory = factory
        self.passes: dict[str, Callable[[], Any]] = {}
        self.estimate: dict[str, float] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """What a request asks for."""
        kind = request["do"]
        if kind == "prepare":
            return self.prepare(request["case"], Path(request["folder"]))
        if kind == "time":
            return {"seconds": self.time(request["pass"])}
        if kind == "forget":
            self.passes.clear()
            gc.collect()
            return {}
        return where()

    def prepare(self, fields: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Lay the case out, run each pass twice, and hold the first results against the truth."""
        from benchmarks import naive, peers
        from benchmarks.case import Case, Problem, load

        self.passes.clear()
        gc.collect()
        case = Case.from_json(fields)
        problem = Problem.from_numbers(case, load(folder / "problem"))
        truth = load(folder / "truth")
        try:
            prepared = peers.prepare(self.factory, problem)
        except peers.Unsupported as reason:
            return {"unsupported": str(reason)}
        passes = {"forward": prepared.forward} | ({} if prepared.both is None else {"both": prepared.both})
        errors, first, about = {}, {}, prepared.about
        for name, call in passes.items():
            first[name], found = _timed(call)
            wanted = truth if name == "both" else {n: truth[n] for n in ("output", "h_n")}
            if prepared.read is not None:
                errors[name] = naive.errors(prepared.read(found), wanted, case.dtype)
            del found
            self.estimate[name] = first[name] if first[name] > LONG else _timed(call)[0]
        self.passes = passes
        return {"errors": errors, "first": first, "again": dict(self.estimate), "about": about}

    def time(self, name: str) -> float:
        """Seconds of a call, the mean of one round."""
        call = self.passes[name]
        if self.estimate[name] < WARM:
            call()
        calls = max(1, math.ceil(ROUND / max(self.estimate[name], 1e-7)))
        # No round pays for what the one before left lying; a collection of everything would take longer than most rounds.
        gc.collect(1)
        began = time.perf_counter()
        for _ in range(calls):
            call()
        self.estimate[name] = (time.perf_counter() - began) / calls
        return self.estimate[name]


def _in_short(error: Exception) -> str:
    """One line without colours: it stands in a table."""
    words = re.sub(r"\x1b\[[\d;]*m", "", f"{type(error).__name__}: {error}").split()
    return textwrap.shorten(" ".join(words), 200, placeholder=" ...")


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    found = call()
    return time.perf_counter() - began, found


def where() -> dict[str, Any]:
    """What the process computes with."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        threadpoolctl: Any = importlib.import_module("threadpoolctl")
    except ImportError:
        return {"pools": None, "processors": processors}
    kept = ("internal_api", "version", "num_threads", "architecture", "threading_layer")
    pools = [{k: pool[k] for k in kept if pool.get(k) is not None} for pool in threadpoolctl.threadpool_info()]
    return {"pools": pools, "processors": processors}


if __name__ == "__main__":
    main(sys.argv[1:])
