"""Gradient flow: against autograd with a copy of every state for each use of it, and closed forms over 10,000 steps."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import rnncore
from rnncore import diagnostics
from rnncore.diagnostics.gradient import flow as flow_file
from rnncore.diagnostics.numerics.scaled import Scaled, add, linear, log_norm
from rnncore.errors import ArgumentTypeError
from tests.diagnostics.gradient.driven import CLOSE, FLOAT64, driven
from tests.tools.rounding import EPS, EPS_OF, PROMISED, agree

STEPS, BATCH, INPUT = 7, 3, 4
LENGTHS = [4, 0, 7]
LONG = 10_000
# 2-norms of gradients on either side, in nats, where absolute errors are the relative ones of the norms.
NATS = {dtype: 2 * PROMISED * EPS_OF[dtype] for dtype in ("float64", "float32")}
backends = pytest.mark.parametrize("backend", ["numpy", "torch", "strict", "jax"])
stacks = pytest.mark.parametrize(
    ("hidden", "bidirectional"),
    [([5], False), ([5], True), ([5, 4], False), ([5, 3], True)],
    ids=["1", "1bi", "2", "2bi"],
)


def giver(rnn):
    plugin = rnncore.get_backend(rnn.backend)
    return lambda a: plugin.asarray(np.asarray(a, dtype="f8"), dtype=rnn.dtype, device=rnn.device)


def by_autograd(rnn, x, d_output, d_h_n, lengths):
    """ln norms of the parts: every state is copied for the loss, for the layer above and for the next step."""
    spec = rnn.spec
    params = {k: torch.tensor(np.asarray(v)) for k, v in rnn.to("numpy").state_dict().items()}
    f = {"tanh": torch.tanh, "relu": torch.relu}[spec.nonlinearity.name]
    lengths = [STEPS] * BATCH if lengths is None else lengths
    below, uses, last = torch.tensor(x), {}, []
    copy = lambda h: h.clone().requires_grad_() if not h.requires_grad else h.clone()  # noqa: E731
    for k, width in enumerate(spec.hidden_sizes):
        sides, ends = [], []
        for d in range(spec.num_directions):
            end = spec.suffix(k, d)
            bias = params[f"bias_ih_{end}"] + params[f"bias_hh_{end}"]
            columns, finals = [], []
            for b, n in enumerate(lengths):
                h, outs = torch.zeros(width, dtype=torch.float64), {}
                for t in range(n - 1, -1, -1) if d else range(n):
                    whole = f(below[t, b] @ params[f"weight_ih_{end}"].T + bias + h @ params[f"weight_hh_{end}"].T)
                    whole = copy(whole)
                    parts = {"whole": whole, "up": copy(whole), "next": copy(whole), "last": copy(whole)}
                    for part in parts.values():
                        part.retain_grad()
                    uses[k, d, t, b] = parts
                    h, outs[t] = parts["next"], parts["up"]
                    final = parts["last"]
                zero = torch.zeros(width, dtype=torch.float64)
                columns.append(torch.stack([outs.get(t, zero) for t in range(STEPS)]))
                finals.append(final if n else zero)
            sides.append(torch.stack(columns, dim=1))
            ends.append(torch.stack(finals))
        below = torch.cat(sides, dim=2)
        last.append(torch.stack(ends))
    loss = (below * torch.tensor(d_output)).sum()
    loss = loss + sum((h * torch.tensor(c)).sum() for h, c in zip(last, d_h_n, strict=True))
    loss.backward()
    ln = lambda g: -math.inf if g is None or not g.any() else float(g.norm().log())  # noqa: E731
    found = {}
    top = spec.num_layers - 1
    for (k, d, t, b), parts in uses.items():
        up, ended = parts["up"].grad, parts["last"].grad
        given = [g for g in (up if k == top else None, ended) if g is not None]
        found[k, d, t, b] = {
            "total": ln(parts["whole"].grad),
            "direct": ln(sum(given)) if given else -math.inf,
            "above": -math.inf if k == top else ln(up),
            "recurrent": ln(parts["next"].grad),
        }
    return found


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@pytest.mark.parametrize("name", ["tanh", "relu"])
@stacks
def test_every_part_against_autograd(hidden, bidirectional, name, lengths):
    rnn = rnncore.RNN(INPUT, hidden, len(hidden), name, bidirectional=bidirectional, rng=1)
    rng, directions = np.random.default_rng(2), 2 if bidirectional else 1
    x, d_output = (
        rng.standard_normal((STEPS, BATCH, INPUT)),
        rng.standard_normal((STEPS, BATCH, directions * hidden[-1])),
    )
    d_h_n = [rng.standard_normal((directions, BATCH, h)) for h in hidden]
    flow, _ = diagnostics.flow(diagnostics.record(rnn, x, lengths=lengths), d_output, d_h_n)
    want = by_autograd(rnn, x, d_output, d_h_n, lengths)
    for (k, d, t, b), parts in want.items():
        for part, value in parts.items():
            got = getattr(flow, part)[k][d, t, b]
            assert got == value or abs(got - value) < NATS["float64"], (part, k, d, t, b)
    ends = [STEPS] * BATCH if lengths is None else lengths
    for k, part in itertools.product(range(len(hidden)), ("total", "direct", "above", "recurrent")):
        outside = np.arange(STEPS)[:, None] >= np.asarray(ends)
        assert np.isnan(getattr(flow, part)[k][:, outside]).all()
        assert not np.isnan(getattr(flow, part)[k][:, ~outside]).any()


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@stacks
@backends
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_arrives_at_h0_is_the_pullbacks(dtype, backend, hidden, bidirectional, lengths):
    if backend == "jax" and (dtype == "float64" or len(hidden) > 1):
        pytest.skip("JAX has float64 only in a process that asks for it; its stacks are covered by the suite's runs")
    rnn = rnncore.RNN(INPUT, hidden, len(hidden), bidirectional=bidirectional, backend=backend, dtype=dtype, rng=1)
    give, rng, directions = giver(rnn), np.random.default_rng(2), 2 if bidirectional else 1
    x, d_output = (
        rng.standard_normal((STEPS, BATCH, INPUT)),
        rng.standard_normal((STEPS, BATCH, directions * hidden[-1])),
    )
    flow, _ = diagnostics.flow(diagnostics.record(rnn, give(x), lengths=lengths), give(d_output))
    grads = rnn.vjp(give(x), lengths=lengths)[2](give(d_output))
    states = grads.h0 if isinstance(grads.h0, tuple) else [grads.h0]
    to_numpy = rnncore.get_backend(backend).to_numpy
    with np.errstate(divide="ignore"):
        want = [np.log(np.linalg.norm(np.asarray(to_numpy(g), dtype="f8"), axis=-1)) for g in states]
    for k, value in enumerate(want):
        np.testing.assert_allclose(flow.initial[k], value, rtol=0, atol=NATS[dtype])


@pytest.mark.parametrize("gain", [0.01, 0.5, 0.9, 1.0, 1.1, 2.0, 50.0])
@pytest.mark.parametrize(
    ("backend", "dtype"), [("numpy", "float64"), ("numpy", "float32"), ("torch", "float32"), ("torch", "float64")]
)
def test_a_scaled_orthogonal_network_over_ten_thousand_steps(backend, dtype, gain):
    """ln ||dL/dh_t|| = ln ||d|| + (T - t) ln gain, far beyond what any dtype holds."""
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    rnn = rnncore.RNN(2, 6, nonlinearity="identity", bias=False, backend=backend, dtype=dtype)
    give = giver(rnn)
    rnn.set_params({"weight_hh_l0": give(gain * q)})
    d = rng.standard_normal((1, 2, 6))
    flow, _ = diagnostics.flow(diagnostics.record(rnn, give(np.zeros((LONG, 2, 2)))), None, [[give(d[0])]])
    want = np.log(np.linalg.norm(d[0], axis=1))[None] + np.arange(LONG - 1, -1, -1)[:, None] * math.log(gain)
    # The matrix itself is rounded to the dtype: its singular values are g (1 + O(eps)), which 10,000 steps add up.
    allowed = 4 * LONG * np.finfo(dtype).eps + NATS[dtype]
    np.testing.assert_allclose(flow.total[0][0], want, rtol=0, atol=allowed)
    np.testing.assert_allclose(flow.recurrent[0][0][:-1], want[:-1], rtol=0, atol=allowed)
    assert np.isneginf(flow.recurrent[0][0][-1]).all()


@backends
def test_a_thousand_steps_on_every_backend(backend):
    rnn = rnncore.RNN(1, 2, nonlinearity="identity", bias=False, backend=backend, dtype="float32")
    give = giver(rnn)
    rnn.set_params({"weight_hh_l0": give([[0.0, 0.25], [0.25, 0.0]])})
    flow, _ = diagnostics.flow(diagnostics.record(rnn, give(np.zeros((1000, 1, 1)))), None, [[give([[1.0, 0.0]])]])
    allowed = (
        1000 * EPS_OF["float32"]
    )  # powers of 2 but for the scales, of which there is one for each step at the most
    np.testing.assert_allclose(flow.total[0][0, :, 0], np.arange(999, -1, -1) * math.log(0.25), rtol=0, atol=allowed)


def test_a_nilpotent_recurrence_is_exactly_zero_and_no_nan():
    rnn = rnncore.RNN(1, 3, nonlinearity="identity", bias=False)
    rnn.set_params({"weight_hh_l0": np.eye(3, k=-1)})
    flow, _ = diagnostics.flow(diagnostics.record(rnn, np.zeros((50, 1, 1))), None, [[np.ones((1, 3))]])
    total = flow.total[0][0, :, 0]
    np.testing.assert_allclose(total[-3:], 0.5 * np.log([1, 2, 3]), rtol=0, atol=4 * EPS)
    assert np.isneginf(total[:-3]).all()


def test_a_source_in_the_middle_is_seen_beside_a_vanished_one():
    """The gradient of the last step is e^-1400 when the loss at step 1,000 adds its own: both scales are right."""
    rnn = rnncore.RNN(1, 1, nonlinearity="identity", bias=False)
    rnn.set_params({"weight_hh_l0": np.asarray([[0.5]])})
    d = np.zeros((3000, 1, 1))
    d[-1], d[1000] = 1.0, 3.0
    flow, _ = diagnostics.flow(diagnostics.record(rnn, np.zeros((3000, 1, 1))), d)
    total, recurrent = flow.total[0][0, :, 0], flow.recurrent[0][0, :, 0]
    # The scale's logarithm is added up over pieces of 32 steps and more.
    pieces = 3000 / 32 * EPS
    assert total[1001] == pytest.approx(-1998 * math.log(2), rel=pieces)
    assert recurrent[1000] == pytest.approx(-1999 * math.log(2), rel=pieces)
    assert total[1000] == pytest.approx(math.log(3), abs=8 * EPS)
    assert total[0] == pytest.approx(math.log(3) - 1000 * math.log(2), rel=pieces)


def test_one_exploding_row_does_not_hide_a_vanishing_one():
    rnn = rnncore.RNN(1, 1, nonlinearity="relu", bias=False, dtype="float32")
    rnn.set_params({"weight_hh_l0": np.asarray([[1.5]], "f4"), "weight_ih_l0": np.asarray([[1.0]], "f4")})
    x = np.zeros((150, 2, 1), "f4")
    x[:, 0] = 1e-20  # active throughout, growing
    x[:, 1] = np.where(np.arange(150) < 100, 1e-20, -1e30)[:, None]  # switched off after 100 steps
    flow, _ = diagnostics.flow(diagnostics.record(rnn, x), None, [[np.ones((2, 1), "f4")]])
    # Each of 150 steps rounds one product, in nats.
    assert flow.total[0][0, 0, 0] == pytest.approx(149 * math.log(1.5), abs=150 * EPS_OF["float32"])
    assert np.isneginf(flow.total[0][0, :99, 1]).all()


def test_the_same_record_on_two_backends_is_the_same_report():
    rng = np.random.default_rng(5)
    x, d = rng.standard_normal((60, 3, 4)), rng.standard_normal((60, 3, 12))
    found = []
    for backend in ("numpy", "torch", "strict"):
        rnn = rnncore.RNN(4, 6, 2, bidirectional=True, rng=0, backend=backend, dtype="float64")
        give = giver(rnn)
        found.append(diagnostics.flow(diagnostics.record(rnn, give(x), lengths=[60, 31, 5]), give(d))[0])
    for other in found[1:]:
        for part in ("total", "direct", "above", "recurrent", "initial"):
            for a, b in zip(getattr(found[0], part), getattr(other, part), strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=CLOSE)


def test_dropout_stands_between_the_layers():
    rnn = rnncore.RNN(INPUT, 5, 2, dropout=0.5, rng=0)
    rng = np.random.default_rng(0)
    x, d = rng.standard_normal((STEPS, BATCH, INPUT)), rng.standard_normal((STEPS, BATCH, 5))
    flow, _ = diagnostics.flow(diagnostics.record(rnn, x, training=True, rng=3), d)
    grads = rnn.vjp(x, training=True, rng=3)[2](d)
    want = np.log(np.linalg.norm(grads.h0, axis=-1))
    np.testing.assert_allclose(np.concatenate(flow.initial), want, rtol=0, atol=NATS["float64"])


def test_quantiles_are_over_the_rows_that_have_the_step():
    rnn = rnncore.RNN(INPUT, 5, rng=0)
    x = np.random.default_rng(0).standard_normal((STEPS, BATCH, INPUT))
    flow, _ = diagnostics.flow(diagnostics.record(rnn, x, lengths=LENGTHS), np.ones((STEPS, BATCH, 5)))
    own = flow[0][0]
    q = own.quantiles((0.0, 1.0))
    assert q.shape == (2, STEPS)
    np.testing.assert_array_equal(q[0, 5], own.total[5, 2])
    np.testing.assert_array_equal(q[:, 0], [own.total[0, [0, 2]].min(), own.total[0, [0, 2]].max()])


def test_a_record_is_of_a_network():
    with pytest.raises(ArgumentTypeError, match=r"rnn: expected an rnncore\.RNN, got list"):
        diagnostics.record([], None)


@pytest.mark.parametrize(
    ("d_last", "words"),
    [
        ([[None], [None]], r"a list of 1 layers, each a list of 2 directions, got \[1, 1\]"),
        ([[None]], r"got \[1\]"),
        ([[None, None, None]], r"got \[3\]"),
        ([[None, None], []], r"got \[2, 0\]"),
        ([None], r"got \[None\]"),
        ([], r"got \[\]"),
        (np.zeros((1, 2, 2, 3)), r"got (an? )?(numpy\.)?ndarray"),
        ("ab", r"got "),
    ],
)
def test_cotangents_of_the_last_states_have_an_entry_for_each_layer_and_direction(d_last, words):
    record = diagnostics.record(rnncore.RNN(1, 3, bidirectional=True, rng=0), np.zeros((4, 2, 1)))
    with pytest.raises(ArgumentTypeError, match=rf"^d_last: expected .*{words}"):
        diagnostics.flow(record, None, d_last)


def test_cotangents_of_the_last_states_may_be_missing_or_one_array_for_a_layer():
    record = diagnostics.record(rnncore.RNN(1, 3, bidirectional=True, rng=0), np.zeros((4, 2, 1)))
    last = np.random.default_rng(0).standard_normal((2, 2, 3))
    flows, _ = diagnostics.flow(record, None, [last])
    want, _ = diagnostics.flow(record, None, [[last[0], last[1]]])
    np.testing.assert_array_equal(flows.total[0], want.total[0])
    half, _ = diagnostics.flow(record, None, ([None, last[1]],))
    assert (half.direct[0][0] == -np.inf).all() and np.isfinite(half.direct[0][1, 0]).all()


# --- scaled sequences -------------------------------------------------------------------------------------------------


def test_scaled_sums_and_norms():
    engine = rnncore.RNN(1, 1).network.engine
    a = Scaled(np.asarray([[[3.0, 0.0]], [[0.0, 0.0]]]), np.asarray([[1000.0], [5.0]]))
    b = Scaled(np.asarray([[[0.0, 4.0]], [[1.0, 0.0]]]), np.asarray([[1000.0], [-900.0]]))
    np.testing.assert_allclose(log_norm(a, engine=engine)[:, 0], [1000 + math.log(3), -math.inf], rtol=2 * EPS)
    np.testing.assert_allclose(
        log_norm(add(a, b, engine=engine), engine=engine)[:, 0], [1000 + math.log(5), -900.0], rtol=2 * EPS
    )
    nan = Scaled(np.asarray([[[np.nan, 1.0]], [[np.inf, 1.0]]]), np.zeros((2, 1)))
    got = log_norm(nan, engine=engine)[:, 0]
    assert np.isnan(got[0]) and np.isposinf(got[1])


@pytest.mark.parametrize("reverse", [False, True])
def test_the_scaled_scan_is_the_scan(reverse):
    rnn = rnncore.RNN(1, 4)
    rng = np.random.default_rng(0)
    u, d, m = rng.standard_normal((200, 3, 4)), rng.standard_normal((200, 3, 4)), rng.standard_normal((4, 4)) / 2
    got = linear(Scaled(u, np.zeros((200, 3))), d, m, reverse=reverse, engine=rnn.network.engine)
    want = rnn.network.engine.linear(u, d, np.zeros((3, 4)), m, reverse=reverse)
    agree(got.values * np.exp(got.log)[..., None], want)


def test_nan_in_a_source_is_nan_from_there_on_and_not_before():
    rnn = rnncore.RNN(1, 2, nonlinearity="identity", bias=False, rng=0)
    d = np.ones((40, 2, 2))
    d[20, 0] = np.nan
    flow, _ = diagnostics.flow(diagnostics.record(rnn, np.zeros((40, 2, 1))), d)
    assert np.isnan(flow.total[0][0, :21, 0]).all() and np.isfinite(flow.total[0][0, 21:, 0]).all()
    assert np.isfinite(flow.total[0][0, :, 1]).all()


@pytest.mark.parametrize("f", ["tanh", "relu"])
@pytest.mark.parametrize("backend", FLOAT64)
def test_the_recurrent_share_by_division_and_by_product(backend, f, monkeypatch):
    record, _, on = driven(backend, steps=60, f=f)
    last = [[on(np.random.default_rng(3).standard_normal((2, 5)))]]
    calls = []
    real = flow_file.divided
    monkeypatch.setattr(flow_file, "divided", lambda *a, **k: calls.append(real(*a, **k)) or calls[-1])
    quick, _ = diagnostics.flow(record, None, last)
    assert (calls[0] is None) == (f == "relu"), "a slope of 0 cannot be divided by"
    monkeypatch.setattr(flow_file, "divided", lambda *a, **k: None)
    slow, _ = diagnostics.flow(record, None, last)
    for part in ("total", "recurrent", "direct", "initial"):
        np.testing.assert_allclose(getattr(quick, part)[0], getattr(slow, part)[0], rtol=0, atol=CLOSE)


@pytest.mark.parametrize("direction", [0, 1])
def test_the_recurrent_share_of_a_step_with_a_loss_is_that_of_the_step_after_it(direction, monkeypatch):
    """In the direction's own time. Losses at an inner step and at both ends; elsewhere the quotient is the recurrent part."""
    rnn = rnncore.RNN(1, 3, bidirectional=True, rng=0)
    record = diagnostics.record(rnn, np.random.default_rng(0).standard_normal((20, 2, 1)))
    d_output = np.zeros((20, 2, 6))
    d_output[[0, 7, 19]] = np.random.default_rng(1).standard_normal((3, 2, 6))
    quick, _ = diagnostics.flow(record, d_output)
    monkeypatch.setattr(flow_file, "divided", lambda *a, **k: None)
    slow, _ = diagnostics.flow(record, d_output)
    for part in ("total", "recurrent"):
        a, b = (getattr(found, part)[0][direction] for found in (quick, slow))
        np.testing.assert_allclose(a, b, rtol=0, atol=CLOSE)
    assert np.isneginf(quick.recurrent[0][direction, 0 if direction else -1]).all()
    assert np.isfinite(quick.recurrent[0][direction, 7]).all()


