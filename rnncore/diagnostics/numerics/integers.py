"""Exact sums of products of floats in integer arithmetic, and the reason why the sum in floats overflowed.

Every float64 is an integer times 2^-1074, so a product of two is an integer times 2^-2148. Python's integers represent it, and
any sum of such products, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from rnncore.network.engine import Engine
from rnncore.typing import Host

__all__ = ["UNIT_BITS", "Cause", "Share", "explain", "log_of", "overflow_limit", "signs", "whole"]

Cause: TypeAlias = Literal[
    "input", "initial state", "parameter", "cotangent", "overflow", "inf - inf", "0 * inf", "nonlinearity"
]
UNIT_BITS = 1074


@dataclass(frozen=True)
class Share:
    """One part of a sum: its name, the names of its terms, and the terms as integer multiples of 2^-2148."""

    label: str
    labels: list[str]
    terms: list[int]

    @classmethod
    def of_products(cls, label: str, term: str, a: Host, b: Host) -> Share:
        """A share of the terms a_i b_i; `term` is their name with {0} for i."""
        terms = [whole(v) * whole(w) for v, w in zip(a.tolist(), b.tolist(), strict=True)]
        return cls(label, [term.format(i) for i in range(len(terms))], terms)

    @classmethod
    def of_numbers(cls, label: str, labels: list[str], numbers: Sequence[float]) -> Share:
        """A share of single numbers, not products."""
        return cls(label, labels, [whole(v) << UNIT_BITS for v in numbers])

    @property
    def total(self) -> int:
        """The exact sum, in units of 2^-2148."""
        return sum(self.terms)


def explain(shares: Sequence[Share], value: float, limit: int) -> tuple[Cause, str]:
    """Say why a sum of shares is not finite, from its exact terms."""
    found = _overflows(shares, limit)
    if math.isnan(value):
        both = [next((label for sign, label in found if sign == s), None) for s in (1, -1)]
        if None not in both:
            return "inf - inf", f"{both[0]} and {both[1]}"
    if found:
        return "overflow", found[0][1]
    every = " + ".join(s.label for s in shares if s.terms)
    if abs(sum(s.total for s in shares)) >= limit:
        return "overflow", every
    return ("inf - inf" if math.isnan(value) else "overflow"), f"partial sums of {every}"


def signs(shares: Sequence[Share], limit: int) -> list[int]:
    """The signs of all products and shares that overflow."""
    return [sign for sign, _ in _overflows(shares, limit)]


def _overflows(shares: Sequence[Share], limit: int) -> list[tuple[int, str]]:
    """(sign, name) of each product that overflows, then of each share that does."""
    terms = [(n, label) for s in shares for n, label in zip(s.terms, s.labels, strict=True)]
    sums = [(s.total, s.label) for s in shares]
    return [(1 if n > 0 else -1, label) for n, label in (*terms, *sums) if abs(n) >= limit]


def whole(x: float) -> int:
    """x in units of 2^-1074."""
    n, d = float(x).as_integer_ratio()
    return n * ((1 << UNIT_BITS) // d)


def log_of(n: int, factors: int) -> float:
    """ln |n 2^(-1074 factors)|."""
    if n == 0:
        return -math.inf
    bits = abs(n).bit_length()
    return math.log(abs(n) / (1 << bits)) + (bits - UNIT_BITS * factors) * math.log(2.0)


def overflow_limit(engine: Engine, factors: int) -> int:
    """The smallest magnitude that rounds to infinity in the network's dtype: half a step above its largest number."""
    info = engine.xp.finfo(engine.dtype)
    top, eps = float(info.max), float(info.eps)
    half_step = whole(top / (2 - eps) * eps) // 2
    return (whole(top) + half_step) << (UNIT_BITS * (factors - 1))
