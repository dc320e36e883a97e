"""The compiled functions: built at first use and kept on disk where possible.

There is one for each nonlinearity and dtype, with and without a clip. Importing this module imports Numba.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic

from rnncore.backend.forks import first_use
from rnncore_numba._cache import keep
from rnncore_numba._functions import FUNCTIONS
from rnncore_numba._tiles import Arguments, Kind, emit_finish, emit_scan
from rnncore_numba._vectors import BITS, I64, POINTER, lane_count

NAMES = ("linear", *FUNCTIONS)
KINDS = tuple(Kind(name, dtype, clipped) for name in NAMES for dtype in BITS for clipped in (False, True))
SOURCES = ("_vectors.py", "_functions.py", "_tiles.py", "_kernels.py")
_compiling = RLock()


def version() -> int:
    """Hash of the files that the code comes from."""
    text = b"".join((Path(__file__).parent / name).read_bytes() for name in SOURCES)
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "little")


@intrinsic
def _scan(typing: Any, p: Any, d: Any, h0: Any, strips: Any, out: Any, rows: Any, options: Any, kind: Any) -> Any:
    """(p, d, h0, strips, out, (first row, last row), (reverse, clip), kind): see `rnncore_numba._tiles`."""
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
    return types.void(p, d, h0, strips, out, pair, both, kind), generate


@intrinsic
def _finish(typing: Any, product: Any, p: Any, d: Any, out: Any, clip: Any, kind: Any) -> Any:
    """(product, p, d, out, clip, kind): see `rnncore_numba._tiles`."""
    if not isinstance(kind, types.IntegerLiteral):
        return None
    chosen = KINDS[kind.literal_value]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        arrays, addresses = _addresses(context, builder, signature.args[:4], args[:4])
        limit = context.cast(builder, args[4], types.float64, signature.args[0].dtype)
        product, p, d, out = addresses
        emit_finish(builder, chosen, product, p, d, out, arrays[0].nitems, limit)
        return context.get_dummy_value()

    return types.void(product, p, d, out, types.float64, kind), generate


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
    code, lanes, size = KINDS.index(kind), lane_count(kind.dtype), number.itemsize

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
        _scan(p, d, h0, strips, out, (first, last), (reverse, clip), code)  # type: ignore[call-arg]

    def finish(product, p, d, out, clip):  # type: ignore[no-untyped-def]
        _finish(product, p, d, out, clip, code)  # type: ignore[call-arg]

    block, state = types.Array(dtype, 3, "C"), types.Array(dtype, 2, "C")
    matrix, flat = types.Array(dtype, 2, "A"), types.Array(dtype, 1, "C")
    index, flag, limit = types.int64, types.boolean, types.float64
    own = f"{kind.function}-{kind.dtype}{'-clipped' * kind.clipped}"
    return Compiled(
        _jit(flat(matrix), pack, f"pack-{kind.dtype}"),
        _jit(types.void(block, block, state, flat, block, index, index, flag, limit), rows, f"rows-{own}"),
        _jit(types.void(state, state, state, state, limit), finish, f"finish-{own}"),
    )


def compiled(kind: Kind) -> Compiled:
    """The functions of a kind, compiled or read from disk at first use."""
    with first_use, _compiling:  # so that two threads do not compile the same function
        return _compile(kind)


def _jit(signature: Any, function: Callable[..., Any], name: str) -> Any:
    function.__qualname__ = name.replace(
        "-", "_"
    )  # and so its symbol, also beside one that another process has compiled
    dispatcher = numba.njit(nogil=True)(function)
    keep(dispatcher, name, version())
    dispatcher.compile(signature)
    dispatcher.disable_compile()
    return dispatcher


def _locks() -> Iterator[Any]:
    """Numba's lock of all compilation and llvmlite's of LLVM, in the order in which they nest, where these private names exist.

    Other code compiles under them, too.
    """
    from llvmlite.binding import ffi  # type: ignore[import-untyped]
    from numba.core import compiler_lock

    yield getattr(getattr(compiler_lock, "global_compiler_lock", None), "_lock", None)
    yield getattr(getattr(getattr(ffi, "lib", None), "_lock", None), "_lock", None)


for _lock in _locks():
    if _lock is not None:
        first_use.hold_in_forks(_lock)
