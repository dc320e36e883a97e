"""Weights files made byte by byte, and the checks that hostile ones are refused."""

import io as stdio
import json
import os
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

import rnncore
from rnncore import io
from rnncore.errors import FileFormatError

MEMORY_LIMIT = 64 * 2**20
TIME_LIMIT = 60.0  # seconds of processor time, each takes milliseconds: what is believed can take hours


def small(**changes):
    return rnncore.RNN(**{"input_size": 3, "hidden_size": 2, "rng": 0, **changes})


def good(suffix, folder, **changes):
    """The bytes of a small valid file."""
    path = Path(folder) / f"good.{suffix}"
    small(**changes).save(path)
    raw = path.read_bytes()
    path.unlink()
    return raw


def host(model):
    return {k: np.asarray(v.float() if str(v.dtype) == "torch.bfloat16" else v) for k, v in model.state_dict().items()}


def assert_same(a, b):
    """Bit for bit: names in order, shapes, dtypes and every byte, NaN and -0.0 included."""
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert a[name].shape == b[name].shape
        assert a[name].tobytes() == b[name].tobytes()


def listing(folder):
    return sorted(os.listdir(folder))


def description(**changes):
    """Version 1 as it is documented, written out by hand: files that exist must stay readable."""
    spec = {
        "input_size": 3,
        "hidden_sizes": [2],
        "nonlinearity": {"name": "tanh"},
        "custom_nonlinearity": False,
        "bias": False,
        "batch_first": False,
        "dropout": 0.0,
        "bidirectional": False,
    }
    top = {"format": "rnncore", "version": 1, "dtype": "float64", "spec": spec}
    top.update({k: v for k, v in changes.items() if k in top})
    spec.update({k: v for k, v in changes.items() if k not in top})
    return json.dumps(top)


CONFIG = small().spec.to_config()


def st_join(table, data, *, text=None, length=None):
    text = json.dumps(table) if text is None else text
    text = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def st_parts(raw):
    (n,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + n]), raw[8 + n :]


def st_table(change):
    """A case: the good file's table, changed in place (or replaced by what `change` returns)."""

    def make(raw):
        table, data = st_parts(raw)
        changed = change(table)
        return st_join(table if changed is None else changed, data)

    return make


def st_meta(change):
    """A case: the description's text, changed."""

    def edit(table):
        table["__metadata__"]["rnncore"] = change(table["__metadata__"]["rnncore"])

    return st_table(edit)


def nested(depth, unit="[", end="]"):
    return unit * depth + end * depth


def zip_parts(raw):
    with zipfile.ZipFile(stdio.BytesIO(raw)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def zip_join(entries, compression=zipfile.ZIP_STORED, **info_changes):
    out = stdio.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in entries.items() if isinstance(entries, dict) else entries:
            info = zipfile.ZipInfo(name)
            info.compress_type = compression
            for key, value in info_changes.items():
                setattr(info, key, value)
            archive.writestr(info, data)
    return out.getvalue()


def npy(array, version=None):
    out = stdio.BytesIO()
    np.lib.format.write_array(out, array, version)
    return out.getvalue()


def npy_header(text, data=b"", version=b"\x01\x00"):
    text = text.encode("latin1")
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + data


def npy_claim(descr="<f8", fortran=False, shape="(2, 2)", data=bytes(32)):
    return npy_header(f"{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n", data)


def z(change):
    """A case: the entries, changed in place (or replaced by what `change` returns)."""

    def make(raw):
        entries = zip_parts(raw)
        changed = change(entries)
        return zip_join(entries if changed is None else changed)

    return make


def z_array(data):
    return z(lambda e: e.update({"weight_hh_l0.npy": data}))


def z_text(change):
    def edit(entries):
        text = bytes(np.load(stdio.BytesIO(entries["rnncore.npy"]))).decode()
        entries["rnncore.npy"] = npy(np.frombuffer(change(text).encode(), np.uint8))

    return z(edit)


def hostile(cases):
    """Parametrise a test over (suffix, how the file is made, the reason it is refused with)."""
    return pytest.mark.parametrize(("suffix", "make", "reason"), cases.values(), ids=cases.keys())


def bombs(cases):
    """Those that would take memory if they were believed."""
    words = ("bomb", "many", "huge", "nested", "0,000", "8 TiB", "large")
    return hostile({name: case for name, case in cases.items() if any(word in name for word in words)})


def assert_refused(tmp_path, suffix, make, reason):
    """With the path and the reason in a short printable message, soon, and with nothing left behind."""
    raw = good(suffix, tmp_path)
    bad = make(raw)
    assert bad != raw
    path = tmp_path / f"hostile.{suffix}"
    path.write_bytes(bad)
    started = time.process_time()
    with pytest.raises(FileFormatError, match=reason) as caught:
        rnncore.load(path)
    assert time.process_time() - started < TIME_LIMIT
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert len(message) < 1000
    assert message.isprintable()
    # Numbers that a custom function stands in for are checked as well.
    with pytest.raises(FileFormatError):
        rnncore.load(path, nonlinearity=(np.sin, np.cos))
    assert listing(tmp_path) == [path.name]


def assert_little_memory(tmp_path, suffix, make):
    path = tmp_path / f"bomb.{suffix}"
    path.write_bytes(make(good(suffix, tmp_path)))
    with pytest.raises(FileFormatError):
        io.read(path)  # imports are not counted
    tracemalloc.start()
    try:
        with pytest.raises(FileFormatError):
            io.read(path)
        assert tracemalloc.get_traced_memory()[1] < MEMORY_LIMIT
    finally:
        tracemalloc.stop()


def hostile_tests(cases):
    """Make two tests of these files: each is refused, and those that claim to be large take no memory."""

    @hostile(cases)
    def refused(tmp_path, suffix, make, reason):
        assert_refused(tmp_path, suffix, make, reason)

    @bombs(cases)
    def take_no_memory(tmp_path, suffix, make, reason):
        assert_little_memory(tmp_path, suffix, make)

    return refused, take_no_memory
