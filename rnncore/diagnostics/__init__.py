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

from rnncore.diagnostics.bounds import Bounds, SpanBounds, bounds, span_bounds
from rnncore.diagnostics.chain import Chain, chain, chain_of_record
from rnncore.diagnostics.clip import GradientNorms, NormSummary
from rnncore.diagnostics.compare import Change, Comparison, compare
from rnncore.diagnostics.decomposition import Decomposition, decompose
from rnncore.diagnostics.diagnose import diagnose
from rnncore.diagnostics.flow import Flow, flow
from rnncore.diagnostics.foreign import as_rnn
from rnncore.diagnostics.gradcheck import Gradcheck, gradcheck
from rnncore.diagnostics.horizon import Horizon, horizon
from rnncore.diagnostics.initial import Initial, initial
from rnncore.diagnostics.jacobian import Jacobian, jacobian
from rnncore.diagnostics.lyapunov import Lyapunov, lyapunov
from rnncore.diagnostics.mean_field import critical_gain
from rnncore.diagnostics.monitor import Monitor, VerdictChange
from rnncore.diagnostics.monitor_log import Entry, NormQuantiles, read_log
from rnncore.diagnostics.nonfinite import NonFinite, nonfinite
from rnncore.diagnostics.product import Product, product
from rnncore.diagnostics.record import Record, record
from rnncore.diagnostics.report import Report
from rnncore.diagnostics.saturation import Saturation, saturation
from rnncore.diagnostics.verdict import Evidence, Remedy, Verdict
from rnncore.diagnostics.weight_gradient import WeightGradient, weight_gradient

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
