"""The picture of a run: ratios to torch.nn.RNN for each shape, and the cost over the number of steps and of rows."""

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
    """Write performance.png, unless there is neither a case nor a sweep."""
    groups = tables.groups(data)
    sweeps = {axis: found for axis in ("T", "B") if (found := tables.sweep(data, axis)[1])}
    if not groups and not sweeps:
        return []
    # Without pyplot: no window system, and no global state.
    figures: Any = importlib.import_module("matplotlib.figure")
    panels = (len(PASSES) if groups else 0) + len(sweeps)
    figure = figures.Figure(figsize=(WIDTH, HEIGHT * (1 + (panels > 2))), layout="constrained")
    axes = list(figure.subplots(1 + (panels > 2), min(panels, 2), squeeze=False).flat)
    if groups:
        first = axes[0]
        # The first group matters most; the page's tables have the others.
        group, entries = next(iter(groups.items()))
        for of in PASSES:
            _ratios(axes.pop(0), data, entries, of, f"L = {group[0]}, {group[1]}, {group[2]}, {threads(group[3])}")
    for axis, found in sweeps.items():
        _slope(axes.pop(0), data, found, axis)
    if groups:
        # The forward panel has all libraries; some have no gradients.
        figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    for empty in axes:
        empty.set_visible(False)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "performance.png"
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    return [path]


def _ratios(ax: Any, data: Data, entries: list[Data], of: str, title: str) -> None:
    """Draw torch's time divided by each peer's: above 1 the peer is faster than torch."""
    shapes = [", ".join(map(str, Case(**e["case"]).shape)) for e in entries]
    for k, (name, label) in enumerate(data["labels"].items()):
        found = [tables.medians(e, of) for e in entries]
        points = [(at, f[TORCH] / f[name]) for at, f in enumerate(found) if name in f and TORCH in f]
        if points:
            # By number, not by the order of drawing: a library without gradients is missing from one panel.
            style = {"linestyle": "none", "marker": MARKS[k % len(MARKS)], "color": f"C{k % 10}", "markersize": 6}
            fill = {} if name in data["ours"] else {"markerfacecolor": "none"}
            ax.plot(*zip(*points, strict=True), label=label, **style, **fill)
    ax.axhline(1.0, color="0.5", linewidth=0.8)
    ax.set_yscale("log")
    ax.set_xticks(range(len(shapes)), shapes, rotation=25, ha="right")
    ax.set_ylabel("times as fast as torch.nn.RNN")
    ax.set_title(f"{'forward' if of == 'forward' else 'forward + backward'}: {title}; filled: rnncore")


def _slope(ax: Any, data: Data, found: dict[str, tuple[list[int], list[float]]], axis: str) -> None:
    for mark, (name, (sizes, seconds)) in zip(MARKS, found.items(), strict=False):
        exponent = f", slope {slope(sizes, seconds):.2f}" if len(sizes) > 1 else ""
        ax.plot(sizes, [1e3 * s for s in seconds], marker=mark, label=f"{data['labels'][name]}{exponent}")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel(axis)
    ax.set_ylabel("ms, forward + backward")
    ax.set_title(f"cost over {axis}")
    ax.legend(fontsize=8)
