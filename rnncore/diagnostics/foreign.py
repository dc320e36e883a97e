"""Recurrent modules of other libraries, such as torch.nn.RNN, converted to an RNN.

Nothing here knows a library. The module's parameters are arrays of some backend, and that backend converts the module, if it
has a ``from_module``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rnncore.arguments import describe
from rnncore.backend.abilities import ability
from rnncore.backend.registry import get_backend, owner_name
from rnncore.errors import ArgumentTypeError
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
    owner = None if isinstance(network, type) else owner_name(_first_parameter(network))
    convert = None if owner is None else ability(get_backend(owner), "from_module")
    if convert is None:
        raise ArgumentTypeError(
            f"rnn: expected an rnncore.RNN, or a library's own recurrent module such as torch.nn.RNN, "
            f"got {describe(network)}"
        )
    found = convert(network)
    if not isinstance(found, RNN):
        raise ArgumentTypeError(
            f"rnn: expected backend {owner!r} to make an rnncore.RNN of it, got {describe(found)} from its from_module"
        )
    return found


def detached(value: Any) -> Any:
    """Detach an array, or arrays in a tuple or list, from a library's graph."""
    if isinstance(value, (tuple, list)):
        return type(value)(map(detached, value)) if type(value) in (tuple, list) else value
    if not getattr(value, "requires_grad", False) or not callable(getattr(value, "detach", None)):
        return value
    return value.detach()


def _first_parameter(module: Any) -> Any:
    parameters = getattr(module, "parameters", None)
    if not callable(parameters):
        return None
    try:
        found = parameters()
    except TypeError:  # it needs arguments, so it is another kind of method
        return None
    if isinstance(found, Mapping):
        found = found.values()
    return next(iter(found), None) if isinstance(found, Iterable) else None
