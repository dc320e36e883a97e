"""Under the settings of JAX that refuse what happens implicitly: transfers to a device, and broadcasting between ranks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rnncore_jax

from rnncore.functional import rnn_cell
from rnncore.functional import vjp as fvjp
from tests.tools.jax_problem import BATCH, HIDDEN, INPUT, STEPS, assert_trees_close, draw

SETTINGS = {
    "transfers": lambda: jax.transfer_guard("disallow"),
    "ranks": lambda: jax.numpy_rank_promotion("raise"),
}


@pytest.fixture(params=SETTINGS)
def strictly(request):
    return SETTINGS[request.param]


def model_and_arrays(**options):
    model = rnncore_jax.RNN(INPUT, HIDDEN, bidirectional=True, dtype="float64", rng=0, **options)
    shapes = (STEPS, BATCH, INPUT), (2, BATCH, HIDDEN), (STEPS, BATCH, 2 * HIDDEN), (BATCH, INPUT), (BATCH, HIDDEN)
    return model, *draw(1, *shapes)


CALLS = {
    "forward": lambda m, x, h0, d, row, h: m(x, h0),
    "lengths": lambda m, x, h0, d, row, h: m(x, h0, [3, 1]),
    "vjp": lambda m, x, h0, d, row, h: m.vjp(x, h0)[2](d, h0),
    "vjp, lengths": lambda m, x, h0, d, row, h: m.vjp(x, lengths=[3, 1])[2](d, h0),
    "jvp": lambda m, x, h0, d, row, h: m.jvp(x, h0, x_dot=x, h0_dot=h0, params_dot=m.params)[2],
    "jvp, lengths": lambda m, x, h0, d, row, h: m.jvp(x, h0, (0, 2), x_dot=x)[2],
    "trace": lambda m, x, h0, d, row, h: m.trace(x, h0, [3, 1]),
    "functional": lambda m, x, h0, d, row, h: fvjp(x, m.params, h0)[2](d),
    "cells": lambda m, x, h0, d, row, h: (m.cell().vjp(row, h)[1](h), m.cell().jvp(row, x_dot=row)),
    "one step": lambda m, x, h0, d, row, h: rnn_cell(row, h, *m.cell().params.values()),
    "copies": lambda m, x, h0, d, row, h: m.state_dict(),
}


def every_call(*given):
    return {name: call(*given) for name, call in CALLS.items()}


@pytest.mark.parametrize("wrapped", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_every_call_works(wrapped, strictly):
    given = model_and_arrays(clip=0.5)
    with strictly():
        got = wrapped(every_call)(*given)
    assert_trees_close(got, every_call(*given))


@pytest.mark.parametrize("steps", [1, STEPS])
def test_gradients_and_traced_lengths_work_inside_jit(steps, strictly):
    model, x, h0, *_ = model_and_arrays()
    x, lengths = x[:steps], jnp.asarray([steps, 0])

    def loss(params, x, lengths):
        return jnp.sum(model.from_network(model.network.with_params(params))(x, h0, lengths)[0] ** 2)

    step = jax.jit(lambda *a: jax.grad(loss, argnums=(0, 1))(*a))
    with strictly():
        got = step(model.params, x, lengths)
    assert_trees_close(got, step(model.params, x, lengths))


def test_what_jax_itself_transfers_is_still_refused():
    """Only inside the calls of a network are transfers allowed."""
    model, x, *_ = model_and_arrays()
    with jax.transfer_guard("disallow"):
        model(x)
        with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
            x + np.ones(INPUT)
