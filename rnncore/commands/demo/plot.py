"""The demonstration as a plot: log10 ||dL/dh_t|| over the steps, before and after training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from rnncore.commands.demo.training import Demo, Run

# matplotlib's default colours: cures in blue and green, failures in red and orange.
COLOURS = {"vanishing": "C3", "orthogonal": "C0", "exploding": "C1", "overflow": "C5", "identity": "C2"}


def plot(demo: Demo, path: str | Path) -> None:
    """Write the plot, in the format of the path's suffix.

    Raises
    ------
    OSError
        If the file cannot be written.
    ValueError
        If matplotlib does not know the suffix.
    """
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, title in ((left, "before training"), (right, "after training")):
        axes.set_title(title)
        axes.set_xlabel("step t (one pixel each; the loss is at the last)")
        axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        axes.set_xlim(0, 63)
    left.set_ylabel(r"$\log_{10}\ \|\partial L / \partial h_t\|$")
    for run in demo.runs:
        if run.stopped and any(r.start == run.start for r in demo.runs if r is not run):
            continue  # before training it is another run's network, and after training there are no numbers
        for axes, norms in ((left, run.start), (right, run.end)):
            axes.plot(_log10(norms), color=COLOURS.get(run.recipe.name), label=_label(run), linewidth=1.8)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)


def _label(run: Run) -> str:
    score = run.stopped if run.accuracy is None else f"{100 * run.accuracy:.0f} % right"
    return f"{run.recipe.name} ({run.recipe.network}): {score}"


def _log10(norms: Sequence[float]) -> list[float]:
    return [math.log10(n) if n > 0 and math.isfinite(n) else math.nan for n in norms]
