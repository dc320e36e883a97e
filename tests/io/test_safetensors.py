"""The safetensors format: torch reads it, and malformed files are refused."""

import json
import struct

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

import rnncore
from tests.tools.weights_files import (
    assert_same,
    host,
    hostile_tests,
    nested,
    small,
    st_join,
    st_parts,
    st_table,
)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}])
def test_into_torch_and_back(tmp_path, dtype, options):
    model = small(dtype=dtype, **options)
    model.save(tmp_path / "rnn.safetensors")
    theirs = torch.nn.RNN(3, 2, dtype=getattr(torch, dtype), **options)
    theirs.load_state_dict(safetensors.torch.load_file(tmp_path / "rnn.safetensors"))
    x = np.random.default_rng(1).standard_normal((5, 4, 3)).astype(dtype)
    np.testing.assert_allclose(
        theirs(torch.tensor(x))[0].detach().numpy(), model(x)[0], rtol=0, atol=64 * np.finfo(dtype).eps
    )
    fresh = small(dtype=dtype, rng=1, **options)
    fresh.load_state_dict(theirs.state_dict())
    assert_same(host(fresh), host(model))


@pytest.mark.parametrize("options", [{}, {"num_layers": 3, "bidirectional": True, "hidden_size": 5}, {"bias": False}])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_bytes_are_those_of_the_reference_writer(tmp_path, dtype, options):
    name = 'é"\\\n\x7f'  # what JSON escapes, and what it does not
    model = small(dtype=dtype, nonlinearity=rnncore.custom_nonlinearity(np.sin, np.cos, name=name), **options)
    model.save(tmp_path / "rnn.safetensors")
    raw = (tmp_path / "rnn.safetensors").read_bytes()
    text = st_parts(raw)[0]["__metadata__"]["rnncore"]
    assert raw == safetensors.numpy.save(host(model), {"rnncore": text})


def test_arrays_are_read_wherever_they_lie(tmp_path):
    """In another order than torch's and the writer's, at an address that is no multiple of their size."""
    model = small()
    model.save(tmp_path / "rnn.safetensors")
    table, data = st_parts((tmp_path / "rnn.safetensors").read_bytes())
    made, end = b"", 0
    for name in ("weight_hh_l0", "bias_ih_l0", "weight_ih_l0", "bias_hh_l0"):
        begin, stop = table[name]["data_offsets"]
        table[name]["data_offsets"] = [end, end + stop - begin]
        made, end = made + data[begin:stop], end + stop - begin
    text = json.dumps(table)
    for spaces in range(8):
        (tmp_path / "odd.safetensors").write_bytes(st_join(None, made, text=text + " " * spaces))
        again = rnncore.load(tmp_path / "odd.safetensors")
        assert_same(host(again), host(model))
        assert all(x.flags.owndata and x.flags.writeable and x.flags.aligned for x in again.params.values())


def st_tensor(name="weight_hh_l0", **entry):
    return st_table(lambda t: t[name].update(entry))


def st_text(change):
    """A case: the header's own text, changed."""

    def make(raw):
        table, data = st_parts(raw)
        return st_join(None, data, text=change(json.dumps(table)))

    return make


def moved(table, by):
    for name, entry in table.items():
        if name != "__metadata__":
            entry["data_offsets"] = [k + by for k in entry["data_offsets"]]


