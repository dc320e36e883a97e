"""The file system: replace a file by other bytes, all of them or none; open what is a regular file and nothing else."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from typing import BinaryIO

from rnncore.errors import ArgumentValueError, FileFormatError

__all__ = ["open_regular", "replace"]


def replace(path: str, data: bytes) -> None:
    """Put `data` in the place of the file's contents; whoever reads the path sees the old bytes or the new ones.

    The bytes go to a temporary file in the same directory and reach the disk before it takes the file's name. On any
    failure that file is removed and the old one is untouched.

    Raises
    ------
    ArgumentValueError
        If something stands there that is not a regular file.
    OSError
    """
    target = os.path.realpath(path)  # a link stays a link, as it does with open(path, "w")
    mode = _mode(target)
    folder = os.path.dirname(target)
    temporary = os.path.join(folder, f".rnncore-{secrets.token_hex(8)}.tmp")
    # os.open and not tempfile, so that the umask decides about a new file; never wider than the old file's mode.
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(temporary, flags, 0o666 if mode is None else mode)
    except OSError as error:
        error.filename = path  # the caller knows nothing of the temporary name
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
    """The file, open for reading.

    Raises
    ------
    FileFormatError
        If it is a device or a pipe, which would have no end or block before its first byte.
    OSError
        FileNotFoundError, IsADirectoryError, PermissionError.
    """
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise FileFormatError("expected a regular file, got a device, pipe or socket")
    return open(path, "rb")


def _mode(target: str) -> int | None:
    """The permissions of the file that is to be replaced; None where there is none."""
    try:
        found = os.stat(target).st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found):
        raise ArgumentValueError(f"path: expected a regular file or none, got a directory or device at {target!r}")
    if not os.access(target, os.W_OK):  # renaming asks the directory only; who protects a file means the file
        raise PermissionError(errno.EACCES, "the file is write-protected", target)
    return stat.S_IMODE(found)


def _sync_folder(folder: str) -> None:
    # So that the new name survives a power cut. Not every system or file system can; the file is complete either way.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
