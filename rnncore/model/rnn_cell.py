"""RNNCell: one step at a time, with the parameters, and the parameter names, of a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from rnncore.arguments import Rng, as_generator, check_mapping
from rnncore.backend.arrays import check_finite
from rnncore.backend.contract import Backend
from rnncore.errors import ArgumentTypeError, ArgumentValueError, ShapeError
from rnncore.init import draw
from rnncore.model.base import Parameterised
from rnncore.network import step as cell
from rnncore.network.engine import Engine
from rnncore.network.step import Weights
from rnncore.spec import RNNSpec
from rnncore.typing import Array, KernelMode

__all__ = ["CellGradients", "RNNCell", "cell_of"]


class CellGradients(NamedTuple):
    """What the pullback of a cell returns: by parameter name, and for x and h in their shapes."""

    params: dict[str, Array]
    x: Array
    h: Array


CellPullback: TypeAlias = Callable[[Array], CellGradients]


class RNNCell(Parameterised):
    """One step of a vanilla RNN: ``h' = f(x W_ih^T + b_ih + h W_hh^T + b_hh)``.

    Its parameters have the names of a one-layer :class:`rnncore.RNN`, ``weight_ih_l0`` and so on, so that weights pass
    between the two as they are; ``load_state_dict`` also understands ``torch.nn.RNNCell``'s names without the suffix.
    :meth:`rnncore.RNN.cell` gives a cell that shares a network's parameters.

    Parameters
    ----------
    input_size, hidden_size, bias, nonlinearity
        As ``torch.nn.RNNCell``.
    clip, init, backend, device, dtype, rng, check_finite
        As :class:`rnncore.RNN`.

    Examples
    --------
    >>> import numpy as np, rnncore
    >>> cell = rnncore.RNNCell(5, 6, rng=0)
    >>> cell(np.zeros((3, 5))).shape
    (3, 6)
    """

    _suffix: str = "l0"
    _layer: int = 0

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: Any = "tanh",
        *,
        clip: float | None = None,
        init: Any = "uniform",
        backend: str | Backend | None = None,
        device: Any = None,
        dtype: Any = None,
        rng: Rng = None,
        kernel: KernelMode = "auto",
        check_finite: bool = False,
    ) -> None:
        if isinstance(hidden_size, (list, tuple)):
            raise ArgumentTypeError(f"hidden_size: a cell has one width; expected an int >= 1, got {hidden_size!r}")
        spec = RNNSpec.make(input_size, hidden_size, 1, nonlinearity, bias, clip=clip)
        engine = self._make_engine(backend, device, dtype, kernel)
        self._bind(spec, draw(spec, as_generator(rng), init), engine, check_finite)

    def __call__(self, x: Array, h: Array | None = None) -> Array:
        """The next state (B, H) from x (B, I) and h (B, H), or unbatched (H,) from (I,) and (H,).

        h is zero if not given.

        Raises
        ------
        ShapeError, DTypeError, DeviceError, ArgumentTypeError, NonFiniteError
        """
        with self._engine.scope():
            w, x2, h2 = self._inputs(x, h)
            h_next = cell.step(w, x2, h2, nonlinearity=self._spec.nonlinearity, xp=self._engine.xp)
            return h_next if x.ndim == 2 else h_next[0, ...]

    def vjp(self, x: Array, h: Array | None = None) -> tuple[Array, CellPullback]:
        """The next state, and ``pullback(d_next)`` that gives the gradients of the parameters, x and h."""
        xp, f = self._engine.xp, self._spec.nonlinearity
        with self._engine.scope():
            w, x2, h2 = self._inputs(x, h)
            h_next = cell.step(w, x2, h2, nonlinearity=f, xp=xp)
            public = h_next if x.ndim == 2 else h_next[0, ...]
        batched = x.ndim == 2

        def pullback(d_next: Array) -> CellGradients:
            """Gradients for the cotangent of the next state."""
            self._check_param("d_next", d_next, tuple(public.shape))
            with self._engine.scope():
                d = d_next if batched else xp.expand_dims(d_next, axis=0)
                found = cell.step_vjp(d, w, x2, h2, nonlinearity=f, xp=xp)
                d_x, d_h = (found.x, found.h) if batched else (found.x[0, ...], found.h[0, ...])
                return CellGradients(self._named(found.weights), d_x, d_h)

        return public, pullback

    def jvp(
        self,
        x: Array,
        h: Array | None = None,
        *,
        x_dot: Array | None = None,
        h_dot: Array | None = None,
        params_dot: Mapping[str, Array] | None = None,
    ) -> tuple[Array, Array]:
        """The next state and its tangent, for tangents of x, h and some or all parameters; zero where not given."""
        with self._engine.scope():
            return self._jvp(x, h, x_dot, h_dot, params_dot)

    def _jvp(
        self, x: Array, h: Array | None, x_dot: Array | None, h_dot: Array | None, params_dot: Any
    ) -> tuple[Array, Array]:
        w, x2, h2 = self._inputs(x, h)
        xp, f, lone = self._engine.xp, self._spec.nonlinearity, x.ndim == 1
        dots = []
        for name, value, like in (("x_dot", x_dot, x2), ("h_dot", h_dot, h2)):
            if value is not None:
                self._check_param(name, value, tuple(like.shape[1:] if lone else like.shape))
                value = xp.expand_dims(value, axis=0) if lone else value
            dots.append(value)
        w_dot = None
        if params_dot is not None:
            check_mapping("params_dot", params_dot)
            shapes = self._own_shapes()
            for name, value in params_dot.items():
                if name not in shapes:
                    raise ArgumentValueError(f"params_dot: expected names among {', '.join(shapes)}, got {name!r}")
                self._check_param(f"params_dot[{name!r}]", value, shapes[name])
            full = {n: params_dot[n] if n in params_dot else self._engine.zeros(s) for n, s in shapes.items()}
            w_dot = self._weights_of(full)
        h_next = cell.step(w, x2, h2, nonlinearity=f, xp=xp)
        h_next_dot = cell.step_jvp(w_dot, dots[0], dots[1], w, x2, h2, nonlinearity=f, xp=xp)
        return (h_next[0, ...], h_next_dot[0, ...]) if lone else (h_next, h_next_dot)

    def load_state_dict(self, state_dict: Mapping[str, Array]) -> None:
        """As :meth:`RNN.load_state_dict`; ``torch.nn.RNNCell``'s names, without ``_l0``, are understood too."""
        if isinstance(state_dict, Mapping):
            kinds = {"weight_ih", "weight_hh", "bias_ih", "bias_hh"}
            state_dict = {f"{k}_{self._suffix}" if k in kinds else k: v for k, v in state_dict.items()}
        super().load_state_dict(state_dict)

    def to(self, backend: str | Backend | None = None, *, device: Any = None, dtype: Any = None) -> RNNCell:
        """As :meth:`RNN.to`; a cell of a network becomes one with parameters of its own."""
        moved = super().to(backend, device=device, dtype=dtype)
        moved._layer, moved._suffix = self._layer, self._suffix
        return moved

    def __repr__(self) -> str:
        spec, f = self._spec, self._spec.nonlinearity
        parts = [str(spec.layer_input_size(self._layer)), str(spec.hidden_sizes[self._layer])]
        parts += [] if spec.bias else ["bias=False"]
        parts += [f"nonlinearity={f.name!r}"] if f.name != "tanh" or f.is_custom else []
        parts += [f"clip={f.clip}"] if f.clip is not None else []
        parts += [f"backend={self.backend!r}, device={self._device_name!r}, dtype={self._engine.dtype_name!r}"]
        of = "" if self._suffix == "l0" and spec.num_layers == 1 else f" of {self._suffix}"
        return f"RNNCell({', '.join(parts)}){of}"

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "suffix": self._suffix, "layer": self._layer}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._suffix, self._layer = state["suffix"], state["layer"]
        super().__setstate__(state)

    def _own_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = self._spec.parameter_shapes()
        ends = f"_{self._suffix}"
        return {name: shape for name, shape in shapes.items() if name.endswith(ends)}

    def _inputs(self, x: Array, h: Array | None) -> tuple[Weights, Array, Array]:
        engine = self._engine
        width, reads = self._spec.hidden_sizes[self._layer], self._spec.layer_input_size(self._layer)
        self._check_param("x", x, None)
        if x.ndim not in (1, 2) or x.shape[-1] != reads:
            raise ShapeError(f"x: expected shape (B, {reads}) or unbatched ({reads},), got {tuple(x.shape)}")
        batch = x.shape[:1] if x.ndim == 2 else ()
        if h is None:
            h = engine.zeros((*batch, width))
        else:
            self._check_param("h", h, (*batch, width))
        if self._check_finite:
            for name, value in (("x", x), ("h", h), *((n, self._params[n]) for n in self._own_shapes())):
                check_finite(name, value, xp=engine.xp, backend=engine.backend)
        if x.ndim == 1:
            x, h = engine.xp.expand_dims(x, axis=0), engine.xp.expand_dims(h, axis=0)
        return self._weights_of(self._params), x, h

    def _weights_of(self, params: Mapping[str, Array]) -> Weights:
        end = self._suffix
        bias = params[f"bias_ih_{end}"] + params[f"bias_hh_{end}"] if self._spec.bias else None
        return Weights(params[f"weight_ih_{end}"], params[f"weight_hh_{end}"], bias)

    def _named(self, w: Weights) -> dict[str, Array]:
        end = self._suffix
        named = {f"weight_ih_{end}": w.weight_ih, f"weight_hh_{end}": w.weight_hh}
        if w.bias is not None:
            named |= {f"bias_ih_{end}": w.bias, f"bias_hh_{end}": self._engine.copy(w.bias)}
        return named


def cell_of(
    spec: RNNSpec, params: dict[str, Array], engine: Engine, finite: bool, layer: int, reverse: bool
) -> RNNCell:
    """A cell over one layer and direction of a network, sharing the mapping of parameters itself."""
    if isinstance(layer, bool) or not isinstance(layer, (int, np.integer)):
        raise ArgumentTypeError(f"layer: expected an int in [0, {spec.num_layers - 1}], got {layer!r}")
    if not 0 <= layer < spec.num_layers:
        raise ArgumentValueError(f"layer: expected an int in [0, {spec.num_layers - 1}], got {layer}")
    if not isinstance(reverse, bool):
        raise ArgumentTypeError(f"reverse: expected True or False, got {reverse!r}")
    if reverse and not spec.bidirectional:
        raise ArgumentValueError("reverse: the network has one direction only")
    made = object.__new__(RNNCell)
    made._spec, made._params, made._engine, made._check_finite = spec, params, engine, finite
    made._layer, made._suffix = int(layer), spec.suffix(int(layer), int(reverse))
    return made
