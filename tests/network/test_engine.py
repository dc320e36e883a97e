"""Which code runs a scan, and why."""

import numpy as np
import pytest

import rnncore
from rnncore.errors import KernelUnsupportedError


def test_explain_says_which_path_runs_and_why():
    assert [c.path for c in rnncore.RNN(2, 3).explain().choices] == ["kernel", "kernel"]
    reference = rnncore.RNN(2, 3, kernel="reference").explain()
    assert [c.path for c in reference.choices] == ["reference", "reference"]
    odd = rnncore.RNN(2, 3, nonlinearity="softplus")
    assert [c.path for c in odd.explain().choices] == ["reference", "kernel"]
    assert "softplus" in str(odd.explain()) and "backend numpy, device cpu, float64" in str(odd.explain())


def test_require_is_never_answered_by_the_reference():
    rnn = rnncore.RNN(2, 3, nonlinearity="softplus", kernel="require")
    with pytest.raises(KernelUnsupportedError, match="softplus"):
        rnn(np.ones((2, 3, 2)))
    with pytest.raises(KernelUnsupportedError, match="softplus"):
        rnn.explain()


def test_an_error_inside_a_kernel_is_seen(monkeypatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("inside")

    monkeypatch.setattr(type(rnncore.get_backend("numpy").scans()), "nonlinear", broken)
    with pytest.raises(ZeroDivisionError, match="inside"):
        rnncore.RNN(2, 3)(np.ones((2, 3, 2)))


def test_the_kernel_really_runs(monkeypatch):
    seen = []
    scans = type(rnncore.get_backend("numpy").scans())
    for name in ("nonlinear", "linear"):
        real = getattr(scans, name)
        monkeypatch.setattr(
            scans, name, lambda self, *a, _r=real, _n=name, **k: (seen.append(_n), _r(self, *a, **k))[1]
        )
    rnncore.RNN(2, 3)(np.ones((2, 3, 2)))
    rnncore.RNN(2, 3).vjp(np.ones((2, 3, 2)))[2](np.ones((2, 3, 3)))
    assert seen == ["nonlinear", "nonlinear", "linear"]
