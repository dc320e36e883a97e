"""One layer in one direction against the formula, row by row, and against central differences."""

from dataclasses import fields, replace

import numpy as np
import pytest
from array_api_compat import numpy as xp

import rnncore
from rnncore.network import layer
from rnncore.network.engine import Engine, make_engine
from rnncore.network.layer import Layer
from rnncore.network.ragged import Ragged
from rnncore.network.step import Weights
from tests.tools.differences import assert_close, directional, gradients
from tests.tools.drawn import normal

STEPS, BATCH, INPUT, WIDTH = 5, 3, 2, 2
LENGTHS = (3, 0, 5)
EPS = np.finfo("f8").eps
both_ways = pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "reverse"])
full_or_ragged = pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
biased = pytest.mark.parametrize("bias", [True, False], ids=["bias", ""])
from_h_and_from_z = pytest.mark.parametrize("clip", [None, 0.7], ids=["", "clip"])  # how f' is found
# An engine puts its results together in place, in windows of 1 step, of 2, and of all; or by new arrays.
ENGINES = {
    "windows of 1": {"writable": True, "window_numbers": BATCH * WIDTH},
    "windows of 2": {"writable": True, "window_numbers": 2 * BATCH * WIDTH + 1},
    "less than 1": {"writable": True, "window_numbers": 1},
    "whole": {"writable": True},
    "new arrays": {"writable": False, "window_numbers": 1},
}
every_engine = pytest.mark.parametrize("abilities", ENGINES.values(), ids=ENGINES)


def engine(**abilities):
    plugin = rnncore.get_backend("numpy")
    made = make_engine(plugin, device=plugin.devices()[0], dtype=xp.float64, kernel="auto")
    return replace(made, abilities=replace(made.abilities, **abilities))


def made(reverse, lengths=None, clip=None, boundaries=(), *, bias=True, batch=BATCH, **abilities):
    """A layer, its x and its h0."""
    w_ih, w_hh, b, x, h0 = normal(0, (WIDTH, INPUT), (WIDTH, WIDTH), WIDTH, (STEPS, batch, INPUT), (batch, WIDTH))
    run_by = engine(**abilities)
    ragged = None if lengths is None else Ragged(lengths, STEPS, run_by.backend, run_by.device, xp)
    if ragged is not None:
        x = np.asarray(ragged.masked(x))
    f = rnncore.get_nonlinearity("tanh", clip=clip)
    return Layer(Weights(w_ih, w_hh, b if bias else None), reverse, ragged, f, run_by, boundaries), x, h0


def by_steps(w, x, h0, f, reverse, lengths=None, stops=()):
    """(h, z, last) by the formula, each row by itself; from each time in `stops` on, from a state that is not followed."""
    h, z, last = np.zeros((*x.shape[:2], WIDTH)), np.zeros((*x.shape[:2], WIDTH)), h0.copy()
    for b, n in enumerate(lengths or [len(x)] * x.shape[1]):
        for t in reversed(range(n)) if reverse else range(n):
            state = stops.get(t, last)[b] if stops else last[b]
            z[t, b] = w.weight_ih @ x[t, b] + w.weight_hh @ state + (0 if w.bias is None else w.bias)
            h[t, b] = last[b] = f(z[t, b], xp=xp)
    return h, z, last


@both_ways
@full_or_ragged
@biased
@every_engine
def test_states_pre_activations_and_the_last_state_are_the_formula(reverse, lengths, bias, abilities):
    one, x, h0 = made(reverse, lengths, bias=bias, **abilities)
    want_h, want_z, want_last = by_steps(one.weights, x, h0, one.nonlinearity, reverse, lengths)
    h = layer.forward(one, x, h0)
    # Sums of a few products over a few steps, whose order a library chooses.
    close = {"rtol": 0, "atol": 64 * EPS}
    np.testing.assert_allclose(h, want_h, **close)
    np.testing.assert_allclose(layer.last_state(one, h, h0), want_last, **close)
    np.testing.assert_allclose(layer.pre_activation(one, x, h0, h), want_z, **close)


@both_ways
@full_or_ragged
@every_engine
@from_h_and_from_z
@pytest.mark.parametrize("which", ["both", "d_h", "d_last"])
def test_cotangents_against_central_differences(reverse, lengths, abilities, clip, which):
    one, x, h0 = made(reverse, lengths, clip, **abilities)
    d_h, d_last = normal(1, (STEPS, BATCH, WIDTH), (BATCH, WIDTH))

    def loss(w_ih, w_hh, b, x, h0):
        h, _, last = by_steps(Weights(w_ih, w_hh, b), x, h0, one.nonlinearity, reverse, lengths)
        return float((which != "d_last") * (h * d_h).sum() + (which != "d_h") * (last * d_last).sum())

    h = layer.forward(one, x, h0)
    kept = [a.copy() for a in (d_h, d_last, x, h0, h)]
    got = layer.vjp(one, None if which == "d_last" else d_h, None if which == "d_h" else d_last, x, h0, h)
    for g, w in zip((*got.weights, got.x, got.h0), gradients(loss, [*one.weights, x, h0]), strict=True):
        assert_close(g, w)
    for a, b in zip((d_h, d_last, x, h0, h), kept, strict=True):
        np.testing.assert_array_equal(a, b)


