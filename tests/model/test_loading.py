"""Files of bare arrays, as other libraries write them: the network in them, and what they leave open."""

import contextlib
import json
import struct
import sys
import warnings

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

import rnncore
from rnncore.errors import (
    ArgumentValueError,
    BackendUnavailableError,
    FileFormatError,
    InterchangeError,
    RnncoreError,
    UnknownNameError,
)
from tests.interchange.networks import network, reference
from tests.tools.rounding import agree

SAID = {"nonlinearity": "tanh", "batch_first": False}
WRITERS = {
    "safetensors": lambda arrays, path: safetensors.numpy.save_file(arrays, path),
    "npz": lambda arrays, path: np.savez(path, **arrays),
}
suffixes = pytest.mark.parametrize("suffix", WRITERS)


def torch_arrays(prefix="", **options):
    return {prefix + n: a for n, a in network(**options).params.items()}


@suffixes
@pytest.mark.parametrize("prefix", ["", "rnn.", "model.encoder."])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}], ids=str)
def test_torchs_names_with_any_path_before_them(tmp_path, suffix, prefix, options):
    path = tmp_path / f"w.{suffix}"
    WRITERS[suffix](torch_arrays(prefix, **options), path)
    rnn = rnncore.load(path, **SAID)
    given = network(**options)
    assert rnn.spec == given.spec and all(np.array_equal(rnn.params[n], a) for n, a in given.params.items())


@suffixes
def test_the_network_of_a_name_and_what_is_left_out(tmp_path, suffix):
    path = tmp_path / f"w.{suffix}"
    WRITERS[suffix](torch_arrays("a.") | torch_arrays("b.", seed=1) | {"steps": np.arange(3)}, path)
    with pytest.raises(ArgumentValueError, match=r"name: expected .*'a', 'b', got None"):
        rnncore.load(path, **SAID)
    with pytest.raises(UnknownNameError, match=r"name: expected .*'a', 'b', got 'c'"):
        rnncore.load(path, name="c", **SAID)
    with pytest.warns(UserWarning, match=r"left out: 5 arrays beside the network 'b': a\.bias_hh_l0.*steps"):
        rnn = rnncore.load(path, name="b", **SAID)
    assert np.array_equal(rnn.params["weight_hh_l0"], network(seed=1).params["weight_hh_l0"])


def test_mlx_names_of_mlx_itself(tmp_path):
    nn = pytest.importorskip("mlx.nn", reason='MLX is not installed: pip install "rnncore[mlx]"', exc_type=ImportError)
    mx = pytest.importorskip("mlx.core", reason="as above", exc_type=ImportError)
    module = nn.Sequential(nn.RNN(3, 5), nn.RNN(5, 4))
    x = np.random.default_rng(0).standard_normal((2, 7, 3)).astype("f4")
    for name in ("w.safetensors", "w.npz"):
        module.save_weights(str(tmp_path / name))
        rnn = rnncore.load(tmp_path / name, nonlinearity="tanh", batch_first=True)
        agree(np.array(module(mx.array(x))), reference(rnn.portable(), x)[0])


def test_matrices_in_fortran_order(tmp_path):
    arrays = {n: np.asfortranarray(a) for n, a in torch_arrays().items()}
    np.savez(tmp_path / "w.npz", **arrays)
    rnn = rnncore.load(tmp_path / "w.npz", **SAID)
    assert all(np.array_equal(rnn.params[n], a) for n, a in arrays.items())


def test_bfloat16_is_read_exactly(tmp_path):
    path = tmp_path / "w.safetensors"
    state = torch.nn.RNN(3, 5, dtype=torch.bfloat16).state_dict()
    safetensors.torch.save_file(state, path)
    rnn = rnncore.load(path, backend="torch", **SAID)
    assert rnn.dtype == torch.bfloat16 and all(torch.equal(rnn.params[n], p) for n, p in state.items())
    assert rnncore.load(path, dtype="float32", **SAID).backend == "numpy"


@suffixes
def test_what_an_own_file_says_may_be_said_again_but_not_otherwise(tmp_path, suffix):
    path = tmp_path / f"w.{suffix}"
    rnncore.RNN(3, 4).save(path)
    assert rnncore.load(path, nonlinearity="Tanh", batch_first=False).spec == rnncore.RNN(3, 4).spec
    for argument, value in (("name", "rnn"), ("batch_first", True), ("nonlinearity", "relu")):
        with pytest.raises(ArgumentValueError, match=f"{argument}: expected"):
            rnncore.load(path, **{argument: value})


