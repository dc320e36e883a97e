"""Initialisers: drawn on the host in float64 by ``numpy.random.Generator``, so a seed gives the same weights everywhere.

An initialiser is a function of a shape (rows, columns) or (width,) and a generator. ``draw`` makes all parameters of a
network, in the order of ``RNNSpec.parameter_shapes``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, TypeAlias

import numpy as np

from rnncore.errors import ArgumentTypeError, ArgumentValueError, UnknownNameError
from rnncore.spec import RNNSpec
from rnncore.typing import Host

__all__ = [
    "INITIALISERS",
    "constant",
    "draw",
    "gaussian",
    "identity",
    "orthogonal",
    "spectral_radius",
    "uniform",
    "xavier_normal",
    "xavier_uniform",
]

Initialiser: TypeAlias = Callable[[tuple[int, ...], np.random.Generator], Host]


def uniform(bound: float) -> Initialiser:
    """U(-bound, bound). torch.nn.RNN draws every parameter so, with bound 1 / sqrt(H)."""
    bound = _number("bound", bound, positive=False)

    def make(shape: tuple[int, ...], rng: np.random.Generator) -> Host:
        return rng.uniform(-bound, bound, shape)

    return make


def constant(value: float) -> Initialiser:
    """The same number everywhere; nothing is drawn."""
    value = float(value)

    def make(shape: tuple[int, ...], rng: np.random.Generator) -> Host:
        return np.full(shape, value)

    return make


def orthogonal(gain: float = 1.0) -> Initialiser:
    """A uniformly distributed (Haar) matrix with orthonormal rows or columns, times the gain.

    Saxe, McClelland and Ganguli (2014), "Exact solutions to the nonlinear dynamics of learning in deep linear neural
    networks". The sign fix that makes QR uniform: Mezzadri (2007), "How to generate random matrices from the classical
    compact groups".
    """
    gain = _number("gain", gain)

    def make(shape: tuple[int, ...], rng: np.random.Generator) -> Host:
        rows, columns = _matrix(shape, "orthogonal")
        q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
        q = q * np.where(np.diagonal(r) < 0, -1.0, 1.0)
        return gain * np.ascontiguousarray(q if rows >= columns else q.T)

    return make


def identity(gain: float = 1.0) -> Initialiser:
    """The identity times the gain; IRNN of Le, Jaitly and Hinton (2015), "A simple way to initialize recurrent networks
    of rectified linear units", with relu and zero biases."""
    gain = _number("gain", gain)

    def make(shape: tuple[int, ...], rng: np.random.Generator) -> Host:
        return gain * np.eye(*_matrix(shape, "identity"))

    return make


def xavier_uniform(gain: float = 1.0) -> Initialiser:
    """U(-a, a) with a = gain sqrt(6 / (fan_in + fan_out)), Glorot and Bengio (2010), equation 16."""
    gain = _number("gain", gain)

    def make(shape: tuple[int, ...], rng: np.random.Generator) -> Host:
        bound = gain * math.sqrt(6.0 / sum(_matrix(shape, "xavier_uniform")))
        return rng.uniform(-bound, bound, shape)

    return make


def xavier_normal(gain: float = 1.0) -> Initialiser:
    """N(0, s^2) with s = gain sqrt(2 / (fan_in + fan_out)), Glorot and Bengio (2010), equation 12."""
    gain = _number("gain", gain)

    def make(shape: tuple[int, ...], rng: np.random.Generator) -> Host:
        return rng.standard_normal(shape) * (gain * math.sqrt(2.0 / sum(_matrix(shape, "xavier_normal"))))

    return make


def gaussian(gain: float = 1.0) -> Initialiser:
    """N(0, gain^2 / columns): the g of Sompolinsky, Crisanti and Sommers (1988), "Chaos in random neural networks"."""
    gain = _number("gain", gain)

    def make(shape: tuple[int, ...], rng: np.random.Generator) -> Host:
        return rng.standard_normal(shape) * (gain / math.sqrt(_matrix(shape, "gaussian")[1]))

    return make


def spectral_radius(radius: float = 1.0) -> Initialiser:
    """A Gaussian square matrix scaled so that its largest eigenvalue has this modulus, as reservoirs are made
    (Jaeger 2001, "The echo state approach to analysing and training recurrent neural networks")."""
    radius = _number("radius", radius)

    def make(shape: tuple[int, ...], rng: np.random.Generator) -> Host:
        rows, columns = _matrix(shape, "spectral_radius")
        if rows != columns:
            raise ArgumentValueError(f"spectral_radius: expected a square matrix, got shape {shape}")
        w = rng.standard_normal(shape)
        scaled: Host = w * (radius / np.max(np.abs(np.linalg.eigvals(w))))
        return scaled

    return make