@both_ways
@full_or_ragged
@every_engine
@pytest.mark.parametrize("boundaries", [(2,), (1, 4)])
def test_across_a_boundary_goes_no_gradient(reverse, lengths, abilities, boundaries):
    """As if the state at each boundary were a constant."""
    one, x, h0 = made(reverse, lengths, boundaries=boundaries, **abilities)
    d_h, d_last = normal(1, (STEPS, BATCH, WIDTH), (BATCH, WIDTH))
    states, *_ = by_steps(one.weights, x, h0, one.nonlinearity, reverse, lengths)
    # A row that has not begun in reverse has its own first state there, and no gradient is cut from it.
    stops = {t - 1: states[t] for t in boundaries} if reverse else {t: states[t - 1] for t in boundaries}

    def loss(w_ih, w_hh, b, x, h0):
        inside = {t: s.copy() for t, s in stops.items()}
        for t in inside:
            for row, n in enumerate(lengths or [STEPS] * BATCH):
                if reverse and t == n - 1:
                    inside[t][row] = h0[row]
        h, _, last = by_steps(Weights(w_ih, w_hh, b), x, h0, one.nonlinearity, reverse, lengths, inside)
        return float((h * d_h).sum() + (last * d_last).sum())

    got = layer.vjp(one, d_h, d_last, x, h0, layer.forward(one, x, h0))
    for g, w in zip((*got.weights, got.x, got.h0), gradients(loss, [*one.weights, x, h0]), strict=True):
        assert_close(g, w)


@both_ways
@full_or_ragged
@every_engine
@from_h_and_from_z
@pytest.mark.parametrize("missing", ["nothing", "weights", "x", "h0"])
def test_tangents_against_central_differences(reverse, lengths, abilities, clip, missing):
    one, x, h0 = made(reverse, lengths, clip, **abilities)
    dots = normal(2, *(a.shape for a in (*one.weights, x, h0)))
    h = layer.forward(one, x, h0)
    w_dot, x_dot, h0_dot = Weights(*dots[:3]), dots[3], dots[4]
    if missing == "weights":
        w_dot, dots[:3] = None, [np.zeros_like(d) for d in dots[:3]]
    elif missing == "x":
        x_dot, dots[3] = None, np.zeros_like(x)
    elif missing == "h0":
        h0_dot, dots[4] = None, np.zeros_like(h0)
    got = layer.jvp(one, w_dot, x_dot, h0_dot, x, h0, h)
    run = lambda *a: by_steps(Weights(*a[:3]), *a[3:], one.nonlinearity, reverse, lengths)[0]  # noqa: E731
    assert_close(got, directional(run, [*one.weights, x, h0], dots))


@both_ways
def test_without_a_bias_there_is_no_cotangent_of_one(reverse):
    one, x, h0 = made(reverse, bias=False, window_numbers=BATCH * WIDTH)
    h = layer.forward(one, x, h0)
    got = layer.vjp(one, h, h0, x, h0, h)
    assert got.weights.bias is None
    zero = made(reverse, window_numbers=BATCH * WIDTH)[0]
    zero = zero._replace(weights=one.weights._replace(bias=np.zeros(WIDTH)))
    want = layer.vjp(zero, h, h0, x, h0, h)
    np.testing.assert_array_equal(got.weights.weight_hh, want.weights.weight_hh)


class Spy(Engine):
    """An engine that notes, for each scan, whether it may overwrite what it is given."""

    def nonlinear(self, *args, overwrite=False, **options):
        self.noted.append(("nonlinear", overwrite))
        return super().nonlinear(*args, overwrite=overwrite, **options)

    def linear(self, *args, overwrite=False, **options):
        self.noted.append(("linear", overwrite))
        return super().linear(*args, overwrite=overwrite, **options)


@both_ways
def test_scans_overwrite_the_layers_own_arrays_but_none_that_a_custom_function_may_keep(reverse):
    """So the pre-activations and the states are one array, and the slope and delta are one."""
    plain = engine()
    spy = Spy(*(getattr(plain, f.name) for f in fields(plain) if f.init))
    object.__setattr__(spy, "noted", [])
    one, x, h0 = made(reverse)
    kept = np.full((STEPS, BATCH, WIDTH), 0.5)
    halves = rnncore.custom_nonlinearity(lambda z: z / 2, lambda z: kept, name="halves")
    for f, mine in ((one.nonlinearity, True), (halves, False)):
        spy.noted.clear()
        run_by_spy = one._replace(engine=spy, nonlinearity=f)
        h = layer.forward(run_by_spy, x, h0)
        layer.vjp(run_by_spy, h, None, x, h0, h)
        layer.jvp(run_by_spy, None, x, None, x, h0, h)
        assert spy.noted == [("nonlinear", True), ("linear", mine), ("linear", mine)]
    np.testing.assert_array_equal(kept, 0.5)


@both_ways
def test_an_empty_batch_with_lengths_has_results_without_rows(reverse):
    one, x, h0 = made(reverse, (), batch=0)
    h = layer.forward(one, x, h0)
    got = layer.vjp(one, h, h0, x, h0, h)
    assert h.shape == (STEPS, 0, WIDTH) and got.x.shape == x.shape and got.h0.shape == h0.shape
    assert not any(w.any() for w in got.weights)


@both_ways
def test_products_of_one_step_are_told_from_those_of_all(reverse):
    """A backend may run a small product on fewer threads."""
    told = []
    one, x, h0 = made(reverse, product=lambda a, b, whole: (told.append((a.shape, whole)), a @ b)[1])
    h = layer.forward(one, x, h0)
    told.clear()
    layer.vjp(one, h, None, x, h0, h)
    rows = STEPS * BATCH
    assert sorted(told) == sorted(
        [
            ((WIDTH, BATCH), False),  # dW_hh's share of h0
            ((WIDTH, rows - BATCH), True),  # and of the other states
            ((WIDTH, rows), True),  # dW_ih
            ((rows, WIDTH), True),  # dx
            ((BATCH, WIDTH), False),  # dh0
        ]
    )
