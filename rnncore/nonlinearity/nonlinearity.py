"""Nonlinearities: f, f' from h or from z, ln f' from z without cancellation, and the bound gamma = sup |f'|.

``get_nonlinearity`` makes one by name, from the table in :mod:`rnncore.nonlinearity.activations`;
``custom_nonlinearity`` makes one from a user's function and derivative.

Throughout, ``h = f(z)``. The derivative is computed from h wherever h determines it, so that a backward pass has to keep
one array instead of two; where it does not (``derivative_from_h`` is None), the caller recomputes z by one product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from numbers import Real
from typing import Any

from rnncore.errors import ArgumentTypeError, ArgumentValueError, DTypeError, ShapeError, UnknownNameError
from rnncore.nonlinearity.activations import FAMILIES, Functions
from rnncore.typing import Array, Namespace

__all__ = ["NONLINEARITIES", "Nonlinearity", "custom_nonlinearity", "get_nonlinearity"]

NONLINEARITIES = tuple(FAMILIES)


@dataclass(frozen=True)
class Nonlinearity:
    """One elementwise function and what backpropagation and diagnostics need to know of it.

    Make one with :func:`get_nonlinearity` or :func:`custom_nonlinearity`. Compared and hashed by name, alpha, beta, clip
    and, for a user's own, by the functions.

    Attributes
    ----------
    name : str
    alpha, beta : float or None
        The parameters, where the function has them.
    clip : float or None
        The pre-activation is limited to [-clip, clip] before f sees it, as ONNX has it; the derivative outside is 0.
    """

    name: str
    alpha: float | None = None
    beta: float | None = None
    clip: float | None = None
    _functions: Functions = field(default=None, repr=False, compare=False)  # type: ignore[assignment]
    user: tuple[Callable[..., Array], Callable[..., Array]] | None = field(default=None, repr=False)

    @property
    def gamma(self) -> float | None:
        """sup |f'| over the real line, Pascanu et al. (2013), "On the difficulty of training recurrent neural networks",
        section 2.1. None if the user did not say."""
        return self._functions.gamma

    @property
    def is_custom(self) -> bool:
        """Whether a user's own functions stand behind it."""
        return self.user is not None

    @property
    def derivative_needs_z(self) -> bool:
        """Whether f' has to be computed from the pre-activation, because h does not determine it."""
        return self._functions.df_from_h is None or self.clip is not None

    def __call__(self, z: Array, /, *, xp: Namespace) -> Array:
        """``f(z)``, same shape and dtype."""
        return self._checked(self._functions.f(self._limited(z, xp), xp), z, "the function")

    def derivative(self, z: Array, /, *, xp: Namespace) -> Array:
        """``f'(z)`` from the pre-activation z; 0 where |z| > clip."""
        d = self._checked(self._functions.df(self._limited(z, xp), xp), z, "the derivative")
        return d if self.clip is None else xp.where(self._inside(z, xp), d, xp.zeros_like(d))

    def derivative_from_h(self, h: Array, /, *, xp: Namespace) -> Array:
        """``f'(z)`` from h = f(z). Only where ``derivative_needs_z`` is False."""
        if self._functions.df_from_h is None or self.clip is not None:
            raise ArgumentValueError(f"nonlinearity {self.name!r}: h does not determine the derivative; use z")
        return self._functions.df_from_h(h, xp)

    def log_derivative(self, z: Array, /, *, xp: Namespace) -> Array:
        """``ln |f'(z)|``, accurate where f' itself would cancel or underflow; -inf where f' is exactly 0.

        For tanh, ``1 - h**2`` is 0 in float32 from |z| = 9.1 on; this stays exact to a few eps for any finite z.
        """
        zc = self._limited(z, xp)
        if self._functions.log_df is not None:
            out = self._functions.log_df(zc, xp)
        else:
            d = xp.abs(self._checked(self._functions.df(zc, xp), z, "the derivative"))
            out = xp.where(d > 0, xp.log(xp.where(d > 0, d, xp.ones_like(d))), xp.full_like(d, -math.inf))
        return out if self.clip is None else xp.where(self._inside(z, xp), out, xp.full_like(out, -math.inf))

    def with_clip(self, clip: float | None) -> Nonlinearity:
        """The same function behind another limit on the pre-activation; None for no limit."""
        if clip is None:
            return replace(self, clip=None)
        if isinstance(clip, bool) or not isinstance(clip, Real):
            raise ArgumentTypeError(f"clip: expected a positive number or None, got {clip!r}")
        limit = _finite("clip", clip)
        if not limit > 0:
            raise ArgumentValueError(f"clip: expected a positive finite number or None, got {clip!r}")
        return replace(self, clip=limit)

    def to_config(self) -> dict[str, Any]:
        """Name and parameters as plain data; ``from_config`` reads it. A user's own functions are not in it."""
        config = {"name": self.name, "alpha": self.alpha, "beta": self.beta, "clip": self.clip}
        return {k: v for k, v in config.items() if v is not None}

    def __reduce__(self) -> tuple[Any, ...]:
        if self.user is None:
            return _from_parts, (self.name, self.alpha, self.beta, self.clip)
        return _custom_from_parts, (*self.user, self.name, self.gamma, self.clip)

    def _limited(self, z: Array, xp: Namespace) -> Array:
        return z if self.clip is None else xp.clip(z, -self.clip, self.clip)

    def _inside(self, z: Array, xp: Namespace) -> Array:
        # Written as "not outside", so that NaN counts as inside and shows instead of turning into a gradient of 0.
        return xp.logical_not(xp.abs(z) > self.clip)

    def _checked(self, out: Array, z: Array, what: str) -> Array:
        if self.user is None:
            return out
        got = getattr(out, "shape", None)
        if got is None:
            raise ArgumentTypeError(
                f"nonlinearity {self.name!r}: {what} must return an array like its argument, got {type(out).__name__}"
            )
        if tuple(got) != tuple(z.shape):
            raise ShapeError(
                f"nonlinearity {self.name!r}: {what} must keep the shape {tuple(z.shape)}, got {tuple(got)}"
            )
        if out.dtype != z.dtype:
            raise DTypeError(f"nonlinearity {self.name!r}: {what} must keep the dtype {z.dtype}, got {out.dtype}")
        return out


