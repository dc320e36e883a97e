"""plot: one figure for each question that a report answers, with all that is not a number in a colour of its own.

matplotlib is imported when a figure is asked for, and without pyplot: there is no window and no global state. The colours
are those of Okabe and Ito and matplotlib's cividis, which the colour-blind can tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rnncore.diagnostics.horizon import EPS, SMALL
from rnncore.diagnostics.report import Report
from rnncore.errors import ArgumentValueError, UnknownNameError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["KINDS", "available", "check_kind", "plot"]

Host = np.ndarray[Any, Any]
INSTALL = 'pip install "rnncore[demo]"'

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#8c8c8c"
# What is not a number to colour: the order is that of the legend.
SPECIAL = {
    "zero": (RED, "exactly 0 (-inf)"),
    "inf": (PURPLE, "infinite (+inf)"),
    "nan": ("#56b4e9", "not a number (NaN)"),
}
ABSENT = ("#b4b4b4", "no such step")
MAP = "cividis"
# On the map itself; not black and white, which a page may exchange.
DARK, LIGHT = "#010101", "#fefefe"
WIDTH = 8.0
# A heat map of more columns, and a curve of more points, shows medians, or means, of equal pieces of time.
COLUMNS = 1000
POINTS = 400
ALL_POINTS = 6000
# Of a gain no more decades are shown: a float64 has gone to 0, or overflowed, long before.
DECADES = 40.0
# An eigenvalue is outside the unit circle from so many eps of the dtype on.
ROUNDING = 32
LN10 = math.log(10)


def plot(report: Report, kind: str, path: str | Path | None = None, *, width: float = WIDTH) -> Figure:
    """Draw one kind.

    Parameters
    ----------
    report : Report
    kind : str
        "flow": the gradient's size by layer, direction and time. "horizon": what is left of it by lag. "decomposition": what
        stretches it at every step. "spectrum": singular values of the product of the Jacobians and Lyapunov exponents.
        "eigenvalues": of each W_hh against the unit circle. "saturation": how much of the states is near its end.
    path : str or Path, optional
        Where to save it; its suffix says in what format.
    width : float
        Inches.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    UnknownNameError
        For another kind; with the closest name.
    ArgumentValueError
        For a kind whose probe did not run, with the reason, and for a suffix that matplotlib does not know.
    ImportError
        Without matplotlib.
    OSError
        If the file cannot be written.
    """
    check_kind(kind)
    figures = _matplotlib()
    if (reason := available(report, kind)) is not None:
        raise ArgumentValueError(f"kind: {kind!r} cannot be drawn: {reason}")
    figure: Figure = figures.Figure(figsize=(width, 3.0), layout="constrained")
    if path is not None:
        known = figure.canvas.get_supported_filetypes()
        if Path(path).suffix.lower().lstrip(".") not in known:
            raise ArgumentValueError(
                f"path: expected a file that ends in one of {', '.join(sorted(known))}, got {path!r}"
            )
    KINDS[kind](report, figure, width)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def check_kind(kind: str) -> None:
    """One of KINDS, or an error with the closest."""
    if kind not in KINDS:
        close = get_close_matches(str(kind), KINDS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UnknownNameError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}{hint}")


def available(report: Report, kind: str) -> str | None:
    """None, or why the kind cannot be drawn of this report."""
    if kind == "eigenvalues":
        return None if report.eigenvalues else "the report holds no eigenvalues"
    probe = "product" if kind == "spectrum" else kind
    if getattr(report, probe) is not None:
        return None
    return report.left_out.get(probe, f"{probe} did not run")


def _matplotlib() -> Any:
    try:
        from matplotlib import figure
    except ImportError as error:
        raise ImportError(f"a figure needs matplotlib: {INSTALL}") from error
    return figure


# --- flow -------------------------------------------------------------------------------------------------------------


def _flow(report: Report, figure: Figure, width: float) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import LineCollection
    from matplotlib.colors import Normalize, to_rgba
    from matplotlib.patches import Patch

    assert report.flow is not None
    lanes = _lanes(report)
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
        legend.append(Patch(facecolor=LIGHT, edgecolor=DARK, linewidth=1.2, label=label))
    _time_axis(axes, edges, n)
    axes.set_yticks(range(len(lanes)), [_name(report, k, d) for k, d in lanes])
    axes.set_xlabel(_time_label(steps, n))
    _bar(figure, scale, axes, r"$\log_{10}\,\|\partial L/\partial h_t\|$")
    if legend:
        figure.legend(
            handles=legend, loc="outside lower center", ncols=2 if width > 6 else 1, frameon=False, fontsize=9
        )
    axes.set_title(f"Size of the gradient at every step{_rows(report)}", fontsize=10)


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


# --- horizon ----------------------------------------------------------------------------------------------------------


def _horizon(report: Report, figure: Figure, width: float) -> None:
    assert report.horizon is not None
    panels = _panels(report, figure, width, height=1.9)
    points = _points(report)
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
        at = _thin(min(len(found.median), reach + 1), points)
        if found.gain.shape[1] > 1:
            for (a, b), shade in (((0.05, 0.95), 0.18), ((0.25, 0.75), 0.32)):
                fan = np.stack([_quantiles(found.gain[n] / LN10, (a, b)) for n in at], axis=1)
                fan = np.clip(fan, low - 5, high + 5)
                label = f"{100 * a:.0f} to {100 * b:.0f} % of the rows"
                axes.fill_between(at, fan[0], fan[1], color=BLUE, alpha=shade, linewidth=0, label=label)
        median = median_of[k, d][at]
        axes.plot(
            at, np.where(np.isfinite(median), median, np.nan), color=BLUE, linewidth=1.8, label="median over the rows"
        )
        _odd_marks(axes, at, median, low, high)
        bound = _bound(report, k, d, at)
        if bound is not None:
            label = r"certain: $(\sigma_{\max}\,\gamma)^n$"
            axes.plot(at, bound, color=ORANGE, linewidth=1.4, linestyle="-.", label=label)
        certain = _measured_bound(report, k, d, at)
        if certain is not None:
            axes.plot(at, certain, color=GREEN, linewidth=1.4, linestyle="--", label="certain: the Jacobians' brackets")
        axes.axhline(math.log10(SMALL), color=GREY, linewidth=1.0, linestyle="--", label="1e-3")
        axes.axhline(eps, color=GREY, linewidth=1.2, linestyle=":", label=f"eps of {report.subject.dtype}")
        axes.set_ylim(low, high)
        axes.set_xlim(0, max(reach, 1))
    _close(figure, panels, "steps before the loss (lag n)", r"$\log_{10}$ of the gain", width)
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


def _bound(report: Report, k: int, d: int, at: Host) -> Host | None:
    found = report.bounds
    if found is None or not found.gamma or not math.isfinite(found.gamma):
        return None
    rate = float(found.log_sigma_max[k][d]) + math.log(found.gamma)
    return at * rate / LN10 if math.isfinite(rate) else None


def _measured_bound(report: Report, k: int, d: int, at: Host) -> Host | None:
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


# --- decomposition ----------------------------------------------------------------------------------------------------


def _decomposition(report: Report, figure: Figure, width: float) -> None:
    assert report.decomposition is not None
    panels = _panels(report, figure, width, height=1.9)
    points = _points(report)
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
    _close(figure, panels, f"step t{note}", "nats per step", width)
    figure.suptitle(f"What stretches the gradient at every step{_rows(report, 'mean')}", fontsize=10)


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


# --- spectrum ---------------------------------------------------------------------------------------------------------


def _spectrum(report: Report, figure: Figure, width: float) -> None:
    assert report.product is not None
    lanes = _lanes(report)
    wide = width > 6
    figure.set_size_inches(width, (3.4 if wide else 6.0) + 0.2 * math.ceil(len(lanes) / (3 if wide else 2)))
    left, right = figure.subplots(1, 2) if wide else figure.subplots(2, 1)
    count = max(p.log_singular.shape[1] for row in report.product for p in row)
    zero = False
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
        left.errorbar(at, shown, spread, label=_name(report, k, d), linestyle="none", capsize=2, elinewidth=1, **style)
        if (gone := np.isneginf(middle)).any():
            _at_foot(left, at[gone], zero)
            zero = True
    left.axhline(0, color=GREY, linewidth=0.8)
    left.set_title("product of all Jacobians\n(bars: the range over the rows)", fontsize=10)
    left.set_ylabel(r"$\log_{10}$ of the singular value")
    zero = _exponents(report, right, lanes, zero)
    for axes in (left, right):
        axes.set_xlabel("number")
        axes.set_xlim(0.4, count + 0.6)
        axes.set_xticks(range(1, count + 1))
        axes.margins(y=0.12)
        if not any(np.isfinite(c.lines[0].get_ydata()).any() for c in axes.containers):
            axes.set_ylim(-1, 1)
    handles, labels = left.get_legend_handles_labels()
    more = right.get_legend_handles_labels()
    for handle, label in zip(*more, strict=True):
        if label not in labels:
            handles, labels = [*handles, handle], [*labels, label]
    figure.legend(handles, labels, loc="outside lower center", ncols=3 if wide else 2, frameon=False, fontsize=9)


COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def _exponents(report: Report, axes: Axes, lanes: Sequence[tuple[int, int]], zero: bool) -> bool:
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
        axes.errorbar(at, shown, bars, label=_name(report, k, d), linestyle="none", capsize=2, elinewidth=1, **style)
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


# --- eigenvalues ------------------------------------------------------------------------------------------------------


def _eigenvalues(report: Report, figure: Figure, width: float) -> None:
    lanes = [(k, d) for k, row in enumerate(report.eigenvalues) for d in range(len(row))]
    columns = min(len(lanes), 4 if width > 6 else 2)
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
        axes.locator_params(nbins=5)
        axes.set_xlabel("real part", fontsize=9)
        axes.set_ylabel("imaginary part", fontsize=9)
        text = "" if math.isnan(radius) else f"\nspectral radius {radius:.3g}"
        axes.set_title(_name(report, k, d) + text, fontsize=9)
    for axes in grid[len(lanes) :]:
        axes.set_visible(False)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)


# --- saturation -------------------------------------------------------------------------------------------------------


def _saturation(report: Report, figure: Figure, width: float) -> None:
    assert report.saturation is not None
    found, lanes = report.saturation, _lanes(report)
    wide = width > 6
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
        left.text(j, i, text, ha="center", va="center", color=ink, fontsize=9 if not math.isnan(share) else 7)
    left.set_xticks(range(3), ["states near\ntheir ends", "dead\nunits", "slopes that\nround to 0"], fontsize=8)
    left.set_yticks(range(len(lanes)), [_name(report, k, d) for k, d in lanes])
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
    right.set_xlim(0, 2 * max(positive, default=1.0) or 1.0)
    right.set_yticks(range(len(lanes)), [_name(report, k, d) for k, d in lanes])
    right.set_ylim(len(lanes) - 0.5, -0.5)
    right.tick_params(axis="y", labelleft=not wide)
    right.grid(axis="x", color=GREY, alpha=0.3, linewidth=0.6)
    dots = ", ".join(f"{100 * p:g}" for p in found.q)
    right.set_xlabel(f"|z|; marks: {dots} %" + ("; inf and NaN not shown" if wrong else ""), fontsize=9)
    right.set_title("pre-activations: dot the median, diamond the largest", fontsize=9)


def _share(x: float) -> str:
    return "0" if x == 0 else f"{100 * x:.2g} %" if x < 0.995 else f"{100 * x:.4g} %"


# --- for several of them ----------------------------------------------------------------------------------------------


def _lanes(report: Report) -> list[tuple[int, int]]:
    return [(k, d) for k, row in enumerate(report.eigenvalues) for d in range(len(row))]


def _name(report: Report, k: int, d: int) -> str:
    if report.eigenvalues[0].shape[0] == 1:
        return f"layer {k}"
    return f"layer {k} " + ("←" if d else "→")


def _rows(report: Report, what: str = "median") -> str:
    return "" if report.subject.batch == 1 else f" ({what} over {report.subject.batch} rows)"


def _points(report: Report) -> int:
    """How many points a curve may have, so that a file of many panels stays small."""
    return max(40, min(POINTS, ALL_POINTS // max(len(_lanes(report)), 1)))


def _thin(n: int, points: int) -> Host:
    return np.unique(np.linspace(0, n - 1, min(n, points)).round().astype(int))


def _panels(report: Report, figure: Figure, width: float, *, height: float) -> dict[tuple[int, int], Axes]:
    """One for each layer (a row) and direction (a column), on common axes."""
    layers, directions = len(report.eigenvalues), report.eigenvalues[0].shape[0]
    figure.set_size_inches(width, (height if layers > 1 else 1.4 * height) * layers + 1.4)
    grid = figure.subplots(layers, directions, squeeze=False, sharex=True, sharey=True)
    out: dict[tuple[int, int], Axes] = {}
    for k in range(layers):
        for d in range(directions):
            out[k, d] = grid[k, d]
            if layers * directions > 1:
                grid[k, d].set_title(_name(report, k, d), fontsize=9)
    return out


def _odd_marks(axes: Axes, at: Host, y: Host, low: float, high: float) -> None:
    for mask, place, marker, name in ((np.isneginf(y), low, "v", "zero"), (np.isposinf(y), high, "^", "inf")):
        if mask.any():
            colour, label = SPECIAL[name]
            x = at[mask][:: max(1, int(mask.sum()) // 30)]
            axes.plot(
                x, np.full(len(x), place), linestyle="none", marker=marker, color=colour, label=label, clip_on=False
            )


def _close(figure: Figure, panels: dict[tuple[int, int], Axes], x: str, y: str, width: float) -> None:
    """Common labels, and one legend of all that any panel shows."""
    last = max(k for k, _ in panels)
    for (k, d), axes in panels.items():  # not supxlabel: a legend below the axes would run into it
        axes.set_xlabel(x if k == last else "")
        axes.set_ylabel(y if d == 0 else "")
    handles: dict[str, Any] = {}
    for axes in panels.values():
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    columns = 3 if width > 6 else 2
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=columns, frameon=False, fontsize=9
    )


KINDS: dict[str, Callable[[Report, Figure, float], None]] = {
    "flow": _flow,
    "horizon": _horizon,
    "decomposition": _decomposition,
    "spectrum": _spectrum,
    "eigenvalues": _eigenvalues,
    "saturation": _saturation,
}
