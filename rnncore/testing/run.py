"""Run checks on a backend: all of them with ``check_backend``, or one at a time, in this process or in one of their own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

from rnncore.arguments import check_mapping, shown
from rnncore.backend.contract import Backend
from rnncore.errors import ArgumentTypeError, ArgumentValueError, UnknownNameError
from rnncore.testing.check import CHECKS
from rnncore.testing.report import Outcome, Report, Setting
from rnncore.testing.session import Session
from rnncore.testing.tools.rules import Check
from rnncore.testing.worker import Worker
from rnncore.typing import KernelMode

__all__ = ["Run", "check_backend"]


class Run:
    """A run of checks on a backend, as a context manager; the arguments are those of :func:`check_backend`.

    Attributes
    ----------
    checks : list of Check
        Those to run, in order.
    setting : Setting
    outcomes : list of Outcome
        Those so far.
    """

    def __init__(
        self,
        backend: str | Backend,
        *,
        device: Any = None,
        kernel: KernelMode = "auto",
        only: Iterable[str] | None = None,
        expected_failures: Mapping[str, str] | None = None,
        limit: float | None = None,
    ) -> None:
        self.checks = selected(only)
        self._known = known_failures(expected_failures)
        for id in self._known:
            if id not in {check.id for check in self.checks}:
                raise ArgumentValueError(f"expected_failures: {id!r} is not among the checks that `only` selects")
        self._worker = None if limit is None else Worker(backend, device=device, kernel=kernel, limit=limit)
        self._runner: Session | Worker = self._worker or Session(backend, device=device, kernel=kernel)
        self.setting: Setting = self._runner.setting
        self.outcomes: list[Outcome] = []
        self._started = time.perf_counter()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(now=kind is not None)

    def close(self, *, now: bool = False) -> None:
        """End the process of the checks, if they have one: after what it does at its exit, or at once."""
        if self._worker is not None:
            self._worker.close(now=now)

    def one(self, check: Check) -> Outcome:
        """Run one check."""
        skip = self.setting.skips.get(check.id)
        outcome = self._runner.run(check) if skip is None else Outcome.of(check, "skipped", skip)
        why = self._known.get(check.id)
        outcome = outcome if why is None else outcome.where_failure_is_expected(why)
        self.outcomes.append(outcome)
        return outcome

    def report(self) -> Report:
        """The report on the checks that have ended."""
        setting, ended = self.setting, {o.id for o in self.outcomes}
        return Report(
            backend=setting.backend,
            device=setting.device,
            kernel=setting.kernel,
            precision=setting.precision,
            versions=setting.versions,
            outcomes=tuple(self.outcomes),
            seconds=time.perf_counter() - self._started,
            not_run=tuple(check.id for check in self.checks if check.id not in ended),
        )


def check_backend(
    backend: str | Backend,
    *,
    device: Any = None,
    kernel: KernelMode = "auto",
    only: Iterable[str] | None = None,
    expected_failures: Mapping[str, str] | None = None,
    limit: float | None = None,
    on_start: Callable[[Check, int, int], None] | None = None,
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
    limit : float, optional
        The most seconds that a check may take. One that takes longer has failed, with the place where it was, and the run
        goes on with the next. By default there is none. See the notes.
    on_start : callable, optional
        Called before each check with the check, its number and the number of checks.
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
    ArgumentTypeError
        Also if there is a limit and the plugin is neither a module nor an object that can be pickled.

    Notes
    -----
    With a limit, checks run in a process of their own, which is given up and replaced when one takes too long. So the limit
    stops Python code, native code that never returns, and deadlocks, and a check that crashes the process fails alone. The
    process is a new one: settings that this process has made in the library are not there, environment variables are. The
    limit does not cover the start of the process and the import of the library. It does not end other processes that the
    plugin has started. A process that the operating system cannot kill, as in a driver that hangs, is left behind.

    Examples
    --------
    >>> from rnncore.testing import check_backend
    >>> report = check_backend("numpy", only=["RC-SCAN-001", "RC-ANA"])
    >>> print(str(report).splitlines()[0])
    7 ran: 7 passed, 0 failed, 0 expected to fail; 0 skipped
    """
    for name, function in (("on_start", on_start), ("on_outcome", on_outcome)):
        if function is not None and not callable(function):
            raise ArgumentTypeError(f"{name}: expected a function or None, got {shown(function)}")
    with Run(backend, device=device, kernel=kernel, only=only, expected_failures=expected_failures, limit=limit) as run:
        for number, check in enumerate(run.checks, start=1):
            if on_start is not None:
                on_start(check, number, len(run.checks))
            outcome = run.one(check)
            if on_outcome is not None:
                on_outcome(outcome, number, len(run.checks))
    return run.report()


def selected(only: Iterable[str] | None) -> list[Check]:
    """Return the checks whose ids begin with one of these; all of them for None."""
    if only is None:
        return list(CHECKS.values())
    if not isinstance(only, Iterable) or isinstance(only, (str, bytes)) or getattr(only, "shape", None) == ():
        raise ArgumentTypeError(f"only: expected ids or beginnings of ids, got {shown(only)}; put it in a list")
    wanted = list(only)
    for start in wanted:
        if not isinstance(start, str):
            raise ArgumentTypeError(f"only: expected strings, got {shown(start)}")
        if not any(_begins(id, start) for id in CHECKS):
            groups = ", ".join(dict.fromkeys(f"RC-{c.group}" for c in CHECKS.values()))
            raise UnknownNameError(f"only: expected the id of a check, or one of {groups}, got {shown(start)}")
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
            raise ArgumentTypeError(f"expected_failures[{id!r}]: expected a reason, got {shown(reason)}")
    return dict(expected)
