"""Weights as ``.npz``: a zip of .npy arrays that ``numpy.load`` reads. The array "rnncore" holds the description.

A hostile zip may have false sizes, compression bombs, overlapping or duplicate entries; an .npy in it may claim terabytes
or hold pickled objects. So only stored, unencrypted entries are read, which cannot hold more than the file does, and each
entry and .npy header is compared with the description before an array is made.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from rnncore.arguments import brief
from rnncore.errors import FileFormatError
from rnncore.io import header
from rnncore.io.header import KEY, Description
from rnncore.io.npy import as_bytes, read_body, read_header
from rnncore.typing import Host

_SUFFIX = ".npy"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date of a zip, so that the same network always gives the same bytes
_UNIX = 3
_UTF8_NAME = 0x800
_LOCAL_BYTES = 30  # size of an entry's own header, without its name

# The records at the end of a zip: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3.14 to 4.3.16.
_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")

# Raised by zipfile for damaged bytes; NotImplementedError is a RuntimeError.
_ZIP_DAMAGE = (zipfile.BadZipFile, struct.error, EOFError, ValueError, RuntimeError, OverflowError)


def encode(file: BinaryIO, text: str, params: Mapping[str, Host]) -> None:
    """Write the description's text and the arrays, stored without compression."""
    entries = {KEY: np.frombuffer(text.encode(), np.uint8), **params}
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in entries.items():
            info = zipfile.ZipInfo(name + _SUFFIX, _EPOCH)
            info.create_system = _UNIX
            info.external_attr = 0o644 << 16
            with archive.open(info, "w", force_zip64=True) as entry:  # like numpy.savez: allows more than 4 GiB
                np.lib.format.write_array_header_1_0(entry, np.lib.format.header_data_from_array_1_0(array))
                entry.write(as_bytes(array))


def decode(file: BinaryIO) -> tuple[Description, dict[str, Host]]:
    """Read the description and the arrays, in torch's order.

    Raises
    ------
    FileFormatError
        The caller adds the path.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        end = _directory_begin(file, size)
        with zipfile.ZipFile(file) as archive:
            entries = _entries(archive, end)
            if KEY not in entries:
                raise header.bare("dict(numpy.load(path))")
            stored = entries.pop(KEY)
            header.check_text_size(stored.file_size)
            description = header.parse(_array(archive, stored, KEY, np.dtype(np.uint8), None).tobytes())
            header.check_names(description, entries)
            dtype = description.host_dtype
            arrays = {
                name: _array(archive, entries[name], name, dtype, shape) for name, shape in description.shapes.items()
            }
            return description, arrays
    except FileFormatError:
        raise
    except _ZIP_DAMAGE as error:
        raise FileFormatError(f"it is damaged or not an npz file: {brief(error) or type(error).__name__}") from error


def _directory_begin(file: BinaryIO, size: int) -> int:
    """Find where the central directory begins, and check its size, as zipfile reads any size."""
    end = size - _END.size
    if end < 0:
        raise FileFormatError(f"it is truncated: {size} bytes, and the end of an npz file alone takes {_END.size}")
    file.seek(end)
    signature, _, _, _, count, length, begin, comment = _END.unpack(file.read(_END.size))
    if signature != b"PK\x05\x06" or comment != 0:
        # Past a comment, zipfile would look for another end.
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
    if count > header.MAX_PARAMETERS + 1 or length > header.MAX_DIRECTORY_BYTES:
        raise FileFormatError(f"it has {count} entries with a directory of {length} bytes: too many for a network")
    if begin + length != end:
        raise FileFormatError(f"it is damaged: its directory of {length} bytes at {begin} does not end at {end}")
    return int(begin)


def _entries(archive: zipfile.ZipFile, end: int) -> dict[str, zipfile.ZipInfo]:
    """Return the entries by array name, after checking that each is stored, unique, and overlaps nothing."""
    entries: dict[str, zipfile.ZipInfo] = {}
    free = 0
    infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
    if infos and infos[0].header_offset != 0:
        raise FileFormatError(
            "it does not begin as an npz file does: other readers may take it for another kind of file"
        )
    for info in infos:
        raw = info.orig_filename  # zipfile cuts its filename at a NUL
        name = raw.removesuffix(_SUFFIX)
        if name == raw or name in entries:
            raise FileFormatError(f"entry {brief(repr(raw))}: expected names that end in {_SUFFIX}, none twice")
        if info.flag_bits & ~_UTF8_NAME or info.compress_type != zipfile.ZIP_STORED:
            raise FileFormatError(f"entry {brief(repr(raw))}: it is compressed or encrypted, expected a stored entry")
        if info.header_offset < free or info.file_size != info.compress_size:
            raise FileFormatError(f"entry {brief(repr(raw))}: its size is not true, or it overlaps another")
        free = info.header_offset + _LOCAL_BYTES + len(raw) + info.compress_size
        entries[name] = info
    if free > end:
        raise FileFormatError(f"it is truncated or claims more than it holds: {free} bytes of arrays in {end}")
    return entries


def _array(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, dtype: np.dtype[Any], shape: tuple[int, ...] | None
) -> Host:
    """Read an entry of this dtype and shape; None stands for one axis of any length."""
    with archive.open(info) as entry:
        found, claimed = read_header(entry, name)
        held = info.file_size - entry.tell()
        want = (held // dtype.itemsize,) if shape is None else shape
        if claimed != dtype or found != want:
            raise FileFormatError(
                f"{name}: expected {dtype.name} of shape {want}, got {brief(claimed)} of shape {brief(found)}"
            )
        return read_body(entry, name, found, dtype, held)  # zipfile compares the checksum at the end
