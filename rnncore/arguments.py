"""Checks of arguments: numbers, flags, names, mappings and shapes.

Each check raises an error of the form "name: expected ..., got ...".
"""

from __future__ import annotations

import math
import operator
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from numbers import Real
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from rnncore.errors import ArgumentTypeError, ArgumentValueError, ShapeError, UnknownNameError
from rnncore.typing import Array

Rng: TypeAlias = "np.random.Generator | int | None"

PRINTED_BITS = 256
# Characters of a foreign text within a message, and of one that is kept with its lines.
SHOWN, KEPT = 300, 3000


# --- numbers ----------------------------------------------------------------------------------------------------------


def real(
    argument: str, value: Any, expected: str = "a finite number", accept: Callable[[float], bool] = math.isfinite
) -> float:
    """Return the value as a float if it is a real number that `accept` takes. A bool is not a number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ArgumentTypeError(f"{argument}: expected {expected}, got {shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        raise ArgumentValueError(f"{argument}: expected {expected}, got an integer too large for a float") from None
    if not accept(number):
        raise ArgumentValueError(f"{argument}: expected {expected}, got {shown(value)}")
    return number


def non_negative(argument: str, value: Any, *, finite: bool = True) -> float:
    """Return the value as a float >= 0."""
    if finite:
        return real(argument, value, "a finite number >= 0", lambda x: 0 <= x < math.inf)
    return real(argument, value, "a number >= 0", lambda x: x >= 0)


def positive(argument: str, value: Any) -> float:
    """Return the value as a finite float > 0."""
    return real(argument, value, "a finite number > 0", lambda x: 0 < x < math.inf)


def probability(argument: str, value: Any) -> float:
    """Return the value as a float in [0, 1]."""
    return real(argument, value, "a number in [0, 1]", lambda x: 0 <= x <= 1)


def fraction(argument: str, value: Any) -> float:
    """Return the value as a float in [0, 1)."""
    return real(argument, value, "a number in [0, 1)", lambda x: 0 <= x < 1)


def integer(argument: str, value: Any, expected: str, accept: Callable[[int], bool]) -> int:
    """Return the value as an int if it is an integer that `accept` takes. A bool is not an integer."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, (bool, np.bool_)):
        raise ArgumentTypeError(f"{argument}: expected {expected}, got {shown(value)}")
    if not accept(number):
        raise ArgumentValueError(f"{argument}: expected {expected}, got {digits(number)}")
    return number


def positive_int(argument: str, value: Any) -> int:
    """Return the value as an int >= 1."""
    return integer(argument, value, "an int >= 1", lambda n: n >= 1)


def non_negative_int(argument: str, value: Any) -> int:
    """Return the value as an int >= 0."""
    return integer(argument, value, "an int >= 0", lambda n: n >= 0)


def as_generator(rng: Rng) -> np.random.Generator:
    """Return a NumPy generator from a generator, a seed, or None for fresh entropy."""
    if isinstance(rng, np.random.Generator):
        return rng
    if rng is not None and (isinstance(rng, bool) or not isinstance(rng, (int, np.integer))):
        raise ArgumentTypeError(f"rng: expected a numpy.random.Generator, an int or None, got {describe(rng)}")
    if rng is not None and rng < 0:
        raise ArgumentValueError(f"rng: expected a seed >= 0, got {shown(rng)}")
    return np.random.default_rng(rng)


def sequence(argument: str, value: Any, expected: str) -> list[Any]:
    """Return the items of a list, tuple, range or vector of NumPy's; text, mappings and sets are none."""
    if isinstance(value, (list, tuple, range)) or (isinstance(value, np.ndarray) and value.ndim == 1):
        return list(value)
    raise ArgumentTypeError(f"{argument}: expected {expected}, got {describe(value)}")


# --- flags, names, mappings, shapes -----------------------------------------------------------------------------------


def flag(argument: str, value: Any) -> bool:
    """Return the value if it is True or False."""
    if not isinstance(value, bool):
        raise ArgumentTypeError(f"{argument}: expected True or False, got {shown(value)}")
    return value


def one_of(argument: str, value: Any, known: Iterable[str]) -> str:
    """Return the value if it is one of the known names; an error suggests the closest one."""
    names = tuple(known)
    if not isinstance(value, str):
        raise ArgumentTypeError(f"{argument}: expected one of {', '.join(names)}, got {shown(value)}")
    if value not in names:
        hint = closest(value, names)
        raise UnknownNameError(f"{argument}: expected one of {', '.join(names)}, got {shown(value)}{hint}")
    return value


