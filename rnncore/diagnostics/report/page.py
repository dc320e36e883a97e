"""A report as one HTML file, without scripts or other files, in the light or dark scheme of the reader's system."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rnncore.diagnostics.figures.plot import KINDS, available, plot
from rnncore.diagnostics.findings.findings import Findings
from rnncore.diagnostics.gradient.horizon import lag_text
from rnncore.diagnostics.report import html
from rnncore.diagnostics.report.html import text
from rnncore.io.atomic import replace

__all__ = ["page"]

# Inches. A phone shows 72 points of it as some 85 pixels, so that the smallest letters, of 8 points, can be read there.
WIDTH = 4.2

READ = {
    "flow": "Each row is a layer and direction, each column a step; the loss pulls where the map is brightest, and where the "
    "map fades the weights hardly learn from that step.",
    "horizon": "How much of the gradient is left n steps before the loss: a falling line vanishes, a rising one explodes, "
    "and no gradient is ever above a line that is certain.",
    "decomposition": "Above 0 a part makes the gradient grow at that step, below 0 it makes it shrink; the line is the sum, "
    "of weights, saturation and alignment.",
    "spectrum": "Singular values above 0 on this scale are directions that grew over the whole run; a positive Lyapunov "
    "exponent is chaos, all negative ones forget.",
    "eigenvalues": "Inside the unit circle a linear recurrence forgets, outside it explodes; for a nonlinear one this is a "
    "hint and proves nothing.",
    "saturation": "First the fractions of saturated states, dead units and lost slopes, then the size of the pre-activations.",
}

STYLE = """
body { overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 1.6rem 0 .4rem; }
h1.good { color: var(--good); }
h1.bad { color: var(--bad); }
code { font: .92em ui-monospace, monospace; }
p.quiet, figcaption, dt { color: var(--quiet); }
ul { padding-left: 1.2rem; margin: .3rem 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1.4rem;
  align-items: start; }
figure { margin: 0; min-width: 0; }
figure svg { width: 100%; height: auto; fill: currentColor; display: block; }
caption { text-align: left; font-weight: 600; padding: .8rem 0 .2rem; }
td, th { text-align: right; overflow-wrap: break-word; font-variant-numeric: tabular-nums; }
th { color: var(--quiet); font-weight: 500; }
td:first-child, th:first-child { text-align: left; white-space: nowrap; }
table.pairs { width: auto; }
.pairs td { text-align: left; }
@media (max-width: 60rem) {
  thead { display: none; }
  tr { display: block; border-top: 1px solid var(--line); padding: .4rem 0; }
  td { display: flex; justify-content: space-between; gap: 1rem; border: 0; padding: .1rem 0; }
  td:first-child { font-weight: 600; white-space: normal; }
  table.pairs { width: 100%; }
  .pairs tr { display: flex; flex-wrap: wrap; justify-content: space-between; column-gap: 1rem; }
  .pairs td:first-child { font-weight: 400; color: var(--quiet); }
  table:not(.pairs) td:not(:first-child)::before { content: attr(data-of); color: var(--quiet); text-align: left; }
}
"""

BODY = """<h1 class="{mood}">{label}</h1>
<p>{summary}</p>
<p class="quiet"><code>{network}</code><br>{subject}</p>
{verdict}
<h2>Figures</h2>
<div class="figures">
{figures}
</div>
<h2>Numbers</h2>
{tables}
{left_out}"""


def page(report: Findings, path: str | Path | None = None) -> str:
    """Write a report as a page: the verdict, the figures, each with how to read it, the numbers, and the omitted probes.

    Parameters
    ----------
    report : Report
    path : str or Path, optional
        File to write: complete, or not at all.

    Returns
    -------
    str
        The whole page, UTF-8 in the file.

    Raises
    ------
    ImportError
        Without matplotlib.
    ArgumentTypeError, ArgumentValueError
        If `path` is not a path, or exists and is not a regular file.
    FileAccessError
        If it cannot be written.

    Examples
    --------
    >>> import numpy as np, rnncore
    >>> from rnncore.diagnostics.report.page import page
    >>> report = rnncore.diagnose(rnncore.RNN(3, 8, rng=0), np.random.default_rng(0).standard_normal((100, 2, 3)))
    >>> text = page(report)
    >>> '<h1 class="bad">vanishing</h1>' in text, text.count("<figure>"), "<script" in text
    (True, 5, False)
    """
    s, verdict = report.subject, report.verdict
    figures, missing = [], dict(report.left_out)
    for kind in KINDS:
        reason = available(report, kind)
        if reason is None:
            figures.append(_figure(report, kind))
        elif kind not in missing and not (kind == "spectrum" and "product" in missing):
            missing[f"figure {kind}"] = reason
    body = BODY.format(
        mood="good" if verdict.label == "healthy" else "bad",
        label=text(verdict.label),
        summary=text(verdict.summary),
        network=text(s.network),
        subject=text(
            f"{s.steps} steps, {s.batch} rows, {s.dtype}, backend {s.backend}, level {s.level}; a dependency has to reach "
            f"over {s.dependency_length} steps"
        ),
        verdict=_list("Because", verdict.evidence) + _list("Try", verdict.remedies),
        figures="\n".join(figures),
        tables=_tables(report) or "<p>None: see the list below.</p>",
        left_out=_list("Left out", (f"{name}: {reason}" for name, reason in missing.items())),
    )
    whole = html.page(f"{verdict.label}: {s.network}", STYLE, body)
    if path is not None:
        data = whole.encode("utf-8", "backslashreplace")  # a plugin's message may hold a lone surrogate
        replace(path, lambda file: file.write(data))
    return whole


# --- figures ----------------------------------------------------------------------------------------------------------


def _figure(report: Findings, kind: str) -> str:
    out = io.StringIO()
    figure = plot(report, kind, width=WIDTH)
    figure.savefig(out, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return f"<figure>{_inline(out.getvalue(), kind)}<figcaption>{text(READ[kind])}</figcaption></figure>"


def _inline(svg: str, kind: str) -> str:
    """Make the figure an element of a page: unique names, and ink of the page's colour."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    # Numbered, and not matplotlib's random names: the same report is the same file.
    names = {name: f"{kind}-{i}" for i, name in enumerate(dict.fromkeys(re.findall(r'\bid="([^"]*)"', svg)))}
    svg = re.sub(r'\bid="([^"]*)"', lambda m: f'id="{names[m[1]]}"', svg)
    svg = re.sub(r'(href="|url\()#([^")]*)', lambda m: f"{m[1]}#{names.get(m[2], m[2])}", svg)
    svg = svg.replace("#000000", "currentColor")
    return svg.replace("<svg", f'<svg role="img" aria-label="{text(kind)}"', 1)


