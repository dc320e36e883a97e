"""rnncore: one vanilla recurrent network for every array library, and the reasons why it does not learn.

>>> import numpy as np, rnncore
>>> rnn = rnncore.RNN(5, 6, 1)
>>> output, h_n = rnn(np.zeros((1, 3, 5)), np.zeros((1, 3, 6)))
>>> output.shape, h_n.shape
((1, 3, 6), (1, 3, 6))

Importing it imports no backend.
"""

from typing import TYPE_CHECKING, Any

from rnncore import errors, functional, init, optim
from rnncore.backend.registry import BackendStatus, backends, get_backend, use_backend
from rnncore.errors import RnncoreError
from rnncore.model.exchange import from_module, to_module
from rnncore.model.loading import load
from rnncore.model.rnn import RNN, bound_to
from rnncore.model.rnn_cell import RNNCell
from rnncore.nonlinearity.nonlinearity import Nonlinearity, custom_nonlinearity, get_nonlinearity
from rnncore.spec import RNNSpec

if TYPE_CHECKING:
    from rnncore import diagnostics
    from rnncore.diagnostics import diagnose

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # At first use, as the diagnostics are half of the library and a program that only runs a network needs none of them.
    if name in ("diagnose", "diagnostics"):
        from importlib import import_module

        found = import_module("rnncore.diagnostics")
        return found if name == "diagnostics" else found.diagnose
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
    "diagnose",
    "diagnostics",
    "errors",
    "from_module",
    "functional",
    "get_backend",
    "get_nonlinearity",
    "init",
    "load",
    "optim",
    "to_module",
    "use_backend",
]
