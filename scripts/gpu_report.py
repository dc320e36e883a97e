"""The report of scripts/gpu-check in Markdown, from its record: what passed, failed, was not run, was measured."""

from __future__ import annotations

from typing import Any

import gpu_times

Record = dict[str, Any]

# Agreement with float64: 64 roundings of float32, as everywhere in rnncore; of gradients, of the largest.
ERROR = 64 * 2.0**-23
FAULTS = 10  # failed checks that are named


def failures(report: Record) -> list[str]:
    """What failed: never for want of speed, and never what could not be run."""
    failed = [f"conformance of {name}" for name, ran in report["conformance"].items() if ran["status"]]
    failed += [f"{tool} of the kernels" for tool, ran in report["sanitizer"].items() if ran["status"]]
    faulty = [r["library"] for r in report["benchmark"] if "fault" in r]
    failed += [f"the benchmark of {name}" for name in dict.fromkeys(faulty)]
    ours = (r for r in report["benchmark"] if r["library"].startswith("rnncore") and wrong(r))
    failed += list(dict.fromkeys(f"the {wrong(r)} of {r['library']} at {tuple(r['shape'])}" for r in ours))
    return failed + [f"{part} ({fault})" for part, fault in report["faults"].items()]


def wrong(record: Record) -> str | None:
    """What of a record of the benchmark disagrees with float64, or None."""
    for what, key in (("states", "error"), ("gradients", "gradient_error")):
        # null stands for NaN and infinity
        if key in record and (record[key] is None or not record[key] <= ERROR):
            return what
    return None


def verdict(report: Record) -> str:
    """One line."""
    failed = failures(report)
    if failed:
        found = f"failed: {', '.join(failed)}"
    else:
        conformed = [name for name, ran in report["conformance"].items() if ran["status"] == 0]
        passed = [f"conformance of {'; '.join(conformed)}"] if conformed else []
        passed += [f"{tool} of the kernels" for tool, ran in report["sanitizer"].items() if ran["status"] == 0]
        passed += ["the benchmark's numbers"] if any("ms" in r for r in report["benchmark"]) else []
        found = f"passed: {', '.join(passed) or 'nothing'}"
    return f"unfinished, {found}" if report["stopped"] else found


def written(report: Record) -> str:
    """All of it."""
    lines = [
        f"# rnncore on a GPU, {report['date']}: {verdict(report)}",
        "",
        f"rnncore {report['rnncore']}, commit {report['commit']}, source {report['source']}; NumPy {report['numpy']}, Python "
        f"{report['python']}, {report['system']}; by `scripts/gpu-check`, with all numbers in [report.json](report.json).",
        "",
        "GPU, driver, memory, most power, by nvidia-smi: " + "; ".join(report["gpus"]) + ".",
        *(["", f"**Stopped {report['stopped']}**: what is missing below was not run."] if report["stopped"] else []),
        *(f"\n**{part}** could not be done: {fault}" for part, fault in report["faults"].items()),
        "",
        "## Conformance",
        "",
        "| library | version | CUDA | devices |",
        "|---|---|---|---|",
    ]
    for name, found in report["libraries"].items():
        if isinstance(found, str):
            lines.append(_row((name, f"sees no GPU: {found}", "", "")))
        else:
            lines.append(_row((name, found["version"], found["cuda"], ", ".join(found["devices"]))))
    lines += ["", "| suite | result |", "|---|---|"]
    lines += [_row((name, _counted(ran))) for name, ran in report["conformance"].items()]
    if not report["conformance"]:
        lines.append("| none | not run |")
    for name, ran in report["conformance"].items():
        lines += _failed_checks(name, ran)
    lines += ["", "## compute-sanitizer over the kernels", ""]
    if not report["sanitizer"]:
        lines.append("Not run.")
    for tool, ran in report["sanitizer"].items():
        lines.append(f"- {tool}: {_sanitized(ran)}")
        if ran["status"]:
            lines += ["", *(f"      {line}" for line in ran["words"].splitlines()), ""]
    return "\n".join([*lines, "", *gpu_times.section(report["benchmark"], wrong), ""])


def _counted(ran: Record) -> str:
    if ran["status"] is None:
        return "not finished: no time was left"
    word = "passed" if ran["status"] == 0 else f"FAILED, status {ran['status']}"
    record = ran["record"]
    if not record:
        return f"{word}, without a record"
    counts = ", ".join(f"{number} {kind}" for kind, number in record["counts"].items() if number)
    return f"{word}: {counts}; precision {record['precision']} on {record['device']}"


def _failed_checks(name: str, ran: Record) -> list[str]:
    """Each check that failed, with its reason."""
    outcomes = [o for o in (ran["record"] or {}).get("outcomes", ()) if o["status"] == "failed"]
    lines = [f"- {name}: {o['id']}, {o['rule']}: {o['reason']}" for o in outcomes[:FAULTS]]
    if len(outcomes) > FAULTS:
        lines.append(f"- {name}: and {len(outcomes) - FAULTS} more, in report.json")
    return ["", *(" ".join(line.split()) for line in lines)] if lines else []


def _sanitized(ran: Record) -> str:
    if ran["status"] is None:
        return f"not run: {ran['words']}"
    return "passed" if ran["status"] == 0 else f"FAILED, status {ran['status']}"


def _row(cells: tuple[Any, ...]) -> str:
    return "| " + " | ".join(" ".join(str(cell).replace("|", "/").split()) for cell in cells) + " |"