# --- numbers ----------------------------------------------------------------------------------------------------------


def _tables(report: Findings) -> str:
    names = [
        f"layer {k}" + (", reverse" if d else "") for k, row in enumerate(report.eigenvalues) for d in range(len(row))
    ]
    out = []
    for probe, title, columns in TABLES:
        if (found := getattr(report, probe)) is not None:
            lanes = [lane for row in found for lane in row]
            cells = {head: [_cell(lane, value) for lane in lanes] for head, value in columns(lanes[0]).items()}
            out.append(_table(title.format(gamma=_number(getattr(lanes[0], "gamma", None))), names, cells))
    if (check := report.gradcheck) is not None:
        rows = {**check.checks, "adjoint": check.adjoint}
        cells = {n: [getattr(c, n) for c in rows.values()] for n in ("analytic", "numeric", "error", "tolerance")}
        cells["passed"] = [("yes, at a kink" if c.kink else "yes") if c.passed else "NO" for c in rows.values()]
        out.append(_table(f"Gradients checked by {check.method}", list(rows), cells))
    if (bad := report.nonfinite) is not None:
        asked = ("phase", "cause", "quantity", "where", "layer", "direction", "step", "row", "unit", "value", "growth")
        shown: dict[str, Any] = {n: getattr(bad, n) for n in (*asked, "log_value")}
        shown |= {f"smallest and largest finite {n}": f"{_number(a)}, {_number(b)}" for n, (a, b) in bad.ranges.items()}
        out.append(_table("The first number that is not finite", list(shown), {"": list(shown.values())}))
    return "\n".join(out)


def _cell(lane: Any, value: str | Callable[[Any], Any]) -> Any:
    """A column's number of one lane: an attribute by its name, or a function of the result."""
    return getattr(lane, value) if isinstance(value, str) else value(lane)


def _saturation_columns(first: Any) -> dict[str, Any]:
    quantiles = {f"|z|, {100 * q:g} %": lambda s, i=i: s.quantiles[i] for i, q in enumerate(first.q)}
    return {
        f"saturated states (> {first.threshold:g})": "saturated",
        "dead units": "dead",
        "slopes that round to 0": "arithmetically_dead",
        **quantiles,
    }


