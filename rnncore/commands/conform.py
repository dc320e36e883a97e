"""The command ``rnncore conform``: the conformance suite on one backend."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, TextIO, cast

import typer

from rnncore.commands.terminal import (
    FAILED,
    INTERRUPTED,
    STANDARD_OUTPUT,
    TERMINATED,
    check_outputs,
    output,
    progress,
    write,
)
from rnncore.errors import ArgumentValueError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from rnncore.testing import Check, Outcome, Report
    from rnncore.typing import KernelMode

STYLES = {"passed": "green", "failed": "bold red", "expected to fail": "yellow", "skipped": "dim"}


def conform(
    backend: str = typer.Argument(help="A registered backend, as `rnncore backends` lists it."),
    device: str = typer.Option(None, help="The device; by default the backend's default one."),
    kernel: str = typer.Option("auto", help="How scans run: auto, reference or require."),
    only: list[str] = typer.Option(None, metavar="ID", help="A check, or a group such as RC-SCAN; repeatable."),
    expect_failure: list[str] = typer.Option(
        None, metavar="ID=REASON", help="A check that must fail, with the reason; repeatable."
    ),
    limit: float = typer.Option(
        None, metavar="SECONDS", help="The most that a check may take; it then fails, and the next one runs."
    ),
    as_json: str = typer.Option(None, "--json", metavar="FILE", help="Also write the report as JSON; - for stdout."),
    json_lines: str = typer.Option(
        None, metavar="FILE", help="Also write each start and outcome at once, as a line of JSON; - for stdout."
    ),
    as_html: str = typer.Option(
        None, "--html", metavar="FILE", help="Also write the report as one HTML page; - for stdout."
    ),
) -> int:
    """Check a backend with the conformance suite. Status 0 if it conforms, 1 if a check failed or none ran.

    Ctrl-C ends the run with the report so far and status 130; with --limit, SIGTERM does so with status 143.
    """
    from rnncore.testing.lines import JsonLines
    from rnncore.testing.run import Run

    check_outputs({"--json": as_json, "--json-lines": json_lines, "--html": as_html})
    expected = expectations(expect_failure or [])
    status = 0
    with ExitStack() as stack:
        if limit is not None:  # else SIGTERM must end native code, which a handler in Python would wait for
            stack.enter_context(_terminable())
        standard = sys.stdout
        # A plugin or its library may print; standard output is for the report.
        stack.enter_context(redirect_stdout(sys.stderr))
        show = stack.enter_context(_Shown())
        mode = cast("KernelMode", kernel)
        options: dict[str, Any] = {"device": device, "only": only or None, "limit": limit}
        run = stack.enter_context(Run(backend, kernel=mode, expected_failures=expected, **options))
        # Now that the backend can be used, and no earlier: a file of an earlier run is replaced.
        lines = JsonLines(run.setting, stack.enter_context(_lines(json_lines, standard)))
        try:
            lines.plan(run.checks, limit)
            for number, check in enumerate(run.checks, start=1):
                show.started(check, number, len(run.checks))
                lines.started(check)
                outcome = run.one(check)
                lines.outcome(outcome)
                show.outcome(outcome)
        except KeyboardInterrupt as interrupt:
            run.close(now=True)
            status = TERMINATED if isinstance(interrupt, _Terminated) else INTERRUPTED
        report = run.report()
        lines.summary(report)
    if as_json is not None:
        write(as_json, report.to_json() + "\n")
    if as_html is not None:
        write(as_html, report.to_html())
    if STANDARD_OUTPUT not in (as_json, json_lines, as_html):
        print_report(report, output())
    return status or (0 if report.ok else FAILED)


class _Shown:
    """Progress on stderr: a bar on a terminal, else a line for each check, which names it before it runs."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

        self._bar: Progress = progress(
            TextColumn("{task.description:<14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        )
        self._task = self._bar.add_task("starting", total=None)
        self._open = False

    def __enter__(self) -> _Shown:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()
        if self._open:
            self._say("\n")

    def started(self, check: Check, number: int, count: int) -> None:
        self._bar.update(self._task, completed=number - 1, total=count, description=check.id)
        self._say(f"[{number:>{len(str(count))}}/{count}] {check.id:<14} ")
        self._open = True

    def outcome(self, outcome: Outcome) -> None:
        self._bar.advance(self._task)
        reason = f": {outcome.reason}" if outcome.status == "failed" else ""
        self._say(f"{outcome.status} in {outcome.seconds:.2f} s{reason}\n")
        self._open = False

    def _say(self, text: str) -> None:
        if self._bar.disable and sys.stderr is not None:
            print(text, end="", file=sys.stderr, flush=True)


class _Terminated(KeyboardInterrupt):
    """SIGTERM."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM interrupt as Ctrl-C does."""

    def stop(number: int, frame: object) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _lines(path: str | None, standard: TextIO) -> Iterator[Callable[[str], object]]:
    """A function that writes a line to a file, or to standard output for "-", and flushes it."""
    if path is None:
        yield lambda line: None
        return
    with ExitStack() as stack:
        stream = standard
        if path != STANDARD_OUTPUT:
            stream = stack.enter_context(open(path, "w", encoding="utf-8"))
        yield lambda line: (stream.write(line), stream.flush())


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
