"""rnncore: one vanilla recurrent network for every array library, and the reasons why it does not learn.

>>> import numpy as np, rnncore
>>> rnn = rnncore.RNN(5, 6, 1)
>>> output, h_n = rnn(np.zeros((1, 3, 5)), np.zeros((1, 3, 6)))
>>> output.shape, h_n.shape
((1, 3, 6), (1, 3, 6))

Importing it imports no backend.
"""

from rnncore import errors, functional, init, optim
from rnncore.errors import RnncoreError
from rnncore.model import RNN, bound_to, load
from rnncore.nonlinearity import Nonlinearity, custom_nonlinearity, get_nonlinearity
from rnncore.registry import BackendStatus, backends, get_backend, use_backend
from rnncore.rnn_cell import RNNCell
from rnncore.spec import RNNSpec

__version__ = "0.1.0"

__all__ = [
    "RNN",
    "BackendStatus",
    "Nonlinearity",
    "RNNCell",
    "RNNSpec",
    "RnncoreError",
    "__version__",
    "backends",
    "bound_to",
    "custom_nonlinearity",
    "errors",
    "functional",
    "get_backend",
    "get_nonlinearity",
    "init",
    "load",
    "optim",
    "use_backend",
]
