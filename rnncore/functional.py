"""The network as pure functions of (x, params): the backend is the arrays' own, the sizes are read from the parameters.

>>> import numpy as np, rnncore
>>> params = rnncore.RNN(5, 6, num_layers=2, rng=0).state_dict()
>>> output, h_n = rnncore.functional.rnn(np.ones((4, 3, 5)), params)
>>> output.shape, h_n.shape
((4, 3, 6), (2, 3, 6))
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypedDict, Unpack

from rnncore.arguments import Rng, check_bytes, check_mapping, describe, flag
from rnncore.backend.arrays import check_floating, device_of
from rnncore.backend.registry import backend_of, selected_backend
from rnncore.errors import ShapeError, StateDictError
from rnncore.network import calls
from rnncore.network.engine import make_engine
from rnncore.network.network import Network
from rnncore.network.results import Pullback, State, Tangents, Trace
from rnncore.network.step import Weights, step
from rnncore.nonlinearity.nonlinearity import as_nonlinearity
from rnncore.spec import RNNSpec
from rnncore.typing import Array, KernelMode

__all__ = ["bind", "jvp", "rnn", "rnn_cell", "spec_of", "trace", "vjp"]

SMALLEST_ITEM = 2  # bytes of a number in half precision
NAME = re.compile(r"(weight_ih|weight_hh|bias_ih|bias_hh)_l(0|[1-9][0-9]{0,5})(_reverse)?")


class Options(TypedDict, total=False):
    """What parameters do not say about a network; as for :class:`rnncore.RNN`, and with the same defaults."""

    nonlinearity: Any
    batch_first: bool
    dropout: float
    clip: float | None
    kernel: KernelMode
    check_finite: bool


def bind(
    params: Mapping[str, Array],
    *,
    nonlinearity: Any = "tanh",
    batch_first: bool = False,
    dropout: float = 0.0,
    clip: float | None = None,
    kernel: KernelMode = "auto",
    check_finite: bool = False,
) -> Network:
    """The network that `params` describe, on the backend, device and dtype of its arrays.

    Parameters
    ----------
    params : mapping of str to array
        torch's names: ``weight_ih_l0``, ``weight_hh_l0``, ``bias_ih_l0``, ``bias_hh_l0``, ``..._reverse``, ``..._l1``.
        Layers, widths, directions and biases are read from the names and shapes.
    nonlinearity, batch_first, dropout, clip, kernel, check_finite
        As for :class:`rnncore.RNN`.

    Raises
    ------
    StateDictError
        If the parameters do not make up a network, with everything that is wrong.
    RnncoreError
        For arrays of different libraries, dtypes or devices, and for options that are not valid.

    Examples
    --------
    >>> import numpy as np, rnncore
    >>> params = rnncore.RNN(5, 6, rng=0).state_dict()
    >>> rnncore.functional.bind(params, nonlinearity="relu").spec.nonlinearity.name
    'relu'
    """
    spec = spec_of(params, nonlinearity=nonlinearity, batch_first=batch_first, dropout=dropout, clip=clip)
    first = params["weight_ih_l0"]
    backend = backend_of(first, prefer=selected_backend())
    check_floating("weight_ih_l0", first)
    engine = make_engine(backend, device=device_of(first), dtype=first.dtype, kernel=kernel)
    shapes = spec.parameter_shapes()
    checked = {name: engine.check(name, params[name], shape) for name, shape in shapes.items()}
    flag("check_finite", check_finite)
    return Network(spec, checked, engine, check_finite)


def rnn(
    x: Array,
    params: Mapping[str, Array],
    h0: Any = None,
    *,
    lengths: Any = None,
    training: bool = False,
    rng: Rng = None,
    **options: Unpack[Options],
) -> tuple[Array, State]:
    """Run the network that `params` describe; see :meth:`rnncore.RNN.__call__` for shapes.

    Parameters
    ----------
    x, h0, lengths, training, rng
        As for a call of :class:`rnncore.RNN`.
    params, **options
        As for :func:`bind`.

    Raises
    ------
    StateDictError
        If the parameters do not make up a network, with everything that is wrong.
    RnncoreError
        Whatever a call of :class:`rnncore.RNN` raises.
    """
    return calls.forward(bind(params, **options), x, h0, lengths, training, rng)


def vjp(
    x: Array,
    params: Mapping[str, Array],
    h0: Any = None,
    *,
    lengths: Any = None,
    training: bool = False,
    rng: Rng = None,
    checkpoint: bool | int = False,
    truncate: int | None = None,
    **options: Unpack[Options],
) -> tuple[Array, State, Pullback]:
    """Output, h_n and the pullback; see :func:`rnn` and :meth:`rnncore.RNN.vjp`."""
    network = bind(params, **options)
    return calls.vjp(network, x, h0, lengths, training, rng, checkpoint=checkpoint, truncate=truncate)


def jvp(
    x: Array,
    params: Mapping[str, Array],
    h0: Any = None,
    *,
    lengths: Any = None,
    training: bool = False,
    rng: Rng = None,
    **tangents_and_options: Any,
) -> tuple[Array, State, Tangents]:
    """Output, h_n and their tangents for `x_dot`, `h0_dot` and `params_dot`; see :func:`rnn` and :meth:`rnncore.RNN.jvp`."""
    options = dict(tangents_and_options)
    dots = {n: options.pop(n) for n in ("x_dot", "h0_dot", "params_dot") if n in options}
    return calls.jvp(bind(params, **options), x, h0, lengths, training, rng, **dots)


def trace(
    x: Array,
    params: Mapping[str, Array],
    h0: Any = None,
    *,
    lengths: Any = None,
    training: bool = False,
    rng: Rng = None,
    **options: Unpack[Options],
) -> Trace:
    """Every state and pre-activation; see :func:`rnn` and :meth:`rnncore.RNN.trace`."""
    return calls.trace(bind(params, **options), x, h0, lengths, training, rng)


def rnn_cell(
    x: Array,
    h: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    *,
    nonlinearity: Any = "tanh",
    clip: float | None = None,
) -> Array:
    """One step: x (B, I), h (B, H), weight_ih (H, I), weight_hh (H, H), biases (H,) to the next state (B, H).

    Raises
    ------
    ArgumentTypeError, DTypeError, DeviceError, ShapeError

    Examples
    --------
    >>> import numpy as np, rnncore
    >>> rnncore.functional.rnn_cell(np.ones((1, 2)), np.zeros((1, 1)), np.ones((1, 2)), np.ones((1, 1)))
    array([[0.96402758]])
    """
    backend = backend_of(x, prefer=selected_backend())
    check_floating("x", x)
    if x.ndim != 2:
        raise ShapeError(f"x: expected shape (B, I), got {tuple(x.shape)}")
    engine = make_engine(backend, device=device_of(x), dtype=x.dtype, kernel="auto")
    weight_hh = engine.check("weight_hh", weight_hh, (None, None))
    width = weight_hh.shape[0]
    engine.check("weight_hh", weight_hh, (width, width))
    weight_ih = engine.check("weight_ih", weight_ih, (width, x.shape[1]))
    check_bytes("the next state", x.shape[0] * width, SMALLEST_ITEM)
    x, h = engine.check("x", x), engine.check("h", h, (x.shape[0], width))
    with engine.scope():
        bias = None
        for name, value in (("bias_ih", bias_ih), ("bias_hh", bias_hh)):
            if value is not None:
                value = engine.check(name, value, (width,))
                bias = value if bias is None else bias + value
        f = as_nonlinearity(nonlinearity, clip=clip)
        return step(Weights(weight_ih, weight_hh, bias), x, h, nonlinearity=f, xp=engine.xp)


def spec_of(
    params: Mapping[str, Array],
    *,
    nonlinearity: Any = "tanh",
    batch_first: bool = False,
    dropout: float = 0.0,
    clip: float | None = None,
) -> RNNSpec:
    """The description that the names and shapes of `params` imply.

    Raises
    ------
    StateDictError
        Listing every name and shape that does not fit.
    """
    check_mapping("params", params)
    parts = {name: _part(name) for name in params}
    known = [match for match in parts.values() if match is not None]
    layers = 1 + max((int(match[2]) for match in known), default=0)
    matrices = ["weight_ih_l0", *(f"weight_hh_l{k}" for k in range(min(layers, len(params) + 1)))]
    found = [_matrix(params, name) for name in matrices]
    faults = [f"unexpected {name!r}" for name, match in parts.items() if match is None]
    _refuse(faults + [shape for shape in found if isinstance(shape, str)])
    bias, bidirectional = any(m[1].startswith("bias") for m in known), any(m[3] for m in known)
    widths = tuple(int(shape[0]) for shape in found[1:])
    options = (nonlinearity, bias, batch_first, dropout, bidirectional)
    spec = RNNSpec.make(int(found[0][1]), widths, layers, *options, clip=clip)
    shapes = spec.parameter_shapes()
    missing = [f"missing {name}, expected shape {shape}" for name, shape in shapes.items() if name not in params]
    given = {name: _shape(params[name]) for name in shapes if name in params}
    wrong = [f"{n}: expected shape {shapes[n]}, got {shape}" for n, shape in given.items() if shape != shapes[n]]
    _refuse(missing + wrong)
    return spec


def _part(name: object) -> re.Match[str] | None:
    return NAME.fullmatch(name) if isinstance(name, str) else None


def _refuse(faults: list[str]) -> None:
    if faults:
        raise StateDictError("params do not make up a network: " + "; ".join(faults))


def _matrix(params: Mapping[str, Array], name: str) -> tuple[int, ...] | str:
    """The shape of a matrix that is not empty, or what is there instead."""
    shape = tuple(getattr(params.get(name), "shape", ()))
    if len(shape) == 2 and min(shape) > 0:
        return shape
    kind = "a matrix" if name == "weight_ih_l0" else "a square matrix"
    return f"{name}: expected {kind}, got {f'shape {shape}' if name in params else 'nothing'}"


def _shape(x: object) -> tuple[int, ...] | str:
    shape = getattr(x, "shape", None)
    return describe(x) if shape is None else tuple(shape)
