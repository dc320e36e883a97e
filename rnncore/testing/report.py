"""Outcomes of the checks, and the report on them as text, JSON and one self-contained HTML page."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from rnncore.testing.tools.rules import Check
    from rnncore.testing.tools.subject import Measured

__all__ = ["SUITE_VERSION", "Outcome", "Report", "Setting"]

# Raised when checks are added, which happens only in minor releases.
SUITE_VERSION = "1.1"

Status: TypeAlias = Literal["passed", "failed", "expected to fail", "skipped"]


@dataclass(frozen=True)
class Outcome:
    """Result of one check.

    Attributes
    ----------
    id, rule, group : str
    status : {"passed", "failed", "expected to fail", "skipped"}
    reason : str
        Why it did not pass; empty if it did.
    error_eps, allowed_eps : float or None
        Error and tolerance, in eps, of the comparison that came closest to its tolerance. None if no number was compared.
    dtype, what : str
        Dtype and subject of that comparison.
    seconds : float
    """

    id: str
    rule: str
    group: str
    status: Status
    reason: str
    error_eps: float | None = None
    allowed_eps: float | None = None
    dtype: str = ""
    what: str = ""
    seconds: float = 0.0

    @classmethod
    def of(
        cls,
        check: Check,
        status: Any,
        reason: str,
        *,
        measured: Sequence[tuple[str, Measured]] = (),
        seconds: float = 0.0,
    ) -> Outcome:
        """Make an outcome from the comparisons of a check."""
        where: tuple[str, str] = ("", "")
        error = allowed = None
        if measured:
            dtype, worst = max(measured, key=lambda entry: _share(entry[1]))
            where, error, allowed = (dtype, worst.what), worst.eps, worst.allowed
        return cls(check.id, check.rule, check.group, status, reason, error, allowed, *where, seconds)

    def where_failure_is_expected(self, why: str) -> Outcome:
        """Return the outcome of a check that is known to fail. If it passed, or cannot run, that is a failure."""
        if self.status == "failed":
            return replace(self, status="expected to fail", reason=f"{why}: {self.reason}")
        found = "passed" if self.status == "passed" else f"cannot run here, as {self.reason}"
        return replace(self, status="failed", reason=f"expected to fail ({why}), and {found}: take it off the list")


@dataclass(frozen=True)
class Setting:
    """What a backend under test says of itself.

    Attributes
    ----------
    backend, device, kernel, precision : str
    versions : dict of str to str
    skips : dict of str to str
        Ids of the checks that the backend cannot be asked, with the reasons.
    """

    backend: str
    device: str
    kernel: str
    precision: str
    versions: dict[str, str]
    skips: dict[str, str]


@dataclass(frozen=True)
class Report:
    """The conformance of one backend on one device.

    Attributes
    ----------
    backend, device, kernel, precision : str
    versions : dict of str to str
    outcomes : tuple of Outcome
    seconds : float
    not_run : tuple of str
        Ids of the checks that did not end because the run was interrupted, first the one that was running. Empty if the run
        was complete.
    """

    backend: str
    device: str
    kernel: str
    precision: str
    versions: dict[str, str]
    outcomes: tuple[Outcome, ...]
    seconds: float
    not_run: tuple[str, ...] = ()

    def count(self, status: Status) -> int:
        """Number of checks with this status."""
        return sum(o.status == status for o in self.outcomes)

    @property
    def ran(self) -> int:
        """Number of checks that ran: all but the skipped ones."""
        return len(self.outcomes) - self.count("skipped")

    @property
    def ok(self) -> bool:
        """Whether checks ran, none failed, and the run was not interrupted."""
        return self.ran > 0 and self.count("failed") == 0 and not self.not_run

    @property
    def worst(self) -> Outcome | None:
        """Passed check with the largest error in eps, leaving out central differences and exact comparisons."""
        found = [o for o in self.outcomes if o.status == "passed" and o.error_eps and o.group != "DIFF"]
        found = [o for o in found if o.allowed_eps is not None and o.allowed_eps <= WITHIN_ROUNDING]
        return max(found, key=lambda o: o.error_eps or 0.0, default=None)

    @property
    def summary(self) -> str:
        """First line of the report."""
        return (
            f"{self.ran} ran: {self.count('passed')} passed, {self.count('failed')} failed, "
            f"{self.count('expected to fail')} expected to fail; {self.count('skipped')} skipped"
        )

    def __str__(self) -> str:
        lines = [self.summary, *self.heading]
        for o in sorted(self.outcomes, key=lambda o: list(MARKS).index(o.status)):
            eps = "" if o.error_eps is None else f"{_number(o.error_eps)} eps"
            reason = f"\n    {o.reason}" if o.reason else ""
            lines.append(f"{o.id:<14} {MARKS[o.status]:<8} {eps:>10}  {o.rule}{reason}")
        return "\n".join(lines)

    @property
    def heading(self) -> list[str]:
        """Lines with the setting, the largest error and the versions, and where the run was interrupted."""
        worst = self.worst
        measured = any(o.error_eps is not None for o in self.outcomes)
        largest = "no passed check has an error above 0" if measured else "no number was compared"
        if worst is not None:
            largest = f"largest error {worst.error_eps:.1f} eps ({worst.id}, {worst.dtype}, {worst.what})"
        first = next((o for o in self.outcomes if o.status == "failed"), None)
        if first is not None:
            largest = f"begin with {first.id}: {first.rule}"
        if self.ran == 0:
            largest = "no check ran: that is a failure"
        left = [f"interrupted in {self.not_run[0]}: {len(self.not_run)} did not end"] if self.not_run else []
        return [
            f"backend {self.backend}, device {self.device}, kernel={self.kernel!r}, precision {self.precision}; "
            f"{self.seconds:.1f} s; {largest}",
            ", ".join(f"{k} {v}" for k, v in self.versions.items()),
            *left,
        ]

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain data, with NaN and infinity as strings.

        The keys are ``schema`` (1), ``ok``, ``ran``, ``counts`` by status, and the attributes. Keys may be added; none is
        removed or changes its meaning while ``schema`` is the same.
        """
        from rnncore.diagnostics.results import plain  # takes as long to import as the suite itself

        counts = {s: self.count(s) for s in ORDER}
        return {"schema": 1, "ok": self.ok, "ran": self.ran, "counts": counts, **plain(self)}

    def to_json(self) -> str:
        """Convert to one JSON document."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def to_html(self) -> str:
        """Convert to one self-contained HTML page, without scripts, light or dark like the reader's system."""
        from rnncore.diagnostics.report.html import page  # slow, like plain

        rows = "\n".join(_row(o) for o in sorted(self.outcomes, key=lambda o: ORDER.index(o.status)))
        title = f"Conformance of {self.backend} on {self.device}"
        heading = "\n".join(f"<p>{html.escape(line)}</p>" for line in self.heading)
        verdict, summary = "ok" if self.ok else "failed", html.escape(self.summary)
        body = BODY.format(title=html.escape(title), verdict=verdict, summary=summary, heading=heading, rows=rows)
        return page(title, STYLE, body)


