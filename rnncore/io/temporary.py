"""Temporary files that a killed process does not leave for ever.

A process locks its temporary file until the file has its final name. When the process ends, however it ends, the system
drops the lock, and the next save to the same directory removes the file. A file that is locked belongs to a living
process, thread or container. The lock of another machine may be invisible on a network file system, so the name has a mark
of the running kernel, and files with another mark are left alone. So are those of other users, symbolic links, and all
files where the system or the file system has no locks.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
from functools import cache
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

PREFIX, SUFFIX = ".rnncore-", ".tmp"
# Each needs another save to remove the file in the instant before it is locked.
ATTEMPTS = 100
BOOT = "/proc/sys/kernel/random/boot_id"


def create(folder: str, mode: int) -> tuple[BinaryIO, str]:
    """Create a temporary file and lock it until it is closed.

    Raises
    ------
    OSError
    """
    for _ in range(ATTEMPTS if fcntl else 0):
        file, path = _open_new(folder, f"{kernel_mark()}-", mode)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                return file, path
        except (BlockingIOError, FileNotFoundError):
            pass  # another save takes it for one that nobody owns, and removes it
        except OSError:  # this file system has no locks
            _discard(file, path)
            break
        except BaseException:
            _discard(file, path)
            raise
        file.close()
    return _open_new(folder, "", mode)


def remove_stale(folder: str) -> None:
    """Remove the temporary files in this directory that killed processes of this user have left."""
    if fcntl is None:
        return
    begin = f"{PREFIX}{kernel_mark()}-"
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for path in [entry.path for entry in entries if entry.name.startswith(begin) and entry.name.endswith(SUFFIX)]:
            with contextlib.suppress(OSError):
                _remove_unlocked(path)


@cache
def kernel_mark() -> str:
    """Return 12 characters that tell this running kernel, whose locks its processes see, from others."""
    try:
        with open(BOOT, encoding="ascii") as file:
            name = file.read()
    except OSError:
        name = os.uname().nodename
    return hashlib.blake2b(name.encode(), digest_size=6).hexdigest()


def _open_new(folder: str, mark: str, mode: int) -> tuple[BinaryIO, str]:
    path = os.path.join(folder, f"{PREFIX}{mark}{secrets.token_hex(8)}{SUFFIX}")
    # os.open and not tempfile, so that the umask applies to a new file.
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
    return open(os.open(path, flags, mode), "wb"), path


def _discard(file: BinaryIO, path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
    file.close()


def _remove_unlocked(path: str) -> None:
    found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if os.path.samestat(found, os.fstat(descriptor)):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails if a living process writes it
            os.unlink(path)
    finally:
        os.close(descriptor)
