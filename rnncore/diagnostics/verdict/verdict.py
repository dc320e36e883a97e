"""The verdict: a label from the measurements, the evidence for it, and remedies with numbers.

Bounds and eigenvalues never decide: they are certificates. What decides is how much of the gradient is left after as many
steps as a dependency has to reach over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np

from rnncore.diagnostics.faults.fault import NonFinite
from rnncore.diagnostics.gradient.horizon import SMALL, Horizon
from rnncore.diagnostics.numerics.device import EPS
from rnncore.diagnostics.recording import Record
from rnncore.diagnostics.verdict.remedies import (
    LOUD,
    SOME,
    Remedy,
    clip_the_norm,
    free_gain,
    new_gain,
    place,
    repair,
    revive,
)

__all__ = ["Evidence", "Label", "Remedy", "Verdict", "decide"]

Label: TypeAlias = Literal[
    "healthy", "vanishing", "exploding", "mixed", "saturated", "dead", "nonfinite", "inconclusive"
]

LARGE = 1e3
FLOOR, CEILING = math.log(SMALL), math.log(LARGE)
# A fraction of units or states above which the whole layer counts as dead or saturated.
MOST = 0.5
FEW = 3
SATURATED = "fraction of saturated states"
SIGMA = "ln of the largest singular value of the product of Jacobians"


@dataclass(frozen=True)
class Evidence:
    """One measured number that supports the label.

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
    """The conclusion of :func:`rnncore.diagnostics.diagnose` from the probes.

    Attributes
    ----------
    label : {"healthy", "vanishing", "exploding", "mixed", "saturated", "dead", "nonfinite", "inconclusive"}
        docs/diagnostics.md lists their rules, in the order in which they are tried.
    summary : str
        One line.
    evidence : tuple of Evidence
        The numbers that decided it. Empty where there was nothing to measure.
    remedies : tuple of Remedy
        The changes to make, in order. Empty where nothing is wrong, or no remedy is known.
    """

    label: Label
    summary: str
    evidence: tuple[Evidence, ...]
    remedies: tuple[Remedy, ...]


@dataclass(frozen=True)
class _Reach:
    """The gradient of one lane after the steps that count."""

    layer: int
    direction: int
    lag: int
    median: float
    low: float
    high: float
    slope: float
    rate: float  # of a random direction, nats per step; NaN where it was not measured
    top: float  # ln of the largest singular value of the whole product, or a lower bound; NaN where it was not measured
    doubt: str | None  # why it is a lower bound only
    above: float  # an upper bound on it; NaN where there is none

    @property
    def place(self) -> tuple[int, int]:
        return self.layer, self.direction

    @property
    def where(self) -> str:
        return f"{place(*self.place)}, lag {self.lag}"


