"""Run checks on a backend: ``check_backend``, and the one check at a time that the pytest class asks for."""

from __future__ import annotations

import os
import platform
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module, metadata
from typing import Any

import numpy as np

from rnncore.arrays import device_name, find_device, floating_dtypes
from rnncore.backend import Backend, Device, KernelMode
from rnncore.dispatch import check_kernel_mode
from rnncore.errors import ArgumentTypeError, UnknownNameError
from rnncore.parameterised import resolve_backend
from rnncore.registry import get_backend
from rnncore.testing.check import CAPABILITIES, CHECKS, Check, CheckFailed
from rnncore.testing.report import SUITE_VERSION, Outcome, Report
from rnncore.testing.subject import Measured, Subject, capabilities, precision_of

__all__ = ["Session", "check_backend"]

# In this order the checks are listed and run: what a failure makes the later ones fail comes first.
GROUPS = ("contract", "scan", "network", "gradient", "relation", "extreme", "kernel")
for _group in GROUPS:
    import_module(f"rnncore.testing.{_group}_checks")

SHOWN = 300


class Session:
    """One backend on one device, with what it declares: runs a check and says what came of it."""

    def __init__(self, backend: str | Backend, *, device: Any = None, kernel: KernelMode = "auto") -> None:
        self.backend: Backend = resolve_backend(backend)
        self.device: Device = find_device(device, backend=self.backend)
        self.kernel = check_kernel_mode(kernel)
        registered = isinstance(backend, str) or _is_registered(self.backend)
        self.capabilities = capabilities(self.backend, self.device, registered=registered)
        self.dtypes = tuple(floating_dtypes(xp=self.backend.namespace(), device=self.device))

    def run(self, check: Check, expected: str | None = None) -> Outcome:
        """Run one check in each of its dtypes that the device has.

        `expected` is the reason why it is known to fail: it is then strictly expected to.
        """
        missing = [n for n in check.needs if n not in self.capabilities]
        dtypes = [n for n in check.dtypes if n in self.dtypes]
        if missing or not dtypes:
            lacking = missing or list(check.dtypes)
            return Outcome.of(check, "skipped", "; ".join(CAPABILITIES[n] for n in lacking))
        started = time.perf_counter()
        measured: list[tuple[str, Measured]] = []
        fault = ""
        for dtype in dtypes:
            subject = Subject(self.backend, self.device, dtype, self.kernel, check, self.capabilities)
            fault = _fault(check, subject)
            measured += [(dtype, m) for m in subject.measured]
            if fault:
                fault = f"{dtype}: {fault}"
                break
        seconds = time.perf_counter() - started
        if fault:
            status, reason = ("failed", fault) if expected is None else ("expected to fail", f"{expected}: {fault}")
        elif expected is not None:
            status, reason = "failed", f"expected to fail ({expected}), and passed: take it off the list"
        else:
            status, reason = "passed", ""
        return Outcome.of(check, status, reason, measured=measured, seconds=seconds)


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
        By default the backend's own default one.
    kernel : {"auto", "reference", "require"}
        How networks run their scans in checks that do not say.
    only : iterable of str, optional
        Ids, or beginnings of ids such as ``"RC-SCAN"``.
    expected_failures : mapping of str to str, optional
        Ids of checks that are known to fail, with the reason. Strict: one that passes is a failure.
    on_outcome : callable, optional
        Called after each check with its outcome, its number and the number of all.

    Returns
    -------
    Report
        ``report.ok``, ``print(report)``, ``report.to_json()``, ``report.to_html()``.

    Raises
    ------
    UnknownNameError, BackendUnavailableError, DeviceError
        For a backend or device that cannot be used, and for ids that no check has.

    Examples
    --------
    >>> from rnncore.testing import check_backend
    >>> report = check_backend("numpy", only=["RC-SCAN-001", "RC-ANA"])
    >>> print(str(report).splitlines()[0])
    7 ran: 7 passed, 0 failed, 0 expected to fail; 0 skipped
    """
    chosen = selected(only)
    known = _known_failures(expected_failures)
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
        precision=precision_of(session.backend, session.device),
        versions=dict(_versions(session.backend)),
        outcomes=tuple(outcomes),
        seconds=time.perf_counter() - started,
    )


def selected(only: Iterable[str] | None) -> list[Check]:
    """The checks whose ids begin with one of these; all of them for None."""
    if only is None:
        return list(CHECKS.values())
    if isinstance(only, str):
        raise ArgumentTypeError(f"only: expected ids or beginnings of ids, got the string {only!r}; put it in a list")
    wanted = list(only)
    for start in wanted:
        if not isinstance(start, str):
            raise ArgumentTypeError(f"only: expected strings, got {start!r}")
        if not any(_begins(id, start) for id in CHECKS):
            groups = ", ".join(dict.fromkeys(f"RC-{c.group}" for c in CHECKS.values()))
            raise UnknownNameError(f"only: expected the id of a check, or one of {groups}, got {start!r}")
    return [c for id, c in CHECKS.items() if any(_begins(id, start) for start in wanted)]


def _begins(id: str, start: str) -> bool:
    # A beginning ends where a part of the id does: RC-SCAN is no beginning of RC-SCANNER-001.
    return id == start or id.startswith(start.rstrip("-") + "-")


def _known_failures(expected: Mapping[str, str] | None) -> dict[str, str]:
    if expected is None:
        return {}
    if not isinstance(expected, Mapping):
        raise ArgumentTypeError(
            f"expected_failures: expected a mapping of ids to reasons, got {type(expected).__name__}"
        )
    for id, reason in expected.items():
        if id not in CHECKS:
            raise UnknownNameError(f"expected_failures: no check has the id {id!r}")
        if not isinstance(reason, str) or not reason.strip():
            raise ArgumentTypeError(f"expected_failures[{id!r}]: expected a reason, got {reason!r}")
    return dict(expected)


def _fault(check: Check, subject: Subject) -> str:
    """What is wrong, or nothing."""
    # Overflow and NaN are what some checks are about. Any other warning is the caller's to see.
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            check.run(subject)
        except CheckFailed as failure:
            return str(failure)
        except Exception as error:  # whatever a stranger's backend raises is a failed check, not the end of the run
            text = " ".join(str(error).split())
            return f"raised {type(error).__name__}: {text[:SHOWN]}"
    return ""


def _is_registered(backend: Backend) -> bool:
    try:
        return get_backend(backend.name) is backend
    except Exception:  # not there, or not usable: either way it is not the registered one
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
    yield "python", platform.python_version()
    yield "platform", f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"
