"""Weights as ``.npz``: a zip of .npy arrays that ``numpy.load`` reads. The array "rnncore" holds the description.

A hostile zip is refused as :mod:`rnncore.io.zips` does. An .npy in it may claim terabytes or hold pickled objects: each entry
and .npy header is compared with the description before an array is made.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, BinaryIO

import numpy as np

from rnncore.arguments import brief
from rnncore.errors import FileFormatError
from rnncore.io import header, zips
from rnncore.io.entries import Entries
from rnncore.io.header import KEY, Description
from rnncore.io.npy import LARGEST_ITEM, as_bytes, read_body, read_header, read_order
from rnncore.typing import Host

_SUFFIX = ".npy"


def encode(file: BinaryIO, text: str, params: Mapping[str, Host]) -> None:
    """Write the description's text and the arrays, stored without compression."""
    entries = {KEY: np.frombuffer(text.encode(), np.uint8), **params}
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in entries.items():
            with zips.create(archive, name + _SUFFIX) as entry:
                np.lib.format.write_array_header_1_0(entry, np.lib.format.header_data_from_array_1_0(array))
                entry.write(as_bytes(array))


def decode(file: BinaryIO) -> tuple[Description, dict[str, Host]]:
    """Read the description and the arrays, in torch's order.

    Raises
    ------
    FileFormatError
        The caller adds the path.
    """
    with zips.opened(file, "an npz file") as (archive, found):
        entries = _by_array(found)
        if KEY not in entries:
            raise header.BareArraysError
        stored = entries.pop(KEY)
        header.check_text_size(stored.file_size)
        description = header.parse(_array(archive, stored, KEY, np.dtype(np.uint8), None).tobytes())
        header.check_names(description, entries)
        dtype = description.host_dtype
        shapes = description.shapes.items()
        return description, {name: _array(archive, entries[name], name, dtype, shape) for name, shape in shapes}


@contextmanager
def arrays(file: BinaryIO) -> Iterator[Entries]:
    """Give the arrays of a file without a description, each read when it is looked up, as a context manager.

    Raises
    ------
    FileFormatError
        Also when an array is looked up that has no floating dtype.
    """
    with zips.opened(file, "an npz file") as (archive, found):
        yield Entries({name: partial(_floats, archive, info, name) for name, info in _by_array(found).items()})


def _by_array(found: Mapping[str, zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    entries = {}
    for raw, info in found.items():
        if not raw.endswith(_SUFFIX):
            raise FileFormatError(f"entry {brief(repr(raw))}: expected names that end in {_SUFFIX}")
        entries[raw.removesuffix(_SUFFIX)] = info
    return entries


def _floats(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> Host:
    with archive.open(info) as entry:
        shape, dtype, fortran = read_order(entry, name)
        if dtype.kind != "f" or dtype.itemsize > LARGEST_ITEM:
            raise FileFormatError(f"{name}: expected floating numbers of at most {LARGEST_ITEM} bytes, got {dtype}")
        held = info.file_size - entry.tell()
        found = read_body(entry, name, shape[::-1] if fortran else shape, dtype, held)
        return found.T if fortran else found


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
