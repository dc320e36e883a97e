"""The registry of checks.

A check is a function of a Subject, with an id, a rule and the name of a tolerance. ``CHECKS`` holds all of them, in the
order in which they run.
"""

from __future__ import annotations

from collections.abc import Callable

from rnncore.testing.tools.rules import BOTH, CAPABILITIES, TOLERANCES, Check
from rnncore.testing.tools.subject import Subject

__all__ = ["CHECKS", "FLOAT32", "FLOAT64", "check"]


CHECKS: dict[str, Check] = {}
FLOAT32, FLOAT64 = ("float32",), ("float64",)


def check(
    id: str,
    rule: str,
    *,
    needs: tuple[str, ...] = (),
    tolerance: str = "none",
    dtypes: tuple[str, ...] = BOTH,
    once: bool = False,
) -> Callable[[Callable[[Subject], None]], Callable[[Subject], None]]:
    """Register a function as a check."""
    unknown = [n for n in needs if n not in CAPABILITIES]
    if id in CHECKS or unknown or tolerance not in TOLERANCES:
        raise AssertionError(f"{id}: registered twice, or unknown {unknown} or {tolerance}")

    def register(run: Callable[[Subject], None]) -> Callable[[Subject], None]:
        CHECKS[id] = Check(id, rule, run, needs, tolerance, dtypes, once)
        return run

    return register
