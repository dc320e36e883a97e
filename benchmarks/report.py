"""docs/performance.md from docs/performance.json: the same text for the same numbers, never edited by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks import tables
from benchmarks.case import PASSES, Case
from benchmarks.markdown import ABSENT, mebibytes, milliseconds, percent, seconds, sizes, table, threads, times
from benchmarks.peers import NUMPY_ARRAYS, TORCH
from benchmarks.ratios import Estimate, slope
from benchmarks.tables import COMPARISONS, Data, Group

WORDS = {"forward": "Forward", "both": "Forward + backward"}
PICTURES = "images"

METHOD = Path(__file__).with_name("method.md")


def page(data: Data) -> str:
    """Return the whole page.

    Parameters
    ----------
    data : mapping
        What :func:`benchmarks.suite.run` returned.
    """
    parts = [_head(data), METHOD.read_text(encoding="utf-8").strip()]
    parts += [_group(data, group, entries) for group, entries in tables.groups(data).items()]
    parts += [_errors(data), _denormal(data), _slopes(data), _memory(data), _starts(data), _absent(data)]
    return "\n\n".join(p for p in parts if p) + "\n"


def write(source: Path) -> list[Path]:
    """Write the page beside the numbers, and its picture into `images` beside it."""
    from benchmarks import plots

    data = json.loads(source.read_text())
    target = source.with_suffix(".md")
    target.write_text(page(data))
    return [target, *plots.draw(data, source.parent / PICTURES)]


def _head(data: Data) -> str:
    env = data["environment"]
    runs = [{**env, "rounds": data["options"]["rounds"]}, *data.get("later", ())]
    lines = ["# Performance on a CPU", ""]
    lines += ["Made by `python -m benchmarks` from [performance.json](performance.json). Do not edit by hand.", ""]
    if data["options"]["quick"]:
        lines += [
            "**A quick run over tiny shapes: these numbers show that the benchmark works, and nothing about speed.**",
            "",
        ]
    for k, run in enumerate(runs, 1):
        took = f"{run['minutes']} minutes" if "minutes" in run else "not finished"
        name = "" if len(runs) == 1 else f"Run {k}: "
        load = f"load {run['load_before'][0]:.1f} before it"
        lines.append(f"- {name}{run['date']}, up to {run['rounds']} rounds, {took}, {load}.")
    lines.append(f"- {env['processor']}, {env['processors']} processors; {env['system']}; Python {env['python']}.")
    lines.append(f"- {', '.join(f'{name} {version}' for name, version in env['versions'].items())}.")
    lines.append(f"- Products by {', '.join(data.get('blas', ())) or 'an unknown BLAS'}.")
    lines += [f"- {note}" for note in data.get("notes", ())]  # written by hand into the file
    for p in data["peaks"]:
        of_run = "" if len(runs) == 1 else f", run {p.get('run', 0) + 1}"
        rates = ", ".join(f"{name} {rate:.0f}" for name, rate in p["gflops"].items())
        lines.append(
            f"- Peak of a product of matrices, {p['dtype']}, {threads(p['threads'])}{of_run}, GFLOP/s: {rates}."
        )
    if env["removed"]:
        were = ", ".join(f"{name} was set" for name in env["removed"])
        lines.append(
            f"- Variables that pin the BLAS to the code of an older processor were removed for the run: {were}."
        )
    return "\n".join(lines)


def _group(data: Data, group: Group, entries: Sequence[Data]) -> str:
    layers, nonlinearity, dtype, count = group
    parts = [f"## {layers} layer{'s' if layers > 1 else ''}, {nonlinearity}, {dtype}, {threads(count)}"]
    for of in PASSES:
        parts += [f"### {WORDS[of]}", _ratios(data, entries, of), _losses(entries, of)]
    head, rows = ["", *map(_shape, entries)], []
    for name, label in data["labels"].items():
        pairs = [[tables.medians(entry, of).get(name) for of in PASSES] for entry in entries]
        if any(pair != [None, None] for pair in pairs):
            rows.append([label, *(ABSENT if p == [None, None] else " / ".join(map(milliseconds, p)) for p in pairs)])
    parts += ["### All times, ms", "Forward / forward + backward; the shapes are T, B, H.", table(head, rows)]
    return "\n\n".join(parts)


def _ratios(data: Data, entries: Sequence[Data], of: str) -> str:
    rows = []
    for entry in entries:
        found = tables.medians(entry, of)
        ours = tables.fastest(found, NUMPY_ARRAYS)
        theirs = tables.fastest(found, (n for n in found if n not in data["ours"]))
        cells = [ABSENT, ABSENT] if ours is None else [
            f"{milliseconds(found[ours])} ({ours})", percent(tables.share(data, entry, of, found[ours]))
        ]  # fmt: skip
        ratios = [times(tables.mean([entry], of, k)) for k in range(len(COMPARISONS))]
        rows.append([_shape(entry), *cells, ABSENT if theirs is None else data["labels"][theirs], *ratios])
    means = [times(tables.mean(entries, of, k)) for k in range(len(COMPARISONS))]
    rows.append(["geometric mean", "", "", "", *means])
    return table(["T, B, H", "best of ours on NumPy's arrays, ms", "of the peak", "best peer", *COMPARISONS], rows)


def _losses(entries: Sequence[Data], of: str) -> str:
    lines = []
    for k, what in enumerate(COMPARISONS):
        found = [(_shape(e), c) for e in entries if (c := tables.mean([e], of, k)) is not None]
        lost = [f"({shape}) {c.value:.2f}" for shape, c in found if c.value < 1]
        if found:
            listed = (
                f"{len(lost)} of {len(found)} shapes: {'; '.join(lost)}" if lost else f"none of {len(found)} shapes"
            )
            lines.append(f"- {what}: slower at {listed}.")
        undecided = [f"({shape})" for shape, c in found if c.low < 1 < c.high]
        if undecided:
            lines.append(f"- {what}: undecided, because the interval contains 1, at {'; '.join(undecided)}.")
    return "\n".join(lines)


def _errors(data: Data) -> str:
    found = tables.worst_errors(data)
    if not found:
        return ""
    dtypes = list(dict.fromkeys(d for held in found.values() for d in held))
    rows = [[data["labels"][n], *(seconds(held.get(d)) for d in dtypes)] for n, held in found.items()]
    first = []
    for name, label in data["labels"].items():
        taken = [tables.first_calls(data, name, of) for of in PASSES]
        if any(taken):
            ends = [(t[len(t) // 2], t[-1]) if t else (None, None) for t in taken]
            first.append([label, *(seconds(s) for pair in ends for s in pair)])
    return "\n\n".join(
        [
            "## Errors",
            "The largest difference from the float64 oracle in any state or gradient of any case, in units of eps times the "
            "largest number of its array. relu's slope jumps at 0: if rounding puts a state on the other side, gradients "
            "of its row change by percents, in every library.",
            table(["", *dtypes], rows),
            "## First calls",
            "Seconds of the first call of a pass, including compilation: the median over the cases, and the longest.",
            table(["", "forward", "longest", "forward + backward", "longest"], first),
        ]
    )


def _denormal(data: Data) -> str:
    if "denormal" not in data:
        return ""
    (entry,) = data["denormal"]
    rows = [
        [data["labels"][n], *map(milliseconds, row[:2]), times(Estimate(*row[2:]))]
        for n, row in entry["peers"].items()
        if not isinstance(row, str)
    ]
    text = f"""## Denormal numbers

