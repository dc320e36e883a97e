"""The directions that a recurrence stretches: singular values, Lyapunov exponents, eigenvalues."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rnncore.diagnostics.figures.parts import (
    BLUE,
    GREEN,
    GREY,
    LN10,
    NARROW,
    ORANGE,
    PURPLE,
    RED,
    SPECIAL,
    lane_name,
    lanes_of,
)
from rnncore.diagnostics.findings.findings import Findings
from rnncore.diagnostics.numerics.device import EPS
from rnncore.typing import Host

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


__all__ = ["draw_eigenvalues", "draw_spectrum"]

# A scale that shows less than this would show rounding.
SHOWN = 1e-6
# An eigenvalue counts as outside the unit circle from this many eps of the dtype on.
ROUNDING = 32
AT_LEAST = "at least: not converged"
COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def draw_spectrum(report: Findings, figure: Figure, width: float) -> None:
    """Draw the singular values of the product beside the Lyapunov exponents."""
    assert report.product is not None
    lanes = lanes_of(report)
    wide = width > NARROW
    figure.set_size_inches(width, (3.4 if wide else 6.0) + 0.2 * math.ceil(len(lanes) / (3 if wide else 2)))
    left, right = figure.subplots(1, 2) if wide else figure.subplots(2, 1)
    count = max(p.log_singular.shape[1] for row in report.product for p in row)
    zero = doubtful = False
    for i, (k, d) in enumerate(lanes):
        style: Any = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "markersize": 5}
        log = report.product[k][d].log_singular / LN10
        at = np.arange(log.shape[1]) + 1 + _offset(i, len(lanes))
        middle = _median_columns(log)
        rows = np.where(np.isfinite(log), log, np.nan)
        spread = np.zeros((2, len(at)))
        for j in range(len(at)):
            some = rows[:, j][~np.isnan(rows[:, j])]
            if len(some) and math.isfinite(middle[j]):
                spread[:, j] = max(middle[j] - some.min(), 0.0), max(some.max() - middle[j], 0.0)
        shown = np.where(np.isfinite(middle), middle, np.nan)
        left.errorbar(
            at, shown, spread, label=lane_name(report, k, d), linestyle="none", capsize=2, elinewidth=1, **style
        )
        if (gone := np.isneginf(middle)).any():
            _at_foot(left, at[gone], zero)
            zero = True
        if report.product[k][d].doubt is not None:
            label = None if doubtful else AT_LEAST
            left.plot(at, shown, linestyle="none", marker="$\\uparrow$", color=GREY, markersize=13, label=label)
            doubtful = True
    left.axhline(0, color=GREY, linewidth=0.8)
    left.set_title("product of all Jacobians\n(bars: the range over the rows)", fontsize=10)
    left.set_ylabel(r"$\log_{10}$ of the singular value")
    zero = _exponents(report, right, lanes, zero)
    for axes in (left, right):
        axes.set_xlabel("number")
        axes.set_xlim(0.4, count + 0.6)
        axes.set_xticks(range(1, count + 1))
        axes.margins(y=0.12)
        y = np.concatenate([np.asarray(c.lines[0].get_ydata()) for c in axes.containers] or [np.zeros(0)])
        if not (np.abs(y[np.isfinite(y)]) > SHOWN).any():
            axes.set_ylim(-1, 1)
    handles, labels = left.get_legend_handles_labels()
    more = right.get_legend_handles_labels()
    for handle, label in zip(*more, strict=True):
        if label not in labels:
            handles, labels = [*handles, handle], [*labels, label]
    figure.legend(handles, labels, loc="outside lower center", ncols=3 if wide else 2, frameon=False, fontsize=9)


def _exponents(report: Findings, axes: Axes, lanes: Sequence[tuple[int, int]], zero: bool) -> bool:
    if report.lyapunov is None:
        axes.set_title("Lyapunov exponents", fontsize=10)
        reason = report.left_out.get("lyapunov", "the probe did not run")
        axes.text(0.5, 0.5, f"left out:\n{reason}", ha="center", va="center", transform=axes.transAxes, fontsize=9)
        axes.set_yticks([])
        return zero
    for i, (k, d) in enumerate(lanes):
        found = report.lyapunov[k][d]
        style: Any = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "markersize": 5}
        at = np.arange(len(found.exponents)) + 1 + _offset(i, len(lanes))
        finite = np.isfinite(found.exponents)
        with np.errstate(invalid="ignore"):  # -inf less -inf: a direction that dies has no interval
            bars = np.nan_to_num(np.abs(found.interval - found.exponents), nan=0.0, posinf=0.0)
        shown = np.where(finite, found.exponents, np.nan)
        axes.errorbar(
            at, shown, bars, label=lane_name(report, k, d), linestyle="none", capsize=2, elinewidth=1, **style
        )
        if (gone := np.isneginf(found.exponents)).any():
            _at_foot(axes, at[gone], zero)
            zero = True
        if np.isnan(found.exponents).any():
            axes.plot([], [], linestyle="none", marker="x", color=GREY, label="too few steps for an exponent (NaN)")
    axes.axhline(0, color=GREY, linewidth=0.8)
    confidence = report.lyapunov[0][0].confidence
    axes.set_title(f"Lyapunov exponents\n(bars: {100 * confidence:.0f} % intervals)", fontsize=10)
    axes.set_ylabel("nats per step")
    return zero


def _offset(i: int, n: int) -> float:
    return 0.5 * ((i + 0.5) / n - 0.5)


def _at_foot(axes: Axes, at: Host, labelled: bool) -> None:
    label = None if labelled else SPECIAL["zero"][1]
    where = np.full(len(at), 0.03)
    transform = axes.get_xaxis_transform()
    axes.plot(at, where, linestyle="none", marker="v", color=RED, transform=transform, label=label, clip_on=False)


def _median_columns(log: Host) -> Host:
    return np.sort(log, axis=0)[(len(log) - 1) // 2] if len(log) else np.full(log.shape[1], np.nan)


def draw_eigenvalues(report: Findings, figure: Figure, width: float) -> None:
    """Draw the eigenvalues of each W_hh against the unit circle."""
    lanes = [(k, d) for k, row in enumerate(report.eigenvalues) for d in range(len(row))]
    columns = min(len(lanes), 4 if width > NARROW else 2)
    if report.eigenvalues[0].shape[0] == 2:
        columns = 2
    rows = math.ceil(len(lanes) / columns)
    size = min(width / columns, 3.4)
    figure.set_size_inches(width if columns > 1 else min(width, 4.6), size * rows + 0.7)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    turn = np.exp(2j * np.pi * np.linspace(0, 1, 181))
    for axes, (k, d) in zip(grid, lanes, strict=False):
        re, im = report.eigenvalues[k][d].T
        radius = float(np.hypot(re, im).max()) if len(re) else math.nan
        limit = 1.15 * max(1.0, radius if math.isfinite(radius) else 1.0)
        axes.plot(turn.real, turn.imag, color=GREY, linewidth=1.2, label="unit circle")
        axes.axhline(0, color=GREY, linewidth=0.5)
        axes.axvline(0, color=GREY, linewidth=0.5)
        outside = np.hypot(re, im) > 1 + ROUNDING * EPS[report.subject.dtype]
        for some, colour, marker, label in (
            (~outside, BLUE, "o", "inside or on it"),
            (outside, RED, "^", "outside it"),
        ):
            axes.plot(re[some], im[some], linestyle="none", marker=marker, markersize=3.5, color=colour, label=label)
        if math.isnan(radius):
            axes.text(
                0, 0, "W_hh is not finite:\nno eigenvalues (NaN)", ha="center", va="center", color=RED, fontsize=9
            )
        axes.set_xlim(-limit, limit)
        axes.set_ylim(-limit, limit)
        axes.set_aspect("equal")
        axes.locator_params(nbins=5 if size > 2.5 else 3)
        axes.set_xlabel("real part", fontsize=9)
        axes.set_ylabel("imaginary part", fontsize=9)
        text = "" if math.isnan(radius) else f"\nspectral radius {radius:.3g}"
        axes.set_title(lane_name(report, k, d) + text, fontsize=9)
    for axes in grid[len(lanes) :]:
        axes.set_visible(False)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
