"""tanh, the logistic function, relu and the identity on vectors, within 4 units in the last place over the whole range.

NaN stays NaN, zeros keep their sign, subnormal numbers are exact, and tanh never exceeds 1. The largest errors found: in
float32, over all numbers from 1e-4 to the saturated range, 2.8 units for tanh and 2.4 for the logistic function; in float64,
over 54,000 numbers, 2.4 and 2.0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from rnncore_numba._vectors import Lanes, Value

# With t = tanh(x / 2) = N / D, tanh x = 2 t / (1 + t^2) = 2 N D / (N^2 + D^2): one division, and where t is near 1 the errors
# of N and D cancel. 2 N = x + x^3 P(x^2) and D = 1 + x^2 Q(x^2) are the best rational approximation on |x| <= 9.2, from where
# float32's tanh is 1. They were fitted by reweighted least squares in 60 digits, with an error of 3e-8. All terms are positive.
TANH32_END = 9.2
TANH32_P = (0.031475636861329426, 0.00015946246516640916, 8.52129136497765e-08)
TANH32_Q = (0.11480891892778167, 0.0013935662447981533, 2.7230675087166993e-06)
# For small t the errors add up to five units. There tanh x = x + x^3 R(x^2), with R of degree 4 by Chebyshev interpolation.
TANH32_SMALL = 0.64
TANH32_R = (
    -0.3333332786404945,
    0.13332663479523954,
    -0.05383514126453376,
    0.020924148182589093,
    -0.0059929612543525215,
)
# In float64 tanh x = m / (m + 2) with m = e^2x - 1; from 22 on it is 1.
TANH64_END = 22.0

# x = k ln 2 + r, |r| <= ln 2 / 2. ln 2 is split into two parts so that k times the first is exact (Cody and Waite 1980,
# "Software Manual for the Elementary Functions"). The series of e^r - 1 ends where a term is below half of the last place.
LN2 = {
    "float32": (0.693359375, -2.1219444005469058e-04),
    "float64": (6.93147180369123816490e-01, 1.90821492927058770002e-10),
}
TERMS = {"float32": 8, "float64": 14}
MANTISSA = {"float32": 23, "float64": 52}
BIAS = {"float32": 127, "float64": 1023}
# e to minus this rounds to 0, and 2^k can still be written as a product of two powers.
EXP_END = {"float32": 104.0, "float64": 746.0}

Function = Callable[[Lanes, Value], Value]


def tanh(v: Lanes, x: Value) -> Value:
    """tanh x."""
    return _tanh32(v, x) if v.dtype == "float32" else _tanh64(v, x)


def sigmoid(v: Lanes, x: Value) -> Value:
    """1 / (1 + e^-x): with e = e^-|x|, 1 / (1 + e) for x >= 0 and e / (1 + e) below, so that small values keep their digits."""
    b = v.builder
    k, q = _reduced(v, b.fneg(v.at_most(v.absolute(x), v.const(EXP_END[v.dtype]))))
    one = v.const(1.0)
    half = b.ashr(k, v.const_bits(1))
    # 2^k in two factors: a single power would be out of range where the result is subnormal.
    e = b.fmul(b.fmul(b.fadd(q, one), _power_of_two(v, half)), _power_of_two(v, b.sub(k, half)))
    return b.fdiv(b.select(b.fcmp_ordered("<", x, v.const(0.0)), e, one), b.fadd(one, e))


def relu(v: Lanes, x: Value) -> Value:
    """0 where x <= 0, else x: NaN stays."""
    return v.builder.select(v.builder.fcmp_ordered("<=", x, v.const(0.0)), v.const(0.0), x)


def identity(v: Lanes, x: Value) -> Value:
    """x unchanged."""
    return x


def _tanh32(v: Lanes, x: Value) -> Value:
    b = v.builder
    size = v.at_most(v.absolute(x), v.const(TANH32_END))
    u = b.fmul(size, size)
    n = v.fma(b.fmul(size, u), v.polynomial(TANH32_P, u), size)
    d = v.fma(u, v.polynomial(TANH32_Q, u), v.const(1.0))
    squares = v.fma(d, d, b.fmul(b.fmul(v.const(0.25), n), n))
    quotient = b.fdiv(b.fmul(n, d), squares)
    small = v.fma(b.fmul(size, u), v.polynomial(TANH32_R, u), size)
    quotient = b.select(b.fcmp_ordered("<", size, v.const(TANH32_SMALL)), small, quotient)
    return v.with_sign_of(v.at_most(quotient, v.const(1.0)), x)


def _tanh64(v: Lanes, x: Value) -> Value:
    b = v.builder
    size = v.at_most(v.absolute(x), v.const(TANH64_END))
    k, q = _reduced(v, b.fadd(size, size))
    power = _power_of_two(v, k)
    m = v.fma(power, q, b.fsub(power, v.const(1.0)))  # 2^k e^r - 1
    return v.with_sign_of(b.fdiv(m, b.fadd(m, v.const(2.0))), x)


def _reduced(v: Lanes, x: Value) -> tuple[Value, Value]:
    """k as integers and e^r - 1, for e^x = 2^k e^r."""
    b = v.builder
    # Adding 1.5 * 2^mantissa rounds to an integer, which is then in the last bits.
    shift = v.const(1.5 * 2.0 ** MANTISSA[v.dtype])
    shifted = v.fma(x, v.const(1 / math.log(2)), shift)
    k = b.fsub(shifted, shift)
    high, low = LN2[v.dtype]
    r = v.fma(k, v.const(-low), v.fma(k, v.const(-high), x))
    series = v.polynomial([1 / math.factorial(n) for n in range(2, TERMS[v.dtype])], r)
    q = v.fma(b.fmul(r, r), series, r)
    return b.sub(b.bitcast(shifted, v.integers), b.bitcast(shift, v.integers)), q


def _power_of_two(v: Lanes, k: Value) -> Value:
    b = v.builder
    return b.bitcast(b.shl(b.add(k, v.const_bits(BIAS[v.dtype])), v.const_bits(MANTISSA[v.dtype])), v.vector)


FUNCTIONS: dict[str, Function] = {"tanh": tanh, "relu": relu, "sigmoid": sigmoid, "identity": identity}
# Applied in a separate pass over a block of rows, so that their code is emitted once and not in every tile.
COSTLY = frozenset({"tanh", "sigmoid"})