def closest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the known name closest to this one, or "" if none is close.

    >>> from rnncore.arguments import closest
    >>> closest("thanh", ["relu", "tanh"])
    "; did you mean 'tanh'?"
    """
    names = list(known)
    close = get_close_matches(name, names, n=1) or get_close_matches(name.lower(), names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_mapping(argument: str, value: Any, of: str = "names to arrays") -> None:
    """Require a mapping."""
    if not isinstance(value, Mapping):
        raise ArgumentTypeError(f"{argument}: expected a mapping of {of}, got {describe(value)}")


def options_of(what: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Refuse an option that is not among the known ones, as Python does for a keyword argument."""
    for name in given:
        if name not in known:
            have = f"it has {', '.join(known)}" if known else "it has none here"
            raise ArgumentTypeError(f"{what}: unexpected option {name!r}; {have}{closest(name, known)}")


def check_shape(argument: str, x: Array, shape: Sequence[int | None]) -> None:
    """Require this shape; None stands for any size."""
    got = tuple(x.shape)
    if got == shape:
        return
    if len(got) != len(shape) or any(w is not None and w != g for w, g in zip(shape, got, strict=True)):
        want = "(" + ", ".join("*" if n is None else str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"
        raise ShapeError(f"{argument}: expected shape {want}, got {got}")


def elements(shape: Iterable[int]) -> int:
    """Number of elements of a shape, in Python integers, which cannot overflow."""
    return math.prod(shape)


def are_known(*sizes: Any) -> bool:
    """Whether sizes are numbers. In a function that is compiled for any size a library has symbols for them."""
    return all(isinstance(n, (int, np.integer)) for n in sizes)


def check_known(argument: str, what: str, *sizes: Any) -> None:
    """Require sizes that are numbers, for `what`, which is laid out on the host."""
    if not are_known(*sizes):
        raise ArgumentValueError(
            f"{argument}: expected known sizes, as {what} on the host, got {brief(', '.join(map(printed, sizes)))}"
        )


def check_bytes(what: str, count: int, item_bytes: int) -> None:
    """Refuse an array larger than the memory that this process may use, before allocating anything.

    A size that is not known yet is not checked.
    """
    needed = count * item_bytes
    if are_known(needed) and needed > MEMORY:
        raise ArgumentValueError(
            f"{what}: {digits(count)} numbers need {digits(needed)} bytes, and this process has {MEMORY} at most"
        )


# --- texts for messages -----------------------------------------------------------------------------------------------


def describe(x: object) -> str:
    """Name of a type for a message: ``numpy.ndarray``, ``list``."""
    kind = type(x)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def one_line(text: str) -> str:
    """Put a library's text on one line, without characters that move a terminal's cursor."""
    return " ".join(_printable(text).split())


def lines(message: object) -> str:
    """Return a foreign text with its lines, of at most some 3000 characters that can all be printed and encoded."""
    return "\n".join(map(_printable, _shortened(str(message), KEPT).splitlines()))


def shown(value: object) -> str:
    """Write any value for a message: its repr, on one line of at most some 300 characters, or else its type."""
    if type(value) is int:
        return digits(value)
    try:
        return brief(repr(value))
    except (
        Exception
    ):  # a user's class: what is wrong with the value is the error to raise, not what is wrong with its repr
        return describe(value)


def printed(value: object) -> str:
    """Return ``str(value)``, or the name of its type where that fails."""
    try:
        return str(value)
    except Exception:  # as in `shown`; and Python refuses to print integers of several thousand digits
        return describe(value)


def check_kind(argument: str, value: Any, kind: type | tuple[type, ...], expected: str) -> None:
    """Require an instance of a class or of one of several; `expected` says how to get one."""
    if not isinstance(value, kind):
        raise ArgumentTypeError(f"{argument}: expected {expected}, got {describe(value)}")


def brief(message: object) -> str:
    """Put a foreign text on one line of at most some 300 characters, so that it cannot flood a message."""
    return one_line(_shortened(str(message), SHOWN))


def _shortened(text: str, most: int) -> str:
    """The text, or its first two thirds and last third of `most` characters, with the number of those left out."""
    last = most // 3
    first = most - last
    left_out = len(text) - most
    return text if left_out <= 0 else f"{text[:first]} [... {left_out} characters left out ...] {text[-last:]}"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]", "", text))


def digits(n: int) -> str:
    """Write an integer for a message; Python refuses to print one of several thousand digits."""
    return str(n) if n.bit_length() <= PRINTED_BITS else f"about 2**{n.bit_length()}"


def _memory() -> int:
    """The smallest of the limits that are known: the address space, the machine's memory, the container's and the shell's."""
    limits = [sys.maxsize]
    with suppress(AttributeError, ValueError, OSError):  # no POSIX system
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in CONTAINER_LIMITS:
        with suppress(OSError, ValueError):  # no such file, or the word "max"
            limits.append(int(Path(path).read_text(encoding="ascii")))
    with suppress(ImportError, ValueError, OSError):  # no POSIX system
        import resource

        limits += [n for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA) if (n := resource.getrlimit(kind)[0]) > 0]
    return min(limits)


# Where Linux says how much memory a container has: version 2 and version 1 of its control groups.
CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
MEMORY = _memory()  # found once, so that compilers need not trace it
