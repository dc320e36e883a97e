"""Why a network does not learn: where its gradients vanish, explode or turn to NaN, and what to change.

:func:`diagnose` runs all probes and returns a :class:`Report`. Each probe is also a function of one lane of a recorded run,
that is of one layer in one direction: ``saturation(seen.lane())``, or ``seen.map(saturation)`` for all lanes.

>>> import numpy as np, rnncore
>>> from rnncore import diagnostics
>>> rnn, x = rnncore.RNN(3, 8, rng=0), np.random.default_rng(0).standard_normal((100, 2, 3))
>>> print(diagnostics.diagnose(rnn, x).verdict.label)          # torch's default: e^-50 of the gradient is left
vanishing
>>> seen = diagnostics.record(rnn, x)
>>> flows, deltas = diagnostics.flow(seen, None, [[np.ones((2, 8))]])
>>> bool(flows[0][0].total[0, 0] < flows[0][0].total[-1, 0] - 30)
True
>>> diagnostics.saturation(seen.lane()).dead
0.0
"""

import warnings
from importlib import import_module
from typing import Any

from rnncore.diagnostics.faults.first import nonfinite
from rnncore.diagnostics.foreign import as_rnn
from rnncore.diagnostics.gradient.decomposition import decompose
from rnncore.diagnostics.gradient.flow import flow
from rnncore.diagnostics.gradient.gradcheck import gradcheck
from rnncore.diagnostics.gradient.horizon import horizon
from rnncore.diagnostics.gradient.weight_gradient import weight_gradient
from rnncore.diagnostics.jacobians.bounds import bounds, span_bounds
from rnncore.diagnostics.jacobians.jacobian import jacobian
from rnncore.diagnostics.jacobians.lyapunov import lyapunov
from rnncore.diagnostics.jacobians.product import product
from rnncore.diagnostics.jacobians.scalar_chain import chain, chain_of_record
from rnncore.diagnostics.monitor.log import read_log
from rnncore.diagnostics.monitor.monitor import Monitor, VerdictChange
from rnncore.diagnostics.monitor.norms import GradientNorms
from rnncore.diagnostics.recording import record
from rnncore.diagnostics.report.compare import compare
from rnncore.diagnostics.report.report import Report
from rnncore.diagnostics.run import diagnose
from rnncore.diagnostics.units.initial import initial
from rnncore.diagnostics.units.mean_field import critical_gain
from rnncore.diagnostics.units.saturation import saturation
from rnncore.diagnostics.verdict.verdict import Verdict

__all__ = [
    "GradientNorms",
    "Monitor",
    "Report",
    "Verdict",
    "VerdictChange",
    "as_rnn",
    "bounds",
    "chain",
    "chain_of_record",
    "compare",
    "critical_gain",
    "decompose",
    "diagnose",
    "flow",
    "gradcheck",
    "horizon",
    "initial",
    "jacobian",
    "lyapunov",
    "nonfinite",
    "product",
    "read_log",
    "record",
    "saturation",
    "span_bounds",
    "weight_gradient",
]

# Classes of results, public here in version 0.1: by module.
MOVED = {
    "faults.fault": "NonFinite",
    "gradient.decomposition": "Decomposition",
    "gradient.flow": "Flow",
    "gradient.gradcheck": "Gradcheck",
    "gradient.horizon": "Horizon",
    "gradient.weight_gradient": "WeightGradient",
    "jacobians.bounds": "Bounds SpanBounds",
    "jacobians.jacobian": "Jacobian",
    "jacobians.lyapunov": "Lyapunov",
    "jacobians.product": "Product",
    "jacobians.scalar_chain": "Chain",
    "monitor.log": "Entry",
    "monitor.norms": "NormSummary",
    "recording": "Record",
    "report.compare": "Change Comparison",
    "units.initial": "Initial",
    "units.saturation": "Saturation",
    "verdict.verdict": "Evidence Remedy",
}


def __getattr__(name: str) -> Any:
    for module, names in MOVED.items():
        if name in names.split():
            home = f"{__name__}.{module}"
            warnings.warn(f"{__name__}.{name} is deprecated: import it from {home}", DeprecationWarning, stacklevel=2)
            return getattr(import_module(home), name)
    if name == "NormQuantiles":  # the two classes became one
        return __getattr__("NormSummary")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