ST_CASES = {
    "empty": (lambda raw: b"", "truncated"),
    "seven bytes": (lambda raw: raw[:7], "truncated"),
    "length only": (lambda raw: raw[:8], "truncated"),
    "length 0": (lambda raw: struct.pack("<Q", 0) + raw[8:], "JSON"),
    "length 2**64-1": (lambda raw: b"\xff" * 8 + raw[8:], "truncated"),
    "length 2**63": (lambda raw: struct.pack("<Q", 2**63) + raw[8:], "truncated"),
    "length beyond the file": (lambda raw: struct.pack("<Q", len(raw) - 7) + raw[8:], "truncated"),
    "length 1 short": (lambda raw: st_join(*st_parts(raw), length=100), "JSON"),
    "long header": (st_text(lambda s: s + " " * 3 * 2**20), "at most"),
    "zeros": (lambda raw: bytes(1000), "JSON"),
    "pickle": (lambda raw: b"\x80\x04\x95" + raw, "truncated|JSON"),
    "a zip": (lambda raw: b"PK\x03\x04" + raw, "truncated"),
    "not utf-8": (st_text(lambda s: s.encode() + b"\xff"), "JSON"),
    "utf-16": (st_text(lambda s: s.encode("utf-16")), "JSON"),
    "not json": (st_text(lambda s: s[:-1]), "JSON"),
    "two documents": (st_text(lambda s: s + "{}"), "JSON"),
    "a list": (st_text(lambda s: f"[{s}]"), "not a JSON object"),
    "null": (st_text(lambda s: "null"), "not a JSON object"),
    "nested lists": (st_text(lambda s: nested(100_000)), "nested"),
    "nested objects": (st_text(lambda s: nested(100_000, '{"a":', "}")), "nested|JSON"),
    "nested value": (st_text(lambda s: s[:-1] + ',"a":' + nested(100_000) + "}"), "nested"),
    "many lists": (st_text(lambda s: "[" + "[]," * 340_000 + "[]]"), "not a JSON object"),
    "many objects": (st_text(lambda s: '{"__metadata__":[' + "{}," * 340_000 + "{}]}"), "__metadata__"),
    "NaN": (st_text(lambda s: s[:-1] + ',"a":NaN}'), "NaN"),
    "5000 digits": (st_text(lambda s: s[:-1] + ',"a":' + "9" * 5000 + "}"), "JSON"),
    "duplicate tensor": (st_text(lambda s: s[:-1] + ',"bias_hh_l0":{}}'), "twice"),
    "same tensor twice": (
        st_text(lambda s: s[:-1] + ',"bias_hh_l0":' + json.dumps(json.loads(s)["bias_hh_l0"]) + "}"),
        "twice",
    ),
    "duplicate metadata": (st_text(lambda s: s[:-1] + ',"__metadata__":{}}'), "twice"),
    "duplicate dtype": (st_text(lambda s: s.replace('"dtype"', '"dtype": "F16", "dtype"', 1)), "twice"),
    "metadata a list": (st_table(lambda t: t.update(__metadata__=[])), "__metadata__"),
    "metadata of numbers": (st_table(lambda t: t["__metadata__"].update(n=1)), "__metadata__"),
    "description an object": (st_table(lambda t: t["__metadata__"].update(rnncore={})), "__metadata__"),
    "no metadata": (st_table(lambda t: t.pop("__metadata__") and None), "no rnncore description"),
    "empty metadata": (st_table(lambda t: t.update(__metadata__={})), "no rnncore description"),
    "no tensors": (lambda raw: st_join({"__metadata__": st_parts(raw)[0]["__metadata__"]}, b""), "missing"),
    "tensor missing": (st_table(lambda t: t.pop("bias_hh_l0") and None), "missing bias_hh_l0"),
    "tensor extra": (st_table(lambda t: t.update(extra=t["bias_hh_l0"])), "unexpected 'extra'"),
    "control character": (st_table(lambda t: t.update({"\x1b[2J": t["bias_hh_l0"]})), r"unexpected '\\x1b\[2J'"),
    "NUL in a name": (st_table(lambda t: t.update({"bias_hh_l0\0": t.pop("bias_hh_l0")})), r"'bias_hh_l0\\x00'"),
    "a path for a name": (st_table(lambda t: t.update({"../../x": t.pop("bias_hh_l0")})), "unexpected"),
    "a surrogate in a name": (st_table(lambda t: t.update({"\ud800": t.pop("bias_hh_l0")})), "unexpected"),
    "30,000 tensors": (st_table(lambda t: t.update({f"t{k}": {} for k in range(30_000)})), "unexpected"),
    "entry null": (st_table(lambda t: t.update(bias_hh_l0=None)), "bias_hh_l0"),
    "entry a list": (st_table(lambda t: t.update(bias_hh_l0=[])), "bias_hh_l0"),
    "entry empty": (st_table(lambda t: t.update(bias_hh_l0={})), "bias_hh_l0"),
    "entry too much": (st_tensor(more=1), "weight_hh_l0"),
    "dtype I64": (st_tensor(dtype="I64"), "expected dtype F64"),
    "dtype F32": (st_tensor(dtype="F32"), "expected dtype F64"),
    "dtype BF16": (st_tensor(dtype="BF16"), "expected dtype F64"),
    "dtype lower case": (st_tensor(dtype="f64"), "expected dtype F64"),
    "dtype null": (st_tensor(dtype=None), "expected dtype F64"),
    "dtype a list": (st_tensor(dtype=["F64"]), "expected dtype F64"),
    "shape turned": (st_tensor("weight_ih_l0", shape=[3, 2]), r"expected shape \[2, 3\]"),
    "shape flat": (st_tensor(shape=[4]), "expected shape"),
    "shape 0-d": (st_tensor(shape=[]), "expected shape"),
    "shape zero": (st_tensor(shape=[0, 2]), "expected shape"),
    "shape negative": (st_tensor(shape=[-2, -2]), "expected shape"),
    "shape huge": (st_tensor(shape=[2**63, 2**63]), "expected shape"),
    "shape of floats": (st_tensor(shape=[2.0, 2.0]), "expected shape"),
    "shape of strings": (st_tensor(shape=["2", "2"]), "expected shape"),
    "shape a string": (st_tensor(shape="22"), "expected shape"),
    "shape null": (st_tensor(shape=None), "expected shape"),
    "shape long": (st_tensor(shape=[2] * 100_000), "expected shape"),
    "offsets beyond": (st_tensor(data_offsets=[10**6, 10**6 + 32]), "expected its bytes to begin"),
    "offsets negative": (st_tensor(data_offsets=[-32, 0]), "expected its bytes to begin"),
    "offsets turned": (st_tensor(data_offsets=[64, 32]), "data_offsets"),
    "offsets huge": (st_tensor(data_offsets=[0, 2**64]), "data_offsets"),
    "offsets too short": (st_tensor(data_offsets=[32]), "data_offsets"),
    "offsets three": (st_tensor(data_offsets=[32, 64, 96]), "data_offsets"),
    "offsets of floats": (st_tensor(data_offsets=[32.0, 64.0]), "data_offsets"),
    "offsets null": (st_tensor(data_offsets=None), "data_offsets"),
    "offset false": (st_tensor("bias_hh_l0", data_offsets=[False, 16]), "data_offsets"),
    "offsets of booleans": (st_tensor(data_offsets=[False, True]), "data_offsets"),
    "two at the same place": (
        st_table(lambda t: t["bias_hh_l0"].update(data_offsets=t["bias_ih_l0"]["data_offsets"])),
        "begin at",
    ),
    "overlap": (st_table(lambda t: t["weight_hh_l0"].update(data_offsets=[24, 56])), "begin at"),
    "a gap": (lambda raw: st_table(lambda t: moved(t, 8))(raw) + bytes(8), "begin at 0"),
    "trailing byte": (lambda raw: raw + b"\0", "too long"),
    "one byte short": (lambda raw: raw[:-1], "truncated"),
    "no data": (lambda raw: st_join(st_parts(raw)[0], b""), "truncated"),
}


SAFETENSORS_FILES = {name: ("safetensors", *case) for name, case in ST_CASES.items()}

test_a_hostile_safetensors_is_refused, test_a_hostile_safetensors_takes_no_memory = hostile_tests(SAFETENSORS_FILES)
