"""Every error that rnncore raises on purpose: one base class, and kinds that are also the built-in a caller would expect.

A message names the argument, says what was expected and what was got. Nothing has been changed or written when one is
raised.
"""

from __future__ import annotations

__all__ = [
    "ArgumentTypeError",
    "ArgumentValueError",
    "BackendUnavailableError",
    "DTypeError",
    "DeviceError",
    "FileFormatError",
    "KernelUnsupportedError",
    "NonFiniteError",
    "RnncoreError",
    "ShapeError",
    "StateDictError",
    "UnknownNameError",
]


class RnncoreError(Exception):
    """Base class of every error that rnncore raises on purpose."""


class ArgumentValueError(RnncoreError, ValueError):
    """An argument of the right type has a value that cannot be used."""


class ArgumentTypeError(RnncoreError, TypeError):
    """An argument has the wrong type, or is an array of another library."""


class ShapeError(RnncoreError, ValueError):
    """An array has the wrong rank or the wrong size along an axis."""


class DTypeError(RnncoreError, TypeError):
    """An array has another dtype than the model's."""


class DeviceError(RnncoreError, ValueError):
    """An array, or a request, names another device than the model's, or one that is not there."""


class UnknownNameError(RnncoreError, ValueError):
    """A backend, nonlinearity, initialiser or mode of that name is not known."""


class BackendUnavailableError(RnncoreError, ImportError):
    """A backend is known but cannot be used here: its library is missing, or has no usable device."""


class KernelUnsupportedError(RnncoreError, RuntimeError):
    """``kernel="require"`` was asked for and the backend's own scan does not take the request."""


class StateDictError(RnncoreError, ValueError):
    """A mapping of parameters does not fit the network: every misfit is listed at once."""


class FileFormatError(RnncoreError, ValueError):
    """A weights file is truncated, malformed, or claims more than it holds."""


class NonFiniteError(RnncoreError, ValueError):
    """``check_finite=True`` found NaN or infinity: the message has the array's name and the first index."""
