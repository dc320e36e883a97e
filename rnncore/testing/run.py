"""Run checks on a backend: all of them with ``check_backend``, or one at a time for the pytest class."""

from __future__ import annotations

import os
import platform
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from importlib import import_module, metadata
from typing import Any, TypeVar

import numpy as np

from rnncore.arguments import brief, check_mapping
from rnncore.backend.arrays import device_name, find_device, floating_dtypes
from rnncore.backend.contract import Backend
from rnncore.backend.discovery import words
from rnncore.backend.plugin import ask_plugin
from rnncore.backend.registry import backends, get_backend, resolve_backend
from rnncore.errors import ArgumentTypeError, ArgumentValueError, BackendUnavailableError, UnknownNameError
from rnncore.network.engine import check_kernel_mode
from rnncore.testing.check import CHECKS
from rnncore.testing.report import SUITE_VERSION, Outcome, Report
from rnncore.testing.tools.rules import BOTH, CAPABILITIES, Check, CheckFailed
from rnncore.testing.tools.subject import Measured, Subject, capabilities, precision_of
from rnncore.typing import Device, KernelMode

__all__ = ["Session", "check_backend"]

# The order of the checks: those whose failure makes others fail come first.
GROUPS = "contract scan network lengths weights gradient second carry relation extreme purity kernel"
for _group in GROUPS.split():
    import_module(f"rnncore.testing.checks.{_group}")

T = TypeVar("T")

_running = threading.RLock()


class Session:
    """One backend on one device, with its capabilities. Runs single checks."""

    def __init__(self, backend: str | Backend, *, device: Any = None, kernel: KernelMode = "auto") -> None:
        self.backend: Backend = resolve_backend(backend)
        self.kernel = check_kernel_mode(kernel)
        # Ask the plugin about itself before any check, so that a fault there is an error of one line.
        devices = self._ask("devices", lambda: tuple(self.backend.devices()))
        self._ask("device_name", lambda: [device_name(self.backend, d) for d in devices])
        self.device: Device = find_device(device, backend=self.backend)
        self.dtypes = self._ask(
            "namespace", lambda: tuple(floating_dtypes(xp=self.backend.namespace(), device=self.device))
        )
        if not set(BOTH) & set(self.dtypes):
            raise BackendUnavailableError(
                f"backend {self.backend.name!r}: expected a namespace that lists float32 or float64 for device "
                f"{device_name(self.backend, self.device)!r}, got {', '.join(self.dtypes) or 'none'}"
            )
        registered = isinstance(backend, str) or _is_registered(self.backend)
        ask = partial(capabilities, self.backend, self.device, registered=registered)
        self.capabilities = self._ask("scans, writable, devices or asarray", ask)
        self.precision = self._ask("precision", lambda: precision_of(self.backend, self.device))
        self.versions = dict(_versions(self.backend))

    def _fault_in_any(self, check: Check, dtypes: list[str], measured: list[tuple[str, Measured]]) -> str:
        for dtype in dtypes:
            subject = Subject(
                self.backend, self.device, dtype, self.kernel, check, self.capabilities, precision=self.precision
            )
            fault = _fault(check, subject)
            measured += [(dtype, m) for m in subject.measured]
            if fault:
                return f"{dtype}: {fault}"
        return ""

    def asks(self, check: Check) -> bool:
        """Whether the backend has the capabilities and dtypes that the check needs."""
        return not self._missing(check) and bool(self._dtypes(check))

    def _missing(self, check: Check) -> list[str]:
        return [n for n in check.needs if n not in self.capabilities]

    def _dtypes(self, check: Check) -> list[str]:
        there = [n for n in check.dtypes if n in self.dtypes]
        return there[:1] if check.once else there

    def _ask(self, what: str, question: Callable[[], T]) -> T:
        return ask_plugin(f"backend {self.backend.name!r}: its {what} failed", question)

    def run(self, check: Check, expected: str | None = None) -> Outcome:
        """Run one check in each of its dtypes that the device has.

        Parameters
        ----------
        check : Check
        expected : str, optional
            Reason why the check is known to fail. If it passes nevertheless, that is a failure.
        """
        missing, dtypes = self._missing(check), self._dtypes(check)
        started = time.perf_counter()
        measured: list[tuple[str, Measured]] = []
        if missing or not dtypes:
            status, reason = "skipped", "; ".join(CAPABILITIES[n] for n in missing or check.dtypes)
        else:
            # One check at a time in a process: some observe the library while they run.
            with _running:
                reason = self._fault_in_any(check, dtypes, measured)
            status = "failed" if reason else "passed"
        if expected is not None:
            stale = f"expected to fail ({expected}), and {{}}: take it off the list"
            status, reason = {
                "failed": ("expected to fail", f"{expected}: {reason}"),
                "passed": ("failed", stale.format("passed")),
                "skipped": ("failed", stale.format(f"cannot run here, as {reason}")),
            }[status]
        return Outcome.of(check, status, reason, measured=measured, seconds=time.perf_counter() - started)


