"""The verdict: a label from what was measured, with the evidence that decided it and remedies that quote the numbers.

Bounds and eigenvalues never decide: they are certificates. What decides is how much of the gradient was left after as many
steps as a dependency has to reach over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from rnncore.diagnostics.faults.first import NonFinite
from rnncore.diagnostics.gradient.decomposition import Decomposition
from rnncore.diagnostics.gradient.flow import Flow
from rnncore.diagnostics.gradient.horizon import EPS, SMALL, Horizon
from rnncore.diagnostics.jacobians.jacobian import Jacobian
from rnncore.diagnostics.jacobians.product import Product
from rnncore.diagnostics.recording import Record
from rnncore.diagnostics.units.initial import Initial
from rnncore.diagnostics.units.saturation import Saturation
from rnncore.diagnostics.verdict.remedies import (
    LOUD,
    SOME,
    Remedy,
    clip_the_norm,
    free_gain,
    new_gain,
    place,
    repair,
    wake_up,
)

__all__ = ["Evidence", "Label", "Remedy", "Verdict", "decide"]

Label: TypeAlias = Literal[
    "healthy", "vanishing", "exploding", "mixed", "saturated", "dead", "nonfinite", "inconclusive"
]

LARGE = 1e3
# More than half: then what most units do is what the layer does.
MOST = 0.5
FEW = 3
AT_AN_END = "fraction of states at an end of their range"


@dataclass(frozen=True)
class Evidence:
    """One measured number that spoke for the label.

    Attributes
    ----------
    metric : str
    value, threshold : float
    where : str
    """

    metric: str
    value: float
    threshold: float
    where: str

    def __str__(self) -> str:
        return f"{self.metric} is {self.value:.4g} (threshold {self.threshold:.4g}) at {self.where}"


@dataclass(frozen=True)
class Verdict:
    """What :func:`rnncore.diagnostics.diagnose` makes of what the probes found.

    Attributes
    ----------
    label : {"healthy", "vanishing", "exploding", "mixed", "saturated", "dead", "nonfinite", "inconclusive"}
        Their rules stand in docs/diagnostics.md, in the order in which they are tried.
    summary : str
        One line.
    evidence : tuple of Evidence
        The numbers that decided it. Empty where there was nothing to measure.
    remedies : tuple of Remedy
        What to change, in the order in which to do it. Empty where nothing is wrong or nothing is known.
    """

    label: Label
    summary: str
    evidence: tuple[Evidence, ...]
    remedies: tuple[Remedy, ...]


@dataclass(frozen=True)
class _Reach:
    """What is left of the gradient of one layer and direction after the steps that count."""

    where: str
    layer: int
    direction: int
    lag: int
    median: float
    low: float
    high: float
    slope: float
    rate: float  # of a random direction, nats per step; NaN where it was not measured
    top: float  # ln of the largest singular value of the whole product; NaN where it was not measured

    @property
    def place(self) -> tuple[int, int]:
        return self.layer, self.direction


def decide(
    record: Record,
    *,
    dependency_length: int,
    asked: bool,
    nonfinite: NonFinite | None,
    flow: Flow | None,
    horizon: Sequence[Sequence[Horizon]] | None,
    saturation: Saturation | None,
    decomposition: Decomposition | None,
    jacobian: Jacobian | None,
    initial: Initial | None,
    product: Sequence[Sequence[Product]] | None,
) -> Verdict:
    """The label. What was not measured is None and does not count; `asked` is whether the caller gave dependency_length."""
    if nonfinite is not None:
        return _not_finite(record, nonfinite)
    if record.batch == 0 or max(record.lengths, default=0) < 2:
        return Verdict(
            "inconclusive", "a run of at least two steps and one row is needed to see a gradient move", (), ()
        )
    if flow is None or horizon is None or saturation is None or initial is None or decomposition is None:
        return Verdict("inconclusive", "the gradients could not be measured", (), ())
    if all(np.isneginf(t[~np.isnan(t)]).all() for t in flow.direct):
        return Verdict("inconclusive", "the cotangent is zero: there is no gradient to follow", (), ())
    reaches = [
        _reach(found, dependency_length, jacobian, product, k, d)
        for k, row in enumerate(horizon)
        for d, found in enumerate(row)
        if _can_be_judged(found, min(dependency_length, max(record.lengths)))
    ]
    if not reaches:
        return Verdict("inconclusive", "no state is far enough from the loss to see a gradient move", (), ())
    if dead := _dead(saturation):
        places = [(k, d) for k, d, _ in dead]
        evidence = tuple(
            Evidence("fraction of units whose slope is 0 at every step and row", share, MOST, place(k, d))
            for k, d, share in dead
        )
        remedies = wake_up(record, initial, saturation, places)
        return Verdict("dead", "most units never react to anything", evidence, remedies)
    floor, ceiling = math.log(SMALL), math.log(LARGE)
    grown = [r for r in reaches if (r.median > ceiling or r.top > ceiling) and (r.slope > 0 or r.top > ceiling)]
    shrunk = [r for r in reaches if r.median < floor]
    torn = [r for r in reaches if r.low < floor and r.high > ceiling]
    torn += [r for r in grown if r.median < ceiling and r.rate < 0]
    if torn or (grown and shrunk):
        chosen = torn or [*grown, *shrunk]
        return Verdict(
            "mixed",
            "some directions or rows explode while others vanish",
            tuple(_evidence(r) for r in chosen),
            (*repair(record, initial, saturation, {r.place for r in chosen}), clip_the_norm()),
        )
    if grown:
        worst = max(grown, key=lambda r: max(r.median, r.top))
        return Verdict(
            "exploding",
            f"the gradient grows by e^{max(worst.median, worst.top):.0f} over {worst.lag} steps",
            tuple(_evidence(r) for r in grown),
            (*new_gain(record, initial, {r.place for r in grown}), clip_the_norm()),
        )
    if shrunk:
        return _shrunk(record, shrunk, saturation, decomposition, initial)
    seen = max(r.lag for r in reaches)
    if not _reaches_far_enough(reaches, dependency_length, max(record.lengths), asked):
        return Verdict(
            "inconclusive",
            f"a dependency of {dependency_length} steps cannot be judged: the gradient is seen over {seen} steps, and has "
            "neither grown nor shrunk so far",
            tuple(_evidence(r) for r in reaches),
            (),
        )
    return _healthy(record, reaches, saturation, initial)


def _reaches_far_enough(reaches: list[_Reach], wanted: int, longest: int, asked: bool) -> bool:
    """Whether what is healthy so far may be called so: by the lags that are seen, or by where they lead if nobody asked."""
    seen = max(r.lag for r in reaches)
    # A loss at many steps leaves h_0 out, so of a whole run one lag is missing.
    if seen >= wanted or (wanted == longest and seen == wanted - 1):
        return True
    floor, ceiling = math.log(SMALL), math.log(LARGE)
    farthest = [r.median + r.slope * (wanted - r.lag) for r in reaches if r.lag == seen]
    return not asked and all(floor <= gain <= ceiling for gain in farthest)


def _can_be_judged(found: Horizon, wanted: int) -> bool:
    """Whether the lags reach as far as is wanted, or are enough to see the gradient die before that."""
    # A reverse direction whose loss stands on its own first step has one lag and nothing to tell.
    return len(found.median) > wanted or int(np.isfinite(found.median).sum()) > FEW


def _reach(
    found: Horizon,
    wanted: int,
    jacobian: Jacobian | None,
    product: Sequence[Sequence[Product]] | None,
    k: int,
    d: int,
) -> _Reach:
    lag = min(wanted, len(found.median) - 1)
    rows = found.gain[lag][~np.isnan(found.gain[lag])]
    low, high = np.quantile(rows, (0.25, 0.75), method="nearest") if len(rows) else (math.nan, math.nan)
    rate = math.nan
    if jacobian is not None:
        chi = jacobian.log_chi[k][d]
        chi = chi[np.isfinite(chi)]
        rate = 0.5 * float(chi.mean()) if len(chi) else math.nan
    top = math.nan
    if product is not None:
        tops = product[k][d].log_singular[:, 0]
        top = float(np.median(tops)) if len(tops) else math.nan
    where = f"{place(k, d)}, lag {lag}"
    return _Reach(where, k, d, lag, float(found.median[lag]), float(low), float(high), found.slope, rate, top)


def _evidence(r: _Reach) -> Evidence:
    if not math.isnan(r.top) and r.top > max(r.median, math.log(LARGE)):
        return Evidence("ln of the largest singular value of the product of Jacobians", r.top, math.log(LARGE), r.where)
    threshold = math.log(LARGE) if r.median > 0 else math.log(SMALL)
    return Evidence("ln gain of the gradient (median over rows)", r.median, threshold, r.where)


def _shrunk(
    record: Record,
    shrunk: list[_Reach],
    saturation: Saturation,
    decomposition: Decomposition,
    initial: Initial,
) -> Verdict:
    """Saturated if that is what takes the gradient in some layer, else vanishing."""
    saturated = [r for r in shrunk if _is_saturated(r, record, saturation, decomposition, initial)]
    worst = min(saturated or shrunk, key=lambda r: r.median)
    k, d = worst.place
    at = place(k, d)
    eps = EPS[record.engine.dtype_name]
    lost = worst.median < math.log(eps)
    weights, slopes = _losses(record, decomposition, worst.place)
    evidence = [_evidence(r) for r in sorted(shrunk, key=lambda r: r.median)]
    if lost:
        text = f"ln gain, below ln eps of {record.engine.dtype_name}: no longer seen in a sum"
        evidence.insert(0, Evidence(text, worst.median, math.log(eps), worst.where))
    evidence += [
        Evidence("nats per step by the weights", weights, 0.0, at),
        Evidence("nats per step by saturation", slopes, 0.0, at),
    ]
    remedies = repair(record, initial, saturation, {r.place for r in shrunk})
    if saturated:
        share, v = float(saturation.saturated[k][d]), initial.input_variance[k][d]
        evidence += [
            Evidence(AT_AN_END, share, MOST if share > MOST else SOME, at),
            Evidence("nats over the lag by saturation alone", slopes * worst.lag, math.log(SMALL), at),
            Evidence("mean square of W_ih x + b", v, LOUD, at),
        ]
        summary = f"{share:.0%} of the states of {at} are at an end of their range, and gradients vanish there"
        return Verdict("saturated", summary, tuple(evidence), remedies)
    much = "nothing of it is seen in this dtype" if lost else f"e^{worst.median:.0f} of it is left"
    rate = "" if math.isnan(worst.slope) else f" ({worst.slope:.3g} nats per step)"
    summary = f"after {worst.lag} steps {much}{rate}"
    return Verdict("vanishing", summary, tuple(evidence), remedies)


def _is_saturated(
    r: _Reach, record: Record, saturation: Saturation, decomposition: Decomposition, initial: Initial
) -> bool:
    """Most states are at an end; or some are, or are driven there, and that alone takes the gradient."""
    share = float(saturation.saturated[r.layer][r.direction])
    if math.isnan(share) or share > MOST:  # NaN: a function without ends
        return share > MOST
    weights, slopes = _losses(record, decomposition, r.place)
    alone = slopes * r.lag < math.log(SMALL) and slopes < min(weights, 0.0)
    # Slopes below 1 are no finding by themselves: every tanh network that is not silent has them. Where nothing is at an
    # end, or driven there, a larger gain makes up for them.
    return alone and (share > SOME or initial.input_variance[r.layer][r.direction] > LOUD)


def _losses(record: Record, decomposition: Decomposition, at: tuple[int, int]) -> tuple[float, float]:
    """Nats per step by the weights with every slope at its largest, and by the slopes that are below that."""
    k, d = at
    # The slope of a logistic function is 1/4 where it is farthest from its ends: that is no saturation.
    largest = math.log(record.nonlinearity.gamma or 1.0)
    each = decomposition.saturation[k][d]
    rows = np.asarray(record.lengths) > 0
    # A row's mean is -inf where a single step lets nothing through.
    mean = float(np.median(np.nanmean(each[:, rows], axis=0)))
    return float(decomposition.weights[k][d]) + largest, mean - largest


def _healthy(record: Record, reaches: list[_Reach], saturation: Saturation, initial: Initial) -> Verdict:
    """Healthy; but if many states hardly respond, that is said, and what to do about it."""
    weakest = min(reaches, key=lambda r: r.median)
    summary = f"after {weakest.lag} steps the gradient is still e^{weakest.median:.1f} of what it was"
    evidence = [_evidence(weakest)]
    shares = {r.place: float(saturation.saturated[r.layer][r.direction]) for r in reaches}
    many = {at: share for at, share in shares.items() if share > SOME}
    if not many:
        return Verdict("healthy", summary, tuple(evidence), ())
    at, share = max(many.items(), key=lambda item: item[1])
    summary += f", but {share:.0%} of the states of {place(*at)} are at an end of their range, where they hardly learn"
    evidence += [Evidence(AT_AN_END, share, SOME, place(*at)) for at, share in many.items()]
    return Verdict("healthy", summary, tuple(evidence), repair(record, initial, saturation, set(many)))


def _dead(saturation: Saturation) -> list[tuple[int, int, float]]:
    """Layer, direction and share of the units, where that is most; NaN is not."""
    return [
        (k, d, float(share))
        for k, row in enumerate(saturation.dead)
        for d, share in enumerate(row)
        if float(share) > MOST
    ]


def _not_finite(record: Record, found: NonFinite) -> Verdict:
    where = place(found.layer, found.direction)
    where += "" if found.step is None else f", step {found.step}"
    where += "" if found.row is None else f", row {found.row}"
    where += f", unit {found.unit}"
    summary = f"{found.quantity} is {found.value} in the {found.phase} pass at {where}: {found.cause} ({found.where})"
    evidence = [Evidence(f"{found.quantity} ({found.cause})", found.value, math.inf, where)]
    if not math.isnan(found.growth):
        evidence.append(Evidence("growth up to there, nats per step", found.growth, 0.0, where))
    if found.cause in ("input", "initial state", "parameter", "cotangent"):
        remedy = Remedy(f"look at {found.quantity}{list(found.index)}", "it was not finite when it was given", "data")
        return Verdict("nonfinite", summary, tuple(evidence), (remedy,))
    size = f"the number would have been e^{found.log_value:.4g} in magnitude"
    g = free_gain(record.nonlinearity) if found.growth > 0 else None
    remedies = [
        Remedy(
            "clip the pre-activation (clip=), lower the gain of weight_hh, or clip the gradient's norm", size, "clip"
        )
    ]
    if g is not None:
        name = f"weight_hh_l{found.layer}" + ("_reverse" if found.direction else "")
        action = f"start from an orthogonal {name} with gain {g:.4g} (init.orthogonal({g:.4g}))"
        remedies.insert(0, Remedy(action, size, "weight_hh gain", g, found.layer, found.direction))
    return Verdict("nonfinite", summary, tuple(evidence), tuple(remedies))
