"""Saving: a network to a file, in the format that the end of its name says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rnncore import interchange, io
from rnncore.arguments import brief, options_of
from rnncore.errors import ArgumentValueError
from rnncore.interchange.portable import Portable
from rnncore.io import atomic
from rnncore.io.paths import as_path

__all__ = ["check_suffix", "save"]


def save(network: Portable, path: str | Path, options: Mapping[str, Any]) -> None:
    """Write a network to a file, atomically: on any failure, an existing file is unchanged.

    Parameters
    ----------
    network : Portable
    path : str or Path
        The end of the name says the format. ``.safetensors`` and ``.npz`` hold the weights and the description of the network,
        for any backend; see :func:`rnncore.io.write`. ``.pt`` and ``.pth`` hold a state dict that ``torch.nn.RNN`` loads. The
        others are those of :data:`rnncore.interchange.FORMATS`.
    options : mapping
        Of the format, which its module documents. The four above have none.

    Raises
    ------
    ArgumentTypeError, ArgumentValueError, FileAccessError
    InterchangeError
        If the format cannot express the network.
    BackendUnavailableError
        If the format's library is missing.

    Examples
    --------
    >>> import os, tempfile, torch, rnncore
    >>> path = os.path.join(tempfile.mkdtemp(), "rnn.pt")
    >>> rnncore.RNN(5, 6, dtype="float32").save(path)
    >>> torch.nn.RNN(5, 6).load_state_dict(torch.load(path))
    <All keys matched successfully>
    """
    check_suffix(path)
    form = interchange.format_of(as_path(path))
    if form is None:
        options_of("save", options, ())
        io.write(path, network.spec.to_config(), network.params, dtype=network.dtype)
    else:
        options_of("save", options, form.OPTIONS)
        atomic.replace(path, lambda file: form.encode(file, network, **options))


def check_suffix(path: str | Path, argument: str = "path") -> None:
    """Require the end of a file's name to be that of a format.

    Raises
    ------
    ArgumentTypeError, ArgumentValueError
    """
    text = as_path(path)
    known = (*io.SUFFIXES, *interchange.FORMATS)
    if os.path.splitext(text)[1] not in io.SUFFIXES and interchange.format_of(text) is None:
        raise ArgumentValueError(
            f"{argument}: expected a file name that ends in one of {', '.join(known)}, got {brief(repr(text))}"
        )
