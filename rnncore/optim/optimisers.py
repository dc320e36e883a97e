"""Training without a framework: SGD, Adam and the clipping of gradients, on the arrays of any backend.

An optimiser takes a mapping of arrays and one of gradients and returns new arrays; it changes nothing it was given, and
keeps its own state by name. So one optimiser serves the network, a readout layer and a learnable h0 alike:

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

from rnncore.arguments import describe, non_negative
from rnncore.backend.arrays import check_array, check_floating, device_of, device_scope
from rnncore.backend.contract import Backend, abilities_of
from rnncore.backend.registry import backend_of
from rnncore.errors import ArgumentTypeError, ArgumentValueError, StateDictError
from rnncore.optim.clipping import clip_grad_norm, one_backend
from rnncore.typing import Array, Namespace

__all__ = ["SGD", "Adam", "clip_grad_norm"]


class _Optimiser(ABC):
    """What SGD and Adam share: the checks, the state by name, and that nothing is kept before everything is computed."""

    _slots: ClassVar[tuple[str, ...]]  # the arrays kept for each parameter, under torch's names

    def __init__(self, lr: float, weight_decay: float) -> None:
        self.lr = lr
        self._weight_decay = non_negative("weight_decay", weight_decay)
        self._steps: dict[str, int] = {}
        self._state: dict[str, dict[str, Array]] = {}

    @property
    def lr(self) -> float:
        """The learning rate; assign to it to follow a schedule."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = non_negative("lr", value)

    def step(self, params: Mapping[str, Array], grads: Mapping[str, Array]) -> dict[str, Array]:
        """One step down the gradients.

        Parameters
        ----------
        params, grads : mapping of str to array
            The same names in both, and for each name the same shape, dtype, device and library. Gradients are used as
            they are: NaN in one makes NaN of its parameter.

        Returns
        -------
        dict of str to array
            New arrays under the names of `params`, outside any autograd graph. To leave a parameter as it is, leave it
            out of both; each name counts its own steps.

        Raises
        ------
        StateDictError, ArgumentTypeError, ShapeError, DTypeError, DeviceError
            And then neither the arrays nor the optimiser's state have changed.
        """
        backend = self._check(params, grads)
        if backend is None:
            return {}
        xp, detach = backend.namespace(), abilities_of(backend).detach  # else each step would extend a graph
        stepped: dict[str, Array] = {}
        state: dict[str, dict[str, Array]] = {}
        steps: dict[str, int] = {}
        for name, p in params.items():
            p, g = detach(p), detach(grads[name])
            count = self._steps.get(name, 0) + 1
            with device_scope(backend, device_of(p)):
                if self._weight_decay != 0:
                    g = g + self._weight_decay * p
                new, kept = self._update(p, g, self._state.get(name), count, xp)
                # Arithmetic on an array without axes gives NumPy's scalars, which are no arrays.
                stepped[name], state[name] = xp.asarray(new), {slot: xp.asarray(x) for slot, x in kept.items()}
            steps[name] = count
        self._steps.update(steps)
        self._state.update(state)
        return stepped

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on later: ``type``, ``options``, ``steps`` by name, and copies of the kept arrays."""
        arrays: dict[str, dict[str, Array]] = {slot: {} for slot in self._slots}
        for name, kept in self._state.items():
            for slot, value in kept.items():
                arrays[slot][name] = _copied(value)
        return {"type": type(self).__name__, "options": self._options(), "steps": dict(self._steps), **arrays}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from where :meth:`state_dict` was taken, with its options; the arrays are copied.

        Raises
        ------
        StateDictError, ArgumentTypeError, ArgumentValueError
            And then the optimiser is unchanged.
        """
        if not isinstance(state_dict, Mapping):
            raise ArgumentTypeError(f"state_dict: expected a mapping, got {describe(state_dict)}")
        kind, want = type(self).__name__, {"type", "options", "steps", *self._slots}
        if set(state_dict) != want or state_dict["type"] != kind:
            raise StateDictError(
                f"state_dict: expected {', '.join(sorted(want))} of an optimiser of type {kind!r}, got "
                f"{', '.join(sorted(map(str, state_dict)))} of type {state_dict.get('type')!r}"
            )
        if not isinstance(state_dict["options"], Mapping) or set(state_dict["options"]) != set(self._options()):
            raise StateDictError(
                f"state_dict['options']: expected {', '.join(self._options())}, got {state_dict['options']!r}"
            )
        fresh = type(self)(**state_dict["options"])
        steps = state_dict["steps"]
        if not isinstance(steps, Mapping) or not all(type(n) is int and n >= 1 for n in steps.values()):
            raise StateDictError(f"state_dict['steps']: expected the number of steps >= 1 of each name, got {steps!r}")
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

    @abstractmethod
    def _options(self) -> dict[str, Any]:
        """The constructor's arguments."""

    def _keeps_arrays(self) -> bool:
        return True

    @abstractmethod
    def _update(
        self, p: Array, g: Array, state: dict[str, Array] | None, count: int, xp: Namespace
    ) -> tuple[Array, dict[str, Array]]:
        """The new parameter and the new state, after `count` steps including this one."""

    def _check(self, params: Mapping[str, Array], grads: Mapping[str, Array]) -> Backend | None:
        for argument, value in (("params", params), ("grads", grads)):
            if not isinstance(value, Mapping):
                raise ArgumentTypeError(f"{argument}: expected a mapping of names to arrays, got {describe(value)}")
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
    """Stochastic gradient descent with momentum, by ``torch.optim.SGD``'s formulas.

    ``g = grad + weight_decay p``; ``b = momentum b + g`` (b = g at the first step); ``p - lr b``, with Nesterov's
    momentum ``p - lr (g + momentum b)``. Sutskever, Martens, Dahl and Hinton (2013), "On the importance of initialization
    and momentum in deep learning", with the learning rate outside the momentum.

    Parameters
    ----------
    lr : float
        Learning rate, finite and >= 0.
    momentum : float
        In [0, 1).
    nesterov : bool
        Needs momentum > 0.
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
        super().__init__(lr, weight_decay)
        self._momentum = _fraction("momentum", momentum)
        if not isinstance(nesterov, bool):
            raise ArgumentTypeError(f"nesterov: expected True or False, got {nesterov!r}")
        if nesterov and self._momentum == 0:
            raise ArgumentValueError("nesterov: expected momentum > 0 with nesterov=True, got momentum=0.0")
        self._nesterov = nesterov

    def _options(self) -> dict[str, Any]:
        return {
            "lr": self.lr,
            "momentum": self._momentum,
            "nesterov": self._nesterov,
            "weight_decay": self._weight_decay,
        }

    def _keeps_arrays(self) -> bool:
        return self._momentum != 0

    def _update(
        self, p: Array, g: Array, state: dict[str, Array] | None, count: int, xp: Namespace
    ) -> tuple[Array, dict[str, Array]]:
        if self._momentum == 0:
            return p - self.lr * g, {}
        # The first buffer is the gradient: a copy, as the caller may go on to change what they passed.
        buffer = self._momentum * state["momentum_buffer"] + g if state else xp.asarray(g, copy=True)
        direction = g + self._momentum * buffer if self._nesterov else buffer
        return p - self.lr * direction, {"momentum_buffer": buffer}


class Adam(_Optimiser):
    """Adam, by ``torch.optim.Adam``'s formulas: Kingma and Ba (2015), "Adam: a method for stochastic optimization".

    ``g = grad + weight_decay p``; ``m = b1 m + (1 - b1) g``; ``v = b2 v + (1 - b2) g^2``;
    ``p - lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)``.

    Parameters
    ----------
    lr : float
        Learning rate, finite and >= 0.
    betas : pair of float
        b1 and b2, each in [0, 1).
    eps : float
        Finite and >= 0. The default vanishes in float16, where a gradient of 0 is then 0 / 0: use 1e-4 or more there.
    weight_decay : float
        Factor of an L2 penalty, finite and >= 0; part of the gradient, not decoupled from it as in AdamW.

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
        super().__init__(lr, weight_decay)
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ArgumentTypeError(f"betas: expected a pair of numbers in [0, 1), got {betas!r}")
        self._betas = (_fraction("betas[0]", betas[0]), _fraction("betas[1]", betas[1]))
        self._eps = non_negative("eps", eps)

    def _options(self) -> dict[str, Any]:
        return {"lr": self.lr, "betas": self._betas, "eps": self._eps, "weight_decay": self._weight_decay}

    def _update(
        self, p: Array, g: Array, state: dict[str, Array] | None, count: int, xp: Namespace
    ) -> tuple[Array, dict[str, Array]]:
        b1, b2 = self._betas
        m, v = (1 - b1) * g, (1 - b2) * (g * g)
        if state:
            m, v = b1 * state["exp_avg"] + m, b2 * state["exp_avg_sq"] + v
        scale = xp.sqrt(v) / math.sqrt(1 - b2**count) + self._eps
        return p - (self.lr / (1 - b1**count)) * (m / scale), {"exp_avg": m, "exp_avg_sq": v}


def _fraction(argument: str, value: Any) -> float:
    number = non_negative(argument, value)
    if number >= 1:
        raise ArgumentValueError(f"{argument}: expected a number in [0, 1), got {value!r}")
    return number


def _copied(x: Array) -> Array:
    backend = backend_of(x)
    with device_scope(backend, device_of(x)):
        return backend.namespace().asarray(abilities_of(backend).detach(x), copy=True)
