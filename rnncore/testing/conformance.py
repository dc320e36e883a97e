"""The suite under pytest, with three lines in a test file and no plugin or conftest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from rnncore.backend.contract import Backend
from rnncore.errors import RnncoreError
from rnncore.testing.check import CHECKS
from rnncore.testing.run import Session, known_failures
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

    Notes
    -----
    If the backend cannot be used, every test fails. A test is skipped only if the backend lacks a capability.
    """

    backend: ClassVar[str | Backend]
    device: ClassVar[Any] = None
    kernel: ClassVar[KernelMode] = "auto"
    expected_failures: ClassVar[Mapping[str, str]] = {}

    _session: ClassVar[Session | None] = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._session = None
        known_failures(cls.expected_failures)

    def test_backend_can_be_used(self) -> None:
        """The backend and its device can be used, and at least one check applies."""
        session = self._ready()
        if not any(session.asks(check) for check in CHECKS.values()):
            pytest.fail("no check applies to this backend", pytrace=False)

    @pytest.mark.parametrize("check", list(CHECKS))
    def test_conformance(self, check: str, record_property: Any) -> None:
        """One check of :data:`rnncore.testing.CHECKS`."""
        outcome = self._ready().run(CHECKS[check], self.expected_failures.get(check))
        if outcome.error_eps is not None:
            record_property("error_eps", outcome.error_eps)
        if outcome.status == "skipped":
            pytest.skip(outcome.reason)
        if outcome.status == "expected to fail":
            pytest.xfail(outcome.reason)
        if outcome.status == "failed":
            pytest.fail(f"{outcome.id}: {outcome.rule}\n{outcome.reason}", pytrace=False)

    @classmethod
    def _ready(cls) -> Session:
        if not hasattr(cls, "backend"):
            pytest.fail(f"{cls.__name__}: expected a class attribute `backend`, a name or a plugin", pytrace=False)
        if cls._session is None:
            try:
                cls._session = Session(cls.backend, device=cls.device, kernel=cls.kernel)
            except RnncoreError as error:
                pytest.fail(str(error), pytrace=False)
        return cls._session
