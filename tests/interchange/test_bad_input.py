"""Bad input to from_module, to_module, load, save and load_state_dict: an error of rnncore's that names the argument."""

import io
import os

import numpy as np
import pytest
import torch

import rnncore
from rnncore.errors import RnncoreError
from tests.interchange.networks import network

SAID = {"nonlinearity": "tanh", "batch_first": False}
ARRAYS = network().params
ODD = {
    "None": None,
    "a number": 3,
    "text": "rnn",
    "bytes": b"rnn",
    "a list": [1],
    "a set": {1},
    "an array": np.ones((2, 2)),
    "a tensor": torch.ones(2, 2),
    "a class": torch.nn.RNN,
    "a function": lambda: None,
    "an object": object(),
    "a model": rnncore.RNN(3, 4),
    "a cell": rnncore.RNNCell(3, 4),
    "a file": io.BytesIO(),
    "NaN": float("nan"),
}


def theirs(**options):
    return torch.nn.RNN(3, 5, **options)


class Hostile:
    """Has the attributes that are looked for, and no sense."""

    def __getattr__(self, name):
        raise AttributeError(name)

    def __repr__(self):
        raise RuntimeError("no repr")


class Parameters:
    """Its parameters are what it was made of."""

    def __init__(self, value):
        self.value = value

    def parameters(self):
        return self.value


def refuses(act, *words):
    with pytest.raises(RnncoreError) as caught:
        act()
    message = str(caught.value)
    missing = [word for word in words if word not in message]
    assert not missing, f"{missing} not in: {message}"


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_what_is_no_module(odd):
    refuses(lambda: rnncore.from_module(odd), "module: ")


@pytest.mark.parametrize(
    "module",
    [
        Hostile(),
        Parameters(None),
        Parameters(3),
        Parameters([]),
        Parameters([None]),
        Parameters({"a": None}),
        Parameters(iter([torch.ones(3)])),
        Parameters([np.ones(3)]),
        torch.nn.Identity(),
        torch.nn.ModuleList(),
        torch.nn.LSTM(3, 4),
        torch.nn.RNN(3, 4, device="meta"),
    ],
    ids=lambda m: type(m).__name__,
)
def test_what_has_parameters_and_is_no_rnn(module):
    refuses(lambda: rnncore.from_module(module))


MAPPINGS = {
    "nothing": ({}, ""),
    "no arrays": ({"weight_ih_l0": 1, "weight_hh_l0": 2}, "weight_"),
    "a missing weight": ({n: a for n, a in ARRAYS.items() if n != "weight_hh_l0"}, "weight_hh"),
    "a missing layer": ({n.replace("_l0", "_l1"): a for n, a in ARRAYS.items()}, "layers"),
    "a shape": (ARRAYS | {"bias_hh_l0": np.ones(4, "f4")}, "(4,)"),
    "a scalar": (ARRAYS | {"weight_hh_l0": np.float32(1) * np.ones(())}, ""),
    "integers": (ARRAYS | {"bias_hh_l0": np.ones(5, "i4")}, "int32"),
    "complex numbers": (ARRAYS | {"bias_hh_l0": np.ones(5, "c8")}, "complex64"),
    "objects": (ARRAYS | {"bias_hh_l0": np.asarray([{}] * 5)}, "object"),
    "two dtypes": (ARRAYS | {"bias_hh_l0": np.ones(5)}, "float64"),
    "a GRU": (ARRAYS | {"weight_hh_l0": np.ones((15, 5), "f4")}, "GRU"),
    "an LSTM": (ARRAYS | {"weight_hh_l0": np.ones((20, 5), "f4")}, "LSTM"),
    "keys that are no text": ({1: np.ones(3), None: np.ones(3)}, ""),
    "two networks": ({"a": ARRAYS, "b": ARRAYS}, "name: "),
}


@pytest.mark.parametrize(("arrays", "words"), MAPPINGS.values(), ids=MAPPINGS)
def test_mappings_that_are_no_network(arrays, words):
    refuses(lambda: rnncore.from_module(arrays, **SAID), words)


OPTIONS = {
    "name": ({"name": 3}, "name: "),
    "name that is not there": ({"name": "a"}, "name: "),
    "nonlinearity": ({"nonlinearity": 3}, "nonlinearity: "),
    "nonlinearity that is another": ({"nonlinearity": "relu"}, "nonlinearity: "),
    "nonlinearity that is none": ({"nonlinearity": "tan"}, "nonlinearity: "),
    "batch_first": ({"batch_first": True}, "batch_first: "),
    "batch_first that is no flag": ({"batch_first": "yes"}, "batch_first: "),
    "backend": ({"backend": "nunpy"}, "numpy"),
    "backend that is no name": ({"backend": 3}, "backend"),
    "device": ({"device": "cuda:77"}, "device: "),
    "dtype": ({"dtype": "int8"}, "dtype: "),
    "dtype that is no name": ({"dtype": 3.5}, "dtype: "),
    "kernel": ({"kernel": "fast"}, "kernel: "),
    "check_finite": ({"check_finite": 1}, "check_finite: "),
}


