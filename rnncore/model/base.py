"""The base of models: a network bound to one backend, moved, copied and pickled by value."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from threading import RLock
from typing import Any, TypeVar

import numpy as np

from rnncore.arguments import check_mapping, describe, flag
from rnncore.backend.abilities import ability
from rnncore.backend.arrays import FLOATS, device_name, dtype_name, find_device, find_dtype, floating_dtypes
from rnncore.backend.contract import Backend
from rnncore.backend.forks import first_use
from rnncore.backend.registry import get_backend, owner_name, resolve_backend
from rnncore.errors import ArgumentTypeError, BackendUnavailableError, DTypeError, StateDictError, UnknownNameError
from rnncore.interchange.portable import Portable
from rnncore.network.engine import Engine, check_kernel_mode, make_engine
from rnncore.network.network import Network
from rnncore.spec import RNNSpec
from rnncore.typing import Array, Device, Host, KernelMode

__all__ = ["Parameterised", "with_network"]

Self = TypeVar("Self", bound="Parameterised")

# By a dtype, those whose numbers it holds exactly; from the narrowest.
EXACT_IN = {
    "float16": {"float16"},
    "bfloat16": {"bfloat16"},
    "float32": {"float16", "bfloat16", "float32"},
    "float64": set(FLOATS),
}

# Held while a model's network is exchanged for one with other parameters. One for all models, as it is held for microseconds,
# and a lock in a model could not be pickled.
_exchanging = RLock()
first_use.hold_in_forks(_exchanging)


class Parameterised:
    """Base class of RNN and RNNCell."""

    _default_backend: str | None = None
    _network: Network

    def _bind(self, spec: RNNSpec, host: Mapping[str, Host], engine: Engine, check_finite: bool) -> None:
        flag("check_finite", check_finite)
        self._network = Network(spec, {k: engine.give(v) for k, v in host.items()}, engine, check_finite)

    @classmethod
    def from_network(cls: type[Self], network: Network) -> Self:
        """Make a model of a network, whose arrays it takes without copying them."""
        if not isinstance(network, Network):
            raise ArgumentTypeError(f"network: expected a Network, got {describe(network)}")
        model = cls.__new__(cls)
        model._network = network
        return model

    @property
    def network(self) -> Network:
        """The current spec, parameters and engine, bound together; see :class:`rnncore.network.network.Network`."""
        return self._network

    @property
    def spec(self) -> RNNSpec:
        """The description of the network, without its numbers."""
        return self._network.spec

    @property
    def input_size(self) -> int:
        """Features of the input, I."""
        return self.spec.input_size

    @property
    def backend(self) -> str:
        """The name of the backend, fixed when the model was made."""
        return self._network.engine.backend.name

    @property
    def device(self) -> Device:
        """The device of the parameters, as the backend names it."""
        return self._network.engine.device

    @property
    def dtype(self) -> Any:
        """The backend's dtype of the parameters."""
        return self._network.engine.dtype

    @property
    def kernel(self) -> KernelMode:
        """ "auto", "reference" or "require"."""
        return self._network.engine.kernel

    @property
    def params(self) -> Mapping[str, Array]:
        """The parameters by torch's names: a read-only mapping to the arrays themselves, not copies.

        On PyTorch, ``rnn.params["weight_hh_l0"].requires_grad_()`` makes one a leaf that autograd reaches.
        """
        return self._network.params

    def set_params(self, params: Mapping[str, Array]) -> None:
        """Replace some parameters by other arrays, without copying them.

        This is how an optimiser steps. A call that runs in another thread keeps the parameters it began with. Threads that
        replace different parameters at once lose none.

        Raises
        ------
        StateDictError, ArgumentTypeError, DTypeError, DeviceError, ShapeError
            In which case no parameter is replaced.
        """
        check_mapping("params", params)
        params, shapes = dict(params), self.spec.parameter_shapes()
        unknown = sorted(str(k) for k in params if k not in shapes)
        if unknown:
            raise StateDictError(f"params: unexpected {', '.join(unknown)}; expected among {', '.join(shapes)}")
        for name, value in params.items():
            params[name] = self._network.engine.check(name, value, shapes[name])
        with _exchanging:
            self._network = self._network.with_params(params)

    def state_dict(self) -> dict[str, Array]:
        """Copies of the parameters under torch's names, as arrays of this backend; loads into ``torch.nn.RNN``.

        >>> import rnncore
        >>> {k: v.shape for k, v in rnncore.RNN(5, 6).state_dict().items()}
        {'weight_ih_l0': (6, 5), 'weight_hh_l0': (6, 6), 'bias_ih_l0': (6,), 'bias_hh_l0': (6,)}
        """
        engine = self._network.engine
        with engine.scope():
            detach = engine.abilities.detach
            return {n: engine.xp.asarray(detach(x), copy=True) for n, x in self._network.params.items()}

    def portable(self) -> Portable:
        """Return the network without its backend: the description, and the parameters as arrays on the host."""
        engine = self._network.engine
        return Portable(self.spec, self._host_params(), engine.dtype_name, engine.backend.name)

    def load_state_dict(self, state_dict: Mapping[str, Array]) -> None:
        """Copy all parameters from a mapping with torch's names, such as ``torch.nn.RNN.state_dict()``.

        The arrays may be of any registered backend, and of any dtype that the model's holds exactly: float32 goes into
        float64, and not back. Where every name begins with the same path, as in "rnn.weight_ih_l0", it is taken off. The
        model gets new arrays: those that stand for ones with ``requires_grad`` have it too, but an optimiser of PyTorch's must
        be made after this.

        Raises
        ------
        StateDictError
            Listing every missing, unexpected, mis-shaped and mis-typed name at once. The model is then unchanged.

        Warns
        -----
        UserWarning
            Of the path that is taken off.
        """
        host = self._host_state(state_dict)
        engine = self._network.engine
        new = {k: engine.give(v) for k, v in host.items()}
        with _exchanging:
            old = self._network.params
            self._network = self._network.with_params(
                {k: engine.abilities.mark_like(v, old[k]) for k, v in new.items()}
            )

    def to(self: Self, backend: str | Backend | None = None, *, device: Any = None, dtype: Any = None) -> Self:
        """Copy the model to another backend, device or dtype. Without a change of dtype the weights stay the same bit for bit.

        Attributes that were set on the model go along, as they are.

        Parameters
        ----------
        backend : str or Backend, optional
        device : optional
            By default this model's where the backend stays, else the other backend's default device.
        dtype : optional
            By default the dtype of the same name.

        Raises
        ------
        UnknownNameError, BackendUnavailableError, DeviceError, DTypeError
        """
        network = self._network
        target = network.engine.backend if backend is None else resolve_backend(backend)
        if device is None and target.name == self.backend:
            device = self.device
        where = find_device(device, backend=target)
        kind = _find_dtype(network.engine.dtype_name if dtype is None else dtype, target, where)
        engine = make_engine(target, device=where, dtype=kind, kernel=self.kernel)
        params = {n: engine.give(x) for n, x in self._host_params().items()}
        return with_network(self, Network(network.spec, params, engine, network.check_finite))

    def __getstate__(self) -> dict[str, Any]:
        # NumPy arrays and names, so that a process without this backend's library can still report what it needs.
        return {
            "spec": self.spec,
            "params": self._host_params(),
            "backend": self.backend,
            "device": self._device_name,
            "dtype": self._network.engine.dtype_name,
            "kernel": self.kernel,
            "check_finite": self._network.check_finite,
            "attributes": self._attributes(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        name = state["backend"]
        try:
            backend = get_backend(name)
        except (UnknownNameError, BackendUnavailableError) as error:
            raise BackendUnavailableError(
                f"this model was saved on backend {name!r}, which cannot be used here; save its weights with "
                f".save() where it can, and load them with rnncore.load(path, backend=...). {error}"
            ) from error
        device = find_device(state["device"], backend=backend)
        dtype = _find_dtype(state["dtype"], backend, device)
        engine = make_engine(backend, device=device, dtype=dtype, kernel=state["kernel"])
        self._bind(state["spec"], state["params"], engine, state["check_finite"])
        vars(self).update(state.get("attributes", {}))  # version 0.1 kept none

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._repr_parts())})"

    def _repr_parts(self) -> list[str]:
        spec, f = self.spec, self.spec.nonlinearity
        parts = [str(spec.input_size), str(spec.hidden_sizes[0] if spec.uniform else list(spec.hidden_sizes))]
        given = {
            "num_layers": (spec.num_layers if spec.uniform else 1, 1),
            "nonlinearity": (f.name, None if f.is_custom else "tanh"),
            "clip": (f.clip, None),
            "bias": (spec.bias, True),
            "batch_first": (spec.batch_first, False),
            "dropout": (spec.dropout, 0.0),
            "bidirectional": (spec.bidirectional, False),
        }
        parts += [f"{name}={value!r}" for name, (value, default) in given.items() if value != default]
        parts.append(
            f"backend={self.backend!r}, device={self._device_name!r}, dtype={self._network.engine.dtype_name!r}"
        )
        return parts if self.kernel == "auto" else [*parts, f"kernel={self.kernel!r}"]

    # --- helpers of both --------------------------------------------------------------------------------------------

    @classmethod
    def _make_engine(cls, backend: str | Backend | None, device: Any, dtype: Any, kernel: Any) -> Engine:
        mode = check_kernel_mode(kernel)
        chosen = resolve_backend(cls._default_backend if backend is None else backend)
        where = find_device(device, backend=chosen)
        kind = _find_dtype(dtype, chosen, where)
        return make_engine(chosen, device=where, dtype=kind, kernel=mode)

    @property
    def _device_name(self) -> str:
        return device_name(self._network.engine.backend, self.device)

    def _attributes(self) -> dict[str, Any]:
        """What the user or a subclass has set on the model."""
        return {name: value for name, value in vars(self).items() if name != "_network"}

    def _host_params(self) -> dict[str, Host]:
        to_numpy = self._network.engine.backend.to_numpy
        return {name: to_numpy(x) for name, x in self._network.params.items()}

    def _host_state(self, state_dict: Any) -> dict[str, np.ndarray[Any, Any]]:
        check_mapping("state_dict", state_dict)
        shapes, dtype = self.spec.parameter_shapes(), self._network.engine.dtype_name
        path, whole = _common_path(state_dict, shapes)
        if path and whole:
            state_dict = {name.removeprefix(path): value for name, value in state_dict.items()}
        faults = [f"missing {name}, expected shape {shape}" for name, shape in shapes.items() if name not in state_dict]
        faults += [f"unexpected {name!r}" for name in state_dict if name not in shapes]
        host: dict[str, np.ndarray[Any, Any]] = {}
        rounded = set()
        for name, shape in shapes.items():
            if name not in state_dict:
                continue
            value = state_dict[name]
            owner = owner_name(value)
            if owner is None:
                faults.append(f"{name}: expected an array of a registered backend, got {describe(value)}")
            elif tuple(value.shape) != shape:
                faults.append(f"{name}: expected shape {shape}, got {tuple(value.shape)}")
            elif (kind := dtype_name(value.dtype)) not in FLOATS:
                faults.append(f"{name}: expected dtype {dtype}, got {kind}")
            elif kind not in EXACT_IN[dtype]:
                rounded.add(kind)
            else:
                host[name] = get_backend(owner).to_numpy(value)
        if rounded:
            wide = next(name for name, held in EXACT_IN.items() if rounded <= held)
            faults.append(
                f"expected dtype {dtype}, the model's, got {', '.join(sorted(rounded))}, which it would round; move the model "
                f"first: rnn = rnn.to(dtype={wide!r})"
            )
        if path and not whole:
            chosen = f"{{k.removeprefix({path!r}): v for k, v in state_dict.items() if k.startswith({path!r})}}"
            faults.append(f"those under {path!r} may be meant: {chosen}")
        if faults:
            raise StateDictError("state_dict does not fit the network: " + "; ".join(faults))
        if path:
            warnings.warn(f"state_dict: {path!r} is taken off the front of each name", UserWarning, stacklevel=3)
        return host


