"""The compiled functions: built at first use and cached on disk where possible.

There is one for each nonlinearity and dtype, with and without a clip. Importing this module imports Numba.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic

from rnncore_numba._functions import FUNCTIONS
from rnncore_numba._tiles import Arguments, Kind, emit_finish, emit_scan
from rnncore_numba._vectors import BITS, I64, POINTER, lane_count

NAMES = ("linear", *FUNCTIONS)
KINDS = tuple(Kind(name, dtype, clipped) for name in NAMES for dtype in BITS for clipped in (False, True))
SOURCES = ("_vectors.py", "_functions.py", "_tiles.py", "_kernels.py")
_compiling = RLock()


def version() -> int:
    """Hash of the sources. Numba's cache checks the file of a function, but not the other files that its code comes from."""
    text = b"".join((Path(__file__).parent / name).read_bytes() for name in SOURCES)
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "little")


@intrinsic
def _scan(
    typing: Any, p: Any, d: Any, h0: Any, strips: Any, out: Any, rows: Any, options: Any, kind: Any, sources: Any
) -> Any:
    """(p, d, h0, strips, out, (first row, last row), (reverse, clip), kind, version): see `rnncore_numba._tiles`."""
    if not isinstance(kind, types.IntegerLiteral):
        return None
    chosen = KINDS[kind.literal_value]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        arrays, addresses = _addresses(context, builder, signature.args[:5], args[:5])
        p, d, h0, strips, out = addresses
        steps, batch, width = (builder.extract_value(arrays[0].shape, n) for n in range(3))
        first, last = (builder.extract_value(args[5], n) for n in range(2))
        reverse, clip = (builder.extract_value(args[6], n) for n in range(2))
        reverse = builder.icmp_unsigned("!=", reverse, reverse.type(0))  # a byte within a tuple
        clip = context.cast(builder, clip, types.float64, signature.args[0].dtype)
        emit_scan(builder, chosen, Arguments(p, d, h0, strips, out, steps, batch, width, first, last, reverse, clip))
        return context.get_dummy_value()

    pair, both = types.UniTuple(types.int64, 2), types.Tuple((types.boolean, types.float64))  # type: ignore[no-untyped-call]
    return types.void(p, d, h0, strips, out, pair, both, kind, sources), generate


@intrinsic
def _finish(typing: Any, product: Any, p: Any, d: Any, out: Any, clip: Any, kind: Any, sources: Any) -> Any:
    """(product, p, d, out, clip, kind, version): see `rnncore_numba._tiles`."""
    if not isinstance(kind, types.IntegerLiteral):
        return None
    chosen = KINDS[kind.literal_value]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        arrays, addresses = _addresses(context, builder, signature.args[:4], args[:4])
        limit = context.cast(builder, args[4], types.float64, signature.args[0].dtype)
        product, p, d, out = addresses
        emit_finish(builder, chosen, product, p, d, out, arrays[0].nitems, limit)
        return context.get_dummy_value()

    return types.void(product, p, d, out, types.float64, kind, sources), generate


def _addresses(context: Any, builder: Any, kinds: Any, values: Any) -> tuple[list[Any], list[Any]]:
    arrays = [context.make_array(kind)(context, builder, value=x) for kind, x in zip(kinds, values, strict=True)]
    # Convert through integers to get untyped pointers: llvmlite's own pointers are typed.
    return arrays, [builder.inttoptr(builder.ptrtoint(x.data, I64), POINTER) for x in arrays]


class Compiled(NamedTuple):
    """The functions of one kind. Arrays must be C-contiguous, aligned and writable, except w, which may have any layout.

    ``pack(w)`` copies W into strips. ``rows(p, d, h0, strips, out, first, last, reverse, clip)`` runs a scan for some rows of
    the batch. ``finish(product, p, d, out, clip)`` computes one step's states (B, H) from its product with W. A nonlinear scan
    passes p as d. All of them release the interpreter lock.
    """

    pack: Callable[..., Any]
    rows: Callable[..., None]
    finish: Callable[..., None]


@cache
def _compile(kind: Kind) -> Compiled:
    dtype = getattr(types, kind.dtype)
    number = np.dtype(kind.dtype)
    # Everything that affects the compiled code is in the closure, and so in the key of Numba's cache.
    code, sources, lanes, size = KINDS.index(kind), version(), lane_count(kind.dtype), number.itemsize

    def pack(w):  # type: ignore[no-untyped-def]
        width = w.shape[0]
        strip_count = (width + lanes - 1) // lanes
        room = np.empty((strip_count * width + 1) * lanes, number)
        offset = (-room.ctypes.data // size) % lanes
        strips = room[offset : offset + strip_count * width * lanes]
        for s in range(strip_count):
            base, left = s * width * lanes, min(lanes, width - s * lanes)
            if w.strides[0] == size:
                for k in range(width):
                    for lane in range(left):
                        strips[base + k * lanes + lane] = w[s * lanes + lane, k]
            else:
                for lane in range(left):
                    for k in range(width):
                        strips[base + k * lanes + lane] = w[s * lanes + lane, k]
            for k in range(width):
                for lane in range(left, lanes):
                    strips[base + k * lanes + lane] = 0
        return strips

    def rows(p, d, h0, strips, out, first, last, reverse, clip):  # type: ignore[no-untyped-def]
        _scan(p, d, h0, strips, out, (first, last), (reverse, clip), code, sources)  # type: ignore[call-arg]

    def finish(product, p, d, out, clip):  # type: ignore[no-untyped-def]
        _finish(product, p, d, out, clip, code, sources)  # type: ignore[call-arg]

    block, state = types.Array(dtype, 3, "C"), types.Array(dtype, 2, "C")
    matrix, flat = types.Array(dtype, 2, "A"), types.Array(dtype, 1, "C")
    index, flag, limit = types.int64, types.boolean, types.float64
    return Compiled(
        _jit(flat(matrix), pack),
        _jit(types.void(block, block, state, flat, block, index, index, flag, limit), rows),
        _jit(types.void(state, state, state, state, limit), finish),
    )


def compiled(kind: Kind) -> Compiled:
    """The functions of a kind, compiled or read from disk at first use."""
    with _compiling:  # so that two threads do not compile the same function
        return _compile(kind)


def _jit(signature: Any, function: Callable[..., Any]) -> Any:
    try:
        return numba.njit(signature, nogil=True, cache=True)(function)
    except RuntimeError as error:
        if "cannot cache" not in str(error):
            raise
        return numba.njit(signature, nogil=True)(function)  # there is no writable cache folder
