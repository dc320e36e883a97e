"""Plugins: check one against the contract, and call its code so that any failure becomes a BackendUnavailableError."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from rnncore.arguments import describe
from rnncore.backend.contract import CONTRACT_VERSION, READABLE_VERSIONS, Backend, abilities_of
from rnncore.backend.discovery import (
    DISTRIBUTION,
    words,
)
from rnncore.errors import BackendUnavailableError

MEMBERS = tuple(sorted(n for n in dir(Backend) if not n.startswith("_")))


STRINGS = ("name", "native_package")  # the members that are not functions


T = TypeVar("T")


def _is_imported(package: str) -> bool:
    return sys.modules.get(package) is not None  # None there makes an import of it fail


@dataclass(frozen=True)
class _Plugin:
    """A plugin that keeps the contract as far as can be seen without its library."""

    backend: Backend
    package: str


def check_members(plugin: object, who: str) -> dict[str, Any]:
    """The members of the contract, each of its kind, and of this version.

    Raises
    ------
    BackendUnavailableError
        Beginning with `who`.
    """
    # Before anything else: another contract may have other members.
    version = ask_plugin(f"{who}: its contract_version cannot be read", partial(_other_version, plugin))
    if version:
        raise BackendUnavailableError(
            f"{who} speaks version {version} of the contract, and this {DISTRIBUTION} version {CONTRACT_VERSION}"
        )
    absent = object()

    def member(n: str) -> Any:
        return ask_plugin(f"{who}: its {n} cannot be read", partial(getattr, plugin, n, absent))

    members = {n: member(n) for n in MEMBERS}
    if missing := [n for n, value in members.items() if value is absent]:
        raise BackendUnavailableError(f"{who} lacks {', '.join(missing)}")
    for n, value in members.items():
        if not (isinstance(value, str) if n in STRINGS else callable(value)):
            kind = "a string" if n in STRINGS else "a function"
            raise BackendUnavailableError(f"{who}: its {n} must be {kind}, got {describe(value)}")
    return members


def _other_version(plugin: object) -> str:
    version = getattr(plugin, "contract_version", 1)
    return "" if version in READABLE_VERSIONS else repr(version)


def _is_installed(package: str) -> bool:
    # Of a dotted name the first part only: to look for the rest would import it.
    look = partial(importlib.util.find_spec, _top(package))
    return _is_imported(package) or ask_plugin(f"{package} cannot be looked up", look) is not None


def _unusable(plugin: _Plugin) -> str:
    """A plugin may say, without importing its library, why it cannot run here: an optional ``unusable() -> str | None``."""

    def ask() -> Any:
        question = abilities_of(plugin.backend).unusable
        return None if question is None else question()

    answer = ask_plugin("its unusable failed", ask)
    if answer is not None and not isinstance(answer, str):
        raise BackendUnavailableError(f"its unusable returned {describe(answer)}, not a string or None")
    return answer or ""


def ask_plugin(what: str, question: Callable[[], T]) -> T:
    """Run a stranger's code; whatever it raises or exits with becomes an error of ours that says what was asked."""
    try:
        return question()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # sys.exit, and the panics of libraries in Rust, are no Exceptions
        raise BackendUnavailableError(f"{what}: {words(error)}") from error


def _top(package: str) -> str:
    return package.partition(".")[0]
