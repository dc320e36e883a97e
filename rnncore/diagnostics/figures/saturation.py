"""The saturated and dead fractions of each layer, and the size of its pre-activations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rnncore.diagnostics.figures.parts import ABSENT, BLUE, DARK, GREY, LIGHT, MAP, NARROW, lane_name, lanes_of
from rnncore.diagnostics.findings.findings import Findings
from rnncore.diagnostics.units.saturation import Saturation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


__all__ = ["draw_saturation"]


def draw_saturation(report: Findings, figure: Figure, width: float) -> None:
    """Draw a table of fractions, and the quantiles of |z|, a row for each layer and direction."""
    assert report.saturation is not None
    found = [lane for row in report.saturation for lane in row]
    names = [lane_name(report, k, d) for k, d in lanes_of(report)]
    wide = width > NARROW
    high = 1.4 + 0.42 * len(found)
    figure.set_size_inches(width, high + 0.5 if wide else 2 * high + 0.4)
    left, right = figure.subplots(1, 2, sharey=True) if wide else figure.subplots(2, 1)
    for axes in (left, right):
        axes.set_yticks(range(len(found)), names)
    _draw_fractions(left, found)
    _draw_sizes(right, found)
    right.xaxis.get_major_locator().set_params(numticks=6 if wide else 5)
    right.set_ylim(len(found) - 0.5, -0.5)
    right.tick_params(axis="y", labelleft=not wide)


def _draw_fractions(axes: Axes, found: Sequence[Saturation]) -> None:
    import matplotlib

    table = np.asarray([[float(x) for x in (s.saturated, s.dead, s.arithmetically_dead)] for s in found])
    colours = matplotlib.colormaps[MAP](np.nan_to_num(table))
    colours[np.isnan(table)] = matplotlib.colors.to_rgba(ABSENT[0])
    axes.imshow(colours, aspect="auto", interpolation="nearest")
    for (i, j), share in np.ndenumerate(table):
        absent = math.isnan(share)
        text = "no bounds\n(NaN)" if absent else _share(float(share))
        ink = DARK if absent or share > 0.5 else LIGHT
        axes.text(j, i, text, ha="center", va="center", color=ink, fontsize=8 if absent else 9)
    axes.set_xticks(range(3), ["saturated\nstates", "dead\nunits", "slopes that\nround to 0"], fontsize=8)
    axes.set_title("fraction", fontsize=10)


def _draw_sizes(axes: Axes, found: Sequence[Saturation]) -> None:
    shown = [{p: float(v) for p, v in zip(s.q, s.quantiles, strict=True) if math.isfinite(v)} for s in found]
    for i, sizes in enumerate(shown):
        if sizes:
            axes.plot([min(sizes.values()), max(sizes.values())], [i, i], color=GREY, linewidth=1.2, zorder=1)
        if 0.25 in sizes and 0.75 in sizes:
            axes.plot([sizes[0.25], sizes[0.75]], [i, i], color=BLUE, linewidth=7, alpha=0.5, solid_capstyle="butt")
        for p, v in sizes.items():
            marker = {0.5: "o", 1.0: "D"}.get(p, "|")
            axes.plot(v, i, linestyle="none", marker=marker, color=BLUE, markersize=6 if marker != "D" else 4)
    largest = max((v for sizes in shown for v in sizes.values()), default=1.0)
    axes.set_xscale("symlog", linthresh=0.1 if largest > 0.1 else 1e-3)
    axes.set_xlim(0, 2 * largest or 1.0)
    axes.grid(axis="x", color=GREY, alpha=0.3, linewidth=0.6)
    q = found[0].q
    note = "; inf and NaN not shown" if any(len(sizes) < len(q) for sizes in shown) else ""
    axes.set_xlabel(f"|z|; marks: {', '.join(f'{100 * p:g}' for p in q)} %{note}", fontsize=9)
    axes.set_title("pre-activations: dot the median, diamond the largest", fontsize=9)


def _share(x: float) -> str:
    return "0" if x == 0 else f"{100 * x:.2g} %" if x < 0.995 else f"{100 * x:.4g} %"
