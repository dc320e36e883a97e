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
from typing import Any

from rnncore.arguments import Rng, check_mapping, describe
from rnncore.backend.arrays import check_array, check_floating, device_of, device_scope
from rnncore.backend.registry import backend_of, selected_backend
from rnncore.errors import ArgumentTypeError, ShapeError, StateDictError
from rnncore.network import calls
from rnncore.network import step as cell
from rnncore.network.calls import Call, State
from rnncore.network.engine import make_engine
from rnncore.network.results import Pullback, Tangents, Trace
from rnncore.network.step import Weights
from rnncore.nonlinearity.nonlinearity import as_nonlinearity
from rnncore.spec import RNNSpec
from rnncore.typing import Array, KernelMode

__all__ = ["jvp", "rnn", "rnn_cell", "spec_of", "trace", "vjp"]

NAME = re.compile(r"(weight_ih|weight_hh|bias_ih|bias_hh)_l(0|[1-9][0-9]{0,5})(_reverse)?")


def rnn(
    x: Array,
    params: Mapping[str, Array],
    h0: Any = None,
    *,
    nonlinearity: Any = "tanh",
    batch_first: bool = False,
    dropout: float = 0.0,
    clip: float | None = None,
    lengths: Any = None,
    training: bool = False,
    rng: Rng = None,
    kernel: KernelMode = "auto",
    check_finite: bool = False,
) -> tuple[Array, State]:
    """Run the network that `params` describe; see :meth:`rnncore.RNN.__call__` for shapes.

    Parameters
    ----------
    x, h0, lengths, training, rng
        As for a call of :class:`rnncore.RNN`.
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
        Whatever a call of :class:`rnncore.RNN` raises.
    """
    call = _call(x, params, nonlinearity, batch_first, dropout, clip, kernel, check_finite)
    return calls.forward(call, x, h0, lengths, training, rng)


def vjp(
    x: Array,
    params: Mapping[str, Array],
    h0: Any = None,
    *,
    nonlinearity: Any = "tanh",
    batch_first: bool = False,
    dropout: float = 0.0,
    clip: float | None = None,
    lengths: Any = None,
    training: bool = False,
    rng: Rng = None,
    kernel: KernelMode = "auto",
    check_finite: bool = False,
    checkpoint: bool | int = False,
    truncate: int | None = None,
) -> tuple[Array, State, Pullback]:
    """Output, h_n and the pullback; see :func:`rnn` and :meth:`rnncore.RNN.vjp`."""
    call = _call(x, params, nonlinearity, batch_first, dropout, clip, kernel, check_finite)
    return calls.vjp(call, x, h0, lengths, training, rng, checkpoint, truncate)


def jvp(
    x: Array,
    params: Mapping[str, Array],
    h0: Any = None,
    *,
    nonlinearity: Any = "tanh",
    batch_first: bool = False,
    dropout: float = 0.0,
    clip: float | None = None,
    lengths: Any = None,
    training: bool = False,
    rng: Rng = None,
    kernel: KernelMode = "auto",
    check_finite: bool = False,
    x_dot: Array | None = None,
    h0_dot: Any = None,
    params_dot: Mapping[str, Array] | None = None,
) -> tuple[Array, State, Tangents]:
    """Output, h_n and their tangents; see :func:`rnn` and :meth:`rnncore.RNN.jvp`."""
    call = _call(x, params, nonlinearity, batch_first, dropout, clip, kernel, check_finite)
    return calls.jvp(call, x, h0, lengths, training, rng, x_dot=x_dot, h0_dot=h0_dot, params_dot=params_dot)


