"""Backends by name: found through entry points, loaded one at a time when asked for, chosen per context.

What may be imported when: names come from package metadata, read once; a plugin's own light module is imported when its
name is asked for, by listing, and by an array that the preferred and the equally named backend do not own; an array library
is imported by :func:`get_backend` for the one name that was asked for, and by nothing else in this package.

A plugin is a stranger's code. Whatever it raises, or exits with, is kept as the reason why that one name cannot be used; only
Ctrl-C passes. No lock is held while a module is imported but the one of the name that was asked for: a library that makes
a model while it is itself being imported would otherwise wait for ever.

The choice is a ``ContextVar``. Asyncio tasks and ``asyncio.to_thread`` see it; a thread started with ``threading.Thread``
or an executor begins with the default. A model never looks at it again once it is made.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from contextvars import ContextVar, Token
from dataclasses import replace
from difflib import get_close_matches
from functools import cache, partial
from threading import RLock
from types import TracebackType

from rnncore.arguments import describe, one_line
from rnncore.backend.contract import Backend
from rnncore.backend.discovery import (
    DISTRIBUTION,
    GROUP,
    UNKNOWN_PACKAGE,
    BackendStatus,
    Claim,
    Scan,
    read_metadata,
)
from rnncore.backend.plugin import (
    MEMBERS,
    _is_imported,
    _is_installed,
    _Plugin,
    _top,
    _unusable,
    ask_plugin,
    check_members,
)
from rnncore.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    BackendUnavailableError,
    UnknownNameError,
)
from rnncore.typing import Array

__all__ = ["BackendStatus", "backend_of", "backends", "get_backend", "selected_backend", "use_backend"]

FALLBACK_NAME = "numpy"
CHOICE_VARIABLE = "RNNCORE_BACKEND"


_chosen: ContextVar[str | None] = ContextVar("rnncore_backend", default=None)
_scanning = RLock()
_preparing: dict[str, RLock] = {}
# Replaced by refresh, not cleared: a thread that is preparing a backend then puts it where nobody looks any more.
_scanned: Scan | None = None
_ready: dict[str, Backend] = {}
_failed: dict[str, str] = {}
_unloadable: dict[Claim, str] = {}


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
        _claim(_checked_name(name))
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
    ready, failed = _ready, _failed
    if name not in ready:
        plugin = _plugin(_claim(name))
        with _preparing.setdefault(name, RLock()):
            if name not in ready:
                _prepare(name, plugin, failed)
                ready[name] = plugin.backend
                failed.pop(name, None)
    return ready[name]


def backends() -> list[BackendStatus]:
    """Every registered backend with its state, without importing an array library.

    A plugin that cannot even be loaded is listed with its error; it does not disturb the others. So is an entry point that
    is ignored because its name is rnncore's own, and each of several that claim one name. No two rows have one name.

    Examples
    --------
    >>> import rnncore
    >>> [b.name for b in rnncore.backends() if b.name == "numpy"]
    ['numpy']
    """
    rows = list(_scan().misfits)
    for name, claims in _entries().items():
        if _contested(claims):
            rows += [claim.refused(name, _contest(claims)) for claim in claims]
            continue
        rows.append(_status(name, claims[0]))
        for claim in claims[1:]:
            why = f"{name!r} is {DISTRIBUTION}'s own name: this entry point ({claim.entry.value}) is ignored"
            rows.append(claim.refused(name, why))
    rows.sort(key=lambda row: (row.name, row.reason))
    seen: dict[str, int] = {}
    for k, row in enumerate(rows):
        seen[row.name] = seen.get(row.name, 0) + 1
        if seen[row.name] > 1:
            rows[k] = replace(row, name=f"{row.name} {seen[row.name]}")
    return rows


def backend_of(*arrays: Array | None, prefer: str | None = None) -> Backend:
    """The backend whose arrays these are. For computing the arrays decide, never the selection.

    Where several claim an array, as NumPy and Numba do, the one named `prefer` wins if it is one of them, then the one
    whose library the array's type comes from, then rnncore's own, then the one named like the library.

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
        if not _is_native(name, found, x):
            raise ArgumentTypeError(
                f"expected arrays of one library, got {describe(given[0])} and {describe(x)}; "
                f"convert with rnncore.get_backend({name!r}).asarray"
            )
    return found


