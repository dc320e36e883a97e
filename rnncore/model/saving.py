"""Saving: a network to a file, in the format that the end of its name says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rnncore import interchange, io
from rnncore.arguments import options_of
from rnncore.interchange.portable import Portable
from rnncore.io import atomic
from rnncore.io.paths import as_path

__all__ = ["save"]


def save(network: Portable, path: str | Path, options: Mapping[str, Any]) -> None:
    """Write a network to a file, atomically: on any failure, an existing file is unchanged.

    Parameters
    ----------
    network : Portable
    path : str or Path
        ``.safetensors`` and ``.npz`` hold weights and description; see :func:`rnncore.io.write`. The other formats are those
        of :data:`rnncore.interchange.FORMATS`.
    options : mapping
        Of the format, which its module documents; ``.safetensors`` and ``.npz`` have none.

    Raises
    ------
    ArgumentTypeError, ArgumentValueError, FileAccessError
    InterchangeError
        If the format cannot express the network.
    """
    form = interchange.format_of(as_path(path))
    if form is None:
        options_of("save", options, ())
        io.write(path, network.spec.to_config(), network.params, dtype=network.dtype)
    else:
        options_of("save", options, form.OPTIONS)
        atomic.replace(path, lambda file: form.encode(file, network, **options))
