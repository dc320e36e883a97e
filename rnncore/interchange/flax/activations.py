"""The functions of Flax's ``activation_fn`` that are nonlinearities of rnncore's, and one that stands for all the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from rnncore.arguments import describe, shown
from rnncore.backend.registry import get_backend
from rnncore.errors import InterchangeError
from rnncore.interchange.portable import Asked
from rnncore.nonlinearity.nonlinearity import Nonlinearity, as_nonlinearity, get_nonlinearity
from rnncore.typing import Array

__all__ = ["Activation", "function_of", "nonlinearity_of"]

# Where a function that is said to be one of ours is compared with it, and how close it has to be: both round a few times.
POINTS, LARGEST, ROUNDINGS, EPS = 65, 4.0, 64, 2.0**-23


@dataclass(frozen=True)
class Activation:
    """A nonlinearity as a function of JAX's arrays, with its parameters and its clip; equal where the nonlinearity is."""

    nonlinearity: Nonlinearity

    def __call__(self, z: Array) -> Array:
        """Apply the function, whose derivative is rnncore's also where JAX halves it, at the edges of a clip."""
        import jax

        xp, ours = get_backend("jax").namespace(), self.nonlinearity
        function = jax.custom_jvp(lambda z: ours(z, xp=xp))
        function.defjvps(lambda tangent, h, z: tangent * ours.derivative(z, xp=xp))
        return function(z)


def function_of(nonlinearity: Nonlinearity) -> Callable[[Array], Array]:
    """Return JAX's own function for a nonlinearity, or an :class:`Activation`."""
    return next((function for function, known in _known() if known == nonlinearity), Activation(nonlinearity))


def nonlinearity_of(function: Any, where: str, asked: Asked) -> Nonlinearity:
    """Return the nonlinearity that a module's function is, or the one that the caller says of a function that is not known.

    Raises
    ------
    InterchangeError
        If it is not known and nothing is said, or if it is not the one that is said.
    ArgumentValueError
        If it is known, and is said to be another one.
    """
    if (found := _recognised(function)) is not None:
        asked.settle("nonlinearity", found)
        return found
    if asked.nonlinearity is None:
        raise InterchangeError(
            f"{where}: expected a function that is known, such as jax.nn.tanh, got {shown(function)}; if it is one of "
            "rnncore's, say which: nonlinearity=..."
        )
    said = as_nonlinearity(asked.nonlinearity)
    if not said.is_custom and not _agree(function, said):
        raise InterchangeError(f"{where}: {shown(function)} is not the nonlinearity {said.name!r}: their values differ")
    return said


def _known() -> Iterator[tuple[Callable[..., Array], Nonlinearity]]:
    """JAX's functions, which are Flax's too, and what each is here; the first for each of ours is the one to make."""
    import jax

    yield jax.nn.tanh, get_nonlinearity("tanh")
    yield jax.lax.tanh, get_nonlinearity("tanh")
    yield jax.nn.relu, get_nonlinearity("relu")
    yield jax.nn.sigmoid, get_nonlinearity("sigmoid")
    yield jax.lax.logistic, get_nonlinearity("sigmoid")
    yield jax.nn.softplus, get_nonlinearity("softplus")
    yield jax.nn.soft_sign, get_nonlinearity("softsign")
    yield jax.nn.identity, get_nonlinearity("identity")
    yield jax.nn.leaky_relu, get_nonlinearity("leaky_relu")
    yield jax.nn.elu, get_nonlinearity("elu")
    yield jax.nn.hard_sigmoid, get_nonlinearity("hard_sigmoid", alpha=1 / 6, beta=0.5)
    yield jax.nn.hard_tanh, get_nonlinearity("identity", clip=1.0)
    yield jax.nn.relu6, get_nonlinearity("relu", clip=6.0)


def _recognised(function: Any) -> Nonlinearity | None:
    import jax

    if isinstance(function, Activation):
        return function.nonlinearity
    if isinstance(function, partial) and not function.args:
        for of, name, parameter in ((jax.nn.leaky_relu, "leaky_relu", "negative_slope"), (jax.nn.elu, "elu", "alpha")):
            if function.func is of and function.keywords.keys() == {parameter}:
                value = function.keywords[parameter]
                return get_nonlinearity(name, alpha=value) if isinstance(value, (int, float)) else None
    return next((found for known, found in _known() if known is function), None)


def _agree(function: Any, said: Nonlinearity) -> bool:
    """Whether the function's values are the nonlinearity's."""
    import jax.numpy as jnp

    z = jnp.linspace(-LARGEST, LARGEST, POINTS, dtype=jnp.float32)
    got, want = function(z), Activation(said)(z)
    if getattr(got, "shape", None) != want.shape:
        raise InterchangeError(f"activation_fn: expected a function of each number, got {describe(got)} from it")
    bound = ROUNDINGS * EPS * float(jnp.abs(want).max())
    return bool((jnp.abs(got - want) <= bound).all())
