"""Sequences of several lengths."""

from dataclasses import replace

import numpy as np
import pytest
from array_api_compat import numpy as xp

import rnncore
from rnncore.network.ragged import Ragged, TracedLengths
from tests.tools.problem import BATCH, LENGTHS, STEPS, Problem, assert_same, backends, stacks
from tests.tools.rounding import agree


def test_nan_in_the_state_of_a_sequence_without_steps_reaches_no_weight():
    rnn = rnncore.RNN(3, 4, bidirectional=True, rng=0)
    x, h0 = np.ones((5, 3, 3)), np.zeros((2, 3, 4))
    h0[:, 2] = np.nan
    output, h_n, pullback = rnn.vjp(x, h0, lengths=[5, 2, 0])
    grads = pullback(np.ones_like(output))
    assert all(np.isfinite(g).all() for g in grads.params.values())
    assert np.isnan(h_n[:, 2]).all() and np.isfinite(h_n[:, :2]).all()


@pytest.mark.parametrize("garbage", [np.nan, np.inf])
@backends
@stacks
def test_the_state_of_a_sequence_without_steps_is_never_computed_with(layers, bidirectional, backend, garbage):
    """Nor is its tangent, and NumPy has nothing to warn of."""
    p = Problem(backend, layers, bidirectional, clip=0.5)  # with a clip, slopes come from pre-activations
    empty = LENGTHS.index(0)
    dirty = {}
    for name in ("h0", "d_h_n"):
        dirty[name] = p.host(getattr(p, name))
        dirty[name][:, empty] = garbage
    h0, dot = p.give(dirty["h0"]), p.give(dirty["d_h_n"])
    params_dot = dict(p.rnn.params)
    _, _, clean = p.rnn.jvp(p.x, p.h0, LENGTHS, x_dot=p.x, h0_dot=p.d_h_n, params_dot=params_dot)
    _, _, tangents = p.rnn.jvp(p.x, h0, LENGTHS, x_dot=p.x, h0_dot=dot, params_dot=params_dot)
    np.testing.assert_array_equal(p.host(tangents.output), p.host(clean.output))
    np.testing.assert_array_equal(p.host(tangents.h_n)[:, empty], dirty["d_h_n"][:, empty])
    for a, b in zip(p.rnn.trace(p.x, h0, LENGTHS).z, p.rnn.trace(p.x, p.h0, LENGTHS).z, strict=True):
        np.testing.assert_array_equal(p.host(a), p.host(b))
    clean_params = p.rnn.vjp(p.x, p.h0, LENGTHS)[2](p.d_output, p.d_h_n).params
    for name, g in p.rnn.vjp(p.x, h0, LENGTHS)[2](p.d_output, dot).params.items():
        np.testing.assert_array_equal(p.host(g), p.host(clean_params[name]))


@backends
@stacks
def test_each_sequence_is_as_if_it_were_alone(layers, bidirectional, backend):
    p = Problem(backend, layers, bidirectional)
    found = p.run(lengths=LENGTHS)
    for b, n in enumerate(LENGTHS):
        if n == 0:
            assert not found["output"][:, b].any() and not found["x"][:, b].any()
            np.testing.assert_array_equal(found["h_n"][:, b], p.host(p.h0)[:, b])
            np.testing.assert_array_equal(found["h0"][:, b], p.host(p.d_h_n)[:, b])
            continue
        output, h_n, pullback = p.rnn.vjp(p.x[:n, b : b + 1], p.h0[:, b : b + 1])
        grads = pullback(p.d_output[:n, b : b + 1], p.d_h_n[:, b : b + 1])
        alone = {"output": output, "h_n": h_n, "x": grads.x, "h0": grads.h0}
        time_first = ("output", "x")
        for k, value in alone.items():
            got = found[k][:n, b : b + 1] if k in time_first else found[k][:, b : b + 1]
            agree(got, p.host(value), what=k)
        assert not found["output"][n:, b].any() and not found["x"][n:, b].any()


@backends
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("options", [{}, {"checkpoint": 2}, {"truncate": 2}], ids=["plain", "checkpoint", "truncate"])
@stacks
def test_padding_is_never_read(layers, bidirectional, options, garbage, backend):
    p = Problem(backend, layers, bidirectional, nonlinearity="relu")
    clean = p.run(lengths=LENGTHS, **options)
    padding = np.arange(STEPS)[:, None] >= np.asarray(LENGTHS)
    for name in ("x", "d_output"):
        dirty = p.host(getattr(p, name))
        dirty[padding] = garbage
        setattr(p, name, p.give(dirty))
    found = p.run(lengths=LENGTHS, **options)
    for k in clean:
        np.testing.assert_array_equal(found[k], clean[k], err_msg=k)
    assert (found["x"][padding] == 0).all() and (found["output"][padding] == 0).all()
    trace = p.rnn.trace(p.x, p.h0, lengths=LENGTHS)
    for a in (*trace.h, *trace.z):
        assert (p.host(a)[:, padding] == 0).all()


