"""Checks: plain functions of a Subject, each with an id, a rule, and a tolerance by name.

``CHECKS`` is the one registry, in the order in which the groups are read; every front door runs what is in it.
"""

from __future__ import annotations

from collections.abc import Callable

from rnncore.testing.tools.rules import BOTH, CAPABILITIES, TOLERANCES, Check
from rnncore.testing.tools.subject import Subject

__all__ = ["CHECKS", "check"]


CHECKS: dict[str, Check] = {}


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
