"""A few of the cases that ``python -m tests.fuzz calls`` runs by the thousand, and faults that it finds."""

import re

import numpy as np
import pytest

import rnncore
from rnncore.network import layer, network, step
from tests.fuzz import calls, drawing, reference

# What another backend runs: enough for each call, and few enough for their total.
OTHERS = 12
# A vjp and a jvp of one layer: JAX compiles every shape anew, which takes seconds for each layer.
FEW_ON_JAX = (154, 155)
USABLE = [b.name for b in rnncore.backends() if b.usable]


@pytest.mark.parametrize("backend", ["numba", "torch", "mlx", "strict", "jax"])
def test_a_dozen_cases_on_every_other_backend(backend):
    if backend not in USABLE:
        pytest.skip(f"{backend} cannot be used here")
    sweep(backend, FEW_ON_JAX if backend == "jax" else range(100, 100 + OTHERS))


def test_sixty_cases_on_numpy():
    tally = sweep("numpy", range(60))
    assert {mode for mode, _ in tally.counts} == set(calls.ASK)


def test_cases_with_mpmath_as_the_reference(monkeypatch):
    """As where longdouble is no wider than float64."""
    monkeypatch.setattr(reference, "WIDE", reference.MP)
    sweep("numpy", [2, 5, 6, 8])


def sweep(backend, numbers):
    said = []
    tally = calls.sweep(backend, numbers, 0, said.append)
    assert not tally.failures, "\n".join(said)
    return tally


def lost_bias(monkeypatch):
    weights = network.Network.weights

    def without(self, params=None):
        return [[step.Weights(w.weight_ih, w.weight_hh, None) for w in row] for row in weights(self, params)]

    monkeypatch.setattr(network.Network, "weights", without)


def wrong_sign_of_h0_in_reverse(monkeypatch):
    right = layer.vjp

    def wrong(one, *given):
        found = right(one, *given)
        return found._replace(h0=-found.h0) if one.reverse else found

    monkeypatch.setattr(layer, "vjp", wrong)


def reads_the_padding(monkeypatch):
    monkeypatch.setattr(rnncore.network.ragged.Ragged, "masked", lambda self, x: x)


def off_by_64_eps(monkeypatch):
    """The gradient of x, by 64 eps: what the bound leaves room for is less."""
    right = layer.vjp

    def wrong(one, *given):
        found = right(one, *given)
        return found._replace(x=found.x * (1 + 64 * float(np.finfo(found.x.dtype).eps)))

    monkeypatch.setattr(layer, "vjp", wrong)


@pytest.mark.parametrize("plant", [lost_bias, wrong_sign_of_h0_in_reverse, reads_the_padding, off_by_64_eps])
def test_a_planted_fault_is_found_and_can_be_run_again(plant, monkeypatch):
    plant(monkeypatch)
    said = []
    tally = calls.sweep("numpy", range(60), 0, said.append)
    assert tally.failures
    head, _, program = said[0].partition("\n")
    where, _, message = head.split(": ", 2)
    assert where == f"--- numpy, case {tally.failures[0]}"
    with pytest.raises(Exception, match=re.escape(message)):
        exec(program, {})


def test_a_case_is_the_same_wherever_it_is_drawn():
    a, b = (drawing.draw(17, 3) for _ in range(2))
    assert repr(a) == repr(b) and repr(a) != repr(drawing.draw(18, 3))
    for x, y in zip(drawing.numbers(a).params.values(), drawing.numbers(b).params.values(), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("dtype", drawing.EPS)
def test_numbers_are_ones_that_the_dtype_holds(dtype):
    a = drawing.rounded(np.random.default_rng(0).standard_normal(1000), dtype)
    mantissa, _ = np.frexp(a)
    scaled = mantissa * 2 / drawing.EPS[dtype]
    np.testing.assert_array_equal(scaled, np.round(scaled))
