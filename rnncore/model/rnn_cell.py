"""RNNCell: one step at a time, with parameters and names of its own."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple, TypeAlias

from rnncore.arguments import Rng, as_generator, check_bytes, elements, shown
from rnncore.backend.arrays import check_finite
from rnncore.backend.contract import Backend
from rnncore.errors import ArgumentTypeError, ArgumentValueError, ShapeError
from rnncore.init import draw
from rnncore.model.base import Parameterised
from rnncore.network import step
from rnncore.network.calls import complete, watch
from rnncore.network.engine import Engine
from rnncore.network.network import Network
from rnncore.network.step import Weights
from rnncore.spec import RNNSpec
from rnncore.typing import Array, KernelMode

__all__ = ["CellGradients", "RNNCell"]


class CellGradients(NamedTuple):
    """Gradients from a cell's pullback: of the parameters by name, and of x and h in their shapes."""

    params: dict[str, Array]
    x: Array
    h: Array


SMALLEST_ITEM = 2  # bytes of a number in half precision

CellPullback: TypeAlias = Callable[[Array], CellGradients]


class RNNCell(Parameterised):
    """One step of a vanilla RNN: ``h' = f(x W_ih^T + b_ih + h W_hh^T + b_hh)``.

    Its parameters have the names of a one-layer :class:`rnncore.RNN`, ``weight_ih_l0`` and so on, so that weights pass
    between the two as they are; ``load_state_dict`` also understands ``torch.nn.RNNCell``'s names without the suffix.
    :meth:`rnncore.RNN.cell` makes a cell from the arrays of a layer.

    Parameters
    ----------
    input_size, hidden_size, bias, nonlinearity
        As ``torch.nn.RNNCell``.
    clip, init, backend, device, dtype, rng, check_finite
        As :class:`rnncore.RNN`.
    kernel : {"auto", "reference", "require"}
        With "auto" and "reference" a step is two products and the nonlinearity, by the Array API. With "require" it is a scan
        of one step on the backend's own code, and an error where that cannot run.

    Examples
    --------
    >>> import numpy as np, rnncore
    >>> cell = rnncore.RNNCell(5, 6, rng=0)
    >>> cell(np.zeros((3, 5))).shape
    (3, 6)
    """

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
            raise ArgumentTypeError(
                f"hidden_size: a cell has one width; expected an int >= 1, got {shown(hidden_size)}"
            )
        spec = RNNSpec.make(input_size, hidden_size, 1, nonlinearity, bias, clip=clip)
        engine = self._make_engine(backend, device, dtype, kernel)
        self._bind(spec, draw(spec, as_generator(rng), init), engine, check_finite)

    @property
    def hidden_size(self) -> int:
        """Width of the state, H."""
        return self.spec.hidden_sizes[0]

    @classmethod
    def from_network(cls, network: Network) -> RNNCell:
        """Make a cell of a network of one layer and direction, whose arrays it takes without copying them."""
        if isinstance(network, Network) and (network.spec.num_layers, network.spec.num_directions) != (1, 1):
            raise ArgumentValueError(
                "network: expected one layer in one direction; use rnncore.RNN.from_network(network).cell(layer=0)"
            )
        return super().from_network(network)

    def __call__(self, x: Array, h: Array | None = None) -> Array:
        """Return the next state (B, H) from x (B, I) and h (B, H), or unbatched (H,) from (I,) and (H,).

        h is zero if not given.

        Raises
        ------
        ShapeError, DTypeError, DeviceError, ArgumentTypeError, NonFiniteError, KernelUnsupportedError
        """
        network = self._network
        with network.engine.scope():
            w, x2, h2 = _prepared(network, x, h)
            h_next = _step(network, w, x2, h2)
            return h_next if x.ndim == 2 else h_next[0, ...]

    def vjp(self, x: Array, h: Array | None = None) -> tuple[Array, CellPullback]:
        """Return the next state, and ``pullback(d_next)``, which returns the gradients of the parameters, x and h.

        As for :meth:`RNN.vjp`, change none of the arrays in place before the pullback has run; on NumPy the next state
        cannot be written to.
        """
        network, batched = self._network, getattr(x, "ndim", 2) == 2
        engine, spec = network.engine, network.spec
        with engine.scope():
            w, x2, h2 = _prepared(network, x, h)
            h_next = _step(network, w, x2, h2)
            public = engine.read_only(h_next if batched else h_next[0, ...])
        shape = tuple(public.shape)
        check_unchanged = watch(engine, {"x": x, "h": h, "the next state": public, **network.params})

        def pullback(d_next: Array) -> CellGradients:
            """Gradients for the cotangent of the next state."""
            check_unchanged()
            d_next = engine.check("d_next", d_next, shape)
            with engine.scope():
                d = d_next if batched else d_next[None, ...]
                found = step.step_vjp(
                    d, w, x2, h2, h_next, nonlinearity=spec.nonlinearity, xp=engine.xp, linear_scan=_linear_scan(engine)
                )
                d_x, d_h = (found.x, found.h) if batched else (found.x[0, ...], found.h[0, ...])
                return CellGradients(network.named([[found.weights]]), engine.cast(d_x), engine.cast(d_h))

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
        """Return the next state and its tangent for tangents of x, h and any parameters; those not given are zero."""
        network = self._network
        engine, spec = network.engine, network.spec
        with engine.scope():
            w, x2, h2 = _prepared(network, x, h)
            alone, dots = x.ndim == 1, []
            for name, value, like in (("x_dot", x_dot, x2), ("h_dot", h_dot, h2)):
                if value is not None:
                    value = engine.check(name, value, tuple(like.shape[1:] if alone else like.shape))
                dots.append(value[None, ...] if alone and value is not None else value)
            w_dot = None if params_dot is None else network.weights(complete(network, params_dot))[0][0]
            h_next = _step(network, w, x2, h2)
            tangent = step.step_jvp(
                step.StepTangents(w_dot, *dots),
                w,
                x2,
                h2,
                h_next,
                nonlinearity=spec.nonlinearity,
                xp=engine.xp,
                linear_scan=_linear_scan(engine),
            )
            return (h_next[0, ...], tangent[0, ...]) if alone else (h_next, tangent)

    def load_state_dict(self, state_dict: Mapping[str, Array]) -> None:
        """Like :meth:`RNN.load_state_dict`; also takes ``torch.nn.RNNCell``'s names, without ``_l0``."""
        if isinstance(state_dict, Mapping):
            kinds = {"weight_ih", "weight_hh", "bias_ih", "bias_hh"}
            state_dict = {f"{k}_l0" if str(k).rpartition(".")[2] in kinds else k: v for k, v in state_dict.items()}
        super().load_state_dict(state_dict)

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "suffix" in state:  # written by rnncore 0.1, where a cell of a network had the network's parameters
            spec, end, layer = state["spec"], f"_{state['suffix']}", state["layer"]
            own = {n.removesuffix(end) + "_l0": v for n, v in state["params"].items() if n.endswith(end)}
            width = (spec.hidden_sizes[layer],)
            spec = RNNSpec(spec.layer_input_size(layer), width, spec.nonlinearity, spec.bias)
            state = {**state, "spec": spec, "params": own}
        super().__setstate__(state)