# What a bare name means for weight_hh. weight_ih is then Xavier uniform and the biases are 0, except for "uniform",
# which is torch's default for all four.
INITIALISERS: Mapping[str, Callable[[], Initialiser]] = {
    "uniform": lambda: uniform(1.0),
    "orthogonal": orthogonal,
    "identity": identity,
    "xavier": xavier_uniform,
    "xavier_uniform": xavier_uniform,
    "xavier_normal": xavier_normal,
    "gaussian": gaussian,
    "spectral_radius": spectral_radius,
}

KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def draw(spec: RNNSpec, rng: np.random.Generator, init: Any = "uniform") -> dict[str, Host]:
    """All parameters of a network in float64.

    Parameters
    ----------
    spec : RNNSpec
    rng : numpy.random.Generator
    init : str, callable or mapping
        A name: "uniform" for torch's default, U(-1/sqrt(H), 1/sqrt(H)) for everything; "orthogonal", "identity",
        "xavier_uniform" ("xavier"), "xavier_normal", "gaussian" or "spectral_radius" for weight_hh, with weight_ih
        Xavier uniform and biases 0. An initialiser, such as ``rnncore.init.gaussian(1.5)``, for weight_hh in the same
        way. Or a mapping from "weight_ih", "weight_hh", "bias_ih", "bias_hh" to names or initialisers; a kind that is
        not in it is drawn as by torch.

    Raises
    ------
    UnknownNameError, ArgumentTypeError, ArgumentValueError

    Examples
    --------
    >>> import numpy as np
    >>> from rnncore import RNNSpec, init
    >>> w = init.draw(RNNSpec.make(2, 3), np.random.default_rng(0), "orthogonal")["weight_hh_l0"]
    >>> bool(np.allclose(w @ w.T, np.eye(3)))
    True
    """
    makers = _makers(init)
    out: dict[str, Host] = {}
    for name, shape in spec.parameter_shapes().items():
        kind, _, _ = name.partition("_l")
        make = makers.get(kind)
        width = shape[0]
        value = np.asarray((uniform(1.0 / math.sqrt(width)) if make is None else make)(shape, rng))
        if value.shape != shape or value.dtype != np.float64:
            raise ArgumentTypeError(
                f"init[{kind!r}]: expected a float64 array of shape {shape}, got {value.dtype} {value.shape}"
            )
        out[name] = value
    return out


def _makers(init: Any) -> dict[str, Initialiser]:
    if isinstance(init, Mapping):
        unknown = sorted(set(init) - set(KINDS))
        if unknown:
            raise UnknownNameError(f"init: expected keys among {', '.join(KINDS)}, got {', '.join(map(repr, unknown))}")
        return {kind: made for kind, value in init.items() if (made := _by_name(value, f"init[{kind!r}]"))}
    made = _by_name(init, "init")
    if made is None:
        return {}
    return {"weight_ih": xavier_uniform(), "weight_hh": made, "bias_ih": constant(0.0), "bias_hh": constant(0.0)}


def _by_name(value: Any, argument: str) -> Initialiser | None:
    """An initialiser; None for torch's uniform, whose bound is known only with the width."""
    if isinstance(value, str):
        if value not in INITIALISERS:
            close = get_close_matches(value, INITIALISERS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UnknownNameError(f"{argument}: expected one of {', '.join(INITIALISERS)}; got {value!r}{hint}")
        return None if value == "uniform" else INITIALISERS[value]()
    if callable(value):
        maker: Initialiser = value
        return maker
    raise ArgumentTypeError(f"{argument}: expected a name or an initialiser, got {value!r}")


def _matrix(shape: tuple[int, ...], name: str) -> tuple[int, int]:
    if len(shape) != 2:
        raise ArgumentValueError(f"{name}: expected the shape of a matrix, got {shape}")
    return shape[0], shape[1]


def _number(argument: str, value: Any, positive: bool = True) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ArgumentTypeError(f"{argument}: expected a number, got {value!r}")
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        raise ArgumentValueError(f"{argument}: expected a finite number > 0, got {value!r}")
    return float(value)
