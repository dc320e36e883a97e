"""The page: docs/performance.md from docs/performance.json, the same text for the same numbers, never edited by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks import tables
from benchmarks.case import PASSES, Case
from benchmarks.markdown import ABSENT, mebibytes, milliseconds, percent, sizes, table, threads, times
from benchmarks.peers import NUMPY_ARRAYS, TORCH
from benchmarks.ratios import ratio, slope
from benchmarks.tables import Data, Group

WORDS = {"forward": "Forward", "both": "Forward + backward"}
PICTURES = "images"


def page(data: Data) -> str:
    """The whole page.

    Parameters
    ----------
    data : mapping
        What :func:`benchmarks.suite.run` returned.
    """
    parts = [_head(data), _method()]
    parts += [_group(data, group, entries) for group, entries in tables.groups(data).items()]
    parts += [_errors(data), _denormal(data), _slopes(data), _memory(data), _starts(data), _absent(data)]
    return "\n\n".join(p for p in parts if p) + "\n"


def write(source: Path) -> list[Path]:
    """Write the page beside the numbers, and its pictures into `images` beside it."""
    from benchmarks import plots

    data = json.loads(source.read_text())
    target = source.with_suffix(".md")
    target.write_text(page(data))
    return [target, *plots.draw(data, source.parent / PICTURES)]


def _head(data: Data) -> str:
    env, options = data["environment"], data["options"]
    versions = ", ".join(f"{n} {v}" for n, v in env["versions"].items())
    cores = sorted(
        {
            f"{pool['internal_api']} {pool.get('version', '')} {pool.get('architecture', '')}".strip()
            for where in data.get("pools", {}).values()
            for pool in where.get("pools") or ()
            if pool["internal_api"] in ("openblas", "mkl")
        }
    )
    runs = [{**env, "rounds": options["rounds"]}, *data.get("later", ())]
    lines = [
        "# Performance on a CPU",
        "",
        "Made by `python -m benchmarks` from [performance.json](performance.json); not edited by hand.",
        "",
    ]
    if options["quick"]:
        lines += [
            "**Numbers of a quick run over tiny shapes: they show that the suite works, and nothing about speed.**",
            "",
        ]
    lines += [
        *(f"- {'' if len(runs) == 1 else f'Run {k}: '}{_when(run)}." for k, run in enumerate(runs, 1)),
        f"- {env['processor']}, {env['processors']} processors; {env['system']}; Python {env['python']}.",
        f"- {versions}.",
        f"- Products by {', '.join(cores) if cores else 'an unknown BLAS'}.",
    ]
    lines += [f"- {note}" for note in data.get("notes", ())]  # what whoever put the numbers together has to say of them
    for p in data["peaks"]:
        rates = ", ".join(f"{n} {rate:.0f}" for n, rate in p["gflops"].items())
        of_run = "" if len(runs) == 1 else f", run {p.get('run', 0) + 1}"
        lines.append(
            f"- Peak of a product of matrices, {p['dtype']}, {threads(p['threads'])}{of_run}, GFLOP/s: {rates}."
        )
    if env["removed"]:
        lines.append(
            "- For the run, what pins the BLAS to an older processor's code was removed: "
            + ", ".join(f"{n} was set" for n in env["removed"])
            + "."
        )
    return "\n".join(lines)  # fmt: skip


def _when(run: Data) -> str:
    took = f"{run['minutes']} minutes" if "minutes" in run else "not finished"
    return f"{run['date']}, up to {run['rounds']} rounds, {took}, load {run['load_before'][0]:.1f} before it"


def _method() -> str:
    return """## How it is measured

Every library runs in a process of its own, which stays alive and is stopped while another measures. A round asks each of them
for one pass, in an order that moves on by one each time; a round's time is the mean of as many calls as take 50 ms. Ratios are
of the same round: how many times as long the peer takes, the median over the rounds, and in brackets where the middle 95 % of
2000 bootstrap draws of the rounds lie. Below 1 the peer is faster. The best peer is whoever had the lowest median in that case.
Whoever takes more than 5 s and more than 8 times as long as the fastest is called once only.

All do the same work: all states and the last one; gradients of x, h0, both weights and biases, for cotangents on every output
and on h_n. Input and weights are given in the library's own layout before the clock starts; compiling is not counted, and
stands in a table of its own. x is normal, I = H, and W_hh has spectral radius 1. What a library computed was compared with a
float64 oracle before it was timed. The share of the peak is the operations of the network's products, divided by its time and
by the speed of the faster of two libraries' products of 2048 x 2048 matrices, in the same run with as many threads."""


