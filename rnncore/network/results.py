"""The results of calls: Gradients, Tangents, Trace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from rnncore.typing import Array


@dataclass(frozen=True)
class Gradients:
    """Gradients from a pullback.

    Attributes
    ----------
    params : dict of str to array
        One gradient for each parameter, under torch's names.
    x : array
        Shape of the input.
    h0 : array, or tuple of array where the layers differ in width
        Shape of h0, whether or not it was given: a learnable initial state reads its gradient here.
    """

    params: dict[str, Array]
    x: Array
    h0: State


@dataclass(frozen=True)
class Tangents:
    """Tangents of output and h_n, in their shapes."""

    output: Array
    h_n: State


@dataclass(frozen=True)
class Trace:
    """Every state and pre-activation of one call.

    Attributes
    ----------
    h, z : tuple of array
        For each layer (D, T, B, H): the states, and the pre-activations before any clip. Time-first and batched whatever
        the layout of the input; 0 in the padding.
    output, h_n
        As the call itself returns them.
    """

    h: tuple[Array, ...]
    z: tuple[Array, ...]
    output: Array
    h_n: State


Pullback: TypeAlias = Callable[..., Gradients]


State: TypeAlias = "Array | tuple[Array, ...]"
