"""The logarithmic gain of every step, as three parts that add up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rnncore.diagnostics.figures.parts import (
    ABSENT,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    SPECIAL,
    close,
    over_rows,
    panels_for,
    points_for,
)
from rnncore.diagnostics.findings.findings import Findings
from rnncore.typing import Host

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


__all__ = ["draw_decomposition"]


def draw_decomposition(report: Findings, figure: Figure, width: float) -> None:
    """Draw stacked parts and the line of their sum, a panel for each layer and direction."""
    assert report.decomposition is not None
    panels = panels_for(report, figure, width, height=1.9)
    points = points_for(report)
    parts = (("weights", BLUE), ("saturation", ORANGE), ("alignment", GREEN))
    steps = report.subject.steps
    n = min(steps, points)
    edges = np.linspace(0, steps, n + 1).round().astype(int)
    top = bottom = 0.0
    for (k, d), axes in panels.items():
        found = report.decomposition
        gain = found.gain[k][d]
        use = np.isfinite(gain)
        means = {name: _means(_spread(getattr(found, name)[k][d], gain), use, edges) for name, _ in parts}
        up, down = np.zeros(n), np.zeros(n)
        for name, colour in parts:
            part = np.nan_to_num(means[name])
            base = np.where(part >= 0, up, down)
            axes.stairs(base + part, edges, baseline=base, fill=True, color=colour, label=name, linewidth=0)
            up, down = up + np.maximum(part, 0), down + np.minimum(part, 0)
        total = _means(gain, use, edges)
        axes.stairs(total, edges, baseline=None, color="#000000", linewidth=1.1, label="their sum: ln of the gain")
        axes.axhline(0, color=GREY, linewidth=0.8)
        zero = _any(np.isneginf(gain), edges)
        silent = ~_any(use, edges) & ~zero
        _band(axes, edges, zero, SPECIAL["zero"][0], "all of a row's gradient lost: -inf")
        _band(axes, edges, silent, ABSENT[0], "no gradient here, or no such step (NaN)")
        if n:
            top, bottom = max(top, float(up.max())), min(bottom, float(down.min()))
        axes.set_xlim(0, max(steps, 1))
    room = 0.1 * (top - bottom) + 0.02
    for axes in panels.values():
        axes.set_ylim(bottom - room, top + room)
    note = "" if n == steps else f" (means of about {steps / max(n, 1):.0f})"
    close(figure, panels, f"step t{note}", "nats per step", width)
    figure.suptitle(f"What stretches the gradient at every step{over_rows(report, width, 'mean')}", fontsize=10)


def _spread(part: Host, gain: Host) -> Host:
    return np.broadcast_to(part, gain.shape) if part.ndim == 0 else part


def _means(x: Host, use: Host, edges: Host) -> Host:
    """Over the rows and the steps of each piece where the gain is finite, so that the parts add up to it."""
    sums, count = np.where(use, x, 0.0).sum(axis=1), use.sum(axis=1)
    total, number = (np.diff(np.concatenate([[0], np.cumsum(v)])[edges]) for v in (sums, count))
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def _any(mask: Host, edges: Host) -> Host:
    found: Host = np.diff(np.concatenate([[0], np.cumsum(mask.any(axis=1))])[edges]) > 0
    return found


def _band(axes: Axes, edges: Host, mask: Host, colour: str, label: str) -> None:
    """A strip along the foot of the panel."""
    if mask.any():
        on = np.where(mask, 0.06, 0.0)
        axes.stairs(on, edges, fill=True, color=colour, label=label, transform=axes.get_xaxis_transform(), zorder=4)