def test_quantiles_by_default_are_the_middle_and_four_about_it():
    rnn = rnncore.RNN(1, 3, rng=0)
    record = diagnostics.record(rnn, np.random.default_rng(0).standard_normal((5, 41, 1)))
    own = diagnostics.flow(record, np.random.default_rng(1).standard_normal((5, 41, 3)))[0][0][0]
    # Of 41 rows in order: the third, the eleventh, the middle one, and the same from the other end.
    np.testing.assert_array_equal(own.quantiles(), np.sort(own.total, axis=1)[:, [2, 10, 20, 30, 38]].T)


def test_a_chain_of_three_layers():
    """Without recurrence the gradient is multiplied by each layer's input weight on the way down: 5, then 5 times 3."""
    rnn = rnncore.RNN(1, 1, num_layers=3, nonlinearity="identity", bias=False)
    scales = (2.0, 3.0, 5.0)
    rnn.load_state_dict(
        {f"weight_ih_l{k}": np.array([[w]]) for k, w in enumerate(scales)}
        | {f"weight_hh_l{k}": np.zeros((1, 1)) for k in range(3)}
    )
    found, deltas = diagnostics.flow(diagnostics.record(rnn, np.ones((2, 1, 1))), np.ones((2, 1, 1)))
    for k, gradient in enumerate((15.0, 5.0, 1.0)):
        # A logarithm of a product of two numbers.
        np.testing.assert_allclose(found.total[k][0], math.log(gradient), rtol=0, atol=4 * EPS)
        np.testing.assert_allclose(deltas[k][0].values * np.exp(deltas[k][0].log)[..., None], gradient, rtol=4 * EPS)


def test_a_cotangent_of_the_state_of_a_sequence_without_steps_reaches_none():
    rnn = rnncore.RNN(2, 2, bidirectional=True, rng=0)
    seen = diagnostics.record(rnn, np.ones((3, 2, 2)), lengths=[3, 0])
    found, deltas = diagnostics.flow(seen, None, [[np.ones((2, 2))] * 2])
    for d in range(2):
        for gradient in (deltas[0][d], deltas[0][d].source):
            assert not gradient.values[:, 1].any() and gradient.values[:, 0].any()
        # Two ones, passed on to the initial state.
        assert found.initial[0][d][1] == pytest.approx(math.log(2) / 2, abs=4 * EPS)


def test_only_a_record_has_a_flow():
    with pytest.raises(ArgumentTypeError, match="record: expected"):
        diagnostics.flow("record", None)
