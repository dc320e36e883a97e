"""Checks of arguments: numbers, names, mappings and shapes, each with an error "name: expected ..., got ..."."""

from __future__ import annotations

import math
import operator
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from numbers import Real
from typing import Any, TypeAlias

import numpy as np

from rnncore.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    ShapeError,
)
from rnncore.typing import Array


def check_mapping(argument: str, value: Any) -> None:
    """The value must be a mapping of names to arrays."""
    if not isinstance(value, Mapping):
        raise ArgumentTypeError(f"{argument}: expected a mapping of names to arrays, got {describe(value)}")


def check_shape(argument: str, x: Array, shape: Sequence[int | None]) -> None:
    """x must have this shape (None: any size)."""
    got = tuple(x.shape)
    if len(got) != len(shape) or any(w is not None and w != g for w, g in zip(shape, got, strict=True)):
        want = "(" + ", ".join("*" if n is None else str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"
        raise ShapeError(f"{argument}: expected shape {want}, got {got}")


def elements(shape: Iterable[int]) -> int:
    """The product of a shape with Python integers, which cannot overflow."""
    return math.prod(shape)


Rng: TypeAlias = "np.random.Generator | int | None"


def as_generator(rng: Rng) -> np.random.Generator:
    """A NumPy generator from a generator, a seed, or None for fresh entropy (SPEC 7)."""
    if isinstance(rng, np.random.Generator):
        return rng
    if rng is not None and (isinstance(rng, bool) or not isinstance(rng, (int, np.integer))):
        raise ArgumentTypeError(f"rng: expected a numpy.random.Generator, an int or None, got {describe(rng)}")
    if rng is not None and rng < 0:
        raise ArgumentValueError(f"rng: expected a seed >= 0, got {rng}")
    return np.random.default_rng(rng)


def non_negative(argument: str, value: Any, *, finite: bool = True) -> float:
    """The value as a float >= 0, or an error that names the argument. Booleans are not numbers here."""
    what = "a finite number >= 0" if finite else "a number >= 0"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ArgumentTypeError(f"{argument}: expected {what}, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        raise ArgumentValueError(f"{argument}: expected {what}, got an integer too large for a float") from None
    if not number >= 0 or (finite and math.isinf(number)):
        raise ArgumentValueError(f"{argument}: expected {what}, got {value!r}")
    return number


def describe(x: object) -> str:
    """A type's name for a message: ``numpy.ndarray``, ``list``."""
    kind = type(x)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def closest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: "; did you mean 'x'?", or "" if no known name is close."""
    found = get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def one_line(text: str) -> str:
    """A library's words for a message or a table: no line breaks, nothing that moves a terminal's cursor."""
    return " ".join(
        "".join(c if c.isprintable() else " " for c in re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]", "", text)).split()
    )


PRINTED_BITS = 256


def positive_int(name: str, value: Any) -> int:
    """The value as a Python int >= 1, or an error that names the argument. Booleans are not integers here."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ArgumentTypeError(f"{name}: expected an int >= 1, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise ArgumentTypeError(f"{name}: expected an int >= 1, got {value!r}") from None
    if number < 1:
        raise ArgumentValueError(f"{name}: expected an int >= 1, got {_digits(number)}")
    return number


def probability(name: str, value: Any) -> float:
    """The value as a float in [0, 1], or an error that names the argument."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ArgumentTypeError(f"{name}: expected a number in [0, 1], got {value!r}")
    if not (0.0 <= value <= 1.0) or math.isnan(value):
        raise ArgumentValueError(f"{name}: expected a number in [0, 1], got {value!r}")
    return float(value)


def check_bytes(what: str, count: int, item_bytes: int) -> None:
    """Refuse, before anything is allocated, an array that no address or no memory of this machine could hold."""
    needed = count * item_bytes
    limit = min(sys.maxsize, _physical_memory())
    if needed > limit:
        raise ArgumentValueError(
            f"{what}: {_digits(count)} numbers need {_digits(needed)} bytes, and at most {limit} bytes can be had here"
        )


def _digits(n: int) -> str:
    """The number for a message; Python refuses to print one of some thousand digits."""
    return str(n) if n.bit_length() <= PRINTED_BITS else f"about 2**{n.bit_length()}"


def _physical_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a POSIX system: the address space is the only known limit
        return sys.maxsize
