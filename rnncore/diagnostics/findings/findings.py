"""Findings: what the probes found, as data: one attribute for each probe, the verdict, what was left out and why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from rnncore.diagnostics.faults.first import NonFinite
from rnncore.diagnostics.findings.missing import missing
from rnncore.diagnostics.gradient.decomposition import Decomposition
from rnncore.diagnostics.gradient.flow import Flow
from rnncore.diagnostics.gradient.gradcheck import Gradcheck
from rnncore.diagnostics.gradient.horizon import Horizon
from rnncore.diagnostics.gradient.weight_gradient import WeightGradient
from rnncore.diagnostics.jacobians.bounds import Bounds
from rnncore.diagnostics.jacobians.jacobian import Jacobian
from rnncore.diagnostics.jacobians.lyapunov import Lyapunov
from rnncore.diagnostics.jacobians.product import Product
from rnncore.diagnostics.units.initial import Initial
from rnncore.diagnostics.units.saturation import Saturation
from rnncore.diagnostics.verdict.verdict import Verdict

__all__ = ["SCHEMA_VERSION", "Findings", "Subject", "plain"]

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Subject:
    """What was looked at."""

    network: str
    backend: str
    dtype: str
    steps: int
    batch: int
    lengths: tuple[int, ...]
    level: str
    dependency_length: int


@dataclass(frozen=True)
class Findings:
    """Everything that was found, as data. A probe that did not run is None, and `left_out` says why.

    Attributes
    ----------
    subject : Subject
    verdict : Verdict
        A label, the evidence for it, and remedies with numbers.
    flow, horizon, saturation, bounds, decomposition, jacobian, initial, weight_gradient, product, lyapunov, gradcheck
        One for each probe; `horizon`, `product` and `lyapunov` are nested tuples by [layer][direction].
    nonfinite : NonFinite or None
        None also where everything was finite: then it is not in `left_out`.
    left_out : mapping of str to str
        The reason, by probe.
    eigenvalues : tuple of array (D, H, 2)
        Of W_hh, for each layer: real and imaginary parts, on the host; NaN where the weights are not finite.
    """

    subject: Subject
    verdict: Verdict
    flow: Flow | None
    horizon: tuple[tuple[Horizon, ...], ...] | None
    saturation: Saturation | None
    bounds: Bounds | None
    decomposition: Decomposition | None
    jacobian: Jacobian | None
    initial: Initial | None
    weight_gradient: WeightGradient | None
    product: tuple[tuple[Product, ...], ...] | None
    lyapunov: tuple[tuple[Lyapunov, ...], ...] | None
    gradcheck: Gradcheck | None
    nonfinite: NonFinite | None
    left_out: Mapping[str, str]
    eigenvalues: tuple[np.ndarray[Any, Any], ...] = ()

    @property
    def missing(self) -> dict[str, str]:
        """Why numbers are not there: by the path of each field that holds a NaN or None, such as "horizon.lag_eps"."""
        return missing(self)


def plain(value: Any) -> Any:
    """Return a value as plain data that JSON can hold: arrays as nested lists, "nan", "inf" and "-inf" as strings."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(v) for v in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        number = float(value)
        return number if math.isfinite(number) else str(number)
    if value is None or isinstance(value, str):
        return value
    return None  # an array on a device, kept for going on with; its numbers are in the fields beside it
