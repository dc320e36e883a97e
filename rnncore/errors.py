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
    "FileAccessError",
    "FileFormatError",
    "FileIsDirectoryError",
    "FileMissingError",
    "FileNotInDirectoryError",
    "FilePermissionError",
    "InterchangeError",
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


class InterchangeError(RnncoreError, ValueError):
    """A network cannot be converted exactly: one side has, or demands, what the other cannot say. The message names it."""


class FileAccessError(RnncoreError, OSError):
    """The system refuses to open, read, write or rename a file; `strerror` is its reason, and `filename` the path.

    Its subclasses are also the FileNotFoundError, PermissionError, IsADirectoryError or NotADirectoryError of the same
    reason.
    """

    @classmethod
    def of(cls, error: OSError, path: str) -> FileAccessError:
        """Make one of the system's own error, with the path that the caller gave."""
        kind = next((kind for builtin, kind in _KINDS.items() if isinstance(error, builtin)), FileAccessError)
        return kind(error.errno, error.strerror or str(error), path)


class FileMissingError(FileAccessError, FileNotFoundError):
    """There is no such file or directory."""


class FilePermissionError(FileAccessError, PermissionError):
    """The file or its directory does not permit it."""


class FileIsDirectoryError(FileAccessError, IsADirectoryError):
    """A file was expected, and it is a directory."""


class FileNotInDirectoryError(FileAccessError, NotADirectoryError):
    """A directory was expected on the way to the file, and it is none."""


_KINDS: dict[type[OSError], type[FileAccessError]] = {
    FileNotFoundError: FileMissingError,
    PermissionError: FilePermissionError,
    IsADirectoryError: FileIsDirectoryError,
    NotADirectoryError: FileNotInDirectoryError,
}


class NonFiniteError(RnncoreError, ValueError):
    """``check_finite=True`` found NaN or infinity; the message has the array's name and the first index."""
