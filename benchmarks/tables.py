"""The numbers of a run, turned into rows: who was best, by how much, with which share of the machine's peak."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.case import Case, Host
from benchmarks.peers import DROP_IN, NUMPY_ARRAYS, PLAIN, TORCH
from benchmarks.ratios import Estimate, geometric_mean, paired, ratio

Data = Mapping[str, Any]
Group = tuple[int, str, str, int]


@dataclass(frozen=True)
class Comparison:
    """Two peers in one case and pass: seconds of both, and how many times as long the other takes."""

    case: Case
    ours: str
    theirs: str
    seconds: float
    estimate: Estimate
    rounds: Host


def groups(data: Data) -> dict[Group, list[Data]]:
    """The cases of a run by (layers, nonlinearity, dtype, threads), in the order they were measured in."""
    found: dict[Group, list[Data]] = {}
    for entry in data["cases"]:
        c = entry["case"]
        found.setdefault((c["layers"], c["nonlinearity"], c["dtype"], c["threads"]), []).append(entry)
    return found


def medians(entry: Data, of: str) -> dict[str, float]:
    """Seconds of a pass by peer, of those that were timed."""
    timed = {n: p["seconds"].get(of) for n, p in entry["peers"].items() if "seconds" in p}
    return {n: statistics.median(s) for n, s in timed.items() if s}


def best(entry: Data, of: str, names: Iterable[str]) -> str | None:
    """Whose median is the lowest; None where none of them was timed."""
    found = {n: s for n, s in medians(entry, of).items() if n in set(names)}
    return min(found, key=found.__getitem__) if found else None


def compare(entry: Data, of: str, theirs: str | None, ours: str | None) -> Comparison | None:
    """A peer against one of ours; None where one of them was not timed."""
    found = medians(entry, of)
    if theirs not in found or ours not in found or theirs is None or ours is None:
        return None
    times = [entry["peers"][n]["seconds"][of] for n in (theirs, ours)]
    return Comparison(
        Case.from_json(entry["case"]), ours, theirs, found[ours], ratio(*times), paired(*times)
    )  # fmt: skip


def against_torch(data: Data, entry: Data, of: str) -> Comparison | None:
    """Torch's module against the best of ours that computes with NumPy's arrays."""
    return compare(entry, of, TORCH, best(entry, of, NUMPY_ARRAYS))


def against_best(data: Data, entry: Data, of: str) -> Comparison | None:
    """The best of all that are not ours, against the same."""
    theirs = [n for n in entry["peers"] if n not in data["ours"]]
    return compare(entry, of, best(entry, of, theirs), best(entry, of, NUMPY_ARRAYS))


def plain(data: Data, entry: Data, of: str) -> Comparison | None:
    """Torch's module against rnncore on NumPy alone, without a compiler."""
    return compare(entry, of, TORCH, PLAIN)


def drop_in(data: Data, entry: Data, of: str) -> Comparison | None:
    """Torch's module against the drop-in."""
    return compare(entry, of, TORCH, DROP_IN)


COMPARISONS = {
    "vs torch.nn.RNN": against_torch,
    "vs the best peer": against_best,
    "NumPy alone vs torch.nn.RNN": plain,
    "drop-in vs torch.nn.RNN": drop_in,
}


def mean(found: Sequence[Comparison | None]) -> Estimate | None:
    """The geometric mean of those that there are."""
    rounds = [c.rounds for c in found if c is not None]
    return geometric_mean(rounds) if rounds else None


def peak(data: Data, dtype: str, threads: int, run: int = 0) -> float | None:
    """Floating-point operations a second of the faster of the two libraries' products; None where neither was measured."""
    wanted = dtype, threads, run
    of_run = [p["gflops"] for p in data["peaks"] if (p["dtype"], p["threads"], p.get("run", 0)) == wanted]
    rates = [rate for gflops in of_run for rate in gflops.values()]
    return 1e9 * max(rates) if rates else None


def share(data: Data, case: Case, of: str, seconds: float, run: int = 0) -> float | None:
    """The part of the peak, in the same run, that a pass reaches: its products' operations over its whole time."""
    top = peak(data, case.dtype, case.threads, run)
    return None if top is None else case.flops(of) / seconds / top


def worst_errors(data: Data) -> dict[str, dict[str, float]]:
    """The largest error of each peer over all cases, by precision, in eps."""
    found: dict[str, dict[str, float]] = {}
    for entry in data["cases"]:
        for name, peer in entry["peers"].items():
            if "errors" in peer:
                held = found.setdefault(name, {})
                dtype = entry["case"]["dtype"]
                held[dtype] = max([held.get(dtype, 0.0), *peer["errors"].values()])
    return found


def left_out(data: Data) -> list[tuple[str, str, list[Case]]]:
    """The cases in which a peer was not timed: its name, the first reason, and all whose reasons differ in figures only."""
    found: dict[tuple[str, str], tuple[str, str, list[Case]]] = {}
    sweeps = [entry for entries in data.get("sweeps", {}).values() for entry in entries]
    for entry in [*data["cases"], *data.get("denormal", ()), *sweeps]:
        for name, peer in entry["peers"].items():
            if "left_out" in peer:
                kind = name, re.sub(r"\d[\d.e+,]*", "", peer["left_out"])
                found.setdefault(kind, (name, peer["left_out"], []))[2].append(Case.from_json(entry["case"]))
    return list(found.values())


def sizes_and_seconds(entries: Sequence[Data], axis: str) -> dict[str, tuple[list[int], list[float]]]:
    """The sizes and medians of a sweep, by peer."""
    field = {"T": "steps", "B": "batch"}[axis]
    found: dict[str, tuple[list[int], list[float]]] = {}
    for entry in entries:
        for name, seconds in medians(entry, "both").items():
            at = found.setdefault(name, ([], []))
            at[0].append(entry["case"][field])
            at[1].append(seconds)
    return found


def memory_medians(data: Data) -> dict[str, dict[str, float]]:
    """Grown, total and seconds by peer, of those whose processes answered."""
    return {
        name: {key: float(np.median(peer[key])) for key in ("grown", "total", "seconds")}
        for name, peer in data["memory"]["peers"].items()
        if peer["grown"]
    }
