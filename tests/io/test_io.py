"""Weights files of either format: round trips, arguments and damage."""

import ast
import io as stdio
import os
import random
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

import rnncore
from rnncore import io
from rnncore.errors import ArgumentTypeError, ArgumentValueError, FileFormatError
from tests.tools.process import PATIENCE, python
from tests.tools.weights_files import CONFIG, assert_same, description, good, host, listing, small

NETWORKS = {
    "plain": {},
    "deep": {"hidden_size": 4, "num_layers": 3},
    "widths": {"hidden_size": [4, 1, 5]},
    "bidirectional": {"hidden_size": [4, 2], "bidirectional": True},
    "no bias": {"bias": False},
    "batch first": {"batch_first": True, "num_layers": 2, "dropout": 0.3},
    "relu": {"nonlinearity": "relu"},
    "alpha": {"nonlinearity": rnncore.get_nonlinearity("leaky_relu", alpha=0.1)},
    "alpha, beta": {"nonlinearity": rnncore.get_nonlinearity("hard_sigmoid", alpha=0.3, beta=0.25)},
    "clip": {"nonlinearity": "scaled_tanh", "clip": 1 / 3},
    "width 1": {"input_size": 1, "hidden_size": 1},
}


DTYPES = [("numpy", "float32"), ("numpy", "float64"), ("numpy", "float16")] + [
    ("torch", name) for name in ("float16", "bfloat16", "float32", "float64")
]


