"""Initialisers of parameters.

An initialiser is a function of a shape, (rows, columns) or (width,), and a ``numpy.random.Generator``. It draws on the
host in float64, so a seed gives the same weights on every backend. ``draw`` makes all parameters of a network, in the
order of ``RNNSpec.parameter_shapes``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from rnncore.arguments import (
    as_generator,
    check_bytes,
    check_kind,
    elements,
    non_negative,
    non_negative_int,
    one_of,
    positive,
    real,
    sequence,
    shown,
)
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

FLOAT64_BYTES = 8

Initialiser: TypeAlias = Callable[[tuple[int, ...], np.random.Generator], Host]


def uniform(bound: float) -> Initialiser:
    """Draw from U(-bound, bound). ``torch.nn.RNN`` draws every parameter this way, with bound 1 / sqrt(H)."""
    bound = non_negative("bound", bound)

    return _checked(lambda shape, rng: rng.uniform(-bound, bound, shape))


def constant(value: float) -> Initialiser:
    """Set every entry to one number."""
    value = real("value", value, "a number", lambda x: True)

    return _checked(lambda shape, rng: np.full(shape, value))


def orthogonal(gain: float = 1.0) -> Initialiser:
    """Draw a uniformly distributed (Haar) matrix with orthonormal rows or columns, times the gain.

    Saxe, McClelland and Ganguli (2014), "Exact solutions to the nonlinear dynamics of learning in deep linear neural
    networks". The sign fix that makes QR uniform: Mezzadri (2007), "How to generate random matrices from the classical
    compact groups".
    """
    gain = positive("gain", gain)

    def make(shape: tuple[int, ...], rng: np.random.Generator) -> Host:
        rows, columns = _matrix(shape, "orthogonal")
        q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
        q = q * np.where(np.diagonal(r) < 0, -1.0, 1.0)
        return gain * np.ascontiguousarray(q if rows >= columns else q.T)

    return _checked(make)


def identity(gain: float = 1.0) -> Initialiser:
    """Use the identity times the gain.

    With relu and zero biases this is the IRNN of Le, Jaitly and Hinton (2015), "A simple way to initialize recurrent
    networks of rectified linear units".
    """
    gain = positive("gain", gain)

    return _checked(lambda shape, rng: gain * np.eye(*_matrix(shape, "identity")))


def xavier_uniform(gain: float = 1.0) -> Initialiser:
    """Draw from U(-a, a), a = gain sqrt(6 / (fan_in + fan_out)): Glorot and Bengio (2010), equation 16."""
    gain = positive("gain", gain)

    def make(shape: tuple[int, ...], rng: np.random.Generator) -> Host:
        bound = gain * math.sqrt(6.0 / sum(_matrix(shape, "xavier_uniform")))
        return rng.uniform(-bound, bound, shape)

    return _checked(make)


def xavier_normal(gain: float = 1.0) -> Initialiser:
    """Draw from N(0, s^2), s = gain sqrt(2 / (fan_in + fan_out)): Glorot and Bengio (2010), equation 12."""
    gain = positive("gain", gain)

    def make(shape: tuple[int, ...], rng: np.random.Generator) -> Host:
        return rng.standard_normal(shape) * (gain * math.sqrt(2.0 / sum(_matrix(shape, "xavier_normal"))))

    return _checked(make)


def gaussian(gain: float = 1.0) -> Initialiser:
    """Draw from N(0, gain^2 / columns).

    The gain is the g of Sompolinsky, Crisanti and Sommers (1988), "Chaos in random neural networks".
    """
    gain = positive("gain", gain)

    return _checked(lambda shape, rng: rng.standard_normal(shape) * (gain / math.sqrt(_matrix(shape, "gaussian")[1])))


def spectral_radius(radius: float = 1.0) -> Initialiser:
    """Draw a Gaussian square matrix and scale it so that its largest eigenvalue has this modulus.

    Reservoirs are made this way: Jaeger (2001), "The echo state approach to analysing and training recurrent neural
    networks".
    """
    radius = positive("radius", radius)

    def make(shape: tuple[int, ...], rng: np.random.Generator) -> Host:
        rows, columns = _matrix(shape, "spectral_radius")
        if rows != columns:
            raise ArgumentValueError(f"spectral_radius: expected a square matrix, got shape {shape}")
        w = rng.standard_normal(shape)
        scaled: Host = w * (radius / np.max(np.abs(np.linalg.eigvals(w))))
        return scaled

    return _checked(make)


# The names apply to weight_hh, with weight_ih Xavier uniform and biases 0; "uniform" is torch's default for all four.
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
    """Draw all parameters of a network, in float64.

    Parameters
    ----------
    spec : RNNSpec
    rng : numpy.random.Generator
    init : str, callable or mapping
        A name: "uniform" for torch's default, U(-1/sqrt(H), 1/sqrt(H)) for everything; "orthogonal", "identity",
        "xavier_uniform" ("xavier"), "xavier_normal", "gaussian" or "spectral_radius" for weight_hh, with weight_ih
        Xavier uniform and biases 0. An initialiser, such as ``rnncore.init.gaussian(1.5)``, for weight_hh in the same
        way. Or a mapping from "weight_ih", "weight_hh", "bias_ih", "bias_hh" to names or initialisers; torch's default
        applies to any of them that is missing.

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
    check_kind("spec", spec, RNNSpec, "an RNNSpec")
    rng, makers = as_generator(rng), _makers(init)
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
    """Return an initialiser, or None for torch's uniform, whose bound depends on the width."""
    if isinstance(value, str):
        name = one_of(argument, value, INITIALISERS)
        return None if name == "uniform" else INITIALISERS[name]()
    if callable(value):
        maker: Initialiser = value
        return maker
    raise ArgumentTypeError(f"{argument}: expected a name or an initialiser, got {shown(value)}")


def _checked(make: Initialiser) -> Initialiser:
    """The initialiser with checks of its arguments."""

    def run(shape: tuple[int, ...], rng: np.random.Generator) -> Host:
        given = sequence("shape", shape, "a sequence of int")
        sizes = tuple(non_negative_int(f"shape[{i}]", n) for i, n in enumerate(given))
        check_bytes("shape", elements(sizes), FLOAT64_BYTES)
        return make(sizes, as_generator(rng))

    return run


def _matrix(shape: tuple[int, ...], name: str) -> tuple[int, int]:
    if len(shape) != 2:
        raise ArgumentValueError(f"{name}: expected the shape of a matrix, got {shape}")
    return shape[0], shape[1]