def _group(data: Data, group: Group, entries: Sequence[Data]) -> str:
    layers, nonlinearity, dtype, count = group
    title = f"## {layers} layer{'s' if layers > 1 else ''}, {nonlinearity}, {dtype}, {threads(count)}"
    parts = [title]
    for of in PASSES:
        parts += [f"### {WORDS[of]}", _ratios(data, entries, of), _losses(data, entries, of)]
    parts += ["### All times, ms", "Forward / forward + backward; the shapes are T, B, H.", _times(data, entries)]
    return "\n\n".join(parts)


def _ratios(data: Data, entries: Sequence[Data], of: str) -> str:
    rows = []
    columns = {what: [make(data, e, of) for e in entries] for what, make in tables.COMPARISONS.items()}
    for k, entry in enumerate(entries):
        name = tables.best(entry, of, NUMPY_ARRAYS)
        theirs = tables.best(entry, of, [n for n in entry["peers"] if n not in data["ours"]])
        found = tables.medians(entry, of)
        seconds = None if name is None else found[name]
        case = Case.from_json(entry["case"])
        reached = None if seconds is None else tables.share(data, case, of, seconds, entry.get("run", 0))
        label = ABSENT if theirs is None else data["labels"][theirs]
        cells = [times(None if (c := column[k]) is None else c.estimate) for column in columns.values()]
        rows.append([sizes(case.shape), f"{milliseconds(seconds)} ({name or ABSENT})", percent(reached), label, *cells])
    means = [times(tables.mean(column)) for column in columns.values()]
    rows.append(["geometric mean", "", "", "", *means])
    return table(["T, B, H", "best of ours on NumPy's arrays, ms", "of the peak", "best peer", *columns], rows)


def _losses(data: Data, entries: Sequence[Data], of: str) -> str:
    lines = []
    for what, make in tables.COMPARISONS.items():
        found = [c for e in entries if (c := make(data, e, of)) is not None]
        lost = [c for c in found if c.estimate.value < 1]
        if lost:
            listed = "; ".join(f"({sizes(c.case.shape)}) {c.estimate.value:.2f}" for c in lost)
            lines.append(f"- {what}: slower at {len(lost)} of {len(found)} shapes: {listed}.")
        elif found:
            lines.append(f"- {what}: slower at none of {len(found)} shapes.")
        undecided = [c for c in found if c.estimate.low < 1 < c.estimate.high]
        if undecided:
            listed = "; ".join(f"({sizes(c.case.shape)})" for c in undecided)
            lines.append(f"- {what}: not told apart, as the interval holds 1, at {listed}.")
    return "\n".join(lines)


def _times(data: Data, entries: Sequence[Data]) -> str:
    rows = []
    for name, label in data["labels"].items():
        cells = []
        for entry in entries:
            pair = [tables.medians(entry, of).get(name) for of in PASSES]
            cells.append(ABSENT if pair == [None, None] else " / ".join(milliseconds(s) for s in pair))
        if any(c != ABSENT for c in cells):
            rows.append([label, *cells])
    return table(["", *(sizes(Case.from_json(e["case"]).shape) for e in entries)], rows)


def _errors(data: Data) -> str:
    found = tables.worst_errors(data)
    if not found:
        return ""
    dtypes = list(dict.fromkeys(d for held in found.values() for d in held))
    rows = [
        [data["labels"][n], *(f"{held[d]:.3g}" if d in held else ABSENT for d in dtypes)] for n, held in found.items()
    ]
    return "\n\n".join(
        [
            "## Errors",
            "The largest difference from the float64 oracle in any state or gradient of any case, in units of eps times the "
            "largest number of its array. relu's slope jumps at 0: where rounding puts one state on the other side, gradients "
            "of its row are elsewhere by percents, in every library.",
            table(["", *dtypes], rows),
            "## First calls",
            "Seconds of the first call of a pass, compilation included: the median over the cases, and the longest.",
            _first(data),
        ]
    )


def _first(data: Data) -> str:
    rows = []
    for name, label in data["labels"].items():
        cells = []
        for of in PASSES:
            taken = sorted(
                e["peers"][name]["first"][of] for e in data["cases"] if of in e["peers"].get(name, {}).get("first", ())
            )
            cells += [f"{taken[len(taken) // 2]:.3g}", f"{taken[-1]:.3g}"] if taken else [ABSENT, ABSENT]
        if any(c != ABSENT for c in cells):
            rows.append([label, *cells])
    return table(["", "forward", "longest", "forward + backward", "longest"], rows)