def trace(
    x: Array,
    params: Mapping[str, Array],
    h0: Any = None,
    *,
    nonlinearity: Any = "tanh",
    batch_first: bool = False,
    dropout: float = 0.0,
    clip: float | None = None,
    lengths: Any = None,
    training: bool = False,
    rng: Rng = None,
    kernel: KernelMode = "auto",
    check_finite: bool = False,
) -> Trace:
    """Every state and pre-activation; see :func:`rnn` and :meth:`rnncore.RNN.trace`."""
    call = _call(x, params, nonlinearity, batch_first, dropout, clip, kernel, check_finite)
    return calls.trace(call, x, h0, lengths, training, rng)


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
    xp = backend.namespace()
    check_floating("x", x)
    place = {"backend": backend, "dtype": getattr(x, "dtype", None), "device": device_of(x), "xp": xp}
    if x.ndim != 2:
        raise ShapeError(f"x: expected shape (B, I), got {tuple(x.shape)}")
    check_array("weight_hh", weight_hh, shape=(None, None), **place)
    width = weight_hh.shape[0]
    check_array("weight_hh", weight_hh, shape=(width, width), **place)
    check_array("weight_ih", weight_ih, shape=(width, x.shape[1]), **place)
    check_array("h", h, shape=(x.shape[0], width), **place)
    with device_scope(backend, place["device"]):
        return _cell_step(x, h, weight_ih, weight_hh, bias_ih, bias_hh, nonlinearity, clip, place)


def _cell_step(
    x: Array,
    h: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None,
    bias_hh: Array | None,
    nonlinearity: Any,
    clip: float | None,
    place: dict[str, Any],
) -> Array:
    bias, width = None, weight_hh.shape[0]
    for name, value in (("bias_ih", bias_ih), ("bias_hh", bias_hh)):
        if value is not None:
            check_array(name, value, shape=(width,), **place)
            bias = value if bias is None else bias + value
    return cell.step(
        Weights(weight_ih, weight_hh, bias), x, h, nonlinearity=as_nonlinearity(nonlinearity, clip=clip), xp=place["xp"]
    )


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
    faults = [f"unexpected {name!r}" for name in params if not (isinstance(name, str) and NAME.fullmatch(name))]
    matched = [m for name in params if isinstance(name, str) and (m := NAME.fullmatch(name))]
    layers = 1 + max((int(m[2]) for m in matched), default=0)
    bias = any(m[1].startswith("bias") for m in matched)
    bidirectional = any(m[3] for m in matched)
    widths = []
    for k in range(min(layers, len(params) + 1)):
        w = params.get(f"weight_hh_l{k}")
        shape = tuple(getattr(w, "shape", ()))
        if len(shape) == 2 and shape[0] > 0:
            widths.append(shape[0])
        else:
            got = "nothing" if w is None else f"shape {shape}"
            faults.append(f"weight_hh_l{k}: expected a square matrix, got {got}")
    first = tuple(getattr(params.get("weight_ih_l0"), "shape", ()))
    if len(first) != 2 or first[1] < 1:
        got = f"shape {first}" if "weight_ih_l0" in params else "nothing"
        faults.append(f"weight_ih_l0: expected a matrix, got {got}")
    if faults:
        raise StateDictError("params do not make up a network: " + "; ".join(faults))
    spec = RNNSpec.make(
        first[1], tuple(widths), layers, nonlinearity, bias, batch_first, dropout, bidirectional, clip=clip
    )
    shapes = spec.parameter_shapes()
    faults = [f"missing {name}, expected shape {shape}" for name, shape in shapes.items() if name not in params]
    faults += [
        f"{name}: expected shape {shape}, got {_shape(params[name])}"
        for name, shape in shapes.items()
        if name in params and _shape(params[name]) != shape
    ]
    if faults:
        raise StateDictError("params do not make up a network: " + "; ".join(faults))
    return spec


def _shape(x: object) -> tuple[int, ...] | str:
    shape = getattr(x, "shape", None)
    return describe(x) if shape is None else tuple(shape)


def _call(
    x: Array,
    params: Mapping[str, Array],
    nonlinearity: Any,
    batch_first: bool,
    dropout: float,
    clip: float | None,
    kernel: KernelMode,
    check_finite: bool,
) -> Call:
    spec = spec_of(params, nonlinearity=nonlinearity, batch_first=batch_first, dropout=dropout, clip=clip)
    first = params["weight_ih_l0"]
    backend = backend_of(first, prefer=selected_backend())
    check_floating("weight_ih_l0", first)
    engine = make_engine(backend, device=device_of(first), dtype=first.dtype, kernel=kernel)
    for name, shape in spec.parameter_shapes().items():
        check_array(
            name,
            params[name],
            backend=backend,
            dtype=engine.dtype,
            device=engine.device,
            shape=shape,
            xp=engine.xp,
        )
    if not isinstance(check_finite, bool):
        raise ArgumentTypeError(f"check_finite: expected True or False, got {check_finite!r}")
    return Call(spec, params, engine, check_finite)
