"""The gradient on its way back through time: dL/dh_t at every step, by one linear scan."""

from __future__ import annotations

from rnncore import scan
from rnncore.arrays import device_scope
from rnncore.backend import Array, Namespace
from rnncore.errors import ArgumentValueError
from rnncore.model import RNN
from rnncore.registry import get_backend

__all__ = ["state_gradients"]


def state_gradients(rnn: RNN, x: Array, d_last: Array) -> Array:
    """The whole gradient dL/dh_t of a loss L of the last state, for each step t.

    With u_t what reaches h_t directly, 0 but at the last step, and e_t = dL/dz_t, ``dL/dh_t = u_t + e_{t+1} W_hh`` and
    ``e_t = f'(z_t) * dL/dh_t``: the linear scan against time. Its size over t is what vanishes or explodes: Pascanu,
    Mikolov and Bengio (2013), "On the difficulty of training recurrent neural networks", equation 5.

    Parameters
    ----------
    rnn : RNN
        Of one layer and one direction, with batch_first=False.
    x : array (T, B, I)
    d_last : array (B, H)
        dL/dh of the last state.

    Returns
    -------
    array (T, B, H)

    Raises
    ------
    ArgumentValueError
        If the network has more layers or directions.
    RnncoreError
        Whatever :meth:`rnncore.RNN.trace` raises.

    Examples
    --------
    >>> import numpy as np, rnncore
    >>> from rnncore.flow import state_gradients
    >>> rnn = rnncore.RNN(1, 1, nonlinearity="identity", init=rnncore.init.constant(0.1))
    >>> state_gradients(rnn, np.zeros((4, 1, 1)), np.ones((1, 1)))[:, 0, 0].round(6)
    array([0.001, 0.01 , 0.1  , 1.   ])
    """
    if rnn.spec.num_layers != 1 or rnn.spec.bidirectional or rnn.spec.batch_first:
        raise ArgumentValueError(f"rnn: expected one layer, one direction and batch_first=False, got {rnn!r}")
    backend = get_backend(rnn.backend)
    with device_scope(backend, rnn.device):
        return _state_gradients(rnn, x, d_last, backend.namespace())


def _state_gradients(rnn: RNN, x: Array, d_last: Array, xp: Namespace) -> Array:
    slope = rnn.spec.nonlinearity.derivative(rnn.trace(x).z[0][0, ...], xp=xp)
    u = xp.concat([xp.zeros_like(slope[1:, ...]), xp.expand_dims(d_last, axis=0)], axis=0)
    zero, w = xp.zeros_like(d_last), rnn.params["weight_hh_l0"]
    e = scan.linear(u, slope, zero, w, reverse=True, xp=xp)
    return u + xp.matmul(scan.previous(e, zero, reverse=True, xp=xp), w)
