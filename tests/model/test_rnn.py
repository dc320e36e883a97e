"""RNN's own: torch's arguments and shapes, dtypes, initial weights, and a backend chosen by import."""

import pickle

import numpy as np
import pytest
import rnncore_numpy
import rnncore_torch
import torch

import rnncore
from tests.tools.models import backends, give


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("batch_first", [False, True])
@backends
def test_shapes_are_torchs(backend, batch_first, layers, bidirectional):
    peer = torch.nn.RNN(5, 6, layers, batch_first=batch_first, bidirectional=bidirectional)
    ours = rnncore.RNN(
        5, 6, layers, batch_first=batch_first, bidirectional=bidirectional, backend=backend, dtype="float32"
    )
    for shape in ((2, 3, 5), (4, 5)):
        want, got = peer(torch.zeros(shape)), ours(give(ours, np.zeros(shape)))
        assert [tuple(a.shape) for a in got] == [tuple(a.shape) for a in want]


def test_the_arguments_have_torchs_names_order_and_defaults():
    import inspect

    ours = list(inspect.signature(rnncore.RNN.__init__).parameters.values())[1:]
    names = [
        "input_size",
        "hidden_size",
        "num_layers",
        "nonlinearity",
        "bias",
        "batch_first",
        "dropout",
        "bidirectional",
    ]
    assert [p.name for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD] == names
    defaults = {p.name: p.default for p in ours}
    assert (defaults["num_layers"], defaults["nonlinearity"], defaults["bias"]) == (1, "tanh", True)
    assert {"device", "dtype", "backend", "rng", "kernel"} <= set(defaults)
    positional = rnncore.RNN(5, 6, 2, "relu", False, True, 0.5, True)
    assert (
        positional.spec
        == rnncore.RNN(
            5, 6, num_layers=2, nonlinearity="relu", bias=False, batch_first=True, dropout=0.5, bidirectional=True
        ).spec
    )


def test_default_dtypes_are_the_librarys_own():
    assert rnncore.RNN(2, 3).dtype == np.float64
    assert rnncore.RNN(2, 3, backend="torch").dtype == torch.float32


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_runs_on_torch_and_survives_a_pickle(dtype):
    rnn = rnncore.RNN(3, 4, backend="torch", dtype=dtype, rng=0)
    output, _, pullback = rnn.vjp(give(rnn, np.ones((5, 2, 3))))
    assert str(pullback(output).x.dtype) == f"torch.{dtype}"
    back = pickle.loads(pickle.dumps(rnn))
    for k, v in rnn.params.items():
        assert torch.equal(v, back.params[k])


def test_half_precision_runs_on_numpy_by_the_reference():
    rnn = rnncore.RNN(3, 4, dtype="float16", rng=0)
    assert rnn(np.ones((5, 2, 3), dtype="f2"))[0].dtype == np.float16
    assert "no BLAS" in str(rnn.explain())


def test_choosing_a_backend_in_the_line_that_imports_it():
    for module, name in ((rnncore_numpy, "numpy"), (rnncore_torch, "torch")):
        with rnncore.use_backend("numpy" if name == "torch" else "torch"):
            rnn, cell = module.RNN(2, 3), module.RNNCell(2, 3)
        assert rnn.backend == cell.backend == name
        assert isinstance(rnn, rnncore.RNN) and isinstance(cell, rnncore.RNNCell)
        assert type(pickle.loads(pickle.dumps(rnn))) is module.RNN
        assert type(pickle.loads(pickle.dumps(cell))) is module.RNNCell
        assert repr(rnn).startswith("RNN(2, 3, backend=")
        assert module.RNN(2, 3, backend="numpy").backend == "numpy"
