"""The command ``rnncore conform``: the suite on one backend, with a bar while it runs, a line for each check, and files."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

from rnncore.commands.terminal import STANDARD_OUTPUT, _write
from rnncore.errors import ArgumentValueError

if TYPE_CHECKING:
    from rich.console import Console

    from rnncore.testing import Outcome, Report
    from rnncore.typing import KernelMode

__all__ = ["expectations", "print_report", "run", "write"]

STYLES = {"passed": "green", "failed": "bold red", "expected to fail": "yellow", "skipped": "dim"}


def run(
    backend: str,
    *,
    device: str | None,
    kernel: KernelMode,
    only: Iterable[str] | None,
    expected_failures: Mapping[str, str],
) -> Report:
    """Run the suite, with a progress bar where there is a terminal to draw it on."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from rnncore.testing import check_backend

    errors = Console(stderr=True)
    columns = (TextColumn("{task.description:<14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, disable=not errors.is_terminal, transient=True) as progress:
        task = progress.add_task("starting", total=None)

        def on_outcome(outcome: Outcome, number: int, count: int) -> None:
            progress.update(task, completed=number, total=count, description=outcome.id)

        # A plugin, or its library, may print: the report has standard output to itself.
        with redirect_stdout(sys.stderr):
            return check_backend(
                backend,
                device=device,
                kernel=kernel,
                only=only,
                expected_failures=expected_failures,
                on_outcome=on_outcome,
            )


def print_report(report: Report, console: Console) -> None:
    """The report's own text, in colours where there is a terminal. Lines are not folded: each can be searched for."""
    from rich.text import Text

    styles = {o.id: STYLES[o.status] for o in report.outcomes}
    style = STYLES["passed" if report.ok else "failed"]
    for number, line in enumerate(str(report).splitlines()):
        if number > 0:
            style = styles.get(line.split(" ", 1)[0], "") if not line.startswith(" ") else style
        console.print(Text(line, style=style), soft_wrap=True)


def write(report: Report, *, json: str | None, html: str | None) -> None:
    """The files that were asked for."""
    if json == STANDARD_OUTPUT:
        print(report.to_json())
    elif json is not None:
        _write(json, report.to_json() + "\n")
    if html is not None:
        _write(html, report.to_html())


def expectations(pairs: Iterable[str]) -> dict[str, str]:
    """``ID=REASON`` for each check that is known to fail.

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
