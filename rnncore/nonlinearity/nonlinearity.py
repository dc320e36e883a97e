"""Nonlinearities: f, f' from h or from z, ln f' without cancellation, and the bound gamma = sup |f'|.

``get_nonlinearity`` makes one by name, from the table in :mod:`rnncore.nonlinearity.activations`;
``custom_nonlinearity`` makes one from a function and its derivative.

Throughout, ``h = f(z)``. Where h determines the derivative, it is computed from h, so that a backward pass keeps one
array instead of two. Elsewhere (``derivative_needs_z``) the caller recomputes z with one product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from rnncore.arguments import closest, describe, real, shown
from rnncore.errors import ArgumentTypeError, ArgumentValueError, DTypeError, ShapeError, UnknownNameError
from rnncore.nonlinearity.activations import FAMILIES, Functions
from rnncore.typing import Array, Namespace

__all__ = ["NONLINEARITIES", "Nonlinearity", "custom_nonlinearity", "get_nonlinearity"]

NONLINEARITIES = tuple(FAMILIES)


@dataclass(frozen=True)
class Nonlinearity:
    """An elementwise function with its derivative.

    Make one with :func:`get_nonlinearity` or :func:`custom_nonlinearity`. Equality and hash depend on name, alpha, beta
    and clip, and on the functions of a custom one.

    Attributes
    ----------
    name : str
    alpha, beta : float or None
        Parameters of the function, if it has them.
    clip : float or None
        Limit of the pre-activation, as in ONNX: f is applied to z limited to [-clip, clip]. The derivative outside is 0.
    """

    name: str
    alpha: float | None = None
    beta: float | None = None
    clip: float | None = None
    _functions: Functions = field(default=None, repr=False, compare=False)  # type: ignore[assignment]
    user: tuple[Callable[..., Array], Callable[..., Array]] | None = field(default=None, repr=False)

    @property
    def gamma(self) -> float | None:
        """The bound sup |f'| over the real line, or None if it is not known.

        Pascanu, Mikolov and Bengio (2013), "On the difficulty of training recurrent neural networks", section 2.1.
        """
        return self._functions.gamma

    @property
    def is_custom(self) -> bool:
        """Whether this is a custom nonlinearity."""
        return self.user is not None

    @property
    def derivative_needs_z(self) -> bool:
        """Whether f' must be computed from the pre-activation, because h does not determine it."""
        return self._functions.df_from_h is None or self.clip is not None

    def __call__(self, z: Array, /, *, xp: Namespace) -> Array:
        """Apply the function; shape and dtype are kept."""
        return self._checked(self._functions.f(self._limited(z, xp), xp), z, "the function")

    def derivative(self, z: Array, /, *, xp: Namespace) -> Array:
        """Derivative ``f'(z)`` from the pre-activation z; 0 where |z| > clip."""
        d = self._checked(self._functions.df(self._limited(z, xp), xp), z, "the derivative")
        return d if self.clip is None else xp.where(self._inside(z, xp), d, xp.zeros_like(d))

    def derivative_from_h(self, h: Array, /, *, xp: Namespace) -> Array:
        """Derivative ``f'(z)`` from h = f(z). Only where ``derivative_needs_z`` is False."""
        if self._functions.df_from_h is None or self.clip is not None:
            raise ArgumentValueError(
                f"nonlinearity {self.name!r}: h does not determine the derivative; use z: f.derivative(z, xp=xp)"
            )
        return self._functions.df_from_h(h, xp)

    def log_derivative(self, z: Array, /, *, xp: Namespace) -> Array:
        """Logarithm ``ln |f'(z)|``, accurate where f' cancels or underflows; -inf where f' is exactly 0.

        For tanh in float32, ``1 - h**2`` is 0 for |z| >= 9.1; this stays exact to a few eps for any finite z.
        """
        zc = self._limited(z, xp)
        if self._functions.log_df is not None:
            out = self._functions.log_df(zc, xp)
        else:
            d = xp.abs(self._checked(self._functions.df(zc, xp), z, "the derivative"))
            out = xp.where(d > 0, xp.log(xp.where(d > 0, d, xp.ones_like(d))), xp.full_like(d, -math.inf))
        return out if self.clip is None else xp.where(self._inside(z, xp), out, xp.full_like(out, -math.inf))

    def with_clip(self, clip: float | None) -> Nonlinearity:
        """Return the same function with another limit of the pre-activation; None for no limit."""
        if clip is None:
            return replace(self, clip=None)
        limit = real("clip", clip, "a positive finite number or None", lambda x: 0 < x < math.inf)
        return replace(self, clip=limit)

    def to_config(self) -> dict[str, Any]:
        """Convert name and parameters to plain data for ``from_config``. Custom functions are left out."""
        config = {"name": self.name, "alpha": self.alpha, "beta": self.beta, "clip": self.clip}
        return {k: v for k, v in config.items() if v is not None}

    def __reduce__(self) -> tuple[Any, ...]:
        if self.user is None:
            return from_config, (self.to_config(),)
        return partial(custom_nonlinearity, *self.user, name=self.name, gamma=self.gamma, clip=self.clip), ()

    def _limited(self, z: Array, xp: Namespace) -> Array:
        return z if self.clip is None else xp.clip(z, -self.clip, self.clip)

    def _inside(self, z: Array, xp: Namespace) -> Array:
        # "Not outside", so that NaN counts as inside and is seen, instead of becoming a gradient of 0.
        return xp.logical_not(xp.abs(z) > self.clip)

    def _checked(self, out: Array, z: Array, what: str) -> Array:
        if self.user is None:
            return out
        got = getattr(out, "shape", None)
        if got is None:
            raise ArgumentTypeError(
                f"nonlinearity {self.name!r}: {what} must return an array like its argument, got {describe(out)}"
            )
        if tuple(got) != tuple(z.shape):
            raise ShapeError(
                f"nonlinearity {self.name!r}: {what} must keep the shape {tuple(z.shape)}, got {tuple(got)}"
            )
        if out.dtype != z.dtype:
            raise DTypeError(f"nonlinearity {self.name!r}: {what} must keep the dtype {z.dtype}, got {out.dtype}")
        return out