def _denormal(data: Data) -> str:
    if "denormal" not in data:
        return ""
    vanishing, plain = data["denormal"]
    with_them, without = tables.medians(vanishing, "both"), tables.medians(plain, "both")
    rows = [
        [data["labels"][n], milliseconds(without[n]), milliseconds(with_them[n]),
         times(ratio(*(e["peers"][n]["seconds"]["both"] for e in (vanishing, plain))))]
        for n in with_them if n in without
    ]  # fmt: skip
    return "\n\n".join(
        [
            "## Denormal numbers",
            f"({sizes(Case.from_json(plain['case']).shape)}), forward + backward. The loss is at the last step and "
            "every step backwards multiplies the gradient by 0.95, so that it passes through the denormal numbers on its way "
            "to zero; the second column has a loss at every step and no denormal numbers.",
            table(["", "without, ms", "with, ms", "times as long"], rows),
        ]
    )


def _slopes(data: Data) -> str:
    if "sweeps" not in data:
        return ""
    rows: dict[str, list[str]] = {}
    for axis, entries in data["sweeps"].items():
        for name, (at, seconds) in tables.sizes_and_seconds(entries, axis).items():
            if len(at) > 1:
                rows.setdefault(name, []).append(f"{slope(at, seconds):.2f}")
    ranges = []
    for axis, entries in data["sweeps"].items():
        first, last = (Case.from_json(e["case"]).shape for e in (entries[0], entries[-1]))
        ranges.append(f"{axis}, ({sizes(first)}) to ({sizes(last)})")
    return "\n\n".join(
        [
            "## Cost over the number of steps and of rows",
            "The exponent p of time ~ size^p, by least squares in logarithms, forward + backward: 1 is linear.",
            table(["", *ranges], [[data["labels"][n], *cells] for n, cells in rows.items()]),
            f"![Time over T and over B, both axes logarithmic, and the ratios]({PICTURES}/performance.png)",
        ]
    )


def _memory(data: Data) -> str:
    if "memory" not in data:
        return ""
    found, case = tables.memory_medians(data), Case.from_json(data["memory"]["case"])
    rows = []
    unit = found.get(TORCH)
    for name, m in found.items():
        of_torch = [percent(m[key] / unit[key]) if unit else ABSENT for key in ("grown", "total")]
        plain = found.get(name.partition(", checkpoint")[0]) if "checkpoint" in name else None
        longer = f"{m['seconds'] / plain['seconds']:.2f}" if plain else ABSENT
        cells = [
            mebibytes(m["grown"]),
            of_torch[0],
            mebibytes(m["total"]),
            of_torch[1],
            milliseconds(m["seconds"]),
            longer,
        ]
        rows.append([data["labels"][name], *cells])
    head = [
        "",
        "grown, MiB",
        f"of {TORCH}'s",
        "whole process, MiB",
        f"of {TORCH}'s",
        "ms",
        "times as long as without checkpoints",
    ]
    return "\n\n".join(
        [
            "## Peak memory",
            f"Forward + backward of ({sizes(case.shape)}), {case.dtype}, each in fresh processes: the peak beyond the "
            "libraries, inputs and weights that were there before, and that of the whole process, "
            "compilation included. "
            f"{mebibytes(data['memory']['results'])} MiB of the growth are the results themselves: output and all gradients.",
            table(head, rows),
        ]
    )


def _starts(data: Data) -> str:
    if "starts" not in data:
        return ""
    case = Case.from_json(data["starts"]["case"])
    rows = [[data["labels"][n], f"{s:.2f}"] for n, s in data["starts"]["seconds"].items()]
    return "\n\n".join(
        [
            "## Cold starts",
            f"Seconds from the start of a process to its first forward pass of ({sizes(case.shape)}): Python, imports, model, "
            "compilation.",
            table(["", "s"], rows),
        ]
    )


def _absent(data: Data) -> str:
    lines = [f"- {data['labels'][n]}: {reason}." for n, reason in data["missing"].items()]
    for name, reason, cases in tables.left_out(data):
        dtypes = " and ".join(dict.fromkeys(c.dtype for c in cases))
        first = f"the first is ({sizes(cases[0].shape)}), {threads(cases[0].threads)}"
        lines.append(f"- {data['labels'][name]}, {dtypes}, {len(cases)} cases, {first}: {reason}.")
    for name, peer in data.get("memory", {"peers": {}})["peers"].items():
        if "left_out" in peer:
            lines.append(f"- {data['labels'][name]}, peak memory: {peer['left_out']}.")
    if data["not_measured"]:
        lines.append(f"- The time was over before {len(data['not_measured'])} of the cases.")
    return "\n".join(["## What is not there, and why", "", *(lines or ["- Nothing is missing."])])