@dataclass(frozen=True)
class _Case:
    """The measurements that the rules look at. A probe that did not run is None and does not count.

    `asked` is whether the caller gave the dependency length.
    """

    record: Record
    found: Mapping[str, Any]
    fault: NonFinite | None
    wanted: int
    asked: bool

    @property
    def saturation(self) -> Any:
        return self.found["saturation"]

    @property
    def initial(self) -> Any:
        return self.found["initial"]

    @cached_property
    def longest(self) -> int:
        return max(self.record.lengths, default=0)

    @cached_property
    def reaches(self) -> list[_Reach]:
        return [
            self._reach(h)
            for row in self.found["horizon"]
            for h in row
            if _can_be_judged(h, min(self.wanted, self.longest))
        ]

    def _reach(self, h: Horizon) -> _Reach:
        k, d = h.layer, h.direction
        lag = min(self.wanted, len(h.median) - 1)
        rows = h.gain[lag][~np.isnan(h.gain[lag])]
        low, high = np.quantile(rows, (0.25, 0.75), method="nearest") if len(rows) else (math.nan, math.nan)
        rate = top = above = math.nan
        doubt = None
        if (jacobian := self.found["jacobian"]) is not None:
            chi = jacobian[k][d].log_chi
            chi = chi[np.isfinite(chi)]
            rate = 0.5 * float(chi.mean()) if len(chi) else math.nan
        if (product := self.found["product"]) is not None and len(product[k][d].log_singular):
            found = product[k][d]
            largest, doubt = found.log_singular[:, 0], found.doubt
            # Medians of lower and of upper bounds bound the median.
            top = float(np.median(largest))
            with np.errstate(invalid="ignore"):  # 0 with an unknown error
                above = float(np.median(largest + found.error[:, 0]))
        return _Reach(k, d, lag, float(h.median[lag]), float(low), float(high), h.slope, rate, top, doubt, above)

    @cached_property
    def grown(self) -> list[_Reach]:
        return [r for r in self.reaches if (r.median > CEILING or r.top > CEILING) and (r.slope > 0 or r.top > CEILING)]

    @cached_property
    def shrunk(self) -> list[_Reach]:
        return [r for r in self.reaches if r.median < FLOOR]

    def losses(self, r: _Reach) -> tuple[float, float]:
        """Nats per step by the weights with every slope at its largest, and by the slopes that are below that."""
        # The slope of a logistic function is 1/4 where it is farthest from its ends: that is no saturation.
        largest = math.log(self.record.nonlinearity.gamma or 1.0)
        parts = self.found["decomposition"][r.layer][r.direction]
        rows = np.asarray(self.record.lengths) > 0
        # A row's mean is -inf where a single step lets nothing through.
        mean = float(np.median(np.nanmean(parts.saturation[:, rows], axis=0)))
        return float(parts.weights) + largest, mean - largest


def decide(record: Record, found: Mapping[str, Any], fault: NonFinite | None, wanted: int, asked: bool) -> Verdict:
    """Try the rules in order; the first that applies gives the verdict.

    Parameters
    ----------
    record : Record
    found : mapping of str to result
        By probe; None for one that did not run.
    fault : NonFinite or None
    wanted : int
        Steps over which a dependency has to reach.
    asked : bool
        Whether the caller gave that number.
    """
    case = _Case(record, found, fault, wanted, asked)
    verdict = next(verdict for rule in RULES if (verdict := rule(case)) is not None)
    if verdict.label in NOT_GROWN and verdict.evidence:
        # A number that has not converged and might be large enough for another label is not passed over in silence.
        open_ones = [_largest(r) for r in case.reaches if r.doubt and not r.top > CEILING and not r.above <= CEILING]
        verdict = replace(verdict, evidence=(*verdict.evidence, *open_ones))
    return verdict


def _not_measured(c: _Case) -> Verdict | None:
    def inconclusive(summary: str) -> Verdict:
        return Verdict("inconclusive", summary, (), ())

    if c.record.batch == 0 or c.longest < 2:
        return inconclusive("a run of at least two steps and one row is needed to see a gradient move")
    if any(c.found[n] is None for n in ("flow", "horizon", "saturation", "initial", "decomposition")):
        return inconclusive("the gradients could not be measured")
    if all(np.isneginf(t[~np.isnan(t)]).all() for t in c.found["flow"].direct):
        return inconclusive("the cotangent is zero: there is no gradient to follow")
    if not c.reaches:
        return inconclusive("no state is far enough from the loss to see a gradient move")
    return None


def _dead(c: _Case) -> Verdict | None:
    dead = {(k, d): float(s.dead) for k, row in enumerate(c.saturation) for d, s in enumerate(row) if s.dead > MOST}
    if not dead:
        return None
    evidence = [
        Evidence("fraction of units whose slope is 0 at every step and row", share, MOST, place(*at))
        for at, share in dead.items()
    ]
    remedies = revive(c.record, c.initial, c.saturation, list(dead))
    return Verdict("dead", "most units never react to anything", tuple(evidence), remedies)