def get_nonlinearity(
    name: str | Nonlinearity,
    /,
    *,
    alpha: float | None = None,
    beta: float | None = None,
    clip: float | None = None,
) -> Nonlinearity:
    """A nonlinearity by name.

    Parameters
    ----------
    name : str or Nonlinearity
        "tanh", "relu", "sigmoid", "identity", "leaky_relu", "thresholded_relu", "hard_sigmoid", "elu", "softsign",
        "softplus", "scaled_tanh" or "affine"; ONNX's spelling ("LeakyRelu") is understood too. A Nonlinearity is returned
        as it is, or with `clip` if that is given.
    alpha, beta : float, optional
        For those that have them; the defaults are ONNX's: leaky_relu 0.01, thresholded_relu 1, hard_sigmoid 0.2 and
        0.5, elu 1, scaled_tanh 1 and 1, affine 1 and 0.
    clip : float, optional
        Limit of the pre-activation, ``f(min(max(z, -clip), clip))``.

    Raises
    ------
    UnknownNameError
        For a name that is not known; the closest one is offered.
    ArgumentValueError
        For alpha or beta where the function has none, or a value that is not finite.

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
            raise ArgumentValueError("alpha, beta: give them when the nonlinearity is made, not with a finished one")
        return name if clip is None else name.with_clip(clip)
    if not isinstance(name, str):
        raise ArgumentTypeError(
            f"nonlinearity: expected a name, a Nonlinearity or a pair (function, derivative), got {type(name).__name__}"
        )
    key = _KEYS.get(_fold(name))
    if key is None:
        close = get_close_matches(_fold(name), _KEYS, n=1)
        hint = f"; did you mean {_KEYS[close[0]]!r}?" if close else ""
        raise UnknownNameError(f"nonlinearity: expected one of {', '.join(NONLINEARITIES)}; got {name!r}{hint}")
    family = FAMILIES[key]
    values: dict[str, float] = {}
    for parameter, given in (("alpha", alpha), ("beta", beta)):
        if parameter not in family.defaults:
            if given is not None:
                raise ArgumentValueError(f"{parameter}: nonlinearity {key!r} has no {parameter}, got {given!r}")
            continue
        value = family.defaults[parameter] if given is None else given
        values[parameter] = _finite(parameter, value)
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
    """A nonlinearity from a function of z and its derivative, a function of z.

    Parameters
    ----------
    function, derivative : callable
        Elementwise; take an array of any shape and return one of the same shape, dtype and library. Written with
        operators and ``z.__array_namespace__()`` they run on every backend. For second derivatives by PyTorch's autograd
        or JAX they must be made of that library's operations. Pickling a model keeps them by reference, as pickle does
        with functions.
    name : str, optional
        For messages and reports; the function's own name by default.
    gamma : float, optional
        sup |f'|, if it is known.
    clip : float, optional
        Limit of the pre-activation.

    Examples
    --------
    >>> import numpy as np, rnncore
    >>> square = rnncore.custom_nonlinearity(lambda z: z * z, lambda z: 2 * z, name="square")
    >>> square.derivative(np.asarray([3.0]), xp=np)
    array([6.])
    """
    for label, value in (("function", function), ("derivative", derivative)):
        if not callable(value):
            raise ArgumentTypeError(f"{label}: expected a callable, got {type(value).__name__}")
    if gamma is not None and not (isinstance(gamma, (int, float)) and not isinstance(gamma, bool) and gamma >= 0):
        raise ArgumentValueError(f"gamma: expected a number >= 0 or None, got {gamma!r}")
    label = name if name is not None else str(getattr(function, "__name__", "custom"))
    return _custom_from_parts(function, derivative, label, gamma, None).with_clip(clip)


def as_nonlinearity(value: Any, /, *, clip: float | None = None) -> Nonlinearity:
    """What the ``nonlinearity=`` argument of every constructor accepts: a name, a Nonlinearity, or a pair of functions."""
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ArgumentTypeError(f"nonlinearity: expected a pair (function, derivative), got {len(value)} items")
        return custom_nonlinearity(value[0], value[1], clip=clip)
    return get_nonlinearity(value, clip=clip)


def from_config(config: Mapping[str, Any]) -> Nonlinearity:
    """The inverse of ``Nonlinearity.to_config``."""
    known = {"name", "alpha", "beta", "clip"}
    if not isinstance(config, Mapping) or not set(config) <= known or "name" not in config:
        raise ArgumentValueError(f"nonlinearity: expected a mapping with the keys {sorted(known)}, got {config!r}")
    return get_nonlinearity(config["name"], alpha=config.get("alpha"), beta=config.get("beta"), clip=config.get("clip"))


def _finite(argument: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ArgumentTypeError(f"{argument}: expected a finite number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        got = repr(value) if isinstance(value, float) else "one that is too large for a float"
        raise ArgumentValueError(f"{argument}: expected a finite number, got {got}")
    return number


def _fold(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


_KEYS = {_fold(name): name for name in NONLINEARITIES}


def _from_parts(name: str, alpha: float | None, beta: float | None, clip: float | None) -> Nonlinearity:
    return get_nonlinearity(name, alpha=alpha, beta=beta, clip=clip)


def _custom_from_parts(
    function: Callable[[Array], Array],
    derivative: Callable[[Array], Array],
    name: str,
    gamma: float | None,
    clip: float | None,
) -> Nonlinearity:
    return Nonlinearity(
        name,
        clip=clip,
        _functions=Functions(lambda z, xp: function(z), lambda z, xp: derivative(z), gamma=gamma),
        user=(function, derivative),
    )
