"""The results of all probes as data, with the verdict, and the probes that were left out and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rnncore.diagnostics.faults.fault import NonFinite
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
from rnncore.diagnostics.results import Lanes
from rnncore.diagnostics.units.initial import Initial
from rnncore.diagnostics.units.saturation import Saturation
from rnncore.diagnostics.verdict.verdict import Verdict
from rnncore.typing import Host

__all__ = ["SCHEMA_VERSION", "Findings", "Subject"]

# 2: "jacobian" has "width" by layer and direction, and no "widths".
SCHEMA_VERSION = 2


@dataclass(frozen=True)
class Subject:
    """The network, the run and the options of a diagnosis."""

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
    """The results of all probes. A probe that did not run is None, and `left_out` says why.

    Attributes
    ----------
    subject : Subject
    verdict : Verdict
        A label, the evidence for it, and remedies with numbers.
    flow, horizon, saturation, bounds, decomposition, jacobian, initial, weight_gradient, product, lyapunov, gradcheck
        Results by [layer][direction], and their attributes as well: ``report.flow[0][0].total`` is
        ``report.flow.total[0][0]``. `gradcheck` is about the whole network.
    nonfinite : NonFinite or None
        None also where everything was finite: then it is not in `left_out`.
    left_out : mapping of str to str
        The reason, by probe.
    eigenvalues : tuple of array (D, H, 2)
        Of W_hh, for each layer: real and imaginary parts, on the host; NaN where the weights are not finite.
    """

    subject: Subject
    verdict: Verdict
    flow: Lanes[Flow] | None
    horizon: Lanes[Horizon] | None
    saturation: Lanes[Saturation] | None
    bounds: Lanes[Bounds] | None
    decomposition: Lanes[Decomposition] | None
    jacobian: Lanes[Jacobian] | None
    initial: Lanes[Initial] | None
    weight_gradient: Lanes[WeightGradient] | None
    product: Lanes[Product] | None
    lyapunov: Lanes[Lyapunov] | None
    gradcheck: Gradcheck | None
    nonfinite: NonFinite | None
    left_out: Mapping[str, str]
    eigenvalues: tuple[Host, ...] = ()

    @property
    def missing(self) -> dict[str, str]:
        """Why numbers are not there: by the path of each field that holds a NaN or None, such as "horizon.lag_eps"."""
        return missing(self)
