"""Backends by name: the choice of one, its first use, the list of all, and the owner of an array.

What is imported when: names come from package metadata, which is read once. A plugin's own light module is imported when
its name is requested, when backends are listed, and when an array belongs neither to the preferred backend nor to the one
named like its library. An array library is imported only by :func:`get_backend`, for the requested name.

A plugin is foreign code: if it fails, the error becomes the reason why that one backend cannot be used. While a module is
imported, only the lock of the requested name is held; with one lock for all, a library that makes a model during its own
import could deadlock.

The choice is a ``ContextVar``. Asyncio tasks and ``asyncio.to_thread`` inherit it; a thread started with
``threading.Thread`` or an executor begins with the default. A model keeps the backend that it was made with.
"""

from __future__ import annotations

import importlib
import os
from contextvars import ContextVar, Token
from threading import RLock
from types import TracebackType

from rnncore.arguments import describe, one_line, shown
from rnncore.backend.contract import Backend
from rnncore.backend.discovery import BackendStatus, top_package
from rnncore.backend.forks import first_use
from rnncore.backend.plugin import MEMBERS, check_members, is_imported, is_native
from rnncore.backend.state import State
from rnncore.errors import ArgumentTypeError, ArgumentValueError, BackendUnavailableError
from rnncore.typing import Array

__all__ = ["BackendStatus", "backend_of", "backends", "get_backend", "selected_backend", "use_backend"]

FALLBACK_NAME = "numpy"
CHOICE_VARIABLE = "RNNCORE_BACKEND"

_chosen: ContextVar[str | None] = ContextVar("rnncore_backend", default=None)
_state = State()


def selected_backend() -> str:
    """Name of the backend of a new model: from ``use_backend``, else RNNCORE_BACKEND, else "numpy"."""
    return _chosen.get() or _variable() or FALLBACK_NAME


def _variable() -> str:
    return os.environ.get(CHOICE_VARIABLE, "").strip()


def get_backend(name: str | None = None) -> Backend:
    """Return a backend (see :class:`rnncore.backend.Backend`), with its library imported and a device to run on.

    Parameters
    ----------
    name : str, optional
        By default the selected one.

    Raises
    ------
    UnknownNameError
        If no installed package registers the name; the message lists the known ones with their states.
    BackendUnavailableError
        If the library is missing or broken, or has no usable device; the message quotes the library's own.

    Examples
    --------
    >>> import rnncore
    >>> rnncore.get_backend("numpy").native_package
    'numpy'
    """
    by_variable = name is None and _chosen.get() is None and _variable()
    argument = f"environment variable {CHOICE_VARIABLE}" if by_variable else "backend"
    name = selected_backend() if name is None else _checked_name(name)
    state = _state
    if name not in state.ready:
        with first_use:
            plugin = state.plugin(state.claim(name, argument))
            with state.locks.setdefault(name, RLock()):
                if name not in state.ready:
                    state.prepare(name, plugin)
    return state.ready[name]


def resolve_backend(backend: str | Backend | None) -> Backend:
    """Return the backend of that name, the selected one for None, or the plugin itself, which need not be registered.

    Raises
    ------
    UnknownNameError, BackendUnavailableError, ArgumentTypeError
    """
    if backend is None or isinstance(backend, str):
        return get_backend(backend)
    # Not isinstance: from Python 3.12 on, a Protocol ignores what an object provides by __getattr__.
    missing = [n for n in MEMBERS if not hasattr(backend, n)]
    if missing:
        raise ArgumentTypeError(
            f"backend: expected a name or a backend, got {shown(backend)}, which lacks {', '.join(missing)}"
        )
    check_members(backend, "backend: the object")
    return backend


def backends() -> list[BackendStatus]:
    """List every registered backend with its state, without importing an array library.

    A plugin that cannot be loaded is listed with its error. Entry points that are not used have rows of their own: those
    with one of rnncore's names, and all that register the same name. No two rows have the same name.

    Examples
    --------
    >>> import rnncore
    >>> [b.name for b in rnncore.backends() if b.name == "numpy"]
    ['numpy']
    """
    return _state.statuses()


