"""Flax's msgpack files, as ``flax.serialization.to_bytes`` writes them: maps within maps, with arrays as a type of their own.

An array is an extension of type 1, which holds (shape, name of the dtype, numbers in C order) in msgpack again. Larger ones
are a map of chunks. Flax itself is not needed. A file says neither the nonlinearity nor the order of the axes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from rnncore.arguments import brief, check_bytes, describe, elements, one_of
from rnncore.backend.arrays import FLOATS
from rnncore.errors import FileFormatError, InterchangeError
from rnncore.interchange.arrays import read_arrays
from rnncore.interchange.flax.trees import KERNELS, tree
from rnncore.interchange.libraries import needed
from rnncore.interchange.portable import Asked, Portable
from rnncore.typing import Host

__all__ = ["OPTIONS", "decode", "encode"]

OPTIONS = ("api",)
ARRAY = 1  # the extension's type
CHUNKED = "__msgpack_chunked_array__"
CHUNK_BYTES = 2**30  # msgpack holds less than 2**31 in one object
# msgpack makes room for what a list claims before it has read it, at up to 512 levels.
MOST_ITEMS, MOST_KEYS = 2**12, 2**17
DEEPEST, MOST_AXES = 64, 32
COPIES = 3  # of a file's bytes: read, as an extension's data, and as numbers


@dataclass(frozen=True)
class Stored:
    """An array as the file has it."""

    shape: tuple[int, ...]
    dtype: str
    data: bytes


class Arrays(Mapping[str, Any]):
    """The leaves of a file by their paths; an array is made when it is looked up."""

    def __init__(self, leaves: Mapping[str, Any]) -> None:
        self.leaves = leaves

    def __len__(self) -> int:
        return len(self.leaves)

    def __iter__(self) -> Iterator[str]:
        return iter(self.leaves)

    def __getitem__(self, name: str) -> Host:
        found = self.leaves[name]
        if not isinstance(found, Stored):
            raise FileFormatError(f"{name}: expected an array, got {describe(found)}")
        if found.dtype not in FLOATS:
            raise InterchangeError(f"{name}: expected an array of {', '.join(FLOATS)}, got {brief(found.dtype)}")
        kind = np.dtype("<u2" if found.dtype == "bfloat16" else f"<f{np.dtype(found.dtype).itemsize}")
        if elements(found.shape) * kind.itemsize != len(found.data):
            raise FileFormatError(
                f"{name}: expected {elements(found.shape) * kind.itemsize} bytes of {found.dtype} {brief(found.shape)}, got "
                f"{len(found.data)}"
            )
        numbers = np.frombuffer(found.data, kind).reshape(found.shape)
        if found.dtype == "bfloat16":  # the upper half of a float32
            return (numbers.astype(np.uint32) << 16).view(np.float32)
        return numbers.astype(kind.newbyteorder("="), copy=False)


def decode(file: BinaryIO, asked: Asked) -> Portable:
    """Read a network from variables of linen or a pure dict of nnx's state, at any depth.

    Raises
    ------
    FileFormatError
        The caller adds the path.
    ArgumentValueError, UnknownNameError, InterchangeError, BackendUnavailableError
    """
    msgpack = needed("msgpack", "flax", "A .msgpack file")
    check_bytes("the file", COPIES * os.fstat(file.fileno()).st_size, 1)
    found = _unpacked(msgpack, file.read(), "it", raw=False)
    if not isinstance(found, dict):
        raise FileFormatError(f"expected a map of names to arrays, got {describe(found)}")
    leaves: dict[str, Any] = {}
    for name, leaf in _leaves(msgpack, found, "", 0):
        if name in leaves:
            raise FileFormatError(f"it has {brief(name)} twice")
        leaves[name] = leaf
    halves = {name for name, leaf in leaves.items() if isinstance(leaf, Stored) and leaf.dtype == "bfloat16"}
    return read_arrays(Arrays(leaves), asked, source="a .msgpack file", bfloat16=halves)


def encode(file: BinaryIO, network: Portable, *, api: str = "nnx") -> None:
    """Write a network's arrays, for ``flax.serialization.from_bytes`` with those of :func:`rnncore.to_module`'s module.

    Parameters
    ----------
    file : binary file
    network : Portable
        Its nonlinearity, the order of its axes and its dropout are not written: the format has no place for them.
    api : {"nnx", "linen"}
        Whether to write a pure dict of nnx's parameters, or variables of linen.
    """
    one_of("api", api, KERNELS)
    msgpack = needed("msgpack", "flax", "A .msgpack file")

    def packed(a: Host, dtype: str) -> Any:
        return msgpack.ExtType(ARRAY, msgpack.packb((a.shape, dtype, a.tobytes()), use_bin_type=True))

    def leaf(a: Host) -> Any:
        if network.dtype == "bfloat16":
            a = (np.ascontiguousarray(a, np.float32).view(np.uint32) >> 16).astype("<u2")
        a = a.astype(a.dtype.newbyteorder("<"), copy=False)
        if a.nbytes <= CHUNK_BYTES:
            return packed(a, network.dtype)
        line, step = a.reshape(-1), CHUNK_BYTES // a.itemsize
        chunks = [packed(line[k : k + step], network.dtype) for k in range(0, a.size, step)]
        return {CHUNKED: True, "shape": _numbered(a.shape), "chunks": _numbered(chunks)}

    file.write(msgpack.packb(tree(network, api, leaf)))


def _numbered(items: Any) -> dict[str, Any]:
    return {str(k): item for k, item in enumerate(items)}


def _unpacked(msgpack: Any, data: bytes, what: str, raw: bool) -> Any:
    try:
        # Its own limits are the number of bytes given: nothing can claim more.
        return msgpack.unpackb(
            data,
            raw=raw,
            strict_map_key=False,
            max_array_len=MOST_ITEMS,
            max_map_len=MOST_KEYS,
            ext_hook=msgpack.ExtType,
        )
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        text = brief(error) or type(error).__name__
        raise FileFormatError(f"{what} is truncated, damaged or not of msgpack: {text}") from error


def _leaves(msgpack: Any, found: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    if depth > DEEPEST:
        raise FileFormatError(f"it has maps within more than {DEEPEST} others, at {brief(path)}")
    if isinstance(found, dict) and CHUNKED in found:
        yield path, _joined(msgpack, found, path)
    elif isinstance(found, (dict, list)):
        for key, value in found.items() if isinstance(found, dict) else enumerate(found):
            yield from _leaves(msgpack, value, f"{path}.{key}" if path else str(key), depth + 1)
    else:
        yield path, _stored(msgpack, found, path)


def _stored(msgpack: Any, found: Any, path: str) -> Any:
    """Return an array's parts; what is none is returned as it is."""
    if not isinstance(found, msgpack.ExtType) or found.code != ARRAY:
        return found
    parts = _unpacked(msgpack, found.data, brief(path), raw=True)
    if not isinstance(parts, list) or len(parts) != 3 or not all(isinstance(part, bytes) for part in parts[1:]):
        raise FileFormatError(f"{brief(path)}: expected an array's shape, dtype and numbers, got {brief(parts)}")
    return Stored(_shape(parts[0], path), parts[1].decode("ascii", "replace"), parts[2])


def _joined(msgpack: Any, found: dict[Any, Any], path: str) -> Stored:
    """Return an array of its chunks."""
    shape, pieces = (_list(found.get(key), path) for key in ("shape", "chunks"))
    chunks = [_stored(msgpack, piece, path) for piece in pieces]
    if not all(isinstance(chunk, Stored) for chunk in chunks) or len({chunk.dtype for chunk in chunks}) != 1:
        raise FileFormatError(f"{brief(path)}: expected chunks of one dtype")
    return Stored(_shape(shape, path), chunks[0].dtype, b"".join(chunk.data for chunk in chunks))


def _list(found: Any, path: str) -> list[Any]:
    if not isinstance(found, dict) or set(found) != {str(k) for k in range(len(found))}:
        raise FileFormatError(f"{brief(path)}: expected the shape and the chunks of an array, numbered from 0")
    return [found[str(k)] for k in range(len(found))]


def _shape(found: Any, path: str) -> tuple[int, ...]:
    if not isinstance(found, list) or len(found) > MOST_AXES or not all(type(n) is int and n >= 0 for n in found):
        raise FileFormatError(f"{brief(path)}: expected the shape of an array, got {brief(found)}")
    return tuple(found)
