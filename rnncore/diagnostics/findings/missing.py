"""missing: why a number of a report is not there, so that no NaN and no None in it is silent.

Each field says in its docstring where it has no value; here the same is said for a reader of the report alone, by the path
of the field, and only of the fields that lack something.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

__all__ = ["REASONS", "missing"]

PADDING = "at steps outside of a row's length"
NO_STEP = "where no row has a step"
NOT_FALLEN = "where the median gain does not stay below it within the lags that were looked at"
NO_GRADIENT = "where the gradient of weight_hh is 0: there is nothing that truncation could miss"
TOO_FEW = "with fewer than two finite gains"
NOTHING_TO_STRETCH = f"{PADDING}, and where the gradient is 0"
NO_UPDATE = "where no step adds anything to the gradient, or one adds what is not finite"
WHOLE = "it is about the whole network, or the input, which has no direction"
NOT_GIVEN = "the operands do not say it, or there is none for this quantity"
ON_DEVICE = "an array on the device, in the report itself"
NO_INTERVAL = "where there are fewer than two windows"
OVERFLOW = "where weight_hh is so large that its product with a vector overflows"
TOO_LARGE = "where the input's share is beyond float64"

REASONS: Mapping[str, str] = {
    "verdict.evidence.value": "it is the number that was found where a finite one should be",
    "verdict.remedies.value": "there is no number to set",
    "verdict.remedies.layer": WHOLE,
    "verdict.remedies.direction": WHOLE,
    "flow.total": PADDING,
    "flow.direct": PADDING,
    "flow.above": PADDING,
    "flow.recurrent": PADDING,
    "horizon.gain": "past a row's first state, and in a row without a loss",
    "horizon.median": "where no row has a loss",
    "horizon.lag_small": NOT_FALLEN,
    "horizon.lag_eps": NOT_FALLEN,
    "horizon.slope": TOO_FEW,
    "horizon.e_fold": TOO_FEW,
    "horizon.bias": NO_GRADIENT,
    "horizon.k_10": f"{NO_GRADIENT}; or where the bias is above 10 % at every lag that was looked at",
    "horizon.k_1": f"{NO_GRADIENT}; or where the bias is above 1 % at every lag that was looked at",
    "saturation.saturated": f"{NO_STEP}, and for a function whose range has no ends",
    "saturation.dead": NO_STEP,
    "saturation.arithmetically_dead": NO_STEP,
    "saturation.quantiles": NO_STEP,
    "bounds.gamma": "the user's function does not say it",
    "decomposition.gain": NOTHING_TO_STRETCH,
    "decomposition.saturation": PADDING,
    "decomposition.alignment": NOTHING_TO_STRETCH,
    "jacobian.log_frobenius": PADDING,
    "jacobian.log_det": PADDING,
    "jacobian.log_chi": PADDING,
    "jacobian.isometry_gap": PADDING,
    "jacobian.log_lower": PADDING,
    "jacobian.log_upper": PADDING,
    "jacobian.log_max_slope": PADDING,
    "jacobian.sigma_max": 'level="deep" finds it',
    "jacobian.sigma_max.value": PADDING,
    "jacobian.sigma_max.lower": PADDING,
    "jacobian.sigma_max.upper": PADDING,
    "initial.input_variance": NO_STEP,
    "initial.critical.g": "at no gain does a random vector keep its length, or the input's share is beyond float64",
    "initial.critical.q": "there is no critical gain",
    "initial.now.q": TOO_LARGE,
    "initial.now.chi": TOO_LARGE,
    "weight_gradient.weight_hh": "at a step that no row has",
    "weight_gradient.weight_ih": "at a step that no row has",
    "weight_gradient.share_hh": NO_UPDATE,
    "weight_gradient.share_ih": NO_UPDATE,
    "product.log_singular": OVERFLOW,
    "product.sweeps": OVERFLOW,
    "product.log_condition": OVERFLOW,
    "product.disagreement": OVERFLOW,
    "product.left": ON_DEVICE,
    "product.right": ON_DEVICE,
    "lyapunov.exponents": "where no row has a step after the burn-in",
    "lyapunov.interval": NO_INTERVAL,
    "lyapunov.by_row": "for a row without a step after the burn-in",
    "lyapunov.windows": "for a row without a step in the window",
    "lyapunov.sum_residual": "where fewer exponents than units are followed; where a determinant is 0",
    "lyapunov.kaplan_yorke": "where the exponents that are followed do not reach down to it",
    "lyapunov.entropy_rate": "where no row has a step after the burn-in",
    "lyapunov.predictability": "where no row has a step after the burn-in",
    "nonfinite.step": NOT_GIVEN,
    "nonfinite.row": NOT_GIVEN,
    "nonfinite.value": "it is what stands there",
    "nonfinite.ranges": "where no operand is finite",
    "nonfinite.growth": "with fewer than two finite states before it",
    "nonfinite.log_value": NOT_GIVEN,
    "eigenvalues": "where weight_hh is not finite",
    "gradcheck.checks.numeric": "it came from a difference of numbers that are not finite",
    "gradcheck.checks.analytic": "it came from a product of numbers that are not finite",
    "gradcheck.adjoint.numeric": "it came from a product of numbers that are not finite",
    "gradcheck.adjoint.analytic": "it came from a product of numbers that are not finite",
}
UNKNOWN = "no reason is known: please report it"


def missing(report: Any) -> dict[str, str]:
    """The reason for every field of a report, or of any dataclass in one, that holds a NaN or None.

    Parameters
    ----------
    report : Report

    Returns
    -------
    dict of str to str
        By the field's path without its indices, such as "horizon.lag_eps". Probes that did not run are in
        `report.left_out`, and `nonfinite` is None where all was finite: neither is listed.

    Examples
    --------
    >>> import numpy as np, rnncore
    >>> from rnncore.diagnostics import diagnose
    >>> from rnncore.diagnostics.findings.missing import missing
    >>> report = diagnose(rnncore.RNN(3, 8, nonlinearity="relu", rng=0), np.ones((50, 2, 3)), lengths=[50, 20])
    >>> missing(report)["saturation.saturated"]
    'where no row has a step, and for a function whose range has no ends'
    """
    skipped = {*report.left_out, "nonfinite"}
    found = {path for path in _lacking(report, "") if path not in skipped}
    return {path: REASONS.get(path, UNKNOWN) for path in sorted(found)}


def _lacking(value: Any, path: str) -> Iterator[str]:
    if value is None:
        yield path
    elif is_dataclass(value) and not isinstance(value, type):
        for f in fields(value):
            yield from _lacking(getattr(value, f.name), f"{path}.{f.name}" if path else f.name)
    elif isinstance(value, np.ndarray):
        if value.dtype.kind == "f" and bool(np.isnan(value).any()):
            yield path
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from _lacking(v, path)
    elif isinstance(value, (tuple, list)):
        for v in value:
            yield from _lacking(v, path)
    elif isinstance(value, (float, np.floating)):
        if np.isnan(value):
            yield path
    elif not isinstance(value, (bool, int, str, np.bool_, np.integer)):
        yield path  # an array on a device, which plain data leave out
