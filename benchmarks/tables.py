"""From the rounds of a case to the numbers that are published, and from those to the rows of a table.

A case is published as one row for each library (see `COLUMNS`, or the reason why it was not timed) and, for each comparison
of two libraries, the ratios of its rounds: geometric means and their intervals are made of them.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.case import PASSES, Case
from benchmarks.peers import DROP_IN, NUMPY_ARRAYS, PLAIN, TORCH
from benchmarks.ratios import Estimate, geometric_mean, paired, ratio

Data = Mapping[str, Any]
Group = tuple[int, str, str, int]
# Which two libraries are compared, from the seconds of all and the names of ours: (theirs, ours).
Pick = Callable[[Mapping[str, float], Collection[str]], tuple[str | None, str | None]]

COLUMNS = (
    "forward, ms",
    "forward + backward, ms",
    "first forward, s",
    "first forward + backward, s",
    "largest error, eps",
)


def fastest(seconds: Mapping[str, float], names: Iterable[str]) -> str | None:
    """Return the name with the lowest median, or None if none was timed."""
    return min((n for n in names if n in seconds), key=seconds.__getitem__, default=None)


def _best_peer(seconds: Mapping[str, float], ours: Collection[str]) -> tuple[str | None, str | None]:
    return fastest(seconds, (n for n in seconds if n not in ours)), fastest(seconds, NUMPY_ARRAYS)


COMPARISONS: Mapping[str, Pick] = {
    "vs torch.nn.RNN": lambda seconds, ours: (TORCH, fastest(seconds, NUMPY_ARRAYS)),
    "vs the best peer": _best_peer,
    "NumPy alone vs torch.nn.RNN": lambda seconds, ours: (TORCH, PLAIN),
    "drop-in vs torch.nn.RNN": lambda seconds, ours: (TORCH, DROP_IN),
}


def summary(found: Data, ours: Collection[str], comparisons: Mapping[str, Pick] = COMPARISONS) -> dict[str, Any]:
    """Return what is published of a measured case; "ratios" has a list for each pass and comparison.

    Parameters
    ----------
    found : mapping
        What :func:`benchmarks.rounds.measure` returned.
    ours : collection of str
        The names of rnncore's own entries.
    comparisons : mapping of str to callable
    """
    peers = {name: peer.get("left_out") or _row(peer) for name, peer in found["peers"].items()}
    entry: dict[str, Any] = {"case": found["case"], "peers": peers, "ratios": {}}
    for of in PASSES:
        pairs = [pick(medians(entry, of), ours) for pick in comparisons.values()]
        times = [[found["peers"].get(name, {}).get("seconds", {}).get(of) for name in pair] for pair in pairs]
        entry["ratios"][of] = [paired(*pair).tolist() if all(pair) else None for pair in times]
    return entry


def _row(peer: Data) -> list[float | None]:
    seconds, first = peer["seconds"], peer["first"]
    times = [1e3 * statistics.median(seconds[of]) if seconds.get(of) else None for of in PASSES]
    others = [*(first.get(of) for of in PASSES), max(peer["errors"].values(), default=None)]
    return [*times, *(None if v is None else float(f"{v:.3g}") for v in others)]


def slower(slow: Data, fast: Data) -> dict[str, Any]:
    """Return both medians by name, and how many times as long the slow case takes, with its interval; or the reason."""
    found: dict[str, list[float] | str] = {}
    for name, peer in fast["peers"].items():
        times = [p.get("seconds", {}).get("both") for p in (peer, slow["peers"][name])]
        if all(times):
            found[name] = [*map(statistics.median, times), *vars(ratio(times[1], times[0])).values()]
        elif "left_out" in peer:
            found[name] = peer["left_out"]
    return {"case": fast["case"], "peers": found}


def groups(data: Data) -> dict[Group, list[Data]]:
    """Return the cases of a run by (layers, nonlinearity, dtype, threads), in the order of measurement."""
    found: dict[Group, list[Data]] = {}
    for entry in data["cases"]:
        case = Case(**entry["case"])
        found.setdefault((case.layers, case.nonlinearity, case.dtype, case.threads), []).append(entry)
    return found


def medians(entry: Data, of: str) -> dict[str, float]:
    """Return the seconds of a pass by name, for those that were timed."""
    column = PASSES.index(of)
    return {n: row[column] / 1e3 for n, row in entry["peers"].items() if not isinstance(row, str) and row[column]}


def mean(entries: Sequence[Data], of: str, k: int) -> Estimate | None:
    """Return the geometric mean of the k-th comparison over the cases that have it; of one case, its median ratio."""
    rounds = [np.asarray(e["ratios"][of][k]) for e in entries if e["ratios"][of][k]]
    return geometric_mean(rounds) if rounds else None


def share(data: Data, entry: Data, of: str, seconds: float) -> float | None:
    """Return which part of the peak, measured in the same run, the products of a pass reach; None if there is no peak."""
    case = Case(**entry["case"])
    wanted = case.dtype, case.threads, entry.get("run", 0)
    same = [p["gflops"] for p in data["peaks"] if (p["dtype"], p["threads"], p.get("run", 0)) == wanted]
    rates = [rate for gflops in same for rate in gflops.values()]
    return case.flops(of) / seconds / (1e9 * max(rates)) if rates else None


def worst_errors(data: Data) -> dict[str, dict[str, float]]:
    """Return the largest error of each peer over all cases, by precision, in eps."""
    found: dict[str, dict[str, float]] = {}
    for entry in data["cases"]:
        dtype = Case(**entry["case"]).dtype
        for name, row in entry["peers"].items():
            if not isinstance(row, str) and row[-1] is not None:
                held = found.setdefault(name, {})
                held[dtype] = max(held.get(dtype, 0.0), row[-1])
    return found


def first_calls(data: Data, name: str, of: str) -> list[float]:
    """Return the seconds of all first calls of a pass, sorted."""
    column = len(PASSES) + PASSES.index(of)
    rows = [entry["peers"].get(name, "") for entry in data["cases"]]
    return sorted(row[column] for row in rows if not isinstance(row, str) and row[column] is not None)


def left_out(data: Data) -> list[tuple[str, str, list[Case]]]:
    """Return name, first reason and cases of peers that were not timed; reasons that differ only in numbers are one."""
    found: dict[tuple[str, str], tuple[str, str, list[Case]]] = {}
    for entry in [*data["cases"], *data.get("denormal", ()), *data.get("sweeps", ())]:
        for name, reason in entry["peers"].items():
            if isinstance(reason, str):
                kind = name, re.sub(r"\d[\d.e+,]*", "", reason)
                found.setdefault(kind, (name, reason, []))[2].append(Case(**entry["case"]))
    return list(found.values())


def sweep(data: Data, axis: str) -> tuple[list[Data], dict[str, tuple[list[int], list[float]]]]:
    """Return the entries of a sweep, and the sizes and medians by peer."""
    entries = [entry for entry in data.get("sweeps", ()) if entry["axis"] == axis]
    found: dict[str, tuple[list[int], list[float]]] = {}
    for entry in entries:
        for name, seconds in medians(entry, "both").items():
            at = found.setdefault(name, ([], []))
            at[0].append(entry["case"]["steps" if axis == "T" else "batch"])
            at[1].append(seconds)
    return entries, found
