"""Both scans as one LLVM loop over tiles (rows by vectors of units), whose sums stay in registers.

A tile multiplies h_{t-1} of some rows by strips of W, each one vector wide, over all k. The strips are stored one after the
other, so that every load of W is a whole, aligned vector. The states are read from the result, where they were written.

Rows are independent, so threads have separate rows and never wait within a scan. Within a step all rows use a strip before the
next strip is read: W is read once per step from the cache that holds it.
"""

from __future__ import annotations

from typing import NamedTuple

import llvmlite.ir as ir  # type: ignore[import-untyped]

from rnncore_numba._functions import COSTLY, FUNCTIONS
from rnncore_numba._vectors import (
    I64,
    POINTER,
    Builder,
    Lanes,
    Value,
    carried,
    counted,
    intrinsic,
    many_registers,
    target,
)

# Rows in a tile, and its possible numbers of strips, the largest first. The sums, the strips and one number of h have to fit in
# the registers: 8 x 3 + 3 + 1 of 32, 4 x 2 + 2 + 1 of 16. Tiles of 8 and 4 rows have the same strips and the same number of
# partial sums for each result. So their results are bitwise equal, and threads may divide a batch at multiples of 4 rows.
TILES_OF_32 = ((8, (3, 2, 1)), (4, (3, 2, 1)), (2, (4, 2, 1)), (1, (8, 4, 2, 1)))
TILES_OF_16 = ((4, (2, 1)), (2, (4, 2, 1)), (1, (8, 4, 2, 1)))
# Smaller tiles use partial sums, to have this many in progress: the processor starts two products a cycle and each takes four.
UNDER_WAY = 8
# The bits of MXCSR for "flush to zero" and "denormals are zero".
FLUSH = 0x8040


class Kind(NamedTuple):
    """A kernel: "linear" or the name of a nonlinearity, the dtype, and whether the pre-activation is clipped."""

    function: str
    dtype: str
    clipped: bool


class Arguments(NamedTuple):
    """Addresses and sizes of a scan over rows `first_row` to `last_row`. Only the linear scan reads `d`."""

    p: Value
    d: Value
    h0: Value
    strips: Value
    out: Value
    steps: Value
    batch: Value
    width: Value
    first_row: Value
    last_row: Value
    reverse: Value
    clip: Value


def tiles() -> tuple[tuple[int, tuple[int, ...]], ...]:
    """The tile sizes for this processor."""
    return TILES_OF_32 if many_registers() else TILES_OF_16


def emit_scan(builder: Builder, kind: Kind, a: Arguments) -> None:
    """Emit the scan at the builder's position."""
    _Scan(builder, kind, a).emit()


def emit_finish(
    builder: Builder, kind: Kind, product: Value, p: Value, d: Value, out: Value, count: Value, clip: Value
) -> None:
    """Emit ``f(p + product)`` or ``d * (p + product)`` for `count` numbers: the rest of a step after BLAS's product."""
    v, zero = Lanes(builder, kind.dtype), ir.Constant(I64, 0)
    step = _Finish(v, kind, clip)
    before = _flushed(builder) if kind.function == "linear" else None
    end: list[Value] = []
    with counted(builder, zero, count, v.count, end) as i:
        _finish_at(v, step, [v.at(x, i) for x in (product, p, d, out)], None)
    left = builder.sub(count, end[0])
    with builder.if_then(builder.icmp_signed(">", left, zero)):
        _finish_at(v, step, [v.at(x, end[0]) for x in (product, p, d, out)], v.first(left))
    _restored(builder, before)


def _finish_at(v: Lanes, step: _Finish, places: list[Value], mask: Value | None) -> None:
    product, p, d, out = places
    z = v.builder.fadd(v.load(p, mask), v.load(product, mask))
    v.store(step.function(z) if step.linear is False else v.builder.fmul(v.load(d, mask), z), out, mask)


class _Finish:
    """The elementwise end of a step."""

    def __init__(self, v: Lanes, kind: Kind, clip: Value) -> None:
        self.v, self.kind, self.linear = v, kind, kind.function == "linear"
        self.limit = (v.splat(v.builder.fneg(clip)), v.splat(clip)) if kind.clipped else None

    def function(self, z: Value) -> Value:
        """f of the clipped z."""
        if self.limit is not None:
            z = self.v.at_most(self.v.at_least(z, self.limit[0]), self.limit[1])
        return FUNCTIONS[self.kind.function](self.v, z)


def _flushed(b: Builder) -> Value | None:
    """Flush subnormal numbers to 0 from here on, on x86 only; return the address of the saved setting, or None."""
    if target()[0] not in ("x86_64", "i686"):
        return None
    word = ir.IntType(32)
    with b.goto_entry_block():
        before, during = b.alloca(word), b.alloca(word)
    b.call(intrinsic(b, "llvm.x86.sse.stmxcsr", ir.VoidType(), [POINTER]), [before])
    b.store(b.or_(b.load(before, typ=word), ir.Constant(word, FLUSH)), during)
    b.call(intrinsic(b, "llvm.x86.sse.ldmxcsr", ir.VoidType(), [POINTER]), [during])
    return before


def _restored(b: Builder, before: Value | None) -> None:
    if before is not None:
        b.call(intrinsic(b, "llvm.x86.sse.ldmxcsr", ir.VoidType(), [POINTER]), [before])


