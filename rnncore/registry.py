"""Backends by name: found through entry points, loaded one at a time when asked for, chosen per context.

What may be imported when: listing reads package metadata and the plugins' own light modules; an array library is imported
by :func:`get_backend` for the one name that was asked for, and by nothing else in this package.

The choice is a ``ContextVar``. Asyncio tasks and ``asyncio.to_thread`` see it; a thread started with ``threading.Thread``
or an executor begins with the default. A model never looks at it again once it is made.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from contextvars import ContextVar, Token
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rnncore.backend import Array, Backend
from rnncore.errors import ArgumentTypeError, ArgumentValueError, BackendUnavailableError, UnknownNameError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["BackendStatus", "backend_of", "backends", "get_backend", "selected_backend", "use_backend"]

GROUP = "rnncore.backends"
DISTRIBUTION = "rnncore"
FALLBACK_NAME = "numpy"
CHOICE_VARIABLE = "RNNCORE_BACKEND"
ALLOWED_VARIABLE = "RNNCORE_PLUGINS"

_chosen: ContextVar[str | None] = ContextVar("rnncore_backend", default=None)
_ready: dict[str, Backend] = {}
_failed: dict[str, str] = {}


@dataclass(frozen=True)
class BackendStatus:
    """One backend as :func:`backends` lists it.

    Attributes
    ----------
    name : str
    usable : bool
        Whether nothing is known to stand in its way. The array library is not imported to find out; once it has been
        tried in this process, what happened then is what counts.
    reason : str
        Why it is not usable; empty if it is.
    distribution, version : str
        The package that brings it; empty where the entry point has none.
    """

    name: str
    usable: bool
    reason: str
    distribution: str
    version: str


class use_backend:
    """Choose the backend of models made from here on; a statement, or a context manager that restores the choice.

    Parameters
    ----------
    name : str

    Raises
    ------
    UnknownNameError
        If there is no such backend. Nothing is imported: a backend that is known and not usable is reported when it
        is first needed.

    Examples
    --------
    >>> import rnncore
    >>> with rnncore.use_backend("numpy"):
    ...     rnncore.RNN(5, 6).backend
    'numpy'
    """

    def __init__(self, name: str) -> None:
        _entry(_checked_name(name))
        self.name = name
        self._tokens: list[Token[str | None]] = [_chosen.set(name)]
        self._entered = 0

    def __enter__(self) -> use_backend:
        self._entered += 1
        if self._entered > len(self._tokens):  # entered again: choose again
            self._tokens.append(_chosen.set(self.name))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._entered:
            raise ArgumentValueError(f"{self!r}: left without having been entered; use it in a with statement")
        if _chosen.get() != self.name:
            raise ArgumentValueError(
                f"{self!r}: expected to be left while it is the choice, got {_chosen.get()!r}: contexts must be left in "
                "the opposite order to the one in which they were entered, and in the same thread"
            )
        self._entered -= 1
        _chosen.reset(self._tokens.pop())

    def __repr__(self) -> str:
        return f"use_backend({self.name!r})"


def selected_backend() -> str:
    """The name that a model made now would be bound to: ``use_backend``, else RNNCORE_BACKEND, else "numpy"."""
    return _chosen.get() or os.environ.get(CHOICE_VARIABLE, "").strip() or FALLBACK_NAME


def get_backend(name: str | None = None) -> Backend:
    """The plugin itself (see :class:`rnncore.backend.Backend`), with its library imported and a device to run on.

    Parameters
    ----------
    name : str, optional
        By default the selected one.

    Raises
    ------
    UnknownNameError
        For a name that no installed package registers; the message lists the known ones with their states.
    BackendUnavailableError
        If the library is missing or broken, or there is no usable device; with the library's own words.

    Examples
    --------
    >>> import rnncore
    >>> rnncore.get_backend("numpy").native_package
    'numpy'
    """
    name = selected_backend() if name is None else _checked_name(name)
    if name not in _ready:
        _ready[name] = _prepare(name)
        _failed.pop(name, None)
    return _ready[name]


def backends() -> list[BackendStatus]:
    """Every registered backend with its state, without importing an array library.

    A plugin that cannot even be loaded is listed with its error; it does not disturb the others.

    Examples
    --------
    >>> import rnncore
    >>> [b.name for b in rnncore.backends() if b.name == "numpy"]
    ['numpy']
    """
    return [_status(name) for name in sorted(_entries())]


def backend_of(*arrays: Array | None, prefer: str | None = None) -> Backend:
    """The backend whose arrays these are. For computing the arrays decide, never the selection.

    Where several backends share one array type, as NumPy and Numba do, the one named `prefer` wins if it is one of
    them, then the one named like the library.

    Raises
    ------
    ArgumentTypeError
        If an array belongs to no registered backend, or the arrays belong to different ones.
    """
    found: Backend | None = None
    for x in arrays:
        if x is None:
            continue
        if found is None:
            found = _owner(x, prefer)
        elif not found.is_native(x):
            raise ArgumentTypeError(
                f"expected arrays of one library, got {describe(arrays[0])} and {describe(x)}; "
                f"convert with rnncore.get_backend({found.name!r}).asarray"
            )
    if found is None:
        raise ArgumentTypeError("expected at least one array")
    return found


def owner_name(x: object) -> str | None:
    """The name of a backend that x is an array of, among those whose library is already imported; else None."""
    try:
        return _owner(x, None).name
    except ArgumentTypeError:
        return None


def describe(x: object) -> str:
    """A type's name for a message: ``numpy.ndarray``, ``list``."""
    kind = type(x)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def install_command(name: str, package: str) -> str:
    """What brings a backend's library."""
    entry = _entries().get(name)
    first_party = bool(entry) and _distribution(entry[0])[0] == DISTRIBUTION  # type: ignore[index]
    return f'pip install "{DISTRIBUTION}[{name}]"' if first_party else f"pip install {package}"


