"""The gradient by lag before the loss, with upper bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rnncore.diagnostics.figures.parts import (
    BLUE,
    GREEN,
    GREY,
    LN10,
    NARROW,
    ORANGE,
    close,
    odd_marks,
    panels_for,
    points_for,
    thinned,
)
from rnncore.diagnostics.findings.findings import Findings
from rnncore.diagnostics.gradient.horizon import SMALL
from rnncore.diagnostics.numerics.device import EPS
from rnncore.typing import Host

if TYPE_CHECKING:
    from matplotlib.figure import Figure


__all__ = ["draw_horizon"]

# Decades of a gain that are shown; beyond them the gradient has long been lost.
DECADES = 40.0


def draw_horizon(report: Findings, figure: Figure, width: float) -> None:
    """Draw the median over the rows in a fan of quantiles, and its bounds, a panel for each layer and direction."""
    assert report.horizon is not None
    panels = panels_for(report, figure, width, height=1.9)
    points = points_for(report)
    eps = math.log10(EPS[report.subject.dtype])
    median_of = {(h.layer, h.direction): h.median / LN10 for row in report.horizon for h in row}
    reach = max(_shown(m) for m in median_of.values())
    values = np.concatenate([m[: reach + 1] for m in median_of.values()])
    values = values[np.isfinite(values)]
    low = max(-DECADES, min(eps - 2.0, float(values.min()) - 1 if len(values) else 0.0))
    high = min(DECADES, max(1.0, float(values.max()) + 1 if len(values) else 1.0))
    cut = reach + 1 < max(len(m) for m in median_of.values())
    for (k, d), axes in panels.items():
        found = report.horizon[k][d]
        at = thinned(min(len(found.median), reach + 1), points)
        if found.gain.shape[1] > 1:
            for (a, b), shade in (((0.05, 0.95), 0.28), ((0.25, 0.75), 0.45)):
                fan = np.stack([_quantiles(found.gain[n] / LN10, (a, b)) for n in at], axis=1)
                fan = np.clip(fan, low - 5, high + 5)
                label = f"{100 * a:.0f} to {100 * b:.0f} % of the rows"
                axes.fill_between(at, fan[0], fan[1], color=BLUE, alpha=shade, linewidth=0, label=label)
        median = median_of[k, d][at]
        axes.plot(
            at, np.where(np.isfinite(median), median, np.nan), color=BLUE, linewidth=1.8, label="median over the rows"
        )
        odd_marks(axes, at, median, low, high)
        bound = _bound(report, k, d, at)
        if bound is not None:
            label = r"certain: $(\sigma_{\max}\,\gamma)^n$"
            axes.plot(at, bound, color=ORANGE, linewidth=1.4, linestyle="-.", label=label)
        certain = _measured_bound(report, k, d, at)
        if certain is not None:
            axes.plot(at, certain, color=GREEN, linewidth=1.4, linestyle="--", label="certain: by the Jacobians")
        axes.axhline(math.log10(SMALL), color=GREY, linewidth=1.0, linestyle="--", label="1e-3")
        axes.axhline(eps, color=GREY, linewidth=1.2, linestyle=":", label=f"eps of {report.subject.dtype}")
        axes.set_ylim(low, high)
        axes.set_xlim(0, max(reach, 1))
    narrow = width <= NARROW and len(panels) > len(report.horizon)
    close(figure, panels, "lag n" if narrow else "steps before the loss (lag n)", r"$\log_{10}$ of the gain", width)
    zero = all(np.isneginf(m[reach + 1 :]).all() for m in median_of.values())
    note = f"; {'0' if zero else f'outside 1e±{DECADES:.0f}'} past lag {reach}" if cut else ""
    figure.suptitle(f"What is left of the gradient, by lag{note}", fontsize=10)


def _shown(median: Host) -> int:
    """The last lag worth showing: a little after the median has left DECADES for good, in either direction."""
    inside = np.flatnonzero(np.abs(median) <= DECADES)
    last = int(inside[-1]) if len(inside) else 0
    return min(len(median) - 1, max(last + 1 + last // 10, 8))


def _quantiles(row: Host, q: Sequence[float]) -> Host:
    row = np.sort(row[~np.isnan(row)])
    # Values that occur: -inf and a number have no mean.
    return np.asarray([row[int(p * (len(row) - 1))] for p in q]) if len(row) else np.full(len(q), np.nan)


def _bound(report: Findings, k: int, d: int, at: Host) -> Host | None:
    found = report.bounds
    if found is None or not found.gamma or not math.isfinite(found.gamma):
        return None
    rate = float(found.log_sigma_max[k][d]) + math.log(found.gamma)
    return at * rate / LN10 if math.isfinite(rate) else None


def _measured_bound(report: Findings, k: int, d: int, at: Host) -> Host | None:
    """The largest sum of ln of the upper ends over any n steps of any row: no gradient grows by more over a lag of n."""
    found = report.jacobian
    if found is None or not found.log_upper[k].shape[2]:
        return None
    ends = np.concatenate([np.zeros((1, found.log_upper[k].shape[2])), np.cumsum(found.log_upper[k][d], axis=0)])
    if np.isneginf(ends).any():
        return None  # a step that lets nothing pass: there are no differences of sums
    out = np.full(len(at), np.nan)
    for i, n in enumerate(at):
        sums = ends[n:] - ends[: len(ends) - n]
        sums = sums[~np.isnan(sums)]
        out[i] = sums.max() if len(sums) else np.nan
    return out / LN10
