"""The command `rnncore convert`: every format into every other, what is said on the way, and errors in one line."""

from pathlib import Path

import numpy as np
import pytest
import torch

import rnncore
from rnncore.commands import convert
from rnncore.interchange.portable import Portable
from tests.interchange.networks import network

STATE_DICT = ("--nonlinearity", "relu", "--batch-first")
OWN = ("w.safetensors", "w.npz")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = network(num_layers=2, nonlinearity="relu", batch_first=True)
    rnn = rnncore.RNN.from_spec(given.spec, given.params, dtype="float32")
    for name in (*OWN, "w.pt"):
        rnn.save(name)
    rng = np.random.default_rng(0)
    np.save("x.npy", rng.standard_normal((2, 7, 3)))
    np.save("one.npy", rng.standard_normal((7, 3)))
    np.save("ints.npy", np.ones((2, 7, 3), "i8"))
    np.save("features.npy", np.ones((2, 7, 4)))
    np.save("nan.npy", np.full((2, 7, 3), np.nan))
    np.save("flat.npy", np.ones(3))
    return rnn


@pytest.mark.parametrize("source", [*OWN, "w.pt"])
@pytest.mark.parametrize("target", ["out.safetensors", "out.npz", "out.pt", "out.pth"])
def test_every_format_into_every_other(call, folder, source, target):
    said = STATE_DICT if source.endswith("pt") else ()
    done = call("convert", source, target, *said, "--check", "x.npy")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f"{target}: RNN(3, 5, num_layers=2, nonlinearity='relu', batch_first=True, dtype='float32')\n"
        "largest difference 0: 0 eps of float32, at most 64 are expected\n"
    )
    options = {"nonlinearity": "relu", "batch_first": True}
    found = rnncore.load(target, **options)
    assert found.spec == folder.spec
    assert all(np.array_equal(found.params[n], a) for n, a in folder.params.items())


