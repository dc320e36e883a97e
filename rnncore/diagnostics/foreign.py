"""Recurrent modules of other libraries, such as torch.nn.RNN, converted to an RNN.

:func:`rnncore.model.exchange.module_itself` converts them.
"""

from __future__ import annotations

from typing import Any

from rnncore.errors import ArgumentTypeError
from rnncore.model.exchange import module_itself
from rnncore.model.rnn import RNN

__all__ = ["as_rnn", "detached"]


def as_rnn(network: Any) -> RNN:
    """Return an RNN as it is, or convert a library's own recurrent module.

    Parameters
    ----------
    network : RNN, torch.nn.RNN, torch.nn.RNNCell
        A cell becomes a network of one layer over sequences (T, B, I). Dtype, device, layout and weights are kept; the
        weights are copied, so what is done to either later does not reach the other. The dropout between layers is kept in
        the description, and applied by a call with ``training=True`` only, whatever mode the module is in.

    Returns
    -------
    RNN
        The given one, or a new one on the module's backend and device.

    Raises
    ------
    ArgumentTypeError
        For anything else, an LSTM or a GRU among them.

    Examples
    --------
    >>> import torch
    >>> from rnncore.diagnostics import foreign
    >>> foreign.as_rnn(torch.nn.RNN(3, 4, batch_first=True))
    RNN(3, 4, batch_first=True, backend='torch', device='cpu', dtype='float32')
    """
    if isinstance(network, RNN):
        return network
    try:
        return module_itself(network)
    except ArgumentTypeError as error:
        words = str(error).removeprefix("module: expected ")
        raise ArgumentTypeError(f"rnn: expected an rnncore.RNN, or {words}") from error


def detached(value: Any) -> Any:
    """Detach an array, or arrays in a tuple or list, from a library's graph."""
    if isinstance(value, (tuple, list)):
        return type(value)(map(detached, value)) if type(value) in (tuple, list) else value
    if not getattr(value, "requires_grad", False) or not callable(getattr(value, "detach", None)):
        return value
    return value.detach()
