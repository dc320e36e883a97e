"""What the commands share: consoles, failures in one line, and output files."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from rnncore.errors import ArgumentValueError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn

FAILED, USAGE = 1, 2
INTERRUPTED, TERMINATED = 130, 143  # a shell's status for Ctrl-C and SIGTERM
STANDARD_OUTPUT = "-"
PIPE_WIDTH = 120  # a pipe has no width


def fail(message: str, status: int) -> NoReturn:
    """End the command with one line on stderr."""
    line = "; ".join(line.strip() for line in message.splitlines()).replace(":;", ":")
    print(f"rnncore: {line}", file=sys.stderr)
    raise SystemExit(status)


@contextmanager
def needs(what: str, extra: str) -> Iterator[None]:
    """Report a missing package with the command that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        top = (error.name or "a package").partition(".")[0]
        package = "scikit-learn" if top == "sklearn" else top
        fail(f'{what} needs {package}: pip install "rnncore[{extra}]"', FAILED)


def output() -> Console:
    """Console for standard output."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)


def progress(*columns: str | ProgressColumn) -> Progress:
    """Progress display on stderr, shown only on a terminal; ``.disable`` says whether it is not."""
    from rich.console import Console
    from rich.progress import Progress

    errors = Console(stderr=True)
    return Progress(*columns, console=errors, disable=not errors.is_terminal, transient=True)


def check_writable(option: str, path: str | None) -> None:
    """Check before a long run that its output file can be written.

    Raises
    ------
    ArgumentValueError
    """
    if path is None:
        return
    folder = os.path.dirname(os.path.abspath(path))
    there = os.path.exists(path)
    possible = os.path.isdir(folder) and os.access(path if there else folder, os.W_OK) and not os.path.isdir(path)
    if not path or not possible:
        raise ArgumentValueError(f"{option}: expected a file that can be written, got {path!r}")


def check_outputs(outputs: Mapping[str, str | None], read: Mapping[str, str | None] | None = None) -> None:
    """Check before a long run that each output can be written, to a file of its own or to standard output, "-".

    Parameters
    ----------
    outputs : mapping of str to str or None
        The paths by option.
    read : mapping of str to str or None, optional
        Files that the command reads, which are no outputs.

    Raises
    ------
    ArgumentValueError
    """
    taken = {os.path.realpath(path): name for name, path in (read or {}).items() if path is not None}
    for option, path in outputs.items():
        if path is None:
            continue
        place = path if path == STANDARD_OUTPUT else os.path.realpath(path)
        if place in taken:
            raise ArgumentValueError(f"{option}: expected another file than {taken[place]}'s, got {path!r}")
        taken[place] = option
        if path != STANDARD_OUTPUT:
            check_writable(option, path)


def write(path: str, text: str) -> None:
    """Write a text as UTF-8 to a file, or to standard output for "-".

    A plugin's error message may contain lone surrogates, which are escaped.
    """
    data = text.encode("utf-8", "backslashreplace")
    if path != STANDARD_OUTPUT:
        with open(path, "wb") as file:
            file.write(data)
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
