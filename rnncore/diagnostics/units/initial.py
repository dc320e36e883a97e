"""initial: the gain of W_hh at which a random network neither forgets nor explodes, for the input that it really has.

The theory is that of :mod:`rnncore.diagnostics.units.mean_field`; here its v and q are measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnncore.diagnostics.numerics.logs import log_norms, log_sum, recurrent_matrix
from rnncore.diagnostics.recording import Record, check_record
from rnncore.diagnostics.units.mean_field import CriticalGain, MeanField, Moments, critical, on_host, state
from rnncore.typing import Array, Host

__all__ = ["Initial", "initial"]


@dataclass(frozen=True)
class Initial:
    """For each layer a tuple by direction.

    Attributes
    ----------
    input_variance : tuple of tuple of float
        v: the mean square, over all valid steps, rows and units, of W_ih x + b. About 0 and not about its mean, as the
        field of the theory has no mean. NaN without any step.
    critical : tuple of tuple of CriticalGain
        For a Gaussian W_hh and for an orthogonal one: it is the same g.
    gain : tuple of tuple of float
        The g that W_hh has now: ||W_hh||_F / sqrt(H).
    now : tuple of tuple of MeanField
        What the theory says of that.
    """

    input_variance: tuple[tuple[float, ...], ...]
    critical: tuple[tuple[CriticalGain, ...], ...]
    gain: tuple[tuple[float, ...], ...]
    now: tuple[tuple[MeanField, ...], ...]


def initial(record: Record) -> Initial:
    """Measure the input, and solve for the critical gain and for the present one.

    Parameters
    ----------
    record : Record

    Returns
    -------
    Initial
        For each layer a tuple by direction.

    Raises
    ------
    ArgumentTypeError
        For anything but a :class:`Record`. Weights and inputs that are not finite are no error: their theory is NaN.

    Notes
    -----
    Work: one product of the inputs with W_ih for each layer and direction, and the integrals, which do not grow with the
    run. For a named nonlinearity these are made once in a process.

    Examples
    --------
    >>> import numpy as np, rnncore
    >>> from rnncore.diagnostics.units.initial import initial
    >>> from rnncore.diagnostics.recording import record
    >>> rnn = rnncore.RNN(1, 64, nonlinearity="relu", bias=False, init=rnncore.init.orthogonal(1.0), rng=0)
    >>> found = initial(record(rnn, np.zeros((2, 1, 1))))
    >>> round(found.critical[0][0].g, 6), round(found.gain[0][0], 6), round(found.now[0][0].rate, 4)
    (1.414214, 1.0, -0.3466)
    """
    check_record(record)
    out: list[list[Any]] = [[], [], [], []]
    with record.engine.scope(), np.errstate(invalid="ignore", over="ignore"):
        moments = Moments(record.nonlinearity, _evaluator(record))
        for k in range(record.spec.num_layers):
            rows = [_of_layer(record, moments, k, d) for d in range(record.directions)]
            for column, values in zip(out, zip(*rows, strict=True), strict=True):
                column.append(tuple(values))
    return Initial(*(tuple(column) for column in out))


def _evaluator(record: Record) -> Callable[[Host], tuple[Host, Host]]:
    """Where f and f' are evaluated: on the host, but a user's own where its library is."""
    f, engine = record.nonlinearity, record.engine
    if not f.is_custom:
        return on_host(f)

    def there(z: Host) -> tuple[Host, Host]:
        x: Array = engine.backend.asarray(z, dtype=engine.dtype, device=engine.device)
        return record.host(f(x, xp=engine.xp)), record.host(f.derivative(x, xp=engine.xp))

    return there


def _of_layer(record: Record, moments: Moments, k: int, d: int) -> tuple[float, CriticalGain, float, MeanField]:
    norms = log_norms(recurrent_matrix(record, k, d))
    gain = math.exp(0.5 * (log_sum(2 * norms) - math.log(len(norms))))
    v, q = _input_variance(record, k, d), _mean_square(record, record.z[k][d])
    if not (math.isfinite(v) and math.isfinite(gain)):
        return v, CriticalGain(None, None), gain, MeanField(math.nan, math.nan)
    return v, critical(moments, v), gain, state(moments, gain, v, q)


def _input_variance(record: Record, k: int, d: int) -> float:
    xp, w = record.xp, record.weights[k][d]
    share = record.engine.product(record.inputs[k], xp.matrix_transpose(w.weight_ih))
    return _mean_square(record, share if w.bias is None else share + w.bias)


def _mean_square(record: Record, x: Array) -> float:
    """Over the valid steps and rows, and the units."""
    xp = record.xp
    count = sum(record.lengths) * int(x.shape[-1])
    if not count:
        return math.nan
    x = x if record.ragged is None else record.ragged.masked(x)
    # Divided by the largest first; the device adds up over the units only, the rest is added in float64.
    largest = xp.max(xp.abs(x))
    unit = xp.where(largest > 0, largest, xp.ones_like(largest))
    rows = record.host(xp.mean((x / unit) * (x / unit), axis=-1))
    size = float(record.host(largest))
    return size * size * float(rows.sum()) * int(x.shape[-1]) / count
