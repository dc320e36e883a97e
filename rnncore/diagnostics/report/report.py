"""The report of :func:`rnncore.diagnostics.diagnose`: the findings, shown, drawn, saved and asserted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rnncore.arguments import shown
from rnncore.diagnostics.figures.plot import plot as draw
from rnncore.diagnostics.findings.findings import SCHEMA_VERSION, Findings
from rnncore.diagnostics.report.page import page
from rnncore.diagnostics.results import plain
from rnncore.errors import ArgumentValueError

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure
    from rich.console import Console

__all__ = ["Report"]


@dataclass(frozen=True)
class Report(Findings):
    """The result of :func:`rnncore.diagnostics.diagnose`. ``print`` it, :meth:`plot` it, save it with :meth:`to_json`.

    The attributes are those of :class:`rnncore.diagnostics.findings.findings.Findings`: `verdict`, and one for each probe.
    """

    def __str__(self) -> str:
        s = self.subject
        lines = [
            f"{self.verdict.label}: {self.verdict.summary}",
            f"{s.network}, {s.steps} steps, {s.batch} rows, level {s.level!r}",
        ]
        lines += [f"  because  {e}" for e in self.verdict.evidence]
        lines += [f"  try      {r}" for r in self.verdict.remedies]
        return "\n".join(lines)

    def show(self, console: Console | None = None) -> None:
        """Print it, in colours where there is a terminal. Needs rich."""
        from rich.console import Console as RichConsole
        from rich.text import Text

        console = RichConsole() if console is None else console
        style = "bold green" if self.verdict.label == "healthy" else "bold red"
        for number, line in enumerate(str(self).splitlines()):
            console.print(Text(line, style=style if number == 0 else ""), soft_wrap=True)

    def plot(self, kind: str, path: str | Path | None = None) -> Figure:
        """One picture; see :func:`rnncore.diagnostics.figures.plot.plot`. Needs matplotlib."""
        return draw(self, kind, path)

    def to_html(self, path: str | Path | None = None) -> str:
        """One page with everything; see :func:`rnncore.diagnostics.report.page.page`. Needs matplotlib."""
        return page(self, path)

    def to_dict(self) -> dict[str, Any]:
        """Plain data with a schema version: arrays as nested lists, numbers that JSON lacks as "nan", "inf" and "-inf".

        "missing" gives the reason for every field with a "nan" or a null, by its path; "left_out" that for whole probes.
        """
        return {"schema_version": SCHEMA_VERSION, **plain(self), "missing": self.missing}

    def to_json(self, *, indent: int | None = None) -> str:
        """One JSON document."""
        return json.dumps(self.to_dict(), allow_nan=False, indent=indent)

    def assert_healthy(self, min_horizon: int | None = None) -> None:
        """Assert, in a test suite, that the verdict is healthy and that gradients reach `min_horizon` steps back.

        Parameters
        ----------
        min_horizon : int, optional
            The gain must not stay below 1e-3 from any lag below this; at most the steps of the run.

        Raises
        ------
        AssertionError
            With the whole report.
        """
        if self.verdict.label != "healthy":
            raise AssertionError(str(self))
        if min_horizon is None:
            return
        if isinstance(min_horizon, bool) or not isinstance(min_horizon, int) or min_horizon < 1:
            raise ArgumentValueError(f"min_horizon: expected an int >= 1, got {shown(min_horizon)}")
        if min_horizon > self.subject.steps:
            raise ArgumentValueError(
                f"min_horizon: expected at most the {self.subject.steps} steps of the run, got {shown(min_horizon)}"
            )
        for k, row in enumerate(self.horizon or ()):
            for d, found in enumerate(row):
                if found.lag_small is not None and found.lag_small < min_horizon:
                    raise AssertionError(
                        f"layer {k}, direction {d}: the gradient falls below 1e-3 after {found.lag_small} steps, and "
                        f"min_horizon is {min_horizon}\n{self}"
                    )
                followed = len(found.median) - 1
                if not found.complete and found.lag_small is None and followed < min_horizon:
                    raise AssertionError(
                        f"layer {k}, direction {d}: the losses were followed over {followed} steps, and min_horizon is "
                        f"{min_horizon}: give diagnose dependency_length={min_horizon}\n{self}"
                    )