def owner_name(x: object) -> str | None:
    """The name of a backend that x is an array of, among those whose library is already imported; else None."""
    try:
        return _owner(x, None)
    except ArgumentTypeError:
        return None


def install_command(name: str, package: str) -> str:
    """What brings a backend's library."""
    claims = _entries().get(name, ())
    ours = bool(claims) and claims[0].ours
    return f'pip install "{DISTRIBUTION}[{name}]"' if ours else f"pip install {_top(package)}"


def refresh() -> None:
    """Forget what was discovered: for a process that installs a plugin while it runs."""
    global _scanned, _ready, _failed, _unloadable
    from importlib.metadata import MetadataPathFinder

    with _scanning:
        importlib.invalidate_caches()
        MetadataPathFinder().invalidate_caches()  # which the line above does from Python 3.12 on
        _scanned = None
        _plugin.cache_clear()
        _ready, _failed, _unloadable = {}, {}, {}


# --- who claims an array ----------------------------------------------------------------------------------------------


def _owner(x: object, prefer: str | None) -> str:
    """The name of the backend that x is an array of. Its library is imported: x exists."""
    packages = [_top(str(kind.__module__)) for kind in type(x).__mro__]
    entries = _entries()
    claimants: list[tuple[int, bool, bool, str]] = []
    faults: list[str] = []
    # A list, a number or None is nobody's array, and no reason to load every plugin.
    names = () if packages[0] == "builtins" else sorted(entries, key=lambda n: (n != prefer, n != packages[0], n))
    for name in names:
        try:
            claim = _claim(name)
            if (fault := _unloadable.get(claim)) is not None:
                raise BackendUnavailableError(fault)
            plugin = _plugin(claim)
            if not _is_imported(plugin.package) or not _is_native(name, plugin.backend, x):
                continue
        except (BackendUnavailableError, UnknownNameError) as error:
            faults.append(one_line(str(error)))
            continue
        if name == prefer or (claim.ours and name == plugin.package == packages[0]):
            return name  # none can come before it, so no other plugin need be loaded
        # By the class nearest to x's own that comes from the plugin's library: a claim on everything takes nothing.
        package = _top(plugin.package)
        depth = packages.index(package) if package in packages else len(packages)
        claimants.append((depth, not claim.ours, name != plugin.package, name))
    if not claimants:
        asked = f"; could not be asked: {'; '.join(faults)}" if faults else ""
        raise ArgumentTypeError(
            f"expected an array of a registered backend ({', '.join(entries)}), got {describe(x)}{asked}"
        )
    return min(claimants)[-1]


def _is_native(name: str, plugin: Backend, x: object) -> bool:
    answer = ask_plugin(f"backend {name!r}: its is_native failed", partial(plugin.is_native, x))
    if not isinstance(answer, bool):
        raise BackendUnavailableError(f"backend {name!r}: its is_native returned {describe(answer)}, not a bool")
    return answer


# --- what the metadata say --------------------------------------------------------------------------------------------


def _entries() -> dict[str, tuple[Claim, ...]]:
    """By name, in order, who claims it. Never changed once it is made, so threads may go through it."""
    return _scan().claims


def _scan() -> Scan:
    global _scanned
    with _scanning:
        if _scanned is None:
            _scanned = read_metadata()
        return _scanned


def _contested(claims: tuple[Claim, ...]) -> bool:
    return len(claims) > 1 and not claims[0].ours


def _contest(claims: tuple[Claim, ...]) -> str:
    sources = ", ".join(f"{c.distribution or UNKNOWN_PACKAGE} ({c.entry.value})" for c in claims)
    return f"{claims[0].entry.name!r} is registered more than once, by {sources}; uninstall all but one"


