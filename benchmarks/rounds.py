"""One case: draw the numbers, check the results of every library, then time them in interleaved rounds."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from benchmarks import naive
from benchmarks.case import PASSES, Case, make, save
from benchmarks.pool import Pool
from benchmarks.worker import LONG

# The time of a result with fewer than half of its digits right means nothing. Rounding errors are orders of magnitude smaller,
# and are published.
REFUSED_ABOVE = {name: float(np.finfo(name).eps) ** -0.5 for name in ("float32", "float64")}
# At the kink of relu, rounding may put a state on the other side of 0, which changes gradients of its row by percents.
REFUSED_AT_KINKS = 0.25
# Rounds enough for an interval. A library with more, and more than its share of the time, waits for the others.
FEWEST = 5
# A library that takes seconds, and this many times as long as the fastest, is called once and not in rounds.
FAR_BEHIND = 8.0


class Numbers:
    """The problem of a case and its answer, on disk for every worker; kept while the next case has the same."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._key: tuple[Any, ...] | None = None

    def ready(self, case: Case, steps: int | None = None) -> Path:
        """Return the folder with the numbers of a case, and the answer of all or of its first steps."""
        key = (case.shape, case.layers, case.nonlinearity, case.kind, steps)
        if key != self._key:
            shutil.rmtree(self.folder, ignore_errors=True)
            # Drawn as float32, so that they serve the case in float64 as well.
            problem = make(replace(case, dtype="float32"))
            save(self.folder / "problem", problem.to_numbers())
            save(self.folder / "truth", naive.both((problem.first(steps) if steps else problem).astype("float64")))
            self._key = key
        return self.folder


def measure(
    pool: Pool,
    names: Sequence[str],
    case: Case,
    numbers: Numbers,
    *,
    rounds: int,
    seconds: float = math.inf,
    passes: Sequence[str] = PASSES,
    steps: int | None = None,
    limit: float | None = None,
) -> dict[str, Any]:
    """Check and time a case.

    Parameters
    ----------
    pool : Pool
    names : sequence of str
        The peers in the order of the first round; every round begins one further on.
    case : Case
    numbers : Numbers
    rounds : int
        The maximum.
    seconds : float
        The time for the rounds; `FEWEST` are made in any case.
    passes : sequence of {"forward", "both"}
    steps : int, optional
        Check only the first steps.
    limit : float, optional
        The largest error allowed, in eps. By default a result has to have half of its digits.

    Returns
    -------
    dict
        "case"; "rounds" made; "peers": by name, with "errors" (the largest by pass, in eps), "first" (seconds of the first
        call of a pass, compilation included), "seconds" by pass and round, "about", "peak"; or "left_out" (the reason) and
        "kind" ("unsupported", "failed" or "wrong").
    """
    folder = numbers.ready(case, steps)
    prepare = {"do": "prepare", "case": case.to_json(), "folder": str(folder)} | ({"steps": steps} if steps else {})
    found = {name: _accepted(pool.ask(name, case.threads, prepare), case, passes, limit) for name in names}
    _time_once(found, passes)
    turns = [(name, of) for name in names for of in passes if found[name].get("seconds", {}).get(of) == []]
    spent = dict.fromkeys(turns, 0.0)
    began, made = monotonic(), 0
    share = seconds / max(1, len(turns))
    while made < rounds and turns and (made < FEWEST or monotonic() - began < seconds):
        start = made % len(turns)
        for name, of in turns[start:] + turns[:start]:
            if (made >= FEWEST and spent[name, of] > share) or "left_out" in found[name]:
                continue
            asked = monotonic()
            answer = pool.ask(name, case.threads, {"do": "time", "pass": of})
            spent[name, of] += monotonic() - asked
            if "failed" in answer:
                found[name] = {"left_out": answer["failed"], "kind": "failed"}
            else:
                found[name]["seconds"][of].append(answer["seconds"])
        made += 1
    for name in names:
        if "left_out" not in found[name]:
            pool.ask(name, case.threads, {"do": "forget"})
    return {"case": case.to_json(), "rounds": made, "peers": found}


def _time_once(found: dict[str, dict[str, Any]], passes: Sequence[str]) -> None:
    """Take the second call of the check as the time of libraries far behind: rounds of them would take hours."""
    for of in passes:
        again = {name: entry["again"][of] for name, entry in found.items() if of in entry.get("again", ())}
        for name, seconds in again.items():
            if seconds > LONG and seconds > FAR_BEHIND * min(again.values()):
                found[name]["seconds"][of].append(seconds)


def _accepted(answer: dict[str, Any], case: Case, passes: Sequence[str], limit: float | None) -> dict[str, Any]:
    """Return the entry of a peer after its check: ready to be timed, or why it is not."""
    for kind in ("unsupported", "failed"):
        if kind in answer:
            return {"left_out": answer[kind], "kind": kind}
    errors: dict[str, float] = {}
    for of, by_array in answer["errors"].items():
        worst = max(by_array, key=by_array.__getitem__)
        allowed = limit or REFUSED_ABOVE[case.dtype]
        if case.nonlinearity == "relu" and of == "both":
            allowed = REFUSED_AT_KINKS / float(np.finfo(case.dtype).eps)
        if not by_array[worst] <= allowed:
            return {"left_out": f"{of}: wrong by {by_array[worst]:.3g} eps in {worst}", "kind": "wrong"}
        errors[of] = by_array[worst]
    timed = [of for of in passes if of in errors]
    parts = {key: {of: answer[key][of] for of in timed if of in answer[key]} for key in ("first", "again", "peak")}
    return {"errors": errors, **parts, "about": answer["about"], "seconds": {of: [] for of in timed}}
