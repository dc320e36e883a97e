"""Weights files: a network's description and parameters, written atomically and read without trusting the file.

The formats are ``.safetensors`` and ``.npz``, one module each. header.py has the description that both contain, atomic.py
the file system. To add a format, write a module with ``encode`` and ``decode`` and list it here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rnncore.arguments import brief
from rnncore.errors import ArgumentValueError, FileFormatError
from rnncore.io import atomic, header, npz, safetensors
from rnncore.io.entries import Entries
from rnncore.io.header import BareArraysError
from rnncore.io.paths import as_path, shown
from rnncore.typing import Host

__all__ = ["SUFFIXES", "Stored", "open_arrays", "read", "write"]

_FORMATS = {".safetensors": safetensors, ".npz": npz}
SUFFIXES = tuple(_FORMATS)


@dataclass(frozen=True)
class Stored:
    """Contents of a file.

    Attributes
    ----------
    config : dict
        As from ``RNNSpec.to_config``.
    params : dict of str to numpy.ndarray
        By torch's names in torch's order: weight_ih_l0 (H, I), weight_hh_l0 (H, H), bias_ih_l0 (H,), ...
    dtype : str
        Dtype of the model: "float16", "float32", "float64" or "bfloat16". The arrays are float32 if it is "bfloat16".
    """

    config: dict[str, Any]
    params: dict[str, Host]
    dtype: str


def write(path: str | os.PathLike[str], config: Mapping[str, Any], params: Mapping[str, Host], *, dtype: str) -> None:
    """Write a network to a file atomically: on any failure, an existing file is unchanged.

    The same network always gives the same bytes. A new file gets the permissions that ``open`` would give it, an existing
    one keeps its own; a symbolic link is followed.

    Parameters
    ----------
    path : str or path-like
        Ending in ``.safetensors`` or ``.npz``.
    config : mapping
        As from ``RNNSpec.to_config``.
    params : mapping of str to numpy.ndarray
        Every parameter by torch's name: weight_ih_l0 (H, I), weight_hh_l0 (H, H), bias_ih_l0 (H,), ... They may hold
        NaN and infinity.
    dtype : {"float16", "float32", "float64", "bfloat16"}
        Dtype of the model and of the arrays, which are float32 for "bfloat16": NumPy lacks it, and float32 holds it
        exactly.

    Raises
    ------
    ArgumentTypeError, ArgumentValueError
        Nothing has been written then.
    FileAccessError
        If the directory does not exist, or permission or space is lacking.
    MemoryError

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from rnncore import RNNSpec, io
    >>> spec = RNNSpec.make(5, 6, bias=False)
    >>> params = {name: np.ones(shape) for name, shape in spec.parameter_shapes().items()}
    >>> path = os.path.join(tempfile.mkdtemp(), "rnn.npz")
    >>> io.write(path, spec.to_config(), params, dtype="float64")
    >>> with np.load(path) as file:
    ...     file["weight_ih_l0"].shape
    (6, 5)
    """
    target = _checked(path)
    text, description = header.write_description(config, dtype)
    arrays = header.storable(description, params)
    atomic.replace(target, lambda file: _FORMATS[_suffix(target)].encode(file, text, arrays))


def read(path: str | os.PathLike[str]) -> Stored:
    """Read a file that :func:`write` wrote. It may be untrusted: nothing in it is executed.

    The description in the file determines the arrays. An array that is missing, unexpected, of another shape or dtype, or
    overlapping is an error. So is a file that claims more than it holds, before memory is allocated.

    Parameters
    ----------
    path : str or path-like
        Ending in ``.safetensors`` or ``.npz``.

    Returns
    -------
    Stored

    Raises
    ------
    FileAccessError
        Among them FileMissingError, which is a FileNotFoundError.
    FileFormatError
        If the file is damaged or has no description; for a file of bare parameters the message says how to load it.
    ArgumentTypeError, ArgumentValueError
        If `path` is not a path, or has another suffix.
    MemoryError
        No more memory is asked for than the arrays take.

    Examples
    --------
    >>> import os, tempfile, rnncore
    >>> path = os.path.join(tempfile.mkdtemp(), "rnn.safetensors")
    >>> rnncore.RNN(5, 6, rng=0).save(path)
    >>> stored = rnncore.io.read(path)
    >>> stored.dtype, stored.config["hidden_sizes"], stored.params["weight_hh_l0"].shape
    ('float64', [6], (6, 6))
    """
    source = _checked(path)
    try:
        with atomic.open_regular(source) as file:
            description, params = _FORMATS[_suffix(source)].decode(file)
    except BareArraysError as error:
        raise BareArraysError(shown(source)) from error
    except FileFormatError as error:
        raise FileFormatError(f"{shown(source)}: {error}") from error
    return Stored(description.config, params, description.dtype)


@contextmanager
def open_arrays(path: str | os.PathLike[str]) -> Iterator[Entries]:
    """Open a file of bare arrays, for which :func:`read` raises BareArraysError, as a context manager.

    Parameters
    ----------
    path : str or path-like
        Ending in ``.safetensors`` or ``.npz``.

    Yields
    ------
    Entries
        A mapping of names to NumPy arrays, each read when it is looked up, in the body.

    Raises
    ------
    FileAccessError
    FileFormatError
        If the file is damaged, or an array is looked up that has no floating dtype.
    ArgumentTypeError, ArgumentValueError
        If `path` is not a path, or has another suffix.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from rnncore import io
    >>> path = os.path.join(tempfile.mkdtemp(), "arrays.npz")
    >>> np.savez(path, a=np.ones(3), b=np.zeros((2, 2)))
    >>> with io.open_arrays(path) as arrays:
    ...     list(arrays), arrays["b"].shape
    (['a', 'b'], (2, 2))
    """
    source = _checked(path)
    try:
        with atomic.open_regular(source) as file, _FORMATS[_suffix(source)].arrays(file) as found:
            yield found
    except FileFormatError as error:
        raise FileFormatError(f"{shown(source)}: {error}") from error


def _checked(path: Any) -> str:
    text = as_path(path)
    if _suffix(text) not in _FORMATS:
        raise ArgumentValueError(
            f"path: expected a file name that ends in {' or '.join(_FORMATS)}, got {brief(repr(text))}"
        )
    return text


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1]