@suffixes
@pytest.mark.parametrize(
    ("arrays", "said", "error", "words"),
    [
        ({}, {}, InterchangeError, "no network of this kind"),
        (torch_arrays(), {"nonlinearity": None}, FileFormatError, "say what they leave open"),
        (torch_arrays(), {"batch_first": None}, FileFormatError, "say what they leave open"),
        (torch_arrays(), {"nonlinearity": "tan"}, ValueError, "nonlinearity: .*did you mean 'tanh'"),
        (torch_arrays(), {"batch_first": 1}, TypeError, "batch_first: expected True or False, got 1"),
        (torch_arrays(), {"name": 3}, ValueError, "name: .*got 3"),
        (torch_arrays() | {"bias_hh_l0": np.ones(4, "f4")}, {}, InterchangeError, r"got \(4,\)"),
        (torch_arrays() | {"bias_hh_l0": np.ones(5, "i4")}, {}, FileFormatError, "bias_hh_l0: expected .*(float|F32)"),
        (torch_arrays() | {"bias_hh_l0": np.ones(5, "f8")}, {}, InterchangeError, "float32, float64"),
        (torch_arrays() | {"weight_hh_l0": np.ones((15, 5), "f4")}, {}, InterchangeError, "a GRU"),
    ],
)
def test_what_is_no_network_is_named(tmp_path, suffix, arrays, said, error, words):
    path = tmp_path / f"w.{suffix}"
    WRITERS[suffix](arrays or {"a": np.ones(3)}, path)
    with pytest.raises(RnncoreError, match=words) as caught:
        rnncore.load(path, **SAID | said)
    assert isinstance(caught.value, error)
    if isinstance(caught.value, (InterchangeError, FileFormatError)):
        assert str(caught.value).startswith(f"{path}: ")


def test_a_library_that_is_missing_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch):
    path = tmp_path / "w.pt"
    torch.save(torch.nn.RNN(3, 4).state_dict(), path)
    monkeypatch.setitem(sys.modules, "torch", None)  # an import of it now fails
    with pytest.raises(
        BackendUnavailableError, match=r'a file of PyTorch\'s needs torch: pip install "rnncore\[torch\]"$'
    ):
        rnncore.load(path, **SAID)
    with pytest.raises(BackendUnavailableError, match=r'pip install "rnncore\[torch\]"$'):
        rnncore.RNN(3, 4).save(path)


@suffixes
def test_damaged_files_are_refused(tmp_path, suffix):
    """Cut anywhere, or with bytes changed: another network, or an error of rnncore's."""
    path = tmp_path / f"w.{suffix}"
    WRITERS[suffix](torch_arrays(), path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for k in range(400):
        data = bytearray(whole)
        if k % 4 == 0:
            data = data[: rng.integers(len(data))]
        else:
            for place in rng.integers(len(data), size=rng.integers(1, 5)):
                data[place] = rng.integers(256)
        path.write_bytes(data)
        with warnings.catch_warnings(), contextlib.suppress(RnncoreError):
            warnings.simplefilter("ignore")  # a changed name is left out
            rnncore.load(path, **SAID)
            assert k % 4 or len(data) == len(whole)


def entry(dtype="F32", shape=(5, 3), offsets=(0, 60)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"a": entry(offsets=(0, 61))}, "expected the bytes of its shape"),
        ({"a": entry(shape=(2**40, 2**40), offsets=(0, 60))}, "expected the bytes of its shape"),
        ({"a": entry(shape=(-5, -3))}, "expected a dtype and a shape"),
        ({"a": entry(shape=(5.0, 3))}, "expected a dtype and a shape"),
        ({"a": entry(dtype=3)}, "expected a dtype and a shape"),
        ({"a": entry(offsets=(60, 0))}, "expected data_offsets"),
        ({"a": entry(offsets=(-60, 0))}, "expected data_offsets"),
        ({"a": entry(offsets=(0, 60, 60))}, "expected data_offsets"),
        ({"a": entry(), "b": entry()}, "expected its bytes to begin at 60"),
        ({"a": entry(), "b": entry(offsets=(60, 120))}, "truncated or too long"),
        ({"a": entry(offsets=(0, 60)) | {"more": 1}}, "expected dtype, shape and data_offsets"),
        ({"a": 3}, "expected dtype, shape and data_offsets"),
        ({"__metadata__": {"format": 3}, "a": entry()}, "__metadata__"),
        ({"weight_ih_l0": entry(dtype="F8_E4M3"), "weight_hh_l0": entry(shape=(0, 5), offsets=(60, 60))}, "F8_E4M3"),
    ],
)
def test_a_table_that_is_not_true_is_refused(tmp_path, table, words):
    header = json.dumps(table).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(60))
    with pytest.raises(FileFormatError, match=words):
        rnncore.load(path, **SAID)
