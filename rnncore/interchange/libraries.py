"""Libraries that are imported only when one of their modules or files is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from rnncore.arguments import brief
from rnncore.errors import BackendUnavailableError

__all__ = ["needed"]


def needed(module: str, extra: str, what: str) -> Any:
    """Import a library's module for what the caller does.

    Parameters
    ----------
    module : str
        As in an import statement.
    extra : str
        The extra of rnncore that installs it.
    what : str
        What needs it, as the message begins.

    Raises
    ------
    BackendUnavailableError
        If it is not installed or cannot be imported; the message has the command that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        top = module.partition(".")[0]
        missing = isinstance(error, ModuleNotFoundError) and error.name == top
        reason = "" if missing else f", which cannot be imported ({brief(error)})"
        raise BackendUnavailableError(f'{what} needs {top}{reason}: pip install "rnncore[{extra}]"') from error
