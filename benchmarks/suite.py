"""A run, from options to numbers: which cases are measured, in which order and in which time.

The cases of one layer, tanh and float32 come first; cases without time left are listed as not measured. The file is written
after every case, so that an interrupted run loses nothing.
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
from benchmarks import memory, peers, tables
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
DIGITS = 6  # more than a clock has


@dataclass(frozen=True)
class Options:
    """What is measured: every tuple restricts, and the default is everything."""

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
    """Return every case of the options, those closest to (1 layer, tanh, float32) first.

    >>> [c.layers for c in grid(Options(shapes=((2, 1, 3),), nonlinearities=("tanh",), dtypes=("float32",), threads=(1,)))]
    [1, 4]
    """
    axes = options.layers, options.nonlinearities, options.dtypes
    combinations = sorted(product(*axes), key=lambda c: (c[0] > 1) + (c[1] != "tanh") + (c[2] != "float32"))
    threads = sorted(options.threads, reverse=True)
    return [Case(*shape, *c, n) for c in combinations for shape in options.shapes for n in threads]


def share(case: Case, rest: Sequence[Case], seconds: float) -> float:
    """Return a case's share of the time left for it and the other remaining cases, in proportion to their work."""
    return seconds * _work(case) / sum(_work(c) for c in rest) if math.isfinite(seconds) else math.inf


def _work(case: Case) -> float:
    # Steps count as well as products: a loop in Python takes about a tenth of a millisecond for each.
    return 1.0 + case.flops("both") * (2e-10 if case.dtype == "float64" else 1e-10) + 1e-4 * case.steps * case.layers


