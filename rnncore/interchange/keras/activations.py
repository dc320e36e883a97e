"""Keras's activations and rnncore's nonlinearities: which are the same function.

https://keras.io/api/layers/activations/ defines Keras's. Beside a name, Keras takes a layer as an activation, which is how it
says parameters.
"""

from __future__ import annotations

import math
from typing import Any

from rnncore.errors import InterchangeError
from rnncore.nonlinearity.nonlinearity import Nonlinearity, get_nonlinearity

__all__ = ["activation_of", "nonlinearity_of"]

# Those of the same name, and others with the same function under another.
SAME = ("tanh", "relu", "sigmoid", "softplus", "softsign", "elu")
NAMED = {
    **{name: get_nonlinearity(name) for name in SAME},
    "linear": get_nonlinearity("identity"),
    "leaky_relu": get_nonlinearity("leaky_relu", alpha=0.2),
    "relu6": get_nonlinearity("relu", clip=6.0),
    "hard_tanh": get_nonlinearity("identity", clip=1.0),
    "hard_sigmoid": get_nonlinearity("hard_sigmoid", alpha=1 / 6, beta=0.5),
    "sparse_sigmoid": get_nonlinearity("hard_sigmoid", alpha=0.5, beta=0.5),
}
# Two of rnncore's that with these parameters are another of its functions.
OTHERWISE = {
    get_nonlinearity("scaled_tanh", alpha=1.0, beta=1.0): "tanh",
    get_nonlinearity("affine", alpha=1.0, beta=0.0): "linear",
}


def nonlinearity_of(activation: Any) -> Nonlinearity | None:
    """Return the same function for an activation as a configuration says it, or None if rnncore has none."""
    if activation is None:
        return NAMED["linear"]
    if isinstance(activation, str):
        return NAMED.get(activation)
    if not isinstance(activation, dict) or not isinstance(activation.get("config"), dict):
        return None
    if str(activation.get("module")).partition(".")[0] != "keras":
        return None
    kind, config = activation.get("class_name"), activation["config"]
    if kind == "Activation":
        inner = config.get("activation")
        return nonlinearity_of(inner) if isinstance(inner, str) else None
    numbers = {key: _number(config.get(key)) for key in ("negative_slope", "alpha", "max_value", "threshold")}
    slope, alpha, most, threshold = numbers.values()
    if kind == "LeakyReLU" and slope is not None:
        return get_nonlinearity("leaky_relu", alpha=slope)
    if kind == "ELU" and alpha is not None:
        return get_nonlinearity("elu", alpha=alpha)
    return _relu(config, slope, most, threshold) if kind == "ReLU" else None


def activation_of(function: Nonlinearity, dtype: str) -> str | dict[str, Any]:
    """Return the same function as a configuration says it: a name, or a layer of this dtype.

    Raises
    ------
    InterchangeError
        If Keras has none.
    """
    name = next((name for name, own in NAMED.items() if own == function), OTHERWISE.get(function))
    if name is not None:
        return name
    alpha = function.alpha or 0.0
    if function.clip is None and not function.is_custom:
        if function.name == "leaky_relu" and alpha >= 0:
            return _layer("LeakyReLU", dtype, negative_slope=alpha)
        if function.name == "elu":
            return _layer("ELU", dtype, alpha=alpha)
        if function.name == "thresholded_relu" and alpha >= 0:
            return _layer("ReLU", dtype, threshold=alpha)
    elif function == get_nonlinearity("relu", clip=function.clip):
        return _layer("ReLU", dtype, max_value=function.clip)
    parameters = {"alpha": function.alpha, "beta": function.beta, "clip": function.clip}
    given = "".join(f", {key}={value}" for key, value in parameters.items() if value is not None)
    kind = "the custom function " if function.is_custom else ""
    raise InterchangeError(f"nonlinearity: Keras has no activation that is {kind}{function.name!r}{given}")


def _relu(config: dict[str, Any], slope: Any, most: float | None, threshold: float | None) -> Nonlinearity | None:
    """The function of a ReLU layer, of which rnncore has those with one parameter at most."""
    if config.get("max_value") is not None and (most is None or most <= 0):
        return None
    if most is None and not threshold:
        return get_nonlinearity("leaky_relu", alpha=slope) if slope else NAMED["relu"]
    if slope or (most is not None and threshold):
        return None
    return (
        get_nonlinearity("relu", clip=most)
        if most is not None
        else get_nonlinearity("thresholded_relu", alpha=threshold)
    )


def _number(value: Any) -> float | None:
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    try:
        return float(value) if real and math.isfinite(value) else None
    except OverflowError:  # an integer with thousands of digits
        return None


def _layer(kind: str, dtype: str, **config: Any) -> dict[str, Any]:
    return {"module": "keras.layers", "class_name": kind, "config": {"dtype": dtype, **config}, "registered_name": None}
