"""The rule that chooses tiles, BLAS and threads, and its explanation."""

import pytest
from rnncore_numba import _rule, _scans

import rnncore
from rnncore.nonlinearity.nonlinearity import get_nonlinearity
from tests.tools.numba_scans import SCANS, arguments, request


@pytest.mark.parametrize(
    ("shape", "blas", "threads"),
    [
        ((256, 1, 64), False, 1),
        ((1024, 1, 16), False, 1),
        ((128, 32, 128), False, 4),
        ((100, 16, 256), False, 4),
        ((512, 64, 512), False, 16),
        ((5000, 1, 128), False, 1),
        ((1, 1, 512), True, 1),
        ((4, 4, 256), True, 1),
        ((8, 4, 512), False, 1),
        ((5000, 7, 512), False, 1),
        ((5000, 8, 512), False, 2),
        ((64, 64, 4096), True, 1),
    ],
)
def test_the_rule(shape, blas, threads):
    assert _rule.plan(*shape, 4) == (blas, threads)
    words = SCANS.explain(request(*shape))
    assert ("BLAS" in words) == blas
    assert ("rows divided among threads" in words) == (threads > 1)


@pytest.mark.parametrize("shape", [(40, 2, 24), (1, 1, 200), (60, 16, 160)])
def test_what_is_explained_is_what_runs(shape, monkeypatch):
    ran = []

    class Spy:
        def __init__(self, real):
            self.real = real

        def __getattr__(self, name):
            ran.append(name)
            return getattr(self.real, name)

    parts = []
    real_run = _scans.run
    monkeypatch.setattr(_scans, "allowed", lambda: 2)
    monkeypatch.setattr(_scans, "run", lambda f, rows: (parts.append(len(rows)), real_run(f, rows)))
    scans = _scans.NumbaScans()
    real = scans._functions
    monkeypatch.setattr(scans, "_functions", lambda *key: Spy(real(*key)))
    p, _, h0, w = arguments("float32", *shape)
    words = scans.explain(request(*shape))
    scans.nonlinear(p, h0, w, nonlinearity=get_nonlinearity("tanh"), reverse=False)
    assert ("BLAS" in words) == ("finish" in ran) == ("pack" not in ran)
    assert ("2 allowed now" in words) == (parts == [2])


def test_rnn_explain_tells_the_way_and_the_reason():
    rnn = rnncore.RNN(8, 200, backend="numba", dtype="float32")
    assert "backend 'numba': compiled, in one thread: one sequence" in str(rnn.explain(steps=100))
    assert "step by step with BLAS: T = 1" in str(rnn.explain(steps=1))
    assert "step by step" not in str(rnncore.RNN(8, 200, backend="numpy").explain(steps=1))
