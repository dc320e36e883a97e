"""The picture of a run: ratios to torch.nn.RNN shape by shape, and cost over the number of steps and of rows."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.case import PASSES, Case
from benchmarks.markdown import threads
from benchmarks.peers import TORCH
from benchmarks.ratios import slope
from benchmarks.tables import Data

WIDTH, HEIGHT, DPI = 14.0, 4.6, 110
MARKS = "osD^vP*X<>hpd8"


def draw(data: Data, folder: Path) -> list[Path]:
    """Write performance.png; nothing where there is neither a case nor a sweep."""
    groups, sweeps = tables.groups(data), data.get("sweeps", {})
    if not groups and not sweeps:
        return []
    # A figure of its own, without pyplot: no window system, no state of the process.
    figures: Any = importlib.import_module("matplotlib.figure")
    panels = (len(PASSES) if groups else 0) + len(sweeps)
    figure = figures.Figure(figsize=(WIDTH, HEIGHT * (1 + (panels > 2))), layout="constrained")
    axes = list(figure.subplots(1 + (panels > 2), min(panels, 2), squeeze=False).flat)
    if groups:
        first = axes[0]
        # The first group is what matters first; the others are in the page's tables.
        group, entries = next(iter(groups.items()))
        for of in PASSES:
            _ratios(axes.pop(0), data, entries, of, f"L = {group[0]}, {group[1]}, {group[2]}, {threads(group[3])}")
    for axis, entries in sweeps.items():
        _slope(axes.pop(0), data, entries, axis)
    if groups:
        # Forward has everyone; backward lacks those without gradients.
        figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    for empty in axes:
        empty.set_visible(False)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "performance.png"
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    return [path]


def _ratios(ax: Any, data: Data, entries: list[Data], of: str, title: str) -> None:
    """One line for each peer: torch's time over its own, above 1 is faster than torch."""
    shapes = [", ".join(map(str, Case.from_json(e["case"]).shape)) for e in entries]
    for k, (name, label) in enumerate(data["labels"].items()):
        found = [tables.medians(e, of) for e in entries]
        points = [(at, f[TORCH] / f[name]) for at, f in enumerate(found) if name in f and TORCH in f]
        if points:
            # By number, not by the order of drawing: whoever has no gradients is missing from one panel.
            style = {"linestyle": "none", "marker": MARKS[k % len(MARKS)], "color": f"C{k % 10}", "markersize": 6}
            fill = {} if name in data["ours"] else {"markerfacecolor": "none"}
            ax.plot(*zip(*points, strict=True), label=label, **style, **fill)
    ax.axhline(1.0, color="0.5", linewidth=0.8)
    ax.set_yscale("log")
    ax.set_xticks(range(len(shapes)), shapes, rotation=25, ha="right")
    ax.set_ylabel("times as fast as torch.nn.RNN")
    ax.set_title(f"{'forward' if of == 'forward' else 'forward + backward'}: {title}; filled: rnncore")


def _slope(ax: Any, data: Data, entries: list[Data], axis: str) -> None:
    for mark, (name, (sizes, seconds)) in zip(MARKS, tables.sizes_and_seconds(entries, axis).items(), strict=False):
        exponent = f", slope {slope(sizes, seconds):.2f}" if len(sizes) > 1 else ""
        ax.plot(sizes, [1e3 * s for s in seconds], marker=mark, label=f"{data['labels'][name]}{exponent}")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel(axis)
    ax.set_ylabel("ms, forward + backward")
    ax.set_title(f"cost over {axis}")
    ax.legend(fontsize=8)
