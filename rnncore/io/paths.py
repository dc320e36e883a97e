"""Paths: which are accepted, how a message writes them, and the system's refusals as errors that name them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rnncore.arguments import describe
from rnncore.errors import ArgumentTypeError, ArgumentValueError, FileAccessError


def as_path(path: Any) -> str:
    """Return a path as text that the system can encode.

    Raises
    ------
    ArgumentTypeError, ArgumentValueError
    """
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str):
        raise ArgumentTypeError(f"path: expected a str or path-like, got {describe(path)}")
    if "\0" in text:
        raise ArgumentValueError(f"path: expected a name without a null character, got {text!r}")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        encoding = sys.getfilesystemencoding()
        raise ArgumentValueError(f"path: expected a name that can be encoded in {encoding}, got {text!r}") from None
    return text


def shown(path: str | os.PathLike[str]) -> str:
    """Write a path for a message: as it is if it is printable, else quoted and escaped.

    A name whose bytes are not UTF-8 has lone surrogates in Python, which cannot be printed.

    >>> from rnncore.io.paths import shown
    >>> shown("a b.npz"), shown("a\\udcff.npz")
    ('a b.npz', "'a\\\\udcff.npz'")
    """
    text = os.fspath(path)
    return text if text.isprintable() else repr(text)


@contextmanager
def named(path: str) -> Iterator[None]:
    """Raise an OSError of the body as a FileAccessError with this path; one of another file keeps its own."""
    try:
        yield
    except FileAccessError:
        raise
    except OSError as error:
        raise FileAccessError.of(error, path) from error
