"""Loading: a model from a file, on any backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rnncore import interchange, io
from rnncore.arguments import shown as shown_value
from rnncore.backend.contract import Backend
from rnncore.errors import ArgumentValueError, FileFormatError, InterchangeError, RnncoreError, StateDictError
from rnncore.interchange.arrays import read_arrays
from rnncore.interchange.portable import Asked, Portable
from rnncore.io import atomic
from rnncore.io.header import BareArraysError
from rnncore.io.paths import as_path, shown
from rnncore.model.exchange import model_of
from rnncore.model.rnn import RNN
from rnncore.model.saving import check_suffix
from rnncore.spec import RNNSpec
from rnncore.typing import KernelMode

__all__ = ["load", "read"]


def load(
    path: str | Path,
    *,
    name: str | None = None,
    nonlinearity: Any = None,
    batch_first: bool | None = None,
    backend: str | Backend | None = None,
    device: Any = None,
    dtype: Any = None,
    kernel: KernelMode = "auto",
    check_finite: bool = False,
) -> RNN:
    """Read a model from a file, on any backend. Nothing in the file is executed.

    Parameters
    ----------
    path : str or Path
        ``.safetensors`` or ``.npz``, as :meth:`RNN.save` writes them or with arrays alone, as PyTorch, MLX and others do; or a
        format in :data:`rnncore.interchange.FORMATS`, such as PyTorch's ``.pt``.
    name : str, optional
        The network to read, of another library's file that holds several: the path before its arrays' names.
    nonlinearity : optional
        The user's own function, if the model was made with one: a file does not hold code. Of another library's file that does
        not say it, any nonlinearity; there is no default.
    batch_first : bool, optional
        Of another library's file that does not say it.
    backend, device, kernel, check_finite
        As for :class:`RNN`.
    dtype : optional
        By default the one the model was saved with; a bfloat16 model needs another on NumPy, which has no bfloat16.

    Raises
    ------
    FileAccessError
        Among them FileMissingError, which is a FileNotFoundError.
    FileFormatError
        If the file is truncated or malformed, or claims more than it holds.
    InterchangeError
        If another library's network has what no network of rnncore's has.

    Warns
    -----
    UserWarning
        Of what another library's file holds beside the network.

    Examples
    --------
    >>> import os, tempfile, rnncore
    >>> path = os.path.join(tempfile.mkdtemp(), "rnn.safetensors")
    >>> rnncore.RNN(5, 6, rng=0).save(path)
    >>> rnncore.load(path)
    RNN(5, 6, backend='numpy', device='cpu', dtype='float64')
    """
    found = read(path, Asked(name, nonlinearity, batch_first))
    try:
        return model_of(found, backend=backend, device=device, dtype=dtype, kernel=kernel, check_finite=check_finite)
    except StateDictError as error:
        raise FileFormatError(f"{shown(path)}: {error}") from error


def read(path: str | Path, asked: Asked) -> Portable:
    """Read a network from a file, without a backend. Arguments and errors are those of :func:`load`."""
    form = interchange.format_of(as_path(path))
    try:
        if form is None:
            check_suffix(path)
            return _own(path, asked)
        with atomic.open_regular(path) as file:
            found: Portable = form.decode(file, asked)
    except (FileFormatError, InterchangeError) as error:
        text, begin = str(error), f"{shown(path)}: "
        raise type(error)(text if text.startswith(begin) else begin + text) from error
    return found


def _own(path: str | Path, asked: Asked) -> Portable:
    """Read a file of one of rnncore's own formats: with its description, or, where the caller says the rest, without."""
    try:
        stored = io.read(path)
    except BareArraysError:
        if asked.nonlinearity is None or asked.batch_first is None:
            raise
        with io.open_arrays(path) as arrays:
            return read_arrays(arrays, asked, source="a file of arrays", bfloat16=arrays.bfloat16)
    if asked.name is not None:
        raise ArgumentValueError(f"name: expected None, as {shown(path)} is one network, got {shown_value(asked.name)}")
    custom = stored.config.get("custom_nonlinearity") is True
    try:
        spec = RNNSpec.from_config(stored.config, nonlinearity=asked.nonlinearity if custom else None)
    except RnncoreError as error:
        if custom:
            raise  # the argument is wrong, not the file
        raise FileFormatError(f"{shown(path)}: its description of the network is not valid: {error}") from error
    if not custom:
        asked.settle("nonlinearity", spec.nonlinearity)
    asked.settle("batch_first", spec.batch_first)
    return Portable(spec, stored.params, stored.dtype)