def _step(network: Network, w: Weights, x: Array, h: Array) -> Array:
    engine, f = network.engine, network.spec.nonlinearity
    if engine.kernel != "require":
        h_next = step.step(w, x, h, nonlinearity=f, xp=engine.xp)
    else:
        p = step.project(w, x, xp=engine.xp)
        h_next = engine.nonlinear(p, h, w.weight_hh, nonlinearity=f, reverse=False, overwrite=True)[0, ...]
    if network.check_finite:
        check_finite("the next state", h_next, xp=engine.xp, backend=engine.backend)
    return h_next


def _linear_scan(engine: Engine) -> Callable[..., Array] | None:
    """The backend's own linear scan where it is required; None for the reference."""
    return engine.linear if engine.kernel == "require" else None


def _prepared(network: Network, x: Any, h: Any) -> tuple[Weights, Array, Array]:
    """The weights, x (B, I) and h (B, H), checked; checks of types, shapes, dtypes and devices are remembered."""
    engine, is_native = network.engine, network.engine.backend.is_native
    key: Hashable = None
    known = False
    if not network.check_finite and (engine.tracing is None or not engine.tracing()):
        try:
            key = "cell", type(x), x.shape, x.dtype, getattr(x, "device", None)
            key = key if h is None else (*key, type(h), h.shape, h.dtype, getattr(h, "device", None))
            known = key in network.plans and is_native(x) and (h is None or is_native(h))
        except (AttributeError, TypeError, RuntimeError):  # no array, no shape, or a device that cannot be hashed
            key = None
    if not known:
        given = x, h
        x, h = _check(network, x, h)
        if x is given[0] and h is given[1]:  # else the next call has to convert them again
            network.remember(key, True)
    if h is None:
        h = engine.nothing((*x.shape[:-1], network.spec.hidden_sizes[0]))
    if x.ndim == 1:
        x, h = x[None, ...], h[None, ...]
    return network.weights()[0][0], x, h


def _check(network: Network, x: Any, h: Any) -> tuple[Array, Array | None]:
    engine, reads = network.engine, network.spec.input_size
    x = engine.check("x", x)
    if x.ndim not in (1, 2) or x.shape[-1] != reads:
        raise ShapeError(f"x: expected shape (B, {reads}) or unbatched ({reads},), got {tuple(x.shape)}")
    check_bytes("the next state", elements((*x.shape[:-1], network.spec.hidden_sizes[0])), SMALLEST_ITEM)
    if h is not None:
        h = engine.check("h", h, (*x.shape[:-1], network.spec.hidden_sizes[0]))
    if network.check_finite:
        for name, value in (("x", x), *((("h", h),) if h is not None else ()), *network.params.items()):
            check_finite(name, value, xp=engine.xp, backend=engine.backend)
    return x, h