def _claim(name: str) -> Claim:
    """The one entry point of that name that counts."""
    entries = _entries()
    if name not in entries:
        close = get_close_matches(name, entries, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        lines = [f"  {s.name}: {'usable' if s.usable else 'not usable: ' + one_line(s.reason)}" for s in backends()]
        raise UnknownNameError(
            f"backend: expected one of the registered ones, got {name!r}.{hint} Known here:\n"
            + "\n".join(lines)
            + f'\nA backend comes with its plugin: pip install "{DISTRIBUTION}[NAME]" for ours, '
            f"or any package that registers the entry point group {GROUP!r}."
        )
    if _contested(entries[name]):
        raise UnknownNameError(f"backend: {_contest(entries[name])}")
    return entries[name][0]


# --- what a plugin says -----------------------------------------------------------------------------------------------


@cache  # exceptions are not kept: what failed to load is tried again when it is asked for again
def _plugin(claim: Claim) -> _Plugin:
    who, unloadable = f"backend {claim.entry.name!r}: {claim.source}", _unloadable
    try:
        plugin = ask_plugin(f"{who} failed to load", claim.entry.load)
    except BackendUnavailableError as error:
        # So that arrays do not try it again and again; but not if this call came from its own, unfinished import.
        if claim.entry.value.partition(":")[0].strip() not in sys.modules:
            unloadable[claim] = str(error)
        raise
    unloadable.pop(claim, None)
    members = check_members(plugin, who)
    if members["name"] != claim.entry.name:
        raise BackendUnavailableError(f"{who} calls itself {members['name']!r}; the two must be the same")
    if not all(part.isidentifier() for part in members["native_package"].split(".")):
        raise BackendUnavailableError(
            f"{who}: its native_package must be a module's name, got {members['native_package']!r}"
        )
    return _Plugin(plugin, members["native_package"])


def _prepare(name: str, plugin: _Plugin, failed: dict[str, str]) -> None:
    """Import the library and see that there is a device."""
    package, what = plugin.package, "cannot be used"

    def first_use() -> bool:
        plugin.backend.namespace()
        return bool(tuple(plugin.backend.devices() or ()))

    try:
        if ask_plugin(what, first_use):
            return
    except BackendUnavailableError as error:
        failed[name] = str(error).removeprefix(f"{what}: ")
        # Where the library is there and a driver is what fails, the command that installs it would help nobody.
        absent = isinstance(error.__cause__, ImportError)
        hint = f"; to install it: {install_command(name, package)}" if absent else ""
        raise BackendUnavailableError(
            f"backend {name!r}: {package} cannot be used here: {failed[name]}{hint}"
        ) from error.__cause__
    try:
        failed[name] = _unusable(plugin) or "it has no usable device"
    except BackendUnavailableError as error:
        failed[name] = f"it has no usable device; {error}"
    raise BackendUnavailableError(f"backend {name!r}: {package} is installed but {failed[name]}")


def _status(name: str, claim: Claim) -> BackendStatus:
    reason = _failed.get(name, "")
    if not reason and name not in _ready:
        try:
            plugin = _plugin(claim)
            if _is_installed(plugin.package):
                reason = _unusable(plugin)
            else:
                reason = f"{plugin.package} is not installed: {install_command(name, plugin.package)}"
        except BackendUnavailableError as error:
            reason = str(error).removeprefix(f"backend {name!r}: ")
    return BackendStatus(name, not reason, reason, claim.distribution, claim.version)


def _checked_name(name: object) -> str:
    if not isinstance(name, str):
        raise ArgumentTypeError(f"backend: expected a name, got {name!r}")
    return name


def resolve_backend(backend: str | Backend | None) -> Backend:
    """The backend of that name, the selected one for None, or the plugin itself, which need not be registered.

    Raises
    ------
    UnknownNameError, BackendUnavailableError, ArgumentTypeError
    """
    if backend is None or isinstance(backend, str):
        return get_backend(backend)
    # Not isinstance: from Python 3.12 on, a Protocol does not see what an object passes on by __getattr__.
    missing = [n for n in MEMBERS if not hasattr(backend, n)]
    if missing:
        raise ArgumentTypeError(
            f"backend: expected a name or a backend, got {backend!r}, which lacks {', '.join(missing)}"
        )
    check_members(backend, "backend: the object")
    return backend
