"""The conformance suite: checks that show whether a backend is correct.

In Python:

>>> from rnncore.testing import check_backend
>>> report = check_backend("numpy", only=["RC-ANA"])
>>> report.ok, report.ran
(True, 6)

On the command line, ``rnncore conform numpy``. And under pytest, without a plugin or a conftest::

    from rnncore.testing import BackendConformance

    class TestMine(BackendConformance):
        backend = "mine"
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rnncore.testing.check import CHECKS
from rnncore.testing.report import SUITE_VERSION, Outcome, Report
from rnncore.testing.run import check_backend
from rnncore.testing.tools.rules import CAPABILITIES, TOLERANCES, Check, CheckFailed

if TYPE_CHECKING:
    from rnncore.testing.conformance import BackendConformance

__all__ = [
    "CAPABILITIES",
    "CHECKS",
    "SUITE_VERSION",
    "TOLERANCES",
    "BackendConformance",
    "Check",
    "CheckFailed",
    "Outcome",
    "Report",
    "check_backend",
]


def __getattr__(name: str) -> Any:
    if name == "BackendConformance":  # needs pytest, which may not be installed
        try:
            from rnncore.testing.conformance import BackendConformance
        except ModuleNotFoundError as error:
            if error.name != "pytest":
                raise
            raise AttributeError(
                "BackendConformance needs pytest: pip install pytest; check_backend and `rnncore conform` do not"
            ) from error
        return BackendConformance
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
