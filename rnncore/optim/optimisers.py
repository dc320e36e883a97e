"""Optimisers for training without a framework: SGD and Adam on the arrays of any backend.

An optimiser takes a mapping of parameters and one of gradients and returns new arrays. It keeps its state by name, so
one optimiser can train the network, a readout layer and a learnable h0 together:

>>> import numpy as np, rnncore
>>> rnn = rnncore.RNN(5, 6, rng=0)
>>> optimiser = rnncore.optim.Adam(1e-3)
>>> output, h_n, pullback = rnn.vjp(np.ones((4, 3, 5)))
>>> grads, norm = rnncore.optim.clip_grad_norm(pullback(d_h_n=h_n).params, 1.0)
>>> rnn.set_params(optimiser.step(rnn.params, grads))
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from rnncore.arguments import check_mapping, describe, flag, fraction, non_negative, shown
from rnncore.backend.abilities import ability
from rnncore.backend.arrays import check_array, check_floating, device_of, device_scope, plain
from rnncore.backend.contract import Backend
from rnncore.backend.registry import backend_of
from rnncore.errors import ArgumentTypeError, ArgumentValueError, StateDictError
from rnncore.optim.clipping import clip_grad_norm, one_backend
from rnncore.typing import Array, Namespace

__all__ = ["SGD", "Adam", "clip_grad_norm"]


class _Optimiser(ABC):
    """Base class: argument checks and state by name. State is stored only after the whole step has been computed."""

    _slots: ClassVar[tuple[str, ...]]  # arrays kept for each parameter, under torch's names

    def __init__(self, lr: float, weight_decay: float, **options: Any) -> None:
        self.lr = lr
        self._constants = {**options, "weight_decay": non_negative("weight_decay", weight_decay)}
        self._steps: dict[str, int] = {}
        self._state: dict[str, dict[str, Array]] = {}

    @property
    def lr(self) -> float:
        """Learning rate; assign to it to follow a schedule."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = non_negative("lr", value)

    def step(self, params: Mapping[str, Array], grads: Mapping[str, Array]) -> dict[str, Array]:
        """Take one step.

        Parameters
        ----------
        params, grads : mapping of str to array
            With the same names, and for each name the same shape, dtype, device and library. NaN in a gradient
            becomes NaN in its parameter.

        Returns
        -------
        dict of str to array
            New arrays under the names of `params`, outside any autograd graph. To freeze a parameter, leave it out of
            both mappings; steps are counted for each name.

        Raises
        ------
        StateDictError, ArgumentTypeError, ShapeError, DTypeError, DeviceError
            Arrays and state are then unchanged.
        """
        backend = self._check(params, grads)
        if backend is None:
            return {}
        xp, detach = backend.namespace(), ability(backend, "detach")  # or each step would extend a graph
        weight_decay = self._constants["weight_decay"]
        stepped: dict[str, Array] = {}
        state: dict[str, dict[str, Array]] = {}
        steps = {name: self._steps.get(name, 0) + 1 for name in params}
        for name, p in params.items():
            p, g = plain(detach(p), backend), plain(detach(grads[name]), backend)
            with device_scope(backend, device_of(p)):
                if weight_decay != 0:
                    g = g + weight_decay * p
                new, kept = self._update(p, g, self._state.get(name), steps[name], xp)
                # Arithmetic on 0-d arrays returns NumPy scalars.
                stepped[name], state[name] = xp.asarray(new), {slot: xp.asarray(x) for slot, x in kept.items()}
        self._steps.update(steps)
        self._state.update(state)
        return stepped

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to resume: ``type``, ``options``, ``steps`` by name, and copies of the kept arrays."""
        arrays = {
            slot: {name: _copied(kept[slot]) for name, kept in self._state.items() if slot in kept}
            for slot in self._slots
        }
        return {"type": type(self).__name__, "options": self._options(), "steps": dict(self._steps), **arrays}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Resume from a :meth:`state_dict`, with its options; the arrays are copied.

        Raises
        ------
        StateDictError, ArgumentTypeError, ArgumentValueError
            The optimiser is then unchanged.
        """
        check_mapping("state_dict", state_dict, "names to state")
        kind, want = type(self).__name__, {"type", "options", "steps", *self._slots}
        if set(state_dict) != want or not (isinstance(state_dict["type"], str) and state_dict["type"] == kind):
            raise StateDictError(
                f"state_dict: expected {', '.join(sorted(want))} of an optimiser of type {kind!r}, got "
                f"{', '.join(sorted(map(str, state_dict)))} of type {shown(state_dict.get('type'))}"
            )
        options, steps = state_dict["options"], state_dict["steps"]
        if not isinstance(options, Mapping) or set(options) != set(self._options()):
            raise StateDictError(f"state_dict['options']: expected {', '.join(self._options())}, got {shown(options)}")
        fresh = type(self)(**options)
        if not isinstance(steps, Mapping) or not all(type(n) is int and n >= 1 for n in steps.values()):
            raise StateDictError(
                f"state_dict['steps']: expected the number of steps >= 1 of each name, got {shown(steps)}"
            )
        for slot in self._slots:
            kept = state_dict[slot]
            expected = set(steps) if fresh._keeps_arrays() else set()
            if not isinstance(kept, Mapping) or set(kept) != expected:
                got = list(kept) if isinstance(kept, Mapping) else describe(kept)
                raise StateDictError(f"state_dict[{slot!r}]: expected arrays for {sorted(expected)}, got {got}")
            for name, value in kept.items():
                fresh._state.setdefault(name, {})[slot] = _copied(value)
        fresh._steps = dict(steps)
        self.__dict__.update(fresh.__dict__)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self._options().items())})"

    def _options(self) -> dict[str, Any]:
        return {"lr": self.lr, **self._constants}

    def _keeps_arrays(self) -> bool:
        return True

    @abstractmethod
    def _update(
        self, p: Array, g: Array, state: dict[str, Array] | None, count: int, xp: Namespace
    ) -> tuple[Array, dict[str, Array]]:
        """Return the new parameter and the new state after step number `count`."""

    def _check(self, params: Mapping[str, Array], grads: Mapping[str, Array]) -> Backend | None:
        check_mapping("params", params)
        check_mapping("grads", grads)
        faults = [f"missing {k!r}" for k in params if k not in grads]
        faults += [f"unexpected {k!r}" for k in grads if k not in params]
        if faults:
            raise StateDictError(
                f"grads: expected the names of params ({', '.join(map(str, params))}), got {', '.join(faults)}"
            )
        if not params:
            return None
        backend = one_backend("params", params)
        for name, p in params.items():
            check_floating(f"params[{name!r}]", p)
            same = {"backend": backend, "dtype": p.dtype, "device": device_of(p), "shape": tuple(p.shape)}
            check_array(f"grads[{name!r}]", grads[name], **same)
            for slot, kept in self._state.get(name, {}).items():
                check_array(f"{slot}[{name!r}] in the optimiser's state", kept, **same)
        return backend


