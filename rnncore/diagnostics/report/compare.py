"""Two reports side by side: what changed after a repair, or whether two backends found the same numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnncore.arguments import describe
from rnncore.diagnostics.gradient.horizon import lag_text
from rnncore.diagnostics.report.report import Report
from rnncore.diagnostics.results import leaves, plain
from rnncore.errors import ArgumentTypeError, ArgumentValueError
from rnncore.typing import Host

__all__ = ["Change", "Comparison", "compare"]

# Singular vectors are on a device and have an arbitrary sign, so they are not compared.
VECTORS = ("left", "right")
# How the iteration went, and not what it found.
ITERATION = ("sweeps", "disagreement", "error")
# The numbers of a product that are lower bounds, or none at all, until it has converged.
BOUNDS = ("log_singular", "log_condition")
SHOWN = 5


@dataclass(frozen=True)
class Change:
    """Pairs of before and after for one layer and direction. NaN where not measured.

    Attributes
    ----------
    layer, direction : int
    lags : tuple of int
        1, 2, 4, ... and the last, of those that both reports have.
    log_gain : tuple of (float, float)
        ln of the median gain at these lags.
    lag_small, lag_eps : (int or None, int or None)
        None where the gain does not stay below 1e-3 or eps from any of the lags that were followed.
    followed : (int or None, int or None)
        Number of lags that were followed: None where that is all, 0 where not measured.
    slope, weights, saturation, alignment : (float, float)
        Nats per step. The last three are means of what is finite; -inf where nothing is and something is -inf.
    saturated : (float, float)
        Fraction of saturated states.
    """

    layer: int
    direction: int
    lags: tuple[int, ...]
    log_gain: tuple[tuple[float, float], ...]
    lag_small: tuple[int | None, int | None]
    lag_eps: tuple[int | None, int | None]
    followed: tuple[int | None, int | None]
    slope: tuple[float, float]
    weights: tuple[float, float]
    saturation: tuple[float, float]
    alignment: tuple[float, float]
    saturated: tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """Two reports side by side.

    Attributes
    ----------
    verdict : (str, str)
        The labels.
    networks : (str, str)
    changes : tuple of Change
        By layer and direction.
    differences : mapping of str to float
        The largest difference of every numeric field that both have in the same shape, by its path: 0 where both are
        the same infinity or both NaN, inf where one is and the other not.
    unlike : tuple of str
        Numeric fields that only one has, or that have other shapes.
    not_converged : tuple of str
        Numeric fields that have not converged in one of them. They are lower bounds and are not compared.
    """

    verdict: tuple[str, str]
    networks: tuple[str, str]
    changes: tuple[Change, ...]
    differences: Mapping[str, float]
    unlike: tuple[str, ...]
    not_converged: tuple[str, ...]

    @property
    def largest(self) -> tuple[str, float]:
        """The field that differs most, and by how much; ("", 0.0) where there is none."""
        return max(self.differences.items(), key=lambda item: item[1], default=("", 0.0))

    def agrees(self, tolerance: float = 1e-9) -> bool:
        """Whether the label and the fields are the same, and no number differs by more: for two backends and one run.

        False if a number has not converged, as nothing is known of its difference.
        """
        same = self.verdict[0] == self.verdict[1] and not self.unlike and not self.not_converged
        return same and self.largest[1] <= tolerance

    def to_dict(self) -> dict[str, Any]:
        """Plain data, numbers that JSON lacks as "nan", "inf" and "-inf"."""

        found: dict[str, Any] = plain(self)
        return found

    def __str__(self) -> str:
        a, b = self.verdict
        lines = [f"{a}, as before" if a == b else f"{a} -> {b}"]
        lines += [f"before  {self.networks[0]}", f"after   {self.networks[1]}"]
        for c in self.changes:
            lines.append(f"layer {c.layer}" + (", reverse" if c.direction else ""))
            lines += [_line(f"ln gain at lag {n}", pair) for n, pair in zip(c.lags, c.log_gain, strict=True)]
            for what, pair in (("1e-3", c.lag_small), ("eps", c.lag_eps)):
                a, b = (lag_text(lag, n) for lag, n in zip(pair, c.followed, strict=True))
                lines.append(f"  {f'below {what} from lag':<32} {a} -> {b}")
            lines.append(_line("slope, nats per step", c.slope))
            lines.append(_line("fraction of saturated states", c.saturated))
            for name in ("weights", "saturation", "alignment"):
                lines.append(_line(f"nats per step by {name}", getattr(c, name)))
        worst = sorted(self.differences.items(), key=lambda item: -item[1])[:SHOWN]
        lines.append("largest differences: " + (", ".join(f"{n} {v:.3g}" for n, v in worst) or "none"))
        for what, names in (("only in one, or of other shapes", self.unlike), ("not converged", self.not_converged)):
            if names:
                some = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
                lines.append(f"{what} ({len(names)}): {some}")
        return "\n".join(lines)


def compare(before: Report, after: Report) -> Comparison:
    """Put two reports side by side.

    Parameters
    ----------
    before, after : Report
        Of networks with the same layers and directions, over the same number of steps. Rows, widths, levels, dtypes and
        backends may differ.

    Returns
    -------
    Comparison
        ``print`` it; :meth:`Comparison.agrees` for a test.

    Raises
    ------
    ArgumentTypeError
        For anything but two reports.
    ArgumentValueError
        For other layers, directions or steps; it names both networks.

    Examples
    --------
    >>> import numpy as np, rnncore
    >>> from rnncore.diagnostics import diagnose
    >>> from rnncore.diagnostics.report.compare import compare
    >>> x = np.random.default_rng(0).standard_normal((200, 4, 3))
    >>> repaired = rnncore.RNN(3, 32, nonlinearity="identity", init=rnncore.init.orthogonal(1.0), rng=0)
    >>> found = compare(diagnose(rnncore.RNN(3, 32, rng=0), x), diagnose(repaired, x))
    >>> found.verdict, found.changes[0].lag_small
    (('vanishing', 'healthy'), (11, None))
    """
    for name, report in (("before", before), ("after", after)):
        if not isinstance(report, Report):
            raise ArgumentTypeError(f"{name}: expected a Report, got {describe(report)}")
    shapes = [([len(row) for row in r.eigenvalues], r.subject.steps) for r in (before, after)]
    if shapes[0] != shapes[1]:
        raise ArgumentValueError(
            f"after: expected a report of the same layers, directions and steps as before, "
            f"{_described(before)}, got {_described(after)}"
        )
    differences, unlike, not_converged = _differences(before, after)
    return Comparison(
        verdict=(before.verdict.label, after.verdict.label),
        networks=(before.subject.network, after.subject.network),
        changes=tuple(
            _change(before, after, k, d) for k, row in enumerate(before.eigenvalues) for d in range(len(row))
        ),
        differences=differences,
        unlike=unlike,
        not_converged=not_converged,
    )


def _described(report: Report) -> str:
    layers, directions = len(report.eigenvalues), max(map(len, report.eigenvalues), default=0)
    return f"{report.subject.network} (layers {layers}, directions {directions}, steps {report.subject.steps})"


def _change(before: Report, after: Report, k: int, d: int) -> Change:
    found = [_numbers_of(report, k, d) for report in (before, after)]
    medians = [own.pop("median") for own in found]
    lags = _lags(min(map(len, medians)))
    gains = tuple((float(medians[0][n]), float(medians[1][n])) for n in lags)
    return Change(k, d, lags, gains, **{name: (found[0][name], found[1][name]) for name in found[0]})


def _numbers_of(report: Report, k: int, d: int) -> dict[str, Any]:
    """The compared numbers of one lane; NaN or None where not measured."""
    found: dict[str, Any] = {"median": (), "lag_small": None, "lag_eps": None, "followed": 0, "slope": math.nan}
    if report.horizon is not None:
        found = {name: getattr(report.horizon[k][d], name) for name in found}
    for name in ("weights", "saturation", "alignment"):
        parts = report.decomposition
        found[name] = math.nan if parts is None else _mean(np.asarray(getattr(parts[k][d], name)))
    found["saturated"] = math.nan if report.saturation is None else float(report.saturation[k][d].saturated)
    return found


def _lags(count: int) -> tuple[int, ...]:
    powers = [2**i for i in range(count.bit_length()) if 2**i < count - 1]
    return (*powers, count - 1) if count > 1 else ()


def _mean(x: Host) -> float:
    finite = x[np.isfinite(x)]
    if finite.size:
        return float(finite.mean())
    return -math.inf if np.isneginf(x).any() else math.nan


# --- every number -----------------------------------------------------------------------------------------------------


def _differences(before: Report, after: Report) -> tuple[dict[str, float], tuple[str, ...], tuple[str, ...]]:
    a, b = _numbers(before), _numbers(after)
    open_lanes = tuple(lane for report in (before, after) for lane in _not_converged(report))
    not_converged = tuple(
        name for name in dict.fromkeys([*a, *b]) if name.startswith(open_lanes) and name.endswith(BOUNDS)
    )
    a, b = ({name: x for name, x in numbers.items() if name not in not_converged} for numbers in (a, b))
    both = {name: (a[name], b[name]) for name in a if name in b and a[name].shape == b[name].shape}
    unlike = tuple(name for name in dict.fromkeys([*a, *b]) if name not in both)
    return {name: _difference(*pair) for name, pair in both.items()}, unlike, not_converged


def _not_converged(report: Report) -> list[str]:
    """The paths of the products of which a row has not converged."""
    return [
        f"product[{k}][{d}]."
        for k, row in enumerate(report.product or ())
        for d, found in enumerate(row)
        if found.doubt is not None
    ]


def _numbers(report: Report) -> dict[str, Host]:
    """Every number and array on the host, by its path."""
    return {
        path: np.asarray(value, dtype=np.float64)
        for path, value in leaves(report)
        if isinstance(value, (bool, int, float, np.generic, np.ndarray))
        and path.rpartition(".")[2] not in VECTORS
        and not (path.startswith("product[") and path.endswith(ITERATION))
    }


def _difference(a: Host, b: Host) -> float:
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.where(same, 0.0, np.abs(a - b))
    return float(np.where(np.isnan(gap), np.inf, gap).max(initial=0.0))


def _line(what: str, pair: tuple[float, float]) -> str:
    change = f" ({pair[1] - pair[0]:+.4g})" if all(map(math.isfinite, pair)) else ""
    return f"  {what:<32} {pair[0]:.4g} -> {pair[1]:.4g}{change}"