@pytest.mark.parametrize(("backend", "dtype"), DTYPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_round_trip(path, name, backend, dtype):
    model = small(**NETWORKS[name], backend=backend, dtype=dtype)
    model.save(path)
    again = rnncore.load(path, backend=backend)
    assert again.spec == model.spec
    assert again.dtype == model.dtype
    assert again.backend == backend
    assert_same(host(again), host(model))


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize(("first", "second"), [("numpy", "torch"), ("torch", "numpy")])
def test_across_backends(path, first, second, dtype):
    if dtype == "bfloat16":  # NumPy has none: what was trained in it is loaded wider, and goes back unchanged
        model, into = small(backend="torch", dtype=dtype), {"dtype": "float32"}
    else:
        model, into = small(backend=first, dtype=dtype), {}
    model.save(path)
    again = rnncore.load(path, backend=second, **into)
    assert again.backend == second
    assert_same(host(again), host(model))


def test_weights_that_are_not_finite_are_kept(path):
    model = small()
    odd = np.array([np.nan, -np.inf, -0.0, 5e-324, np.pi, np.frombuffer(struct.pack("<Q", 0x7FF0000000000123))[0]])
    model.params["weight_ih_l0"][...] = odd.reshape(2, 3)
    model.save(path)
    assert_same(host(rnncore.load(path)), host(model))


def test_loaded_arrays_are_writable_and_native(path):
    small().save(path)
    for value in io.read(path).params.values():
        assert value.flags.writeable
        assert value.flags.owndata
        assert value.dtype.isnative


def test_custom_nonlinearity_has_to_be_given_again(path):
    pair = (lambda z: z * z, lambda z: 2 * z)
    model = small(nonlinearity=pair)
    model.save(path)
    with pytest.raises(ArgumentValueError, match="nonlinearity"):
        rnncore.load(path)
    again = rnncore.load(path, nonlinearity=pair)
    x = np.ones((4, 2, 3))
    np.testing.assert_array_equal(again(x)[0], model(x)[0])


def test_same_network_same_bytes(tmp_path, suffix):
    model = small(num_layers=2)
    params = host(model)
    contents = set()
    for k in range(10):
        order = dict(reversed(params.items())) if k % 2 else params
        io.write(tmp_path / f"{k}.{suffix}", model.spec.to_config(), order, dtype="float64")
        contents.add((tmp_path / f"{k}.{suffix}").read_bytes())
    assert len(contents) == 1


def test_arrays_in_any_memory_layout(path):
    model = small()
    config, params = model.spec.to_config(), host(model)
    odd = {k: np.asfortranarray(v).astype(v.dtype.newbyteorder(">")) for k, v in params.items()}
    odd["weight_ih_l0"] = np.repeat(params["weight_ih_l0"], 2, axis=1)[:, ::2]
    io.write(path, config, odd, dtype="float64")
    assert_same(io.read(path).params, params)


def test_version_1_stays_readable(path, suffix):
    params = {"weight_ih_l0": np.arange(6.0).reshape(2, 3), "weight_hh_l0": np.eye(2)}
    if suffix == "npz":
        np.savez(path, rnncore=np.frombuffer(description().encode(), np.uint8), **params)
    else:
        safetensors.numpy.save_file(params, path, {"rnncore": description(), "format": "pt"})
    assert_same(host(rnncore.load(path)), params)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bare_parameters_say_how_to_load_them(path, suffix, dtype):
    theirs = torch.nn.RNN(3, 2, dtype=dtype).state_dict()
    if suffix == "npz":
        np.savez(path, **{k: v.numpy() for k, v in theirs.items()})
    else:
        safetensors.torch.save_file(theirs, path)
    for call in (rnncore.load, io.read):
        with pytest.raises(FileFormatError, match=r"rnncore.load\(path, nonlinearity=..., batch_first=...\)"):
            call(path)
    model = rnncore.load(path, nonlinearity="tanh", batch_first=False)  # the advice is right
    assert_same(host(model), {k: v.numpy() for k, v in theirs.items()})


@pytest.mark.parametrize("name", ["rnn", "rnn.pt2", "rnn.npy", "rnn.safetensors.bak", ".npz", "", "rnn.NPZ"])
def test_suffixes(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for call in (small().save, rnncore.load):
        with pytest.raises(ArgumentValueError, match=r"path: .*safetensors.*npz.*, got"):
            call(name)
    assert listing(tmp_path) == []


@pytest.mark.parametrize("bad", [None, 3, b"rnn.npz", ["rnn.npz"], stdio.BytesIO()])
def test_not_a_path(bad):
    for call in (small().save, rnncore.load):
        with pytest.raises(ArgumentTypeError, match="path: expected"):
            call(bad)


def test_str_and_path(tmp_path, suffix):
    for made in (str(tmp_path / f"a.{suffix}"), tmp_path / f"b.{suffix}"):
        small().save(made)
        rnncore.load(made)


PARAMS = host(small())


BAD_ARGUMENTS = {
    "missing": (CONFIG, {k: v for k, v in PARAMS.items() if k != "bias_hh_l0"}, "float64"),
    "unexpected": (CONFIG, {**PARAMS, "weight_hh_l1": np.ones((2, 2))}, "float64"),
    "shape": (CONFIG, {**PARAMS, "weight_hh_l0": np.ones((2, 3))}, "float64"),
    "dtype of one": (CONFIG, {**PARAMS, "weight_hh_l0": np.ones((2, 2), np.float32)}, "float64"),
    "integers": (CONFIG, {**PARAMS, "weight_hh_l0": np.ones((2, 2), np.int64)}, "float64"),
    "objects": (CONFIG, {**PARAMS, "weight_hh_l0": np.ones((2, 2), object)}, "float64"),
    "a list": (CONFIG, {**PARAMS, "bias_hh_l0": [1.0, 2.0]}, "float64"),
    "params": (CONFIG, None, "float64"),
    "dtype": (CONFIG, PARAMS, "float32"),
    "bfloat16": (CONFIG, PARAMS, "bfloat16"),
    "unknown dtype": (CONFIG, PARAMS, "int8"),
    "dtype object": (CONFIG, PARAMS, np.float64),
    "config": (None, PARAMS, "float64"),
    "empty config": ({}, PARAMS, "float64"),
    "size": ({**CONFIG, "input_size": 0}, PARAMS, "float64"),
    "nan": ({**CONFIG, "dropout": float("nan")}, PARAMS, "float64"),
    "not json": ({**CONFIG, "dropout": object()}, PARAMS, "float64"),
    "too long": ({**CONFIG, "nonlinearity": {"name": "x" * 150_000}, "custom_nonlinearity": True}, PARAMS, "float64"),
    "too many": ({**CONFIG, "hidden_sizes": [1] * 1251}, PARAMS, "float64"),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_nothing_is_written_for_a_bad_argument(tmp_path, path, name):
    config, params, dtype = BAD_ARGUMENTS[name]
    path.write_bytes(b"old")
    with pytest.raises((ArgumentValueError, ArgumentTypeError), match=r"config|params|dtype"):
        io.write(path, config, params, dtype=dtype)
    assert path.read_bytes() == b"old"
    assert listing(tmp_path) == [path.name]


def test_sparse_file_is_not_read(tmp_path, suffix):
    """A terabyte of nothing on the disk, behind a valid start."""
    path = tmp_path / f"sparse.{suffix}"
    path.write_bytes(good(suffix, tmp_path))
    os.truncate(path, 2**40)
    with pytest.raises(FileFormatError):
        rnncore.load(path)


@pytest.mark.parametrize("network", ["plain", "widths"])
def test_every_truncation(tmp_path, path, suffix, network):
    raw = good(suffix, tmp_path, **NETWORKS[network])
    path.write_bytes(raw)
    for size in reversed(range(len(raw))):
        os.truncate(path, size)
        with pytest.raises(FileFormatError, match=path.name):
            io.read(path)


@pytest.mark.parametrize("seed", range(5))
def test_random_damage(tmp_path, path, suffix, seed):
    """Flipped, overwritten, removed, repeated bytes: FileFormatError, or a network of the right shape."""
    raw = good(suffix, tmp_path, num_layers=2)
    rng = random.Random(f"{suffix} {seed}")
    shapes = {k: v.shape for k, v in host(small(num_layers=2)).items()}
    refused = 0
    for _ in range(150):
        bad = bytearray(raw)
        for _ in range(rng.choice([1, 1, 1, 2, 8])):
            at = rng.randrange(len(bad))
            kind = rng.randrange(5)
            if kind == 0:
                bad[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                bad[at] = rng.choice(b"\0\xff{}[],:\"0123456789PK'()-")
            elif kind == 2:
                del bad[at : at + rng.randrange(1, 9)]
            elif kind == 3:
                bad[at:at] = bad[at : at + rng.randrange(1, 99)]
            else:
                bad[at : at + 4] = struct.pack("<L", rng.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, len(raw)]))
        path.write_bytes(bad)
        try:
            stored = io.read(path)
        except FileFormatError:
            refused += 1
        else:
            assert {k: v.shape for k, v in stored.params.items()} == shapes or stored.config != CONFIG
            assert all(v.dtype == np.dtype(stored.dtype) for v in stored.params.values())
    assert refused > 50  # the rest fell into the numbers, where every bit pattern is a number


def test_io_asserts_nothing():
    """python -O would remove it."""
    for file in Path(io.__file__).parent.glob("*.py"):
        assert not any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(file.read_text()))), file.name


