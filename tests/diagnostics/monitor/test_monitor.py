"""A monitor in training loops: when it looks, what it writes, when it warns."""

from __future__ import annotations

import gc
import io
import json
import tracemalloc
import warnings

import numpy as np
import pytest
import torch

import rnncore
from rnncore.diagnostics.monitor.log import read_log
from rnncore.diagnostics.monitor.monitor import Monitor, VerdictChange
from rnncore.diagnostics.report.report import Report
from rnncore.diagnostics.run import diagnose
from tests.diagnostics.monitor.networks import QUIET, B, H, I, T, X, nn, numbers, refused, tensor


@pytest.fixture
def kept():
    """Its gradients keep their size."""
    return rnncore.RNN(I, H, nonlinearity="identity", init=rnncore.init.orthogonal(1.0), rng=0)


def test_every_nth_step_is_diagnosed(network):
    seen = []
    monitor = Monitor(every=3, sink=seen.append)
    reports = []
    for k in range(10):
        assert monitor.due == (k % 3 == 2)
        reports.append(monitor.step(network, X, loss=k, grad_norm=float(k)))
    assert [k for k, r in enumerate(reports, 1) if r is not None] == [3, 6, 9]
    assert all(isinstance(r, Report) for r in reports if r is not None)
    assert [(e.step, e.loss) for e in seen] == [(3, 2.0), (6, 5.0), (9, 8.0)]
    assert monitor.last is seen[-1] and monitor.steps == 10 and monitor.norms.steps == 10
    assert seen[-1].verdict == reports[8].verdict.label and seen[-1].evidence == reports[8].verdict.evidence
    assert seen[-1].norms.steps == 9 and seen[-1].norms.quantiles[0.5] == pytest.approx(4, rel=0.011)


def test_what_is_not_due_is_not_looked_at(network):
    monitor = Monitor(every=100)
    assert monitor.step(network, None, "nonsense", loss="nonsense") is None
    assert monitor.step(None, None) is None


class Flushed(io.StringIO):
    flushes = 0

    def flush(self):
        self.flushes += 1
        super().flush()


def test_a_text_file_is_flushed_and_stays_open(network):
    file = Flushed()
    with Monitor(every=1, sink=file) as monitor:
        monitor.step(network, X)
        monitor.step(network, X)
    assert file.flushes >= 2 and not file.closed
    assert [json.loads(line)["step"] for line in file.getvalue().splitlines()] == [1, 2]


def test_the_file_of_a_path_is_closed_and_no_step_follows(tmp_path, network):
    with Monitor(every=1, sink=tmp_path / "log.jsonl") as monitor:
        monitor.step(network, X)
        file = monitor._file._file
        assert not file.closed
    assert file.closed
    monitor.close()
    with refused(ValueError, "closed"):
        monitor.step(network, X)


def test_the_file_is_closed_where_the_loop_fails(tmp_path, network):
    monitor = Monitor(every=1, sink=tmp_path / "log.jsonl")
    with pytest.raises(ValueError, match="x: "), monitor:
        monitor.step(network, X[..., :2])
    assert monitor._file._file.closed


