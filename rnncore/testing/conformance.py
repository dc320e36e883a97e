"""The suite under pytest, with three lines in a test file and no plugin or conftest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from rnncore.backend.contract import Backend
from rnncore.errors import RnncoreError
from rnncore.testing.check import CHECKS
from rnncore.testing.run import Run, known_failures
from rnncore.typing import KernelMode

__all__ = ["BackendConformance"]


class BackendConformance:
    """Run every check as a test of one backend. Inherit from this class and name the backend::

        from rnncore.testing import BackendConformance

        class TestMine(BackendConformance):
            backend = "mine"

    Attributes
    ----------
    backend : str or Backend
        A registered name, or the plugin itself.
    device : optional
        By default the backend's default one.
    kernel : {"auto", "reference", "require"}
    expected_failures : mapping of str to str
        Ids of checks that are known to fail, with the reason. If one passes, that is a failure.
    limit : float, optional
        The most seconds that a check may take, as in :func:`rnncore.testing.check_backend`: checks then run in a process of
        their own, without what fixtures and other tests do in this one. By default there is no limit.

    Notes
    -----
    If the backend cannot be used, every test fails. A test is skipped only if the backend lacks a capability.
    """

    backend: ClassVar[str | Backend]
    device: ClassVar[Any] = None
    kernel: ClassVar[KernelMode] = "auto"
    expected_failures: ClassVar[Mapping[str, str]] = {}
    limit: ClassVar[float | None] = None

    _run: ClassVar[Run | None] = None
    _fault: ClassVar[str | None] = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._run = cls._fault = None
        known_failures(cls.expected_failures)

    def test_backend_can_be_used(self) -> None:
        """The backend and its device can be used, and at least one check applies."""
        if CHECKS.keys() <= self._ready().setting.skips.keys():
            pytest.fail("no check applies to this backend", pytrace=False)

    @pytest.mark.parametrize("check", list(CHECKS))
    def test_conformance(self, check: str, record_property: Any) -> None:
        """One check of :data:`rnncore.testing.CHECKS`."""
        outcome = self._ready().one(CHECKS[check])
        if outcome.error_eps is not None:
            record_property("error_eps", outcome.error_eps)
        if outcome.status == "skipped":
            pytest.skip(outcome.reason)
        if outcome.status == "expected to fail":
            pytest.xfail(outcome.reason)
        if outcome.status == "failed":
            pytest.fail(f"{outcome.id}: {outcome.rule}\n{outcome.reason}", pytrace=False)

    @classmethod
    def teardown_class(cls) -> None:
        """End the process of the checks, if they have one."""
        if cls._run is not None:
            cls._run.close()
        cls._run = cls._fault = None

    @classmethod
    def _ready(cls) -> Run:
        if not hasattr(cls, "backend"):
            pytest.fail(f"{cls.__name__}: expected a class attribute `backend`, a name or a plugin", pytrace=False)
        if cls._run is None and cls._fault is None:
            known = cls.expected_failures
            try:
                cls._run = Run(
                    cls.backend, device=cls.device, kernel=cls.kernel, expected_failures=known, limit=cls.limit
                )
            except RnncoreError as error:
                cls._fault = str(error)  # so that not every test starts a process and imports the library again
        if cls._run is None:
            pytest.fail(cls._fault or "", pytrace=False)
        return cls._run
