"""A backend under test in this process: what it says of itself, and single checks on it."""

from __future__ import annotations

import os
import platform
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module, metadata
from typing import Any, TypeVar

import numpy as np

from rnncore.arguments import lines, one_line
from rnncore.backend.arrays import device_name, find_device, floating_dtypes
from rnncore.backend.contract import Backend
from rnncore.backend.discovery import words
from rnncore.backend.plugin import ask_plugin
from rnncore.backend.registry import backends, get_backend, resolve_backend
from rnncore.errors import BackendUnavailableError, RnncoreError
from rnncore.network.engine import check_kernel_mode
from rnncore.testing.check import CHECKS
from rnncore.testing.report import SUITE_VERSION, Outcome, Setting
from rnncore.testing.tools.rules import BOTH, CAPABILITIES, Check, CheckFailed
from rnncore.testing.tools.subject import Measured, Subject, capabilities, precision_of
from rnncore.typing import Device, KernelMode

__all__ = ["Session"]

# The order of the checks: those whose failure makes others fail come first.
GROUPS = "contract scan network lengths weights gradient second carry relation extreme purity kernel"
for _group in GROUPS.split():
    import_module(f"rnncore.testing.checks.{_group}")

T = TypeVar("T")

_running = threading.RLock()


def _renew() -> None:
    """Free a forked child, which has no other thread, of a check that one was running."""
    global _running
    _running = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


class Session:
    """One backend on one device, with its capabilities. Runs single checks.

    Attributes
    ----------
    setting : Setting
    """

    def __init__(self, backend: str | Backend, *, device: Any = None, kernel: KernelMode = "auto") -> None:
        self.backend: Backend = resolve_backend(backend)
        self.kernel = check_kernel_mode(kernel)
        # Ask the plugin about itself before any check, so that a fault there is an error of one line.
        devices = self._ask("devices", lambda: tuple(self.backend.devices()))
        self._ask("device_name", lambda: [device_name(self.backend, d) for d in devices])
        self.device: Device = find_device(device, backend=self.backend)
        name = device_name(self.backend, self.device)
        self.dtypes = self._ask(
            "namespace", lambda: tuple(floating_dtypes(xp=self.backend.namespace(), device=self.device))
        )
        if not set(BOTH) & set(self.dtypes):
            raise BackendUnavailableError(
                f"backend {self.backend.name!r}: expected a namespace that lists float32 or float64 for device "
                f"{name!r}, got {', '.join(self.dtypes) or 'none'}"
            )
        registered = isinstance(backend, str) or _is_registered(self.backend)
        ask = partial(capabilities, self.backend, self.device, registered=registered)
        self.capabilities = self._ask("scans, writable, devices or asarray", ask)
        precision = self._ask("precision", lambda: precision_of(self.backend, self.device))
        skips = {check.id: reason for check in CHECKS.values() if (reason := self._lacks(check))}
        self.setting = Setting(
            self.backend.name, name, self.kernel, precision, dict(_versions(self.backend)), skips
        )  # fmt: skip

    def run(self, check: Check) -> Outcome:
        """Run one check, which ``setting.skips`` must not name, in each of its dtypes that the device has."""
        started = time.perf_counter()
        measured: list[tuple[str, Measured]] = []
        # One check at a time in a process: some observe the library while they run.
        with _running:
            reason = self._fault_in_any(check, measured)
        status = "failed" if reason else "passed"
        return Outcome.of(check, status, reason, measured=measured, seconds=time.perf_counter() - started)

    def _fault_in_any(self, check: Check, measured: list[tuple[str, Measured]]) -> str:
        for dtype in self._dtypes(check):
            precision = self.setting.precision
            subject = Subject(
                self.backend, self.device, dtype, self.kernel, check, self.capabilities, precision=precision
            )
            fault = _fault(check, subject)
            measured += [(dtype, m) for m in subject.measured]
            if fault:
                return f"{dtype}: {fault}"
        return ""

    def _lacks(self, check: Check) -> str:
        """Why the check cannot run here, or ""."""
        missing = [n for n in check.needs if n not in self.capabilities]
        return "; ".join(CAPABILITIES[n] for n in missing or ([] if self._dtypes(check) else check.dtypes))

    def _dtypes(self, check: Check) -> list[str]:
        there = [n for n in check.dtypes if n in self.dtypes]
        return there[:1] if check.once else there

    def _ask(self, what: str, question: Callable[[], T]) -> T:
        return ask_plugin(f"backend {self.backend.name!r}: its {what} failed", question)


def _fault(check: Check, subject: Subject) -> str:
    """Run a check; return what is wrong, or ""."""
    # Some checks test overflow and NaN. Other warnings reach the caller.
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            check.run(subject)
        except CheckFailed as failure:
            return one_line(lines(failure))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # exits, panics and skips of a plugin count as failures too
            return f"raised {one_line(words(error))}"
    return ""


def _is_registered(backend: Backend) -> bool:
    try:
        return get_backend(backend.name) is backend
    except RnncoreError:  # absent or not usable, so not the registered one
        return False


def _versions(backend: Backend) -> Iterator[tuple[str, str]]:
    yield "suite", SUITE_VERSION
    for package in dict.fromkeys(("rnncore", backend.native_package, "numpy", "array-api-compat")):
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            names = metadata.packages_distributions().get(package, [])
            if names:
                yield package, metadata.version(names[0])
    # Afterwards, as it counts: of two packages of one name the registry knows which one runs.
    brings = [b for b in backends() if b.name == backend.name and b.distribution]
    if brings and _is_registered(backend):
        yield brings[0].distribution, brings[0].version
    yield "python", platform.python_version()
    yield "platform", f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"
