"""PyTorch's own files in and out: state dicts, checkpoints that hold one, and files that are hostile."""

import io
import os
import pickle
import warnings
import zipfile

import numpy as np
import pytest
import torch

import rnncore
from rnncore.errors import (
    ArgumentValueError,
    DTypeError,
    FileFormatError,
    InterchangeError,
    RnncoreError,
    UnknownNameError,
)
from rnncore.interchange import torch_files
from tests.interchange.networks import network, reference
from tests.tools.rounding import agree

OPTIONS = [
    {},
    {"num_layers": 3},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "nonlinearity": "relu"},
    {"bias": False},
    {"batch_first": True},
]
SAID = {"nonlinearity": "tanh", "batch_first": False}


def rnn_of(**options):
    torch.manual_seed(0)
    return torch.nn.RNN(3, 5, **options)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "w.pt"


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_a_network_goes_out_to_torch_and_back(path, options, dtype):
    given = network(dtype="float32" if dtype == "bfloat16" else dtype, **options)
    rnn = rnncore.RNN.from_spec(given.spec, given.params, backend="torch", dtype=dtype)
    rnn.save(path)
    theirs = torch.nn.RNN(3, 5, dtype=getattr(torch, dtype), **options)
    theirs.load_state_dict(torch.load(path, weights_only=True))
    said = {"nonlinearity": given.spec.nonlinearity.name, "batch_first": given.spec.batch_first}
    back = rnncore.load(path, backend="torch", **said)
    assert (back.spec, back.dtype) == (rnn.spec, rnn.dtype)
    for n, p in rnn.params.items():
        assert torch.equal(p, back.params[n]) and torch.equal(p, theirs.state_dict()[n])
    if dtype in ("float32", "float64"):
        x = torch.randn((2, 7, 3) if options.get("batch_first") else (7, 2, 3), dtype=rnn.dtype)
        for got, want in zip(theirs(x), reference(rnn.portable(), x), strict=True):
            agree(got.detach().numpy(), want)


def test_three_steps_of_training_after_the_trip_are_those_before_it(path):
    module = rnn_of(num_layers=2, dtype=torch.float64)
    torch.save(module.state_dict(), path)
    rnn = rnncore.load(path, **SAID)
    x = torch.randn(7, 2, 3, dtype=torch.float64)
    ours = rnncore.optim.SGD(0.1)
    theirs = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(3):
        theirs.zero_grad()
        (0.5 * module(x)[0].square().sum()).backward()
        theirs.step()
        output, _, pullback = rnn.vjp(x.numpy())
        rnn.set_params(ours.step(rnn.params, pullback(output).params))
    for n, p in module.named_parameters():
        # Each step adds a gradient that is right to 64 eps of the largest: three of them.
        agree(rnn.params[n], p.detach().numpy(), 3 * 64, what=n)


CHECKPOINTS = {
    "a state dict": (lambda m: m.state_dict(), None),
    "under state_dict": (lambda m: {"state_dict": m.state_dict()}, None),
    "under model, with a path": (lambda m: {"model": torch.nn.ModuleDict({"rnn": m}).state_dict()}, None),
    "data parallel": (lambda m: {f"module.{n}": p for n, p in m.state_dict().items()}, None),
    "compiled": (lambda m: {f"_orig_mod.{n}": p for n, p in m.state_dict().items()}, None),
    "parameters": (lambda m: dict(m.named_parameters()), None),
    "by name": (lambda m: {"a": m.state_dict(), "b": rnn_of(bias=False).state_dict()}, "a"),
    "one dict twice": (lambda m: dict.fromkeys(("model", "ema"), m.state_dict()), "model"),
}