ORDER: tuple[Status, ...] = ("failed", "expected to fail", "passed", "skipped")
# In the text, failures come last, where a terminal shows them.
MARKS = {"passed": "passed", "skipped": "skipped", "expected to fail": "xfailed", "failed": "FAILED"}
WITHIN_ROUNDING = 1000.0

STYLE = """
.summary { font-weight: 600; }
.summary.ok, .passed b { color: var(--good); }
.summary.failed, .failed b { color: var(--bad); }
.skipped b, p, .reason { color: var(--quiet); }
td, th { text-align: left; }
td.id { font-family: ui-monospace, monospace; white-space: nowrap; }
td.eps { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
@media (max-width: 44rem) {
  thead { display: none; }
  tr { display: block; border-top: 1px solid var(--line); padding: .4rem 0; }
  td { display: inline-block; border: 0; padding: .1rem .5rem .1rem 0; }
  td.rule { display: block; }
}
"""

BODY = """<h1>{title}</h1>
<p class="summary {verdict}">{summary}</p>
{heading}
<table>
<thead><tr><th>check</th><th>status</th><th>error (allowed), eps</th><th>rule</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>"""


def _row(o: Outcome) -> str:
    reason = f'<div class="reason">{html.escape(o.reason)}</div>' if o.reason else ""
    eps = "" if o.error_eps is None else f"{_number(o.error_eps)} ({_number(o.allowed_eps or 0.0)})"
    kind = o.status.split()[0]
    return (
        f'<tr class="{kind}"><td class="id">{o.id}</td><td><b>{o.status}</b></td><td class="eps">{eps}</td>'
        f'<td class="rule">{html.escape(o.rule)}{reason}</td></tr>'
    )


def _number(x: float) -> str:
    return f"{x:.1f}" if x < WITHIN_ROUNDING else f"{x:.1e}"


def _share(m: Measured) -> float:
    """Error as a share of the tolerance."""
    if m.allowed == 0.0:
        return math.inf if m.eps > 0 else 0.0
    return m.eps / m.allowed
