"""The report of scripts/gpu-check in Markdown, from its record: what passed, what failed, what was not run, every ratio.

A ratio is the other library's time divided by this one's: above 1 this library is faster. Losses stand beside gains.
"""

from __future__ import annotations

import statistics
from typing import Any

Record = dict[str, Any]
Key = tuple[tuple[int, ...], str]  # (T, B, H) and the pass

OURS = "rnncore_cupy"
AGAINST = ("torch_cudnn", "jax_scan", "cupy_loop")
FORWARD, BOTH = "forward", "forward and backward"
# Agreement with float64: 64 roundings of float32, as everywhere in rnncore.
ERROR = 64 * 2.0**-23
MEMORY = 0.6


def failures(report: Record) -> list[str]:
    """What failed: never for want of speed, and never what could not be run."""
    failed = [f"conformance of {name}" for name, ran in report["conformance"].items() if ran["status"]]
    failed += [f"{tool} of the kernels" for tool, ran in report["sanitizer"].items() if ran["status"]]
    faulty = [r["library"] for r in report["benchmark"] if "fault" in r]
    failed += [f"the benchmark of {name}" for name in dict.fromkeys(faulty)]
    wrong = [r["shape"] for r in report["benchmark"] if r["library"] == OURS and not r.get("error", 0.0) <= ERROR]
    return failed + [f"the states of {OURS} at {tuple(shape)}" for shape in dict.fromkeys(map(tuple, wrong))]


def verdict(report: Record) -> str:
    """One line."""
    failed = failures(report)
    return f"failed: {', '.join(failed)}" if failed else f"passed: {', '.join(report['conformance'])}"


def goal(shape: tuple[int, ...], which: str, other: str) -> float:
    """The ratio that is aimed at, as the project's issue on these kernels has it."""
    _, batch, width = shape
    if other != "torch_cudnn":
        return 5.0
    if width <= 256:
        return 1.0
    if width <= 1024 and batch <= 64:
        return 2.0 if which == BOTH else 1.0
    return 0.95


def written(report: Record) -> str:
    """All of it."""
    lines = [
        f"# rnncore on a GPU, {report['date']}: {verdict(report)}",
        "",
        f"rnncore {report['rnncore']}, NumPy {report['numpy']}, Python {report['python']}, {report['system']}; "
        "by `scripts/gpu-check`, with all numbers in [report.json](report.json).",
        "",
        "## Conformance",
        "",
        "| library | version | CUDA | devices | result |",
        "|---|---|---|---|---|",
    ]
    for name, found in report["libraries"].items():
        if isinstance(found, str):
            cells: tuple[Any, ...] = (name, "", "", "", f"not run: {found.replace('|', '/')}")
        else:
            result = _counted(report["conformance"][name])
            cells = (name, found["version"], found["cuda"], ", ".join(found["devices"]), result)
        lines.append(_row(cells))
    lines += ["", "## compute-sanitizer over the kernels", ""]
    if not report["sanitizer"]:
        lines.append("Not run: CuPy sees no GPU.")
    for tool, ran in report["sanitizer"].items():
        word = "not run: " + ran["words"] if ran["status"] is None else f"FAILED, status {ran['status']}"
        lines.append(f"- {tool}: {'passed' if ran['status'] == 0 else word}")
    return "\n".join([*lines, "", *_benchmark(report), ""])


def _benchmark(report: Record) -> list[str]:
    lines = ["## Time and memory", ""]
    faults = dict.fromkeys(f"{r['library']}: {r['fault']}" for r in report["benchmark"] if "fault" in r)
    table = _medians(report["benchmark"])
    absent = [name for name in (OURS, *AGAINST) if not any(name in row for row in table.values())]
    if absent:
        lines += [f"Not measured: {', '.join(absent)}.", ""]
    lines += [*(f"- {fault}" for fault in faults), *([""] if faults else [])]
    if OURS in absent:
        return lines
    lines += [
        f"float32 with full products. Medians of {report['rounds']} rounds, in milliseconds. A ratio is the other's time "
        f"divided by {OURS}'s; **bold** where it is under the goal in brackets. Memory is the peak of a call beyond what was "
        f"there, as a part of cuDNN's; the goal is {MEMORY}.",
        "",
        _row(("T, B, H", "pass", OURS, *(f"against {name}" for name in AGAINST), "memory", "rnncore_torch")),
        "|---" * (6 + len(AGAINST)) + "|",
    ]
    for (shape, which), row in table.items():
        if OURS not in row:
            continue
        ours, theirs = row[OURS], row.get("torch_cudnn", {})
        ratios = [_ratio(row, name, goal(shape, which, name)) for name in AGAINST]
        memory = ""
        if which == BOTH and ours.get("peak_bytes") and theirs.get("peak_bytes"):
            part = ours["peak_bytes"] / theirs["peak_bytes"]
            memory = f"{part:.2f}" if part <= MEMORY else f"**{part:.2f}**"
        torch = f"{row['rnncore_torch']['ms']:.3f}" if "rnncore_torch" in row else ""
        lines.append(_row((", ".join(map(str, shape)), which, f"{ours['ms']:.3f}", *ratios, memory, torch)))
    return lines


def _medians(records: list[Record]) -> dict[Key, dict[str, Record]]:
    """By shape and pass, then by library: the median time of the rounds."""
    rounds: dict[Key, dict[str, list[Record]]] = {}
    for record in records:
        if "ms" in record:
            key = (tuple(record["shape"]), record["pass"])
            rounds.setdefault(key, {}).setdefault(record["library"], []).append(record)
    return {
        key: {name: {**of[0], "ms": statistics.median(r["ms"] for r in of)} for name, of in row.items()}
        for key, row in rounds.items()
    }


def _ratio(row: dict[str, Record], name: str, aim: float) -> str:
    if name not in row:
        return "not measured"
    ratio = row[name]["ms"] / row[OURS]["ms"]
    return f"{ratio:.2f} ({aim:g})" if ratio >= aim else f"**{ratio:.2f}** ({aim:g})"


def _counted(ran: Record) -> str:
    word = "passed" if ran["status"] == 0 else f"FAILED, status {ran['status']}"
    record = ran["record"]
    if not record:
        return f"{word}, without a record"
    counts = ", ".join(f"{number} {kind}" for kind, number in record["counts"].items() if number)
    return f"{word}: {counts}; precision {record['precision']} on {record['device']}"


def _row(cells: tuple[Any, ...]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"
