"""The errors that rnncore raises: one base class, and subclasses that are also the usual built-in exceptions.

A message names the argument, and says what was expected and what was given. When one is raised, nothing has been changed
or written.
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
    """Base class of the errors that rnncore raises on purpose."""


class ArgumentValueError(RnncoreError, ValueError):
    """An argument of the right type has a value that cannot be used."""


class ArgumentTypeError(RnncoreError, TypeError):
    """An argument has the wrong type, or is an array of another library."""


class ShapeError(RnncoreError, ValueError):
    """An array has the wrong rank or the wrong size along an axis."""


class DTypeError(RnncoreError, TypeError):
    """An array's dtype is not the model's, or not one that the device supports."""


class DeviceError(RnncoreError, ValueError):
    """A device is not the model's, or does not exist."""


class UnknownNameError(RnncoreError, ValueError):
    """No backend, nonlinearity, initialiser or mode has that name."""


class BackendUnavailableError(RnncoreError, ImportError):
    """A backend is known but cannot be used: its library is missing or broken, or has no usable device."""


class KernelUnsupportedError(RnncoreError, RuntimeError):
    """With ``kernel="require"``, the backend's own scan does not support the request."""


class StateDictError(RnncoreError, ValueError):
    """A mapping of parameters does not fit the network; the message lists every mismatch."""


class FileFormatError(RnncoreError, ValueError):
    """A weights file is truncated, malformed, or claims more than it holds."""


class NonFiniteError(RnncoreError, ValueError):
    """``check_finite=True`` found NaN or infinity; the message has the array's name and the first index."""
