"""Weights as ``.safetensors``. The description is a string in the metadata, so other readers see a state_dict.

The format (https://github.com/huggingface/safetensors#format) has eight bytes with the size of a JSON header, the header,
and the arrays. The header is compared with the description, byte range by byte range, before the reference reader reads
the file, since that reader accepts duplicate keys, zero-size and 0-d arrays, any dtype and names with control characters.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

from rnncore.arguments import brief
from rnncore.errors import FileFormatError
from rnncore.io.header import KEY, MAX_DIRECTORY_BYTES, Description, bare, check_names, parse, parse_json
from rnncore.typing import Host

_LENGTH = struct.Struct("<Q")


def encode(text: str, params: Mapping[str, Host]) -> bytes:
    """Return a file's bytes: the description's text and the arrays."""
    from safetensors.numpy import save  # lazily: importing rnncore imports no file format

    # Only one metadata key: the writer keeps them in a hash map, in random order.
    return save(dict(params), {KEY: text})


def decode(file: BinaryIO) -> tuple[Description, dict[str, Host]]:
    """Read the description and the arrays, in torch's order.

    Raises
    ------
    FileFormatError
        The caller adds the path.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    size = os.fstat(file.fileno()).st_size
    table, data_bytes = _table(file, size)
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FileFormatError("__metadata__: expected a JSON object of strings")
    if KEY not in metadata:
        raise bare("safetensors.numpy.load_file(path)")
    description = parse(metadata[KEY].encode("utf-8", "surrogatepass"))
    check_names(description, table)
    _check_ranges(description, table, data_bytes)
    file.seek(0)
    data = file.read(size)
    try:
        arrays = load(data)
    except SafetensorError as error:
        raise FileFormatError(f"it is not a safetensors file: {brief(error)}") from error
    return description, {name: arrays[name] for name in description.shapes}


def _table(file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """Return the header, and the number of bytes after it."""
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
    return table, size - _LENGTH.size - length


def _check_ranges(description: Description, table: Mapping[str, Any], data_bytes: int) -> None:
    """Check dtypes and shapes against the description, and that the byte ranges fill the file without gap or overlap."""
    dtype = f"F{8 * description.host_dtype.itemsize}"
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
    end = 0
    for begin, stop, name in sorted(ranges):
        if begin != end:
            raise FileFormatError(
                f"{name}: expected its bytes to begin at {end}, where the one before ends, got {begin}"
            )
        end = stop
    if end != data_bytes:
        raise FileFormatError(f"it is truncated or too long: its arrays take {end} bytes, {data_bytes} are there")


def _is_ints(value: Any) -> bool:
    # Not isinstance, as a bool is an int in Python.
    return isinstance(value, list) and all(type(item) is int for item in value)