def test_a_change_of_the_verdict_warns(network, kept):
    monitor = Monitor(every=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for model in (network, network, network, network, kept, kept, kept, kept, network, network):
            monitor.step(model, X)
    assert [w.category for w in caught] == [VerdictChange] * 2
    assert "step 6" in str(caught[0].message) and "from vanishing (step 4) to healthy" in str(caught[0].message)
    assert caught[0].filename == __file__


def test_a_callbacks_warning_is_at_the_training_loops_line(network, kept):
    given = iter((network, kept))
    callback = Monitor(every=1).lightning_callback(lambda module: next(given))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for k in range(2):
            callback.on_train_batch_end(None, None, None, X, k)
    assert [(w.category, w.filename) for w in caught] == [(VerdictChange, __file__)]


def test_a_warning_that_is_an_error_comes_after_the_entry(network, kept):
    seen = []
    monitor = Monitor(every=1, sink=seen.append)
    monitor.step(network, X)
    with pytest.raises(VerdictChange):
        monitor.step(kept, X)
    assert len(seen) == 2 and monitor.last is seen[-1]
    monitor.step(kept, X)


@pytest.mark.parametrize("batch_first", [False, True])
def test_the_first_rows_of_everything(batch_first):
    network = rnncore.RNN(I, H, 2, batch_first=batch_first, rng=0)
    shape = (B, T) if batch_first else (T, B)
    x, d_output, h0, d_h_n = numbers(*shape, I), numbers(*shape, H), numbers(2, B, H), numbers(2, B, H)
    lengths = [9, 4, 7]
    cut = (slice(2),) if batch_first else (slice(None), slice(2))
    want = diagnose(network, x[cut], (d_output[cut], d_h_n[:, :2]), h0=h0[:, :2], lengths=lengths[:2])
    got = Monitor(every=1, rows=2).step(network, x, (d_output, d_h_n), lengths=lengths, h0=h0)
    assert got.to_json() == want.to_json()
    seen = []

    def cotangent(output, h_n):
        seen.append(tuple(output.shape))
        return output, None

    assert Monitor(every=1, rows=2).step(network, x, cotangent, lengths=np.asarray(lengths)).subject.lengths == (9, 4)
    assert seen == [(*((2, T) if batch_first else (T, 2)), H)]
    assert Monitor(every=1, rows=2).step(network, numbers(T, I)).subject.batch == 1  # unbatched: all of it
    assert Monitor(every=1, rows=9).step(network, x).subject.batch == B


def test_rows_of_layers_of_different_widths():
    network = rnncore.RNN(I, [5, 3], 2, rng=0)
    h0 = [numbers(1, B, 5), numbers(1, B, 3)]
    report = Monitor(every=1, rows=1).step(network, numbers(T, B, I), (None, [np.ones_like(h) for h in h0]), h0=h0)
    assert report.subject.batch == 1


def test_memory_is_constant(tmp_path, network, kept):
    """10,000 steps, 100 diagnoses with a new verdict each: nothing is kept of any."""
    x = numbers(12, 2, I)
    with Monitor(every=100, sink=tmp_path / "log.jsonl", dependency_length=11) as monitor, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rng = np.random.default_rng(0)
        norms = np.exp(rng.standard_normal(12_000)).tolist()

        def train(start, stop):
            for k in range(start, stop):
                model = network if (k // 100) % 2 else kept
                monitor.step(model, x, loss=1.0, grad_norm=norms[k])

        train(0, 2_000)
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            train(2_000, 12_000)
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
    assert grown < 64_000  # counters of norms that are rarer than those before, and the last entry
    entries = read_log(tmp_path / "log.jsonl")
    assert len(entries) == 120 and entries[-1].norms.steps == 12_000
    assert len({e.verdict for e in entries}) == 2


def test_a_warning_leaves_no_trace_in_its_module(network, kept):
    monitor = Monitor(every=1)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("default")
        before = len(globals().get("__warningregistry__", {}))
        for k in range(20):
            monitor.step((network, kept)[k % 2], X)
    assert len(globals().get("__warningregistry__", {})) <= before + 1


@QUIET
def test_in_a_plain_training_loop(tmp_path):
    rnn, x, target = rnncore.RNN(I, H, rng=0), numbers(T, B, I), numbers(B, H)
    losses = []
    with Monitor(every=5, sink=tmp_path / "log.jsonl") as monitor:
        for _ in range(20):
            output, _, pullback = rnn.vjp(x)
            error = output[-1] - target
            d_output = np.zeros_like(output)
            d_output[-1] = error
            grads = pullback(d_output).params
            losses.append(0.5 * float((error**2).sum()))
            monitor.step(rnn, x, (d_output, None), loss=losses[-1], grad_norm=grads)
            rnn.set_params({k: v - 0.1 * grads[k] for k, v in rnn.params.items()})
    entries = read_log(tmp_path / "log.jsonl")
    assert [e.loss for e in entries] == losses[4::5] and losses[-1] < losses[0]
    assert entries[-1].norms.steps == 20 and entries[-1].norms.nonfinite == 0


@QUIET
def test_in_a_pytorch_loop(tmp_path):
    rnn, head = nn.RNN(I, H, batch_first=True), nn.Linear(H, 1)
    parameters = [*rnn.parameters(), *head.parameters()]
    optimiser = torch.optim.SGD(parameters, 0.1)
    x, y, losses = tensor(B, T, I), tensor(B, 1, seed=1), []
    with Monitor(every=4, sink=tmp_path / "log.jsonl") as monitor:
        for _ in range(12):
            loss = nn.functional.mse_loss(head(rnn(x)[0][:, -1]), y)
            optimiser.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            before = [p.clone() for p in parameters]
            monitor.step(rnn, x, loss=loss, grad_norm=norm)
            assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
            losses.append(loss.item())
    entries = read_log(tmp_path / "log.jsonl")
    assert [e.loss for e in entries] == losses[3::4] and losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"every": 0}, ValueError, ["every", "int >= 1"]),
        ({"every": -3}, ValueError, ["every"]),
        ({"every": 2.0}, TypeError, ["every"]),
        ({"every": True}, TypeError, ["every"]),
        ({"every": "10"}, TypeError, ["every"]),
        ({"level": "depp"}, ValueError, ["level", "did you mean 'deep'"]),
        ({"level": None}, ValueError, ["level"]),
        ({"rows": 0}, ValueError, ["rows"]),
        ({"rows": 1.5}, TypeError, ["rows"]),
        ({"dependency_length": 0}, ValueError, ["dependency_length"]),
        ({"max_bytes": -1}, ValueError, ["max_bytes"]),
        ({"sink": 3}, TypeError, ["sink", "int"]),
        ({"sink": io.BytesIO()}, TypeError, ["sink", "text", "BytesIO"]),
    ],
)
def test_a_bad_monitor(options, kind, words):
    with refused(kind, *words):
        Monitor(**options)