def run(
    options: Options,
    path: Path | None = None,
    known: Mapping[str, peers.Peer] | None = None,
    before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure, and write a file along the way.

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
        The numbers that :mod:`benchmarks.report` makes a page of.

    Raises
    ------
    ValueError
        If `before` is from another machine or from other versions.
    """
    everyone = {n: p for n, p in (known or peers.PEERS).items() if n in options.peers}
    missing = {n: reason for n, p in everyone.items() if (reason := peers.usable(p)) is not None}
    here = {n: p for n, p in everyone.items() if n not in missing}
    began = time.monotonic()
    blas = {f"blas {n}": p for n, p in sgemm.BLAS.items() if peers.usable(p) is None}
    data = _blank(options, everyone, missing)
    if before is not None:
        data = _joined(before, data)
    with tempfile.TemporaryDirectory() as scratch, Pool({**here, **blas}) as pool:
        part = _Run(options, data, path, pool, here, Numbers(Path(scratch) / "numbers"), began)
        part.peaks(list(blas))
        for name in PARTS:
            if name in options.parts:
                getattr(part, name)()
        data["blas"] = sorted({*data["blas"], *(blas for worker in pool.each() for blas in worker["blas"])})
    this = data["later"][-1] if before is not None else data["environment"]
    this |= {"minutes": round((time.monotonic() - began) / 60, 1), "load_after": os.getloadavg()}
    part.write()
    return data


def _blank(options: Options, everyone: Mapping[str, peers.Peer], missing: Mapping[str, str]) -> dict[str, Any]:
    return {
        "environment": environment(),
        "options": {k: v for k, v in asdict(options).items() if v != math.inf},
        "labels": {n: p.label for n, p in everyone.items()},
        "ours": [n for n, p in everyone.items() if p.ours],
        "missing": missing,
        "blas": [],
        "peaks": [],
        "columns": tables.COLUMNS,
        "comparisons": tuple(tables.COMPARISONS),
        "cases": [],
        "not_measured": [],
    }


def _joined(before: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of an earlier run, with room for those of this one."""
    same = ("processor", "processors", "system", "python", "versions")
    then, now = before["environment"], data["environment"]
    other = [f"{k} was {then[k]}, is {now[k]}" for k in same if then[k] != now[k]]
    if other:
        raise ValueError(f"the earlier numbers are from something else: {'; '.join(other)}")
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
    """The parts of a run, in their order."""

    options: Options
    data: dict[str, Any]
    path: Path | None
    pool: Pool
    here: Mapping[str, peers.Peer]
    numbers: Numbers
    began: float

    @property
    def mark(self) -> dict[str, int]:
        """The number of the run, for numbers of a later one."""
        later = len(self.data.get("later", ()))
        return {"run": later} if later else {}

    def peaks(self, names: Sequence[str]) -> None:
        """Measure the best product of large matrices by threads and precision, in interleaved rounds."""
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
        self.report("peaks of matrix products")

    def grid(self) -> None:
        """Measure every case until the time is over."""
        known = [Case(**entry["case"]) for entry in self.data["cases"]]
        waiting = [case for case in grid(self.options) if case not in known]
        while waiting:
            left = 60 * self.options.minutes - (time.monotonic() - self.began)
            if left <= 0:
                break
            case, seconds = waiting[0], share(waiting[0], waiting, left)
            found = measure(self.pool, list(self.here), case, self.numbers, rounds=self.options.rounds, seconds=seconds)
            self.data["cases"].append(tables.summary(found, self.data["ours"]) | self.mark)
            waiting.pop(0)
            self.report(
                f"{case.shape}, {case.layers} layers, {case.nonlinearity}, {case.dtype}, {case.threads} threads"
            )
        self.data["not_measured"] = [c.to_json() for c in waiting]

    def denormal(self) -> None:
        """Measure the vanishing run, and the same work without denormal numbers."""
        if "denormal" not in self.data:
            shape = cases.QUICK_SHAPES[0] if self.options.quick else cases.DENORMAL_SHAPE
            kinds = (self._both(shape, self.here, kind=kind) for kind in ("vanishing", "vanishing, loss everywhere"))
            self.data["denormal"] = [tables.slower(*kinds)]
            self.report("denormal numbers")

    def slopes(self) -> None:
        """Measure the cost over T and over B."""
        sweeps = {"T": cases.STEPS_SWEEP, "B": cases.ROWS_SWEEP}
        if self.options.quick:
            sweeps = {"T": ((8, 2, 8), (16, 2, 8)), "B": ((8, 2, 8), (8, 4, 8))}
        if "sweeps" not in self.data:
            self.data["sweeps"] = []
            for axis, shape in ((axis, shape) for axis, shapes in sweeps.items() for shape in shapes):
                found = self._both(shape, [n for n in SWEPT if n in self.here])
                self.data["sweeps"].append({"axis": axis, **tables.summary(found, (), {})})
                self.report(f"slope in {axis}, {shape}")

    def _both(
        self, shape: tuple[int, int, int], names: Sequence[str] | Mapping[str, Any], **fields: Any
    ) -> dict[str, Any]:
        case, rounds = Case(*shape, threads=max(self.options.threads), **fields), min(self.options.rounds, SWEEP_ROUNDS)
        return measure(self.pool, list(names), case, self.numbers, rounds=rounds, passes=("both",))

    def memory(self) -> None:
        """Measure peak memory in fresh processes, with and without checkpoints."""
        if "memory" not in self.data:
            named = {**self.here, **{n: p for n, p in peers.CHECKPOINTED.items() if n.partition(",")[0] in self.here}}
            shape = MEMORY_QUICK if self.options.quick else MEMORY_SHAPE
            tiny = Numbers(self.numbers.folder.with_name("tiny"))
            case = Case(*shape, threads=max(self.options.threads))
            self.data["memory"] = memory.peaks(
                named, case, self.numbers, tiny, 1 if self.options.quick else FRESH_ROUNDS
            )
            self.data["labels"] |= {n: p.label for n, p in named.items()}
            self.report("peak memory")

    def starts(self) -> None:
        """Measure cold starts."""
        if "starts" not in self.data:
            shape = cases.QUICK_SHAPES[0] if self.options.quick else START_SHAPE
            case = Case(*shape, threads=max(self.options.threads))
            self.data["starts"] = memory.starts(
                self.here, case, self.numbers, 1 if self.options.quick else FRESH_ROUNDS
            )
            self.report("cold starts")

    def report(self, what: str) -> None:
        """Report progress on standard error, and write the numbers so far."""
        print(f"{(time.monotonic() - self.began) / 60:6.1f} min  {what}", file=sys.stderr, flush=True)
        self.write()

    def write(self) -> None:
        """Write the file."""
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replaced(self.path, dumps(self.data))


def replaced(path: Path, text: str) -> None:
    """Write a file completely or not at all: an interrupted run leaves the last version."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def dumps(data: Mapping[str, Any]) -> str:
    """Format as JSON with one key a line, and one object of a list of objects a line.

    >>> print(dumps({"a": 1, "cases": [{"b": 1.23456789}, {"c": None}]}), end="")
    {
    "a": 1,
    "cases": [
     {"b":1.23457},
     {"c":null}
    ]
    }
    """
    lines = []
    for key, value in data.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            text = "[\n " + ",\n ".join(map(_compact, value)) + "\n]"
        else:
            text = _compact(value)
        lines.append(f"{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _compact(value: Any) -> str:
    return json.dumps(_rounded(value), allow_nan=False, separators=(",", ":"))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, (list, tuple)) else value


def environment() -> dict[str, Any]:
    """Return the machine, the versions and the settings."""
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
