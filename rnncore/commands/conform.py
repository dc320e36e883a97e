"""The command ``rnncore conform``: the conformance suite on one backend."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import typer

from rnncore.commands.terminal import FAILED, STANDARD_OUTPUT, check_writable, output, progress, write
from rnncore.errors import ArgumentValueError

if TYPE_CHECKING:
    from rich.console import Console

    from rnncore.testing import Outcome, Report

STYLES = {"passed": "green", "failed": "bold red", "expected to fail": "yellow", "skipped": "dim"}


def conform(
    backend: str = typer.Argument(help="A registered backend, as `rnncore backends` lists it."),
    device: str = typer.Option(None, help="The device; by default the backend's default one."),
    kernel: str = typer.Option("auto", help="How scans run: auto, reference or require."),
    only: list[str] = typer.Option(None, metavar="ID", help="A check, or a group such as RC-SCAN; repeatable."),
    expect_failure: list[str] = typer.Option(
        None, metavar="ID=REASON", help="A check that must fail, with the reason; repeatable."
    ),
    as_json: str = typer.Option(None, "--json", metavar="FILE", help="Also write the report as JSON; - for stdout."),
    as_html: str = typer.Option(None, "--html", metavar="FILE", help="Also write the report as one HTML page."),
) -> int:
    """Check a backend with the conformance suite. Status 0 if it conforms, 1 if a check failed or none ran."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

    from rnncore.testing import check_backend

    check_writable("--json", as_json)
    check_writable("--html", as_html)
    expected = expectations(expect_failure or [])
    bar = progress(TextColumn("{task.description:<14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    task = bar.add_task("starting", total=None)

    def on_outcome(outcome: Outcome, number: int, count: int) -> None:
        bar.update(task, completed=number, total=count, description=outcome.id)

    options: dict[str, Any] = {"device": device, "kernel": kernel, "only": only or None}
    # A plugin or its library may print; standard output is for the report.
    with bar, redirect_stdout(sys.stderr):
        report = check_backend(backend, expected_failures=expected, on_outcome=on_outcome, **options)
    if as_json is not None:
        write(as_json, report.to_json() + "\n")
    if as_html is not None:
        write(as_html, report.to_html())
    if as_json != STANDARD_OUTPUT:
        print_report(report, output())
    return 0 if report.ok else FAILED


def print_report(report: Report, console: Console) -> None:
    """Print the report, in colours on a terminal. Lines are not folded, so that they can be searched."""
    from rich.text import Text

    styles = {o.id: STYLES[o.status] for o in report.outcomes}
    style = STYLES["passed" if report.ok else "failed"]
    for number, line in enumerate(str(report).splitlines()):
        if number > 0:
            style = styles.get(line.split(" ", 1)[0], "") if not line.startswith(" ") else style
        console.print(Text(line, style=style), soft_wrap=True)


def expectations(pairs: Iterable[str]) -> dict[str, str]:
    """Parse ``ID=REASON`` pairs.

    >>> from rnncore.commands.conform import expectations
    >>> expectations(["RC-NUM-001=issue 12"])
    {'RC-NUM-001': 'issue 12'}
    """
    found = {}
    for pair in pairs:
        name, equals, reason = pair.partition("=")
        if not equals or not reason.strip():
            raise ArgumentValueError(f"--expect-failure: expected ID=REASON, got {pair!r}")
        found[name.strip()] = reason.strip()
    return found