# For each probe the title of its table and, from the first lane's result, the columns.
TABLES: tuple[tuple[str, str, Callable[[Any], dict[str, Any]]], ...] = (
    (
        "horizon",
        "Horizon",
        lambda _: {
            "below 1e-3 from lag": lambda x: lag_text(x.lag_small, x.followed),
            "below eps from lag": lambda x: lag_text(x.lag_eps, x.followed),
            "slope, nats per step": "slope",
            "e-fold, steps": "e_fold",
            "bias of truncation 10 % from K": "k_10",
            "1 % from K": "k_1",
        },
    ),
    (
        "decomposition",
        "Nats per step (mean of what is finite)",
        lambda _: {n: lambda x, n=n: _mean(getattr(x, n)) for n in ("weights", "saturation", "alignment", "gain")},
    ),
    ("saturation", "Saturation (fractions)", _saturation_columns),
    (
        "bounds",
        "Recurrent weights (gamma = {gamma})",
        lambda _: {
            "sigma_max": lambda x: _exp(x.log_sigma_max),
            "spectral radius": lambda x: _exp(x.log_spectral_radius),
            "ln |det|": "log_det",
            "vanishes for certain": lambda x: "yes" if x.vanishes else "no",
            "may explode": lambda x: "yes" if x.may_explode else "no",
        },
    ),
    (
        "initial",
        "Initial state by mean-field theory",
        lambda _: {
            "gain g now": "gain",
            "critical g": lambda x: x.critical.g,
            "chi now": lambda x: x.now.chi,
            "variance of the input": "input_variance",
        },
    ),
    (
        "weight_gradient",
        "Fraction of the steps that make up 90 % of the gradient",
        lambda _: {"weight_hh": "share_hh", "weight_ih": "share_ih"},
    ),
    (
        "jacobian",
        "Jacobians of the steps (means of what is finite)",
        lambda _: {
            "ln chi / 2, nats per step": lambda x: _mean(x.log_chi) / 2,
            "isometry gap": lambda x: _mean(x.isometry_gap),
            "largest slope": lambda x: _exp(np.fmax.reduce(x.log_max_slope, axis=None, initial=-math.inf)),
        },
    ),
    (
        "product",
        "Product of the Jacobians",
        lambda _: {
            "ln sigma_1, median of rows": lambda x: _at_least(_middle(x.log_singular[:, 0]), x.doubt is not None),
            "ln of the condition, median": lambda x: _middle(x.log_condition) if x.doubt is None else "not converged",
            "directions": lambda x: x.log_singular.shape[1],
            "rows converged": lambda x: f"{x.converged.sum()} of {len(x.converged)}",
        },
    ),
    (
        "lyapunov",
        "Lyapunov exponents",
        lambda _: {
            "lambda_1, nats per step": lambda x: x.exponents[0],
            "its interval": lambda x: " to ".join(_number(end) for end in x.interval[:, 0]),
            "Kaplan-Yorke dimension": "kaplan_yorke",
            # More positive exponents may follow those that were computed.
            "entropy rate, nats per step": lambda x: _at_least(
                x.entropy_rate, x.sum_residual is None and bool((x.exponents > 0).all())
            ),
            "an error doubles in, steps": lambda x: (
                _number(x.predictability) + (", if at all" if x.interval[0, 0] <= 0 < x.exponents[0] else "")
            ),
        },
    ),
)


def _at_least(x: float, lower_bound: bool) -> str:
    return ("at least " if lower_bound else "") + _number(x)


def _exp(log: Any) -> float:
    return math.exp(min(float(log), 700.0))


def _mean(x: Any) -> float:
    finite = np.asarray(x)[np.isfinite(x)]
    return float(finite.mean()) if finite.size else math.nan


def _middle(x: Any) -> float:
    some = np.sort(x[~np.isnan(x)])
    return float(some[(len(some) - 1) // 2]) if len(some) else math.nan


def _table(title: str, names: Sequence[str], columns: dict[str, list[Any]]) -> str:
    pairs = list(columns) == [""]  # names and values, which need no head
    head = "" if pairs else "".join(f"<th>{text(name)}</th>" for name in ("", *columns))
    rows = [
        f"<tr><td>{text(name)}</td>"
        + "".join(f'<td data-of="{text(column)}">{text(_number(values[i]))}</td>' for column, values in columns.items())
        + "</tr>"
        for i, name in enumerate(names)
    ]
    return (
        ('<table class="pairs">' if pairs else "<table>")
        + f"<caption>{text(title)}</caption>"
        + (f"<thead><tr>{head}</tr></thead>\n<tbody>" if head else "<tbody>")
        + "\n".join(rows)
        + "</tbody></table>"
    )


def _list(title: str, items: Iterable[Any]) -> str:
    found = "".join(f"<li>{text(str(item))}</li>" for item in items)
    return f"<h2>{text(title)}</h2>\n<ul>{found}</ul>\n" if found else ""


def _number(x: Any) -> str:
    if x is None:
        return "none"
    if isinstance(x, (str, bool)):
        return str(x)
    return str(int(x)) if isinstance(x, (int, np.integer)) else f"{float(x):.4g}"
