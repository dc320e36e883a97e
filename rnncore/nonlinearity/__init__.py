"""Nonlinearities, by name or custom: f, its derivative from the state or from z, and the bound of the derivative."""

from collections.abc import Callable

from rnncore.nonlinearity.nonlinearity import (
    NONLINEARITIES,
    Nonlinearity,
    as_nonlinearity,
    custom_nonlinearity,
    get_nonlinearity,
)
from rnncore.typing import Array

__all__ = ["NONLINEARITIES", "Nonlinearity", "as_nonlinearity", "custom_nonlinearity", "get_nonlinearity"]


# Pickles made by rnncore 0.1 call these two by name.


def _from_parts(name: str, alpha: float | None, beta: float | None, clip: float | None) -> Nonlinearity:
    return get_nonlinearity(name, alpha=alpha, beta=beta, clip=clip)


def _custom_from_parts(
    function: Callable[[Array], Array],
    derivative: Callable[[Array], Array],
    name: str,
    gamma: float | None,
    clip: float | None,
) -> Nonlinearity:
    return custom_nonlinearity(function, derivative, name=name, gamma=gamma, clip=clip)
