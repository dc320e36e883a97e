"""The five networks of the demonstration, and how each is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rnncore import init
from rnncore.optim.optimisers import SGD, Adam


@dataclass(frozen=True)
class Recipe:
    """How one network is made and trained.

    Attributes
    ----------
    name, network, training, lesson : str
        Texts for the reader.
    nonlinearity : str
    init : mapping
        As for :class:`rnncore.RNN`.
    optimiser : callable
        Makes a new optimiser. Its learning rate decays linearly to 0 over the epochs.
    max_norm : float
        Norm to which gradients are clipped; inf for no clipping.
    """

    name: str
    network: str
    training: str
    lesson: str
    nonlinearity: str
    init: Mapping[str, Any]
    optimiser: Callable[[], SGD | Adam]
    max_norm: float


def _scaled_identity(gain: float) -> dict[str, init.Initialiser]:
    # Le et al. draw weight_ih with deviation 0.001, for inputs of many features; here the input is one pixel. The small
    # bias keeps units alive through the dark pixels at the start of every digit.
    return {
        "weight_ih": init.gaussian(1.0),
        "weight_hh": init.identity(gain),
        "bias_ih": init.constant(0.01),
        "bias_hh": init.constant(0.0),
    }


# Two controlled comparisons: vanishing and orthogonal differ only in weight_hh, exploding and identity in the gain of
# weight_hh and in clipping. overflow is exploding with the optimiser of the first pair.
RECIPES = (
    Recipe(
        "vanishing",
        "tanh, W_hh as torch draws it",
        "SGD 0.04, clipped at 1",
        "W_hh from U(-1/sqrt(H), 1/sqrt(H)) shrinks a vector by 1/sqrt(3), and 3^(-63/2) is 1e-15: at first the network "
        "learns only from the last few pixels, and most of the training goes into overcoming that.",
        "tanh",
        {"weight_hh": "uniform"},
        lambda: SGD(0.04),
        1.0,
    ),
    Recipe(
        "orthogonal",
        "tanh, W_hh orthogonal",
        "SGD 0.04, clipped at 1",
        "Cured: the same network, except that W_hh keeps the length of a vector (Saxe et al. 2014).",
        "tanh",
        {"weight_hh": "orthogonal"},
        lambda: SGD(0.04),
        1.0,
    ),
    Recipe(
        "exploding",
        "relu, W_hh = 1.5 I",
        "Adam 0.001, not clipped",
        "1.5^63 is 1e11: a tiny change of an early state changes the output completely, and updates are noise.",
        "relu",
        _scaled_identity(1.5),
        lambda: Adam(1e-3),
        math.inf,
    ),
    Recipe(
        "overflow",
        "relu, W_hh = 1.5 I",
        "SGD 0.04, not clipped",
        "The same network: a step of SGD is proportional to the gradient, and the weights overflow.",
        "relu",
        _scaled_identity(1.5),
        lambda: SGD(0.04),
        math.inf,
    ),
    Recipe(
        "identity",
        "relu, W_hh = I (IRNN)",
        "Adam 0.001, clipped at 1",
        "Cured: gain 1 (Le et al. 2015) and clipped gradients (Pascanu et al. 2013).",
        "relu",
        _scaled_identity(1.0),
        lambda: Adam(1e-3),
        1.0,
    ),
)
