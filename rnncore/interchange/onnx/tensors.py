"""Arrays from an ONNX file's tensors, in the file or beside it; each size is compared with what is there before it is read."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from rnncore.arguments import check_bytes, digits, elements, shown
from rnncore.errors import FileFormatError, InterchangeError
from rnncore.io.atomic import open_regular
from rnncore.typing import Host

__all__ = ["BFLOAT16", "FLOATING", "array", "check_texts", "widened"]

# NumPy has no bfloat16: its bits, of a dtype that no arithmetic takes by mistake.
BFLOAT16 = np.dtype([("bfloat16", "<u2")])
# By onnx.TensorProto.DataType: the dtype, and the field that holds the numbers where raw_data does not.
TYPES: dict[int, tuple[np.dtype[Any], str]] = {
    1: (np.dtype("<f4"), "float_data"),
    6: (np.dtype("<i4"), "int32_data"),
    7: (np.dtype("<i8"), "int64_data"),
    10: (np.dtype("<f2"), "int32_data"),
    11: (np.dtype("<f8"), "double_data"),
    16: (BFLOAT16, "int32_data"),
}
FLOATING = {np.dtype("f2"): "float16", np.dtype("f4"): "float32", np.dtype("f8"): "float64", BFLOAT16: "bfloat16"}
EXTERNAL = 1  # onnx.TensorProto.DataLocation
MAX_RANK = 8


def array(tensor: Any, folder: str) -> Host:
    """Return a TensorProto's numbers, read-only.

    Parameters
    ----------
    tensor : onnx.TensorProto
    folder : str
        Where the model's file is: external data must be in it.

    Raises
    ------
    FileFormatError, InterchangeError, FileAccessError
    """
    what = f"tensor {shown(tensor.name)}"
    if tensor.data_type not in TYPES:
        raise InterchangeError(f"{what}: expected float16, float32, float64, bfloat16 or integers, got {_kind(tensor)}")
    dtype, field = TYPES[tensor.data_type]
    shape = tuple(tensor.dims)
    if len(shape) > MAX_RANK or min(shape, default=0) < 0:
        raise FileFormatError(f"{what}: expected at most {MAX_RANK} sizes >= 0, got {shown(shape)}")
    count = elements(shape)
    if tensor.data_location == EXTERNAL:
        data = _external(tensor, folder, what, count * dtype.itemsize)
    elif tensor.HasField("raw_data"):
        data = tensor.raw_data
    else:
        return _from_field(getattr(tensor, field), dtype, shape, what)
    if len(data) != count * dtype.itemsize:
        raise FileFormatError(
            f"{what}: expected {digits(count * dtype.itemsize)} bytes for shape {shape}, got {len(data)}"
        )
    return _native(np.frombuffer(data, dtype).reshape(shape))


def check_texts(*texts: str | bytes) -> None:
    """Require text: protocol buffers give bytes where a file has no UTF-8.

    Raises
    ------
    FileFormatError
    """
    for text in texts:
        if not isinstance(text, str):
            raise FileFormatError(f"expected names in UTF-8, got {shown(text)}")


def widened(values: Host) -> Host:
    """Return floating numbers in a dtype of NumPy's: those of bfloat16 in float32, exactly."""
    if values.dtype != BFLOAT16:
        return values
    bits: Host = values["bfloat16"].astype(np.uint32) << 16
    return bits.view(np.float32)


def _from_field(numbers: Any, dtype: np.dtype[Any], shape: tuple[int, ...], what: str) -> Host:
    if len(numbers) != elements(shape):
        raise FileFormatError(
            f"{what}: expected {digits(elements(shape))} numbers for shape {shape}, got {len(numbers)}"
        )
    if dtype.itemsize != 2:
        return np.asarray(numbers, dtype.newbyteorder("=")).reshape(shape)
    bits = np.asarray(numbers, np.int64)  # the bits of each as an integer
    if bits.size and not 0 <= bits.min() <= bits.max() < 2**16:
        raise FileFormatError(f"{what}: expected numbers of 16 bits, got {bits.min()} to {bits.max()}")
    return _native(bits.astype("<u2").view(dtype).reshape(shape))


def _external(tensor: Any, folder: str, what: str, count: int) -> bytes:
    """Read a tensor's bytes from another file in the folder of the model's."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    check_texts(*entries, *entries.values())
    location = entries.get("location", "")
    parts = location.replace("\\", "/").split("/")
    path = os.path.join(folder, location)
    inside = os.path.realpath(folder)
    unusable = not location.isprintable() or os.path.isabs(location) or ":" in location or {"", ".", ".."} & set(parts)
    if unusable or os.path.commonpath([inside, os.path.realpath(path)]) != inside:
        raise FileFormatError(f"{what}: expected external data in a file in the model's folder, got {shown(location)}")
    offset, length = (
        _count(entries.get(key, default), what) for key, default in (("offset", "0"), ("length", str(count)))
    )
    if length != count:
        raise FileFormatError(f"{what}: expected {digits(count)} bytes, got external data of {digits(length)}")
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if offset + length > size:
            raise FileFormatError(
                f"{what}: expected {digits(length)} bytes at {digits(offset)} of {shown(location)}, which has {size}"
            )
        check_bytes(what, length, 1)
        file.seek(offset)
        return file.read(length)


def _count(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise FileFormatError(f"{what}: expected the place of external data as a number of bytes, got {shown(text)}")
    return int(text)


def _native(values: Host) -> Host:
    return values if values.dtype == BFLOAT16 else values.astype(values.dtype.newbyteorder("="), copy=False)


def _kind(tensor: Any) -> str:
    return f"data type {tensor.data_type} of ONNX"