def check_backend(
    backend: str | Backend,
    *,
    device: Any = None,
    kernel: KernelMode = "auto",
    only: Iterable[str] | None = None,
    expected_failures: Mapping[str, str] | None = None,
    on_outcome: Callable[[Outcome, int, int], None] | None = None,
) -> Report:
    """Run the conformance suite on a backend.

    Parameters
    ----------
    backend : str or Backend
        A registered name, or the plugin itself, which need not be installed.
    device : optional
        By default the backend's default one.
    kernel : {"auto", "reference", "require"}
        Kernel mode of networks, in checks that do not set it.
    only : iterable of str, optional
        Ids, or beginnings of ids such as ``"RC-SCAN"``.
    expected_failures : mapping of str to str, optional
        Ids of checks that are known to fail, with the reason. If one passes, that is a failure.
    on_outcome : callable, optional
        Called after each check with its outcome, its number and the number of checks.

    Returns
    -------
    Report
        ``report.ok``, ``print(report)``, ``report.to_json()``, ``report.to_html()``.

    Raises
    ------
    UnknownNameError, BackendUnavailableError, DeviceError
        If the backend or the device cannot be used, or no check has such an id.

    Examples
    --------
    >>> from rnncore.testing import check_backend
    >>> report = check_backend("numpy", only=["RC-SCAN-001", "RC-ANA"])
    >>> print(str(report).splitlines()[0])
    7 ran: 7 passed, 0 failed, 0 expected to fail; 0 skipped
    """
    chosen = selected(only)
    known = known_failures(expected_failures)
    if on_outcome is not None and not callable(on_outcome):
        raise ArgumentTypeError(f"on_outcome: expected a function or None, got {on_outcome!r}")
    for id in known:
        if id not in {check.id for check in chosen}:
            raise ArgumentValueError(f"expected_failures: {id!r} is not among the checks that `only` selects")
    session = Session(backend, device=device, kernel=kernel)
    started = time.perf_counter()
    outcomes = []
    for number, check in enumerate(chosen, start=1):
        outcomes.append(session.run(check, known.get(check.id)))
        if on_outcome is not None:
            on_outcome(outcomes[-1], number, len(chosen))
    return Report(
        backend=session.backend.name,
        device=device_name(session.backend, session.device),
        kernel=session.kernel,
        precision=session.precision,
        versions=session.versions,
        outcomes=tuple(outcomes),
        seconds=time.perf_counter() - started,
    )


def selected(only: Iterable[str] | None) -> list[Check]:
    """Return the checks whose ids begin with one of these; all of them for None."""
    if only is None:
        return list(CHECKS.values())
    if not isinstance(only, Iterable) or isinstance(only, (str, bytes)):
        raise ArgumentTypeError(f"only: expected ids or beginnings of ids, got {only!r}; put it in a list")
    wanted = list(only)
    for start in wanted:
        if not isinstance(start, str):
            raise ArgumentTypeError(f"only: expected strings, got {start!r}")
        if not any(_begins(id, start) for id in CHECKS):
            groups = ", ".join(dict.fromkeys(f"RC-{c.group}" for c in CHECKS.values()))
            raise UnknownNameError(f"only: expected the id of a check, or one of {groups}, got {start!r}")
    return [c for id, c in CHECKS.items() if any(_begins(id, start) for start in wanted)]


def _begins(id: str, start: str) -> bool:
    # Whole parts only: RC-SCAN does not select RC-SCANNER-001.
    return id == start or id.startswith(start.rstrip("-") + "-")


def known_failures(expected: Mapping[str, str] | None) -> dict[str, str]:
    """Check the ids and reasons of expected failures."""
    if expected is None:
        return {}
    check_mapping("expected_failures", expected, "ids to reasons")
    for id, reason in expected.items():
        if id not in CHECKS:
            raise UnknownNameError(f"expected_failures: no check has the id {id!r}")
        if not isinstance(reason, str) or not reason.strip():
            raise ArgumentTypeError(f"expected_failures[{id!r}]: expected a reason, got {reason!r}")
    return dict(expected)


def _fault(check: Check, subject: Subject) -> str:
    """Run a check; return what is wrong, or ""."""
    # Some checks test overflow and NaN. Other warnings reach the caller.
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            check.run(subject)
        except CheckFailed as failure:
            return str(failure)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # exits, panics and skips of a plugin count as failures too
            return f"raised {brief(words(error))}"
    return ""


def _is_registered(backend: Backend) -> bool:
    try:
        return get_backend(backend.name) is backend
    except Exception:  # absent or not usable, so not the registered one
        return False


def _versions(backend: Backend) -> Iterator[tuple[str, str]]:
    yield "suite", SUITE_VERSION
    brings = [b for b in backends() if b.name == backend.name and b.distribution]
    if brings and _is_registered(backend):
        yield brings[0].distribution, brings[0].version
    for package in dict.fromkeys(("rnncore", backend.native_package, "numpy", "array-api-compat")):
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            names = metadata.packages_distributions().get(package, [])
            if names:
                yield package, metadata.version(names[0])
    yield "python", platform.python_version()
    yield "platform", f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"
