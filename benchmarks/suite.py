"""Which cases are measured, in which order and within which time: a run, from options to numbers.

What matters first comes first: the cases of one layer, tanh and float32; what is left when the time is over is listed as not
measured. The file is written after every case, so that a run that is cut off loses nothing.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import case as cases
from benchmarks import memory, peers
from benchmarks.case import Case
from benchmarks.peers import sgemm
from benchmarks.pool import PINNED, Pool
from benchmarks.rounds import Numbers, measure

LIBRARIES = ("rnncore", "numpy", "torch", "jax", "jaxlib", "flax", "keras", "onnxruntime", "mlx", "numba")
SWEPT = ("numpy", "numba", "drop-in", "torch.nn.RNN")
MEMORY_SHAPE, MEMORY_QUICK = (4096, 16, 256), (64, 4, 16)
START_SHAPE = (256, 1, 64)
PARTS = ("grid", "denormal", "slopes", "memory", "starts")
PEAK_ROUNDS, SWEEP_ROUNDS, FRESH_ROUNDS = 9, 7, 3


@dataclass(frozen=True)
class Options:
    """What is measured; every tuple restricts, and the default is all."""

    shapes: tuple[tuple[int, int, int], ...] = cases.SHAPES
    layers: tuple[int, ...] = cases.LAYERS
    nonlinearities: tuple[str, ...] = cases.NONLINEARITIES
    dtypes: tuple[str, ...] = cases.DTYPES
    threads: tuple[int, ...] = cases.THREADS
    peers: tuple[str, ...] = tuple(peers.PEERS)
    parts: tuple[str, ...] = PARTS
    rounds: int = 15
    minutes: float = math.inf
    quick: bool = False


def grid(options: Options) -> list[Case]:
    """Every case of the options, those nearest to (1 layer, tanh, float32) first, a shape with all its numbers of threads.

    >>> [c.layers for c in grid(Options(shapes=((2, 1, 3),), nonlinearities=("tanh",), dtypes=("float32",), threads=(1,)))]
    [1, 4]
    """
    axes = options.layers, options.nonlinearities, options.dtypes
    # Stable: within the same distance as the axes have it, and of each combination all shapes.
    combinations = sorted(product(*axes), key=lambda c: (c[0] > 1) + (c[1] != "tanh") + (c[2] != "float32"))
    threads = sorted(options.threads, reverse=True)
    return [Case(*shape, *c, n) for c in combinations for shape in options.shapes for n in threads]


def share(case: Case, rest: Sequence[Case], seconds: float) -> float:
    """The part of the time left that a case may take of those that are still to come, itself included: by their work."""
    return seconds * _work(case) / sum(_work(c) for c in rest) if math.isfinite(seconds) else math.inf


def _work(case: Case) -> float:
    # Steps count as well as products: the loops in Python take about a tenth of a millisecond for each.
    return 1.0 + case.flops("both") * (2e-10 if case.dtype == "float64" else 1e-10) + 1e-4 * case.steps * case.layers


def run(
    options: Options,
    path: Path | None = None,
    known: Mapping[str, peers.Peer] | None = None,
    before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure, and write to a file as it goes.

    Parameters
    ----------
    options : Options
    path : Path, optional
    known : mapping, optional
        Peers by name, by default :data:`benchmarks.peers.PEERS`.
    before : mapping, optional
        What an earlier run returned: only what it lacks is measured, and added to it.

    Returns
    -------
    dict
        What :mod:`benchmarks.report` makes a page of.

    Raises
    ------
    ValueError
        Where `before` is of another machine or of other versions.
    """
    everyone = {n: p for n, p in (known or peers.PEERS).items() if n in options.peers}
    missing = {n: reason for n, p in everyone.items() if (reason := peers.usable(p)) is not None}
    here = {n: p for n, p in everyone.items() if n not in missing}
    began = time.monotonic()
    blas = {f"blas {n}": p for n, p in sgemm.BLAS.items() if peers.usable(p) is None}
    data: dict[str, Any] = {
        "environment": environment(),
        "options": {k: v for k, v in asdict(options).items() if v != math.inf},
        "labels": {n: p.label for n, p in everyone.items()},
        "ours": [n for n, p in everyone.items() if p.ours],
        "missing": missing,
        "peaks": [],
        "cases": [],
        "not_measured": [],
    }
    if before is not None:
        data = _joined(before, data)
    with tempfile.TemporaryDirectory() as scratch, Pool({**here, **blas}) as pool:
        numbers = Numbers(Path(scratch) / "numbers")
        part = _Run(options, data, path, pool, here, numbers, began)
        part.peaks(list(blas))
        if "grid" in options.parts:
            part.grid()
        if "denormal" in options.parts and "denormal" not in data:
            part.denormal()
        if "slopes" in options.parts and "sweeps" not in data:
            part.slopes()
        data.setdefault("pools", {}).update(
            (f"{n}, {t} threads", pool.ask(n, t, {"do": "where"}))
            for n in here
            for t in options.threads
            if pool.has(n, t)
        )
        if "memory" in options.parts and "memory" not in data:
            part.memory(Numbers(Path(scratch) / "tiny"))
        if "starts" in options.parts and "starts" not in data:
            shape = cases.QUICK_SHAPES[0] if options.quick else START_SHAPE
            data["starts"] = memory.starts(here, Case(*shape, threads=max(options.threads)), numbers, part.fresh_rounds)
            part.said("cold starts")
    this = data["later"][-1] if before is not None else data["environment"]
    this |= {"minutes": round((time.monotonic() - began) / 60, 1), "load_after": os.getloadavg()}
    part.write()
    return data