def _mixed(c: _Case) -> Verdict | None:
    torn = [r for r in c.reaches if r.low < FLOOR and r.high > CEILING]
    torn += [r for r in c.grown if r.median < CEILING and r.rate < 0]
    if not torn and not (c.grown and c.shrunk):
        return None
    chosen = torn or [*c.grown, *c.shrunk]
    return Verdict(
        "mixed",
        "some directions or rows explode while others vanish",
        tuple(map(_evidence, chosen)),
        (*repair(c.record, c.initial, c.saturation, {r.place for r in chosen}), clip_the_norm()),
    )


def _exploding(c: _Case) -> Verdict | None:
    if not c.grown:
        return None
    worst = max(c.grown, key=lambda r: max(r.median, r.top))
    least = "at least " if worst.doubt and worst.top > worst.median else ""
    return Verdict(
        "exploding",
        f"the gradient grows by {least}e^{max(worst.median, worst.top):.0f} over {worst.lag} steps",
        tuple(map(_evidence, c.grown)),
        (*new_gain(c.initial, {r.place for r in c.grown}, c.record.nonlinearity), clip_the_norm()),
    )


def _too_short(c: _Case) -> Verdict | None:
    """Healthy so far, but not over the wanted steps; judged by the trend if the caller did not ask for a length."""
    seen = max(r.lag for r in c.reaches)
    # A loss at many steps leaves h_0 out, so of a whole run one lag is missing.
    if seen >= c.wanted or (c.wanted == c.longest and seen == c.wanted - 1):
        return None
    farthest = [r.median + r.slope * (c.wanted - r.lag) for r in c.reaches if r.lag == seen]
    if not c.asked and all(FLOOR <= gain <= CEILING for gain in farthest):
        return None
    summary = (
        f"a dependency of {c.wanted} steps cannot be judged: the gradient is seen over {seen} steps, and has "
        "neither grown nor shrunk so far"
    )
    return Verdict("inconclusive", summary, tuple(map(_evidence, c.reaches)), ())


def _can_be_judged(found: Horizon, wanted: int) -> bool:
    """Whether the lags reach as far as wanted, or are enough to see the gradient die before that."""
    # A reverse direction whose loss is on its own first step has one lag, which shows nothing.
    return len(found.median) > wanted or int(np.isfinite(found.median).sum()) > FEW


def _evidence(r: _Reach) -> Evidence:
    if not math.isnan(r.top) and r.top > max(r.median, CEILING):
        return _largest(r)
    threshold = CEILING if r.median > 0 else FLOOR
    return Evidence("ln gain of the gradient (median over rows)", r.median, threshold, r.where)


def _largest(r: _Reach) -> Evidence:
    return Evidence(f"{SIGMA}, at least ({r.doubt})," if r.doubt else SIGMA, r.top, CEILING, r.where)


def _shrunk(c: _Case) -> Verdict | None:
    """Saturated if that is what takes the gradient in some layer, else vanishing."""
    if not c.shrunk:
        return None
    saturated = [r for r in c.shrunk if _is_saturated(r, c)]
    worst = min(saturated or c.shrunk, key=lambda r: r.median)
    at, eps = place(*worst.place), EPS[c.record.engine.dtype_name]
    lost = worst.median < math.log(eps)
    weights, slopes = c.losses(worst)
    evidence = [_evidence(r) for r in sorted(c.shrunk, key=lambda r: r.median)]
    if lost:
        text = f"ln gain, below ln eps of {c.record.engine.dtype_name}: no longer seen in a sum"
        evidence.insert(0, Evidence(text, worst.median, math.log(eps), worst.where))
    evidence += [
        Evidence("nats per step by the weights", weights, 0.0, at),
        Evidence("nats per step by saturation", slopes, 0.0, at),
    ]
    remedies = repair(c.record, c.initial, c.saturation, {r.place for r in c.shrunk})
    if saturated:
        k, d = worst.place
        share = float(c.saturation[k][d].saturated)
        evidence += [
            Evidence(SATURATED, share, MOST if share > MOST else SOME, at),
            Evidence("nats over the lag by saturation alone", slopes * worst.lag, FLOOR, at),
            Evidence("mean square of W_ih x + b", c.initial[k][d].input_variance, LOUD, at),
        ]
        summary = f"{share:.0%} of the states of {at} are saturated, and gradients vanish there"
        return Verdict("saturated", summary, tuple(evidence), remedies)
    much = "nothing of it is seen in this dtype" if lost else f"e^{worst.median:.0f} of it is left"
    rate = "" if math.isnan(worst.slope) else f" ({worst.slope:.3g} nats per step)"
    return Verdict("vanishing", f"after {worst.lag} steps {much}{rate}", tuple(evidence), remedies)


