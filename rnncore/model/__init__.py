"""Models: a network with its parameters, bound to one backend."""

import sys

from rnncore.model import rnn_cell
from rnncore.model.loading import load
from rnncore.model.rnn import RNN, bound_to
from rnncore.model.rnn_cell import RNNCell

__all__ = ["RNN", "RNNCell", "bound_to", "load"]

# Where version 0.1 had the class: its pickles name this module.
sys.modules["rnncore.rnn_cell"] = rnn_cell
