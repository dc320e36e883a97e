"""Why a network does not learn: where its gradients vanish, explode or turn to NaN, and what to change.

:func:`diagnose` runs the probes and says what it found. Every probe is also a function of a :class:`Record`, one run of a
network with all that happened in it:

>>> import numpy as np, rnncore
>>> from rnncore import diagnostics
>>> rnn, x = rnncore.RNN(3, 8, rng=0), np.random.default_rng(0).standard_normal((100, 2, 3))
>>> print(diagnostics.diagnose(rnn, x).verdict.label)          # torch's default: e^-50 of the gradient is left
vanishing
>>> seen = diagnostics.record(rnn, x)
>>> flow, deltas = diagnostics.flow(seen, None, [[np.ones((2, 8))]])
>>> bool(flow.total[0][0, 0, 0] < flow.total[0][0, -1, 0] - 30)
True
"""

from rnncore.diagnostics.faults.first import NonFinite, nonfinite
from rnncore.diagnostics.foreign import as_rnn
from rnncore.diagnostics.gradient.decomposition import Decomposition, decompose
from rnncore.diagnostics.gradient.flow import Flow, flow
from rnncore.diagnostics.gradient.gradcheck import Gradcheck, gradcheck
from rnncore.diagnostics.gradient.horizon import Horizon, horizon
from rnncore.diagnostics.gradient.weight_gradient import WeightGradient, weight_gradient
from rnncore.diagnostics.jacobians.bounds import Bounds, SpanBounds, bounds, span_bounds
from rnncore.diagnostics.jacobians.jacobian import Jacobian, jacobian
from rnncore.diagnostics.jacobians.lyapunov import Lyapunov, lyapunov
from rnncore.diagnostics.jacobians.product import Product, product
from rnncore.diagnostics.jacobians.scalar_chain import Chain, chain, chain_of_record
from rnncore.diagnostics.monitor.log import Entry, NormQuantiles, read_log
from rnncore.diagnostics.monitor.monitor import Monitor, VerdictChange
from rnncore.diagnostics.monitor.norms import GradientNorms, NormSummary
from rnncore.diagnostics.recording import Record, record
from rnncore.diagnostics.report.compare import Change, Comparison, compare
from rnncore.diagnostics.report.report import Report
from rnncore.diagnostics.run import diagnose
from rnncore.diagnostics.units.initial import Initial, initial
from rnncore.diagnostics.units.mean_field import critical_gain
from rnncore.diagnostics.units.saturation import Saturation, saturation
from rnncore.diagnostics.verdict.verdict import Evidence, Remedy, Verdict

__all__ = [
    "Bounds",
    "Chain",
    "Change",
    "Comparison",
    "Decomposition",
    "Entry",
    "Evidence",
    "Flow",
    "Gradcheck",
    "GradientNorms",
    "Horizon",
    "Initial",
    "Jacobian",
    "Lyapunov",
    "Monitor",
    "NonFinite",
    "NormQuantiles",
    "NormSummary",
    "Product",
    "Record",
    "Remedy",
    "Report",
    "Saturation",
    "SpanBounds",
    "Verdict",
    "VerdictChange",
    "WeightGradient",
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