@pytest.mark.parametrize(("wrap", "name"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_the_network_is_found_in_a_checkpoint(path, wrap, name):
    module = rnn_of(num_layers=2)
    torch.save(wrap(module), path)
    rnn = rnncore.load(path, name=name, **SAID) if name != "a" else named(path, name)
    assert all(np.array_equal(rnn.params[n], p.detach()) for n, p in module.named_parameters())


def named(path, name):
    with pytest.warns(UserWarning, match=r"left out: 2 arrays beside the network 'a': b.weight_hh_l0, b.weight_ih_l0"):
        return rnncore.load(path, name=name, **SAID)


def test_what_else_a_checkpoint_holds_is_named(path):
    module = torch.nn.ModuleDict({"rnn": rnn_of(), "head": torch.nn.Linear(5, 1)})
    optimiser = torch.optim.Adam(module.parameters())
    sum(p.sum() for p in module.parameters()).backward()
    optimiser.step()
    torch.save({"model": module.state_dict(), "optimizer": optimiser.state_dict(), "epoch": 3}, path)
    with pytest.warns(UserWarning, match=r"beside the network 'model.rnn': model.head.*no arrays: .*epoch"):
        rnn = rnncore.load(path, **SAID)
    assert np.array_equal(rnn.params["weight_hh_l0"], module["rnn"].weight_hh_l0.detach())


def test_a_cell_and_what_a_file_does_not_say(path):
    cell = torch.nn.RNNCell(3, 5)
    torch.save(cell.state_dict(), path)
    rnn = rnncore.load(path, **SAID)
    assert rnn.spec.num_layers == 1 and np.array_equal(rnn.params["weight_hh_l0"], cell.weight_hh.detach())
    with pytest.raises(ArgumentValueError, match=r"nonlinearity: expected a value, as a state dict does not say it"):
        rnncore.load(path, batch_first=True)
    with pytest.raises(ArgumentValueError, match=r"batch_first: expected a value, as a state dict does not say it"):
        rnncore.load(path, nonlinearity="relu")


REFUSED = {
    "two networks": (
        {"a": rnn_of().state_dict(), "b": rnn_of().state_dict()},
        None,
        ArgumentValueError,
        "name: expected .*'a', 'b', got None",
    ),
    "no such name": ({"a": rnn_of().state_dict()}, "c", UnknownNameError, "name: expected .*'a', got 'c'"),
    "an LSTM": (torch.nn.LSTM(3, 5).state_dict(), None, InterchangeError, "an LSTM"),
    "a GRU": (torch.nn.GRU(3, 5).state_dict(), None, InterchangeError, "a GRU"),
    "a Linear": (torch.nn.Linear(3, 5).state_dict(), None, InterchangeError, "no network of this kind"),
    "nothing": ({}, None, InterchangeError, "no network of this kind"),
    "a number": (3, None, InterchangeError, "no network of this kind"),
    "a missing weight": (
        {n: p for n, p in rnn_of().state_dict().items() if n != "weight_hh_l0"},
        None,
        InterchangeError,
        "weight_hh is missing",
    ),
    "a shape": (rnn_of().state_dict() | {"bias_hh_l0": torch.ones(4)}, None, InterchangeError, r"got \(4,\)"),
    "integers": (
        rnn_of().state_dict() | {"bias_hh_l0": torch.ones(5, dtype=torch.int32)},
        None,
        FileFormatError,
        "int32",
    ),
    "two dtypes": (
        rnn_of().state_dict() | {"bias_hh_l0": torch.ones(5, dtype=torch.float64)},
        None,
        InterchangeError,
        "one floating dtype",
    ),
    "a sparse one": (
        rnn_of().state_dict() | {"weight_hh_l0": torch.eye(5).to_sparse()},
        None,
        FileFormatError,
        "sparse",
    ),
    "one number as many": (
        rnn_of().state_dict() | {"weight_hh_l0": torch.ones(1).expand(10**6, 10**6)},
        None,
        FileFormatError,
        "as many numbers as the file holds",
    ),
    "two of one name": (
        {"a": rnn_of().state_dict(), "a.weight_hh_l0": torch.eye(5)},
        None,
        FileFormatError,
        "a.weight_hh_l0: expected one array of this name",
    ),
    "on no device": (
        rnn_of().state_dict() | {"bias_hh_l0": torch.ones(5, device="meta")},
        None,
        FileFormatError,
        "meta",
    ),
}


@pytest.mark.parametrize(("content", "name", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_network_is_named(path, content, name, error, words):
    torch.save(content, path)
    with pytest.raises(error, match=words) as caught:
        rnncore.load(path, name=name, **SAID)
    if not isinstance(caught.value, (ArgumentValueError, UnknownNameError)):
        assert str(caught.value).startswith(f"{path}: ")


def test_weights_computed_from_others_are_named(path):
    module = rnn_of()
    torch.nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
    torch.save(module.state_dict(), path)
    with pytest.raises(InterchangeError, match=r"parametrizations.weight_hh_l0.original0.*remove_parametrizations"):
        rnncore.load(path, **SAID)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"hidden_size": [6, 4]}, r"hidden_size=\[6, 4\]"),
        ({"clip": 3.0}, "clip=3.0"),
        ({"nonlinearity": "softsign"}, "nonlinearity='softsign'"),
    ],
)
def test_what_no_module_of_torch_is_is_not_written(path, given, words):
    path.write_bytes(b"before")
    with pytest.raises(InterchangeError, match=words):
        rnncore.RNN(3, **{"hidden_size": 4} | given).save(path)
    assert path.read_bytes() == b"before"
    with pytest.raises(TypeError, match="unexpected option 'compress'"):
        rnncore.RNN(3, 4).save(path, compress=True)