({_shape(entry)}), forward + backward. With the loss at the last step, every \
step backwards multiplies the gradient by 0.95, so that it becomes denormal before it is zero. Without: a loss at every \
step, and no denormal numbers."""
    return f"{text}\n\n{table(['', 'without, ms', 'with, ms', 'times as long'], rows)}"


def _slopes(data: Data) -> str:
    rows: dict[str, list[str]] = {}
    head = [""]
    for axis in ("T", "B"):
        entries, found = tables.sweep(data, axis)
        for name, (at, taken) in found.items():
            if len(at) > 1:
                rows.setdefault(name, []).append(f"{slope(at, taken):.2f}")
        if entries:
            head.append(f"{axis}, ({_shape(entries[0])}) to ({_shape(entries[-1])})")
    if not rows:
        return ""
    return "\n\n".join(
        [
            "## Cost over the number of steps and of rows",
            "The exponent p of time ~ size^p, by least squares in logarithms, forward + backward: 1 is linear.",
            table(head, [[data["labels"][n], *cells] for n, cells in rows.items()]),
            f"![Time over T and over B, both axes logarithmic, and the ratios]({PICTURES}/performance.png)",
        ]
    )


def _memory(data: Data) -> str:
    if "memory" not in data:
        return ""
    memory = data["memory"]
    found = {n: row for n, row in memory["peers"].items() if not isinstance(row, str)}
    rows, unit = [], found.get(TORCH)
    for name, row in found.items():
        plain = found.get(name.removesuffix(", checkpoint")) if "checkpoint" in name else None
        cells = [
            text
            for k in (0, 1)
            for text in (mebibytes(row[k]), percent(row[k] / unit[k] if unit else None))
        ]  # fmt: skip
        longer = f"{row[2] / plain[2]:.2f}" if plain else ABSENT
        rows.append([data["labels"][name], *cells, milliseconds(row[2]), longer])
    part = f"of {TORCH}'s"
    head = ["", "grown, MiB", part, "whole process, MiB", part, "ms", "times as long as without checkpoints"]
    text = f"""## Peak memory

Forward + backward of ({_shape(memory)}), {Case(**memory["case"]).dtype}, each in fresh processes: the peak beyond \
libraries, inputs and weights, and the peak of the whole process, including compilation. \
{mebibytes(memory["results"])} MiB of the growth are the results themselves: output and all gradients."""
    return f"{text}\n\n{table(head, rows)}"


def _starts(data: Data) -> str:
    if "starts" not in data:
        return ""
    rows = [[data["labels"][n], f"{s:.2f}"] for n, s in data["starts"]["seconds"].items()]
    text = f"""## Cold starts

Seconds from the start of a process to its first forward pass of ({_shape(data["starts"])}): Python, imports, model, \
compilation."""
    return f"{text}\n\n{table(['', 's'], rows)}"


def _absent(data: Data) -> str:
    lines = [f"- {data['labels'][n]}: {reason}." for n, reason in data["missing"].items()]
    for name, reason, cases in tables.left_out(data):
        dtypes = " and ".join(dict.fromkeys(c.dtype for c in cases))
        first = f"the first is ({sizes(cases[0].shape)}), {threads(cases[0].threads)}"
        lines.append(f"- {data['labels'][name]}, {dtypes}, {len(cases)} cases, {first}: {reason}.")
    for name, row in data.get("memory", {"peers": {}})["peers"].items():
        if isinstance(row, str):
            lines.append(f"- {data['labels'][name]}, peak memory: {row}.")
    if data["not_measured"]:
        lines.append(f"- The time ran out before {len(data['not_measured'])} of the cases.")
    return "\n".join(["## What is missing, and why", "", *(lines or ["- Nothing is missing."])])


def _shape(entry: Data) -> str:
    return sizes(Case(**entry["case"]).shape)
