"""Remedies: the changes to make in a layer, with numbers, from the measured parts of its input W_ih x + b.

Where the variance of W_ih x + b is too large the states saturate, whatever W_hh does. So the bias and the input come first,
and the gain of W_hh is the critical one for the rest. Layers are repaired from below, as a repaired layer sends other states
to the next.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np

from rnncore.backend.registry import get_backend
from rnncore.diagnostics.lane import Lane
from rnncore.diagnostics.recording import Record
from rnncore.diagnostics.results import Lanes
from rnncore.diagnostics.units.initial import Initial
from rnncore.diagnostics.units.mean_field import CriticalGain, critical_gain
from rnncore.diagnostics.units.saturation import THRESHOLD, Saturation, value_range
from rnncore.nonlinearity.nonlinearity import Nonlinearity

__all__ = ["LOUD", "QUIET", "SOME", "Remedy", "clip_the_norm", "free_gain", "new_gain", "place", "repair", "revive"]

Place = tuple[int, int]

# Fraction of saturated states: a network at its critical gain has fewer.
SOME = 0.1
# Variance of W_ih x + b. Above LOUD the input alone takes tanh out of its linear part. An input is scaled to QUIET: with it,
# and its critical gain, tanh's pre-activations have variance 1 (LeCun et al. 1998, "Efficient BackProp", section 4.4), and
# 1 % of the states are saturated; with LOUD 13 % would be.
LOUD, QUIET = 1.0, 0.15
# Points of the normal distribution at which the theory's share of saturated states is counted.
POINTS = 999


@dataclass(frozen=True)
class Remedy:
    """A change to make, and its expected effect.

    Attributes
    ----------
    action, expected : str
    parameter : str
        The quantity to change: "weight_hh gain", "input scale", "weight_ih scale", "input mean", "bias", "nonlinearity",
        "clip_grad_norm", "clip", "data".
    value : float or None
        The number to use, where there is one: the factor of an orthogonal weight_hh, the factor of the input or of
        weight_ih, what the biases are set to.
    layer, direction : int or None
        Where, None for the whole network. An input has no direction.
    """

    action: str
    expected: str
    parameter: str
    value: float | None = None
    layer: int | None = None
    direction: int | None = None

    def __str__(self) -> str:
        return f"{self.action}: {self.expected}"


@dataclass(frozen=True)
class _Drive:
    """Mean squares over steps, rows and units of the parts of W_ih x + b; `cross` is the mean of mean(W_ih x) times b.

    `varying` and `mean` are kept as their roots, which stay in float64's range for any input.
    """

    varying_root: float
    mean_root: float
    bias: float
    cross: float

    @property
    def varying(self) -> float:
        return self.varying_root * self.varying_root

    @property
    def mean(self) -> float:
        return self.mean_root * self.mean_root

    def variance(self, *, scale: float, centred: bool, unbiased: bool) -> float:
        varying, mean = scale * self.varying_root, (0.0 if centred else scale * self.mean_root)
        cross = 0.0 if centred or unbiased else self.cross
        squares = varying * varying + mean * mean + (0.0 if unbiased else self.bias)
        # Rounding alone could make it negative, where a bias cancels a mean.
        return max(squares + 2 * scale * cross, 0.0) if math.isfinite(squares) else math.inf


def place(layer: int, direction: int) -> str:
    """The name of a lane in evidence and remedies."""
    return f"layer {layer}" + (", reverse" if direction else "")


def repair(
    record: Record, initial: Lanes[Initial], saturation: Lanes[Saturation], where: Collection[Place]
) -> tuple[Remedy, ...]:
    """The bias, the input and the gain of each of these layers and directions, in the order in which to change them."""
    out: list[Remedy] = []
    sent = 1.0  # the mean square that the repaired layer below sends up, in units of the present one
    for k in range(record.spec.num_layers):
        lanes = record.layer(k)
        failing = [lane.direction for lane in lanes if (k, lane.direction) in where]
        if not failing:
            sent = 1.0
            continue
        drives = [_drive(lane, sent) for lane in lanes]
        share = max(float(np.nan_to_num(saturation[k][d].saturated)) for d in failing)
        change = _Change(k, failing, drives)
        if value_range(record.nonlinearity) is not None:
            # A layer whose input will change is judged by that: its states will change too.
            change.quieten(QUIET if share > SOME and sent == 1 else LOUD)
        out += change.remedies
        changed = bool(change.remedies)
        # One input feeds both directions.
        touched = range(record.directions) if k == 0 and (change.scale != 1 or change.centred) else failing
        ratios = []
        for d in touched:
            unbiased = change.unbiased and d in failing
            v = drives[d].variance(scale=change.scale, centred=change.centred, unbiased=unbiased)
            new = critical_gain(record.nonlinearity, v) if changed or sent != 1 else initial[k][d].critical
            out += _gain(initial[k][d], (k, d), new, record.nonlinearity, changed=changed)
            ratios.append(_sent(lanes[d], new, v))
        sent = float(np.mean(ratios))
    return tuple(out)


def new_gain(initial: Lanes[Initial], where: Collection[Place], f: Nonlinearity) -> tuple[Remedy, ...]:
    """The critical gain alone, for the present input of the layer."""
    return tuple(r for k, d in sorted(where) for r in _gain(initial[k][d], (k, d), initial[k][d].critical, f))


def clip_the_norm() -> Remedy:
    """Clip gradients: in addition to a new gain, not in its place."""
    return Remedy(
        "clip the gradient's norm (optim.clip_grad_norm), at a threshold taken from diagnostics.GradientNorms",
        "a step of the optimiser stays bounded; clipping alone does not repair a recurrence",
        "clip_grad_norm",
    )


def revive(
    record: Record, initial: Lanes[Initial], saturation: Lanes[Saturation], where: Collection[Place]
) -> tuple[Remedy, ...]:
    """For dead units: first the input and the bias that keep them dead."""
    out: list[Remedy] = []
    f = record.nonlinearity
    if value_range(f) is not None:
        out += repair(record, initial, saturation, where)
    else:
        for k, d in sorted(where):
            drive = _drive(record.lane(k, d), 1.0)
            if drive.bias > 0 and drive.bias >= drive.varying:
                out.append(_zero_bias(k, d, drive, "a unit that is never active has no gradient and stays as it is"))
            if k == 0 and drive.mean > max(drive.varying, drive.bias):
                out.append(_centre(drive))
            out += _gain(initial[k][d], (k, d), initial[k][d].critical, f)
    if f.name == "relu":
        out.append(Remedy("or use leaky_relu", "its slope is nowhere 0", "nonlinearity"))
    return tuple(dict.fromkeys(out))  # both directions may need the same change of their input


def free_gain(f: Nonlinearity) -> float | None:
    """The critical gain where it is the same for every input, as with relu; else None."""
    if f.is_custom:
        return None
    silent, loud = critical_gain(f, 0.0).g, critical_gain(f, LOUD).g
    return silent if silent is not None and loud is not None and math.isclose(silent, loud) else None


@dataclass
class _Change:
    """The changes to the bias and the input of a layer whose W_ih x + b is too large."""

    k: int
    failing: list[int]
    drives: list[_Drive]
    remedies: list[Remedy] = field(default_factory=list)
    scale: float = 1.0
    centred: bool = False
    unbiased: bool = False

    def quieten(self, limit: float) -> None:
        """Bring the variance of W_ih x + b below the limit."""
        k, failing, drives = self.k, self.failing, [self.drives[d] for d in self.failing]
        if not max(drive.variance(scale=1.0, centred=False, unbiased=False) for drive in drives) > limit:
            return
        # Keep a small bias (the input is scaled around it); zero one that outweighs the input.
        self.unbiased = any(drive.bias > min(LOUD, drive.varying + drive.mean) for drive in drives)
        if self.unbiased:
            reason = "they saturate the states whatever the input is"
            self.remedies += [_zero_bias(k, d, drive, reason) for d, drive in zip(failing, drives, strict=True)]
        varying = float(np.mean([drive.varying for drive in drives]))
        whole = float(np.mean([drive.varying + drive.mean for drive in drives]))
        # Above the first layer the mean is that of states, which the user cannot subtract.
        self.centred = k == 0 and whole > limit and whole > 2 * varying
        if self.centred:
            self.remedies.append(_centre(drives[0]))
        left = varying if self.centred else whole
        if not left > limit:
            return
        roots = [r for drive in drives for r in (drive.varying_root, 0.0 if self.centred else drive.mean_root)]
        self.scale = math.sqrt(QUIET) / _root_mean(roots, len(failing))
        what = "the input" if k == 0 else f"weight_ih_l{k}"
        self.remedies.append(
            Remedy(
                f"scale {what} by {self.scale:.3g}" + (", or normalise its features" if k == 0 else ""),
                f"its share in the pre-activations of layer {k} has variance {left:.3g} now, and {QUIET:.3g} then",
                "input scale" if k == 0 else "weight_ih scale",
                self.scale,
                k,
            )
        )


def _root_mean(roots: list[float], count: int) -> float:
    """The root of the sum of squares over `count`, without a square that leaves the range."""
    largest = max(roots)
    return largest * math.sqrt(sum((r / largest) ** 2 for r in roots) / count)


def _zero_bias(k: int, d: int, drive: _Drive, reason: str) -> Remedy:
    return Remedy(
        f"set the biases of {place(k, d)} to 0",
        f"their mean square is {drive.bias:.3g}, that of the input's share {drive.varying + drive.mean:.3g}; {reason}",
        "bias",
        0.0,
        k,
        d,
    )


def _centre(drive: _Drive) -> Remedy:
    return Remedy(
        "subtract from each feature of the input its mean over steps and rows",
        f"the mean gives {drive.mean:.3g} to the pre-activations' mean square, what varies about it {drive.varying:.3g}",
        "input mean",
        None,
        0,
    )


def _gain(
    initial: Initial, at: Place, critical: CriticalGain, f: Nonlinearity, *, changed: bool = False
) -> list[Remedy]:
    k, d = at
    now, rate = initial.gain, initial.now.rate
    if critical.g is None:
        return [
            Remedy(
                "use another nonlinearity: with this one no gain of weight_hh keeps the gradient's size",
                f"at the present gain {now:.3g} the theory expects {rate:.3g} nats per step",
                "nonlinearity",
            )
        ]
    name = f"weight_hh_l{k}" + ("_reverse" if d else "")
    then = "after the changes above" if changed else "there"
    out = [
        Remedy(
            f"start from an orthogonal {name} with gain {critical.g:.4g} (init.orthogonal({critical.g:.4g})); "
            f"it has {now:.3g} now",
            f"the theory expects {rate:.3g} nats per step now, and 0 {then}",
            "weight_hh gain",
            float(critical.g),
            k,
            d,
        )
    ]
    share = _theory_share(f, critical.q)
    if share > SOME and _is_offset(f):
        better = Remedy(
            f"use tanh instead of {f.name}",
            f"at the gain that keeps the gradient's size {share:.0%} of its states are saturated",
            "nonlinearity",
        )
        out.insert(0, better)
    return out


def _drive(lane: Lane, sent: float) -> _Drive:
    xp, w = lane.xp, lane.weights
    count = sum(lane.lengths)
    bias = np.zeros(lane.width) if w.bias is None else lane.host(w.bias)
    share = xp.matmul(lane.x, xp.matrix_transpose(w.weight_ih))
    # The padding of an input is 0, and so is its share. Squares of float32 leave their range from 1e19 on, and squares of
    # large numbers near each other lose what varies.
    largest = float(lane.host(xp.max(xp.abs(share)))) or 1.0
    unit = share / largest
    mean = lane.host(xp.sum(xp.mean(unit, axis=0), axis=0)) * (lane.steps / count)
    about = lane.masked(unit - lane.on_device(mean))
    varying = float(lane.host(xp.sum(xp.mean(about * about, axis=-1), axis=1)).sum()) / count
    size = largest * math.sqrt(sent)
    return _Drive(
        varying_root=size * math.sqrt(varying),
        mean_root=size * math.sqrt(float((mean * mean).mean())),
        bias=float((bias * bias).mean()),
        cross=size * float((mean * bias).mean()),
    )


def _sent(lane: Lane, critical: CriticalGain, v: float) -> float:
    """E h^2 of the theory at its critical gain, in units of the states' present mean square; 1 where one is unknown."""
    xp, h = lane.xp, lane.h  # 0 in the padding
    if critical.g is None or critical.q is None or not math.isfinite(critical.q):
        return 1.0
    # A finite q means a bounded function, whose squares do not overflow.
    now = float(lane.host(xp.sum(xp.mean(h * h, axis=-1), axis=1)).sum()) / sum(lane.lengths)
    then = (critical.q - v) / critical.g**2
    return then / now if then > 0 and now > 0 and math.isfinite(now) else 1.0


def _theory_share(f: Nonlinearity, q: float | None) -> float:
    """The fraction of saturated states for pre-activations N(0, q)."""
    ends = value_range(f)
    if ends is None or q is None or not math.isfinite(q):
        return 0.0
    normal = NormalDist(0.0, math.sqrt(q) or 1.0)
    z = np.asarray([normal.inv_cdf((i + 0.5) / POINTS) for i in range(POINTS)])
    h = np.asarray(f(z, xp=get_backend("numpy").namespace()))
    middle, half = 0.5 * (ends[0] + ends[1]), 0.5 * (ends[1] - ends[0])
    return float((np.abs(h - middle) > THRESHOLD * half).mean())


def _is_offset(f: Nonlinearity) -> bool:
    """Whether the middle of the range is not 0, as with the logistic function. tanh is the same without that offset."""
    ends = value_range(f)
    return ends is not None and ends[0] + ends[1] != 0
