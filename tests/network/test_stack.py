"""The network around the scans: lengths, checkpointing, truncation, streaming, dropout, forward mode, traces."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import rnncore
from rnncore.nonlinearity.nonlinearity import NONLINEARITIES
from tests.tools.differences import assert_close, directional, gradients

STEPS, BATCH, INPUT = 7, 4, 3
LENGTHS = [4, 0, 7, 1]
backends = pytest.mark.parametrize("backend", ["numpy", "torch"])
stacks = pytest.mark.parametrize(
    ("layers", "bidirectional"), list(itertools.product((1, 2), (False, True))), ids=["1", "1bi", "2", "2bi"]
)


class Problem:
    """A network in float64 with everything a call and a pullback need, as arrays of its backend."""

    def __init__(self, backend="numpy", layers=1, bidirectional=False, hidden=5, seed=0, **options):
        rng = np.random.default_rng(seed)
        self.rnn = rnncore.RNN(
            INPUT, hidden, layers, bidirectional=bidirectional, backend=backend, dtype="float64", rng=1, **options
        )
        self.plugin = rnncore.get_backend(backend)
        spec = self.rnn.spec
        directions = spec.num_directions
        self.x = self.give(rng.standard_normal((STEPS, BATCH, INPUT)))
        states = [rng.standard_normal((directions, BATCH, h)) for h in spec.hidden_sizes]
        tangents = [rng.standard_normal((directions, BATCH, h)) for h in spec.hidden_sizes]
        self.h0, self.d_h_n = self.state(states), self.state(tangents)
        self.d_output = self.give(rng.standard_normal((STEPS, BATCH, directions * spec.hidden_sizes[-1])))

    def give(self, a):
        return self.plugin.asarray(np.asarray(a, dtype="f8"), dtype=self.rnn.dtype, device=self.rnn.device)

    def state(self, rows):
        return self.give(np.concatenate(rows)) if self.rnn.spec.uniform else [self.give(r) for r in rows]

    def host(self, a):
        if isinstance(a, (tuple, list)):
            return np.concatenate([np.array(self.plugin.to_numpy(r)).reshape(-1) for r in a])
        return np.array(self.plugin.to_numpy(a))

    def run(self, **options):
        """Everything a call and its pullback return, by name, on the host."""
        output, h_n, pullback = self.rnn.vjp(self.x, self.h0, **options)
        grads = pullback(self.d_output, self.d_h_n)
        found = {"output": output, "h_n": h_n, "x": grads.x, "h0": grads.h0, **grads.params}
        return {k: self.host(v) for k, v in found.items()}


def assert_same(a, b, eps=64):
    assert a.keys() == b.keys()
    for k in a:
        scale = max(np.abs(b[k]).max(initial=0), 1e-30)
        np.testing.assert_allclose(a[k], b[k], rtol=0, atol=eps * np.finfo("f8").eps * scale, err_msg=k)


# --- gradients against central differences ----------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@stacks
def test_every_gradient_against_central_differences(layers, bidirectional, lengths):
    p = Problem(layers=layers, bidirectional=bidirectional, hidden=2)
    names = list(p.rnn.params)

    def loss(x, h0, *values):
        output, h_n = rnncore.functional.rnn(x, dict(zip(names, values, strict=True)), h0, lengths=lengths)
        return float((output * p.d_output).sum() + (h_n * p.d_h_n).sum())

    got = p.run(lengths=lengths)
    want = gradients(loss, [p.x, p.h0, *p.rnn.state_dict().values()])
    for key, w in zip(["x", "h0", *names], want, strict=True):
        assert_close(got[key], w)


@pytest.mark.parametrize("clip", [None, 0.6], ids=["", "clip"])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@pytest.mark.parametrize("name", [n for n in NONLINEARITIES if n not in ("tanh",)])
def test_every_nonlinearity_in_a_bidirectional_stack(name, lengths, clip):
    p = Problem(layers=2, bidirectional=True, hidden=[2, 3], nonlinearity=name, clip=clip)
    rng = np.random.default_rng(5)
    tangents = {k: rng.standard_normal(v.shape) for k, v in p.rnn.params.items()}
    x_dot, h_dot = rng.standard_normal(p.x.shape), [rng.standard_normal(h.shape) for h in p.h0]

    def loss(e):
        params = {k: v + e * tangents[k] for k, v in p.rnn.params.items()}
        h0 = [h + e * t for h, t in zip(p.h0, h_dot, strict=True)]
        output, h_n = rnncore.functional.rnn(p.x + e * x_dot, params, h0, nonlinearity=name, clip=clip, lengths=lengths)
        return (output * p.d_output).sum() + sum((h * d).sum() for h, d in zip(h_n, p.d_h_n, strict=True))

    grads = p.rnn.vjp(p.x, p.h0, lengths=lengths)[2](p.d_output, p.d_h_n)
    got = (grads.x * x_dot).sum() + sum((g * t).sum() for g, t in zip(grads.h0, h_dot, strict=True))
    got += sum((grads.params[k] * tangents[k]).sum() for k in tangents)
    assert_close(got, directional(lambda e: loss(float(e)), [np.zeros(())], [np.ones(())]))


@backends
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@pytest.mark.parametrize("name", ["tanh", "softplus"])
@stacks
def test_forward_mode_is_the_adjoint_of_reverse_mode(layers, bidirectional, name, lengths, backend):
    """<d, J t> = <J^T d, t>, to rounding."""
    p = Problem(backend, layers, bidirectional, nonlinearity=name)
    rng = np.random.default_rng(3)
    t = {k: rng.standard_normal(p.host(v).shape) for k, v in {"x": p.x, "h0": p.h0, **p.rnn.params}.items()}
    *_, tangents = p.rnn.jvp(
        p.x,
        p.h0,
        lengths=lengths,
        x_dot=p.give(t["x"]),
        h0_dot=p.give(t["h0"]),
        params_dot={k: p.give(t[k]) for k in p.rnn.params},
    )
    left = (p.host(tangents.output) * p.host(p.d_output)).sum() + (p.host(tangents.h_n) * p.host(p.d_h_n)).sum()
    found = p.run(lengths=lengths)
    terms = [(found[k] * t[k]).sum() for k in t]
    assert left == pytest.approx(sum(terms), rel=1e-12, abs=1e-12 * sum(map(abs, terms)))


def test_forward_mode_with_some_tangents_missing_takes_them_as_zero():
    p = Problem(layers=2, bidirectional=True)
    some = {"weight_hh_l1": np.ones((5, 5))}
    full = {k: some.get(k, np.zeros_like(v)) for k, v in p.rnn.params.items()}
    a = p.rnn.jvp(p.x, p.h0, params_dot=some)[2]
    b = p.rnn.jvp(p.x, p.h0, params_dot=full, x_dot=np.zeros_like(p.x), h0_dot=np.zeros_like(p.h0))[2]
    np.testing.assert_array_equal(a.output, b.output)
    np.testing.assert_array_equal(a.h_n, b.h_n)


# --- lengths ----------------------------------------------------------------------------------------------------------


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
            np.testing.assert_allclose(got, p.host(value), rtol=1e-13, atol=1e-14, err_msg=k)
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
        np.testing.assert_allclose(g, plugin.to_numpy(want.params[k]), rtol=1e-5)
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


# --- checkpointing, truncation, streaming -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "batch", "widths", "bidirectional", "every"),
    [
        (4096, 64, [256], False, 64),  # the root of the steps
        (4097, 64, [256], False, 65),
        (4096, 16, [256], False, 128),  # 2**19 states
        (4096, 16, [128, 64], False, 2**19 // (16 * 192)),
        (4096, 16, [128], True, 128),
        (10, 2, [3], False, 2**19 // 6),
        (10, 0, [3], False, 2**19),
    ],
)
def test_checkpoint_true_is_the_root_of_the_steps_but_no_small_window(steps, batch, widths, bidirectional, every):
    rnn = rnncore.RNN(3, widths, num_layers=len(widths), bidirectional=bidirectional, backend="numpy")
    shape = rnncore.network.layout.layout_of(rnn.spec, rnn.network.engine, np.zeros((steps, batch, 3)))
    assert rnncore.network.calls._checkpoint_steps(True, shape) == every
    assert rnncore.network.calls._checkpoint_steps(5, shape) == 5
    assert rnncore.network.calls._checkpoint_steps(False, shape) is None


@backends
@pytest.mark.parametrize("truncate", [None, 1, 2, 3, 100])
@pytest.mark.parametrize("checkpoint", [True, 1, 2, 3, 100])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@stacks
def test_checkpointing_changes_no_number(layers, bidirectional, lengths, checkpoint, truncate, backend):
    p = Problem(backend, layers, bidirectional)
    want = p.run(lengths=lengths, truncate=truncate)
    assert_same(p.run(lengths=lengths, truncate=truncate, checkpoint=checkpoint), want)


def test_checkpointing_with_dropout_uses_the_same_masks():
    p = Problem(layers=3, dropout=0.5)
    a = p.run(training=True, rng=5)
    assert_same(p.run(training=True, rng=5, checkpoint=2), a)
    assert not np.array_equal(p.run(training=True, rng=6)["output"], a["output"])


@pytest.mark.parametrize("k", [1, 2, 3, STEPS, 100])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
def test_truncation_is_feeding_pieces_with_detached_states(k, lengths):
    p = Problem(layers=2)
    found = p.run(truncate=k, lengths=lengths)
    state, pullbacks = p.h0, []
    for a in range(0, STEPS, k):
        n = None if lengths is None else [min(max(m - a, 0), min(k, STEPS - a)) for m in lengths]
        _, state, pullback = p.rnn.vjp(p.x[a : a + k], state, lengths=n)
        pullbacks.append((a, pullback))
    total = dict.fromkeys(p.rnn.params, 0.0)
    for a, pullback in pullbacks:
        # h_n of the whole belongs to the piece in which a sequence ends.
        ends = np.full(BATCH, STEPS) if lengths is None else np.asarray(lengths)
        here = ((ends > a) | (a == 0)) & (ends <= a + k)
        grads = pullback(p.d_output[a : a + k], np.where(here[None, :, None], p.d_h_n, 0))
        np.testing.assert_allclose(found["x"][a : a + k], grads.x, rtol=1e-13, atol=1e-14)
        total = {name: total[name] + g for name, g in grads.params.items()}
        if a == 0:
            first = grads.h0
    for name, g in total.items():
        np.testing.assert_allclose(found[name], g, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(found["h0"], first, rtol=1e-13, atol=1e-14)


def test_truncation_changes_the_gradient():
    p = Problem()
    assert not np.allclose(p.run(truncate=2)["weight_hh_l0"], p.run()["weight_hh_l0"])


@backends
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("pieces", [[1] * STEPS, [3, 4], [6, 1]])
def test_streaming_in_pieces_gives_the_same_numbers(pieces, layers, backend):
    p = Problem(backend, layers)
    output, h_n = p.rnn(p.x, p.h0)
    state, start, parts = p.h0, 0, []
    for n in pieces:
        piece, state = p.rnn(p.x[start : start + n], state)
        parts.append(p.host(piece))
        start += n
    np.testing.assert_allclose(np.concatenate(parts), p.host(output), rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(p.host(state), p.host(h_n), rtol=1e-14, atol=1e-15)


# --- dropout ----------------------------------------------------------------------------------------------------------


@backends
def test_dropout_is_between_layers_in_training_only(backend):
    p = Problem(backend, layers=2, dropout=0.5)
    plain = p.host(p.rnn(p.x, p.h0)[0])
    dropped = p.rnn.vjp(p.x, p.h0, training=True, rng=0)
    assert not np.array_equal(p.host(dropped[0]), plain)
    np.testing.assert_array_equal(p.host(p.rnn(p.x, p.h0, training=True, rng=0)[0]), p.host(dropped[0]))
    bottom = p.host(p.rnn.trace(p.x, p.h0, training=True, rng=0).h[0])
    np.testing.assert_array_equal(bottom, p.host(p.rnn.trace(p.x, p.h0).h[0]))


def test_dropout_of_everything_gives_what_a_zero_input_gives_and_no_nan():
    p = Problem(layers=2, dropout=1.0)
    assert all(np.isfinite(v).all() for v in p.run(training=True, rng=0).values())
    grads = p.rnn.vjp(p.x, p.h0, training=True, rng=0)[2](p.d_output)
    assert not grads.x.any() and not grads.params["weight_ih_l1"].any() and grads.params["weight_hh_l1"].any()


def test_dropout_keeps_the_mean_and_the_same_masks_on_every_backend():
    wide = Problem(layers=2, dropout=0.25, hidden=200)
    h = wide.rnn.trace(wide.x, wide.h0, training=True, rng=3)
    masked = rnncore.network.calls._dropout_masks(
        rnncore.network.layout.layout_of(wide.rnn.spec, wide.rnn.network.engine, wide.x), 3
    )[0]
    share = (masked > 0).mean()
    assert share == pytest.approx(0.75, abs=0.03) and set(np.unique(masked)) == {0.0, 1 / 0.75}
    other = Problem("torch", layers=2, dropout=0.25, hidden=200)
    np.testing.assert_allclose(
        other.host(other.rnn(other.x, other.h0, training=True, rng=3)[0]), h.output, rtol=1e-12, atol=1e-13
    )


def test_gradients_through_dropout():
    p = Problem(layers=2, dropout=0.5, hidden=2)
    loss = lambda x: float((p.rnn(x, p.h0, training=True, rng=9)[0] * p.d_output).sum())  # noqa: E731
    _, _, pullback = p.rnn.vjp(p.x, p.h0, training=True, rng=9)
    assert_close(pullback(p.d_output).x, gradients(loss, [p.x])[0])


# --- traces, shapes, purity -------------------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@stacks
def test_a_trace_holds_every_state_and_pre_activation(layers, bidirectional, lengths, backend):
    p = Problem(backend, layers, bidirectional)
    trace = p.rnn.trace(p.x, p.h0, lengths=lengths)
    directions = 2 if bidirectional else 1
    output, h_n = p.rnn(p.x, p.h0, lengths=lengths)
    np.testing.assert_array_equal(p.host(trace.output), p.host(output))
    np.testing.assert_array_equal(p.host(trace.h_n), p.host(h_n))
    assert len(trace.h) == len(trace.z) == layers
    valid = np.arange(STEPS)[:, None] < np.asarray(LENGTHS if lengths else [STEPS] * BATCH)
    for h, z in zip(trace.h, trace.z, strict=True):
        assert tuple(h.shape) == tuple(z.shape) == (directions, STEPS, BATCH, 5)
        np.testing.assert_allclose(p.host(h), np.tanh(p.host(z)) * valid[None, :, :, None], rtol=1e-13, atol=1e-14)
    top = p.host(trace.h[-1])
    np.testing.assert_array_equal(np.concatenate(list(top), axis=-1), p.host(output))


def test_the_trace_of_a_clipped_network_shows_z_before_the_clip():
    p = Problem(clip=0.1)
    trace = p.rnn.trace(p.x, p.h0)
    assert np.abs(trace.z[0]).max() > 0.1
    np.testing.assert_allclose(trace.h[0], np.tanh(np.clip(trace.z[0], -0.1, 0.1)), rtol=1e-13, atol=1e-15)


@backends
@pytest.mark.parametrize("lengths", [None, []], ids=["full", "ragged"])
@stacks
def test_an_empty_batch_works(layers, bidirectional, lengths, backend):
    p = Problem(backend, layers, bidirectional)
    p.x, p.h0, p.d_output, p.d_h_n = p.x[:, :0], p.h0[:, :0], p.d_output[:, :0], p.d_h_n[:, :0]
    found = p.run(lengths=lengths)
    assert found["output"].shape == (STEPS, 0, 5 * (2 if bidirectional else 1))
    assert found["h_n"].shape == found["h0"].shape == (layers * (2 if bidirectional else 1), 0, 5)
    assert found["x"].shape == (STEPS, 0, INPUT)
    assert all(not found[k].any() for k in p.rnn.params)
    assert p.rnn.trace(p.x).h[0].shape[2] == 0


@backends
@stacks
def test_nothing_given_is_ever_changed(layers, bidirectional, backend):
    p = Problem(backend, layers, bidirectional)
    keep = lambda: [p.host(a) for a in (p.x, p.h0, p.d_output, p.d_h_n, *p.rnn.params.values())]  # noqa: E731
    before = keep()
    for options in ({}, {"lengths": LENGTHS}, {"checkpoint": 2}, {"truncate": 2}):
        first = p.run(**options)
        assert_same(p.run(**options), first, eps=0)
    p.rnn.trace(p.x, p.h0)
    p.rnn.jvp(p.x, p.h0, x_dot=p.x, h0_dot=p.h0)
    for a, b in zip(keep(), before, strict=True):
        np.testing.assert_array_equal(a, b)


@backends
@stacks
def test_no_two_results_share_memory_with_anything(layers, bidirectional, backend):
    p = Problem(backend, layers, bidirectional, hidden=[5, 4][:layers])
    for lengths in (None, LENGTHS):
        output, h_n, pullback = p.rnn.vjp(p.x, p.h0, lengths=lengths)
        grads = pullback(p.d_output, p.d_h_n)
        listed = lambda a: list(a) if isinstance(a, (tuple, list)) else [a]  # noqa: E731
        given = [p.x, *listed(p.h0), p.d_output, *listed(p.d_h_n), *p.rnn.params.values()]
        made = [output, *listed(h_n), grads.x, *listed(grads.h0), *grads.params.values()]
        views = [p.plugin.to_numpy(a) for a in (*made, *given)]
        for i in range(len(made)):
            assert not any(np.shares_memory(views[i], views[k]) for k in range(len(views)) if k != i)


@stacks
def test_read_only_and_strided_inputs(layers, bidirectional):
    p = Problem(layers=layers, bidirectional=bidirectional)
    want = p.run()
    for name in ("x", "h0", "d_output", "d_h_n"):
        a = np.repeat(getattr(p, name), 2, axis=-1)[..., ::2]
        a.flags.writeable = False
        setattr(p, name, a)
    assert_same(p.run(), want)


@backends
def test_the_pullback_may_be_called_again_and_with_nothing(backend):
    p = Problem(backend, layers=2)
    output, h_n, pullback = p.rnn.vjp(p.x, p.h0)
    first, second = pullback(p.d_output, p.d_h_n), pullback(p.d_output, p.d_h_n)
    np.testing.assert_array_equal(p.host(first.x), p.host(second.x))
    nothing = pullback()
    assert not p.host(nothing.x).any() and tuple(nothing.h0.shape) == tuple(h_n.shape)
    a, b = pullback(d_output=p.d_output), pullback(d_h_n=p.d_h_n)
    np.testing.assert_allclose(p.host(a.x) + p.host(b.x), p.host(first.x), rtol=1e-12, atol=1e-13)
    del output


def test_nan_in_one_row_stays_in_its_row():
    p = Problem(layers=2, bidirectional=True)
    clean = p.run()
    p.x[3, 1, 0] = np.nan
    found = p.run()
    others = [0, 2, 3]
    for k in ("output", "x"):
        np.testing.assert_array_equal(found[k][:, others], clean[k][:, others])
    assert np.isnan(found["output"][3:, 1, :5]).all() and np.isnan(found["weight_ih_l0"]).any()


def test_a_learnable_initial_state_has_a_gradient_even_if_none_was_given():
    p = Problem(layers=2, bidirectional=True)
    output, _, pullback = p.rnn.vjp(p.x)
    explicit = p.rnn.vjp(p.x, np.zeros((4, BATCH, 5)))[2](p.d_output)
    np.testing.assert_array_equal(pullback(p.d_output).h0, explicit.h0)
    assert explicit.h0.any() and output.shape == p.d_output.shape


@backends
@pytest.mark.parametrize("kernel", ["reference", "require"])
@stacks
def test_the_kernels_and_the_reference_agree(layers, bidirectional, kernel, backend):
    want = Problem(backend, layers, bidirectional, kernel="reference").run(lengths=LENGTHS)
    assert_same(Problem(backend, layers, bidirectional, kernel=kernel).run(lengths=LENGTHS), want)
