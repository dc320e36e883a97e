"""Arrays in the ``.npy`` format, from files and from entries of a zip, read without trusting them.

https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html describes the format. Nothing is executed, and every
size is checked before memory is allocated.
"""

from __future__ import annotations

import os
import re
from typing import Any, BinaryIO

import numpy as np

from rnncore.arguments import brief, check_bytes, elements
from rnncore.errors import FileFormatError
from rnncore.io.atomic import open_regular
from rnncore.io.paths import shown
from rnncore.typing import Host

LARGEST_ITEM = 8  # bytes; array libraries have no larger real dtype
START_BYTES = 10  # magic string, version and length of the header
MAX_HEADER_BYTES = 1024  # the header of a matrix has 118
PIECE_BYTES = 2**20  # read at once: an entry of a zip is copied once more

# What numpy.lib.format writes for plain numbers, or MLX, with other spaces and commas, and nothing else: NumPy's own reader
# parses any text as Python, which warns, recurses and fails in many ways.
HEADER = re.compile(
    rb"\{'descr': '([<>|][biufcO][0-9]*)', 'fortran_order': (True|False), "
    rb"'shape': \(((?:0|[1-9][0-9]*),|(?:0|[1-9][0-9]*)(?:, (?:0|[1-9][0-9]*))+|(?:(?:0|[1-9][0-9]*), )+)?\)(?:, )?\} *\n"
)


def read_npy(option: str, path: str) -> Host:
    """Read real numbers from a file that ``numpy.save`` wrote.

    Raises
    ------
    FileFormatError
        The message names the option and the path.
    ArgumentTypeError, ArgumentValueError, FileAccessError
    """
    try:
        with open_regular(path) as file:
            shape, dtype = read_header(file, option)
            if dtype.kind not in "fiu" or dtype.itemsize > LARGEST_ITEM:
                raise FileFormatError(f"{option}: expected real numbers of at most {LARGEST_ITEM} bytes, got {dtype}")
            return read_body(file, option, shape, dtype, os.fstat(file.fileno()).st_size - file.tell())
    except FileFormatError as error:
        text = str(error).removeprefix(f"{option}: ")
        raise FileFormatError(f"{option} {shown(path)}: {text}") from error


def read_header(file: Any, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read the claimed shape and dtype of an ``.npy``: plain numbers in C order.

    Raises
    ------
    FileFormatError
    """
    shape, dtype, fortran = read_order(file, name)
    if fortran:
        raise FileFormatError(
            f"{name}: expected numbers in C order, got Fortran order; save them with "
            "numpy.save(path, numpy.ascontiguousarray(x))"
        )
    return shape, dtype


def read_order(file: Any, name: str) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Read the claimed shape and dtype of an ``.npy``, and whether its order is Fortran's, which is one for vectors.

    Raises
    ------
    FileFormatError
    """
    start = file.read(START_BYTES)
    length = int.from_bytes(start[-2:], "little")
    if start[:-2] != np.lib.format.magic(1, 0) or length > MAX_HEADER_BYTES:
        raise FileFormatError(
            f"{name}: its .npy header is not one of version 1.0 with at most {MAX_HEADER_BYTES} bytes"
        )
    text = file.read(length)
    found = HEADER.fullmatch(text)
    if found is None:
        raise FileFormatError(f"{name}: its .npy header is not one of plain numbers: {brief(text)}")
    descr, order, axes = found.groups(b"")
    try:
        dtype = np.dtype(descr.decode())
    except TypeError as error:
        raise FileFormatError(f"{name}: its .npy header has no dtype of NumPy's: {brief(error)}") from error
    shape, fortran = tuple(int(n) for n in re.findall(rb"[0-9]+", axes)), order == b"True"
    if dtype.hasobject:
        raise FileFormatError(f"{name}: expected plain numbers, got Python objects")
    return shape, dtype, fortran and len(shape) > 1


def read_body(file: BinaryIO | Any, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], held: int) -> Host:
    """Read the numbers after the header, in the host's byte order; `held` is the number of bytes there.

    Raises
    ------
    FileFormatError, ArgumentValueError
    """
    count = elements(shape)
    if count * dtype.itemsize != held:
        raise FileFormatError(
            f"{name}: expected {count * dtype.itemsize} bytes of numbers, {dtype} of shape {shape}, got {held}: "
            "it is truncated or damaged"
        )
    check_bytes(name, count, LARGEST_ITEM)
    return read_array(file, name, shape, dtype)


def read_array(file: Any, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Host:
    """Read numbers into a new array in the host's byte order, with no other memory of its size.

    Raises
    ------
    FileFormatError
        If the file ends early.
    MemoryError
        NumPy's, which says how many bytes were asked for.
    """
    try:
        made = np.empty(shape, dtype)
    except ValueError as error:  # too many axes, or an empty array with an axis beyond the address space
        raise FileFormatError(f"{name}: expected a shape that NumPy has, got {brief(shape)}: {brief(error)}") from error
    left = as_bytes(made)
    while left:
        count = file.readinto(left[:PIECE_BYTES])
        if not count:
            raise FileFormatError(f"{name}: it was changed while it was read")
        left = left[count:]
    return made.astype(dtype.newbyteorder("="), copy=False)


def as_bytes(array: Host) -> memoryview:
    """View the bytes of a contiguous array."""
    return array.reshape(-1).view(np.uint8).data
