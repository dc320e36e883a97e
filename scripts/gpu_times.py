"""The tables of times and memory in the report of scripts/gpu-check: medians of the rounds and ratios, losses beside gains.

A ratio is the other library's time divided by this one's in the same round: above 1 this library is faster.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable
from typing import Any

Record = dict[str, Any]
Key = tuple[tuple[int, ...], str]  # (T, B, H) and the pass
Rows = dict[Key, dict[str, list[Record]]]  # by library, the records of the rounds

OURS = "rnncore_cupy"
AGAINST = ("torch_cudnn", "jax_scan", "cupy_loop")
FORWARD, BOTH = "forward", "forward and backward"
MEMORY = 0.6
KERNELS = re.compile("block_scan|grid_scan|step_alone")


def goal(shape: tuple[int, ...], which: str, other: str) -> float:
    """The ratio that is aimed at."""
    _, batch, width = shape
    if other != "torch_cudnn":
        return 5.0
    if width <= 256:
        return 1.0
    if width <= 1024 and batch <= 64:
        return 2.0 if which == BOTH else 1.0
    return 0.95


def section(records: list[Record], wrong: Callable[[Record], str | None]) -> list[str]:
    """Lines: what was not measured and why, the ratios and the memory, and what sets the rule for PyTorch's tensors."""
    lines: list[str] = []
    for key in ("fault", "cut"):
        lines += dict.fromkeys(f"- {r['library']}{_at(r)}: {r[key]}" for r in records if key in r)
    peers = [r for r in records if r["library"] in AGAINST and wrong(r)]
    lines += dict.fromkeys(
        f"- {r['library']}{_at(r)}: its {wrong(r)} are not those of float64, so that its time is no comparison"
        for r in peers
    )
    rows = _rows([r for r in records if not (r["library"] in AGAINST and wrong(r))])
    absent = [name for name in (OURS, *AGAINST) if not any(name in row for row in rows.values())]
    if lines:
        lines.append("")
    if absent:
        lines += [f"Not measured: {', '.join(absent)}.", ""]
    if OURS not in absent:
        lines += _against(rows)
    return ["## Time and memory", "", *lines, *_rule(rows)]


def _against(rows: Rows) -> list[str]:
    table, reached, missed = [], 0, []
    for (shape, which), row in rows.items():
        if OURS not in row:
            continue
        cells, at = [], ", ".join(map(str, shape))
        for name in AGAINST:
            aim = goal(shape, which, name)
            ratios = _ratios(row, name)
            cells.append(_cell(ratios, aim))
            if ratios and statistics.median(ratios) >= aim:
                reached += 1
            elif ratios:
                missed.append(f"({at}) {which} against {name}")
        kernels = dict.fromkeys(KERNELS.findall(row[OURS][0].get("runs", "")))
        table.append(_row((at, which, " ".join(kernels), _median(row[OURS]), *cells, _memory(row, which))))
    return [
        f"float32 with full products. Medians of {max(r for row in rows.values() for r in _count(row))} rounds at most, in "
        f"milliseconds, with the least and the most. A ratio is the other's time divided by {OURS}'s in the same round; "
        "**bold** where its median is under the goal in brackets. JAX's times are by the host's clock and have the wait for "
        f"the GPU in them. Memory is the peak of a call beyond what was there, as a part of cuDNN's; the goal is {MEMORY}.",
        "",
        f"{reached} of {reached + len(missed)} ratios reach their goal." + (" Under it: " if missed else ""),
        *(f"- {one}" for one in missed),
        "",
        _row(("T, B, H", "pass", "kernel", OURS, *(f"against {name}" for name in AGAINST), "memory")),
        "|---" * (5 + len(AGAINST)) + "|",
        *table,
    ]


def _rule(rows: Rows) -> list[str]:
    """What sets the rule of rnncore_torch/_cuda.py, or nothing where it was not measured."""
    lines = []
    for (shape, which), row in rows.items():
        ours = row.get("rnncore_torch", [])
        ways = {
            "picked": [r["ms"] for r in ours],
            "kernels": [r["kernels_ms"] for r in ours if "kernels_ms" in r],
            "PyTorch's operations": [r["pytorch_ms"] for r in ours if "pytorch_ms" in r],
            "cuDNN": [r["ms"] for r in row.get("torch_cudnn", [])],
        }
        if not ways["PyTorch's operations"]:
            continue
        medians = {way: statistics.median(times) for way, times in ways.items() if times}
        least = min(ms for way, ms in medians.items() if way in ("kernels", "PyTorch's operations"))
        cells = []
        for way in ways:
            shown = f"{medians[way]:.3f}" if way in medians else "not measured"
            bold = way in ("kernels", "PyTorch's operations") and medians.get(way) == least
            cells.append(f"**{shown}**" if bold else shown)
        pick = "kernels" if "kernel of backend 'cupy'" in ours[0]["runs"] else "PyTorch's operations"
        lines.append(_row((", ".join(map(str, shape)), which, pick, *cells)))
    if not lines:
        return []
    return [
        "",
        "## Which code PyTorch's tensors should have",
        "",
        "Milliseconds in float32 without TF32, medians of the rounds: what the rule of `rnncore_torch/_cuda.py` picks, CuPy's "
        "kernels, PyTorch's operations, and cuDNN through `torch.nn.RNN`. The faster of the two that the rule chooses between "
        "is **bold**: where that is not the pick, the rule's constants are to be changed.",
        "",
        "| T, B, H | pass | pick | its time | kernels | PyTorch's operations | cuDNN |",
        "|---|---|---|---|---|---|---|",
        *lines,
    ]


def _rows(records: list[Record]) -> Rows:
    rows: Rows = {}
    for record in records:
        if "ms" in record:
            key = (tuple(record["shape"]), record["pass"])
            rows.setdefault(key, {}).setdefault(record["library"], []).append(record)
    return rows


def _count(row: dict[str, list[Record]]) -> list[int]:
    return [len(of) for of in row.values()]


def _ratios(row: dict[str, list[Record]], name: str) -> list[float]:
    """One for each round that both have."""
    theirs = {r["round"]: r["ms"] for r in row.get(name, [])}
    return [theirs[r["round"]] / r["ms"] for r in row[OURS] if r["round"] in theirs]


def _cell(ratios: list[float], aim: float) -> str:
    if not ratios:
        return "not measured"
    ratio = statistics.median(ratios)
    shown = f"{ratio:.2f}" if ratio >= aim else f"**{ratio:.2f}**"
    between = f" [{min(ratios):.2f}, {max(ratios):.2f}]" if len(ratios) > 1 else ""
    return f"{shown}{between} ({aim:g})"


def _median(records: list[Record]) -> str:
    times = [r["ms"] for r in records]
    between = f" [{min(times):.3f}, {max(times):.3f}]" if len(times) > 1 else ""
    return f"{statistics.median(times):.3f}{between}"


def _memory(row: dict[str, list[Record]], which: str) -> str:
    ours, theirs = row[OURS][0], row.get("torch_cudnn", [{}])[0]
    if which != BOTH or not ours.get("peak_bytes") or not theirs.get("peak_bytes"):
        return ""
    part = ours["peak_bytes"] / theirs["peak_bytes"]
    return f"{part:.2f}" if part <= MEMORY else f"**{part:.2f}**"


def _at(record: Record) -> str:
    return f" at ({', '.join(map(str, record['shape']))})" if "shape" in record else ""


def _row(cells: tuple[Any, ...]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"