def backend_of(*arrays: Array | None, prefer: str | None = None) -> Backend:
    """Return the backend of these arrays. For computing, the arrays decide and never the selection.

    If several backends claim an array, as NumPy and Numba do, the one named `prefer` wins if it is among them; then the
    one whose library defines the array's type, then rnncore's own, then the one named like the library.

    Raises
    ------
    ArgumentTypeError
        If an array belongs to no registered backend, or the arrays belong to different ones.
    """
    given = [x for x in arrays if x is not None]
    if not given:
        raise ArgumentTypeError("expected at least one array")
    name = _owner(given[0], prefer)
    found = get_backend(name)
    for x in given[1:]:
        if not is_native(name, found, x):
            raise ArgumentTypeError(
                f"expected arrays of one library, got {describe(given[0])} and {describe(x)}; "
                f"convert with rnncore.get_backend({name!r}).asarray(x)"
            )
    return found


def owner_name(x: object) -> str | None:
    """Name of the backend of an array, among those whose library is already imported; None if there is none."""
    try:
        return _owner(x, None)
    except ArgumentTypeError:
        return None


def refresh() -> None:
    """Forget all discovered backends, for a process that installs a plugin while it runs."""
    global _state
    from importlib.metadata import MetadataPathFinder

    importlib.invalidate_caches()
    MetadataPathFinder().invalidate_caches()  # which the line above does from Python 3.12 on
    # Replaced, not cleared: a thread that is preparing a backend stores it where it is no longer looked up.
    _state = State()


# --- the choice -------------------------------------------------------------------------------------------------------


class use_backend:
    """Choose the backend of new models, as a statement or as a context manager that restores the choice.

    Parameters
    ----------
    name : str

    Raises
    ------
    UnknownNameError
        If there is no such backend. Nothing is imported: a known backend that cannot be used is reported when it is
        first needed.

    Examples
    --------
    >>> import rnncore
    >>> with rnncore.use_backend("numpy"):
    ...     rnncore.RNN(5, 6).backend
    'numpy'
    """

    def __init__(self, name: str) -> None:
        _state.claim(_checked_name(name))
        self.name = name
        self._tokens: list[Token[str | None]] = [_chosen.set(name)]
        self._entered = 0

    def __enter__(self) -> use_backend:
        self._entered += 1
        if self._entered > len(self._tokens):  # entered again
            self._tokens.append(_chosen.set(self.name))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._entered:
            raise ArgumentValueError(f"{self!r}: left without having been entered; use it in a with statement")
        if _chosen.get() != self.name:
            raise ArgumentValueError(
                f"{self!r}: expected to be the choice when it is left, got {shown(_chosen.get())}: leave contexts in the "
                "reverse order of entering, and in the same thread"
            )
        self._entered -= 1
        _chosen.reset(self._tokens.pop())

    def __repr__(self) -> str:
        return f"use_backend({self.name!r})"


def _checked_name(name: object) -> str:
    if not isinstance(name, str):
        raise ArgumentTypeError(f"backend: expected a name, got {shown(name)}")
    return name


# --- who owns an array ------------------------------------------------------------------------------------------------


def _owner(x: object, prefer: str | None) -> str:
    """Name of the backend of an array. Its library is imported, since x exists."""
    state = _state
    packages = [top_package(str(kind.__module__)) for kind in type(x).__mro__]
    # A list, a number or None is no array, and no reason to load every plugin.
    names = () if packages[0] == "builtins" else state.scan.claims
    faults = list(state.scan.contests.values())
    claimants: list[tuple[int, bool, bool, str]] = []
    for name in sorted(names, key=lambda n: (n != prefer, n != packages[0], n)):
        claim = state.scan.claims[name]
        try:
            plugin = state.plugin(claim, retry=False)
            if not is_imported(plugin.package) or not is_native(name, plugin.backend, x):
                continue
        except BackendUnavailableError as error:
            faults.append(one_line(str(error)))
            continue
        if name == prefer or (claim.ours and name == plugin.package == packages[0]):
            return name  # none can come before it, so no other plugin need be loaded
        # The nearest class in the mro that comes from the plugin's library: claiming every array wins none.
        package = top_package(plugin.package)
        depth = packages.index(package) if package in packages else len(packages)
        claimants.append((depth, not claim.ours, name != plugin.package, name))
    if not claimants:
        asked = f"; could not be asked: {'; '.join(faults)}" if faults else ""
        known = ", ".join(state.scan.claims)
        raise ArgumentTypeError(f"expected an array of a registered backend ({known}), got {describe(x)}{asked}")
    return min(claimants)[-1]
