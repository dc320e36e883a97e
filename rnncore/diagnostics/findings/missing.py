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
NOT_CONVERGED = "where the singular values have not converged: lower bounds have no ratio"
TOO_LARGE = "where the input's share is beyond float64"

# By reason, the paths of the fields.
PATHS: Mapping[str, str] = {
    "it is the number that is not finite": "verdict.evidence.value nonfinite.value",
    "the remedy has no number": "verdict.remedies.value",
    WHOLE: "verdict.remedies.layer verdict.remedies.direction",
    PADDING: "flow.total flow.direct flow.above flow.recurrent decomposition.saturation jacobian.log_frobenius "
    "jacobian.log_det jacobian.log_chi jacobian.isometry_gap jacobian.log_lower jacobian.log_upper "
    "jacobian.log_max_slope jacobian.sigma_max.value jacobian.sigma_max.lower jacobian.sigma_max.upper",
    "past a row's first state, and in a row without a loss": "horizon.gain",
    "where no row has a loss": "horizon.median",
    NOT_FALLEN: "horizon.lag_small horizon.lag_eps",
    TOO_FEW: "horizon.slope horizon.e_fold",
    NO_GRADIENT: "horizon.bias",
    f"{NO_GRADIENT}; or where the bias is above 10 % at every lag that was followed": "horizon.k_10",
    f"{NO_GRADIENT}; or where the bias is above 1 % at every lag that was followed": "horizon.k_1",
    f"{NO_STEP}, and for a function without bounds": "saturation.saturated",
    NO_STEP: "saturation.dead saturation.arithmetically_dead saturation.quantiles initial.input_variance",
    "the user's function does not define it": "bounds.gamma",
    NOTHING_TO_STRETCH: "decomposition.gain decomposition.alignment",
    'level="deep" finds it': "jacobian.sigma_max",
    "at no gain does a random vector keep its length, or the input's share is beyond float64": "initial.critical.g",
    "there is no critical gain": "initial.critical.q",
    TOO_LARGE: "initial.now.q initial.now.chi",
    "at a step that no row has": "weight_gradient.weight_hh weight_gradient.weight_ih",
    NO_UPDATE: "weight_gradient.share_hh weight_gradient.share_ih",
    OVERFLOW: "product.log_singular product.sweeps product.disagreement product.error",
    f"{OVERFLOW}; or {NOT_CONVERGED}": "product.log_condition",
    ON_DEVICE: "product.left product.right",
    f"{NO_STEP} after the burn-in": "lyapunov.exponents lyapunov.entropy_rate lyapunov.predictability",
    NO_INTERVAL: "lyapunov.interval",
    "for a row without a step after the burn-in": "lyapunov.by_row",
    "for a row without a step in the window": "lyapunov.windows",
    "where fewer exponents than units are followed; where a determinant is 0": "lyapunov.sum_residual",
    "where the exponents that are followed do not reach down to it": "lyapunov.kaplan_yorke",
    NOT_GIVEN: "nonfinite.step nonfinite.row nonfinite.log_value",
    "where no operand is finite": "nonfinite.ranges",
    "with fewer than two finite states before it": "nonfinite.growth",
    "where weight_hh is not finite": "eigenvalues",
    "it came from a difference of numbers that are not finite": "gradcheck.checks.numeric",
    "it came from a product of numbers that are not finite": "gradcheck.checks.analytic "
    "gradcheck.adjoint.numeric gradcheck.adjoint.analytic",
}
REASONS = {path: reason for reason, paths in PATHS.items() for path in paths.split()}
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
