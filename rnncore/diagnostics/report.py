"""The report of :func:`rnncore.diagnostics.diagnose`: one attribute for each probe, the verdict, what was left out and why."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rnncore.diagnostics.bounds import Bounds
from rnncore.diagnostics.decomposition import Decomposition
from rnncore.diagnostics.flow import Flow
from rnncore.diagnostics.gradcheck import Gradcheck
from rnncore.diagnostics.horizon import Horizon
from rnncore.diagnostics.initial import Initial
from rnncore.diagnostics.jacobian import Jacobian
from rnncore.diagnostics.lyapunov import Lyapunov
from rnncore.diagnostics.missing import missing
from rnncore.diagnostics.nonfinite import NonFinite
from rnncore.diagnostics.product import Product
from rnncore.diagnostics.saturation import Saturation
from rnncore.diagnostics.verdict import Verdict
from rnncore.diagnostics.weight_gradient import WeightGradient
from rnncore.errors import ArgumentValueError

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure
    from rich.console import Console

__all__ = ["SCHEMA_VERSION", "Report", "Subject"]

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
class Report:
    """Everything that was found. A probe that did not run is None, and `left_out` says why.

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

    def __str__(self) -> str:
        s = self.subject
        lines = [
            f"{self.verdict.label}: {self.verdict.summary}",
            f"{s.network}, {s.steps} steps, {s.batch} rows, level {s.level!r}",
        ]
        lines += [f"  because  {e}" for e in self.verdict.evidence]
        lines += [f"  try      {r}" for r in self.verdict.remedies]
        return "\n".join(lines)

    @property
    def missing(self) -> dict[str, str]:
        """Why numbers are not there: by the path of each field that holds a NaN or None, such as "horizon.lag_eps"."""
        return missing(self)

    def show(self, console: Console | None = None) -> None:
        """Print it, in colours where there is a terminal. Needs rich."""
        from rich.console import Console as RichConsole
        from rich.text import Text

        console = RichConsole() if console is None else console
        style = "bold green" if self.verdict.label == "healthy" else "bold red"
        for number, line in enumerate(str(self).splitlines()):
            console.print(Text(line, style=style if number == 0 else ""), soft_wrap=True)

    def plot(self, kind: str, path: str | Path | None = None) -> Figure:
        """One picture; see :func:`rnncore.diagnostics.plots.plot`. Needs matplotlib."""
        from rnncore.diagnostics.plots import plot

        return plot(self, kind, path)

    def to_html(self, path: str | Path | None = None) -> str:
        """One page with everything; see :func:`rnncore.diagnostics.page.page`. Needs matplotlib."""
        from rnncore.diagnostics.page import page

        return page(self, path)

    def to_dict(self) -> dict[str, Any]:
        """Plain data with a schema version: arrays as nested lists, numbers that JSON lacks as "nan", "inf" and "-inf".

        "missing" says of every field with a "nan" or a null why, by its path; "left_out" says it of whole probes.
        """
        return {"schema_version": SCHEMA_VERSION, **_plain(self), "missing": self.missing}

    def to_json(self, *, indent: int | None = None) -> str:
        """One JSON document."""
        return json.dumps(self.to_dict(), allow_nan=False, indent=indent)

    def assert_healthy(self, min_horizon: int | None = None) -> None:
        """For a test suite: that the verdict is healthy and that gradients reach so many steps back.

        Parameters
        ----------
        min_horizon : int, optional
            The gain must not have fallen below 1e-3 for good within so many steps; no more than the run has.

        Raises
        ------
        AssertionError
            With the whole report.
        """
        if self.verdict.label != "healthy":
            raise AssertionError(str(self))
        if min_horizon is None:
            return
        if isinstance(min_horizon, bool) or not isinstance(min_horizon, int) or min_horizon < 1:
            raise ArgumentValueError(f"min_horizon: expected an int >= 1, got {min_horizon!r}")
        if min_horizon > self.subject.steps:
            raise ArgumentValueError(
                f"min_horizon: expected at most the {self.subject.steps} steps of the run, got {min_horizon}"
            )
        for k, row in enumerate(self.horizon or ()):
            for d, found in enumerate(row):
                if found.lag_small is not None and found.lag_small < min_horizon:
                    raise AssertionError(
                        f"layer {k}, direction {d}: the gradient falls below 1e-3 after {found.lag_small} steps, and "
                        f"{min_horizon} were asked for\n{self}"
                    )
                followed = len(found.median) - 1
                if not found.complete and found.lag_small is None and followed < min_horizon:
                    raise AssertionError(
                        f"layer {k}, direction {d}: the losses were followed over {followed} steps, and {min_horizon} "
                        f"were asked for: give diagnose dependency_length={min_horizon}\n{self}"
                    )


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
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
