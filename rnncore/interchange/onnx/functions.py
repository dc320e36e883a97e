"""Activations of ONNX's RNN and rnncore's nonlinearities: the same functions, with alpha and beta in lists of float32."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from rnncore.arguments import shown
from rnncore.errors import InterchangeError
from rnncore.nonlinearity.nonlinearity import NONLINEARITIES, Nonlinearity, get_nonlinearity

__all__ = ["read_function", "single", "written"]

# The identity is ONNX's Affine with these.
IDENTITY = (1.0, 0.0)
# ONNX says of the others' defaults that they are those of the operators of that name; it has no operators of these.
NO_DEFAULTS = ("affine", "scaled_tanh")
_KEYS = {name.replace("_", ""): name for name in NONLINEARITIES if name != "identity"}


def read_function(
    names: Sequence[str],
    alphas: Sequence[float],
    betas: Sequence[float],
    clip: float | None,
    dtype: str,
) -> Nonlinearity:
    """Return the one function of all directions.

    Parameters
    ----------
    names : sequence of str
        One for each direction, in any case: torch writes "Tanh", other exporters "tanh".
    alphas, betas : sequence of float
        Consumed in order by the functions that have one.
    clip : float or None
    dtype : str
        Of the network: its functions compute in it.

    Raises
    ------
    InterchangeError
    """
    rest = {"alpha": iter(alphas), "beta": iter(betas)}
    found = [_one(name, rest, dtype) for name in names]
    for argument, values in rest.items():
        if next(values, None) is not None:
            raise InterchangeError(f"activation_{argument}: expected no more values than {', '.join(names)} take")
    if len(set(found)) != 1:
        raise InterchangeError(
            f"activations: expected the same for both directions, got {' and '.join(map(_said, found))}"
        )
    if clip is None or clip == math.inf:
        return found[0]
    if not clip > 0:
        raise InterchangeError(f"clip: expected a number > 0, got {clip}")
    return found[0].with_clip(_in(dtype, clip))


def written(function: Nonlinearity, dtype: str) -> tuple[str, list[float], list[float]]:
    """Return ONNX's name of a function and its alpha and beta, none or one of each.

    Raises
    ------
    InterchangeError
        If ONNX lacks the function, or its float32 lacks the number.
    """
    if function.is_custom:
        raise InterchangeError(f"nonlinearity: expected one of ONNX's, got the custom function {shown(function.name)}")
    if function.name == "identity":
        return "Affine", [IDENTITY[0]], [IDENTITY[1]]
    name = "".join(word.capitalize() for word in function.name.split("_"))
    alpha, beta = (
        [] if value is None else [single(argument, value, dtype)]
        for argument, value in (("alpha", function.alpha), ("beta", function.beta))
    )
    return name, alpha, beta


def single(argument: str, value: float, dtype: str) -> float:
    """Return a number as an attribute holds it, in float32, which a network in float32 or less computes with anyway.

    Raises
    ------
    InterchangeError
    """
    with np.errstate(over="ignore"):
        held = float(np.float32(value))
    if not math.isfinite(held) or (dtype == "float64" and held != value):
        raise InterchangeError(
            f"{argument}: expected a number that ONNX's float32 attributes hold, got {value!r}; the network computes in "
            f'{dtype}, and .to(dtype="float32") rounds it'
        )
    return held


def _one(name: str, rest: dict[str, Iterator[float]], dtype: str) -> Nonlinearity:
    key = _KEYS.get(name.lower())
    if key is None:
        raise InterchangeError(f"activations: expected those of ONNX's RNN, got {shown(name)}")
    defaults = get_nonlinearity(key)
    given: dict[str, float] = {}
    for argument, values in rest.items():
        value = None if getattr(defaults, argument) is None else next(values, None)
        if value is not None:
            if not math.isfinite(value):
                raise InterchangeError(f"activation_{argument}: expected finite numbers, got {value}")
            given[argument] = _in(dtype, value)
    if key in NO_DEFAULTS and len(given) != 2:
        raise InterchangeError(
            f"activations: expected activation_alpha and activation_beta for {name}, which have no defaults"
        )
    if key == "affine" and (given["alpha"], given["beta"]) == IDENTITY:
        return get_nonlinearity("identity")
    return get_nonlinearity(key, **given)


def _in(dtype: str, value: float) -> float:
    """The attribute's float32 exactly, or for a coarser network the shortest number that rounds to it: 0.01 for 0.01."""
    return value if dtype == "float64" else float(str(np.float32(value)))


def _said(function: Nonlinearity) -> str:
    values = [f"{n} {v}" for n in ("alpha", "beta") if (v := getattr(function, n)) is not None]
    return f"{function.name}{' of ' if values else ''}{', '.join(values)}"