@pytest.mark.parametrize("x", ["x.npy", "one.npy", "ints.npy"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_another_dtype_is_checked_in_the_coarser_one(call, folder, x, dtype):
    done = call("convert", "w.npz", "out.npz", "--dtype", dtype, "--check", x)
    assert (done.returncode, done.stderr) == (0, "")
    assert rnncore.load("out.npz").dtype == np.dtype(dtype)


def test_a_file_that_is_there_is_replaced_and_one_that_cannot_be_written_is_left_alone(call, folder):
    before = call("convert", "w.npz", "w.safetensors", "--dtype", "float64")
    assert before.returncode == 0 and rnncore.load("w.safetensors").dtype == np.float64
    rnncore.RNN(3, [4, 5]).save("widths.npz")
    whole = Path("w.pt").read_bytes()
    refused = call("convert", "widths.npz", "w.pt")
    assert refused.returncode == 2 and "hidden_size=[4, 5]" in refused.stderr
    assert Path("w.pt").read_bytes() == whole


def test_a_network_by_name_and_what_is_left_out(call, folder):
    torch.save({"a": torch.nn.RNN(3, 4).state_dict(), "b": torch.nn.RNN(3, 5).state_dict(), "epoch": 1}, "two.pt")
    done = call("convert", "two.pt", "out.npz", "--nonlinearity", "tanh", "--time-first", "--name", "b")
    assert done.returncode == 0 and "RNN(3, 5, dtype='float32')" in done.stdout
    assert all(line.startswith("rnncore: left out: ") for line in done.stderr.splitlines())
    assert "a.weight_hh_l0" in done.stderr and "epoch" in done.stderr
    several = call("convert", "two.pt", "out.npz", "--nonlinearity", "tanh", "--time-first")
    assert several.returncode == 2 and several.stderr.startswith("rnncore: --name: expected ")


@pytest.mark.parametrize(
    ("change", "words"), [(lambda a: a * 1.01, "eps of float32, at most 64"), (lambda a: a * np.nan, "NaN or infinity")]
)
def test_a_difference_is_status_1(call, folder, monkeypatch, change, words):
    """As where a format is written wrong: the check reads the file that was written."""
    read = convert.read

    def changed(path, asked):
        found = read(path, asked)
        if path != "out.npz":
            return found
        return Portable(found.spec, {n: change(a) for n, a in found.params.items()}, found.dtype)

    monkeypatch.setattr(convert, "read", changed)
    done = call("convert", "w.npz", "out.npz", "--check", "x.npy")
    assert done.returncode == 1 and words in done.stdout


def test_a_file_with_the_other_order_of_axes_is_checked_on_the_same_input(call, folder, monkeypatch):
    read = convert.read

    def turned(path, asked):
        found = read(path, asked)
        spec = rnncore.RNNSpec.make(3, 5, 2, "relu")
        return found if path != "out.npz" else Portable(spec, found.params, found.dtype)

    monkeypatch.setattr(convert, "read", turned)
    done = call("convert", "w.npz", "out.npz", "--check", "x.npy")
    assert done.returncode == 0 and "largest difference 0: 0 eps" in done.stdout


ERRORS = {
    "no arguments": ((), "IN"),
    "no OUT": (("w.npz",), "OUT"),
    "the same file": (("w.npz", "./w.npz"), "OUT: expected another file than IN's"),
    "the input": (("w.npz", "x.npz", "--check", "x.npz"), "OUT: expected another file than --check's"),
    "an unknown end of IN": (("w.foo", "out.npz"), "IN: expected a file name that ends in one of .safetensors, .npz, "),
    "an unknown end of OUT": (("w.npz", "out"), "OUT: expected a file name that ends in one of .safetensors, .npz, "),
    "to standard output": (("w.npz", "-"), "OUT: expected a file name"),
    "no such file": (("nothing.npz", "out.npz"), "nothing.npz"),
    "no such folder": (("w.npz", "no/out.npz"), "OUT: expected a file that can be written"),
    "damaged": (("x.npz", "out.npz"), "x.npz: it is truncated"),
    "nonlinearity is not said": (("w.pt", "out.npz", "--batch-first"), "--nonlinearity: expected a value"),
    "axes are not said": (("w.pt", "out.npz", "--nonlinearity", "tanh"), "--batch-first: expected a value"),
    "bare arrays": (("bare.npz", "out.npz"), "what they leave open, with --nonlinearity and one of --batch-first and"),
    "said otherwise": (
        ("w.npz", "out.npz", "--time-first"),
        "--batch-first: expected True, as the source says, got False",
    ),
    "nonlinearity": (
        ("w.pt", "out.npz", *STATE_DICT[2:], "--nonlinearity", "tan"),
        "--nonlinearity: expected one of tanh",
    ),
    "name": (("w.pt", "out.npz", *STATE_DICT, "--name", "a"), "--name: expected"),
    "name of an own file": (("w.npz", "out.npz", "--name", "a"), "--name: expected None"),
    "dtype": (
        ("w.npz", "out.npz", "--dtype", "int8"),
        "--dtype: expected one of float16, float32, float64, got 'int8'",
    ),
    "range of a dtype": (
        ("large.npz", "out.npz", "--dtype", "float16"),
        "--dtype: expected one with the range of weight",
    ),
    "no input": (("w.npz", "out.npz", "--check", "no.npy"), "no.npy"),
    "features": (("w.npz", "out.npz", "--check", "features.npy"), "--check: expected"),
    "axes": (("w.npz", "out.npz", "--check", "flat.npy"), "--check: expected"),
    "an option": (("w.npz", "out.npz", "--force"), "--force"),
}


@pytest.mark.parametrize(("arguments", "words"), ERRORS.values(), ids=ERRORS)
def test_an_error_is_one_line_and_writes_nothing(call, folder, arguments, words):
    np.savez("bare.npz", **folder.params)
    large = network(dtype="float64")
    rnncore.RNN.from_spec(large.spec, {n: 1e300 * a for n, a in large.params.items()}).save("large.npz")
    Path("x.npz").touch()
    done = call("convert", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("rnncore: ") and done.stderr.count("\n") == 1 and words in done.stderr

    assert not Path("out.npz").exists()


def test_nan_in_the_input_agrees_with_nothing(call, folder):
    assert call("convert", "w.npz", "out.npz", "--check", "nan.npy").returncode == 1