@backends
def test_a_relu_network_that_would_explode_in_the_padding_does_not(backend):
    """Run on over 2,000 steps of padding it would overflow, with a warning, which the test run makes an error."""
    steps = 2000
    rnn = rnncore.RNN(1, 4, nonlinearity="relu", bidirectional=True, backend=backend, dtype="float32", rng=0)
    plugin = rnncore.get_backend(backend)
    give = lambda a: plugin.asarray(np.asarray(a), dtype=rnn.dtype, device=rnn.device)  # noqa: E731
    rnn.set_params({k: give(2 * np.eye(4)) for k in rnn.params if k.startswith("weight_hh")})
    x = np.ones((steps, 2, 1))
    output, h_n, pullback = rnn.vjp(give(x), lengths=[3, 5])
    grads = pullback(give(np.ones((steps, 2, 8))), give(np.ones((2, 2, 4))))
    short = rnn.vjp(give(x[:5]), lengths=[3, 5])
    want = short[2](give(np.ones((5, 2, 8))), give(np.ones((2, 2, 4))))
    np.testing.assert_array_equal(plugin.to_numpy(h_n), plugin.to_numpy(short[1]))
    for k in want.params:
        g = plugin.to_numpy(grads.params[k])
        assert np.isfinite(g).all()
        agree(g, plugin.to_numpy(want.params[k]))
    assert np.isfinite(plugin.to_numpy(output)).all()


@pytest.mark.parametrize("as_what", [list, tuple, np.asarray, lambda n: np.asarray(n, dtype="i4")])
def test_lengths_may_be_any_sequence_of_integers(as_what):
    p = Problem()
    np.testing.assert_array_equal(p.run(lengths=as_what(LENGTHS))["output"], p.run(lengths=LENGTHS)["output"])


def test_lengths_may_be_a_tensor():
    import torch

    p = Problem("torch")
    np.testing.assert_array_equal(p.run(lengths=torch.tensor(LENGTHS))["output"], p.run(lengths=LENGTHS)["output"])


def test_full_lengths_are_the_same_as_none():
    p = Problem(layers=2, bidirectional=True)
    assert_same(p.run(lengths=[STEPS] * BATCH), p.run(), eps=0)


def test_all_lengths_zero():
    p = Problem(layers=2, bidirectional=True)
    found = p.run(lengths=[0] * BATCH)
    np.testing.assert_array_equal(found["h_n"], p.h0)
    np.testing.assert_array_equal(found["h0"], p.d_h_n)
    assert not any(found[k].any() for k in p.rnn.params)


# --- masks and indices ------------------------------------------------------------------------------------------------


def ragged(lengths=(2, 0, 4, 1, 2), steps=5):
    return Ragged(lengths, steps, rnncore.get_backend("numpy"), "cpu", xp)


# The number at step t of row b is 10 t + b + 1, in two columns.
TABLE = np.repeat(10.0 * np.arange(5)[:, None, None] + np.arange(1.0, 6.0)[None, :, None], 2, axis=2)
OTHER = -TABLE[0]


def rows(*values):
    """(B, 2) with these values in both columns."""
    return np.repeat(np.asarray(values, dtype="f8")[:, None], 2, axis=1)


def test_a_segment_holds_the_rows_that_are_running():
    assert ragged().segments == [(0, 1, 4), (1, 2, 3), (2, 4, 1)]
    assert ragged((5, 5), 5).segments == [(0, 5, 2)]
    assert ragged((0, 0), 5).segments == ragged((), 5).segments == []


def test_rows_are_sorted_the_longest_first_and_put_back():
    lengths = np.asarray(ragged().lengths)
    assert lengths[ragged().longest_first].tolist() == [4, 2, 2, 1, 0]
    assert ragged().longest_first[ragged().original_order].tolist() == [0, 1, 2, 3, 4]
    assert ragged((), 5).longest_first.shape == (0,)


def test_a_piece_has_what_is_left_of_each_length():
    piece = ragged().piece(1, 3)
    assert piece == Ragged((1, 0, 2, 0, 1), 2, piece.backend, "cpu", xp)
    assert ragged().piece(0, 5) == ragged()


