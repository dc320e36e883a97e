"""Parts of all figures: colours that the colour-blind can tell apart, panels and legends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rnncore.diagnostics.findings.findings import Findings
from rnncore.typing import Host

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#8c8c8c"
# Values without a colour of the map, in the order of the legend.
SPECIAL = {
    "zero": (RED, "exactly 0 (-inf)"),
    "inf": (PURPLE, "infinite (+inf)"),
    "nan": ("#56b4e9", "not a number (NaN)"),
}
ABSENT = ("#b4b4b4", "no such step")
MAP = "cividis"
# Ink on the map; not black and white, which a page may swap.
DARK, LIGHT = "#010101", "#fefefe"
# Inches: up to this width, panels are stacked.
NARROW = 6.0
# A curve of more points shows means, or some, of them.
POINTS = 400
ALL_POINTS = 6000
LN10 = float(np.log(10))


def lanes_of(report: Findings) -> list[tuple[int, int]]:
    """Every (layer, direction), in the order of the figures."""
    return [(k, d) for k, row in enumerate(report.eigenvalues) for d in range(len(row))]


def lane_name(report: Findings, k: int, d: int) -> str:
    """For an axis or a title; with an arrow where there are two directions."""
    if report.eigenvalues[0].shape[0] == 1:
        return f"layer {k}"
    return f"layer {k} " + ("←" if d else "→")


def over_rows(report: Findings, width: float, what: str = "median") -> str:
    """For a title: over how many rows, where there are several; on a line of its own in a narrow figure."""
    if report.subject.batch == 1:
        return ""
    return f"{' ' if width > NARROW else chr(10)}({what} over {report.subject.batch} rows)"


def points_for(report: Findings) -> int:
    """How many points a curve may have, so that a file of many panels stays small."""
    return max(40, min(POINTS, ALL_POINTS // max(len(lanes_of(report)), 1)))


def thinned(n: int, points: int) -> Host:
    """At most `points` of the indices below n, evenly, with both ends."""
    return np.unique(np.linspace(0, n - 1, min(n, points)).round().astype(int))


def panels_for(report: Findings, figure: Figure, width: float, *, height: float) -> dict[tuple[int, int], Axes]:
    """One for each layer (a row) and direction (a column), on common axes."""
    layers, directions = len(report.eigenvalues), report.eigenvalues[0].shape[0]
    figure.set_size_inches(width, (height if layers > 1 else 1.4 * height) * layers + 1.4)
    grid = figure.subplots(layers, directions, squeeze=False, sharex=True, sharey=True)
    out: dict[tuple[int, int], Axes] = {}
    for k in range(layers):
        for d in range(directions):
            out[k, d] = grid[k, d]
            if layers * directions > 1:
                grid[k, d].set_title(lane_name(report, k, d), fontsize=9)
    return out


def odd_marks(axes: Axes, at: Host, y: Host, low: float, high: float) -> None:
    """Triangles at the edge of the panel where y is infinite."""
    for mask, place, marker, name in ((np.isneginf(y), low, "v", "zero"), (np.isposinf(y), high, "^", "inf")):
        if mask.any():
            colour, label = SPECIAL[name]
            x = at[mask][:: max(1, int(mask.sum()) // 30)]
            axes.plot(
                x, np.full(len(x), place), linestyle="none", marker=marker, color=colour, label=label, clip_on=False
            )


def close(figure: Figure, panels: dict[tuple[int, int], Axes], x: str, y: str, width: float) -> None:
    """Common labels, and one legend of all that any panel shows."""
    last = max(k for k, _ in panels)
    for (k, d), axes in panels.items():  # not supxlabel: a legend below the axes would run into it
        axes.set_xlabel(x if k == last else "")
        axes.set_ylabel(y if d == 0 else "")
    handles: dict[str, Any] = {}
    for axes in panels.values():
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    columns = 3 if width > NARROW else 2
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=columns, frameon=False, fontsize=9
    )
