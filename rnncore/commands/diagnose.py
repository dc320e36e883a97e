"""The command ``rnncore diagnose``: a saved network and an input from files, the report on the terminal and in files."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

import numpy as np

from rnncore.backend.registry import get_backend
from rnncore.commands.terminal import STANDARD_OUTPUT, check_writable
from rnncore.errors import ArgumentTypeError, ArgumentValueError
from rnncore.io.npy import read_npy
from rnncore.model.rnn import RNN, load
from rnncore.typing import Array

if TYPE_CHECKING:
    from rnncore.diagnostics import Report

__all__ = ["STANDARD_OUTPUT", "run", "write"]

BEYOND = 3  # entries that are named


def run(
    weights: str,
    x: str,
    *,
    backend: str | None,
    device: str | None,
    level: Any,
    lengths: str | None,
    dependency_length: int | None,
    cotangent: str | None,
    outputs: Mapping[str, str | None],
) -> Report:
    """Read the files and diagnose, with a clock where there is a terminal to draw it on.

    Raises
    ------
    RnncoreError, OSError
    """
    from rnncore.diagnostics.run import check_level, diagnose

    check_level(level)
    rows = None if lengths is None else _lengths(lengths)
    _check_outputs(outputs, {"the weights": weights, "--input": x, "--cotangent": cotangent})
    # A plugin may print, and standard output is the report's.
    with redirect_stdout(sys.stderr), _clock("reading") as say:
        host = read_npy("--input", x)
        given = None if cotangent is None else read_npy("--cotangent", cotangent)
        rnn = load(weights, backend=backend, device=device)
        array = _on(rnn, "--input", host)
        pull = None if given is None else (_on(rnn, "--cotangent", given), None)
        say(f"diagnosing {'x'.join(map(str, host.shape))}, level {level}")
        return diagnose(rnn, array, pull, lengths=rows, dependency_length=dependency_length, level=level)


def write(report: Report, *, json: str | None, html: str | None) -> None:
    """The files that were asked for. The page is UTF-8, as it says itself, whatever the terminal speaks.

    Raises
    ------
    OSError
    """
    if html is not None:
        with _clock("drawing the page"):
            page = report.to_html().encode("utf-8", "backslashreplace")
        _write(html, page)
    if json is not None:
        _write(json, (report.to_json() + "\n").encode("ascii"))


def _check_outputs(outputs: Mapping[str, str | None], read: Mapping[str, str | None]) -> None:
    """Before the run, not after it: that each can be written, and as a file of its own, and that a page can be drawn."""
    taken = {os.path.realpath(path): name for name, path in read.items() if path is not None}
    for option, path in outputs.items():
        if path is None:
            continue
        place = path if path == STANDARD_OUTPUT else os.path.realpath(path)
        if place in taken:
            raise ArgumentValueError(f"{option}: expected another file than {taken[place]}'s, got {path!r}")
        taken[place] = option
        if path != STANDARD_OUTPUT:
            check_writable(option, path)
    if outputs.get("--html") is not None:
        from rnncore.diagnostics.figures.plot import require_matplotlib

        try:
            require_matplotlib()
        except ImportError as error:
            raise ArgumentValueError(f"--html: {error}") from error


@contextmanager
def _clock(what: str) -> Iterator[Callable[[str], None]]:
    """What is being done and since when, where there is a terminal to say it on; a function that says what is next."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    errors = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=errors, disable=not errors.is_terminal, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda text: progress.update(task, description=text)


def _write(path: str, data: bytes) -> None:
    if path != STANDARD_OUTPUT:
        with open(path, "wb") as file:
            file.write(data)
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _on(rnn: RNN, option: str, host: np.ndarray[Any, Any]) -> Array:
    """The numbers in the network's dtype, on its device; what that dtype cannot hold is said."""
    name = rnn.network.engine.dtype_name
    with np.errstate(over="ignore"):
        held = host.astype("float32" if name == "bfloat16" else name)
    beyond = np.argwhere(np.isfinite(host) & ~np.isfinite(held))
    if len(beyond):
        places = ", ".join(f"{list(map(int, at))} = {host[tuple(at)]}" for at in beyond[:BEYOND])
        raise ArgumentValueError(f"{option}: expected numbers that {name}, the network's dtype, holds, got {places}")
    return get_backend(rnn.backend).asarray(held, dtype=rnn.dtype, device=rnn.device)


def _lengths(text: str) -> list[int]:
    found = []
    for k, part in enumerate(text.split(",")):
        digits = part.strip()
        if not (digits.isascii() and digits.isdigit()) or len(digits) > 18:
            raise ArgumentTypeError(f'--lengths: expected whole numbers such as "4,0,7", got {part!r} in place {k}')
        found.append(int(digits))
    return found
