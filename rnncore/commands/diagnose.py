"""The command ``rnncore diagnose``: a saved network and an input from files, diagnosed."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

import numpy as np
import typer

from rnncore.backend.arrays import dtype_name
from rnncore.backend.registry import get_backend
from rnncore.commands.terminal import FAILED, STANDARD_OUTPUT, USAGE, check_outputs, fail, output, progress, write
from rnncore.errors import ArgumentTypeError, ArgumentValueError, RnncoreError
from rnncore.io.npy import read_npy
from rnncore.model.loading import load
from rnncore.model.rnn import RNN
from rnncore.typing import Array, Host

SHOWN_ENTRIES = 3


def diagnose(
    weights: str = typer.Argument(help="A file that RNN.save wrote, or another that says all."),
    x: str = typer.Option(..., "--input", metavar="FILE.npy", help="The input, in the network's own layout."),
    backend: str = typer.Option(None, help="The backend to run on; by default the selected one."),
    device: str = typer.Option(None, help="The device; by default the backend's default one."),
    level: str = typer.Option("cheap", help="How much to compute: cheap, standard or deep."),
    lengths: str = typer.Option(None, metavar="N,N,...", help="The valid steps of each row."),
    dependency_length: int = typer.Option(None, min=1, help="Steps that the task must reach over; by default all."),
    cotangent: str = typer.Option(None, metavar="FILE.npy", help="dL/d output; by default one on the last output."),
    as_json: str = typer.Option(None, "--json", metavar="FILE", help="Also write the report as JSON; - for stdout."),
    as_html: str = typer.Option(
        None, "--html", metavar="FILE", help="Also write the report as one HTML page; - for stdout."
    ),
) -> int:
    """Say why a saved network does not learn. Status 0 if it is healthy, 1 if not, 2 for an error."""
    from rnncore.diagnostics.run import check_level
    from rnncore.diagnostics.run import diagnose as run

    read = {"the weights": weights, "--input": x, "--cotangent": cotangent}
    try:
        check_level(level)
        rows = None if lengths is None else _lengths(lengths)
        _check_outputs({"--json": as_json, "--html": as_html}, read)
        # A plugin may print; standard output is for the report.
        with redirect_stdout(sys.stderr), _clock("reading") as say:
            host = read_npy("--input", x)
            given = None if cotangent is None else read_npy("--cotangent", cotangent)
            rnn = load(weights, backend=backend, device=device)
            array = _on(rnn, "--input", host)
            pull = None if given is None else (_on(rnn, "--cotangent", given), None)
            say(f"diagnosing {'x'.join(map(str, host.shape))}, level {level}")
            options: dict[str, Any] = {"lengths": rows, "dependency_length": dependency_length, "level": level}
            report = run(rnn, array, pull, **options)
            say("drawing the page")
            page = "" if as_html is None else report.to_html()
        if as_html is not None:
            write(as_html, page)
        if as_json is not None:
            write(as_json, report.to_json() + "\n")
    except (RnncoreError, OSError) as error:
        fail(str(error), USAGE)
    except MemoryError as error:
        fail(f"there is not enough memory: {error}", USAGE)
    except Exception:  # a bug: shown in full, with a status that no verdict has
        traceback.print_exc()
        return USAGE
    if STANDARD_OUTPUT not in (as_json, as_html):
        report.show(output())
    return 0 if report.verdict.label == "healthy" else FAILED


def _check_outputs(outputs: Mapping[str, str | None], read: Mapping[str, str | None]) -> None:
    """Check before the run that each output can be written, to a file of its own, and that the page can be drawn."""
    check_outputs(outputs, read)
    if outputs.get("--html") is not None:
        from rnncore.diagnostics.figures.plot import require_matplotlib

        try:
            require_matplotlib()
        except ImportError as error:
            raise ArgumentValueError(f"--html: {error}") from error


@contextmanager
def _clock(what: str) -> Iterator[Callable[[str], None]]:
    """Show on a terminal what is being done and for how long; yields a function that changes the text."""
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    with progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()) as shown:
        task = shown.add_task(what, total=None)
        yield lambda text: shown.update(task, description=text)


def _on(rnn: RNN, option: str, host: Host) -> Array:
    """Move numbers to the network's dtype and device, refusing those that overflow in that dtype."""
    name = dtype_name(rnn.dtype)
    with np.errstate(over="ignore"):
        held = host.astype("float32" if name == "bfloat16" else name)
    beyond = np.argwhere(np.isfinite(host) & ~np.isfinite(held))
    if len(beyond):
        places = ", ".join(f"{list(map(int, at))} = {host[tuple(at)]}" for at in beyond[:SHOWN_ENTRIES])
        raise ArgumentValueError(f"{option}: expected numbers within the range of {name}, got {places}")
    return get_backend(rnn.backend).asarray(held, dtype=rnn.dtype, device=rnn.device)


def _lengths(text: str) -> list[int]:
    found = []
    for k, part in enumerate(text.split(",")):
        digits = part.strip()
        if not (digits.isascii() and digits.isdigit()) or len(digits) > 18:
            raise ArgumentTypeError(f'--lengths: expected whole numbers such as "4,0,7", got {part!r} in place {k}')
        found.append(int(digits))
    return found