def get_nonlinearity(
    name: str | Nonlinearity, /, *, alpha: float | None = None, beta: float | None = None, clip: float | None = None
) -> Nonlinearity:
    """Return a nonlinearity by name.

    Parameters
    ----------
    name : str or Nonlinearity
        "tanh", "relu", "sigmoid", "identity", "leaky_relu", "thresholded_relu", "hard_sigmoid", "elu", "softsign",
        "softplus", "scaled_tanh" or "affine"; ONNX's spelling ("LeakyRelu") works too. A Nonlinearity is returned
        unchanged, or with `clip` if that is given.
    alpha, beta : float, optional
        Parameters of the function, if it has them. The defaults are ONNX's: leaky_relu 0.01, thresholded_relu 1,
        hard_sigmoid 0.2 and 0.5, elu 1, scaled_tanh 1 and 1, affine 1 and 0.
    clip : float, optional
        Limit of the pre-activation, ``f(min(max(z, -clip), clip))``.

    Raises
    ------
    UnknownNameError
        If the name is not known; the message suggests the closest one.
    ArgumentTypeError, ArgumentValueError
        If the function has no such parameter, or the value is not a finite number.

    Examples
    --------
    >>> import numpy as np
    >>> from rnncore import get_nonlinearity
    >>> f = get_nonlinearity("leaky_relu", alpha=0.1)
    >>> f(np.asarray([-2.0, 3.0]), xp=np)
    array([-0.2,  3. ])
    >>> get_nonlinearity("sigmoid").gamma
    0.25
    """
    if isinstance(name, Nonlinearity):
        if alpha is not None or beta is not None:
            raise ArgumentValueError("alpha, beta: expected None with a Nonlinearity, which has its own")
        return name if clip is None else name.with_clip(clip)
    if not isinstance(name, str):
        raise ArgumentTypeError(
            f"nonlinearity: expected a name, a Nonlinearity or a pair (function, derivative), got {describe(name)}"
        )
    key = _KEYS.get(_fold(name))
    if key is None:
        hint = closest(name.lower(), NONLINEARITIES)
        raise UnknownNameError(f"nonlinearity: expected one of {', '.join(NONLINEARITIES)}, got {shown(name)}{hint}")
    family = FAMILIES[key]
    values: dict[str, float] = {}
    for parameter, given in (("alpha", alpha), ("beta", beta)):
        if parameter not in family.defaults:
            if given is not None:
                raise ArgumentValueError(f"{parameter}: nonlinearity {key!r} has no {parameter}, got {shown(given)}")
            continue
        values[parameter] = real(parameter, family.defaults[parameter] if given is None else given)
    made = Nonlinearity(key, values.get("alpha"), values.get("beta"), _functions=family.build(**values))
    return made.with_clip(clip)


