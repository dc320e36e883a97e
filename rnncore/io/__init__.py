"""Weights files: a network's description and parameters, written atomically, read without executing or trusting anything.

``.safetensors`` and ``.npz``, one module each; header.py has the description that both carry, files.py the file system.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnncore.errors import ArgumentTypeError, ArgumentValueError, FileFormatError
from rnncore.io import files, header, npz, safetensors

__all__ = ["Stored", "read", "write"]

_FORMATS = {".safetensors": safetensors, ".npz": npz}


@dataclass(frozen=True)
class Stored:
    """What a file holds.

    Attributes
    ----------
    config : dict
        As from ``RNNSpec.to_config``.
    params : dict of str to numpy.ndarray
        By torch's names in torch's order: weight_ih_l0 (H, I), weight_hh_l0 (H, H), bias_ih_l0 (H,), ...
    dtype : str
        The model's: "float16", "float32", "float64" or "bfloat16". The arrays are float32 if it is "bfloat16".
    """

    config: dict[str, Any]
    params: dict[str, np.ndarray[Any, Any]]
    dtype: str


def write(
    path: str | os.PathLike[str],
    config: Mapping[str, Any],
    params: Mapping[str, np.ndarray[Any, Any]],
    *,
    dtype: str,
) -> None:
    """Write a network to a file, all of it or nothing: on any failure what stood there before is still there.

    The same network gives the same bytes. A new file gets the permissions that ``open`` would give it, an existing one
    keeps its own; a symbolic link is followed.

    Parameters
    ----------
    path : str or path-like
        Ending in ``.safetensors`` or ``.npz``.
    config : mapping
        As from ``RNNSpec.to_config``.
    params : mapping of str to numpy.ndarray
        Every parameter by torch's name: weight_ih_l0 (H, I), weight_hh_l0 (H, H), bias_ih_l0 (H,), ... NaN and infinity
        are written as they are.
    dtype : {"float16", "float32", "float64", "bfloat16"}
        The model's. The arrays must have it; float32 for "bfloat16", which NumPy lacks, and nothing is lost by it.

    Raises
    ------
    ArgumentTypeError, ArgumentValueError
        Naming the argument; nothing has been written then.
    OSError
        If the file system refuses: no such directory, no permission, no space.

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
    text, description = header.describe(config, dtype)
    arrays = header.storable(description, params)
    files.replace(target, _FORMATS[_suffix(target)].encode(text, arrays))


def read(path: str | os.PathLike[str]) -> Stored:
    """Read what :func:`write` wrote. The file may come from a stranger: nothing in it is executed or taken on trust.

    Its own description of the network says which arrays it must hold; one that is missing, extra, of another shape or
    dtype, or overlaps another is an error, and so is a file that claims more than it holds, before memory is taken for it.

    Parameters
    ----------
    path : str or path-like
        Ending in ``.safetensors`` or ``.npz``.

    Returns
    -------
    Stored

    Raises
    ------
    FileNotFoundError
    FileFormatError
        Naming the path and what is wrong. Also for a file of bare parameters, with the way to load those.
    ArgumentTypeError, ArgumentValueError
        If `path` is not a path or ends otherwise.

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
        with files.open_regular(source) as file:
            description, params = _FORMATS[_suffix(source)].decode(file)
    except FileFormatError as error:
        raise FileFormatError(f"{source}: {error}") from error
    return Stored(description.config, params, description.dtype)


def _checked(path: Any) -> str:
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str):
        raise ArgumentTypeError(f"path: expected a str or path-like, got {type(path).__name__}")
    if _suffix(text) not in _FORMATS or "\0" in text:
        raise ArgumentValueError(f"path: expected a file name that ends in {' or '.join(_FORMATS)}, got {text!r}")
    return text


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1]