@pytest.mark.parametrize(("options", "words"), OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("source", ["module", "arrays", "own.npz", "w.pt", "bare.npz"])
def test_options_of_what_comes_in(tmp_path, source, options, words):
    said = {} if source in ("module", "own.npz") else SAID
    if not options.keys().isdisjoint({"nonlinearity", "batch_first"}) and said:
        said = {**said, **options}
        if options in ({"nonlinearity": "relu"}, {"batch_first": True}):
            return  # the source does not say otherwise
    if source == "module":
        refuses(lambda: rnncore.from_module(theirs(), **said | options), words)
    elif source == "arrays":
        refuses(lambda: rnncore.from_module(ARRAYS, **said | options), words)
    else:
        path = tmp_path / source
        if source == "own.npz":
            rnncore.RNN(3, 4).save(path)
        elif source == "w.pt":
            torch.save(theirs().state_dict(), path)
        else:
            np.savez(path, **ARRAYS)
        refuses(lambda: rnncore.load(path, **said | options), words)


RNN = rnncore.RNN(3, 4)
OUT = {
    "no model": (lambda: rnncore.to_module(theirs(), "torch"), "rnn: "),
    "a cell": (lambda: rnncore.to_module(rnncore.RNNCell(3, 4), "torch"), "rnn: "),
    "None": (lambda: rnncore.to_module(None, "torch"), "rnn: "),
    "an unknown framework": (lambda: rnncore.to_module(RNN, "tourch"), "framework: "),
    "a backend that makes none": (lambda: rnncore.to_module(RNN, "numpy"), "framework: "),
    "a framework that is no name": (lambda: rnncore.to_module(RNN, torch), "framework: "),
    "None for a framework": (lambda: rnncore.to_module(RNN, None), "framework: "),
    "an unknown option": (lambda: rnncore.to_module(RNN, "torch", requires=True), "'requires'"),
    "an unknown option of arrays": (lambda: rnncore.to_module(RNN, "arrays", bias=1), "'bias'"),
    "one_bias": (lambda: rnncore.to_module(RNN, "arrays", one_bias=2), "one_bias: "),
    "module": (lambda: rnncore.to_module(RNN, "torch", module="jax"), "module: "),
    "module that is no name": (lambda: rnncore.to_module(RNN, "torch", module=3), "module: "),
    "requires_grad": (lambda: rnncore.to_module(RNN, "torch", requires_grad=1), "requires_grad: "),
    "device": (lambda: rnncore.to_module(RNN, "torch", device="tpu"), "device: "),
    "dtype": (lambda: rnncore.to_module(RNN, "torch", dtype="int8"), "dtype: "),
    "widths": (lambda: rnncore.to_module(rnncore.RNN(3, [4, 5]), "torch"), "hidden_size="),
    "clip": (lambda: rnncore.to_module(rnncore.RNN(3, 4, clip=1.0), "torch"), "clip="),
    "nonlinearity": (lambda: rnncore.to_module(rnncore.RNN(3, 4, nonlinearity="elu"), "torch"), "nonlinearity="),
}


@pytest.mark.parametrize(("act", "words"), OUT.values(), ids=OUT)
def test_modules_that_cannot_be_made(act, words):
    refuses(act, words)


def test_no_other_backend_is_suggested_for_one_that_makes_no_modules():
    with pytest.raises(RnncoreError, match=r"got 'numpy'$"):
        rnncore.to_module(RNN, "numpy")


PATHS = {
    "None": None,
    "a number": 3,
    "bytes": b"w.npz",
    "nothing": "",
    "a null character": "w\0.npz",
    "a lone surrogate": "w\ud800.npz",
    "no end": "weights",
    "another end": "weights.txt",
    "capitals": "weights.PT",
    "an end alone": ".npz",
    "a folder": "folder.pt",
    "in no folder": "no/weights.pt",
    "in a file": "file.npz/weights.npz",
    "a pipe": "pipe.pt",
}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("act", ["load", "save"])
def test_paths(tmp_path, monkeypatch, path, act):
    monkeypatch.chdir(tmp_path)
    os.mkdir("folder.pt")
    RNN.save("file.npz")
    if hasattr(os, "mkfifo"):
        os.mkfifo("pipe.pt")
    before = sorted(os.listdir())
    refuses(lambda: rnncore.load(path, **SAID) if act == "load" else RNN.save(path))
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("end", ["safetensors", "npz", "pt"])
@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"{}", b"PK\x03\x04", bytes(1000), b"\x80\x02.", b"\xff" * 100, b"\x93NUMPY\x01\x00" + bytes(100)],
    ids=lambda d: str(d[:8]),
)
@pytest.mark.parametrize("said", [{}, SAID], ids=["nothing said", "all said"])
def test_garbage(tmp_path, end, data, said):
    path = tmp_path / f"w.{end}"
    path.write_bytes(data)
    refuses(lambda: rnncore.load(path, **said), str(path))


@pytest.mark.parametrize("end", ["safetensors", "npz", "pt"])
def test_options_of_a_format_that_has_none(tmp_path, end):
    refuses(lambda: RNN.save(tmp_path / f"w.{end}", compress=True), "save", "'compress'")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_what_is_no_state_dict(odd):
    refuses(lambda: rnncore.RNN(3, 5).load_state_dict(odd), "state_dict: ")
    refuses(lambda: rnncore.RNN(3, 5, dtype="float32").load_state_dict({**ARRAYS, "weight_hh_l0": odd}), "weight_hh_l0")
