"""Models: a network with its parameters, bound to one backend."""

from rnncore.model.loading import load
from rnncore.model.rnn import RNN, bound_to
from rnncore.model.rnn_cell import RNNCell

__all__ = ["RNN", "RNNCell", "bound_to", "load"]
