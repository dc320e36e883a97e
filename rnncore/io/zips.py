"""Zip files of stored entries, read without trusting them.

A hostile zip may have false sizes, compression bombs, overlapping or duplicate entries. So only stored, unencrypted entries are
read, none twice, which cannot hold more than the file does.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, BinaryIO

from rnncore.arguments import brief
from rnncore.errors import FileFormatError, RnncoreError
from rnncore.io import header

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date of a zip, so that the same entries always give the same bytes
_UNIX = 3
_UTF8_NAME = 0x800
_LOCAL_BYTES = 30  # size of an entry's own header, without its name

# The records at the end of a zip: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3.14 to 4.3.16.
_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")

# Raised by zipfile for damaged bytes; NotImplementedError is a RuntimeError.
_ZIP_DAMAGE = (zipfile.BadZipFile, struct.error, EOFError, ValueError, RuntimeError, OverflowError)


@contextmanager
def opened(file: BinaryIO, what: str) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
    """Open a zip as a context manager, which gives it and its entries by name.

    Parameters
    ----------
    file : binary file
        Open for reading.
    what : str
        The kind of file for messages, such as "an npz file".

    Raises
    ------
    FileFormatError
        Also where the body finds it damaged. The caller adds the path.
    """
    try:
        end = directory_begin(file, what)
        with zipfile.ZipFile(file) as archive:
            yield archive, _entries(archive, end, what)
    except RnncoreError:
        raise
    except _ZIP_DAMAGE as error:
        raise FileFormatError(f"it is damaged or not {what}: {brief(error) or type(error).__name__}") from error


def create(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """Open a new entry for writing, stored and always with the same date."""
    info = zipfile.ZipInfo(name, _EPOCH)
    info.create_system = _UNIX
    info.external_attr = 0o644 << 16
    return archive.open(info, "w", force_zip64=True)  # like numpy.savez: allows more than 4 GiB


def directory_begin(
    file: BinaryIO,
    what: str,
    *,
    most: int = header.MAX_PARAMETERS + 1,
    most_bytes: int = header.MAX_DIRECTORY_BYTES,
) -> int:
    """Find where the central directory begins, and check its size, as zipfile reads any size.

    Raises
    ------
    FileFormatError
    """
    size = os.fstat(file.fileno()).st_size
    end = size - _END.size
    if end < 0:
        raise FileFormatError(f"it is truncated: {size} bytes, and the end of {what} alone takes {_END.size}")
    file.seek(end)
    signature, _, _, _, count, length, begin, comment = _END.unpack(file.read(_END.size))
    if signature != b"PK\x05\x06" or comment != 0:
        # Past a comment, zipfile would look for another end.
        raise FileFormatError(f"it is truncated or not {what}: it does not end as a zip without comment does")
    if end >= _END64_LOCATOR.size + _END64.size:
        file.seek(end - _END64_LOCATOR.size - _END64.size)
        record = _END64.unpack(file.read(_END64.size))
        locator = _END64_LOCATOR.unpack(file.read(_END64_LOCATOR.size))
        if locator[0] == b"PK\x06\x07":
            end -= _END64_LOCATOR.size + _END64.size
            count, length, begin = record[7:]
            if record[0] != b"PK\x06\x06" or locator[2] != end:
                raise FileFormatError("it is damaged: the two records that end a large zip contradict each other")
    if count > most or length > most_bytes:
        raise FileFormatError(f"it has {count} entries with a directory of {length} bytes: too many for a network")
    if begin + length != end:
        raise FileFormatError(f"it is damaged: its directory of {length} bytes at {begin} does not end at {end}")
    return int(begin)


def _entries(archive: zipfile.ZipFile, end: int, what: str) -> dict[str, zipfile.ZipInfo]:
    """Return the entries by name, after checking that each is stored, unique, and overlaps nothing."""
    entries: dict[str, zipfile.ZipInfo] = {}
    free = 0
    infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
    if infos and infos[0].header_offset != 0:
        raise FileFormatError(f"it does not begin as {what} does: other readers may take it for another kind of file")
    for info in infos:
        raw = info.orig_filename  # zipfile cuts its filename at a NUL
        if raw in entries:
            raise FileFormatError(f"entry {brief(repr(raw))}: expected names of which none is there twice")
        if info.flag_bits & ~_UTF8_NAME or info.compress_type != zipfile.ZIP_STORED:
            raise FileFormatError(f"entry {brief(repr(raw))}: it is compressed or encrypted, expected a stored entry")
        if info.header_offset < free or info.file_size != info.compress_size:
            raise FileFormatError(f"entry {brief(repr(raw))}: its size is not true, or it overlaps another")
        free = info.header_offset + _LOCAL_BYTES + len(raw) + info.compress_size
        entries[raw] = info
    if free > end:
        raise FileFormatError(f"it is truncated or claims more than it holds: {free} bytes of entries in {end}")
    return entries