def refresh() -> None:
    """Forget what was discovered: for a process that installs a plugin while it runs."""
    _entries.cache_clear()
    _plugin.cache_clear()
    _ready.clear()
    _failed.clear()


def _owner(x: object, prefer: str | None) -> Backend:
    candidates = []
    for name in _entries():
        try:
            plugin = _ready.get(name) or _plugin(name)
        except (BackendUnavailableError, UnknownNameError):
            continue
        if plugin.native_package in sys.modules and plugin.is_native(x):
            candidates.append((name != prefer, name != plugin.native_package, name))
    if not candidates:
        known = ", ".join(sorted(_entries()))
        raise ArgumentTypeError(f"expected an array of a registered backend ({known}), got {describe(x)}")
    return get_backend(min(candidates)[2])


@cache
def _entries() -> dict[str, tuple[EntryPoint, ...]]:
    from importlib.metadata import entry_points  # a fifth of the time that importing rnncore would take

    allowed = os.environ.get(ALLOWED_VARIABLE)
    names = None if allowed is None else {part.strip() for part in allowed.split(",")}
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for entry in entry_points(group=GROUP):
        ours = _distribution(entry)[0] == DISTRIBUTION
        if names is not None and not ours and entry.name not in names:
            continue
        others = found.get(entry.name, ())
        # rnncore's own names cannot be taken: its entry comes first and is the one that counts.
        found[entry.name] = (entry, *others) if ours else (*others, entry)
    return found


def _distribution(entry: EntryPoint) -> tuple[str, str]:
    return (entry.dist.name, entry.dist.version) if entry.dist is not None else ("", "")


def _entry(name: str) -> EntryPoint:
    if name not in _entries():
        close = get_close_matches(name, _entries(), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        lines = [f"  {s.name}: {'usable' if s.usable else 'not usable: ' + s.reason}" for s in backends()]
        raise UnknownNameError(
            f"backend: expected one of the registered ones, got {name!r}.{hint} Known here:\n"
            + "\n".join(lines)
            + f'\nA backend comes with its plugin: pip install "{DISTRIBUTION}[NAME]" for ours, '
            f"or any package that registers the entry point group {GROUP!r}."
        )
    first, *others = _entries()[name]
    if others and _distribution(first)[0] != DISTRIBUTION:
        sources = ", ".join(f"{_distribution(e)[0] or '?'} ({e.value})" for e in sorted(_entries()[name]))
        raise UnknownNameError(f"backend: {name!r} is registered more than once, by {sources}; uninstall all but one")
    return first


@cache
def _plugin(name: str) -> Backend:
    entry = _entry(name)
    distribution, version = _distribution(entry)
    source = f"entry point {entry.name} = {entry.value} of {distribution or 'an unknown package'} {version}".strip()
    try:
        plugin = entry.load()
    except Exception as error:  # whatever a stranger's module raises, it must not disturb the other backends
        raise BackendUnavailableError(f"backend {name!r}: {source} failed to load: {_words(error)}") from error
    if not isinstance(plugin, Backend):
        wanted = (n for n in dir(Backend) if not n.startswith("_"))
        missing = [n for n in wanted if not hasattr(plugin, n)]
        raise BackendUnavailableError(f"backend {name!r}: {source} lacks {', '.join(missing)}")
    if plugin.name != name:
        raise BackendUnavailableError(
            f"backend {name!r}: {source} calls itself {plugin.name!r}; the two must be the same"
        )
    return plugin


def _prepare(name: str) -> Backend:
    plugin = _plugin(name)
    try:
        plugin.namespace()
        devices = plugin.devices()
        reason = "" if devices else _reason(plugin) or "it has no usable device"
    except Exception as error:  # importing an array library can fail in any way; its own words are what helps
        _failed[name] = _words(error)
        raise BackendUnavailableError(
            f"backend {name!r}: {plugin.native_package} cannot be used here: {_words(error)}; "
            f"to install it: {install_command(name, plugin.native_package)}"
        ) from error
    if reason:
        _failed[name] = reason
        raise BackendUnavailableError(f"backend {name!r}: {plugin.native_package} is installed but {reason}")
    return plugin


def _status(name: str) -> BackendStatus:
    distribution, version = _distribution(_entries()[name][0])
    reason = _failed.get(name, "")
    if not reason and name not in _ready:
        try:
            plugin = _plugin(name)
            if plugin.native_package not in sys.modules and importlib.util.find_spec(plugin.native_package) is None:
                reason = f"{plugin.native_package} is not installed: {install_command(name, plugin.native_package)}"
            else:
                reason = _reason(plugin) or ""
        except (BackendUnavailableError, UnknownNameError) as error:
            reason = str(error)
    return BackendStatus(name, not reason, reason, distribution, version)


def _reason(plugin: Backend) -> str | None:
    """A plugin may say, without importing its library, why it cannot run here: an optional ``unusable() -> str | None``."""
    ask: Any = getattr(plugin, "unusable", None)
    return ask() if ask is not None else None


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _checked_name(name: object) -> str:
    if not isinstance(name, str):
        raise ArgumentTypeError(f"backend: expected a name, got {name!r}")
    return name
