"""The terminal: one-line failures, and files that can be written."""

from __future__ import annotations

import os

from rnncore.errors import ArgumentValueError

STANDARD_OUTPUT = "-"


def check_writable(option: str, path: str | None) -> None:
    """Before the run, not after it.

    Raises
    ------
    ArgumentValueError
    """
    if path is None or (path == STANDARD_OUTPUT and option == "--json"):
        return
    folder = os.path.dirname(os.path.abspath(path))
    there = os.path.exists(path)
    possible = os.path.isdir(folder) and os.access(path if there else folder, os.W_OK) and not os.path.isdir(path)
    if not path or not possible:
        raise ArgumentValueError(f"{option}: expected a file that can be written, got {path!r}")


def _write(path: str, text: str) -> None:
    # What a plugin's error holds may be no Unicode at all; a report that shows it escaped is better than none.
    with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