def _common_path(state_dict: Mapping[Any, Any], shapes: Mapping[str, Any]) -> tuple[str, bool]:
    """Return the path before the network's names, such as "rnn.", or "", and whether every name begins with it.

    Only where it is clear: one path, under which each parameter is, and none of them is there without it.
    """
    names = [name for name in state_dict if isinstance(name, str)]
    if any(name in shapes for name in names):
        return "", False
    first = next(iter(shapes))
    paths = [name.removesuffix(first) for name in names if name.endswith(f".{first}")]
    paths = [path for path in paths if all(path + name in state_dict for name in shapes)]
    if len(paths) != 1:
        return "", False
    return paths[0], len(names) == len(state_dict) and all(name.startswith(paths[0]) for name in names)


def _find_dtype(dtype: Any, backend: Backend, device: Device) -> Any:
    """Return the backend's dtype of that name; an error says what may be done where the device has it not."""
    try:
        return find_dtype(dtype, xp=backend.namespace(), device=device)
    except DTypeError as error:
        name = dtype_name(dtype)
        have = floating_dtypes(xp=backend.namespace(), device=device)
        if name not in FLOATS or "float32" not in have:
            raise
        ways = ["say dtype='float32'" + ("" if name in EXACT_IN["float32"] else ", which rounds the numbers")]
        advise = ability(backend, "dtype_advice")
        if advise is not None and (other := advise(name)):
            ways.append(other)
        raise DTypeError(f"{error}; {', or '.join(ways)}") from error


def with_network(model: Self, network: Network) -> Self:
    """Return a model like this one, with the attributes that were set on it, of another network."""
    made = type(model).from_network(network)
    vars(made).update(model._attributes())
    return made
