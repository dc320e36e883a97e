"""A run as JSON Lines: one object per line, written at once, so that a run that is killed leaves what it knew."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from rnncore.testing.report import Outcome, Report, Setting
from rnncore.testing.tools.rules import Check

__all__ = ["JsonLines"]


class JsonLines:
    """Write the events of a run, each as one line.

    Parameters
    ----------
    setting : Setting
    write : callable
        Takes a line with its end, and flushes it.

    Notes
    -----
    Every line has ``event``, ``schema`` (1), ``suite``, ``backend``, ``device`` and ``kernel``. Keys may be added; none is
    removed or changes its meaning while ``schema`` is the same. NaN and infinity are strings.

    ============  ==========================================================================================================
    event         further keys
    ============  ==========================================================================================================
    ``plan``      ``checks``: the ids, in order; ``limit``: seconds or null; ``precision``; ``versions``. The first line
    ``started``   ``id``. If no ``outcome`` with that id follows, this is the check that hung or ended the process
    ``outcome``   those of :class:`Outcome`: ``id``, ``rule``, ``group``, ``status``, ``reason``, ``error_eps``,
                  ``allowed_eps``, ``dtype``, ``what``, ``seconds``
    ``summary``   ``ok``, ``ran``, ``counts``, ``seconds``, ``not_run``, as in the report. The last line
    ============  ==========================================================================================================
    """

    def __init__(self, setting: Setting, write: Callable[[str], object]) -> None:
        self._setting = setting
        self._write = write

    def plan(self, checks: Sequence[Check], limit: float | None) -> None:
        """Write what is going to run."""
        setting = self._setting
        ids = [check.id for check in checks]
        self._line(
            "plan", {"checks": ids, "limit": limit, "precision": setting.precision, "versions": setting.versions}
        )

    def started(self, check: Check) -> None:
        """Write that a check begins."""
        self._line("started", {"id": check.id})

    def outcome(self, outcome: Outcome) -> None:
        """Write the outcome of a check."""
        self._line("outcome", outcome)

    def summary(self, report: Report) -> None:
        """Write the end of the run."""
        whole = report.to_dict()
        self._line("summary", {key: whole[key] for key in ("ok", "ran", "counts", "seconds", "not_run")})

    def _line(self, event: str, more: Any) -> None:
        from rnncore.diagnostics.results import plain  # takes as long to import as the suite itself

        setting = self._setting
        common = {
            "event": event,
            "schema": 1,
            "suite": setting.versions["suite"],
            "backend": setting.backend,
            "device": setting.device,
            "kernel": setting.kernel,
        }
        self._write(json.dumps(common | plain(more), allow_nan=False) + "\n")
