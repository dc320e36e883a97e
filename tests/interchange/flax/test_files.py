"""Flax's msgpack files: read without Flax, written for it, and hostile ones."""

import random

import numpy as np
import pytest

import rnncore
from rnncore.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    BackendUnavailableError,
    FileFormatError,
    InterchangeError,
    RnncoreError,
    UnknownNameError,
)
from rnncore.interchange.flax import files
from tests.interchange.networks import network, reference
from tests.tools.process import python
from tests.tools.rounding import agree

msgpack = pytest.importorskip("msgpack", reason="msgpack is not installed")
serialization = pytest.importorskip("flax.serialization", reason="Flax is not installed")
nnx = pytest.importorskip("flax.nnx", reason="Flax is not installed")
linen = pytest.importorskip("flax.linen", reason="Flax is not installed")
jax = pytest.importorskip("jax", reason="JAX is not installed")
jnp = jax.numpy

SAID = {"nonlinearity": "tanh", "batch_first": True}
X = jnp.asarray(np.random.default_rng(1).standard_normal((2, 4, 3)).astype("f4"))
NETWORKS = [
    {"batch_first": True},
    {"batch_first": True, "num_layers": 3},
    {"batch_first": True, "bidirectional": True},
    {"batch_first": True, "num_layers": 2, "bidirectional": True, "hidden_size": [5, 4]},
    {"batch_first": True, "bias": False},
]


def model(given):
    return rnncore.RNN.from_spec(given.spec, given.params, dtype="float32")


def written(tmp_path, data, name="rnn.msgpack"):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else serialization.to_bytes(data))
    return path


@pytest.mark.parametrize("api", ["nnx", "linen"])
@pytest.mark.parametrize("options", NETWORKS, ids=str)
def test_flax_restores_what_is_saved_here(tmp_path, api, options):
    given = network(**options)
    path = tmp_path / "rnn.msgpack"
    model(given).save(path, api=api)
    made = rnncore.to_module(model(network(seed=7, **options)), "flax", api=api)  # with other numbers
    if api == "nnx":
        state = nnx.state(made, nnx.Param)
        nnx.replace_by_pure_dict(state, serialization.from_bytes(nnx.to_pure_dict(state), path.read_bytes()))
        nnx.update(made, state)
        output = made(X)
    else:
        output = made[0].apply(serialization.from_bytes(made[1], path.read_bytes()), X)
    agree(output, reference(given, X)[0])
    found = rnncore.load(path, **SAID)
    agree(found(np.asarray(X))[0], reference(given, X)[0])
    again = tmp_path / "again.msgpack"
    found.save(again, api=api)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("options", NETWORKS[:-1], ids=str)
@pytest.mark.parametrize("api", ["nnx", "linen", "linen's inner params"])
def test_what_flax_writes_is_loaded(tmp_path, api, options):
    given = network(**options)
    made = rnncore.to_module(model(given), "flax", api=api[:5].strip("'"))
    inside = {"nnx": lambda: nnx.to_pure_dict(nnx.state(made, nnx.Param)), "linen": lambda: made[1]}
    path = written(tmp_path, inside.get(api, lambda: made[1]["params"])())
    found = rnncore.load(path, **SAID)
    assert found.backend == "numpy" and found.spec == given.spec
    want = rnncore.from_module(made)
    assert all(np.array_equal(found.params[n], a) for n, a in want.params.items())


def test_a_network_in_a_larger_tree(tmp_path):
    one, two = (rnncore.to_module(model(network(seed=k)), "flax", api="linen")[1]["params"] for k in (0, 1))
    tree = {"step": 3, "params": {"encoder": one, "decoder": two, "head": {"kernel": np.ones((5, 2), "f4")}}}
    tree |= {"rng": np.zeros(2, "u4"), "scale": np.float32(3), "complex": 1j, "names": [1, "two", None]}
    path = written(tmp_path, serialization.msgpack_serialize(tree))
    with pytest.raises(ArgumentValueError, match=r"name: .* 'params\.decoder', 'params\.encoder', got None"):
        rnncore.load(path, **SAID)
    with pytest.raises(UnknownNameError, match=r"got 'encoder'; did you mean 'params\.encoder'"):
        rnncore.load(path, name="encoder", **SAID)
    with pytest.warns(
        UserWarning, match=r"beside the network 'params\.decoder': complex, names\.0, .*head\.kernel.* step"
    ):
        found = rnncore.load(path, name="params.decoder", **SAID)
    assert np.array_equal(found.params["weight_hh_l0"], np.asarray(two["cell"]["h"]["kernel"]).T)


