"""Loading: a model from a weights file, on any backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rnncore import io
from rnncore.backend.contract import Backend
from rnncore.errors import FileFormatError, RnncoreError, StateDictError
from rnncore.io.paths import shown
from rnncore.model.rnn import RNN
from rnncore.spec import RNNSpec
from rnncore.typing import KernelMode

__all__ = ["load"]


def load(
    path: str | Path,
    *,
    backend: str | Backend | None = None,
    device: Any = None,
    dtype: Any = None,
    nonlinearity: Any = None,
    kernel: KernelMode = "auto",
    check_finite: bool = False,
) -> RNN:
    """Read a model that :meth:`RNN.save` wrote, on any backend. Nothing in the file is executed.

    Parameters
    ----------
    path : str or Path
        ``.safetensors`` or ``.npz``.
    backend, device, kernel, check_finite
        As for :class:`RNN`.
    dtype : optional
        By default the one the model was saved with; a bfloat16 model needs another on NumPy, which has no bfloat16.
    nonlinearity : optional
        The user's own function, if the model was made with one: a file does not hold code.

    Raises
    ------
    FileAccessError
        Among them FileMissingError, which is a FileNotFoundError.
    FileFormatError
        If the file is truncated or malformed, or claims more than it holds.

    Examples
    --------
    >>> import os, tempfile, rnncore
    >>> path = os.path.join(tempfile.mkdtemp(), "rnn.safetensors")
    >>> rnncore.RNN(5, 6, rng=0).save(path)
    >>> rnncore.load(path)
    RNN(5, 6, backend='numpy', device='cpu', dtype='float64')
    """
    stored = io.read(path)
    try:
        spec = RNNSpec.from_config(stored.config, nonlinearity=nonlinearity)
    except RnncoreError as error:
        if (nonlinearity is None) == (stored.config.get("custom_nonlinearity") is True):
            raise  # the argument is wrong, not the file
        raise FileFormatError(f"{shown(path)}: its description of the network is not valid: {error}") from error
    try:
        return RNN.from_spec(
            spec,
            stored.params,
            backend=backend,
            device=device,
            dtype=stored.dtype if dtype is None else dtype,
            kernel=kernel,
            check_finite=check_finite,
        )
    except StateDictError as error:
        raise FileFormatError(f"{shown(path)}: {error}") from error
