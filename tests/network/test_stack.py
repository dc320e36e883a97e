"""Layers and directions in a stack: derivatives, checkpoints, truncation and streaming."""

import numpy as np
import pytest

import rnncore
from rnncore.nonlinearity.nonlinearity import NONLINEARITIES
from tests.tools.differences import assert_close, directional, gradients
from tests.tools.problem import BATCH, LENGTHS, STEPS, Problem, assert_same, backends, stacks
from tests.tools.rounding import EPS, PROMISED, agree


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


@pytest.mark.parametrize("options", [{}, {"checkpoint": 2}], ids=["plain", "checkpoint"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["", "bidirectional"])
def test_every_gradient_through_two_masks_against_central_differences(bidirectional, options):
    """Three layers of different widths: none can stand for another, nor one mask for the other."""
    p = Problem(layers=3, bidirectional=bidirectional, hidden=[2, 1, 3], dropout=0.5)
    names, drawn = list(p.rnn.params), {"training": True, "rng": 9}

    def loss(x, *values):
        h0, params = values[:3], dict(zip(names, values[3:], strict=True))
        output, h_n = rnncore.functional.rnn(x, params, list(h0), dropout=0.5, **drawn)
        return float((output * p.d_output).sum() + sum((h * d).sum() for h, d in zip(h_n, p.d_h_n, strict=True)))

    output, _, pullback = p.rnn.vjp(p.x, p.h0, **drawn, **options)
    np.testing.assert_array_equal(output, p.rnn(p.x, p.h0, **drawn)[0])
    grads = pullback(p.d_output, p.d_h_n)
    want = gradients(loss, [p.x, *p.h0, *p.rnn.params.values()])
    for g, w in zip([grads.x, *grads.h0, *(grads.params[k] for k in names)], want, strict=True):
        assert_close(g, w)


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
    # Sums of the same numbers: the rounding is that of the terms, however much of them cancels.
    assert abs(left - sum(terms)) <= PROMISED * EPS * sum(map(abs, terms))


def test_forward_mode_with_some_tangents_missing_takes_them_as_zero():
    p = Problem(layers=2, bidirectional=True)
    some = {"weight_hh_l1": np.ones((5, 5))}
    full = {k: some.get(k, np.zeros_like(v)) for k, v in p.rnn.params.items()}
    a = p.rnn.jvp(p.x, p.h0, params_dot=some)[2]
    b = p.rnn.jvp(p.x, p.h0, params_dot=full, x_dot=np.zeros_like(p.x), h0_dot=np.zeros_like(p.h0))[2]
    np.testing.assert_array_equal(a.output, b.output)
    np.testing.assert_array_equal(a.h_n, b.h_n)


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
        agree(found["x"][a : a + k], grads.x)
        total = {name: total[name] + g for name, g in grads.params.items()}
        if a == 0:
            first = grads.h0
    for name, g in total.items():
        agree(found[name], g)
    agree(found["h0"], first)


def test_truncation_changes_the_gradient():
    p = Problem()
    whole, cut = p.run()["weight_hh_l0"], p.run(truncate=2)["weight_hh_l0"]
    assert np.abs(cut - whole).max() > 0.01 * np.abs(whole).max()


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
    agree(np.concatenate(parts), p.host(output))
    agree(p.host(state), p.host(h_n))


def test_nan_in_one_row_stays_in_its_row():
    p = Problem(layers=2, bidirectional=True)
    clean = p.run()
    p.x[3, 1, 0] = np.nan
    found = p.run()
    others = [0, 2, 3]
    for k in ("output", "x"):
        np.testing.assert_array_equal(found[k][:, others], clean[k][:, others])
    assert np.isnan(found["output"][3:, 1, :5]).all() and np.isnan(found["weight_ih_l0"]).any()


@backends
@pytest.mark.parametrize("kernel", ["reference", "require"])
@stacks
def test_the_kernels_and_the_reference_agree(layers, bidirectional, kernel, backend):
    want = Problem(backend, layers, bidirectional, kernel="reference").run(lengths=LENGTHS)
    assert_same(Problem(backend, layers, bidirectional, kernel=kernel).run(lengths=LENGTHS), want)