def test_what_the_file_does_not_say_is_demanded(tmp_path):
    path = tmp_path / "rnn.msgpack"
    rnncore.RNN(3, 5).save(path)
    for said, missing in (({"nonlinearity": "relu"}, "batch_first"), ({"batch_first": True}, "nonlinearity")):
        with pytest.raises(
            ArgumentValueError, match=f"{missing}: expected a value, as a .msgpack file does not say it"
        ):
            rnncore.load(path, **said)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes(tmp_path, dtype):
    path = tmp_path / "rnn.msgpack"
    given = network(dtype="float32" if dtype == "bfloat16" else dtype)
    if dtype == "bfloat16":
        given = rnncore.RNN.from_spec(given.spec, given.params, backend="torch", dtype=dtype)
    else:
        given = rnncore.RNN.from_spec(given.spec, given.params, dtype=dtype)
    given.save(path)
    restored = serialization.msgpack_restore(path.read_bytes())["cell"]["dense_h"]["kernel"]
    assert restored.dtype.name == dtype
    found = rnncore.load(path, backend=given.backend, **SAID)
    assert str(found.dtype) == str(given.dtype)
    weight = np.asarray(given.params["weight_hh_l0"].float() if dtype == "bfloat16" else given.params["weight_hh_l0"])
    assert np.array_equal(weight, restored.astype(weight.dtype).T)
    assert found.state_dict()["weight_hh_l0"].tolist() == given.state_dict()["weight_hh_l0"].tolist()


def test_arrays_in_chunks(tmp_path, monkeypatch):
    """Flax and rnncore split arrays of more than 1 GiB; here, of more than 32 bytes."""
    monkeypatch.setattr(files, "CHUNK_BYTES", 32)
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 32)
    given, path = network(), tmp_path / "rnn.msgpack"
    model(given).save(path, api="linen")
    restored = serialization.msgpack_restore(path.read_bytes())["params"]["cell"]
    assert np.array_equal(restored["h"]["kernel"], given.params["weight_hh_l0"].T)
    assert b"chunked" in path.read_bytes()
    theirs = written(tmp_path, serialization.msgpack_serialize(restored), "theirs.msgpack")
    assert b"chunked" in theirs.read_bytes()
    for one in (path, theirs):
        assert np.array_equal(rnncore.load(one, **SAID).params["weight_hh_l0"], given.params["weight_hh_l0"])


def test_a_dropout_has_a_place_and_no_numbers(tmp_path):
    """So the file has a gap, where anything without numbers may be: it takes a name to say that nothing counts there."""
    given, path = network(num_layers=2, dropout=0.5), tmp_path / "rnn.msgpack"
    model(given).save(path)
    made = rnncore.to_module(model(given), "flax")
    serialization.from_bytes(nnx.to_pure_dict(nnx.state(made, nnx.Param)), path.read_bytes())
    with pytest.raises(ArgumentValueError, match=r"'layers', 'layers\.0', 'layers\.2', got None"):
        rnncore.load(path, **SAID)
    assert rnncore.load(path, name="layers", **SAID).spec.num_layers == 2


def test_options():
    with pytest.raises(UnknownNameError, match="api: expected one of nnx, linen, got 'haiku'"):
        rnncore.RNN(3, 5).save("rnn.msgpack", api="haiku")
    with pytest.raises(ArgumentTypeError, match="unexpected option 'layout'; it has api"):
        rnncore.RNN(3, 5).save("rnn.msgpack", layout="linen")


# --- hostile files --------------------------------------------------------------------------------------------------------


def array(shape, dtype="float32", data=None):
    data = b"\0" * 4 * int(np.prod([n for n in shape if isinstance(n, int)], dtype=object)) if data is None else data
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, data)))


def tree(**parts):
    """A network in a file, with some parts replaced."""
    i, h = {"kernel": array((3, 5)), "bias": array((5,))}, {"kernel": array((5, 5))}
    return {"cell": {"i": {**i, **parts}, "h": h}}


