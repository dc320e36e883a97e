"""Forward, vjp, jvp and trace: dropout, checkpoints, learnable states, and arrays changed behind a pullback."""

import numpy as np
import pytest
import torch

import rnncore
from rnncore.errors import ArgumentTypeError, ArgumentValueError, RnncoreError
from tests.tools.differences import assert_close, gradients
from tests.tools.problem import BATCH, LENGTHS, STEPS, Problem, assert_same, backends, stacks
from tests.tools.rounding import agree


def test_numpys_output_cannot_be_changed_behind_the_pullback():
    rnn = rnncore.RNN(3, 4)
    output, _, _ = rnn.vjp(np.ones((5, 2, 3)))
    with pytest.raises(ValueError, match="read-only"):
        output -= 1
    called, _ = rnn(np.ones((5, 2, 3)))
    called -= 1  # a plain call's output is the caller's own


@pytest.mark.parametrize("which", ["x", "output", "weight_hh_l0"])
def test_a_tensor_changed_in_place_is_noticed_by_the_pullback(which):
    rnn = rnncore.RNN(3, 4, backend="torch")
    x = torch.ones(5, 2, 3)
    output, _, pullback = rnn.vjp(x)
    {"x": x, "output": output, **rnn.params}[which].mul_(2)
    with pytest.raises(ArgumentValueError, match=f"{which}: expected the array as it was in vjp"):
        pullback(torch.ones_like(output))


def test_under_autocast_gradients_have_the_models_dtype():
    rnn = rnncore.RNN(3, 4, backend="torch")
    with torch.autocast("cpu", torch.bfloat16):
        output, _, pullback = rnn.vjp(torch.ones(5, 2, 3))
        grads = pullback(torch.ones_like(output))
    assert {g.dtype for g in (*grads.params.values(), grads.x, grads.h0)} == {torch.float32}


def test_no_warning_where_the_input_requires_grad():
    rnn = rnncore.RNN(3, 4, backend="torch")
    x = torch.ones(5, 2, 3, requires_grad=True)
    for checkpoint in (False, 2):
        output, _, pullback = rnn.vjp(x, checkpoint=checkpoint)
        assert pullback(torch.ones_like(output)).params["bias_hh_l0"].requires_grad


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
    agree(other.host(other.rnn(other.x, other.h0, training=True, rng=3)[0]), h.output)


def test_gradients_through_dropout():
    p = Problem(layers=2, dropout=0.5, hidden=2)
    loss = lambda x: float((p.rnn(x, p.h0, training=True, rng=9)[0] * p.d_output).sum())  # noqa: E731
    _, _, pullback = p.rnn.vjp(p.x, p.h0, training=True, rng=9)
    assert_close(pullback(p.d_output).x, gradients(loss, [p.x])[0])


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
        agree(p.host(h), np.tanh(p.host(z)) * valid[None, :, :, None])
    top = p.host(trace.h[-1])
    np.testing.assert_array_equal(np.concatenate(list(top), axis=-1), p.host(output))


def test_the_trace_of_a_clipped_network_shows_z_before_the_clip():
    p = Problem(clip=0.1)
    trace = p.rnn.trace(p.x, p.h0)
    assert np.abs(trace.z[0]).max() > 0.1
    agree(trace.h[0], np.tanh(np.clip(trace.z[0], -0.1, 0.1)))


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
    agree(p.host(a.x) + p.host(b.x), p.host(first.x))
    del output


def test_a_learnable_initial_state_has_a_gradient_even_if_none_was_given():
    p = Problem(layers=2, bidirectional=True)
    output, _, pullback = p.rnn.vjp(p.x)
    explicit = p.rnn.vjp(p.x, np.zeros((4, BATCH, 5)))[2](p.d_output)
    np.testing.assert_array_equal(pullback(p.d_output).h0, explicit.h0)
    assert explicit.h0.any() and output.shape == p.d_output.shape


def test_a_remembered_call_hides_no_wrong_argument():
    rnn, x, h0 = rnncore.RNN(2, 3, rng=0), np.ones((4, 1, 2)), np.zeros((1, 1, 3))
    rnn(x), rnn(x, h0), rnn.vjp(x, h0)
    wrong = {
        "masked": (np.ma.ones((4, 1, 2)),),
        "dtype": (x.astype("f4"),),
        "a list": (x.tolist(),),
        "width": (np.ones((4, 1, 3)),),
        "no step": (x[:0],),
        "h0's dtype": (x, h0.astype("f4")),
        "h0's shape": (x, np.zeros((1, 2, 3))),
        "h0's kind": (x, [h0]),
        "training": (x, h0, None, 1),
        "rng": (x, h0, None, False, "seed"),
        "lengths": (x, h0, [5]),
    }
    for what, given in wrong.items():
        for _ in range(2):
            with pytest.raises(RnncoreError):
                pytest.fail(f"{what}: {rnn(*given)}")
    torch_input = torch.ones(4, 1, 2, dtype=torch.float64)
    with pytest.raises(ArgumentTypeError, match=r"torch\.Tensor"):
        rnn(torch_input)
    for steps in range(1, 200):  # more shapes than are remembered
        assert rnn(np.ones((steps, 1, 2)))[0].shape == (steps, 1, 3)


def test_no_result_is_memory_that_a_network_keeps():
    """Zeros that are shared between calls must not be handed out, whatever is written into results."""
    for lengths in (None, [0, 0], [1, 0]):
        rnn, x = rnncore.RNN(2, 3, num_layers=2, bidirectional=True, rng=0), np.ones((1, 2, 2))
        before, _ = rnn(x, None, lengths)
        kept = before.copy()
        for _ in range(2):
            output, h_n, pullback = rnn.vjp(x, None, lengths)
            grads, trace = pullback(np.ones_like(output), np.ones_like(h_n)), rnn.trace(x, None, lengths)
            tangents = rnn.jvp(x, None, lengths, x_dot=x)[2]
            seen = rnncore.diagnostics.record(rnn, x, None, lengths)
            states = [h for row in (*seen.h, *seen.z, *seen.h0) for h in row]
            results = [h_n, grads.x, grads.h0, *grads.params.values(), *trace.h, *trace.z, trace.h_n, *states]
            for result in (*results, tangents.output, tangents.h_n):
                result[...] = 7.0
        np.testing.assert_array_equal(rnn(x, None, lengths)[0], kept)
