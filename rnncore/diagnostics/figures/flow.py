"""A map of the gradient's size, a row for each layer and direction, a column for each step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from rnncore.diagnostics.figures.parts import (
    ABSENT,
    DARK,
    LIGHT,
    LN10,
    MAP,
    NARROW,
    SPECIAL,
    lane_name,
    lanes_of,
    over_rows,
)
from rnncore.diagnostics.findings.findings import Findings
from rnncore.diagnostics.numerics.device import EPS
from rnncore.typing import Host

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


__all__ = ["draw_flow"]

# A map of more columns shows medians of equal pieces of time.
COLUMNS = 1000


def draw_flow(report: Findings, figure: Figure, width: float) -> None:
    """Draw the map, with an outline around values below eps of the largest."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import LineCollection
    from matplotlib.colors import Normalize, to_rgba
    from matplotlib.patches import Patch

    assert report.flow is not None
    lanes = lanes_of(report)
    steps = report.subject.steps
    valid = np.arange(steps)[:, None] < np.asarray(report.flow.lengths, dtype=np.int64)[None, :]
    whole = np.stack([_median_of_rows(report.flow.total[k][d], valid) for k, d in lanes]) / LN10
    absent = np.broadcast_to(~valid.any(axis=1), whole.shape)
    table, gone, edges = _columns(whole, absent)

    finite = table[np.isfinite(table)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (-1.0, 0.0)
    if high - low < 1e-6:
        low, high = low - 0.5, high + 0.5
    scale = ScalarMappable(Normalize(low, high), MAP)
    colours = np.asarray(scale.to_rgba(np.where(np.isfinite(table), table, low)))
    legend: list[Any] = []
    masks = {"zero": np.isneginf(table), "inf": np.isposinf(table), "nan": np.isnan(table) & ~gone}
    for name, (colour, label) in SPECIAL.items():
        if masks[name].any():
            colours[masks[name]] = to_rgba(colour)
            legend.append(Patch(facecolor=colour, label=label))
    if gone.any():
        colours[gone] = to_rgba(ABSENT[0])
        legend.append(Patch(facecolor=ABSENT[0], label=ABSENT[1]))

    figure.set_size_inches(width, max(3.0, 1.9 + 0.34 * len(lanes)))
    axes = figure.subplots()
    n = table.shape[1]
    axes.imshow(colours, aspect="auto", interpolation="nearest", extent=(0, n, len(lanes) - 0.5, -0.5))
    eps = EPS[report.subject.dtype]
    lost = [_below(row, math.log10(eps)) for row in table]
    if any(r.any() for r in lost):
        boxes = [box for lane, row in enumerate(lost) for box in _outlines(row, lane)]
        axes.add_collection(LineCollection(boxes, colors=LIGHT, linewidths=3.0))
        axes.add_collection(LineCollection(boxes, colors=DARK, linewidths=1.2))
        label = f"below eps = {eps:.1e} of its row's largest"
        legend.append(Patch(facecolor="none", edgecolor="#000000", linewidth=1.2, label=label))
    _time_axis(axes, edges, n)
    axes.set_yticks(range(len(lanes)), [lane_name(report, k, d) for k, d in lanes])
    axes.set_xlabel(_time_label(steps, n))
    _bar(figure, scale, axes, r"$\log_{10}\,\|\partial L/\partial h_t\|$")
    if legend:
        figure.legend(
            handles=legend, loc="outside lower center", ncols=2 if width > NARROW else 1, frameon=False, fontsize=9
        )
    axes.set_title(f"Size of the gradient at every step{over_rows(report, width)}", fontsize=10)


def _bar(figure: Figure, scale: Any, axes: Axes, label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    bar = figure.colorbar(scale, ax=axes, pad=0.02, fraction=0.08)
    bar.set_label(label)
    bar.ax.yaxis.set_major_locator(MaxNLocator(4))
    bar.ax.yaxis.set_major_formatter("{x:g}")


def _median_of_rows(total: Host, valid: Host) -> Host:
    """(T,): the lower median over the rows that have the step; NaN where one of them is NaN, or none has it."""
    ordered = np.sort(np.where(valid, total, np.inf), axis=1)
    count = valid.sum(axis=1)
    if not total.shape[1]:
        return np.full(len(total), np.nan)
    found = np.take_along_axis(ordered, np.maximum(count - 1, 0)[:, None] // 2, axis=1)[:, 0]
    wrong = (np.isnan(total) & valid).any(axis=1)
    return np.where(wrong | (count == 0), np.nan, found)


def _columns(table: Host, absent: Host) -> tuple[Host, Host, Host]:
    """At most COLUMNS of them: lower medians over pieces of time; what is not finite anywhere in a piece shows."""
    steps = table.shape[1]
    n = min(steps, COLUMNS)
    edges = np.linspace(0, steps, n + 1).round().astype(int)
    if n == steps:
        return table, absent, edges
    out, gone = np.full((len(table), n), np.nan), np.zeros((len(table), n), dtype=bool)
    for i in range(n):
        piece, missing = table[:, edges[i] : edges[i + 1]], absent[:, edges[i] : edges[i + 1]]
        gone[:, i] = missing.all(axis=1)
        for lane in np.flatnonzero(~gone[:, i]):
            there = np.sort(piece[lane][~missing[lane]])
            odd = there[~np.isfinite(there)]
            out[lane, i] = odd[-1] if len(odd) else there[(len(there) - 1) // 2]
    return out, gone, edges


def _below(row: Host, log_eps: float) -> Host:
    finite = row[np.isfinite(row)]
    if not len(finite):
        return np.zeros(len(row), dtype=bool)
    # What is exactly 0 has a colour that says so.
    below: Host = np.isfinite(row) & (row < finite.max() + log_eps)
    return below


def _outlines(row: Host, lane: int) -> list[list[tuple[float, float]]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
    top, bottom = lane - 0.44, lane + 0.44
    return [
        [(a, top), (b, top), (b, bottom), (a, bottom), (a, top)]
        for a, b in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
    ]


def _time_axis(axes: Axes, edges: Host, n: int) -> None:
    """Ticks at round steps, on an axis of columns."""
    from matplotlib.ticker import MaxNLocator

    steps = int(edges[-1])
    ticks = [int(t) for t in MaxNLocator(6, integer=True).tick_values(0, max(steps - 1, 1)) if 0 <= t < steps]
    axes.set_xticks([(t + 0.5) * n / steps for t in ticks], [str(t) for t in ticks])
    axes.set_xlim(0, n)


def _time_label(steps: int, n: int) -> str:
    note = "" if n == steps else f"; each column is the median of about {steps / n:.0f} steps"
    return f"step t{note}"