CHUNKED = "__msgpack_chunked_array__"


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (b"", "truncated, damaged or not of msgpack"),
        (b"\x93\x01\x02", "truncated, damaged or not of msgpack"),
        (b"\xc1", "truncated, damaged or not of msgpack"),
        (b"\x81\x80\x01", "truncated, damaged or not of msgpack"),  # a map as a key
        (b"\x81\xa1\xff\x01", "truncated, damaged or not of msgpack"),  # a key that is no UTF-8
        (b"\xdd\xff\xff\xff\xff", "truncated, damaged or not of msgpack"),  # 2**32 items
        (b"\xdf\xff\xff\xff\xff", "truncated, damaged or not of msgpack"),  # 2**32 keys
        (b"\x81\xa1a\xc9\xff\xff\xff\xff\x01", "truncated, damaged or not of msgpack"),  # an extension of 4 GiB
        (b"\x81\xa1a" * 5000 + b"\xc0", "truncated, damaged or not of msgpack"),  # deeper than msgpack reads
        (b"\x81\xa1a" * 200 + b"\xc0", "maps within more than 64 others"),
        ({"a": [None] * 5000}, "exceeds max_array_len"),  # which may make room at each of 512 levels
        (b"\x01", "expected a map of names to arrays, got int"),
        (b"\x80\x80", "truncated, damaged or not of msgpack: unpack"),
        ({"a": {"b": 1}, "a.b": 2}, "it has a.b twice"),
        (tree(kernel=array((3, 5), data=b"12")), r"cell\.i\.kernel: expected 60 bytes of float32 \(3, 5\), got 2"),
        (tree(kernel=array((2**62, 2**62), data=b"12")), r"cell\.i\.kernel: expected 85\d+ bytes"),
        (tree(kernel=array((-3, -5))), "expected the shape of an array"),
        (tree(kernel=array((True, 5))), "expected the shape of an array"),
        (tree(kernel=array(("3", 5))), "expected the shape of an array"),
        (tree(kernel=array([1] * 60)), "expected the shape of an array"),
        (tree(kernel=msgpack.ExtType(1, b"")), r"cell\.i\.kernel is truncated, damaged"),
        (tree(kernel=msgpack.ExtType(1, b"\x93\x01\x02\x03")), "expected an array's shape, dtype and numbers"),
        (tree(kernel=3.5), r"cell\.i\.kernel: expected an array, got float"),
        (tree(kernel=msgpack.ExtType(7, b"")), r"cell\.i\.kernel: expected an array, got .*ExtType"),
        (tree(kernel={CHUNKED: True}), "expected the shape and the chunks"),
        (tree(kernel={CHUNKED: True, "shape": {"0": 3, "2": 5}, "chunks": {"0": array((15,))}}), "numbered from 0"),
        (tree(kernel={CHUNKED: True, "shape": {"0": 3, "1": 5}, "chunks": {}}), "expected chunks of one dtype"),
        (tree(kernel={CHUNKED: True, "shape": {"0": 3, "1": 5}, "chunks": {"0": 3}}), "expected chunks of one dtype"),
        (tree(kernel={CHUNKED: True, "shape": {"0": 3, "1": 5}, "chunks": {"0": array((4,))}}), "expected 60 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_files_are_file_format_errors(tmp_path, found, words):
    path = written(tmp_path, found if isinstance(found, bytes) else msgpack.packb(found))
    with pytest.raises(FileFormatError, match=words) as raised:
        rnncore.load(path, **SAID)
    assert "rnn.msgpack" in str(raised.value)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({}, "no network of this kind"),
        (tree(kernel=array((3, 5), "int32")), "expected an array of float16, .* got int32"),
        (tree(kernel=array((3, 5), "object")), "got object"),
        (tree(kernel=array((3, 5), "O" * 9999)), "characters left out"),
        (tree(kernel=array((3, 5), "float64", b"\0" * 120)), "one floating dtype, got float32, float64"),
        (tree(kernel=array((3, 5), "bfloat16", b"\0" * 30)), "one dtype, got bfloat16 and others"),
        (tree(kernel=array((3, 4))), r"expected weights .* got \(4, 3\)"),
        (tree(kernel=array(())), "expected weights"),
        (tree(bias=array((4,))), r"a bias of shape \(5,\), got \(4,\)"),
        ({"i": {"kernel": array((3, 15))}, "h": {"kernel": array((5, 15))}}, "those of a GRU"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_network_is_an_interchange_error(tmp_path, found, words):
    with pytest.raises(InterchangeError, match=words):
        rnncore.load(written(tmp_path, msgpack.packb(found)), **SAID)


@pytest.mark.filterwarnings("ignore:left out")
def test_no_change_of_bytes_raises_anything_else(tmp_path):
    path = tmp_path / "rnn.msgpack"
    model(network(num_layers=2)).save(path)
    good, draw, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(400):
        data = bytearray(good)
        for _ in range(draw.randint(1, 3)):
            at, kind = draw.randrange(len(data)), draw.randrange(4)
            if kind == 0:
                data[at] = draw.randrange(256)
            elif kind == 1:
                del data[at : at + draw.randint(1, 9)]
            elif kind == 2:
                data[at:at] = draw.randbytes(draw.randint(1, 9))
            else:
                del data[at or 1 :]
        path.write_bytes(data)
        try:
            rnncore.load(path, **SAID)
        except RnncoreError:
            refused += 1
    assert refused > 100  # the others changed numbers only


def test_flax_is_not_needed_and_msgpack_is_said(tmp_path):
    path = tmp_path / "rnn.msgpack"
    code = f"""
import sys
sys.modules["flax"] = sys.modules["jax"] = None
import rnncore
rnncore.RNN(3, 5, rng=0).save({str(path)!r})
assert rnncore.load({str(path)!r}, nonlinearity="tanh", batch_first=False).hidden_size == 5
sys.modules["msgpack"] = None
for call in (lambda: rnncore.RNN(3, 5).save({str(path)!r}), lambda: rnncore.load({str(path)!r})):
    try:
        call()
    except rnncore.errors.BackendUnavailableError as error:
        print(error)
"""
    lines = python(code).splitlines()
    assert len(lines) == 2 and all(line.endswith('needs msgpack: pip install "rnncore[flax]"') for line in lines)
    assert issubclass(BackendUnavailableError, ImportError)
