"""LLVM vectors of the processor's own width, the building blocks of the kernels and nonlinearities.

In Numba's loops LLVM decides whether to use vector instructions and which values stay in registers. Here both are explicit: a
value is a vector of `count` lanes, and LLVM splits it if the processor's registers are narrower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeAlias

import llvmlite.ir as ir  # type: ignore[import-untyped]
import numpy as np

# llvmlite is untyped; these aliases are for readability.
Value: TypeAlias = Any
Builder: TypeAlias = Any

I1, I64 = ir.IntType(1), ir.IntType(64)
POINTER = ir.PointerType()
BITS = {"float32": 32, "float64": 64}


@cache
def target() -> tuple[str, frozenset[str]]:
    """Numba's target architecture and its features, such as "+avx2"."""
    from numba.core.registry import cpu_target

    triple, _, features = cpu_target.target_context.codegen().magic_tuple()
    return triple.partition("-")[0], frozenset(features.split(","))


@cache
def vector_bytes() -> int:
    """The width of the processor's widest vector registers."""
    features = target()[1]
    return 64 if "+avx512f" in features else 32 if "+avx" in features else 16


@cache
def many_registers() -> bool:
    """Whether there are 32 vector registers (AVX-512, ARM) or 16."""
    architecture, features = target()
    return "+avx512f" in features or architecture in ("aarch64", "arm64")


@cache
def fuses() -> bool:
    """Whether fused multiply-add is one instruction; otherwise it would be a function call for each lane."""
    architecture, features = target()
    return "+fma" in features or architecture in ("aarch64", "arm64")


def lane_count(dtype: str) -> int:
    """Numbers in one vector register."""
    return vector_bytes() * 8 // BITS[dtype]