def _joined(before: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of an earlier run, with room for those of this one."""
    same = ("processor", "processors", "system", "python", "versions")
    then, now = before["environment"], data["environment"]
    other = [f"{k} was {then[k]}, is {now[k]}" for k in same if then[k] != now[k]]
    if other:
        raise ValueError(f"the numbers that these would be added to are of something else: {'; '.join(other)}")
    this = {"date": now["date"], "load_before": now["load_before"], "rounds": data["options"]["rounds"]}
    return {
        **before,
        "labels": {**before["labels"], **data["labels"]},
        "ours": list(dict.fromkeys([*before["ours"], *data["ours"]])),
        "missing": {**before["missing"], **data["missing"]},
        "later": [*before.get("later", ()), this],
    }


@dataclass
class _Run:
    """The parts of a run, in the order they come in."""

    options: Options
    data: dict[str, Any]
    path: Path | None
    pool: Pool
    here: Mapping[str, peers.Peer]
    numbers: Numbers
    began: float

    @property
    def left(self) -> float:
        return 60 * self.options.minutes - (time.monotonic() - self.began)

    @property
    def mark(self) -> dict[str, int]:
        """Which of several runs a number is of, where it is not the first."""
        later = len(self.data.get("later", ()))
        return {"run": later} if later else {}

    @property
    def fresh_rounds(self) -> int:
        return 1 if self.options.quick else FRESH_ROUNDS

    def peaks(self, names: Sequence[str]) -> None:
        """The best product of large matrices, by threads and precision: the median of rounds in turn."""
        folder = self.numbers.ready(memory.TINY)
        for threads, dtype in product(self.options.threads, self.options.dtypes):
            tiny = replace(memory.TINY, dtype=dtype, threads=threads)
            prepare = {"do": "prepare", "case": tiny.to_json(), "folder": str(folder)}
            able = [n for n in names if "failed" not in self.pool.ask(n, threads, prepare)]
            taken: dict[str, list[float]] = {n: [] for n in able}
            for _ in range(3 if self.options.quick else PEAK_ROUNDS):
                for n in able:
                    answer = self.pool.ask(n, threads, {"do": "time", "pass": "forward"})
                    if "failed" not in answer:
                        taken[n].append(answer["seconds"])
            rates = {n.removeprefix("blas "): sgemm.FLOPS / statistics.median(v) / 1e9 for n, v in taken.items() if v}
            self.data["peaks"].append({"threads": threads, "dtype": dtype, "gflops": rates, **self.mark})
        self.said("peaks of matrix products")

    def grid(self) -> None:
        """Every case, as far as the time goes."""
        known = [Case.from_json(entry["case"]) for entry in self.data["cases"]]
        waiting = [case for case in grid(self.options) if case not in known]
        self.data["not_measured"] = []
        while waiting:
            case = waiting[0]
            if self.left <= 0:
                self.data["not_measured"] = [c.to_json() for c in waiting]
                return
            seconds = share(case, waiting, self.left)
            found = measure(self.pool, list(self.here), case, self.numbers, rounds=self.options.rounds, seconds=seconds)
            self.data["cases"].append(found | self.mark)
            waiting.pop(0)
            self.said(f"{case.shape}, {case.layers} layers, {case.nonlinearity}, {case.dtype}, {case.threads} threads")

    def denormal(self) -> None:
        """The vanishing run, and the same work without denormal numbers."""
        shape = cases.QUICK_SHAPES[0] if self.options.quick else cases.DENORMAL_SHAPE
        plain = Case(*shape, threads=max(self.options.threads))
        kinds = [replace(plain, kind=kind) for kind in ("vanishing", "vanishing, loss everywhere")]
        rounds = min(self.options.rounds, SWEEP_ROUNDS)
        self.data["denormal"] = [
            measure(self.pool, list(self.here), c, self.numbers, rounds=rounds, passes=("both",)) for c in kinds
        ]
        self.said("denormal numbers")

    def slopes(self) -> None:
        """Cost over T and over B."""
        names = [n for n in SWEPT if n in self.here]
        sweeps = {"T": cases.STEPS_SWEEP, "B": cases.ROWS_SWEEP}
        if self.options.quick:
            sweeps = {"T": ((8, 2, 8), (16, 2, 8)), "B": ((8, 2, 8), (8, 4, 8))}
        rounds = min(self.options.rounds, SWEEP_ROUNDS)
        self.data["sweeps"] = {}
        for axis, shapes in sweeps.items():
            found = [Case(*shape, threads=max(self.options.threads)) for shape in shapes]
            self.data["sweeps"][axis] = [
                measure(self.pool, names, c, self.numbers, rounds=rounds, passes=("both",)) for c in found
            ]
            self.said(f"slope in {axis}")

    def memory(self, tiny: Numbers) -> None:
        """Peaks in fresh processes, with and without checkpoints; those that have no gradients are not asked."""
        named = {**self.here, **{n: p for n, p in peers.CHECKPOINTED.items() if n.partition(",")[0] in self.here}}
        case = Case(*(MEMORY_QUICK if self.options.quick else MEMORY_SHAPE), threads=max(self.options.threads))
        self.data["memory"] = memory.peaks(named, case, self.numbers, tiny, self.fresh_rounds)
        self.data["labels"] |= {n: p.label for n, p in named.items()}
        self.said("peak memory")

    def said(self, what: str) -> None:
        """Say on standard error that something is done, and write what there is."""
        print(f"{(time.monotonic() - self.began) / 60:6.1f} min  {what}", file=sys.stderr, flush=True)
        self.write()

    def write(self) -> None:
        """The file, whole or not at all: a run that is cut off while it writes leaves the last one."""
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part = self.path.with_suffix(".part")
            part.write_text(json.dumps(_rounded(self.data), indent=1, allow_nan=False) + "\n")
            part.replace(self.path)


def environment() -> dict[str, Any]:
    """The machine, the versions and the settings."""
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": _processor(),
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": found,
        "removed": [n for n in PINNED if n in os.environ],
        "load_before": os.getloadavg(),
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    fields = {n: re.search(rf"^{n}\s*:\s*(.+)$", text, re.M) for n in ("model name", "cpu family", "model")}
    name, family, model = (found[1] if found else "?" for found in fields.values())
    return f"{name}, family {family}, model {model}"


def _rounded(value: Any) -> Any:
    """Six digits of every number: more than a clock has, and a file that people can read."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, (list, tuple)) else value
