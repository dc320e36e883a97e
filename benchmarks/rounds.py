"""One case: the numbers are drawn, everyone's results are checked, then everyone is timed in rounds, in turn."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import naive
from benchmarks.case import PASSES, Case, make, save
from benchmarks.pool import Pool
from benchmarks.worker import LONG

# A result with fewer than half of its digits right is another computation, and its time says nothing. What is right but
# for rounding lies orders of magnitude below, and its error is published beside the time.
REFUSED_ABOVE = {name: float(np.finfo(name).eps) ** -0.5 for name in ("float32", "float64")}
# Where a slope jumps, rounding may put a state on the other side of 0, and gradients of that row by percents elsewhere.
REFUSED_AT_KINKS = 0.25
# Enough for an interval. Who has had so many, and more than a fair share of the time, rests while the others go on.
FEWEST = 5
# Whoever takes so many times as long as the fastest, and seconds at that, is called once and not in rounds.
FAR_BEHIND = 8.0


class Numbers:
    """The problem of a case and its answer, on the disk, for every worker to read; kept while the next case has the same."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._key: tuple[Any, ...] | None = None

    def ready(self, case: Case) -> Path:
        """The folder with the numbers of a case."""
        key = (case.shape, case.layers, case.nonlinearity, case.kind)
        if key != self._key:
            shutil.rmtree(self.folder, ignore_errors=True)
            # Drawn as float32, so that these serve the case in float64 as well.
            plain = Case(*case.shape, case.layers, case.nonlinearity, kind=case.kind)
            save(self.folder / "problem", make(plain).to_numbers())
            save(self.folder / "truth", naive.answer(plain))
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
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Check and time a case.

    Parameters
    ----------
    pool : Pool
    names : sequence of str
        The peers, in the order of the first round; every round begins one further on.
    case : Case
    numbers : Numbers
    rounds : int
        At most so many.
    seconds : float
        The time for the rounds; `FEWEST` are made in any case.
    passes : sequence of {"forward", "both"}

    Returns
    -------
    dict
        "case"; "rounds" made; "peers": by name, with "errors" (the largest by pass, in eps), "first" (seconds of the first
        call of a pass, compilation included), "seconds" by pass and round, "about", or "left_out": why there are none.
    """
    folder = numbers.ready(case)
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        request = {"do": "prepare", "case": case.to_json(), "folder": str(folder)}
        found[name] = _accepted(pool.ask(name, case.threads, request), case, passes)
    _time_once(found, passes)
    turns = [(name, of) for name in names for of in passes if found[name].get("seconds", {}).get(of) == []]
    spent = dict.fromkeys(turns, 0.0)
    began, made = clock(), 0
    share = seconds / max(1, len(turns))
    while made < rounds and turns and (made < FEWEST or clock() - began < seconds):
        start = made % len(turns)
        for name, of in turns[start:] + turns[:start]:
            if (made >= FEWEST and spent[name, of] > share) or "left_out" in found[name]:
                continue
            asked = clock()
            answer = pool.ask(name, case.threads, {"do": "time", "pass": of})
            spent[name, of] += clock() - asked
            if "failed" in answer:
                found[name] = {"left_out": answer["failed"]}
            else:
                found[name]["seconds"][of].append(answer["seconds"])
        made += 1
    for name in names:
        pool.ask(name, case.threads, {"do": "forget"})
    return {"case": case.to_json(), "rounds": made, "peers": found}


def _time_once(found: dict[str, dict[str, Any]], passes: Sequence[str]) -> None:
    """Take the second call of the check as the time of those that are far behind: rounds of them would take hours."""
    for of in passes:
        again = {name: entry["again"][of] for name, entry in found.items() if of in entry.get("again", ())}
        for name, seconds in again.items():
            if seconds > LONG and seconds > FAR_BEHIND * min(again.values()):
                found[name]["seconds"][of].append(seconds)


def _accepted(answer: dict[str, Any], case: Case, passes: Sequence[str]) -> dict[str, Any]:
    """The entry of a peer after its check: ready to be timed, or why it is not."""
    reason = answer.get("unsupported") or answer.get("failed")
    if reason is not None:
        return {"left_out": reason}
    errors: dict[str, float] = {}
    for of, by_array in answer["errors"].items():
        worst = max(by_array, key=by_array.__getitem__)
        limit = REFUSED_ABOVE[case.dtype]
        if case.nonlinearity == "relu" and of == "both":
            limit = REFUSED_AT_KINKS / float(np.finfo(case.dtype).eps)
        if not by_array[worst] <= limit:
            return {"left_out": f"{of}: wrong by {by_array[worst]:.3g} eps in {worst}"}
        errors[of] = by_array[worst]
    ours = [of for of in passes if of in errors]
    return {
        "errors": errors,
        "first": {of: answer["first"][of] for of in ours},
        "again": {of: answer["again"][of] for of in ours},
        "about": answer["about"],
        "seconds": {of: [] for of in ours},
    }
