"""File system access: replace a file atomically; open regular files only."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from typing import BinaryIO

from rnncore.errors import ArgumentValueError, FileFormatError
from rnncore.io import temporary
from rnncore.io.paths import as_path, named


def replace(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Replace a file's contents atomically: a reader sees the old bytes or the new ones.

    `write` is called with a temporary file in the same directory, which is then synced to disk and renamed. On any failure
    the temporary file is removed and the old file is unchanged. Files that killed processes have left there are removed.

    Raises
    ------
    ArgumentTypeError, ArgumentValueError
        If `path` is not a path, or of something else than a regular file.
    FileAccessError
    """
    given = as_path(path)
    with named(given):
        target = os.path.realpath(given)  # keeps a link, as open(path, "w") does
        mode = _mode(target)
        folder = os.path.dirname(target)
        temporary.remove_stale(folder)
        # Never wider than the old file's permissions.
        file, made = temporary.create(folder, 0o666 if mode is None else mode)
        try:
            with file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
                if mode is not None:
                    os.chmod(made, mode)
                if os.name == "nt":  # Windows renames no open file; elsewhere the file is locked until it is renamed
                    file.close()
                os.replace(made, target)
        except BaseException:  # also when interrupted from the keyboard
            with contextlib.suppress(OSError):
                os.unlink(made)
            raise
        _sync_folder(folder)


@contextlib.contextmanager
def open_regular(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a regular file for reading, as a context manager.

    Raises
    ------
    ArgumentTypeError, ArgumentValueError
        If `path` is not a path.
    FileFormatError
        If it is a device or a pipe, which may have no end or block. The caller adds the path.
    FileAccessError
        Also if the system fails while the body reads.
    """
    source = as_path(path)
    with named(source):
        mode = os.stat(source).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise FileFormatError("expected a regular file, got a device, pipe or socket")
        with open(source, "rb") as file:
            yield file


def _mode(target: str) -> int | None:
    """Permissions of the file to be replaced; None if there is none."""
    try:
        found = os.stat(target).st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found):
        raise ArgumentValueError(f"path: expected a regular file or none, got a directory or device at {target!r}")
    # Renaming checks only the directory: is this file write-protected, or on a read-only file system?
    os.close(os.open(target, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0)))
    return stat.S_IMODE(found)


def _sync_folder(folder: str) -> None:
    # So that the new name survives a power cut. Not every file system supports it; the file is complete either way.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
