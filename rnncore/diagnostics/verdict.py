"""The verdict: a label from what was measured, with the evidence that decided it and remedies that quote the numbers.

Bounds and eigenvalues never decide: they are certificates. What decides is how much of the gradient was left after as many
steps as a dependency has to reach over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from rnncore.diagnostics.decomposition import Decomposition
from rnncore.diagnostics.flow import Flow
from rnncore.diagnostics.horizon import EPS, SMALL, Horizon
from rnncore.diagnostics.initial import Initial
from rnncore.diagnostics.jacobian import Jacobian
from rnncore.diagnostics.nonfinite import NonFinite
from rnncore.diagnostics.product import Product
from rnncore.diagnostics.record import Record
from rnncore.diagnostics.saturation import Saturation

__all__ = ["Evidence", "Label", "Remedy", "Verdict", "decide"]

Label: TypeAlias = Literal[
    "healthy", "vanishing", "exploding", "mixed", "saturated", "dead", "nonfinite", "inconclusive"
]
Host = np.ndarray[Any, Any]

LARGE = 1e3
# More than half: then what most units do is what the layer does.
MOST = 0.5
FEW = 3


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
class Remedy:
    """What to change, and what that is expected to do.

    Attributes
    ----------
    action, expected : str
    parameter : str
        What it acts on: "weight_hh gain", "clip_grad_norm", "input scale", "bias", "truncate", "data", "learning rate".
    value : float or None
        The number to use, where there is one.
    """

    action: str
    expected: str
    parameter: str
    value: float | None = None

    def __str__(self) -> str:
        return f"{self.action}: {self.expected}"


@dataclass(frozen=True)
class Verdict:
    """See :class:`rnncore.diagnostics.Report`."""

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


def decide(
    record: Record,
    *,
    dependency_length: int,
    nonfinite: NonFinite | None,
    flow: Flow | None,
    horizon: Sequence[Sequence[Horizon]] | None,
    saturation: Saturation | None,
    decomposition: Decomposition | None,
    jacobian: Jacobian | None,
    initial: Initial | None,
    product: Sequence[Sequence[Product]] | None,
) -> Verdict:
    """The label. What was not measured is None and does not count."""
    if nonfinite is not None:
        return _not_finite(nonfinite)
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
    if dead := [e for e in _dead(saturation) if e.value > MOST]:
        return Verdict("dead", "most units never react to anything", tuple(dead), _wake_up(record))
    floor, ceiling = math.log(SMALL), math.log(LARGE)
    grown = [r for r in reaches if (r.median > ceiling or r.top > ceiling) and (r.slope > 0 or r.top > ceiling)]
    shrunk = [r for r in reaches if r.median < floor]
    torn = [r for r in reaches if r.low < floor and r.high > ceiling]
    torn += [r for r in grown if r.median < ceiling and r.rate < 0]
    if torn or (grown and shrunk):
        chosen = tuple(_evidence(r) for r in (torn or [*grown, *shrunk]))
        return Verdict(
            "mixed",
            "some directions or rows explode while others vanish",
            chosen,
            (_clip(), *_gain(initial, (torn or grown)[0])),
        )
    if grown:
        worst = max(grown, key=lambda r: max(r.median, r.top))
        return Verdict(
            "exploding",
            f"the gradient grows by e^{max(worst.median, worst.top):.0f} over {worst.lag} steps",
            tuple(_evidence(r) for r in grown),
            (_clip(), *_gain(initial, worst)),
        )
    if shrunk:
        return _vanishing(record, shrunk, saturation, decomposition, initial)
    longest = max(record.lengths)
    if dependency_length >= longest and dependency_length > max(r.lag for r in reaches):
        return Verdict(
            "inconclusive",
            f"a dependency of {dependency_length} steps cannot be judged from runs of {longest}",
            tuple(_evidence(r) for r in reaches),
            (),
        )
    weakest = min(reaches, key=lambda r: r.median)
    return Verdict(
        "healthy",
        f"after {weakest.lag} steps the gradient is still e^{weakest.median:.1f} of what it was",
        (_evidence(weakest),),
        (),
    )


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
    where = f"layer {k}" + (", reverse" if d else "") + f", lag {lag}"
    return _Reach(where, k, d, lag, float(found.median[lag]), float(low), float(high), found.slope, rate, top)


def _evidence(r: _Reach) -> Evidence:
    if not math.isnan(r.top) and r.top > max(r.median, math.log(LARGE)):
        return Evidence("ln of the largest singular value of the product of Jacobians", r.top, math.log(LARGE), r.where)
    threshold = math.log(LARGE) if r.median > 0 else math.log(SMALL)
    return Evidence("ln gain of the gradient (median over rows)", r.median, threshold, r.where)


def _vanishing(
    record: Record,
    shrunk: list[_Reach],
    saturation: Saturation,
    decomposition: Decomposition,
    initial: Initial,
) -> Verdict:
    worst = min(shrunk, key=lambda r: r.median)
    eps = EPS[record.engine.dtype_name]
    lost = worst.median < math.log(eps)
    parts = {
        name: _mean(getattr(decomposition, name)[worst.layer][worst.direction]) for name in ("weights", "saturation")
    }
    evidence = [_evidence(r) for r in sorted(shrunk, key=lambda r: r.median)]
    if lost:
        text = f"ln gain, below ln eps of {record.engine.dtype_name}: no longer seen in a sum"
        evidence.insert(0, Evidence(text, worst.median, math.log(eps), worst.where))
    at = f"layer {worst.layer}"
    evidence += [
        Evidence("nats per step by the weights", parts["weights"], 0.0, at),
        Evidence("nats per step by saturation", parts["saturation"], 0.0, at),
    ]
    remedies = list(_gain(initial, worst))
    share = float(saturation.saturated[worst.layer][worst.direction])
    if share > MOST:
        evidence.append(Evidence("fraction of states at an end of their range", share, MOST, at))
        v = initial.input_variance[worst.layer][worst.direction]
        scale = 1 / math.sqrt(v) if v > 1 else 1.0
        remedies.insert(
            0,
            Remedy(
                f"scale the input of {at} by {scale:.3g}, or normalise it" if v > 1 else "lower the gain of weight_hh",
                f"saturation costs {-parts['saturation']:.3g} nats per step, and the input's variance is {v:.3g}",
                "input scale" if v > 1 else "weight_hh gain",
                scale,
            ),
        )
        summary = f"{share:.0%} of the states are at an end of their range, and gradients vanish there"
        return Verdict("saturated", summary, tuple(evidence), tuple(remedies))
    much = "nothing of it is seen in this dtype" if lost else f"e^{worst.median:.0f} of it is left"
    summary = f"after {worst.lag} steps {much} ({worst.slope:.3g} nats per step)"
    return Verdict("vanishing", summary, tuple(evidence), tuple(remedies))


def _gain(initial: Initial, r: _Reach) -> tuple[Remedy, ...]:
    """The gain at which the theory's rate is 0, on the data's own input variance."""
    critical, now = initial.critical[r.layer][r.direction], initial.gain[r.layer][r.direction]
    rate = initial.now[r.layer][r.direction].rate
    if critical.g is None:
        return (
            Remedy(
                "use another nonlinearity: with this one no gain of weight_hh keeps the gradient's size",
                f"at the present gain {now:.3g} the theory expects {rate:.3g} nats per step",
                "nonlinearity",
            ),
        )
    return (
        Remedy(
            f"start from an orthogonal weight_hh with gain {critical.g:.4g} (init.orthogonal({critical.g:.4g})); "
            f"it has {now:.3g} now",
            f"the theory expects {rate:.3g} nats per step now, and 0 there",
            "weight_hh gain",
            float(critical.g),
        ),
    )


def _clip() -> Remedy:
    return Remedy(
        "clip the gradient's norm (optim.clip_grad_norm), at a threshold taken from diagnostics.GradientNorms",
        "a step of the optimiser stays bounded while the recurrence is repaired",
        "clip_grad_norm",
    )


def _dead(saturation: Saturation) -> list[Evidence]:
    found = []
    for k, row in enumerate(saturation.dead):
        for d, share in enumerate(row):
            if not math.isnan(float(share)):
                where = f"layer {k}" + (", reverse" if d else "")
                found.append(
                    Evidence("fraction of units whose slope is 0 at every step and row", float(share), MOST, where)
                )
    return found


def _wake_up(record: Record) -> tuple[Remedy, ...]:
    name = record.nonlinearity.name
    return (
        Remedy(
            "raise the biases, or start weight_hh from the identity (init.identity()) with biases of 0",
            "a unit that is never active has no gradient and stays as it is",
            "bias",
        ),
        Remedy(
            "use leaky_relu" if name == "relu" else "lower the scale of the input and of the biases",
            "its slope is nowhere 0" if name == "relu" else "the slopes leave 0",
            "nonlinearity" if name == "relu" else "input scale",
        ),
    )


def _not_finite(found: NonFinite) -> Verdict:
    place = f"layer {found.layer}" + (", reverse" if found.direction else "")
    place += "" if found.step is None else f", step {found.step}"
    place += "" if found.row is None else f", row {found.row}"
    place += f", unit {found.unit}"
    summary = f"{found.quantity} is {found.value} in the {found.phase} pass at {place}: {found.cause} ({found.where})"
    evidence = [Evidence(f"{found.quantity} ({found.cause})", found.value, math.inf, place)]
    if not math.isnan(found.growth):
        evidence.append(Evidence("growth up to there, nats per step", found.growth, 0.0, place))
    if found.cause in ("input", "initial state", "parameter", "cotangent"):
        remedy = Remedy(f"look at {found.quantity}{list(found.index)}", "it was not finite when it was given", "data")
    else:
        remedy = Remedy(
            "clip the pre-activation (clip=), lower the gain of weight_hh, or clip the gradient's norm",
            f"the number would have been e^{found.log_value:.4g} in magnitude",
            "weight_hh gain",
        )
    return Verdict("nonfinite", summary, tuple(evidence), (remedy,))


def _mean(x: Host) -> float:
    finite = np.asarray(x)[np.isfinite(x)]
    return float(finite.mean()) if finite.size else -math.inf
