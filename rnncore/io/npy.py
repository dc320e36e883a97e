"""Arrays in ``.npy`` files and entries, read without executing or trusting anything."""

from __future__ import annotations

import io
import os
import re
from typing import Any

import numpy as np

from rnncore.arguments import check_bytes
from rnncore.errors import FileFormatError
from rnncore.io.files import open_regular
from rnncore.io.header import (
    brief,
)

LARGEST_ITEM = 8  # bytes: what an array library has a dtype for


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


# Magic string, version and length; then a matrix has 118 bytes of header.
_NPY_START_BYTES = 10


_MAX_NPY_HEADER = 1024


# What numpy.lib.format writes for plain numbers. Its reader has Python parse whatever stands there, which warns, recurses
# and fails in ways of its own; with this before it, an unknown dtype (ValueError) is all that is left to go wrong.
_NPY_HEADER = re.compile(
    rb"\{'descr': '[<>|][biufcO][0-9]*', 'fortran_order': (True|False), "
    rb"'shape': \(((0|[1-9][0-9]*),|(0|[1-9][0-9]*)(, (0|[1-9][0-9]*))+)?\), \} *\n"
)


def _npy_header(entry: Any, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype as the .npy claims them: plain numbers in C order."""
    start = entry.read(_NPY_START_BYTES)
    length = int.from_bytes(start[-2:], "little")
    if start[:-2] != np.lib.format.magic(1, 0) or length > _MAX_NPY_HEADER:
        raise FileFormatError(f"{name}: its .npy header is not one of version 1.0 with at most {_MAX_NPY_HEADER} bytes")
    text = entry.read(length)
    if not _NPY_HEADER.fullmatch(text):
        raise FileFormatError(f"{name}: its .npy header is not one of plain numbers: {brief(text)}")
    try:
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(start[-2:] + text))
    except ValueError as error:
        raise FileFormatError(f"{name}: its .npy header is not valid: {brief(error)}") from error
    if dtype.hasobject or fortran:
        raise FileFormatError(f"{name}: expected plain numbers in C order, got Python objects or Fortran order")
    return shape, dtype
