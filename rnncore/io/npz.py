"""npz: a zip of .npy arrays that ``numpy.load`` reads; the description is the bytes of an array of its own, "rnncore".

A zip can lie in many ways (sizes, bombs, overlaps, duplicates), and an .npy in it in some more (a header that claims
terabytes, pickled objects). So only stored, unencrypted entries are read, which cannot hold more than the file does, and
every entry and every .npy header is compared with the description before an array is made.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np

from rnncore.errors import FileFormatError
from rnncore.io.header import (
    KEY,
    MAX_DIRECTORY_BYTES,
    MAX_PARAMETERS,
    MAX_TEXT_BYTES,
    Description,
    bare,
    brief,
    check_names,
    parse,
)
from rnncore.io.npy import _npy_header
from rnncore.typing import Host

__all__ = ["decode", "encode"]

_SUFFIX = ".npy"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can say: the same network gives the same bytes at any time
_UNIX = 3
_UTF8_NAME = 0x800
_LOCAL_BYTES = 30  # of an entry's own header, without its name

# https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3.14 to 4.3.16: the records that end a zip.
_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")


# What zipfile raises for bytes that it does not understand; NotImplementedError is a RuntimeError.
_ZIP_DAMAGE = (zipfile.BadZipFile, struct.error, EOFError, ValueError, RuntimeError, OverflowError)


def encode(text: str, params: Mapping[str, Host]) -> bytes:
    """The bytes of a file: the description's text and the arrays, stored without compression."""
    made = io.BytesIO()
    entries = {KEY: np.frombuffer(text.encode(), np.uint8), **params}
    with zipfile.ZipFile(made, "w") as archive:
        for name, array in entries.items():
            info = zipfile.ZipInfo(name + _SUFFIX, _EPOCH)
            info.create_system = _UNIX
            info.external_attr = 0o644 << 16
            with archive.open(info, "w", force_zip64=True) as entry:  # as numpy.savez: room for more than 4 GiB
                np.lib.format.write_array(entry, array, version=(1, 0), allow_pickle=False)
    return made.getvalue()


def decode(file: BinaryIO) -> tuple[Description, dict[str, Host]]:
    """The description and the arrays, in torch's order.

    Raises
    ------
    FileFormatError
        Without the path.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        end = _directory_begin(file, size)
        with zipfile.ZipFile(file) as archive:
            entries = _entries(archive, end)
            if KEY not in entries:
                raise bare("dict(numpy.load(path))")
            description = parse(_text(archive, entries.pop(KEY)))
            check_names(description, entries)
            return description, {name: _array(archive, entries[name], description, name) for name in description.shapes}
    except FileFormatError:
        raise
    except _ZIP_DAMAGE as error:
        raise FileFormatError(f"it is damaged or not an npz file: {brief(error) or type(error).__name__}") from error


def _directory_begin(file: BinaryIO, size: int) -> int:
    """Where the central directory begins. Its size is checked before zipfile, which reads any size, sees it."""
    end = size - _END.size
    if end < 0:
        raise FileFormatError(f"it is truncated: {size} bytes, and the end of an npz file alone takes {_END.size}")
    file.seek(end)
    signature, _, _, _, count, length, begin, comment = _END.unpack(file.read(_END.size))
    if signature != b"PK\x05\x06" or comment != 0:
        # Behind a comment zipfile would look for another end, and believe that one.
        raise FileFormatError("it is truncated or not an npz file: it does not end as a zip without comment does")
    if end >= _END64_LOCATOR.size + _END64.size:
        file.seek(end - _END64_LOCATOR.size - _END64.size)
        record = _END64.unpack(file.read(_END64.size))
        locator = _END64_LOCATOR.unpack(file.read(_END64_LOCATOR.size))
        if locator[0] == b"PK\x06\x07":
            end -= _END64_LOCATOR.size + _END64.size
            count, length, begin = record[7:]
            if record[0] != b"PK\x06\x06" or locator[2] != end:
                raise FileFormatError("it is damaged: the two records that end a large zip contradict each other")
    if count > MAX_PARAMETERS + 1 or length > MAX_DIRECTORY_BYTES:
        raise FileFormatError(f"it has {count} entries with a directory of {length} bytes: too many for a network")
    if begin + length != end:
        raise FileFormatError(f"it is damaged: its directory of {length} bytes at {begin} does not end at {end}")
    return int(begin)


def _entries(archive: zipfile.ZipFile, end: int) -> dict[str, zipfile.ZipInfo]:
    """The entries by the array's name: each stored, none twice, none over another or over the directory."""
    entries: dict[str, zipfile.ZipInfo] = {}
    free = 0
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        raw = info.orig_filename  # zipfile cuts its filename at a NUL
        name = raw.removesuffix(_SUFFIX)
        if name == raw or name in entries:
            raise FileFormatError(f"entry {brief(repr(raw))}: expected names that end in {_SUFFIX}, none of them twice")
        if info.flag_bits & ~_UTF8_NAME or info.compress_type != zipfile.ZIP_STORED:
            raise FileFormatError(f"entry {brief(repr(raw))}: it is compressed or encrypted, expected a stored entry")
        if info.header_offset < free or info.file_size != info.compress_size:
            raise FileFormatError(f"entry {brief(repr(raw))}: its size is not true, or it lies over another one")
        free = info.header_offset + _LOCAL_BYTES + len(raw) + info.compress_size
        entries[name] = info
    if free > end:
        raise FileFormatError(f"it is truncated or claims more than it holds: {free} bytes of arrays in {end}")
    return entries


def _text(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    length = info.file_size
    if length > MAX_TEXT_BYTES:
        raise FileFormatError(f"its description has {length} bytes, at most {MAX_TEXT_BYTES} are read")
    with archive.open(info) as entry:
        shape, dtype = _npy_header(entry, KEY)
        if dtype != np.uint8 or shape != (length - entry.tell(),):
            raise FileFormatError(
                f"{KEY}: expected an array of {length - entry.tell()} uint8, got {brief(dtype)} {brief(shape)}"
            )
        return entry.read()


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, description: Description, name: str) -> Host:
    want, expected = description.host_dtype, description.shapes[name]
    nbytes = description.nbytes(name)
    with archive.open(info) as entry:
        shape, dtype = _npy_header(entry, name)
        if shape != expected or dtype != want:
            raise FileFormatError(
                f"{name}: expected {want.name} of shape {expected}, got {brief(dtype)} of shape {brief(shape)}"
            )
        if info.file_size - entry.tell() != nbytes:
            raise FileFormatError(f"{name}: expected {nbytes} bytes of numbers, got {info.file_size - entry.tell()}")
        data = entry.read()  # zipfile compares the checksum at the end
    return np.frombuffer(data, want).reshape(shape).astype(want.newbyteorder("="))  # a copy: bytes are read-only
