"""What a model is: a spec and parameters bound to one backend; moved, copied and pickled by value."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from rnncore.arguments import check_mapping, describe, positive_int
from rnncore.backend.arrays import check_array, device_name, dtype_name, find_device, find_dtype
from rnncore.backend.contract import Backend, ScanRequest
from rnncore.backend.registry import get_backend, owner_name, resolve_backend
from rnncore.errors import ArgumentTypeError, BackendUnavailableError, StateDictError, UnknownNameError
from rnncore.network.engine import Engine, Explanation, check_kernel_mode, make_engine
from rnncore.spec import RNNSpec
from rnncore.typing import Array, Device, KernelMode

__all__ = ["Parameterised"]

Self = TypeVar("Self", bound="Parameterised")


class Parameterised:
    """What RNN and RNNCell share: a spec, parameters on one backend, moving, copying and pickling by value."""

    default_backend: str | None = None

    _spec: RNNSpec
    _params: dict[str, Array]
    _engine: Engine
    _check_finite: bool

    def _bind(
        self, spec: RNNSpec, host: Mapping[str, np.ndarray[Any, Any]], engine: Engine, check_finite: bool
    ) -> None:
        if not isinstance(check_finite, bool):
            raise ArgumentTypeError(f"check_finite: expected True or False, got {check_finite!r}")
        make = engine.backend.asarray
        self._spec = spec
        self._params = {k: make(v, dtype=engine.dtype, device=engine.device) for k, v in host.items()}
        self._engine = engine
        self._check_finite = check_finite

    @property
    def spec(self) -> RNNSpec:
        """The description of the network, without its numbers."""
        return self._spec

    @property
    def input_size(self) -> int:
        """Features of the input, I."""
        return self._spec.input_size

    @property
    def hidden_size(self) -> int | tuple[int, ...]:
        """Width of every layer; one for each where they differ."""
        return self._spec.hidden_sizes[0] if self._spec.uniform else self._spec.hidden_sizes

    @property
    def num_layers(self) -> int:
        """Number of layers, L."""
        return self._spec.num_layers

    @property
    def bidirectional(self) -> bool:
        """Whether there are two directions."""
        return self._spec.bidirectional

    @property
    def backend(self) -> str:
        """The name of the backend, fixed when the model was made."""
        return self._engine.backend.name

    @property
    def device(self) -> Device:
        """The device of the parameters, as the backend names it."""
        return self._engine.device

    @property
    def dtype(self) -> Any:
        """The backend's dtype of the parameters."""
        return self._engine.dtype

    @property
    def kernel(self) -> KernelMode:
        """ "auto", "reference" or "require"."""
        return self._engine.kernel

    @property
    def params(self) -> Mapping[str, Array]:
        """The parameters themselves, by torch's names: a read-only mapping of live arrays, not copies.

        On PyTorch, ``rnn.params["weight_hh_l0"].requires_grad_()`` makes one a leaf that autograd reaches.
        """
        return MappingProxyType(self._params)

    def set_params(self, params: Mapping[str, Array]) -> None:
        """Put other arrays in the place of some parameters, without copying them: how an optimiser steps.

        Raises
        ------
        StateDictError, ArgumentTypeError, DTypeError, DeviceError, ShapeError
            And then no parameter is replaced.
        """
        check_mapping("params", params)
        shapes = self._own_shapes()
        unknown = sorted(str(k) for k in params if k not in shapes)
        if unknown:
            raise StateDictError(f"params: unexpected {', '.join(unknown)}; expected among {', '.join(shapes)}")
        for name, value in params.items():
            self._check_param(name, value, shapes[name])
        self._params.update(params)

    def state_dict(self) -> dict[str, Array]:
        """Copies of the parameters under torch's names, as arrays of this backend; loads into ``torch.nn.RNN``.

        >>> import rnncore
        >>> {k: v.shape for k, v in rnncore.RNN(5, 6).state_dict().items()}
        {'weight_ih_l0': (6, 5), 'weight_hh_l0': (6, 6), 'bias_ih_l0': (6,), 'bias_hh_l0': (6,)}
        """
        return {name: self._copied(self._params[name]) for name in self._own_shapes()}

    def load_state_dict(self, state_dict: Mapping[str, Array]) -> None:
        """Take over copies of all parameters from a mapping with torch's names, such as ``torch.nn.RNN.state_dict()``.

        The arrays may be of any registered backend; they must have the model's dtype. The model gets new arrays: those
        that stand for ones with ``requires_grad`` have it too, but an optimiser of PyTorch's must be made after this.

        Raises
        ------
        StateDictError
            Listing every missing, unexpected, mis-shaped and mis-typed name at once. The model is then unchanged.
        """
        host = self._host_state(state_dict)
        make = self._engine.backend.asarray
        fresh = {k: make(v, dtype=self.dtype, device=self.device) for k, v in host.items()}
        for name, value in fresh.items():
            if getattr(self._params[name], "requires_grad", False):
                value.requires_grad_()
        self._params.update(fresh)

    def explain(self, *, steps: int = 100, batch: int = 1) -> Explanation:
        """Which path each scan takes for a call of so many steps and rows, and why.

        >>> import rnncore
        >>> print(rnncore.RNN(5, 6, kernel="reference").explain())
        backend numpy, device cpu, float64, kernel='reference'
          nonlinear scan: reference (kernel="reference" was asked for)
          linear scan: reference (kernel="reference" was asked for)
        """
        engine, spec = self._engine, self._spec
        steps, batch = positive_int("steps", steps), positive_int("batch", batch)
        choices = []
        for width in dict.fromkeys(spec.hidden_sizes):
            shape = (steps, batch, width, engine.dtype_name, engine.device)
            choices.append(engine.explain(ScanRequest("nonlinear", *shape, False, spec.nonlinearity)))
            choices.append(engine.explain(ScanRequest("linear", *shape, True, None)))
        return Explanation(
            self.backend,
            self._device_name,
            engine.dtype_name,
            engine.kernel,
            tuple(dict.fromkeys(choices)),
        )

    def to(self: Self, backend: str | Backend | None = None, *, device: Any = None, dtype: Any = None) -> Self:
        """A copy of the model elsewhere; this one stays as it is. Where the dtype stays, the weights move bit for bit.

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
        target = self._engine.backend if backend is None else resolve_backend(backend)
        if device is None and target.name == self.backend:
            device = self.device
        where = find_device(device, backend=target)
        kind = find_dtype(self._engine.dtype_name if dtype is None else dtype, xp=target.namespace(), device=where)
        moved = object.__new__(type(self))
        engine = make_engine(target, device=where, dtype=kind, kernel=self.kernel)
        moved._bind(self._spec, self._host_params(), engine, self._check_finite)
        return moved

    def __getstate__(self) -> dict[str, Any]:
        # By value: NumPy arrays and names, so that a process without this backend's library can still say what it needs.
        return {
            "spec": self._spec,
            "params": self._host_params(),
            "backend": self.backend,
            "device": self._device_name,
            "dtype": self._engine.dtype_name,
            "kernel": self.kernel,
            "check_finite": self._check_finite,
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
        dtype = find_dtype(state["dtype"], xp=backend.namespace(), device=device)
        engine = make_engine(backend, device=device, dtype=dtype, kernel=state["kernel"])
        self._bind(state["spec"], state["params"], engine, state["check_finite"])

    def __repr__(self) -> str:
        spec, parts = self._spec, []
        parts += [str(spec.input_size), str(spec.hidden_sizes[0] if spec.uniform else list(spec.hidden_sizes))]
        if spec.num_layers > 1 and spec.uniform:
            parts.append(f"num_layers={spec.num_layers}")
        f = spec.nonlinearity
        if f.name != "tanh" or f.is_custom:
            parts.append(f"nonlinearity={f.name!r}")
        if f.clip is not None:
            parts.append(f"clip={f.clip}")
        if not spec.bias:
            parts.append("bias=False")
        if spec.batch_first:
            parts.append("batch_first=True")
        if spec.dropout:
            parts.append(f"dropout={spec.dropout}")
        if spec.bidirectional:
            parts.append("bidirectional=True")
        parts.append(f"backend={self.backend!r}, device={self._device_name!r}, dtype={self._engine.dtype_name!r}")
        if self.kernel != "auto":
            parts.append(f"kernel={self.kernel!r}")
        return f"{type(self).__name__}({', '.join(parts)})"

    # --- helpers of both --------------------------------------------------------------------------------------------

    @classmethod
    def _make_engine(cls, backend: str | Backend | None, device: Any, dtype: Any, kernel: Any) -> Engine:
        mode = check_kernel_mode(kernel)
        chosen = resolve_backend(cls.default_backend if backend is None else backend)
        where = find_device(device, backend=chosen)
        kind = find_dtype(dtype, xp=chosen.namespace(), device=where)
        return make_engine(chosen, device=where, dtype=kind, kernel=mode)

    @property
    def _device_name(self) -> str:
        return device_name(self._engine.backend, self.device)

    def _own_shapes(self) -> dict[str, tuple[int, ...]]:
        return self._spec.parameter_shapes()

    def _check_param(self, name: str, value: Any, shape: tuple[int, ...] | None) -> None:
        engine = self._engine
        check_array(
            name,
            value,
            backend=engine.backend,
            dtype=engine.dtype,
            device=engine.device,
            shape=shape,
            xp=engine.xp,
        )

    def _copied(self, x: Array) -> Array:
        detach = getattr(x, "detach", None)  # a library with autograd keeps the copy out of its graph this way
        with self._engine.scope():
            return self._engine.xp.asarray(x if detach is None else detach(), copy=True)

    def _host_params(self) -> dict[str, np.ndarray[Any, Any]]:
        return {name: self._engine.backend.to_numpy(self._params[name]) for name in self._own_shapes()}

    def _host_state(self, state_dict: Any) -> dict[str, np.ndarray[Any, Any]]:
        check_mapping("state_dict", state_dict)
        shapes = self._own_shapes()
        faults = [f"missing {name}, expected shape {shape}" for name, shape in shapes.items() if name not in state_dict]
        faults += [f"unexpected {name!r}" for name in state_dict if name not in shapes]
        host: dict[str, np.ndarray[Any, Any]] = {}
        for name, shape in shapes.items():
            if name not in state_dict:
                continue
            value = state_dict[name]
            owner = owner_name(value)
            if owner is None:
                faults.append(f"{name}: expected an array of a registered backend, got {describe(value)}")
            elif tuple(value.shape) != shape:
                faults.append(f"{name}: expected shape {shape}, got {tuple(value.shape)}")
            elif dtype_name(value.dtype) != self._engine.dtype_name:
                faults.append(
                    f"{name}: expected dtype {self._engine.dtype_name}, got {dtype_name(value.dtype)}; "
                    "move the model with .to(dtype=...) first"
                )
            else:
                host[name] = get_backend(owner).to_numpy(value)
        if faults:
            raise StateDictError("state_dict does not fit the network: " + "; ".join(faults))
        return host
