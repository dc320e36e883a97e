"""Diagnosing where users are: a PyTorch module as it is, a monitor in a training loop, the command."""

from __future__ import annotations

import gc
import io
import json
import math
import os
import subprocess
import sys
import tracemalloc
import warnings

import numpy as np
import pytest
import torch

import rnncore
from rnncore import errors
from rnncore.diagnostics.foreign import as_rnn
from rnncore.diagnostics.monitor.log import BEGIN, MAX_LINE, read_log
from rnncore.diagnostics.monitor.monitor import Monitor, VerdictChange
from rnncore.diagnostics.report.report import Report
from rnncore.diagnostics.run import diagnose

T, B, I, H = 9, 3, 4, 5  # noqa: E741
nn = torch.nn
QUIET = pytest.mark.filterwarnings("ignore::rnncore.diagnostics.monitor.monitor.VerdictChange")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def tensor(*shape, dtype=torch.float32, seed=0):
    return torch.tensor(numbers(*shape, seed=seed), dtype=dtype)


def refused(kind, *words):
    """The error is ours, is the built-in too, and says these words."""

    class _Refused:
        def __enter__(self):
            self._raises = pytest.raises(kind)
            self._info = self._raises.__enter__()

        def __exit__(self, *rest):
            done = self._raises.__exit__(*rest)
            assert isinstance(self._info.value, errors.RnncoreError)
            for word in words:
                assert word in str(self._info.value)
            return done

    return _Refused()


# --- PyTorch's own modules --------------------------------------------------------------------------------------------

SHAPES = {
    "plain": {},
    "stack": {"num_layers": 3},
    "relu": {"nonlinearity": "relu"},
    "no bias": {"bias": False},
    "batch_first": {"batch_first": True},
    "bidirectional": {"bidirectional": True},
    "all": {"num_layers": 2, "nonlinearity": "relu", "bias": False, "batch_first": True, "bidirectional": True},
}
modules = pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)


def close(got, want, dtype):
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-13}[dtype]
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@modules
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batched", [True, False])
def test_an_rnn_computes_what_its_copy_does(options, dtype, batched):
    module = nn.RNN(I, H, dtype=dtype, **options)
    x = tensor(*((B, T, I) if options.get("batch_first") else (T, B, I)), dtype=dtype)
    x = x if batched else x[0] if options.get("batch_first") else x[:, 0]
    network = as_rnn(module)
    assert (network.backend, network.dtype, str(network.device)) == ("torch", dtype, "cpu")
    for got, want in zip(network(x), module(x), strict=True):
        close(got, want.detach(), dtype)


