"""The npz format: NumPy reads it, and malformed archives are refused."""

import io
import struct
import zipfile

import numpy as np

import rnncore
from tests.tools.weights_files import (
    assert_same,
    description,
    host,
    hostile_tests,
    npy,
    npy_claim,
    small,
    z,
    zip_join,
    zip_parts,
)


def test_numpy_reads_an_npz(tmp_path):
    model = small()
    model.save(tmp_path / "rnn.npz")
    with np.load(tmp_path / "rnn.npz") as file:
        assert set(file) == {*host(model), "rnncore"}
        assert_same({k: file[k] for k in host(model)}, host(model))


def test_zip64_records_are_read(tmp_path, monkeypatch):
    model = small()
    with monkeypatch.context() as patch:
        patch.setattr(zipfile, "ZIP64_LIMIT", 100)  # as if it were over 2 GiB
        model.save(tmp_path / "rnn.npz")
    assert b"PK\x06\x07" in (tmp_path / "rnn.npz").read_bytes()
    assert_same(host(rnncore.load(tmp_path / "rnn.npz")), host(model))


def directory(offset, form, value, *, entry=1):
    """A case: a field of the central directory's entry, or of the end record (entry None), overwritten."""

    def make(raw):
        out = bytearray(raw)
        at = len(raw) - 22
        if entry is not None:
            at = struct.unpack_from("<L", raw, len(raw) - 6)[0]
            for _ in range(entry):
                at = raw.index(b"PK\x01\x02", at + 4)
        struct.pack_into(form, out, at + offset, value)
        return bytes(out)

    return make


def local(offset, form, value):
    """A case: a field of the first parameter's local header overwritten."""

    def make(raw):
        out = bytearray(raw)
        struct.pack_into(form, out, raw.index(b"PK\x03\x04", 4) + offset, value)
        return bytes(out)

    return make


def twice(raw):
    entries = list(zip_parts(raw).items())
    entries.append(("twin" + entries[-1][0][4:], entries[-1][1]))
    return zip_join(entries).replace(b"twin", entries[-2][0][:4].encode())


def one_over_another(raw):
    """The second parameter's directory entry points to where the first one's bytes are."""
    first = struct.unpack_from(
        "<L", raw, raw.index(b"PK\x01\x02", struct.unpack_from("<L", raw, len(raw) - 6)[0] + 4) + 42
    )[0]
    return directory(42, "<L", first + 40, entry=2)(raw)


def bomb(raw):
    """The description is true, and its 80 MB of zeros are deflated to 80 kB."""
    entries = zip_parts(raw)
    text = description(input_size=3000, hidden_sizes=[2000])
    entries["rnncore.npy"] = npy(np.frombuffer(text.encode(), np.uint8))
    entries["weight_ih_l0.npy"] = npy(np.zeros((2000, 3000)))
    entries["weight_hh_l0.npy"] = npy(np.zeros((2000, 2000)))
    return zip_join({k: v for k, v in entries.items() if "bias" not in k}, zipfile.ZIP_DEFLATED)


def quoted(raw):
    """One block of zeros that many entries share: every one claims it whole."""
    claim = npy_claim(shape="(1000, 1000)", data=bytes(8_000_000))
    out = bytearray(zip_join({"a.npy": claim}))
    at = struct.unpack_from("<L", out, len(out) - 6)[0]
    record = bytes(out[at:-22])
    many = record * 1000
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1000, 1000, len(many), at, 0)
    return bytes(out[:at]) + many + end


def behind_a_pickle(raw):
    """A good zip behind the bytes of something else, for which other readers take the whole file."""
    out = io.BytesIO(b"\x80\x04\x95" + bytes(9))
    with zipfile.ZipFile(out, "a") as archive:
        for name, data in zip_parts(raw).items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return out.getvalue()


def with_end(count, length, begin=None):
    """An end record that claims this number of entries in a directory of this length."""

    def make(raw):
        return raw[:-22] + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, length, begin or 0, 0)

    return make


def big_directory(raw):
    """A directory that is as large as it says: 200,000 entries."""
    record = zip_join({"": b""})
    at = struct.unpack_from("<L", record, len(record) - 6)[0]
    many = record[at:-22] * 200_000
    return b"PK\x03\x04" + many + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(many), 4, 0)


def zip64(**changes):
    """A case: the good file with zip64 end records, some of their fields changed."""

    def make(raw):
        length, begin = struct.unpack_from("<LL", raw, len(raw) - 10)
        count = struct.unpack_from("<H", raw, len(raw) - 12)[0]
        fields = {
            "count": count,
            "length": length,
            "begin": begin,
            "at": len(raw) - 22,
            "sign": b"PK\x06\x06",
            **changes,
        }
        record = struct.pack(
            "<4sQ2H2L4Q",
            fields["sign"],
            44,
            45,
            45,
            0,
            0,
            fields["count"],
            fields["count"],
            fields["length"],
            fields["begin"],
        )
        locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, fields["at"], 1)
        return raw[:-22] + record + locator + raw[-22:]

    return make


