"""The product of the scalar chain rule, ``D_n = f'(z_1) w_1 * f'(z_2) w_2 * ... * f'(z_n) w_n``, in logarithms.

This is the textbook explanation of the vanishing gradient (Hochreiter 1991; Bengio, Simard and Frasconi 1994, "Learning
long-term dependencies with gradient descent is difficult"), which is exact for a network of one unit. A floating-point product
is misleading: 0.9 * 0.9 * ... stays at 2.5e-323 and never reaches 0. Sums of ln |f'(z)| + ln |w| have the full range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnncore.backend.arrays import device_of, device_scope, dtype_name, find_dtype, host_numbers
from rnncore.backend.registry import backend_of
from rnncore.diagnostics.recording import Record, check_record
from rnncore.errors import ArgumentValueError, ShapeError
from rnncore.nonlinearity.nonlinearity import Nonlinearity, as_nonlinearity
from rnncore.typing import Array, Host, Namespace

__all__ = ["Chain", "Crossings", "chain", "chain_of_record"]

DTYPES = ("float32", "float64")


@dataclass(frozen=True)
class Crossings:
    """The first n, counted from 1, at which |D_n| passes a limit of a dtype; None if it never does.

    Attributes
    ----------
    below_eps : int or None
        Below eps: too small to change a number of size 1 when added to it.
    below_normal : int or None
        Below the smallest normal number: it loses digits and then underflows.
    above_max : int or None
        Above the largest number: overflow.
    """

    below_eps: int | None
    below_normal: int | None
    above_max: int | None


@dataclass(frozen=True)
class Chain:
    """The products D_1 to D_N.

    Attributes
    ----------
    log : host array (N,) of float64
        ln |D_n|; -inf from the first factor of exactly 0 on.
    sign : host array (N,) of float64
        -1, 0 or 1; NaN from the first NaN on.
    gamma : float or None
        sup |f'|: 1/4 for the logistic function, 1 for tanh and relu. |D_n| <= (gamma max |w|)^n.
    crossings : mapping
        By dtype, "float32" and "float64".
    """

    log: Host
    sign: Host
    gamma: float | None
    crossings: Mapping[str, Crossings]


def chain(z: Any, w: Any, nonlinearity: Any = "tanh") -> Chain:
    """Compute D_n for all n at once.

    Parameters
    ----------
    z : array or sequence of float (N,)
        Pre-activations, of any backend; a sequence of numbers is converted to float64.
    w : float, or array or sequence of float (N,)
    nonlinearity : str or Nonlinearity

    Returns
    -------
    Chain
        Host arrays (N,): ln |D_n| in nats, and the sign.

    Raises
    ------
    ShapeError
        If z is not a vector, or w is neither a number nor a vector of the same length.

    Examples
    --------
    >>> from rnncore.diagnostics.jacobians.scalar_chain import chain
    >>> found = chain([0.0] * 100, 1.0, "sigmoid")                  # sigma'(0) = 1/4
    >>> round(float(found.log[-1]), 3), found.gamma, found.crossings["float32"].below_eps
    (-138.629, 0.25, 12)
    """
    f = as_nonlinearity(nonlinearity)
    values = np.asarray(host_numbers(z, "z"), dtype=np.float64) if isinstance(z, (list, tuple)) else z
    backend = backend_of(values)
    if len(tuple(values.shape)) != 1:
        raise ShapeError(f"z: expected shape (N,), got {tuple(values.shape)}")
    weight = np.asarray(host_numbers(w, "w"), dtype=np.float64)
    if tuple(weight.shape) not in ((), tuple(values.shape)):
        raise ShapeError(f"w: expected a number or shape {tuple(values.shape)}, got {tuple(weight.shape)}")
    xp, device = backend.namespace(), device_of(values)
    find_dtype(dtype_name(values.dtype), xp=xp, device=device, argument="z")
    with device_scope(backend, device):
        both = np.asarray(backend.to_numpy(_factors(values, f, xp)), dtype=np.float64)
    return _product(both[0], both[1], weight, f.gamma)


def chain_of_record(record: Record, layer: int = 0, direction: int = 0) -> list[Chain]:
    """Compute the chain of each row of a layer with one unit, over the row's length: |D_n| = |dh_n/dh_0|.

    It follows the direction's own time: the reverse direction begins at a row's end.

    Parameters
    ----------
    record : Record
    layer, direction : int

    Returns
    -------
    list of Chain
        One for each row, with one factor for each of its steps.

    Raises
    ------
    ArgumentValueError
        If the layer has more than one unit, or there is no such layer or direction.

    Examples
    --------
    >>> import numpy as np, rnncore
    >>> from rnncore.diagnostics.jacobians.scalar_chain import chain_of_record
    >>> from rnncore.diagnostics.recording import record
    >>> rnn = rnncore.RNN(1, 1, nonlinearity="identity", init=rnncore.init.constant(0.5))
    >>> np.exp(chain_of_record(record(rnn, np.zeros((3, 1, 1))))[0].log)
    array([0.5  , 0.25 , 0.125])
    """
    check_record(record)
    lane = record.lane(layer, direction)
    if lane.width != 1:
        raise ArgumentValueError(f"layer {layer}: a chain has one unit, this layer has {lane.width}; see the Jacobians")
    f = lane.nonlinearity
    with lane.engine.scope():
        both, w = lane.host(_factors(lane.z[..., 0], f, lane.xp)), lane.matrix[0, 0]
    out = []
    for row, length in enumerate(lane.lengths):
        inside = both[:, :length, row]
        inside = inside[:, ::-1] if lane.reverse else inside
        out.append(_product(inside[0], inside[1], np.asarray(w), f.gamma))
    return out


def _factors(z: Array, f: Nonlinearity, xp: Namespace) -> Array:
    """ln |f'(z)| and the sign of f'(z), stacked."""
    log = f.log_derivative(z, xp=xp)
    slope = f.derivative(z, xp=xp)
    # f' may round to 0 where ln |f'| is finite: take the sign nearer to the origin on the same side.
    for shrink in (2.0, 16.0, 1024.0):
        slope = xp.where(slope == 0, f.derivative(z / shrink, xp=xp), slope)
    sign = xp.where(log == -float("inf"), xp.zeros_like(slope), xp.sign(slope))
    return xp.stack([log, sign], axis=0)


def _product(log_slope: Host, sign: Host, w: Host, gamma: float | None) -> Chain:
    with np.errstate(divide="ignore", invalid="ignore"):
        # Use extended precision if available: 10,000 additions in float64 would lose four digits.
        log = np.cumsum(log_slope + np.log(np.abs(w)), dtype=np.longdouble).astype(np.float64)
        signs = np.cumprod(sign * np.sign(w))
    return Chain(log, signs, gamma, {name: _crossings(log, np.finfo(name)) for name in DTYPES})


def _crossings(log: Host, info: Any) -> Crossings:
    def first(where: Host) -> int | None:
        return int(np.argmax(where)) + 1 if where.any() else None

    return Crossings(
        first(log < np.log(float(info.eps))),
        first(log < np.log(float(info.smallest_normal))),
        first(log > np.log(float(info.max))),
    )
