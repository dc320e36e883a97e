"""The report on a GPU in Markdown, from its record: what passed, failed, did not run, and was measured."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from benchmarks import tables
from benchmarks.case import PASSES, Case
from benchmarks.gpu.measure import AGAINST, CUDNN, DROP_IN, KERNELS, OPERATIONS, OURS, PEERS, goal
from benchmarks.markdown import milliseconds, sizes, table, times
from benchmarks.report import WORDS

Record = dict[str, Any]

FAULTS = 10  # failed checks listed for each suite
MEMORY = 0.6
NAMES = re.compile("block_scan|grid_scan|step_alone")
MISSING = "not measured"


def failures(report: Record) -> list[str]:
    """Return what failed: never because of speed, and never what could not run."""
    failed = [f"conformance of {name}" for name, ran in report["conformance"].items() if ran["status"]]
    failed += [f"{tool} of the kernels" for tool, ran in report["sanitizer"].items() if ran["status"]]
    for entry in report["benchmark"]:
        for name, kind in entry["kind"].items():
            if kind == "failed" or (kind == "wrong" and PEERS[name].ours):
                failed.append(f"{name} at ({_shape(entry)}), {entry['peers'][name]}")
    return failed + [f"{part} ({fault})" for part, fault in report["faults"].items()]


def verdict(report: Record) -> str:
    """Return the result in one line."""
    failed = failures(report)
    conformed = [name for name, ran in report["conformance"].items() if ran["status"] == 0]
    passed = [f"conformance of {'; '.join(conformed)}"] if conformed else []
    passed += [f"{tool} of the kernels" for tool, ran in report["sanitizer"].items() if ran["status"] == 0]
    passed += ["the benchmark's numbers"] if report["benchmark"] else []
    found = f"failed: {', '.join(failed)}" if failed else f"passed: {', '.join(passed) or 'nothing'}"
    return f"unfinished, {found}" if report["stopped"] else found


def page(report: Record) -> str:
    """Return the whole report."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    libraries = [
        [name, f"sees no GPU: {found}", "", ""]
        if isinstance(found, str)
        else [name, found["version"], found["cuda"], ", ".join(found["devices"])]
        for name, found in report["libraries"].items()
    ]
    suites = [[name, _counted(ran)] for name, ran in report["conformance"].items()]
    sanitized = [f"- {tool}: {_result(ran)}{_quoted(ran)}" for tool, ran in report["sanitizer"].items()]
    return (
        "\n\n".join(
            [
                f"# rnncore on a GPU, {report['date']}: {verdict(report)}",
                f"Commit {report['commit']}, source {report['source']}; {versions}; Python {report['python']}, "
                f"{report['system']}; by `python -m benchmarks.gpu`, with all numbers in [report.json](report.json).",
                f"GPU, driver, memory, power limit, by nvidia-smi: {'; '.join(report['gpus'])}.",
                *(
                    [f"**Stopped {report['stopped']}**: what is missing below did not run."]
                    if report["stopped"]
                    else []
                ),
                *(f"**{part}** failed to run: {fault}" for part, fault in report["faults"].items()),
                "## Conformance",
                table(["library", "version", "CUDA", "devices"], _cells(libraries)),
                table(["suite", "result"], _cells(suites or [["none", "not run"]])),
                *(text for name, ran in report["conformance"].items() if (text := _failed_checks(name, ran))),
                "## compute-sanitizer over the kernels",
                "\n".join(sanitized) or "Not run.",
                "## Time and memory",
                *_measured(report["benchmark"]),
                "",
            ]
        ).rstrip("\n")
        + "\n"
    )


def _result(ran: Record) -> str:
    if ran["status"] is None:
        return f"not finished: {ran['words']}"
    return f"FAILED, status {ran['status']}" if ran["status"] else "passed"


def _quoted(ran: Record) -> str:
    return "\n\n" + "\n".join(f"      {line}" for line in ran["words"].splitlines()) if ran["status"] else ""


def _counted(ran: Record) -> str:
    counts = Counter(outcome["status"] for outcome in ran["outcomes"])
    counted = ", ".join(f"{number} {status}" for status, number in counts.items()) or "without a record"
    where = f"; precision {ran['precision']} on {ran['device']}" if "device" in ran else ""
    return f"{_result(ran)}: {counted}{where}"


def _failed_checks(name: str, ran: Record) -> str:
    failed = [o for o in ran["outcomes"] if o["status"] == "failed"]
    lines = [" ".join(f"- {name}: {o['id']}, {o['rule']}: {o['reason']}".split()) for o in failed[:FAULTS]]
    if len(failed) > FAULTS:
        lines.append(f"- {name}: and {len(failed) - FAULTS} more, in report.json")
    if ran["status"] and not failed:
        lines.append(f"- {name}:{_quoted(ran)}")
    return "\n".join(lines)