def test_a_mask_is_of_the_steps_before_each_end():
    want = TABLE.copy()
    for b, n in enumerate(ragged().lengths):
        want[n:, b] = 0.0
    np.testing.assert_array_equal(ragged().masked(TABLE), want)
    dirty = np.where(want == 0, np.nan, TABLE)
    np.testing.assert_array_equal(ragged().masked(dirty), want)


def test_what_stands_at_each_end():
    np.testing.assert_array_equal(ragged().at_ends(TABLE), rows(11, 0, 33, 4, 15))
    np.testing.assert_array_equal(ragged().last_or(TABLE, OTHER), rows(11, -2, 33, 4, 15))
    np.testing.assert_array_equal(ragged().nonempty_or(TABLE[0], OTHER), rows(1, -2, 3, 4, 5))


def test_what_is_put_at_each_end_changes_nothing_else():
    put, added = TABLE.copy(), TABLE.copy()
    for b, n in enumerate(ragged().lengths):
        if n:
            put[n - 1, b] = OTHER[b]
            added[n - 1, b] += OTHER[b]
    np.testing.assert_array_equal(ragged().put_at_ends(TABLE, OTHER), put)
    np.testing.assert_array_equal(ragged().add_at_ends(TABLE, OTHER), added)


def test_no_index_is_negative():
    """The standard does not say what an index below 0 takes."""
    assert ragged()._flat_ends.tolist() == [5, 1, 17, 3, 9]


def test_indices_and_masks_are_made_in_their_dtype_on_the_device():
    """Whatever a plugin's `asarray` takes for granted without them."""
    asked = []

    class Noting:
        @staticmethod
        def asarray(x, *, dtype, device):
            asked.append((dtype, device))
            return np.asarray(x, dtype=dtype)

    ragged = Ragged((3, 1, 0), 3, Noting, "cpu", xp)
    assert ragged.longest_first.dtype == ragged.original_order.dtype == np.int64
    x = np.ones((3, 3, 1))
    np.testing.assert_array_equal(ragged.masked(x)[:, :, 0].sum(axis=0), [3, 1, 0])
    assert asked == [(xp.int64, "cpu")] * 2 + [(xp.bool, "cpu")]


# --- lengths without numbers ------------------------------------------------------------------------------------------


def traced(lengths=(2, 0, 4, 1, 2), steps=5):
    """The same masks from an array, whose numbers nothing here reads."""
    return TracedLengths(np.asarray(lengths), steps, xp)


def test_an_array_of_lengths_masks_and_finds_the_ends_like_numbers():
    for call in (
        lambda r: r.masked(TABLE),
        lambda r: r.at_ends(TABLE),
        lambda r: r.last_or(TABLE, OTHER),
        lambda r: r.nonempty_or(TABLE[0], OTHER),
        lambda r: r.add_at_ends(TABLE, OTHER),
        lambda r: r.put_at_ends(TABLE, OTHER),
        lambda r: r.piece(1, 3).masked(TABLE[1:3]),
        lambda r: r.piece(1, 3).at_ends(TABLE[1:3]),
    ):
        np.testing.assert_array_equal(call(traced()), call(ragged()))
    assert traced()._flat_ends.tolist() == ragged()._flat_ends.tolist()


def test_the_factors_keep_the_state_in_the_padding_and_read_nothing_there():
    a, g, i = traced((1, 0), 2).carry(np.ones((2, 2, 3), "f4"))
    np.testing.assert_array_equal(a[..., 0], [[0, 1], [1, 1]])
    np.testing.assert_array_equal(g[..., 0], [[1, 0], [0, 0]])
    assert i is g and a.dtype == g.dtype == np.float32


@pytest.mark.parametrize("backend", ["numpy", "torch", "strict"])
@stacks
def test_a_backend_that_cannot_read_lengths_runs_over_all_steps(layers, bidirectional, backend, monkeypatch):
    """With the same results, where padding is NaN and the state of a row without steps too."""
    p = Problem(backend, layers, bidirectional)
    want = p.run(lengths=LENGTHS)
    padding = np.arange(STEPS)[:, None] >= np.asarray(LENGTHS)
    for name in ("x", "d_output"):
        dirty = p.host(getattr(p, name))
        dirty[padding] = np.nan
        setattr(p, name, p.give(dirty))
    engine = p.rnn.network.engine
    unread = replace(engine, abilities=replace(engine.abilities, readable=lambda x: False))
    p.rnn = type(p.rnn).from_network(replace(p.rnn.network, engine=unread))
    lengths = p.plugin.asarray(np.asarray(LENGTHS), dtype=engine.xp.int32, device=p.rnn.device)
    assert_same(p.run(lengths=lengths), want)