def test_a_path_that_cannot_be_written_is_said_at_once(tmp_path):
    with pytest.raises(FileNotFoundError):
        Monitor(sink=tmp_path / "no" / "log.jsonl")
    with pytest.raises(IsADirectoryError):
        Monitor(sink=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ((nn.LSTM(I, H), X), TypeError, ["rnn", "LSTM"]),
        ((None, X), TypeError, ["rnn", "NoneType"]),
        ((rnncore.RNN(I, H), X, None, "1.5"), TypeError, ["loss", "str"]),
        ((rnncore.RNN(I, H), X, None, np.ones(2)), TypeError, ["loss", "shape (2,)"]),
        ((rnncore.RNN(I, H), X, None, True), TypeError, ["loss"]),
        ((rnncore.RNN(I, H), X, None, 1j), TypeError, ["loss"]),
        ((rnncore.RNN(I, H), X, None, 1.0, "1"), TypeError, ["grad_norm"]),
        ((rnncore.RNN(I, H), X, None, 1.0, -1.0), ValueError, ["grad_norm", ">= 0"]),
        ((rnncore.RNN(I, H), X, None, 1.0, torch.ones(3)), TypeError, ["grad_norm", "(3,)"]),
        ((rnncore.RNN(I, H), X.astype("f4")), TypeError, ["x", "float32"]),
        ((rnncore.RNN(I, H), X[..., :2]), ValueError, ["x"]),
        ((rnncore.RNN(I, H), X, (np.ones(3), None)), ValueError, ["cotangent[0]"]),
        ((rnncore.RNN(I, H), X, None, 1.0, 1.0, [1]), ValueError, ["lengths"]),
    ],
)
def test_a_bad_step(arguments, kind, words):
    with refused(kind, *words):
        Monitor(every=1, rows=2 if len(arguments) < 4 else None).step(*arguments)


def test_what_is_no_network_is_said_at_the_first_step():
    with refused(TypeError, "rnn", "GRU"):
        Monitor(every=1000).step(nn.GRU(I, H), X)