def test_a_bfloat16_file_needs_another_dtype_on_numpy(path):
    torch.save(rnn_of(dtype=torch.bfloat16).state_dict(), path)
    with pytest.raises(DTypeError, match="say dtype='float32'"):
        rnncore.load(path, **SAID)
    assert rnncore.load(path, dtype="float32", **SAID).dtype == np.float32


# --- hostile files --------------------------------------------------------------------------------------------------------


class Runs:
    """Calls the system when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_no_code_is_executed(tmp_path, path):
    mark = tmp_path / "executed"
    torch.save({**rnn_of().state_dict(), "more": Runs(mark)}, path)
    with pytest.raises(FileFormatError, match=r"it holds \S+\.system, which is no part of a state dict") as caught:
        rnncore.load(path, **SAID)
    assert "weights_only" not in str(caught.value)
    path.write_bytes(pickle.dumps(Runs(mark)))
    with pytest.raises(FileFormatError, match=r"no file that torch\.save has written"):
        rnncore.load(path, **SAID)
    torch.save(rnn_of(), path)  # a whole module, which only code could make again
    with pytest.raises(FileFormatError, match=r"it holds torch.nn.modules.rnn.RNN, .*torch.save\(module.state_dict"):
        rnncore.load(path, **SAID)
    assert not mark.exists()


def test_a_program_and_an_old_file_are_named(path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(3, 5)), path)
    with pytest.raises(FileFormatError, match="a program of TorchScript"):
        rnncore.load(path, **SAID)
    torch.save(rnn_of().state_dict(), path, _use_new_zipfile_serialization=False)
    with pytest.raises(FileFormatError, match=r"since PyTorch 1\.6"):
        rnncore.load(path, **SAID)


def test_a_compressed_file_is_refused_before_it_is_read(path):
    torch.save(rnn_of().state_dict(), path)
    packed = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    path.write_bytes(packed.getvalue())
    with pytest.raises(FileFormatError, match="it is compressed"):
        rnncore.load(path, **SAID)


def test_a_storage_that_claims_another_size_is_refused(path):
    torch.save(rnn_of().state_dict(), path)
    claimed = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(claimed, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            # The number of elements of the first storage, 15 = 0x0f, in the tuple that names it.
            new.writestr(
                entry.filename, data.replace(b"K\x0ft", b"K\xfft", 1) if entry.filename.endswith("data.pkl") else data
            )
    path.write_bytes(claimed.getvalue())
    with pytest.raises(FileFormatError):
        rnncore.load(path, **SAID)


@pytest.mark.parametrize("size", [60, 61])
def test_a_tensor_beside_the_entries_of_the_file_is_refused(size):
    """As an older PyTorch gives it, which does not compare the sizes."""
    tensor = torch.ones(5, 3)
    if size == 60:
        assert np.array_equal(torch_files._numbers("w", tensor, {size}), tensor.numpy())
    else:
        with pytest.raises(FileFormatError, match="as many numbers as the file holds"):
            torch_files._numbers("w", tensor, {size})


def test_containers_that_hold_themselves_end(path):
    loop = {}
    loop["loop"] = loop
    many = rnn_of().state_dict()
    for _ in range(60):
        many = {"a": many, "b": many}  # two to the sixtieth paths, and sixty containers
    torch.save({"loop": loop, "many": many}, path)
    rnn = rnncore.load(path, **SAID)
    assert rnn.spec.hidden_sizes == (5,)
    deep = []
    for _ in range(200):
        deep = [deep]
    torch.save(deep, path)
    with pytest.raises(FileFormatError, match="within at most 64 others"):
        rnncore.load(path, **SAID)


def test_damaged_files_are_refused(path):
    """Cut anywhere, or with bytes changed: another network, or an error of rnncore's."""
    torch.save(rnn_of().state_dict(), path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for k in range(300):
        data = bytearray(whole)
        if k % 3 == 0:
            data = data[: rng.integers(len(data))]
        else:
            begin = 0 if k % 3 == 1 else len(data) - 700  # the pickle is at the beginning, the directory at the end
            for place in rng.integers(begin, begin + 700, size=rng.integers(1, 4)):
                data[place] = rng.integers(256)
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a changed name is left out
            try:
                rnncore.load(path, **SAID)
            except RnncoreError:
                refused += 1
    assert refused > 100  # all that are cut, at least


@pytest.mark.parametrize(
    "data", [b"", b"PK\x03\x04", b"\0" * 1000, b"not a file of PyTorch's at all", b"PK\x05\x06" + b"\0" * 18]
)
def test_other_files_are_refused(path, data):
    path.write_bytes(data)
    with pytest.raises(FileFormatError):
        rnncore.load(path, **SAID)
