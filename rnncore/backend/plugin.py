"""Load plugins, check them against the contract, and call their code safely.

Whatever a plugin raises, exits included, becomes a BackendUnavailableError; only Ctrl-C passes.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from rnncore.arguments import brief, describe, lines, shown
from rnncore.backend.abilities import ABILITIES, ability, fault_of, member_of
from rnncore.backend.contract import READABLE_VERSIONS, Backend
from rnncore.backend.discovery import DISTRIBUTION, Claim, top_package, words
from rnncore.errors import BackendUnavailableError

MEMBERS = tuple(sorted(n for n in dir(Backend) if not n.startswith("_")))
LONGEST_NAME = 255  # characters in the name of a file, and so of a module
STRINGS = ("name", "native_package")  # the members that are not functions

T = TypeVar("T")


@dataclass(frozen=True)
class Plugin:
    """A plugin that keeps the contract, as far as this shows without its library."""

    backend: Backend
    package: str


def ask_plugin(what: str, question: Callable[[], T]) -> T:
    """Call plugin code; turn any exception or exit into BackendUnavailableError."""
    try:
        return question()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # sys.exit and panics of Rust libraries are no Exceptions
        raise BackendUnavailableError(f"{what}: {words(error)}") from error


def load_plugin(claim: Claim) -> Plugin:
    """Import the plugin of an entry point and check it.

    Raises
    ------
    BackendUnavailableError
    """
    who = f"backend {claim.entry.name!r}: {claim.source}"
    plugin = ask_plugin(f"{who} failed to load", claim.entry.load)
    members = check_members(plugin, who)
    name, package = members["name"], members["native_package"]
    if name != claim.entry.name:
        raise BackendUnavailableError(f"{who} calls itself {brief(repr(name))}; the two must be the same")
    if len(package) > LONGEST_NAME or not all(part.isidentifier() for part in package.split(".")):
        raise BackendUnavailableError(f"{who}: its native_package must be a module's name, got {shown(package)}")
    return Plugin(plugin, package)


def check_members(plugin: object, who: str) -> dict[str, Any]:
    """Return the members of the contract, after checking their kinds and the plugin's contract version.

    Raises
    ------
    BackendUnavailableError
        The message begins with `who`.
    """
    # The version first: another contract may have other members.
    version = ask_plugin(f"{who}: its contract_version cannot be read", partial(_other_version, plugin))
    if version:
        raise BackendUnavailableError(
            f"{who} speaks version {version} of the contract, and this {DISTRIBUTION} versions "
            f"{' and '.join(map(str, READABLE_VERSIONS))}"
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
        if n in STRINGS:
            members[n] = str.__str__(value)  # a plain string, whatever a subclass of it does
    for n in ABILITIES:
        value = ask_plugin(f"{who}: its {member_of(n)} cannot be read", partial(ability, plugin, n))
        fault = ask_plugin(f"{who}: its {member_of(n)} cannot be read", partial(fault_of, n, value))
        if fault is not None:
            raise BackendUnavailableError(f"{who}: {fault}")
    return members


def is_native(name: str, backend: Backend, x: object) -> bool:
    """Ask a backend whether x is one of its arrays."""
    answer = ask_plugin(f"backend {name!r}: its is_native failed", partial(backend.is_native, x))
    if not isinstance(answer, bool):
        raise BackendUnavailableError(f"backend {name!r}: its is_native returned {describe(answer)}, not a bool")
    return answer


def unusable(plugin: Plugin) -> str:
    """Ask a plugin why it cannot run here, by its optional ``unusable() -> str | None``; "" if it can."""

    def ask() -> Any:
        question = ability(plugin.backend, "unusable")
        return None if question is None else question()

    answer = ask_plugin("its unusable failed", ask)
    if answer is not None and not isinstance(answer, str):
        raise BackendUnavailableError(f"its unusable returned {describe(answer)}, not a string or None")
    return lines(answer or "")


def is_imported(package: str) -> bool:
    """Whether a package has been imported; None in ``sys.modules`` blocks an import."""
    return sys.modules.get(package) is not None


def is_installed(package: str) -> bool:
    """Whether a package is installed. Of a dotted name only the first part is looked up: more would import it."""
    look = partial(importlib.util.find_spec, top_package(package))
    return is_imported(package) or ask_plugin(f"{package} cannot be looked up", look) is not None


def _other_version(plugin: object) -> str:
    version = getattr(plugin, "contract_version", 1)
    return "" if version in READABLE_VERSIONS else brief(repr(version))