def custom_nonlinearity(
    function: Callable[[Array], Array],
    derivative: Callable[[Array], Array],
    /,
    *,
    name: str | None = None,
    gamma: float | None = None,
    clip: float | None = None,
) -> Nonlinearity:
    """Make a nonlinearity from a function of z and its derivative.

    Parameters
    ----------
    function, derivative : callable
        Elementwise; take an array of any shape and return one of the same shape, dtype and library. Written with
        operators and ``z.__array_namespace__()`` they run on every backend. Second derivatives by PyTorch's autograd or
        JAX need functions made of that library's operations. Pickling a model stores them by reference.
    name : str, optional
        Name for messages and reports; by default the function's own.
    gamma : float, optional
        The bound sup |f'|, if it is known.
    clip : float, optional
        Limit of the pre-activation.

    Raises
    ------
    ArgumentTypeError, ArgumentValueError

    Examples
    --------
    >>> import numpy as np, rnncore
    >>> square = rnncore.custom_nonlinearity(lambda z: z * z, lambda z: 2 * z, name="square")
    >>> square.derivative(np.asarray([3.0]), xp=np)
    array([6.])
    """
    for label, value in (("function", function), ("derivative", derivative)):
        if not callable(value):
            raise ArgumentTypeError(f"{label}: expected a callable, got {describe(value)}")
    if gamma is not None:
        gamma = real("gamma", gamma, "a number >= 0 or None", lambda x: x >= 0)
    label = name if name is not None else str(getattr(function, "__name__", "custom"))
    functions = Functions(lambda z, xp: function(z), lambda z, xp: derivative(z), gamma=gamma)
    return Nonlinearity(label, _functions=functions, user=(function, derivative)).with_clip(clip)


def as_nonlinearity(value: Any, /, *, clip: float | None = None) -> Nonlinearity:
    """Convert a ``nonlinearity=`` argument: a name, a Nonlinearity, or a pair of functions."""
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ArgumentTypeError(f"nonlinearity: expected a pair (function, derivative), got {len(value)} items")
        return custom_nonlinearity(value[0], value[1], clip=clip)
    return get_nonlinearity(value, clip=clip)


def from_config(config: Mapping[str, Any]) -> Nonlinearity:
    """Rebuild a nonlinearity from ``Nonlinearity.to_config``."""
    known = {"name", "alpha", "beta", "clip"}
    if not isinstance(config, Mapping) or not set(config) <= known or "name" not in config:
        raise ArgumentValueError(f"nonlinearity: expected a mapping with the keys {sorted(known)}, got {shown(config)}")
    parameters = {name: value for name, value in config.items() if name != "name"}
    return get_nonlinearity(config["name"], **parameters)


def _fold(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


_KEYS = {_fold(name): name for name in NONLINEARITIES}
