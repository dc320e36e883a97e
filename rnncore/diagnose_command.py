"""The command ``rnncore diagnose``: a saved network and an input from files, the report on the terminal and in files."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import numpy as np

from rnncore.backend import Array
from rnncore.conform import STANDARD_OUTPUT, check_writable
from rnncore.errors import ArgumentTypeError, ArgumentValueError, FileFormatError
from rnncore.io.files import open_regular
from rnncore.io.npz import _npy_header
from rnncore.model import RNN, load
from rnncore.registry import get_backend
from rnncore.spec import check_bytes

if TYPE_CHECKING:
    from rnncore.diagnostics import Report

__all__ = ["STANDARD_OUTPUT", "read_npy", "run", "write"]

LARGEST_ITEM = 8  # bytes: what an array library has a dtype for
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
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from rnncore.diagnostics.diagnose import check_level, diagnose

    check_level(level)
    rows = None if lengths is None else _lengths(lengths)
    for option, path in outputs.items():
        check_writable(option, path)
    errors = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    # A plugin may print, and standard output is the report's.
    with (
        redirect_stdout(sys.stderr),
        Progress(*columns, console=errors, disable=not errors.is_terminal, transient=True) as progress,
    ):
        task = progress.add_task("reading", total=None)
        host = read_npy("--input", x)
        given = None if cotangent is None else read_npy("--cotangent", cotangent)
        rnn = load(weights, backend=backend, device=device)
        array = _on(rnn, "--input", host)
        pull = None if given is None else (_on(rnn, "--cotangent", given), None)
        progress.update(task, description=f"diagnosing {'x'.join(map(str, host.shape))}, level {level}")
        return diagnose(rnn, array, pull, lengths=rows, dependency_length=dependency_length, level=level)


def write(report: Report, *, json: str | None) -> None:
    """The file that was asked for."""
    if json == STANDARD_OUTPUT:
        print(report.to_json())
    elif json is not None:
        with open(json, "w", encoding="utf-8") as file:
            file.write(report.to_json() + "\n")


def read_npy(option: str, path: str) -> np.ndarray[Any, Any]:
    """The numbers of an ``.npy`` as ``numpy.save`` writes them. Nothing in the file is executed, none of its sizes believed.

    Raises
    ------
    FileFormatError
    OSError
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            shape, dtype = _npy_header(file, option)
            if dtype.kind not in "fiu" or dtype.itemsize > LARGEST_ITEM:
                raise FileFormatError(f"{option}: expected real numbers of at most {LARGEST_ITEM} bytes, got {dtype}")
            count, held = int(np.prod(shape, dtype=object)), size - file.tell()
            if count * dtype.itemsize != held:
                raise FileFormatError(
                    f"{option}: expected {count * dtype.itemsize} bytes of {dtype} {shape}, got {held}: "
                    "it is truncated or damaged"
                )
            check_bytes(option, count, LARGEST_ITEM)
            data = file.read(held)
    except FileFormatError as error:
        text = str(error).removeprefix(f"{option}: ")
        raise FileFormatError(f"{option} {path}: {text}") from error
    if len(data) != held:
        raise FileFormatError(f"{option} {path}: it was changed while it was read")
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _on(rnn: RNN, option: str, host: np.ndarray[Any, Any]) -> Array:
    """The numbers in the network's dtype, on its device; what that dtype cannot hold is said."""
    name = rnn._engine.dtype_name
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