# Each limit in a process of its own, forked so that its memory is not what others have freed.
UNDER_LIMITS = """
import os, resource, signal, sys
import rnncore
from rnncore.errors import RnncoreError

path, what, patience = {path!r}, {what!r}, {patience!r}
model = rnncore.RNN(500, 1000, rng=0)
rnncore.RNN(3, 4, rng=0).save(path)  # imports are done here
rnncore.load(path)
if what == "load":
    model.save(path)
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
for extra in {limits!r}:
    child = os.fork()
    if child == 0:
        signal.alarm(patience)
        resource.setrlimit(resource.RLIMIT_AS, (taken + extra * 2**20, resource.RLIM_INFINITY))
        ended = 9
        try:
            if what == "load":
                loaded = rnncore.load(path)
                ended = 0 if (loaded.params["weight_hh_l0"] == model.params["weight_hh_l0"]).all() else 8
            else:
                model.save(path)
                ended = 0
        except MemoryError:
            ended = 1
        finally:
            os._exit(ended)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), end=" ")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the address space")
@pytest.mark.parametrize("what", ["load", "save"])
def test_too_little_memory_is_a_memory_error(tmp_path, path, what):
    """Of the 12 MB in the file, none, some or all find room: a MemoryError or success, never an abort or a hang."""
    limits = (0, 1, 2, 4, 6, 8, 10, 12, 16, 20, 24, 28, 32, 48, 64, 100)
    code = UNDER_LIMITS.format(path=str(path), what=what, limits=limits, patience=PATIENCE)
    ended = [int(status) for status in python(code).split()]
    assert len(ended) == len(limits)
    assert set(ended) <= {0, 1}
    assert ended[-1] == 0
    if what == "load":
        assert ended[0] == 1
    assert listing(tmp_path) == [path.name]
    rnncore.load(path)


def test_a_users_own_function_is_asked_for_and_nothing_else_is_taken(tmp_path):
    path = tmp_path / "rnn.npz"
    pair = (lambda z: z * z, lambda z: 2 * z)
    rnncore.RNN(3, 4, nonlinearity=pair, clip=0.5).save(path)
    assert rnncore.load(path, nonlinearity=pair).spec.nonlinearity.clip == 0.5
    with pytest.raises(ArgumentValueError, match="pass it as nonlinearity="):
        rnncore.load(path)
    rnncore.RNN(3, 4).save(path)
    with pytest.raises(ArgumentValueError, match=r"'tanh'.* as the source says, got .*'relu'"):
        rnncore.load(path, nonlinearity="relu")
