"""Remedies: what to change in a layer, by which number, from the measured parts of what drives it.

A layer is driven by W_ih x + b. Where that is loud the states sit at the ends of their range, whatever W_hh does: so the bias
and the input come first, and the gain of W_hh is the critical one for what is left of them. Layers are gone through from
below, as a repaired layer sends other states up.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from rnncore.backend.registry import get_backend
from rnncore.diagnostics.recording import Record
from rnncore.diagnostics.units.initial import Initial
from rnncore.diagnostics.units.mean_field import CriticalGain, critical_gain
from rnncore.diagnostics.units.saturation import THRESHOLD, Saturation, value_range
from rnncore.nonlinearity.nonlinearity import Nonlinearity

__all__ = ["LOUD", "QUIET", "SOME", "Remedy", "clip_the_norm", "free_gain", "new_gain", "place", "repair", "wake_up"]

Place = tuple[int, int]

# Of the states at an end of their range: fewer is what a network at its critical gain has anyway.
SOME = 0.1
# Variance of what drives a layer. Above LOUD the input alone takes tanh out of its linear part. QUIET is what an input is
# scaled to: with it, and the critical gain that belongs to it, tanh's pre-activations have variance 1 (LeCun et al. 1998,
# "Efficient BackProp", section 4.4), and 1 % of the states is at an end; with LOUD it would be 13 %.
LOUD, QUIET = 1.0, 0.15
# Points of the normal distribution at which the theory's share of saturated states is counted.
POINTS = 999


@dataclass(frozen=True)
class Remedy:
    """What to change, and what that is expected to do.

    Attributes
    ----------
    action, expected : str
    parameter : str
        What it acts on: "weight_hh gain", "input scale", "weight_ih scale", "input mean", "bias", "nonlinearity",
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
    """The sizes over steps, rows and units of the parts of W_ih x + b; `cross` is the mean of mean(W_ih x) times b.

    `bias` is a mean square, as are `varying` and `mean`; these two are kept as their roots, which no input takes out of
    float64's range.
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
    """As evidence names it."""
    return f"layer {layer}" + (", reverse" if direction else "")


def repair(record: Record, initial: Initial, saturation: Saturation, where: Collection[Place]) -> tuple[Remedy, ...]:
    """The bias, the input and the gain of each of these layers and directions, in the order in which to change them."""
    out: list[Remedy] = []
    sent = 1.0  # what the layer below sends up after its repair, in units of the mean square that it sends now
    for k in range(record.spec.num_layers):
        failing = [d for d in range(record.directions) if (k, d) in where]
        if not failing:
            sent = 1.0
            continue
        drives = [_drive(record, k, d, sent) for d in range(record.directions)]
        found, scale, centred, unbiased = _quieter(record, saturation, k, failing, drives, sent)
        out += found
        # One input feeds both directions.
        touched = range(record.directions) if k == 0 and (scale != 1 or centred) else failing
        ratios = []
        for d in touched:
            unbiased_here = unbiased and d in failing
            v = drives[d].variance(scale=scale, centred=centred, unbiased=unbiased_here)
            changed = bool(found) or sent != 1
            critical = critical_gain(record.nonlinearity, v) if changed else initial.critical[k][d]
            out += _gain(record, initial, (k, d), critical, changed=bool(found))
            ratios.append(_sent(record, (k, d), critical, v))
        sent = float(np.mean(ratios))
    return tuple(out)


def new_gain(record: Record, initial: Initial, where: Collection[Place]) -> tuple[Remedy, ...]:
    """The critical gain alone, for what drives the layer now."""
    return tuple(r for k, d in sorted(where) for r in _gain(record, initial, (k, d), initial.critical[k][d]))


def clip_the_norm() -> Remedy:
    """It goes with a new gain and does not replace it."""
    return Remedy(
        "clip the gradient's norm (optim.clip_grad_norm), at a threshold taken from diagnostics.GradientNorms",
        "a step of the optimiser stays bounded; clipping alone does not repair a recurrence",
        "clip_grad_norm",
    )


def wake_up(record: Record, initial: Initial, saturation: Saturation, where: Collection[Place]) -> tuple[Remedy, ...]:
    """For units without a slope: what holds them there first."""
    out: list[Remedy] = []
    if value_range(record.nonlinearity) is not None:
        out += repair(record, initial, saturation, where)
    else:
        for k, d in sorted(where):
            drive = _drive(record, k, d, 1.0)
            if drive.bias > 0 and drive.bias >= drive.varying:
                out.append(_zero_bias(k, d, drive, "a unit that is never active has no gradient and stays as it is"))
            if k == 0 and drive.mean > max(drive.varying, drive.bias):
                out.append(_centre(drive))
            out += _gain(record, initial, (k, d), initial.critical[k][d])
    if record.nonlinearity.name == "relu":
        out.append(Remedy("or use leaky_relu", "its slope is nowhere 0", "nonlinearity"))
    return tuple(dict.fromkeys(out))  # both directions may ask for the same of their input


def free_gain(f: Nonlinearity) -> float | None:
    """The critical gain where it is the same for every input, as with relu; else None."""
    if f.is_custom:
        return None
    silent, loud = critical_gain(f, 0.0).g, critical_gain(f, LOUD).g
    return silent if silent is not None and loud is not None and math.isclose(silent, loud) else None


def _quieter(
    record: Record,
    saturation: Saturation,
    k: int,
    failing: list[int],
    drives: list[_Drive],
    sent: float,
) -> tuple[list[Remedy], float, bool, bool]:
    """What to do about a loud input or bias: the remedies, the factor, whether to subtract means and to drop the biases."""
    share = max(float(np.nan_to_num(saturation.saturated[k][d])) for d in failing)
    # A layer whose input will be another one is judged by that: its states will be other ones too.
    limit = QUIET if share > SOME and sent == 1 else LOUD
    now = max(drives[d].variance(scale=1.0, centred=False, unbiased=False) for d in failing)
    if value_range(record.nonlinearity) is None or not now > limit:
        return [], 1.0, False, False
    out: list[Remedy] = []
    input_part = float(np.mean([drives[d].varying + drives[d].mean for d in failing]))
    # A bias that is not loud stays, as the input is scaled to what it adds to; one that outweighs the input does not.
    unbiased = any(drives[d].bias > min(LOUD, drives[d].varying + drives[d].mean) for d in failing)
    if unbiased:
        reason = "they drive the states to the ends of their range whatever the input is"
        out += [_zero_bias(k, d, drives[d], reason) for d in failing]
    varying = float(np.mean([drives[d].varying for d in failing]))
    # Above the first layer the mean is that of states, and not the user's to subtract.
    centred = k == 0 and input_part > limit and input_part > 2 * varying
    if centred:
        out.append(_centre(drives[failing[0]]))
    left = varying if centred else input_part
    if not left > limit:
        return out, 1.0, centred, unbiased
    scale = math.sqrt(QUIET) / _root_mean([r for d in failing for r in _roots(drives[d], centred)], len(failing))
    what = "the input" if k == 0 else f"weight_ih_l{k}"
    out.append(
        Remedy(
            f"scale {what} by {scale:.3g}" + (", or normalise its features" if k == 0 else ""),
            f"what it gives to the pre-activations of layer {k} has variance {left:.3g} now, and {QUIET:.3g} then",
            "input scale" if k == 0 else "weight_ih scale",
            scale,
            k,
        )
    )
    return out, scale, centred, unbiased


def _roots(drive: _Drive, centred: bool) -> tuple[float, ...]:
    return (drive.varying_root,) if centred else (drive.varying_root, drive.mean_root)


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
    record: Record, initial: Initial, at: Place, critical: CriticalGain, *, changed: bool = False
) -> list[Remedy]:
    k, d = at
    now, rate = initial.gain[k][d], initial.now[k][d].rate
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
    share = _theory_share(record.nonlinearity, critical.q)
    if share > SOME and _is_offset(record.nonlinearity):
        better = Remedy(
            f"use tanh instead of {record.nonlinearity.name}",
            f"at the gain that keeps the gradient's size {share:.0%} of its states are at an end of their range",
            "nonlinearity",
        )
        out.insert(0, better)
    return out


def _drive(record: Record, k: int, d: int, sent: float) -> _Drive:
    xp, w = record.xp, record.weights[k][d]
    width, count = int(w.weight_hh.shape[0]), sum(record.lengths)
    bias = np.zeros(width) if w.bias is None else record.host(w.bias)
    share = xp.matmul(record.inputs[k], xp.matrix_transpose(w.weight_ih))
    # The padding of an input is 0, and so is its share. Squares of float32 leave their range from 1e19 on, and squares of
    # large numbers near each other lose what varies.
    largest = float(record.host(xp.max(xp.abs(share)))) or 1.0
    unit = share / largest
    mean = record.host(xp.sum(xp.mean(unit, axis=0), axis=0)) * (record.steps / count)
    about = unit - record.engine.backend.asarray(mean, dtype=record.engine.dtype, device=record.engine.device)
    about = about if record.ragged is None else record.ragged.masked(about)
    varying = float(record.host(xp.sum(xp.mean(about * about, axis=-1), axis=1)).sum()) / count
    size = largest * math.sqrt(sent)
    return _Drive(
        varying_root=size * math.sqrt(varying),
        mean_root=size * math.sqrt(float((mean * mean).mean())),
        bias=float((bias * bias).mean()),
        cross=size * float((mean * bias).mean()),
    )


def _sent(record: Record, at: Place, critical: CriticalGain, v: float) -> float:
    """E h^2 of the theory at its critical gain, in units of what the states' mean square is now; 1 where one is unknown."""
    k, d = at
    xp, h = record.xp, record.h[k][d]  # 0 in the padding
    if critical.g is None or critical.q is None or not math.isfinite(critical.q):
        return 1.0
    # Bounded functions only come here with a finite q; their squares do not overflow.
    now = float(record.host(xp.sum(xp.mean(h * h, axis=-1), axis=1)).sum()) / sum(record.lengths)
    then = (critical.q - v) / critical.g**2
    return then / now if then > 0 and now > 0 and math.isfinite(now) else 1.0


def _theory_share(f: Nonlinearity, q: float | None) -> float:
    """Of states at an end of their range, for pre-activations N(0, q)."""
    ends = value_range(f)
    if ends is None or q is None or not math.isfinite(q):
        return 0.0
    normal = NormalDist(0.0, math.sqrt(q) or 1.0)
    z = np.asarray([normal.inv_cdf((i + 0.5) / POINTS) for i in range(POINTS)])
    h = np.asarray(f(z, xp=get_backend("numpy").namespace()))
    middle, half = 0.5 * (ends[0] + ends[1]), 0.5 * (ends[1] - ends[0])
    return float((np.abs(h - middle) > THRESHOLD * half).mean())


def _is_offset(f: Nonlinearity) -> bool:
    """Whether f(0) is not 0, as with the logistic function: its states have a mean, and tanh is the same without it."""
    ends = value_range(f)
    return ends is not None and ends[0] + ends[1] != 0
