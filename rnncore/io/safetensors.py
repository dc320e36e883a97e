"""Weights as ``.safetensors``. The description is a string in the metadata, so other readers see a state_dict.

The format (https://github.com/huggingface/safetensors#format) has eight bytes with the size of a JSON header, the header,
and the arrays. The header is compared with the description, byte range by byte range, before an array is made. Each array
is read from the file and written to it without a copy, so that a lack of memory is Python's MemoryError; the reference
library ends the process.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, BinaryIO

import numpy as np

from rnncore.arguments import brief, elements
from rnncore.errors import FileFormatError
from rnncore.io.entries import Entries
from rnncore.io.header import KEY, MAX_DIRECTORY_BYTES, BareArraysError, Description, check_names, parse, parse_json
from rnncore.io.npy import as_bytes, read_array
from rnncore.typing import Host

ALIGNMENT = 8  # of the arrays in the file

# Dtypes of arrays without a description, as they are in the file; BF16 is the upper half of a float32.
FLOATS = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}

_LENGTH = struct.Struct("<Q")


def encode(file: BinaryIO, text: str, params: Mapping[str, Host]) -> None:
    """Write the description's text and the arrays, as the reference writer does: by name, each without a copy."""
    table: dict[str, Any] = {"__metadata__": {KEY: text}}
    end = 0
    for name in sorted(params):
        array = params[name]
        table[name] = {"dtype": _dtype(array.dtype), "shape": array.shape, "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-len(header) % ALIGNMENT)
    file.write(_LENGTH.pack(len(header)) + header)
    for name in sorted(params):
        file.write(as_bytes(params[name]))


def decode(file: BinaryIO) -> tuple[Description, dict[str, Host]]:
    """Read the description and the arrays, in torch's order.

    Raises
    ------
    FileFormatError
        The caller adds the path.
    """
    table, metadata, data_bytes = _table(file, os.fstat(file.fileno()).st_size)
    if KEY not in metadata:
        raise BareArraysError
    description = parse(metadata[KEY].encode("utf-8", "surrogatepass"))
    check_names(description, table)
    stored = _check_ranges(description, table, data_bytes)
    arrays = {name: read_array(file, name, description.shapes[name], description.host_dtype) for name in stored}
    return description, {name: arrays[name] for name in description.shapes}


@contextmanager
def arrays(file: BinaryIO) -> Iterator[Entries]:
    """Give the arrays of a file without a description, each read when it is looked up, as a context manager.

    Raises
    ------
    FileFormatError
        Also when an array is looked up that has no floating dtype.
    """
    table, _, data_bytes = _table(file, os.fstat(file.fileno()).st_size)
    begin = file.tell()
    places = sorted((*_place(name, entry), name) for name, entry in table.items())
    _check_filled(places, data_bytes)
    readers = {name: partial(_floats, file, name, table[name], begin + start) for start, _, name in places}
    yield Entries(readers, frozenset(name for name in readers if table[name]["dtype"] == "BF16"))


def _floats(file: BinaryIO, name: str, entry: Mapping[str, Any], begin: int) -> Host:
    kind, shape = entry["dtype"], tuple(entry["shape"])
    if kind not in FLOATS:
        raise FileFormatError(f"{name}: expected a dtype among {', '.join(FLOATS)}, got {brief(repr(kind))}")
    file.seek(begin)
    found = read_array(file, name, shape, np.dtype(FLOATS[kind]))
    return (found.astype("u4") << 16).view("f4") if kind == "BF16" else found


def _place(name: str, entry: Any) -> tuple[int, int]:
    """Return the range of an entry's bytes, which is that of its shape."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise FileFormatError(f"{brief(repr(name))}: expected dtype, shape and data_offsets, got {brief(repr(entry))}")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or not _is_ints(shape) or any(n < 0 for n in shape):
        raise FileFormatError(f"{brief(repr(name))}: expected a dtype and a shape, got {brief(repr(entry))}")
    if not _is_ints(offsets) or len(offsets) != 2 or not 0 <= offsets[0] <= offsets[1]:
        raise FileFormatError(f"{brief(repr(name))}: expected data_offsets [a, b], got {brief(repr(offsets))}")
    if kind in FLOATS and offsets[1] - offsets[0] != elements(shape) * np.dtype(FLOATS[kind]).itemsize:
        raise FileFormatError(f"{brief(repr(name))}: expected the bytes of its shape, got {brief(repr(entry))}")
    return offsets[0], offsets[1]


def _table(file: BinaryIO, size: int) -> tuple[dict[str, Any], dict[str, str], int]:
    """Return the entries by name, the metadata, and the number of bytes after the header."""
    start = file.read(_LENGTH.size)
    if len(start) < _LENGTH.size:
        raise FileFormatError(f"it is truncated: {len(start)} bytes, and the size of the header alone takes 8")
    (length,) = _LENGTH.unpack(start)
    if length > size - _LENGTH.size:
        raise FileFormatError(f"it is truncated or not a safetensors file: a header of {length} bytes in {size} bytes")
    if length > MAX_DIRECTORY_BYTES:
        raise FileFormatError(f"its header has {length} bytes, at most {MAX_DIRECTORY_BYTES} are read")
    table = parse_json(file.read(length), "its header")
    if not isinstance(table, dict):
        raise FileFormatError("its header is not a JSON object")
    metadata = table.pop("__metadata__", None)
    if metadata is None:  # MLX writes a null where it has none
        metadata = {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FileFormatError("__metadata__: expected a JSON object of strings")
    return table, metadata, size - _LENGTH.size - length


def _check_ranges(description: Description, table: Mapping[str, Any], data_bytes: int) -> list[str]:
    """Return the names in the order of their bytes.

    Dtypes and shapes must be those of the description, and the byte ranges must fill the file without gap or overlap.
    """
    dtype = _dtype(description.host_dtype)
    ranges = []
    for name, shape in description.shapes.items():
        entry = table[name]
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise FileFormatError(f"{name}: expected dtype, shape and data_offsets, got {brief(repr(entry))}")
        if entry["dtype"] != dtype:
            raise FileFormatError(f"{name}: expected dtype {dtype}, got {brief(repr(entry['dtype']))}")
        if not _is_ints(entry["shape"]) or tuple(entry["shape"]) != shape:
            raise FileFormatError(f"{name}: expected shape {list(shape)}, got {brief(repr(entry['shape']))}")
        offsets = entry["data_offsets"]
        if not _is_ints(offsets) or len(offsets) != 2 or offsets[1] - offsets[0] != description.nbytes(name):
            raise FileFormatError(
                f"{name}: expected data_offsets [a, a + {description.nbytes(name)}], got {brief(repr(offsets))}"
            )
        ranges.append((offsets[0], offsets[1], name))
    ranges.sort()
    _check_filled(ranges, data_bytes)
    return [name for _, _, name in ranges]


def _check_filled(ranges: Iterable[tuple[int, int, str]], data_bytes: int) -> None:
    """Require that the ranges, in order, fill the file without gap or overlap."""
    end = 0
    for begin, stop, name in ranges:
        if begin != end:
            raise FileFormatError(
                f"{brief(name)}: expected its bytes to begin at {end}, where the one before ends, got {begin}"
            )
        end = stop
    if end != data_bytes:
        raise FileFormatError(f"it is truncated or too long: its arrays take {end} bytes, {data_bytes} are there")


def _dtype(dtype: np.dtype[Any]) -> str:
    return f"F{8 * dtype.itemsize}"


def _is_ints(value: Any) -> bool:
    # Not isinstance, as a bool is an int in Python.
    return isinstance(value, list) and all(type(item) is int for item in value)
