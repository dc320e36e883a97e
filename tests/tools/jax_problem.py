"""A network for JAX, and what its derivatives are compared with."""

import jax
import jax.numpy as jnp
import numpy as np
import rnncore_jax

import rnncore
from rnncore.functional import rnn as frnn
from tests.tools.rounding import PROMISED, agree

STEPS, BATCH, INPUT, HIDDEN = 4, 2, 3, 3
ARGUMENTS = tuple(range(6))
TANH = rnncore.get_nonlinearity("tanh")


def draw(seed, *shapes, size=0.5):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.standard_normal(shape) * size) for shape in shapes)


def problem(seed=0):
    shapes = [(STEPS, BATCH, INPUT), (1, BATCH, HIDDEN), (HIDDEN, INPUT), (HIDDEN, HIDDEN), (HIDDEN,), (HIDDEN,)]
    return draw(seed, *shapes)


NAMES = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


def run(x, h0, *values, **options):
    return frnn(x, dict(zip(NAMES, values, strict=True)), h0, kernel="require", **options)


def scalar(*values):
    output, h_n = run(*values)
    return jnp.sum(output**2) + jnp.sum(h_n**3)


def assert_trees_close(got, want, multiple=PROMISED):
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        agree(g, w, multiple)


def model_and_input(**options):
    model = rnncore_jax.RNN(INPUT, HIDDEN, 2, bidirectional=True, dropout=0.5, dtype="float64", rng=0, **options)
    return model, draw(2, (STEPS, BATCH, INPUT))[0]


def inner_jaxprs(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for part in value if isinstance(value, (tuple, list)) else [value]:
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    yield from inner_jaxprs(inner)


class Gpu:
    platform, id = "gpu", 1

    def __str__(self):
        return "cuda:1"


def loss(model, x):
    return jnp.mean(model(x)[0] ** 2)