NPZ_CASES = {
    "empty": (lambda raw: b"", "truncated"),
    "21 bytes": (lambda raw: raw[:21], "truncated"),
    "zeros": (lambda raw: bytes(5000), "not an npz"),
    "an npy": (lambda raw: npy(np.ones(100)), "not an npz"),
    "empty zip": (lambda raw: zip_join({}), "no rnncore description"),
    "half": (lambda raw: raw[: len(raw) // 2], "truncated"),
    "one byte short": (lambda raw: raw[:-1], "truncated"),
    "second half": (lambda raw: raw[len(raw) // 2 :], "damaged"),
    "trailing byte": (lambda raw: raw + b"\0", "not an npz"),
    "a comment": (lambda raw: raw[:-2] + b"\x04\0test", "not an npz"),
    "comment length": (directory(20, "<H", 5, entry=None), "not an npz"),
    "count 65535": (directory(10, "<H", 65535, entry=None), "too many"),
    "count of one less": (directory(10, "<H", 65534, entry=None), "too many"),
    "directory huge": (with_end(1, 2**32 - 1), "too many"),
    "directory large": (big_directory, "too many"),
    "directory elsewhere": (directory(16, "<L", 0, entry=None), "damaged"),
    "directory beyond": (directory(16, "<L", 2**31, entry=None), "damaged"),
    "directory empty": (with_end(0, 0), "damaged"),
    "zip64 other begin": (zip64(begin=0), "damaged"),
    "zip64 begin 2**64-1": (zip64(begin=2**64 - 1), "damaged"),
    "zip64 huge directory": (zip64(length=2**40), "too many"),
    "zip64 huge count": (zip64(count=2**40), "too many"),
    "zip64 elsewhere": (zip64(at=0), "damaged"),
    "zip64 signature": (zip64(sign=b"PK\x05\x05"), "damaged"),
    "directory signature": (directory(0, "<L", 0), "damaged"),
    "needs version 255": (directory(6, "<H", 255), "damaged"),
    "encrypted": (directory(8, "<H", 1), "encrypted"),
    "name length in the local header": (local(26, "<H", 3), "damaged"),
    "patched data": (directory(8, "<H", 0x20), "encrypted"),
    "strong encryption": (directory(8, "<H", 0x40), "encrypted"),
    "deflated": (lambda raw: zip_join(zip_parts(raw), zipfile.ZIP_DEFLATED), "compressed"),
    "lzma": (lambda raw: zip_join(zip_parts(raw), zipfile.ZIP_LZMA), "compressed"),
    "unknown compression": (directory(10, "<H", 99), "compressed"),
    "bomb": (bomb, "compressed"),
    "many over one block": (quoted, "twice"),
    "checksum": (directory(16, "<L", 12345), "damaged"),
    "compressed size": (directory(20, "<L", 2**31), "size is not true"),
    "size": (directory(24, "<L", 2**31), "size is not true"),
    "both sizes huge": (
        lambda raw: directory(20, "<L", 2**31)(directory(24, "<L", 2**31)(raw)),
        "size is not true|claims more",
    ),
    "last one huge": (
        lambda raw: directory(20, "<L", 2**31, entry=4)(directory(24, "<L", 2**31, entry=4)(raw)),
        "claims more",
    ),
    "sizes 1 less": (lambda raw: directory(20, "<L", 159)(directory(24, "<L", 159)(raw)), "damaged|expected"),
    "sizes 0": (lambda raw: directory(20, "<L", 0)(directory(24, "<L", 0)(raw)), "damaged"),
    "offset beyond": (directory(42, "<L", 2**31), "size is not true|claims more"),
    "offset of another": (one_over_another, "size is not true"),
    "extra field broken": (directory(30, "<H", 3), "damaged"),
    "other name in the local header": (lambda raw: raw.replace(b"weight_hh", b"weight_xx", 1), "damaged"),
    "local signature": (local(0, "<L", 0), "damaged"),
    "behind a pickle": (behind_a_pickle, "does not begin"),
    "duplicate name": (twice, "twice"),
    "no .npy": (z(lambda e: e.update({"readme.txt": b"hello"})), "end in .npy"),
    "a directory entry": (z(lambda e: e.update({"a/": b""})), "end in .npy"),
    "NUL in a name": (
        lambda raw: zip_join(
            [(k.replace("bias_hh_l0.npy", "bias_hh_l0.npyX"), v) for k, v in zip_parts(raw).items()]
        ).replace(b"bias_hh_l0.npyX", b"bias_hh_l0.npy\0"),
        "end in .npy",
    ),
    "a path for a name": (z(lambda e: e.update({"../../evil.npy": npy(np.ones(2))})), "unexpected '../../evil'"),
    "control character": (z(lambda e: e.update({"\x1b[2J.npy": npy(np.ones(2))})), r"unexpected '\\x1b\[2J'"),
    "not ascii": (z(lambda e: e.update({"wéight.npy": npy(np.ones(2))})), "unexpected"),
    "extra": (z(lambda e: e.update({"extra.npy": npy(np.ones(2))})), "unexpected 'extra'"),
    "missing": (z(lambda e: e.pop("bias_hh_l0.npy") and None), "missing bias_hh_l0"),
    "20,000 entries": (z(lambda e: e.update({f"{k}.npy": b"" for k in range(20_000)})), "too many"),
    "no description": (z(lambda e: e.pop("rnncore.npy") and None), "no rnncore description"),
}


NPZ_FILES = {name: ("npz", *case) for name, case in NPZ_CASES.items()}

test_a_hostile_npz_is_refused, test_a_hostile_npz_takes_no_memory = hostile_tests(NPZ_FILES)
