"""Run ``rnncore conform`` on every backend of this distribution, each in its own process, and write conformance.md."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().with_suffix(".md")
# Columns, and the arguments of `rnncore conform`. JAX has float64 only if a variable enables it.
RUNS = (
    ("numpy", ["numpy"]),
    ("numba", ["numba"]),
    ("torch", ["torch"]),
    ("jax", ["jax"]),
    ("mlx", ["mlx"]),
    ("strict", ["strict"]),
    ("strict, no float64", ["strict", "--device", "no_float64"]),
)
MAIN = "from rnncore.commands.cli import main; main()"
ENVIRONMENT = {**os.environ, "JAX_ENABLE_X64": "1"}
MARKS = {"passed": "✓", "failed": "✗", "expected to fail": "x", "skipped": "·"}
WITHIN_ROUNDING = 1000.0

HEAD = """# Conformance of the backends that ship

Made by `python docs/conformance.py`, which runs `rnncore conform` on each. A row is a check: its id, its rule, and for each
backend ✓ with the largest error, in eps of the dtype in which it was largest. Checks of precision run in float32 and, if the
device has it, in float64. A · means that the backend does not declare what the check needs. Allowed are 64 eps for states and
gradients, 0 if the rule says so, and half of the digits for central differences (DIFF and SECOND-005), whose errors are not
shown.
"""


def main() -> int:
    """Run every suite, write the page, and return 1 if any backend failed."""
    reports = {}
    for column, arguments in RUNS:
        command = [sys.executable, "-c", MAIN, "conform", *arguments, "--json", "-"]
        done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
        if not done.stdout:
            sys.exit(done.stderr)
        reports[column] = json.loads(done.stdout)
        print(f"{column}: {_summary(reports[column])}", file=sys.stderr)
    PAGE.write_text(_page(reports), encoding="utf-8")
    return 0 if all(r["ok"] for r in reports.values()) else 1


def _page(reports: dict[str, dict]) -> str:
    lines = [HEAD, "| backend | device | result | seconds | largest error | versions |", "|---|---|---|---|---|---|"]
    for column, r in reports.items():
        versions = ", ".join(f"{k} {v}" for k, v in r["versions"].items() if k not in ("suite", "rnncore", "platform"))
        lines.append(f"| {column} | {r['device']} | {_summary(r)} | {r['seconds']:.0f} | {_largest(r)} | {versions} |")
    first = next(iter(reports.values()))
    lines += ["", f"Suite {first['versions']['suite']}, on {first['versions']['platform']}.", ""]
    lines += ["| check | rule | " + " | ".join(reports) + " |", "|---|---|" + "---|" * len(reports)]
    for k, row in enumerate(first["outcomes"]):
        cells = [_cell(r["outcomes"][k]) for r in reports.values()]
        rule = row["rule"].replace("|", "\\|").replace("*", "\\*")
        lines.append(f"| {row['id']} | {rule} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _summary(r: dict) -> str:
    counts = r["counts"]
    return f"{r['ran']} ran, {counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped"


def _largest(r: dict) -> str:
    measured = [o for o in r["outcomes"] if o["error_eps"] and o["allowed_eps"] <= WITHIN_ROUNDING]
    worst = max(measured, key=lambda o: o["error_eps"])
    return f"{worst['error_eps']:.1f} eps ({worst['id']})"


def _cell(o: dict) -> str:
    eps = o["error_eps"]
    shown = "" if eps is None or o["allowed_eps"] > WITHIN_ROUNDING else f" {eps:.1f}"
    return MARKS[o["status"]] + shown


if __name__ == "__main__":
    sys.exit(main())