def _is_saturated(r: _Reach, c: _Case) -> bool:
    """Most states are saturated; or some are, or are driven there, and that alone takes the gradient."""
    share = float(c.saturation[r.layer][r.direction].saturated)
    if math.isnan(share) or share > MOST:  # NaN: a function without ends
        return share > MOST
    weights, slopes = c.losses(r)
    alone = slopes * r.lag < FLOOR and slopes < min(weights, 0.0)
    # Slopes below 1 are no finding by themselves: every tanh network with any activity has them. Where nothing is
    # saturated, or driven there, a larger gain makes up for them.
    return alone and (share > SOME or c.initial[r.layer][r.direction].input_variance > LOUD)


def _healthy(c: _Case) -> Verdict:
    """Healthy, with a remedy where many states are saturated."""
    weakest = min(c.reaches, key=lambda r: r.median)
    summary = f"after {weakest.lag} steps the gradient is still e^{weakest.median:.1f} of what it was"
    evidence = [_evidence(weakest)]
    shares = {r.place: float(c.saturation[r.layer][r.direction].saturated) for r in c.reaches}
    many = {at: share for at, share in shares.items() if share > SOME}
    if not many:
        return Verdict("healthy", summary, tuple(evidence), ())
    at, share = max(many.items(), key=lambda item: item[1])
    summary += f", but {share:.0%} of the states of {place(*at)} are saturated, where they hardly learn"
    evidence += [Evidence(SATURATED, share, SOME, place(*at)) for at, share in many.items()]
    return Verdict("healthy", summary, tuple(evidence), repair(c.record, c.initial, c.saturation, set(many)))


def _not_finite(c: _Case) -> Verdict | None:
    found = c.fault
    if found is None:
        return None
    where = place(found.layer, found.direction)
    where += "" if found.step is None else f", step {found.step}"
    where += "" if found.row is None else f", row {found.row}"
    where += f", unit {found.unit}"
    summary = f"{found.quantity} is {found.value} in the {found.phase} pass at {where}: {found.cause} ({found.where})"
    evidence = [Evidence(f"{found.quantity} ({found.cause})", found.value, math.inf, where)]
    if not math.isnan(found.growth):
        evidence.append(Evidence("growth before it, nats per step", found.growth, 0.0, where))
    if found.cause in ("input", "initial state", "parameter", "cotangent"):
        remedy = Remedy(f"look at {found.quantity}{list(found.index)}", "it was not finite when it was given", "data")
        return Verdict("nonfinite", summary, tuple(evidence), (remedy,))
    size = f"the number would have been e^{found.log_value:.4g} in magnitude"
    action = "clip the pre-activation (clip=), lower the gain of weight_hh, or clip the gradient's norm"
    remedies = [Remedy(action, size, "clip")]
    g = free_gain(c.record.nonlinearity) if found.growth > 0 else None
    if g is not None:
        name = f"weight_hh_{c.record.spec.suffix(found.layer, found.direction)}"
        action = f"start from an orthogonal {name} with gain {g:.4g} (init.orthogonal({g:.4g}))"
        remedies.insert(0, Remedy(action, size, "weight_hh gain", g, found.layer, found.direction))
    return Verdict("nonfinite", summary, tuple(evidence), tuple(remedies))


# The labels that a large singular value of the product would change.
NOT_GROWN = ("saturated", "vanishing", "inconclusive", "healthy")
RULES: tuple[Callable[[_Case], Verdict | None], ...] = (
    _not_finite,
    _not_measured,
    _dead,
    _mixed,
    _exploding,
    _shrunk,
    _too_short,
    _healthy,
)
