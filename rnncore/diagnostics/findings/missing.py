"""The reason for every NaN and None in a report, by the path of the field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from rnncore.diagnostics.results import leaves

__all__ = ["REASONS", "missing"]

PADDING = "at steps outside of a row's length"
NO_STEP = "where no row has a step"
NOT_FALLEN = "where the median gain does not stay below it within the lags that were followed"
NO_GRADIENT = "where the gradient of weight_hh is 0: truncation has nothing to miss"
TOO_FEW = "with fewer than two finite gains"
NOTHING_TO_STRETCH = f"{PADDING}, and where the gradient is 0"
NO_UPDATE = "where no step adds to the gradient, or one adds a number that is not finite"
WHOLE = "it is about the whole network, or the input, which has no direction"
NOT_GIVEN = "the operands do not determine it, or this quantity has none"
ON_DEVICE = "an array on the device, in the report itself"
NO_INTERVAL = "where there are fewer than two windows"
OVERFLOW = "where weight_hh is so large that its product with a vector overflows"
TOO_LARGE = "where the input's share is beyond float64"

REASONS: Mapping[str, str] = {
    "verdict.evidence.value": "it is the number that is not finite",
    "verdict.remedies.value": "the remedy has no number",
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
    "horizon.k_10": f"{NO_GRADIENT}; or where the bias is above 10 % at every lag that was followed",
    "horizon.k_1": f"{NO_GRADIENT}; or where the bias is above 1 % at every lag that was followed",
    "saturation.saturated": f"{NO_STEP}, and for a function without bounds",
    "saturation.dead": NO_STEP,
    "saturation.arithmetically_dead": NO_STEP,
    "saturation.quantiles": NO_STEP,
    "bounds.gamma": "the user's function does not define it",
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
    "nonfinite.value": "it is the number that is not finite",
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
    'where no row has a step, and for a function without bounds'
    """
    skipped = {*report.left_out, "nonfinite"}
    found = {re.sub(r"\[.*?\]", "", path) for path, value in leaves(report) if _lacks(value)} - skipped
    return {path: REASONS.get(path, UNKNOWN) for path in sorted(found)}


def _lacks(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind == "f" and bool(np.isnan(value).any())
    if isinstance(value, (float, np.floating)):
        return bool(np.isnan(value))
    # Plain data leave out an array on a device.
    return not isinstance(value, (bool, int, str, np.bool_, np.integer))