class _Scan:
    def __init__(self, builder: Builder, kind: Kind, a: Arguments) -> None:
        self.b, self.kind, self.a = builder, kind, a
        self.v = v = Lanes(builder, kind.dtype)
        self.whole = builder.sdiv(a.width, self.number(v.count))  # strips without their remainder
        self.rest = builder.srem(a.width, self.number(v.count))
        self.mask = v.first(self.rest)
        self.step_size = builder.mul(a.batch, a.width)
        self.strip_size = builder.mul(a.width, self.number(v.count))
        self.function = _Finish(v, kind, a.clip).function

    def number(self, x: int) -> Value:
        return ir.Constant(I64, x)

    def emit(self) -> None:
        b, a = self.b, self.a
        before = _flushed(b) if self.kind.function == "linear" else None
        with counted(b, self.number(0), a.steps, 1, []) as i:
            backwards = b.sub(b.sub(a.steps, i), self.number(1))
            t = b.select(a.reverse, backwards, i)
            t_before = b.select(a.reverse, b.add(t, self.number(1)), b.sub(t, self.number(1)))
            at = b.mul(t, self.step_size)
            h = b.select(
                b.icmp_signed("==", i, self.number(0)),
                a.h0,
                self.v.at(a.out, b.mul(t_before, self.step_size)),
            )
            self._step(at, h)
        _restored(b, before)

    def _step(self, at: Value, h: Value) -> None:
        """Emit one step: `at` is its offset in (T, B, H), h the address of the states before it."""
        b, a = self.b, self.a
        row = a.first_row
        for rows, widths in tiles():
            left = b.sub(a.last_row, row)
            end = b.add(row, b.mul(b.sdiv(left, self.number(rows)), self.number(rows)))
            self._rows(at, h, row, end, rows, widths)
            if rows == 2 and self._apart():
                self._activate(at, end)
            row = end

    def _apart(self) -> bool:
        return self.kind.function in COSTLY

    def _rows(self, at: Value, h: Value, row: Value, end: Value, rows: int, widths: tuple[int, ...]) -> None:
        """Emit tiles of `rows` rows over all strips."""
        strip = self.number(0)
        for wide in widths:
            last: list[Value] = []
            with (
                counted(self.b, strip, self.whole, wide, last) as s,
                counted(self.b, row, end, rows, []) as r,
            ):
                self._tile(at, h, r, s, rows, wide, None)
            strip = last[0]
        some = self.b.icmp_signed(">", self.rest, self.number(0))
        with self.b.if_then(some), counted(self.b, row, end, rows, []) as r:
            self._tile(at, h, r, self.whole, rows, 1, self.mask)

    def _tile(self, at: Value, h: Value, row: Value, strip: Value, rows: int, wide: int, mask: Value | None) -> None:
        b, v, a = self.b, self.v, self.a
        parts = max(1, min(4, UNDER_WAY // (min(rows, 4) * wide)))
        h_rows = [v.at(h, b.mul(b.add(row, self.number(r)), a.width)) for r in range(rows)]
        strips = [v.at(a.strips, b.mul(b.add(strip, self.number(s)), self.strip_size)) for s in range(wide)]
        column = b.mul(strip, self.number(v.count))
        places = [
            b.add(b.add(at, column), b.add(b.mul(b.add(row, self.number(r)), a.width), self.number(s * v.count)))
            for r in range(rows)
            for s in range(wide)
        ]
        start = [v.load(v.at(a.p, place), mask) for place in places]
        zero = v.const(0.0)
        sums = start + [zero] * (len(start) * (parts - 1))

        def multiply(k: Value, sums: list[Value], parts: int) -> list[Value]:
            found = list(sums)
            for part in range(parts):
                kk = b.add(k, self.number(part))
                w = [v.load(v.at(s, b.mul(kk, self.number(v.count))), aligned=True) for s in strips]
                for r in range(rows):
                    x = v.load_one(v.at(h_rows[r], kk))
                    for s in range(wide):
                        n = (part * rows + r) * wide + s
                        found[n] = v.fma(x, w[s], found[n])
            return found

        k, sums = carried(b, self.number(0), a.width, parts, sums, lambda k, sums: multiply(k, sums, parts))
        if parts > 1:
            k, sums = carried(b, k, a.width, 1, sums, lambda k, sums: multiply(k, sums, 1))
        size = rows * wide
        while len(sums) > size:
            half = (len(sums) // size + 1) // 2 * size
            sums = [b.fadd(x, sums[n + half]) if n + half < len(sums) else x for n, x in enumerate(sums[:half])]
        for z, place in zip(sums, places, strict=True):
            v.store(self._finished(z, place, rows, mask), v.at(a.out, place), mask)

    def _finished(self, z: Value, place: Value, rows: int, mask: Value | None) -> Value:
        if self.kind.function == "linear":
            return self.b.fmul(self.v.load(self.v.at(self.a.d, place), mask), z)
        return z if rows > 1 and self._apart() else self.function(z)

    def _activate(self, at: Value, end: Value) -> None:
        """Apply the nonlinearity to all rows up to `end`, which are contiguous."""
        b, v, a = self.b, self.v, self.a
        i = b.add(at, b.mul(a.first_row, a.width))
        stop = b.add(at, b.mul(end, a.width))
        for many in (4, 1):
            last: list[Value] = []
            with counted(b, i, stop, many * v.count, last) as place:
                addresses = [v.at(a.out, b.add(place, self.number(n * v.count))) for n in range(many)]
                for address, z in [(x, v.load(x)) for x in addresses]:
                    v.store(self.function(z), address)
            i = last[0]
        left = b.sub(stop, i)
        with b.if_then(b.icmp_signed(">", left, self.number(0))):
            mask, address = v.first(left), v.at(a.out, i)
            v.store(self.function(v.load(address, mask)), address, mask)