def _measured(entries: list[Record]) -> list[str]:
    left_out = [f"- {n} at ({_shape(e)}): {e['peers'][n]}" for e in entries for n in e["kind"]]
    absent = [n for n in PEERS if not any(tables.medians(e, of).get(n) for e in entries for of in PASSES)]
    parts = ["\n".join(left_out), f"Not measured: {', '.join(absent)}." if absent else ""]
    found = [_against(entry, of) for entry in entries for of in PASSES]
    rows = [row for row, _, _ in found if row]
    missed = [line for _, lines, _ in found for line in lines]
    ratios = sum(number for _, _, number in found)
    if rows:
        parts += [
            "float32 with full products. A time is the median of the rounds in ms. A ratio is the other library's time divided "
            f"by that of {OURS} in the same round, with its bootstrap interval: above 1, {OURS} is faster. **Bold** ratios are "
            "below the goal in parentheses. JAX's times are by the host's clock and include the wait for the GPU. Memory is "
            f"the peak of a call beyond what was there before, divided by cuDNN's; the goal is {MEMORY}.",
            f"{ratios - len(missed)} of {ratios} ratios reach their goal." + (" Below it:" if missed else ""),
            "\n".join(missed),
            table(["T, B, H", "pass", "kernel", OURS, *(f"against {name}" for name in AGAINST), "memory"], rows),
        ]
    return [part for part in [*parts, *_rule(entries)] if part]


def _against(entry: Record, of: str) -> tuple[list[str], list[str], int]:
    """Return the row of a shape and pass, a line for each ratio below its goal, and the number of ratios."""
    ours = tables.medians(entry, of).get(OURS)
    if ours is None:
        return [], [], 0
    cells, below, number = [], [], 0
    for k, name in enumerate(AGAINST):
        ratio, aim = tables.mean([entry], of, k), goal(Case(**entry["case"]).shape, of, name)
        if ratio is None:
            cells.append(MISSING)
            continue
        number += 1
        if ratio.value < aim:
            below.append(f"- ({_shape(entry)}) {WORDS[of]} against {name}")
        cells.append(f"{_bold(times(ratio), ratio.value < aim)} ({aim:g})")
    kernels = " ".join(dict.fromkeys(NAMES.findall(entry["about"].get(OURS, ""))))
    return [_shape(entry), WORDS[of], kernels, milliseconds(ours), *cells, _memory(entry, of)], below, number


def _rule(entries: list[Record]) -> list[str]:
    """Compare what rnncore_torch can run, to set the rule of rnncore_torch/_cuda.py."""
    rows = []
    for entry, of in ((entry, of) for entry in entries for of in PASSES):
        found, about = tables.medians(entry, of), entry["about"]
        if OPERATIONS in found:
            # Without a kernel for the shape these were PyTorch's operations again.
            ways = [n for n in (KERNELS, OPERATIONS) if n in found and (n != KERNELS or _on_kernels(about.get(n, "")))]
            best = tables.fastest(found, ways)
            cells = [
                _bold(milliseconds(found[n]), n == best) if n in found and (n != KERNELS or n in ways) else MISSING
                for n in (DROP_IN, KERNELS, OPERATIONS, CUDNN)
            ]
            pick = "kernels" if _on_kernels(about.get(DROP_IN, "")) else "PyTorch's operations"
            rows.append([_shape(entry), WORDS[of], pick, *cells])
    if not rows:
        return []
    return [
        "## Which code PyTorch's tensors should run",
        "Medians in ms: the code that the rule of `rnncore_torch/_cuda.py` picks, CuPy's kernels, PyTorch's operations, and "
        "cuDNN through `torch.nn.RNN`. The faster of kernels and operations is **bold**: if that is not the pick, the rule's "
        "constants should change.",
        table(["T, B, H", "pass", "pick", "its time", "kernels", "PyTorch's operations", "cuDNN"], rows),
    ]


def _on_kernels(about: str) -> bool:
    return "the kernel of backend 'cupy'" in about


def _memory(entry: Record, of: str) -> str:
    ours, theirs = (entry["peak"].get(name, {}).get(of) for name in (OURS, CUDNN))
    if of != "both" or not ours or not theirs:
        return ""
    return _bold(f"{ours / theirs:.2f}", ours / theirs > MEMORY)


def _bold(text: str, condition: bool) -> str:
    return f"**{text}**" if condition else text


def _shape(entry: Record) -> str:
    return sizes(Case(**entry["case"]).shape)


def _cells(rows: list[list[str]]) -> list[list[str]]:
    return [[" ".join(cell.replace("|", "/").split()) for cell in row] for row in rows]
