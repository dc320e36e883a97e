"""page: a report as one HTML file that needs nothing else: no network, no script; light or dark as the reader's system is."""

from __future__ import annotations

import html
import io
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rnncore.diagnostics.figures.plot import KINDS, available, plot
from rnncore.diagnostics.findings.findings import Findings
from rnncore.io.files import replace

__all__ = ["page"]

# Inches. A phone shows 72 points of it as some 85 pixels, so that the smallest letters, of 8 points, can be read there.
WIDTH = 4.2

READ = {
    "flow": "Each row is a layer and direction, each column a step; the loss pulls where the map is brightest, and where the "
    "map fades the weights hardly learn from that step.",
    "horizon": "How much of the gradient is left so many steps before the loss: a falling line vanishes, a rising one "
    "explodes, and no gradient is ever above a line that is certain.",
    "decomposition": "Above 0 a part makes the gradient grow at that step, below 0 it makes it shrink; the line is the sum, "
    "and weights, saturation and alignment say whose doing it is.",
    "spectrum": "Singular values above 0 on this scale are directions that grew over the whole run; a positive Lyapunov "
    "exponent is chaos, all negative ones forget.",
    "eigenvalues": "Inside the unit circle a linear recurrence forgets, outside it explodes; for a nonlinear one this is a "
    "hint and proves nothing.",
    "saturation": "First the fraction of a layer that hardly reacts or not at all, then how large its pre-activations are.",
}

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --paper: #fff; --ink: #1f2328; --line: #8884; --good: #1a7f37; --bad: #cf222e;
  --quiet: #59636e; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --paper: #15181c; --ink: #e6e9ec; --good: #3fb950; --bad: #ff7b72; --quiet: #a0a8b0; }}
}}
body {{ background: var(--paper); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; margin: 1.2rem auto;
  max-width: 72rem; padding: 0 1rem; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.35rem; margin: 0 0 .3rem; }}
h2 {{ font-size: 1.1rem; margin: 1.6rem 0 .4rem; }}
h1.good {{ color: var(--good); }}
h1.bad {{ color: var(--bad); }}
code {{ font: .92em ui-monospace, monospace; }}
p.quiet, figcaption, dt {{ color: var(--quiet); }}
ul {{ padding-left: 1.2rem; margin: .3rem 0; }}
.figures {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1.4rem;
  align-items: start; }}
figure {{ margin: 0; min-width: 0; }}
figure svg {{ width: 100%; height: auto; fill: currentColor; display: block; }}
table {{ border-collapse: collapse; width: 100%; }}
caption {{ text-align: left; font-weight: 600; padding: .8rem 0 .2rem; }}
td, th {{ border-top: 1px solid var(--line); padding: .25rem .5rem; text-align: right; vertical-align: top;
  overflow-wrap: break-word;
  font-variant-numeric: tabular-nums; }}
th {{ color: var(--quiet); font-weight: 500; }}
td:first-child, th:first-child {{ text-align: left; white-space: nowrap; }}
table.pairs {{ width: auto; }}
.pairs td {{ text-align: left; }}
@media (max-width: 60rem) {{
  thead {{ display: none; }}
  tr {{ display: block; border-top: 1px solid var(--line); padding: .4rem 0; }}
  td {{ display: flex; justify-content: space-between; gap: 1rem; border: 0; padding: .1rem 0; }}
  td:first-child {{ font-weight: 600; white-space: normal; }}
  table.pairs {{ width: 100%; }}
  .pairs tr {{ display: flex; flex-wrap: wrap; justify-content: space-between; column-gap: 1rem; }}
  .pairs td:first-child {{ font-weight: 400; color: var(--quiet); }}
  table:not(.pairs) td:not(:first-child)::before {{ content: attr(data-of); color: var(--quiet); text-align: left; }}
}}
</style>
</head>
<body>
<h1 class="{mood}">{label}</h1>
<p>{summary}</p>
<p class="quiet"><code>{network}</code><br>{subject}</p>
{verdict}
<h2>Figures</h2>
<div class="figures">
{figures}
</div>
<h2>Numbers</h2>
{tables}
{left_out}
</body>
</html>
"""


def page(report: Findings, path: str | Path | None = None) -> str:
    """The page: the verdict first, then the figures, each with how to read it, the numbers, and what was left out.

    Parameters
    ----------
    report : Report
    path : str or Path, optional
        Where to write it: a whole file or none.

    Returns
    -------
    str
        The whole page, UTF-8 in the file.

    Raises
    ------
    ImportError
        Without matplotlib.
    ArgumentValueError
        If something stands at the path that is not a regular file.
    OSError
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
    text = PAGE.format(
        title=_text(f"{verdict.label}: {s.network}"),
        mood="good" if verdict.label == "healthy" else "bad",
        label=_text(verdict.label),
        summary=_text(verdict.summary),
        network=_text(s.network),
        subject=_text(
            f"{s.steps} steps, {s.batch} rows, {s.dtype}, backend {s.backend}, level {s.level}; a dependency has to reach "
            f"over {s.dependency_length} steps"
        ),
        verdict=_list("Because", verdict.evidence) + _list("Try", verdict.remedies),
        figures="\n".join(figures),
        tables=_tables(report) or "<p>None: see what was left out.</p>",
        left_out=_list("Left out", (f"{name}: {reason}" for name, reason in missing.items())),
    )
    if path is not None:
        replace(os.fspath(path), text.encode())
    return text


