"""Why a network does not learn: where its gradients vanish, explode or turn to NaN, and what to change.

Every probe is a function of a :class:`Record`, one run of a network with all that happened in it:

>>> import numpy as np, rnncore
>>> from rnncore import diagnostics
>>> rnn = rnncore.RNN(3, 8, rng=0)
>>> seen = diagnostics.record(rnn, np.random.default_rng(0).standard_normal((100, 2, 3)))
>>> flow, deltas = diagnostics.flow(seen, None, [[np.ones((2, 8))]])
>>> bool(flow.total[0][0, 0, 0] < flow.total[0][0, -1, 0] - 30)      # torch's default: e^-30 of the gradient is left
True
"""

from rnncore.diagnostics.flow import Flow, flow
from rnncore.diagnostics.record import Record, record

__all__ = ["Flow", "Record", "flow", "record"]
