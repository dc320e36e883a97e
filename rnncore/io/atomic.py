"""File system access: replace a file atomically; open regular files only."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from typing import BinaryIO

from rnncore.errors import ArgumentValueError, FileFormatError


def replace(path: str, data: bytes) -> None:
    """Replace a file's contents atomically: a reader sees the old bytes or the new ones.

    The bytes go to a temporary file in the same directory, which is synced to disk and then renamed. On any failure the
    temporary file is removed and the old file is unchanged.

    Raises
    ------
    ArgumentValueError
        If the path is something else than a regular file.
    OSError
    """
    target = os.path.realpath(path)  # keeps a link, as open(path, "w") does
    mode = _mode(target)
    folder = os.path.dirname(target)
    temporary = os.path.join(folder, f".rnncore-{secrets.token_hex(8)}.tmp")
    # os.open and not tempfile, so that the umask applies to a new file; never wider than the old file's mode.
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(temporary, flags, 0o666 if mode is None else mode)
    except OSError as error:
        error.filename = path  # not the temporary name
        raise
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            os.chmod(temporary, mode)
        os.replace(temporary, target)
    except BaseException:  # also when interrupted from the keyboard
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def open_regular(path: str) -> BinaryIO:
    """Open a regular file for reading.

    Raises
    ------
    FileFormatError
        If it is a device or a pipe, which may have no end or block.
    OSError
        FileNotFoundError, IsADirectoryError, PermissionError.
    """
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise FileFormatError("expected a regular file, got a device, pipe or socket")
    return open(path, "rb")


def _mode(target: str) -> int | None:
    """Permissions of the file to be replaced; None if there is none."""
    try:
        found = os.stat(target).st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found):
        raise ArgumentValueError(f"path: expected a regular file or none, got a directory or device at {target!r}")
    if not os.access(target, os.W_OK):  # renaming checks only the directory
        raise PermissionError(errno.EACCES, "the file is write-protected", target)
    return stat.S_IMODE(found)


def _sync_folder(folder: str) -> None:
    # So that the new name survives a power cut. Not every file system supports it; the file is complete either way.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