# --- figures ----------------------------------------------------------------------------------------------------------


def _figure(report: Findings, kind: str) -> str:
    out = io.StringIO()
    figure = plot(report, kind, width=WIDTH)
    figure.savefig(out, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return f"<figure>{_inline(out.getvalue(), kind)}<figcaption>{_text(READ[kind])}</figcaption></figure>"


def _inline(svg: str, kind: str) -> str:
    """As an element of a page that has others: names of its own, and ink of the page's colour."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    # Numbered, and not matplotlib's random names: the same report is the same file.
    names = {name: f"{kind}-{i}" for i, name in enumerate(dict.fromkeys(re.findall(r'\bid="([^"]*)"', svg)))}
    svg = re.sub(r'\bid="([^"]*)"', lambda m: f'id="{names[m[1]]}"', svg)
    svg = re.sub(r'(href="|url\()#([^")]*)', lambda m: f"{m[1]}#{names.get(m[2], m[2])}", svg)
    svg = svg.replace("#000000", "currentColor")
    return svg.replace("<svg", f'<svg role="img" aria-label="{_text(kind)}"', 1)


# --- numbers ----------------------------------------------------------------------------------------------------------


def _tables(report: Findings) -> str:
    places = [(k, d) for k, row in enumerate(report.eigenvalues) for d in range(len(row))]
    names = [f"layer {k}" + (", reverse" if d else "") for k, d in places]
    out = [_table(title, names, columns) for title, columns in _columns(report, places) if columns]
    if (check := report.gradcheck) is not None:
        rows = {**check.checks, "adjoint": check.adjoint}
        fields = ("analytic", "numeric", "error", "tolerance")
        columns = {n: [getattr(c, n) for c in rows.values()] for n in fields}
        columns["passed"] = [("yes, at a kink" if c.kink else "yes") if c.passed else "NO" for c in rows.values()]
        out.append(_table(f"Gradients checked by {check.method}", list(rows), columns))
    if (bad := report.nonfinite) is not None:
        asked = ("phase", "cause", "quantity", "where", "layer", "direction", "step", "row", "unit", "value", "growth")
        shown: dict[str, Any] = {n: getattr(bad, n) for n in (*asked, "log_value")}
        shown |= {f"smallest and largest finite {n}": f"{_number(a)}, {_number(b)}" for n, (a, b) in bad.ranges.items()}
        out.append(_table("The first number that is not finite", list(shown), {"": list(shown.values())}))
    return "\n".join(out)


def _columns(report: Findings, places: Sequence[tuple[int, int]]) -> Iterable[tuple[str, dict[str, list[Any]]]]:
    if report.horizon is not None:
        lags = [report.horizon[k][d] for k, d in places]
        fields = {
            "below 1e-3 from lag": "lag_small",
            "below eps from lag": "lag_eps",
            "slope, nats per step": "slope",
            "e-fold, steps": "e_fold",
            "bias of truncation 10 % from K": "k_10",
            "1 % from K": "k_1",
        }
        yield "Horizon", {text: [getattr(h, n) for h in lags] for text, n in fields.items()}
    if (parts := report.decomposition) is not None:
        nats = {n: [_mean(getattr(parts, n)[k][d]) for k, d in places] for n in ("weights", "saturation", "alignment")}
        yield "Nats per step (mean of what is finite)", {**nats, "gain": [_mean(parts.gain[k][d]) for k, d in places]}
    if (found := report.saturation) is not None:
        columns = {
            f"near the ends of the range (> {found.threshold:g})": [found.saturated[k][d] for k, d in places],
            "dead units": [found.dead[k][d] for k, d in places],
            "slopes that round to 0": [found.arithmetically_dead[k][d] for k, d in places],
        }
        columns |= {f"|z|, {100 * q:g} %": [found.quantiles[k][d][i] for k, d in places] for i, q in enumerate(found.q)}
        yield "Saturation (fractions)", columns
    if (bound := report.bounds) is not None:
        columns = {
            "sigma_max": [math.exp(min(bound.log_sigma_max[k][d], 700.0)) for k, d in places],
            "spectral radius": [math.exp(min(bound.log_spectral_radius[k][d], 700.0)) for k, d in places],
            "ln |det|": [bound.log_det[k][d] for k, d in places],
            "vanishes for certain": ["yes" if bound.vanishes[k][d] else "no" for k, d in places],
            "may explode": ["yes" if bound.may_explode[k][d] else "no" for k, d in places],
        }
        yield f"Recurrent weights (gamma = {_number(bound.gamma)})", columns
    if (start := report.initial) is not None:
        columns = {
            "gain g now": [start.gain[k][d] for k, d in places],
            "critical g": [start.critical[k][d].g for k, d in places],
            "chi now": [start.now[k][d].chi for k, d in places],
            "variance of the input": [start.input_variance[k][d] for k, d in places],
        }
        yield "Initial state by mean-field theory", columns
    if (steps := report.weight_gradient) is not None:
        columns = {
            "weight_hh": [steps.share_hh[k][d] for k, d in places],
            "weight_ih": [steps.share_ih[k][d] for k, d in places],
        }
        yield "Share of the steps that make up 90 % of the gradient", columns
    if (jacobian := report.jacobian) is not None:
        columns = {
            "ln chi / 2, nats per step": [_mean(jacobian.log_chi[k][d]) / 2 for k, d in places],
            "isometry gap": [_mean(jacobian.isometry_gap[k][d]) for k, d in places],
            "largest slope": [_largest_slope(jacobian.log_max_slope[k][d]) for k, d in places],
        }
        yield "Jacobians of the steps (means of what is finite)", columns
    if (product := report.product) is not None:
        columns = {
            "ln sigma_1, median of rows": [_middle(product[k][d].log_singular[:, 0]) for k, d in places],
            "ln of the condition, median": [_middle(product[k][d].log_condition) for k, d in places],
            "directions": [product[k][d].log_singular.shape[1] for k, d in places],
            "rows converged": [f"{product[k][d].converged.sum()} of {len(product[k][d].converged)}" for k, d in places],
        }
        yield "Product of the Jacobians", columns
    if (spectrum := report.lyapunov) is not None:
        columns = {
            "lambda_1, nats per step": [spectrum[k][d].exponents[0] for k, d in places],
            "its interval": [" to ".join(_number(x) for x in spectrum[k][d].interval[:, 0]) for k, d in places],
            "Kaplan-Yorke dimension": [spectrum[k][d].kaplan_yorke for k, d in places],
            "entropy rate, nats per step": [spectrum[k][d].entropy_rate for k, d in places],
            "an error doubles in, steps": [spectrum[k][d].predictability for k, d in places],
        }
        yield "Lyapunov exponents", columns


def _largest_slope(log: Any) -> float:
    return math.exp(min(float(np.max(log, initial=-math.inf, where=~np.isnan(log))), 700.0))


def _mean(x: Any) -> float:
    finite = np.asarray(x)[np.isfinite(x)]
    return float(finite.mean()) if finite.size else math.nan


def _middle(x: Any) -> float:
    some = np.sort(x[~np.isnan(x)])
    return float(some[(len(some) - 1) // 2]) if len(some) else math.nan


def _table(title: str, names: Sequence[str], columns: dict[str, list[Any]]) -> str:
    pairs = list(columns) == [""]  # names and values, which need no head
    head = "" if pairs else "".join(f"<th>{_text(text)}</th>" for text in ("", *columns))
    rows = [
        f"<tr><td>{_text(name)}</td>"
        + "".join(f'<td data-of="{_text(text)}">{_text(_number(values[i]))}</td>' for text, values in columns.items())
        + "</tr>"
        for i, name in enumerate(names)
    ]
    return (
        ('<table class="pairs">' if pairs else "<table>")
        + f"<caption>{_text(title)}</caption>"
        + (f"<thead><tr>{head}</tr></thead>\n<tbody>" if head else "<tbody>")
        + "\n".join(rows)
        + "</tbody></table>"
    )


def _list(title: str, items: Iterable[Any]) -> str:
    found = "".join(f"<li>{_text(str(item))}</li>" for item in items)
    return f"<h2>{_text(title)}</h2>\n<ul>{found}</ul>\n" if found else ""


def _number(x: Any) -> str:
    if x is None:
        return "none"
    if isinstance(x, (str, bool)):
        return str(x)
    return str(int(x)) if isinstance(x, (int, np.integer)) else f"{float(x):.4g}"


def _text(x: str) -> str:
    return html.escape(x, quote=True)