class SGD(_Optimiser):
    """Stochastic gradient descent with momentum, with the formulas of ``torch.optim.SGD``.

    With ``g = grad + weight_decay p`` and ``b = momentum b + g`` (b = g at the first step), the result is ``p - lr b``,
    or ``p - lr (g + momentum b)`` with Nesterov's momentum. Sutskever, Martens, Dahl and Hinton (2013), "On the
    importance of initialization and momentum in deep learning", with the learning rate outside the momentum.

    Parameters
    ----------
    lr : float
        Learning rate, finite and >= 0.
    momentum : float
        Momentum, in [0, 1).
    nesterov : bool
        Whether to use Nesterov's momentum, which requires momentum > 0.
    weight_decay : float
        Factor of an L2 penalty, finite and >= 0.

    Raises
    ------
    ArgumentTypeError, ArgumentValueError

    Examples
    --------
    >>> import numpy as np
    >>> from rnncore.optim import SGD
    >>> SGD(0.5).step({"w": np.asarray([1.0, 2.0])}, {"w": np.asarray([2.0, -2.0])})
    {'w': array([0., 3.])}
    """

    _slots = ("momentum_buffer",)

    def __init__(self, lr: float, *, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0) -> None:
        self._momentum, self._nesterov = fraction("momentum", momentum), flag("nesterov", nesterov)
        super().__init__(lr, weight_decay, momentum=self._momentum, nesterov=nesterov)
        if nesterov and self._momentum == 0:
            raise ArgumentValueError("nesterov: expected momentum > 0 with nesterov=True, got momentum=0.0")

    def _keeps_arrays(self) -> bool:
        return self._momentum != 0

    def _update(
        self, p: Array, g: Array, state: dict[str, Array] | None, count: int, xp: Namespace
    ) -> tuple[Array, dict[str, Array]]:
        if self._momentum == 0:
            return p - self.lr * g, {}
        # The first buffer is a copy of the gradient, which the caller may change later.
        buffer = self._momentum * state["momentum_buffer"] + g if state else xp.asarray(g, copy=True)
        direction = g + self._momentum * buffer if self._nesterov else buffer
        return p - self.lr * direction, {"momentum_buffer": buffer}


class Adam(_Optimiser):
    """Adam, with the formulas of ``torch.optim.Adam``.

    With ``g = grad + weight_decay p``, ``m = b1 m + (1 - b1) g`` and ``v = b2 v + (1 - b2) g^2``, the result is
    ``p - lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)``. Kingma and Ba (2015), "Adam: a method for stochastic
    optimization".

    Parameters
    ----------
    lr : float
        Learning rate, finite and >= 0.
    betas : pair of float
        Decay rates b1 and b2, each in [0, 1).
    eps : float
        Added to the denominator, finite and >= 0. The default rounds to 0 in float16, where a gradient of 0 then gives
        0 / 0: use 1e-4 or more there.
    weight_decay : float
        Factor of an L2 penalty, finite and >= 0; added to the gradient, not decoupled from it as in AdamW.

    Raises
    ------
    ArgumentTypeError, ArgumentValueError

    Examples
    --------
    >>> import numpy as np
    >>> from rnncore.optim import Adam
    >>> Adam(0.5).step({"w": np.asarray([1.0, 2.0])}, {"w": np.asarray([1e3, -1e-3])})["w"].round(3)
    array([0.5, 2.5])
    """

    _slots = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ArgumentTypeError(f"betas: expected a pair of numbers in [0, 1), got {shown(betas)}")
        self._betas = (fraction("betas[0]", betas[0]), fraction("betas[1]", betas[1]))
        self._eps = non_negative("eps", eps)
        super().__init__(lr, weight_decay, betas=self._betas, eps=self._eps)

    def _update(
        self, p: Array, g: Array, state: dict[str, Array] | None, count: int, xp: Namespace
    ) -> tuple[Array, dict[str, Array]]:
        b1, b2 = self._betas
        m, v = (1 - b1) * g, (1 - b2) * (g * g)
        if state:
            m, v = b1 * state["exp_avg"] + m, b2 * state["exp_avg_sq"] + v
        scale = xp.sqrt(v) / math.sqrt(1 - b2**count) + self._eps
        return p - (self.lr / (1 - b1**count)) * (m / scale), {"exp_avg": m, "exp_avg_sq": v}


def _copied(x: Array) -> Array:
    backend = backend_of(x)
    with device_scope(backend, device_of(x)):
        return backend.namespace().asarray(ability(backend, "detach")(x), copy=True)
