"""safetensors: the description is a string in the metadata, so ``safetensors.torch.load_file`` gives a state_dict.

The layout is https://github.com/huggingface/safetensors#format: eight bytes with the size of a JSON header, the header,
the arrays. The header is checked here against the description, byte range by byte range; then the reference reader
reads the file. It is checked first because that reader takes duplicate keys, zero-size and 0-d arrays, other dtypes and
names with control characters as they come.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

from rnncore.errors import FileFormatError
from rnncore.io.header import KEY, MAX_DIRECTORY_BYTES, Description, bare, brief, check_names, parse, parse_json
from rnncore.typing import Host

__all__ = ["decode", "encode"]

_LENGTH = struct.Struct("<Q")
_DTYPES = {"float16": "F16", "float32": "F32", "float64": "F64", "bfloat16": "F32"}


def encode(text: str, params: Mapping[str, Host]) -> bytes:
    """The bytes of a file: the description's text and the arrays."""
    from safetensors.numpy import save  # not before it is needed: importing rnncore imports no file format

    # One metadata key only: the writer keeps them in a hash map, and two would come out in a random order.
    return save(dict(params), {KEY: text})


def decode(file: BinaryIO) -> tuple[Description, dict[str, Host]]:
    """The description and the arrays, in torch's order.

    Raises
    ------
    FileFormatError
        Without the path.
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
    """The header, and how many bytes are left for the arrays."""
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
    """Dtype and shape as described, and byte ranges of the right size that fill the file without gap or overlap."""
    dtype = _DTYPES[description.dtype]
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
    # Not isinstance: true is an int to Python, and to nobody else.
    return isinstance(value, list) and all(type(item) is int for item in value)
