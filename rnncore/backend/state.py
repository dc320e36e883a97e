"""What is known about plugins in this process: their names, which are loaded and in use, and why others failed."""

from __future__ import annotations

import sys
from threading import RLock

from rnncore.arguments import closest, one_line, shown
from rnncore.backend.contract import Backend
from rnncore.backend.discovery import DISTRIBUTION, GROUP, BackendStatus, Claim, Scan, read_metadata
from rnncore.backend.forks import first_use
from rnncore.backend.plugin import Plugin, ask_plugin, is_installed, load_plugin, unusable
from rnncore.errors import BackendUnavailableError, UnknownNameError


class State:
    """Everything known about plugins: names from metadata, loaded plugins, backends in use, and failures."""

    def __init__(self) -> None:
        self.ready: dict[str, Backend] = {}
        self.locks: dict[str, RLock] = {}  # held while a backend is prepared
        self._failed: dict[str, str] = {}  # why a backend could not be used, until it is tried again
        self._loaded: dict[Claim, Plugin] = {}
        self._unloadable: dict[Claim, str] = {}
        self._scan: Scan | None = None

    @property
    def scan(self) -> Scan:
        """Registered names. Two threads may both read the metadata, which does no harm."""
        if self._scan is None:  # not a cached_property, whose lock in Python 3.11 a forked child would wait for
            with first_use:
                self._scan = read_metadata()
        return self._scan

    def claim(self, name: str, argument: str = "backend") -> Claim:
        """Return the entry point of that name, or raise UnknownNameError. `argument`: where the name was given."""
        if name in self.scan.contests:
            raise UnknownNameError(f"{argument}: {self.scan.contests[name]}")
        if name not in self.scan.claims:
            hint = closest(name, self.scan.claims).replace("; d", " D")
            rows = [(s.name, "usable" if s.usable else f"not usable: {one_line(s.reason)}") for s in self.statuses()]
            raise UnknownNameError(
                f"{argument}: expected one of the registered ones, got {shown(name)}.{hint} Known here:\n"
                + "\n".join(f"  {known}: {state}" for known, state in rows)
                + f'\nInstall another with its plugin: pip install "{DISTRIBUTION}[NAME]" for rnncore\'s own, '
                f"or any package that registers the entry point group {GROUP!r}."
            )
        return self.scan.claims[name]

    def plugin(self, claim: Claim, *, retry: bool = True) -> Plugin:
        """Load a plugin; without `retry`, one that failed to load before fails again at once."""
        if claim not in self._loaded:
            if not retry and claim in self._unloadable:
                raise BackendUnavailableError(self._unloadable[claim])
            try:
                with first_use:
                    self._loaded[claim] = load_plugin(claim)
            except BackendUnavailableError as error:
                # Unless this call comes from the plugin's own, unfinished import.
                if claim.entry.value.partition(":")[0].strip() not in sys.modules:
                    self._unloadable[claim] = str(error)
                raise
            self._unloadable.pop(claim, None)
        return self._loaded[claim]

    def prepare(self, name: str, plugin: Plugin) -> None:
        """Import the library and check that there is a device."""

        def has_device() -> bool:
            plugin.backend.namespace()
            return bool(tuple(plugin.backend.devices() or ()))

        what = "cannot be used"
        try:
            found = ask_plugin(what, has_device)
        except BackendUnavailableError as error:
            self._failed[name] = str(error).removeprefix(f"{what}: ")
            # If the library is there and its driver fails, the command that installs the library would not help.
            absent = isinstance(error.__cause__, ImportError)
            hint = f"; to install it: {self.scan.claims[name].install_command(plugin.package)}" if absent else ""
            raise BackendUnavailableError(
                f"backend {name!r}: {plugin.package} cannot be used here: {self._failed[name]}{hint}"
            ) from error.__cause__
        if not found:
            try:
                self._failed[name] = unusable(plugin) or "it has no usable device"
            except BackendUnavailableError as error:
                self._failed[name] = f"it has no usable device; {error}"
            raise BackendUnavailableError(f"backend {name!r}: {plugin.package} is installed but {self._failed[name]}")
        self.ready[name] = plugin.backend
        self._failed.pop(name, None)

    def statuses(self) -> list[BackendStatus]:
        """State of every backend, and the rows of entry points that are not used."""
        rows = [*self.scan.refused, *map(self._status, self.scan.claims)]
        return sorted(rows, key=lambda row: row.name)

    def _status(self, name: str) -> BackendStatus:
        claim, reason = self.scan.claims[name], self._failed.get(name, "")
        if not reason and name not in self.ready:
            try:
                plugin = self.plugin(claim)
                package = plugin.package
                absent = f"{package} is not installed: {claim.install_command(package)}"
                reason = unusable(plugin) if is_installed(package) else absent
            except BackendUnavailableError as error:
                reason = str(error).removeprefix(f"backend {name!r}: ")
        return BackendStatus(name, not reason, reason, claim.distribution, claim.version)