class Lanes:
    """A builder, and the vectors of one dtype that fill a register."""

    def __init__(self, builder: Builder, dtype: str) -> None:
        self.builder, self.dtype = builder, dtype
        self.count, self.bits = lane_count(dtype), BITS[dtype]
        self.scalar = ir.FloatType() if dtype == "float32" else ir.DoubleType()
        self.vector = ir.VectorType(self.scalar, self.count)
        self.integer = ir.IntType(self.bits)
        self.integers = ir.VectorType(self.integer, self.count)
        self._letter = f"v{self.count}f{self.bits}"

    # --- constants ---------------------------------------------------------------------------------------------------

    def const(self, x: float) -> Value:
        """x in every lane, rounded to the dtype."""
        return ir.Constant(self.vector, [float(np.dtype(self.dtype).type(x))] * self.count)

    def const_bits(self, x: int) -> Value:
        """An integer in every lane."""
        return ir.Constant(self.integers, [x] * self.count)

    def splat(self, x: Value) -> Value:
        """A scalar in every lane."""
        one = self.builder.insert_element(ir.Constant(self.vector, ir.Undefined), x, ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.count), [0] * self.count)
        return self.builder.shuffle_vector(one, ir.Constant(self.vector, ir.Undefined), zeros)

    # --- memory ------------------------------------------------------------------------------------------------------

    def at(self, pointer: Value, offset: Value) -> Value:
        """The address `offset` numbers after `pointer`."""
        return self.builder.gep(pointer, [offset], source_etype=self.scalar)

    def load_one(self, pointer: Value) -> Value:
        """Load one number into every lane."""
        return self.splat(self.builder.load(pointer, typ=self.scalar, align=self.bits // 8))

    def load(self, pointer: Value, mask: Value | None = None, *, aligned: bool = False) -> Value:
        """Load a vector; lanes outside the mask are 0 and not read."""
        align = vector_bytes() if aligned else self.bits // 8
        if mask is None:
            return self.builder.load(pointer, typ=self.vector, align=align)
        types = [POINTER, ir.IntType(32), mask.type, self.vector]
        load = self._intrinsic(f"llvm.masked.load.{self._letter}.p0", self.vector, types)
        return self.builder.call(load, [pointer, ir.Constant(ir.IntType(32), align), mask, self.const(0.0)])

    def store(self, x: Value, pointer: Value, mask: Value | None = None) -> None:
        """Store a vector; lanes outside the mask are not written."""
        if mask is None:
            self.builder.store(x, pointer, align=self.bits // 8)
            return
        types = [self.vector, POINTER, ir.IntType(32), mask.type]
        store = self._intrinsic(f"llvm.masked.store.{self._letter}.p0", ir.VoidType(), types)
        self.builder.call(store, [x, pointer, ir.Constant(ir.IntType(32), self.bits // 8), mask])

    def first(self, n: Value) -> Value:
        """A mask of the first n lanes."""
        small = self.builder.trunc(n, ir.IntType(32))
        kind = ir.VectorType(ir.IntType(32), self.count)
        undefined = ir.Constant(kind, ir.Undefined)
        one = self.builder.insert_element(undefined, small, ir.Constant(ir.IntType(32), 0))
        every = self.builder.shuffle_vector(one, undefined, ir.Constant(kind, [0] * self.count))
        return self.builder.icmp_signed("<", ir.Constant(kind, list(range(self.count))), every)

    # --- arithmetic --------------------------------------------------------------------------------------------------

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a * b + c, rounded once if the processor supports it."""
        name = "fma" if fuses() else "fmuladd"
        function = self._intrinsic(f"llvm.{name}.{self._letter}", self.vector, [self.vector] * 3)
        return self.builder.call(function, [a, b, c])

    def polynomial(self, coefficients: Sequence[float], x: Value) -> Value:
        """Evaluate a polynomial by Horner's scheme; the constant term is first."""
        value = self.const(coefficients[-1])
        for c in coefficients[-2::-1]:
            value = self.fma(value, x, self.const(c))
        return value

    def absolute(self, x: Value) -> Value:
        """|x|; NaN stays NaN."""
        return self.builder.call(self._intrinsic(f"llvm.fabs.{self._letter}", self.vector, [self.vector]), [x])

    def with_sign_of(self, size: Value, x: Value) -> Value:
        """|size| with the sign of x."""
        function = self._intrinsic(f"llvm.copysign.{self._letter}", self.vector, [self.vector] * 2)
        return self.builder.call(function, [size, x])

    def at_most(self, x: Value, limit: Value) -> Value:
        """The minimum of x and the limit; NaN in x stays."""
        return self.builder.select(self.builder.fcmp_ordered(">", x, limit), limit, x)

    def at_least(self, x: Value, limit: Value) -> Value:
        """The maximum of x and the limit; NaN in x stays."""
        return self.builder.select(self.builder.fcmp_ordered("<", x, limit), limit, x)

    def _intrinsic(self, name: str, result: Any, arguments: Sequence[Any]) -> Value:
        return intrinsic(self.builder, name, result, arguments)


def intrinsic(builder: Builder, name: str, result: Any, arguments: Sequence[Any]) -> Value:
    """An LLVM intrinsic, declared once per module."""
    found = builder.module.globals.get(name)
    return found or ir.Function(builder.module, ir.FunctionType(result, list(arguments)), name)


# --- loops ------------------------------------------------------------------------------------------------------------


def carried(
    builder: Builder,
    start: Value,
    stop: Value,
    step: int,
    values: Sequence[Value],
    body: Callable[[Value, list[Value]], list[Value]],
) -> tuple[Value, list[Value]]:
    """Emit ``while i + step <= stop: values = body(i, values); i += step`` with values in registers; return both."""
    before = builder.block
    head = builder.append_basic_block("while")
    inside = builder.append_basic_block("do")
    after = builder.append_basic_block("done")
    builder.branch(head)
    builder.position_at_end(head)
    i = builder.phi(I64)
    i.add_incoming(start, before)
    phis = [builder.phi(v.type) for v in values]
    for phi, value in zip(phis, values, strict=True):
        phi.add_incoming(value, before)
    nxt = builder.add(i, ir.Constant(I64, step))
    builder.cbranch(builder.icmp_signed("<=", nxt, stop), inside, after)
    builder.position_at_end(inside)
    found = body(i, phis)
    last = builder.block
    i.add_incoming(nxt, last)
    for phi, value in zip(phis, found, strict=True):
        phi.add_incoming(value, last)
    builder.branch(head)
    builder.position_at_end(after)
    return i, phis


@contextmanager
def counted(builder: Builder, start: Value, stop: Value, step: int, end: list[Value]) -> Iterator[Value]:
    """Emit the loop of :func:`carried` without values, as a with statement; the last i is appended to `end`."""
    before = builder.block
    head = builder.append_basic_block("while")
    inside = builder.append_basic_block("do")
    after = builder.append_basic_block("done")
    builder.branch(head)
    builder.position_at_end(head)
    i = builder.phi(I64)
    i.add_incoming(start, before)
    nxt = builder.add(i, ir.Constant(I64, step))
    builder.cbranch(builder.icmp_signed("<=", nxt, stop), inside, after)
    builder.position_at_end(inside)
    yield i
    i.add_incoming(nxt, builder.block)
    builder.branch(head)
    builder.position_at_end(after)
    end.append(i)