@modules
def test_diagnose_of_a_module_is_that_of_the_same_network(options):
    module = nn.RNN(I, H, dtype=torch.float64, **options)
    same = rnncore.RNN(I, H, backend="numpy", **options)
    same.load_state_dict(module.state_dict())
    x = numbers(*((B, T, I) if options.get("batch_first") else (T, B, I)))
    got = rnncore.diagnose(module, torch.tensor(x), level="standard", lengths=[4, 0, 7])
    want = rnncore.diagnose(same, x, level="standard", lengths=[4, 0, 7])
    assert got.subject.backend == "torch"
    assert got.verdict.label == want.verdict.label
    for layer in range(len(got.flow.total)):
        np.testing.assert_allclose(got.flow.total[layer], want.flow.total[layer], rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["tanh", "relu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_cell_is_one_layer_over_the_sequence(name, bias, dtype):
    cell = nn.RNNCell(I, H, bias=bias, nonlinearity=name, dtype=dtype)
    x, h, states = tensor(T, B, I, dtype=dtype), torch.zeros(B, H, dtype=dtype), []
    for x_t in x:
        h = cell(x_t, h)
        states.append(h.detach())
    close(as_rnn(cell)(x)[0], torch.stack(states), dtype)
    report = rnncore.diagnose(cell, x)
    assert (report.subject.steps, report.subject.batch) == (T, B)
    assert rnncore.diagnose(cell, x[:, 0]).subject.batch == 1


def test_flow_of_a_module_is_autograds():
    module = nn.RNN(I, H, dtype=torch.float64)
    x, h0 = tensor(T, B, I, dtype=torch.float64), tensor(1, B, H, dtype=torch.float64, seed=1).requires_grad_()
    d_output = tensor(T, B, H, dtype=torch.float64, seed=2)
    (module(x, h0)[0] * d_output).sum().backward()
    report = diagnose(module, x, (d_output, None), h0=h0)
    np.testing.assert_allclose(report.flow.initial[0][0], np.log(h0.grad[0].norm(dim=1).numpy()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("level", ["cheap", "standard", "deep"])
def test_what_requires_grad_is_looked_at_and_left_alone(level):
    module = nn.RNN(I, H, 2, dropout=0.5)
    x, h0 = tensor(T, B, I).requires_grad_(), tensor(2, B, H, seed=1).requires_grad_()
    d_output = tensor(T, B, H, seed=2).requires_grad_()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    plain = diagnose(module.eval(), x.detach(), (d_output.detach(), None), h0=h0.detach(), level=level)
    module.train()
    found = diagnose(module, x, (d_output, None), h0=h0, level=level)
    assert found.to_json() == plain.to_json()  # in training mode too: no mask is drawn
    assert module.training and all(p.grad is None and p.requires_grad for p in module.parameters())
    assert x.grad is None and x.requires_grad and h0.grad is None
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_weights_are_copied_and_the_dropout_is_kept():
    module = nn.RNN(I, H, 2, dropout=0.25)
    network = as_rnn(module)
    assert network.spec.dropout == 0.25
    with torch.no_grad():
        module.weight_hh_l0.zero_()
    assert network.params["weight_hh_l0"].any()
    assert not any(p.requires_grad for p in network.params.values())


def test_half_precision_and_a_parametrised_weight():
    half = nn.RNN(I, H, dtype=torch.bfloat16)
    assert diagnose(half, tensor(T, B, I, dtype=torch.bfloat16)).subject.dtype == "bfloat16"
    module = nn.RNN(I, H)
    nn.utils.parametrizations.orthogonal(module, "weight_hh_l0")
    w = as_rnn(module).params["weight_hh_l0"]
    close(w @ w.T, torch.eye(H), torch.float32)


def test_an_rnncore_network_is_itself():
    network = rnncore.RNN(I, H)
    assert as_rnn(network) is network


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(I, I), nn.RNN(I, H))


class OwnForward(nn.RNN):
    def forward(self, x, h0=None):
        return super().forward(2 * x, h0)


class OwnForwardCell(nn.RNNCell):
    def forward(self, x, h0=None):
        return super().forward(2 * x, h0)


class NeedsArguments:
    def parameters(self, kind):
        raise AssertionError(kind)


class OtherParameters:
    def parameters(self):
        return {"w": np.ones(3)}


def replaced_forward():
    module = nn.RNN(I, H)
    module.forward = lambda x: x
    return module


EXPECTED = "expected an rnncore.RNN"
NO_NETWORK = {
    "LSTM": (nn.LSTM(I, H), ["torch.nn.RNN", "torch.nn.RNNCell", "got torch.nn.modules.rnn.LSTM"]),
    "LSTM with a projection": (nn.LSTM(I, H, proj_size=2), ["LSTM"]),
    "GRU": (nn.GRU(I, H), ["got torch.nn.modules.rnn.GRU"]),
    "LSTMCell": (nn.LSTMCell(I, H), ["LSTMCell"]),
    "GRUCell": (nn.GRUCell(I, H), ["GRUCell"]),
    "Linear": (nn.Linear(I, H), ["Linear"]),
    "without parameters": (nn.Tanh(), ["Tanh"]),
    "a model that holds one": (Model(), ["Model", "it holds one at 'inner.1'"]),
    "a class": (nn.RNN, ["got type"]),
    "an RNNCell of ours": (rnncore.RNNCell(I, H), ["rnncore.model.rnn_cell.RNNCell"]),
    "tensor": (torch.ones(3), ["torch.Tensor"]),
    "array": (np.ones(3), ["numpy.ndarray"]),
    "None": (None, ["NoneType"]),
    "function": (lambda x: x, ["function"]),
    "parameters with arguments": (NeedsArguments(), ["NeedsArguments"]),
    "parameters of a backend that converts none": (OtherParameters(), ["OtherParameters"]),
}


@pytest.mark.parametrize(("network", "words"), NO_NETWORK.values(), ids=NO_NETWORK)
def test_anything_else_is_refused(network, words):
    with refused(TypeError, "rnn: ", EXPECTED, *words):
        rnncore.diagnose(network, tensor(T, B, I))


@pytest.mark.parametrize("make", [lambda: OwnForward(I, H), lambda: OwnForwardCell(I, H), replaced_forward])
def test_another_forward_is_refused(make):
    with refused(TypeError, "rnn: ", "own forward"):
        rnncore.diagnose(make(), tensor(T, B, I))


def test_a_module_without_numbers_is_refused():
    with refused(ValueError, "device", "'meta'"):
        rnncore.diagnose(nn.RNN(I, H, device="meta"), tensor(T, B, I))


def test_a_plugin_that_converts_to_nonsense_is_refused(monkeypatch):
    monkeypatch.setattr(rnncore.get_backend("torch"), "from_module", lambda module: 3)
    with refused(TypeError, "backend 'torch'", "got int", "from_module"):
        as_rnn(nn.RNN(I, H))


@pytest.mark.parametrize(
    ("x", "options", "kind", "words"),
    [
        (tensor(T, B, I, dtype=torch.float64), {}, TypeError, ["x", "float32", "float64"]),
        (tensor(T, B, I + 1), {}, ValueError, ["x", f"input_size {I}"]),
        (numbers(T, B, I), {}, TypeError, ["x", "'torch'", "numpy.ndarray"]),
        (torch.ones(T, B, I, dtype=torch.int64), {}, TypeError, ["x", "int64"]),
        (nn.utils.rnn.pack_padded_sequence(tensor(T, B, I), [9, 5, 2]), {}, TypeError, ["x", "PackedSequence"]),
        (tensor(T, B, I), {"h0": tensor(1, B, H + 1)}, ValueError, ["h0"]),
        (tensor(T, B, I), {"cotangent": (tensor(T, B, H + 1), None)}, ValueError, ["cotangent[0]"]),
        (tensor(T, B, I), {"cotangent": tensor(T, B, H)}, TypeError, ["cotangent", "Tensor"]),
        (tensor(T, B, I), {"lengths": [T + 1, 1, 1]}, ValueError, ["lengths[0]"]),
        (tensor(T, B, I), {"level": "chap"}, ValueError, ["level", "did you mean 'cheap'"]),
        (tensor(T, B, I), {"max_bytes": 10}, ValueError, ["max_bytes"]),
    ],
)
def test_bad_input_to_a_module(x, options, kind, words):
    with refused(kind, *words):
        rnncore.diagnose(nn.RNN(I, H), x, **options)


# --- the monitor ------------------------------------------------------------------------------------------------------


@pytest.fixture
def network():
    return rnncore.RNN(I, H, rng=0)


@pytest.fixture
def kept():
    """Its gradients keep their size."""
    return rnncore.RNN(I, H, nonlinearity="identity", init=rnncore.init.orthogonal(1.0), rng=0)


X = numbers(30, B, I)


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


def test_a_log_is_read_back_as_it_was_written(tmp_path, network):
    path, seen = tmp_path / "log.jsonl", []
    with Monitor(every=1, sink=path) as monitor:
        for loss, norm in ((0.5, 1.0), (math.nan, math.inf), (math.inf, math.nan), (None, None), (-math.inf, 0.0)):
            monitor.step(network, X, loss=loss, grad_norm=norm)
            seen.append(monitor.last)
            lines = path.read_bytes().splitlines(keepends=True)  # it is there before step returns
            assert len(lines) == len(seen) and lines[-1].endswith(b"\n")
            json.loads(lines[-1], parse_constant=pytest.fail)
    assert repr(read_log(path)) == repr(seen)
    first = json.loads(path.read_text().splitlines()[0])
    assert first["verdict"] == "vanishing" and {"metric", "value", "threshold", "where"} == set(first["evidence"][0])
    assert json.loads(path.read_text().splitlines()[1])["loss"] == "nan"


def test_a_network_that_is_not_finite_is_logged(tmp_path, network):
    path = tmp_path / "log.jsonl"
    x = X.copy()
    x[3, 1, 2] = np.nan
    with Monitor(every=1, sink=path) as monitor:
        monitor.step(network, x)
    (entry,) = read_log(path)
    assert entry.verdict == "nonfinite" and math.isnan(entry.evidence[0].value) and entry.norms is None


@pytest.mark.parametrize("cut", [1, 5, len(BEGIN), len(BEGIN) + 30, -1])
def test_a_torn_line_is_left_out_and_appended_behind(tmp_path, network, cut):
    path = tmp_path / "log.jsonl"
    with Monitor(every=1, sink=str(path)) as monitor:
        monitor.step(network, X)
        monitor.step(network, X)
    first, second = path.read_bytes().splitlines()
    path.write_bytes(first + b"\n" + (second if cut == -1 else second[:cut]))
    complete = 2 if cut == -1 else 1  # only the end of the line is missing: nothing is lost
    assert len(read_log(path)) == complete
    with Monitor(every=1, sink=path) as monitor:
        monitor.step(network, X)
    assert len(read_log(path)) == complete + 1
    assert path.read_bytes().startswith(first + b"\n")


def test_a_killed_process_leaves_whole_lines(tmp_path):
    path = tmp_path / "log.jsonl"
    code = f"""
import os, numpy as np, rnncore
from rnncore.diagnostics import Monitor
monitor = Monitor(every=1, sink={str(path)!r})
for _ in range(3):
    monitor.step(rnncore.RNN(4, 5, rng=0), np.ones((9, 2, 4)))
os._exit(9)"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert [e.step for e in read_log(path)] == [1, 2, 3]


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


GOOD = '{"rnncore_monitor": 1, "step": 1, "loss": null, "verdict": "healthy", "summary": "", "evidence": [], "norms": null}'


@pytest.mark.parametrize(
    "line",
    [
        "hello",
        "[]",
        "3",
        "null",
        "{}",
        GOOD.replace('"rnncore_monitor": 1', '"rnncore_monitor": 2'),
        GOOD.replace('"step": 1', '"step": "1"'),
        GOOD.replace('"step": 1', '"step": true'),
        GOOD.replace('"loss": null', '"loss": "1.5"'),
        GOOD.replace('"loss": null, ', ""),
        GOOD.replace('"healthy"', "3"),
        GOOD.replace("[]", "[3]"),
        GOOD.replace("[]", "7"),
        GOOD.replace('"norms": null', '"norms": []'),
        "[" * 100_000,
        "\x00" * 50,
        "é",
        GOOD + " " * MAX_LINE,
    ],
)
def test_a_line_that_no_monitor_writes_is_refused_with_its_number(tmp_path, line):
    path = tmp_path / "log.jsonl"
    path.write_text(f"{GOOD}\n{line}\n{GOOD}\n", encoding="utf-8")
    with refused(ValueError, "log.jsonl, line 2"):
        read_log(path)


def test_logs_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_log(tmp_path / "none")
    with refused(ValueError, "regular file"):
        read_log("/dev/zero")
    (tmp_path / "empty").touch()
    assert read_log(tmp_path / "empty") == []


# --- callbacks, called as the libraries' loops call them --------------------------------------------------------------


class LightningLike:
    """What a Trainer does with a callback, for automatic optimisation with gradient clipping."""

    def fit(self, module, batches, callback, outputs):
        optimiser = torch.optim.SGD(module.parameters(), 0.1)
        for k, batch in enumerate(batches):
            x, y = batch
            loss = nn.functional.mse_loss(module.head(module.encoder.rnn(x)[0][-1]), y)
            optimiser.zero_grad()
            loss.backward()
            callback.on_before_optimizer_step(self, module, optimiser)
            nn.utils.clip_grad_norm_(module.parameters(), 1e-6)
            optimiser.step()
            callback.on_train_batch_end(self, module, outputs(loss.detach()), batch, k)


class Lit(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.rnn, self.head = nn.RNN(I, H), nn.Linear(H, 1)


@QUIET
@pytest.mark.parametrize(
    "outputs", [lambda v: {"loss": v}, lambda v: v, lambda v: None], ids=["mapping", "tensor", "None"]
)
@pytest.mark.parametrize("find", ["encoder.rnn", lambda module: module.encoder.rnn], ids=["path", "function"])
def test_lightnings_convention(find, outputs):
    seen, module = [], Lit()
    callback = Monitor(every=3, sink=seen.append, rows=2).lightning_callback(find)
    LightningLike().fit(module, [(tensor(T, B, I, seed=k), tensor(B, 1)) for k in range(7)], callback, outputs)
    assert [e.step for e in seen] == [3, 6]
    assert seen[-1].norms.steps == 6 and seen[-1].norms.quantiles[0.5] > 1e-3  # before the clipping
    assert (seen[-1].loss is None) == (outputs(1.0) is None)


def test_lightning_without_an_optimiser_step_and_with_another_batch():
    seen, module = [], Lit()
    callback = Monitor(every=1, sink=seen.append).lightning_callback("encoder.rnn", lambda batch: batch["x"])
    callback.on_before_optimizer_step(None, module, None)  # no gradient yet
    callback.on_train_batch_end(None, module, None, {"x": tensor(T, B, I)}, 0)
    callback.on_train_batch_end(None, module, None, {"x": tensor(T, B, I)}, 1, 0)  # a dataloader's number, of old
    assert [e.norms for e in seen] == [None, None]
    bare = Monitor(every=1, sink=seen.append).lightning_callback("encoder.rnn")
    bare.on_train_batch_end(None, module, None, tensor(T, B, I), 0)
    assert len(seen) == 3


class Base:
    def __init__(self):
        self.model = None

    def set_model(self, model):
        self.model = ("wrapped", model)

    def on_fit_start(self, trainer, module):
        return "base"

    def on_train_batch_end(self, *rest):
        raise AssertionError


def test_a_librarys_own_class_lends_the_other_methods():
    callback = Monitor().lightning_callback("rnn", base=Base)
    assert isinstance(callback, Base) and callback.on_fit_start(None, None) == "base"
    callback.on_train_batch_end(None, None, None, None, 0)
    keras = Monitor().keras_callback(rnncore.RNN(I, H), X, base=Base)
    keras.set_model(3)
    assert isinstance(keras, Base) and keras.model == ("wrapped", 3)


@QUIET
def test_keras_convention():
    seen, asked = [], []
    weights = {"kernel": numbers(I, H), "recurrent_kernel": numbers(H, H, seed=1) / 3, "bias": numbers(H, seed=2)}

    def network(model):
        asked.append(model)
        rnn = rnncore.RNN(I, H, batch_first=True)
        k, r, b = (model[n] for n in ("kernel", "recurrent_kernel", "bias"))
        rnn.load_state_dict({"weight_ih_l0": k.T, "weight_hh_l0": r.T, "bias_ih_l0": b, "bias_hh_l0": 0 * b})
        return rnn

    callback = Monitor(every=2, sink=seen.append).keras_callback(network, numbers(B, T, I))
    callback.set_params({"epochs": 1, "steps": 5, "verbose": 0})
    callback.set_model(weights)
    for batch in range(5):
        callback.on_train_batch_end(batch, {"loss": 0.5 - 0.1 * batch} if batch < 3 else None)
    assert [(e.step, e.loss) for e in seen] == [(2, 0.4), (4, None)]
    assert asked == [weights, weights]  # only where it is due
    assert callback.params["steps"] == 5


@pytest.mark.parametrize("network", [rnncore.RNN(I, H), nn.RNN(I, H, dtype=torch.float64)], ids=["ours", "torch"])
def test_keras_with_a_network_and_a_function_for_x(network):
    seen = []
    x = X if network.__class__ is rnncore.RNN else torch.tensor(X)
    callback = Monitor(every=1, sink=seen.append).keras_callback(network, lambda: x)
    callback.on_train_batch_end(0, {"loss": 1.0})
    assert seen[0].loss == 1.0


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda m: m.lightning_callback(3), TypeError, ["network", "int"]),
        (lambda m: m.lightning_callback("a..b"), ValueError, ["network", "'a..b'"]),
        (lambda m: m.lightning_callback(""), ValueError, ["network"]),
        (lambda m: m.lightning_callback("rnn", 3), TypeError, ["inputs", "int"]),
        (lambda m: m.lightning_callback("rnn", base=3), TypeError, ["base", "int"]),
        (lambda m: m.keras_callback(3, X), TypeError, ["rnn", "int"]),
        (lambda m: m.keras_callback(rnncore.RNN(I, H), X, base="keras"), TypeError, ["base", "str"]),
        (
            lambda m: m.lightning_callback("encoder.lstm").on_train_batch_end(None, Lit(), None, None, 0),
            ValueError,
            ["network", "'encoder.lstm'", "'lstm'"],
        ),
        (
            lambda m: m.lightning_callback("head").on_train_batch_end(None, Lit(), None, None, 0),
            TypeError,
            ["rnn", "Linear"],
        ),
        (
            lambda m: m.lightning_callback("encoder.rnn").on_train_batch_end(None, Lit(), None, {"x": 3}, 0),
            TypeError,
            ["x", "dict"],
        ),
        (
            lambda m: m.keras_callback(lambda model: model, X).on_train_batch_end(0, {}),
            TypeError,
            ["rnn", "NoneType"],
        ),
    ],
)
def test_bad_callbacks(make, kind, words):
    with refused(kind, *words):
        make(Monitor(every=1))


# --- the command ------------------------------------------------------------------------------------------------------

PLAIN = {k: v for k, v in os.environ.items() if k not in {"FORCE_COLOR", "TTY_COMPATIBLE", "RNNCORE_BACKEND"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Networks and inputs, good and bad."""
    path = tmp_path_factory.mktemp("diagnose")
    rnncore.RNN(I, H, rng=0, dtype="float32").save(path / "w.safetensors")
    rnncore.RNN(I, H, rng=0).save(path / "w.npz")
    rnncore.RNN(I, H, nonlinearity="identity", init=rnncore.init.orthogonal(1.0), rng=0).save(path / "good.safetensors")
    custom = rnncore.custom_nonlinearity(lambda z, *, xp: z, lambda z, *, xp: xp.ones_like(z), name="mine")
    rnncore.RNN(I, H, nonlinearity=custom, rng=0).save(path / "custom.safetensors")
    arrays = {
        "x": X,
        "x32": X.astype("f4"),
        "ints": (X > 0).astype("i8"),
        "big-endian": X.astype(">f8"),
        "d": np.ones((30, B, H)),
        "huge": np.full((5, B, I), 1e300),
        "nan": np.full((5, B, I), np.nan),
        "bool": X > 0,
        "complex": X.astype(complex),
        "object": np.asarray([{}], dtype=object),
        "string": np.full((3, B, I), "a"),
        "fortran": numbers(I, B, T).T,
        "1-D": np.ones(I),
        "4-D": np.ones((1, 5, B, I)),
        "0-D": np.ones(()),
        "T = 0": np.ones((0, B, I)),
        "features": np.ones((5, B, I + 2)),
    }
    if np.dtype(np.longdouble).itemsize > 8:
        arrays["longdouble"] = X.astype(np.longdouble)
    for name, value in arrays.items():
        np.save(path / f"{name}.npy", value, allow_pickle=True)
    whole = (path / "x.npy").read_bytes()
    (path / "truncated.npy").write_bytes(whole[:-8])
    (path / "longer.npy").write_bytes(whole + b"\0")
    (path / "head.npy").write_bytes(whole[:20])
    (path / "empty.npy").write_bytes(b"")
    (path / "text.npy").write_text("1 2 3\n")
    (path / "claims.npy").write_bytes(whole.replace(b"(30, 3, 4), }       ", b"(99999999999, 3, 4)}"))
    (path / "claims much.npy").write_bytes(whole.replace(b"(30, 3, 4), }       ", b"(99999999, 3, 4), } "))
    np.savez(path / "zip.npy.npz", X)
    (path / "folder.npy").mkdir()
    return path


def command(folder, *arguments, code="", env=()):
    script = (
        f"import sys\n{code}\nfrom rnncore.commands.cli import main\n"
        f"sys.argv = ['rnncore', 'diagnose', *{arguments!r}]\nsys.exit(main())"
    )
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        encoding="utf-8",
        cwd=folder,
        env={**PLAIN, **dict(env)},
        check=False,
    )


def test_status_0_is_healthy_and_1_is_not(folder):
    good = command(folder, "good.safetensors", "--input", "x.npy")
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout.startswith("healthy: ") and "\x1b" not in good.stdout
    bad = command(folder, "w.safetensors", "--input", "x.npy")
    assert (bad.returncode, bad.stderr) == (1, "")
    assert bad.stdout.startswith("vanishing: ") and "  try      " in bad.stdout
    nan = command(folder, "w.safetensors", "--input", "nan.npy")
    assert nan.returncode == 1 and nan.stdout.startswith("nonfinite: ")


@pytest.mark.parametrize("x", ["x.npy", "x32.npy", "ints.npy", "big-endian.npy"])
@pytest.mark.parametrize("weights", ["w.safetensors", "w.npz"])
def test_json_is_the_reports(folder, weights, x):
    done = command(folder, weights, "--input", x, "--json", "-")
    assert (done.returncode, done.stderr) == (1, "")
    rnn = rnncore.load(folder / weights, backend="numpy")
    report = diagnose(rnn, np.load(folder / x).astype(rnn.dtype))
    assert json.loads(done.stdout) == json.loads(report.to_json())


def test_html_is_the_reports(folder, tmp_path):
    path = tmp_path / "out.html"
    path.write_text("what was there before")
    done = command(folder, "w.npz", "--input", "x.npy", "--html", str(path))
    assert (done.returncode, done.stderr) == (1, "") and done.stdout.startswith("vanishing: ")
    want = diagnose(rnncore.load(folder / "w.npz", backend="numpy"), X).to_html()
    assert path.read_text(encoding="utf-8") == want
    # On a terminal that speaks no UTF-8 too, as the page says that it is UTF-8.
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code = "import rnncore.diagnostics.report.page as p\np.READ['flow'] = '\\u2202L/\\u2202h'"
    shown = command(folder, "w.npz", "--input", "x.npy", "--html", "-", code=code, env=env)
    assert shown.returncode == 1 and shown.stdout.startswith("<!doctype html>") and "\u2202L/\u2202h" in shown.stdout
    both = command(folder, "good.safetensors", "--input", "x.npy", "--html", str(path), "--json", "-")
    assert both.returncode == 0 and json.loads(both.stdout)["verdict"]["label"] == "healthy"
    assert '<h1 class="good">healthy</h1>' in path.read_text(encoding="utf-8")


NEVER = "import rnncore.commands.diagnose as c\nc.read_npy = lambda *a: sys.exit('it has begun')\n"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is protected from root")
def test_a_protected_file_is_seen_before_the_work(folder, tmp_path):
    (tmp_path / "out.html").touch(mode=0o400)
    done = command(folder, *GIVEN, "x.npy", "--html", str(tmp_path / "out.html"), code=NEVER)
    assert done.returncode == 2 and "--html: expected a file that can be written" in done.stderr


@pytest.mark.parametrize("path", ["folder.npy", "/no/such/out.html"])
def test_a_bad_path_is_seen_before_the_work(folder, path):
    done = command(folder, *GIVEN, "x.npy", "--html", path, code=NEVER)
    expected = f"rnncore: --html: expected a file that can be written, got {path!r}\n"
    assert (done.returncode, done.stderr) == (2, expected)


def test_without_matplotlib_the_command_that_brings_it_is_said_before_the_work(folder, tmp_path):
    path = tmp_path / "out.html"
    code = NEVER + "sys.modules['matplotlib'] = None"
    done = command(folder, *GIVEN, "x.npy", "--html", str(path), code=code)
    expected = 'rnncore: --html: a figure needs matplotlib: pip install "rnncore[demo]"\n'
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)
    assert not path.exists()
    without = command(folder, *GIVEN, "x.npy", code="sys.modules['matplotlib'] = None")
    assert without.returncode == 1 and without.stdout.startswith("vanishing: ")


def test_every_option_arrives(folder, tmp_path):
    path = tmp_path / "out.json"
    done = command(
        folder,
        *("w.safetensors", "--input", "x.npy", "--backend", "torch", "--device", "cpu", "--level", "deep"),
        *("--lengths", "14, 0,27", "--dependency-length", "20", "--cotangent", "d.npy", "--json", str(path)),
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("vanishing: ")
    rnn = rnncore.load(folder / "w.safetensors", backend="torch")
    given = torch.tensor(X, dtype=torch.float32)
    pull = (torch.ones(30, B, H), None)
    report = diagnose(rnn, given, pull, lengths=[14, 0, 27], dependency_length=20, level="deep")
    got, want = json.loads(path.read_text()), json.loads(report.to_json())
    assert (got["subject"], got["verdict"]["label"]) == (want["subject"], want["verdict"]["label"])
    assert got["gradcheck"] is not None and got["subject"]["lengths"] == [14, 0, 27]


def test_the_selected_backend_is_the_default(folder):
    done = command(folder, "w.safetensors", "--input", "x.npy", "--json", "-", env={"RNNCORE_BACKEND": "torch"})
    assert json.loads(done.stdout)["subject"]["backend"] == "torch"


def test_a_plugin_that_prints_does_not_disturb_the_document(folder):
    done = command(
        folder,
        *("w.safetensors", "--input", "x.npy", "--json", "-"),
        code="import rnncore.backend.registry as r\nf = r.get_backend\nimport rnncore.commands.diagnose as c\n"
        "c.get_backend = lambda n: (print('hello'), f(n))[1]",
    )
    json.loads(done.stdout)
    assert "hello" in done.stderr


GIVEN = ("w.safetensors", "--input")
BAD_CALLS = {
    "no input": (("w.safetensors",), ["--input"]),
    "no weights": (("--input", "x.npy"), ["weights"]),
    "weights absent": (("no.safetensors", "--input", "x.npy"), ["no.safetensors"]),
    "weights of another kind": (("x.npy", "--input", "x.npy"), [".safetensors", "x.npy"]),
    "weights that are none": (("zip.npy.npz", "--input", "x.npy"), ["zip.npy.npz"]),
    "own nonlinearity": (("custom.safetensors", "--input", "x.npy"), ["nonlinearity"]),
    "input absent": ((*GIVEN, "no.npy"), ["no.npy"]),
    "input a folder": ((*GIVEN, "folder.npy"), ["folder.npy"]),
    "input a device": ((*GIVEN, "/dev/zero"), ["--input", "/dev/zero", "regular file"]),
    "input a zip": ((*GIVEN, "zip.npy.npz"), ["--input", "header"]),
    "text": ((*GIVEN, "text.npy"), ["--input", "text.npy", "header"]),
    "empty": ((*GIVEN, "empty.npy"), ["--input", "empty.npy"]),
    "a header's half": ((*GIVEN, "head.npy"), ["--input", "head.npy"]),
    "truncated": ((*GIVEN, "truncated.npy"), ["--input", "2880", "2872"]),
    "longer": ((*GIVEN, "longer.npy"), ["--input", "2880", "2881"]),
    "claims too much": ((*GIVEN, "claims much.npy"), ["--input"]),
    "claims with another header": ((*GIVEN, "claims.npy"), ["--input", "header"]),
    "bool": ((*GIVEN, "bool.npy"), ["--input", "real numbers", "bool"]),
    "complex": ((*GIVEN, "complex.npy"), ["--input", "complex.npy"]),
    "object": ((*GIVEN, "object.npy"), ["--input", "Python objects"]),
    "string": ((*GIVEN, "string.npy"), ["--input", "plain numbers"]),
    "Fortran order": ((*GIVEN, "fortran.npy"), ["--input", "C order"]),
    "beyond float32": ((*GIVEN, "huge.npy"), ["--input", "float32", "[0, 0, 0] = 1e+300"]),
    "1-D": ((*GIVEN, "1-D.npy"), ["x", "(4,)"]),
    "4-D": ((*GIVEN, "4-D.npy"), ["x", "(1, 5, 3, 4)"]),
    "0-D": ((*GIVEN, "0-D.npy"), ["x", "()"]),
    "T = 0": ((*GIVEN, "T = 0.npy"), ["x", "at least one time step"]),
    "features": ((*GIVEN, "features.npy"), ["x", "input_size 4"]),
    "level": ((*GIVEN, "x.npy", "--level", "chap"), ["level", "did you mean 'cheap'"]),
    "backend": ((*GIVEN, "x.npy", "--backend", "nump"), ["'nump'", "Did you mean 'numpy'"]),
    "device": ((*GIVEN, "x.npy", "--device", "tpu"), ["device", "'tpu'"]),
    "lengths too many": ((*GIVEN, "x.npy", "--lengths", "1,2,3,4"), ["lengths", "3 entries", "4"]),
    "lengths too long": ((*GIVEN, "x.npy", "--lengths", "1,2,31"), ["lengths[2]", "[0, 30]"]),
    "lengths negative": ((*GIVEN, "x.npy", "--lengths", "1,-2,3"), ["--lengths", "'-2'", "place 1"]),
    "lengths with words": ((*GIVEN, "x.npy", "--lengths", "a"), ["--lengths", "'a'"]),
    "lengths empty": ((*GIVEN, "x.npy", "--lengths", ""), ["--lengths"]),
    "lengths of many digits": ((*GIVEN, "x.npy", "--lengths", "9" * 5000), ["--lengths"]),
    "dependency 0": ((*GIVEN, "x.npy", "--dependency-length", "0"), ["--dependency-length"]),
    "dependency in words": ((*GIVEN, "x.npy", "--dependency-length", "long"), ["--dependency-length"]),
    "cotangent absent": ((*GIVEN, "x.npy", "--cotangent", "no.npy"), ["no.npy"]),
    "cotangent's shape": ((*GIVEN, "x.npy", "--cotangent", "x.npy"), ["cotangent[0]", "(30, 3, 5)", "(30, 3, 4)"]),
    "cotangent's kind": ((*GIVEN, "x.npy", "--cotangent", "object.npy"), ["--cotangent", "Python objects"]),
    "html nowhere": ((*GIVEN, "x.npy", "--html", "/no/such/out.html"), ["--html", "/no/such/out.html"]),
    "html a folder": ((*GIVEN, "x.npy", "--html", "folder.npy"), ["--html", "folder.npy"]),
    "html without a name": ((*GIVEN, "x.npy", "--html", ""), ["--html", "''"]),
    "html under a file": ((*GIVEN, "x.npy", "--html", "x.npy/out.html"), ["--html", "x.npy/out.html"]),
    "html on a full disk": ((*GIVEN, "x.npy", "--html", "/dev/full"), ["No space left"]),
    "one file for both": ((*GIVEN, "x.npy", "--json", "out", "--html", "./out"), ["--html", "--json", "'./out'"]),
    "one output for both": ((*GIVEN, "x.npy", "--json", "-", "--html", "-"), ["--html", "--json", "'-'"]),
    "json nowhere": ((*GIVEN, "x.npy", "--json", "/no/such/out.json"), ["--json", "/no/such/out.json"]),
    "unknown option": ((*GIVEN, "x.npy", "--nonsense"), ["--nonsense"]),
}
if np.dtype(np.longdouble).itemsize > 8:
    BAD_CALLS["longdouble"] = ((*GIVEN, "longdouble.npy"), ["--input", "longdouble.npy"])


@pytest.mark.parametrize(("arguments", "words"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_a_bad_call_is_one_line_and_status_2(folder, capfd, monkeypatch, arguments, words):
    """In this process: starting one for each would take minutes."""
    from rnncore.commands.cli import main

    monkeypatch.chdir(folder)
    monkeypatch.delenv("RNNCORE_BACKEND", raising=False)
    monkeypatch.setattr(sys, "argv", ["rnncore", "diagnose", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    written, said = capfd.readouterr()
    assert stopped.value.code == 2
    assert written == ""
    assert said.startswith("rnncore: ") and said.count("\n") == 1, said
    for word in words:
        assert word in said


def test_a_mistake_in_the_program_is_shown_and_is_no_verdict(folder):
    done = command(folder, *GIVEN, "x.npy", code="import rnncore.commands.diagnose as c\nc.read_npy = lambda *a: 1 / 0")
    assert done.returncode == 2 and "ZeroDivisionError" in done.stderr


def test_memory_that_is_not_there_is_one_line(folder):
    code = "import rnncore.commands.diagnose as c\ndef f(*a): raise MemoryError('of 9 TiB')\nc.read_npy = f"
    done = command(folder, *GIVEN, "x.npy", code=code)
    assert (done.returncode, done.stderr) == (2, "rnncore: there is not enough memory: of 9 TiB\n")


def test_nothing_in_a_file_is_executed(folder, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    np.save(folder / "bomb.npy", np.asarray([Bomb()], dtype=object), allow_pickle=True)
    assert command(folder, *GIVEN, "bomb.npy").returncode == 2
    assert not (tmp_path / "executed").exists()


def test_progress_only_where_there_is_a_terminal(folder, tmp_path):
    import pty

    parent, child = pty.openpty()
    script = "import sys\nfrom rnncore.commands.cli import main\nsys.exit(main())"
    call = [sys.executable, "-c", script, "diagnose", "w.safetensors", "--input", "x.npy", "--json", "-"]
    call += ["--html", str(tmp_path / "out.html")]
    environment = {**PLAIN, "TERM": "xterm"}
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=child, cwd=folder, env=environment) as process:
        os.close(child)
        shown = b""
        try:
            while piece := os.read(parent, 65536):
                shown += piece
        except OSError:  # Linux's way of saying that the other end has closed
            pass
        written = process.stdout.read()
    os.close(parent)
    assert b"reading" in shown or b"diagnosing" in shown
    assert b"drawing the page" in shown
    json.loads(written)
