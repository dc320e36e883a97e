"""plot_saturation: how much of each layer hardly reacts or not at all, and how large its pre-activations are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from rnncore.diagnostics.figures.parts import ABSENT, BLUE, DARK, GREY, LIGHT, MAP, NARROW, lane_name, lanes_of
from rnncore.diagnostics.findings.findings import Findings

if TYPE_CHECKING:
    from matplotlib.figure import Figure


__all__ = ["draw_saturation"]


def draw_saturation(report: Findings, figure: Figure, width: float) -> None:
    """A table of fractions, and the quantiles of |z|, a row for each layer and direction."""
    assert report.saturation is not None
    found, lanes = report.saturation, lanes_of(report)
    wide = width > NARROW
    high = 1.4 + 0.42 * len(lanes)
    figure.set_size_inches(width, high + 0.5 if wide else 2 * high + 0.4)
    left, right = figure.subplots(1, 2, sharey=True) if wide else figure.subplots(2, 1)
    names = ("saturated", "dead", "arithmetically_dead")
    table = np.asarray([[float(getattr(found, n)[k][d]) for n in names] for k, d in lanes])
    import matplotlib

    colours = matplotlib.colormaps[MAP](np.nan_to_num(table))
    colours[np.isnan(table)] = matplotlib.colors.to_rgba(ABSENT[0])
    left.imshow(colours, aspect="auto", interpolation="nearest")
    for (i, j), share in np.ndenumerate(table):
        text = "no bounds\n(NaN)" if math.isnan(share) else _share(float(share))
        ink = DARK if math.isnan(share) or share > 0.5 else LIGHT
        left.text(j, i, text, ha="center", va="center", color=ink, fontsize=9 if not math.isnan(share) else 8)
    left.set_xticks(range(3), ["states near\ntheir ends", "dead\nunits", "slopes that\nround to 0"], fontsize=8)
    left.set_yticks(range(len(lanes)), [lane_name(report, k, d) for k, d in lanes])
    left.set_title("fraction", fontsize=10)
    wrong = False
    for i, (k, d) in enumerate(lanes):
        q = found.quantiles[k][d]
        where = dict(zip(found.q, q, strict=True))
        shown = {p: float(v) for p, v in where.items() if math.isfinite(v)}
        wrong |= len(shown) < len(where)
        if shown:
            right.plot([min(shown.values()), max(shown.values())], [i, i], color=GREY, linewidth=1.2, zorder=1)
        if 0.25 in shown and 0.75 in shown:
            right.plot([shown[0.25], shown[0.75]], [i, i], color=BLUE, linewidth=7, alpha=0.5, solid_capstyle="butt")
        for p, v in shown.items():
            marker = {0.5: "o", 1.0: "D"}.get(p, "|")
            right.plot(v, i, linestyle="none", marker=marker, color=BLUE, markersize=6 if marker != "D" else 4)
    positive = [float(v) for k, d in lanes for v in found.quantiles[k][d] if math.isfinite(v)]
    right.set_xscale("symlog", linthresh=0.1 if max(positive, default=1) > 0.1 else 1e-3)
    right.xaxis.get_major_locator().set_params(numticks=6 if wide else 5)
    right.set_xlim(0, 2 * max(positive, default=1.0) or 1.0)
    right.set_yticks(range(len(lanes)), [lane_name(report, k, d) for k, d in lanes])
    right.set_ylim(len(lanes) - 0.5, -0.5)
    right.tick_params(axis="y", labelleft=not wide)
    right.grid(axis="x", color=GREY, alpha=0.3, linewidth=0.6)
    dots = ", ".join(f"{100 * p:g}" for p in found.q)
    right.set_xlabel(f"|z|; marks: {dots} %" + ("; inf and NaN not shown" if wrong else ""), fontsize=9)
    right.set_title("pre-activations: dot the median, diamond the largest", fontsize=9)


def _share(x: float) -> str:
    return "0" if x == 0 else f"{100 * x:.2g} %" if x < 0.995 else f"{100 * x:.4g} %"
