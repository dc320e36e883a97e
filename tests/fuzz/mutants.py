"""Mutants of weights files: a good file, taken apart, with a few of its parts changed, and put together again.

:func:`mutant` gives the one of a seed and a number, the same in every process. A changed part is a field of a header, a key
or value of JSON, a name, a shape, an offset, or some bytes. What depends on it (lengths, checksums) is made anew, so that the
change is met where it is and not before.
"""

import json
import random
import struct
import tempfile
import zlib
from functools import cache

import numpy as np

import rnncore
from tests.tools.weights_files import good, nested, npy, st_parts, zip_parts

NETWORKS = {
    "plain": {},
    "deep": {"hidden_size": [4, 1, 3], "bidirectional": True, "dtype": "float32"},
    "half": {"bias": False, "dtype": "float16"},
    "clipped": {
        "nonlinearity": rnncore.get_nonlinearity("leaky_relu", alpha=0.1),
        "clip": 3.0,
        "dropout": 0.5,
        "num_layers": 2,
    },
    "custom": {"nonlinearity": (np.sin, np.cos), "batch_first": True, "num_layers": 2},
}
ARRAYS = [np.arange(24.0).reshape(2, 3, 4), np.ones((3, 1), ">f4"), np.arange(5, dtype=np.uint8), np.array(1.5)]
SEVERAL = (1, 1, 1, 2, 3)  # changes in one file
SIZES = (0, 1, 2, 3, 7, 8, 30, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1)
DTYPES = ("F16", "F32", "F64", "BF16", "F8_E4M3", "I8", "I64", "U8", "BOOL", "C64", "f64", "F64 ", "", "O", "F" * 999)
DESCRS = (
    "<f2",
    "<f4",
    "<f8",
    ">f8",
    "=f8",
    "|u1",
    "|i1",
    "|O",
    "<c16",
    "<f16",
    "<f3",
    "<V8",
    "|S5",
    "<U9",
    "<M8[s]",
    "f8",
    "",
)
NAMES = (
    "",
    "x",
    "rnncore",
    "../../x",
    "/etc/x",
    "a/",
    "\0",
    "\x1b[2J",
    "é",
    "\ud800",
    "bias_hh_l9",
    "a" * 5000,
    "__metadata__",
)
TOKENS = (
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    '"',
    "null",
    "NaN",
    "-Infinity",
    "1e999",
    "-0",
    "1.0",
    "\\u0000",
    "\\ud800",
    "\\",
    "\n",
    " ",
)


def mutant(seed, number):
    """Return a file's suffix and bytes, and the name of what was done to it."""
    rng = random.Random(seed << 48 | number)
    suffix = rng.choice(("safetensors", "safetensors", "npz", "npz", "npy"))
    parts = rng.choice(bases()[suffix])
    kind = rng.random()
    if kind < 0.2:
        return suffix, damaged(rng, parts["raw"]), "damaged"
    raw = {"safetensors": safetensors, "npz": npz, "npy": lambda rng, parts: npy_file(rng, parts["raw"])}[suffix](
        rng, parts
    )
    if kind < 0.25:
        return suffix, damaged(rng, raw), "changed and damaged"
    return suffix, raw, "changed"


@cache
def bases():
    """By suffix, good files and their parts."""
    made = {"safetensors": [], "npz": [], "npy": [{"raw": npy(array)} for array in ARRAYS]}
    with tempfile.TemporaryDirectory() as folder:
        for network in NETWORKS.values():
            raw = good("safetensors", folder, **network)
            table, data = st_parts(raw)
            made["safetensors"].append({"raw": raw, "table": json.dumps(table), "data": data})
            raw = good("npz", folder, **network)
            made["npz"].append({"raw": raw, "entries": list(zip_parts(raw).items())})
    return made


# --- values, texts and bytes ------------------------------------------------------------------------------------------


def size(rng):
    """A size, rarely a true one."""
    return rng.choice(SIZES) if rng.random() < 0.5 else rng.randrange(300)


def value(rng):
    """A value of JSON that is seldom expected."""
    kind = rng.randrange(12)
    if kind < 3:
        return rng.choice(
            (None, True, False, 0, 1, -1, 2, 3, 1.0, -0.0, 0.5, 1e308, 5e-324, float("nan"), float("inf"))
        )
    if kind == 3:
        return size(rng) * rng.choice((1, -1))
    if kind == 4:
        return 10 ** rng.choice((19, 30, 308, 309, 4000))
    if kind < 7:
        return rng.choice(NAMES)
    if kind == 7:
        return [size(rng) for _ in range(rng.randrange(4))]
    if kind == 8:
        return {rng.choice(NAMES): value(rng)}
    if kind == 9:
        return [value(rng) for _ in range(rng.randrange(3))]
    if kind == 10:
        return rng.choice((DTYPES, DESCRS, ("tanh", "relu", "elu", "float16", "float32", "float64", "bfloat16")))[0]
    return [1] * rng.choice((10, 100, 6000)) if rng.random() < 0.05 else rng.choice(("float16", "float32", "bfloat16"))


def change(rng, table):
    """Change a value, a key or the keys of a table of JSON, somewhere inside it."""
    while table and rng.random() < 0.6:
        inner = [v for v in table.values() if isinstance(v, dict)]
        if not inner:
            break
        table = rng.choice(inner)
    if not table:
        return
    key = rng.choice(list(table))
    kind = rng.randrange(8)
    if kind < 4:
        table[key] = value(rng)
    elif kind == 4:
        del table[key]
    elif kind == 5:
        table[rng.choice(NAMES)] = table.pop(key)
    elif kind == 6:
        table[rng.choice((*NAMES, "code", "version"))] = value(rng)
    else:
        other = rng.choice(list(table))
        table[key], table[other] = table[other], table[key]


def edited(rng, text):
    """Change the text of JSON or of Python: tokens, repeated and removed pieces, digits, nesting."""
    at = rng.randrange(len(text) + 1)
    end = min(len(text), at + rng.randrange(1, 40))
    kind = rng.randrange(9)
    if kind < 3:
        return text[:at] + rng.choice(TOKENS) + text[at + rng.randrange(2) :]
    if kind == 3:
        return text[:at] + text[end:]
    if kind == 4:
        return text[:end] + text[at:end] + text[end:]
    if kind == 5:  # a key twice
        comma = text.find(",", at)
        brace = text.find("{")
        return text[: brace + 1] + text[at:comma] + "," + text[brace + 1 :] if comma > at else text + text
    if kind == 6:
        return text[:at] + str(10 ** rng.choice((1, 5, 20, 400))) + text[end:]
    if kind == 7:
        return (
            text[:at]
            + nested(rng.choice((2, 50, 1500)), *rng.choice((("[", "]"), ('{"a":', "}"), ("(", ")"))))
            + text[end:]
        )
    return rng.choice(("", " ", "\ufeff", "null", "[]", "{}", "3", '"x"', "\0")) + (text if rng.random() < 0.3 else "")


def described(rng, text):
    """Change the description of the network, as a table or as a text."""
    if rng.random() < 0.3:
        return edited(rng, text)
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):  # an earlier change made it no JSON, or nested it deeply
        return edited(rng, text)
    for _ in range(rng.choice(SEVERAL)):
        change(rng, table)
    return json.dumps(table)


def damaged(rng, raw):
    """Change bytes wherever they are."""
    bad = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at = rng.randrange(len(bad) + 1)
        kind = rng.randrange(10)
        if kind < 3 and at < len(bad):
            bad[at] ^= 1 << rng.randrange(8)
        elif kind == 3:
            bad[at : at + 1] = bytes((rng.choice(b"\0\xff{}[],:\"0123456789PK'()-"),))
        elif kind == 4:
            del bad[at : at + rng.choice((1, 2, 8, 99))]
        elif kind == 5:
            bad[at:at] = bad[at : at + rng.choice((1, 8, 99))]
        elif kind == 6:
            form = rng.choice(("<H", "<L", "<Q"))
            packed = struct.pack(form, size(rng) % 2 ** (8 * struct.calcsize(form)))
            bad[at : at + len(packed)] = packed
        elif kind == 7:
            del bad[at:]
        elif kind == 8:
            bad += rng.choice((b"\0", bytes(22), b"PK\x05\x06" + bytes(18), bytes(bad[at:]), b"\x93NUMPY\x01\0"))
        else:
            other = rng.choice(bases()[rng.choice(("safetensors", "npz", "npy"))])["raw"]
            bad[at:] = other[rng.randrange(len(other)) :]
    return bytes(bad)


# --- safetensors ------------------------------------------------------------------------------------------------------


def safetensors(rng, parts):
    """A safetensors file with changes in its header, its data or its length."""
    table, data = json.loads(parts["table"]), parts["data"]
    text = length = None
    for _ in range(rng.choice(SEVERAL)):
        kind = rng.randrange(12)
        names = [name for name, entry in table.items() if name != "__metadata__" and isinstance(entry, dict)]
        if kind < 3 and isinstance(table.get("__metadata__"), dict):
            held = table["__metadata__"].get("rnncore")
            if isinstance(held, str) and held.startswith("{"):
                table["__metadata__"]["rnncore"] = described(rng, held) if rng.random() < 0.9 else value(rng)
                break  # what is no JSON any more is not taken apart again
        elif kind < 6 and names:
            entry = table[rng.choice(names)]
            entry[rng.choice(("dtype", "shape", "data_offsets", "more"))] = value(rng)
            if rng.random() < 0.5:
                entry["dtype"] = rng.choice(DTYPES)
        elif kind < 8 and names:
            data = moved(rng, table, names, data)
        elif kind == 8:
            change(rng, table)
        elif kind == 9:
            text = edited(rng, json.dumps(table))
        elif kind == 10:
            data = rng.choice((data[: rng.randrange(len(data) + 1)], data + bytes(rng.randrange(1, 20)), data[1:], b""))
        else:
            length = size(rng) if rng.random() < 0.5 else len(json.dumps(table)) + rng.randrange(-9, 9)
    if rng.random() < 0.002:
        text = rng.choice(LARGE)
    made = (json.dumps(table) if text is None else text).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(made) if length is None else length) + made + data


def moved(rng, table, names, data):
    """Move the bytes of arrays, or only say so: holes, overlaps, another order."""
    kind = rng.randrange(4)
    chosen = [table[name] for name in (rng.choice(names), rng.choice(names))]
    if kind == 0 and all("data_offsets" in entry for entry in chosen):
        chosen[0]["data_offsets"], chosen[1]["data_offsets"] = chosen[1]["data_offsets"], chosen[0]["data_offsets"]
    elif kind == 1:
        by = rng.choice((-8, -1, 1, 2, 8, 2**63))
        chosen[0]["data_offsets"] = shifted(chosen[0].get("data_offsets"), by)
    elif kind == 2:
        by = rng.choice((1, 8))
        for name in names:
            table[name]["data_offsets"] = shifted(table[name].get("data_offsets"), by)
        return bytes(by) + data if rng.random() < 0.5 else data
    else:  # a true change of their order
        order, end, made = sorted(names, key=lambda name: rng.random()), 0, []
        for name in order:
            offsets = table[name].get("data_offsets")
            if not (
                isinstance(offsets, list)
                and len(offsets) == 2
                and all(type(k) is int and 0 <= k < 2**40 for k in offsets)
            ):
                return data
            piece = data[offsets[0] : offsets[1]]
            table[name]["data_offsets"] = [end, end + len(piece)]
            end += len(piece)
            made.append(piece)
        return b"".join(made)
    return data


def shifted(offsets, by):
    """Offsets moved by a number, where they are some."""
    if isinstance(offsets, list):
        return [k + by if type(k) is int else k for k in offsets]
    return offsets


LARGE = (
    nested(100_000),
    nested(100_000, '{"a":', "}"),
    '{"__metadata__":[' + "{}," * 300_000 + "{}]}",
    "[" + "[]," * 300_000 + "[]]",
    '{"a":' + "9" * 500_000 + "}",
    '"' + "\\u0000" * 150_000 + '"',
    "{" + ",".join(f'"{k}":{{}}' for k in range(80_000)) + "}",
    "{}" + " " * 1_100_000,
)


# --- npy --------------------------------------------------------------------------------------------------------------


def npy_file(rng, raw):
    """An .npy with changes in its header, its data or its length."""
    start, length = raw[:8], struct.unpack_from("<H", raw, 8)[0]
    text, data = raw[10 : 10 + length].decode("latin1"), raw[10 + length :]
    claimed = None
    for _ in range(rng.choice(SEVERAL)):
        kind = rng.randrange(10)
        if kind < 3:
            begin = text.find("'descr': '") + 10
            text = text[:begin] + rng.choice(DESCRS) + text[max(begin, text.find("'", begin)) :]
        elif kind < 5:
            shape = tuple(size(rng) for _ in range(rng.choice((0, 1, 2, 3, 3, 40))))
            text = text[: text.find("'shape': ") + 9] + str(shape) + ", }\n"
        elif kind == 5:
            text = text.replace("False", rng.choice(("True", "False ", "1", "None", "True ")))
        elif kind == 6:
            text = edited(rng, text)
        elif kind == 7:
            data = rng.choice((data[:-1], data + b"\0", data[: len(data) // 2], b"", data * 2))
        elif kind == 8:
            start = rng.choice((b"\x93NUMPY\x02\0", b"\x93NUMPY\x03\0", b"\x93NUMPY\x01\x01", b"\x92NUMPY\x01\0", b""))
        else:
            claimed = size(rng) % 65536 if rng.random() < 0.5 else rng.choice((length - 1, length + 1, 1024, 1025))
    made = text.encode("latin1", "replace")
    return start + struct.pack("<H", len(made) % 65536 if claimed is None else claimed) + made + data


# --- npz --------------------------------------------------------------------------------------------------------------

BOMB_BYTES = 2**26
LOCAL = struct.Struct("<4s5H3L2H")
CENTRAL = struct.Struct("<4s6H3L5H2L")
END = struct.Struct("<4s4H2LH")
END64 = struct.Struct("<4sQ2H2L4Q4sLQL")
LOCAL_FIELDS = ("version", "flags", "method", "time", "date", "crc", "packed", "size", "name_length", "extra_length")
CENTRAL_FIELDS = (
    *("made_by", "version", "flags", "method", "time", "date", "crc", "packed", "size", "name_length", "extra_length"),
    *("comment_length", "disk", "internal", "external", "offset"),
)
END_FIELDS = ("disk", "first_disk", "here", "count", "length", "begin", "comment_length")
END64_FIELDS = (
    "rest",
    "made_by",
    "version",
    "disk",
    "first_disk",
    "here",
    "count",
    "length",
    "begin",
    "at_disk",
    "at",
    "disks",
)


def npz(rng, parts):
    """An npz with changes in its arrays, its names, its records, or its order."""
    entries = [
        {"name": name, "data": data, "local": {}, "central": {}, "before": b""} for name, data in parts["entries"]
    ]
    end, end64, after = {}, None, b""
    for _ in range(rng.choice(SEVERAL)):
        kind = rng.randrange(16)
        entry = rng.choice(entries)
        if kind < 3:
            if entry["name"] == "rnncore.npy" or kind == 0:
                change_description(rng, entries[0])
            else:
                entry["data"] = npy_file(rng, entry["data"]) if entry["data"].startswith(b"\x93NUMPY\x01\0") else b""
        elif kind < 6:
            entry["central"][rng.choice(CENTRAL_FIELDS)] = size(rng)
        elif kind < 8:
            entry["local"][rng.choice(LOCAL_FIELDS)] = size(rng)
        elif kind == 8:
            field, both = rng.choice(("crc", "packed", "size", "flags", "method", "version")), size(rng)
            entry["central"][field] = entry["local"][field] = both
        elif kind == 9:
            end[rng.choice(END_FIELDS)] = size(rng)
        elif kind == 10:
            end64 = {rng.choice(END64_FIELDS): size(rng)} if rng.random() < 0.8 else {}
        elif kind == 11:
            entry["name"] = rng.choice(NAMES) + rng.choice(("", ".npy"))
        elif kind == 12:
            entry["packing"] = rng.choice(("deflate", "bomb"))
        elif kind == 13:
            after = rng.choice((b"\0", b"comment", bytes(22), b"PK\x05\x06" + bytes(18)))
        else:
            entries = ordered(rng, entries, entry)
    return zipped(entries, end, end64) + after


def change_description(rng, entry):
    """Change the description, an array of bytes."""
    text = entry["data"][128:].decode("utf-8", "replace")
    if text.startswith("{"):
        text = described(rng, text)
        entry["data"] = npy(np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8))


def ordered(rng, entries, entry):
    """Repeat, remove or reorder entries, let two share their bytes, or put bytes between them."""
    kind = rng.randrange(6)
    if kind == 0:
        return [*entries, {**entry, "name": rng.choice((entry["name"], "extra.npy"))}]
    if kind == 1 and len(entries) > 1:
        return [e for e in entries if e is not entry]
    if kind == 2:
        return sorted(entries, key=lambda e: rng.random())
    if kind == 3:
        return [*entries, {**entry, "shares": entry["name"], "name": rng.choice(("extra.npy", "bias_hh_l0.npy"))}]
    if kind == 4:
        entry["extra"] = rng.choice((b"\1\0\x10\0" + bytes(16), b"\1\0\xff\xff", b"up\5\0\1xxxx", bytes(30)))
        return entries
    entry["before"] = rng.choice((b"\0", b"PK\3\4", bytes(100)))
    return entries


@cache
def bomb():
    """Much of nothing in few bytes."""
    return packed(bytes(BOMB_BYTES))


def packed(data):
    """Deflate."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def zipped(entries, end, end64):
    """Put a zip together; of every record, the fields that are given override the true ones."""
    body, directory, offsets = [], [], {}
    at = 0
    for entry in entries:
        name, data, extra = entry["name"].encode("utf-8", "surrogatepass"), entry["data"], entry.get("extra", b"")
        method, held, unpacked = 0, data, len(data)
        if entry.get("packing") == "deflate":
            method, held = 8, packed(data)
        elif entry.get("packing") == "bomb":
            method, held, unpacked = 8, bomb(), BOMB_BYTES
        true = {
            **{"made_by": 0x314, "version": 45, "flags": 0, "method": method, "time": 0, "date": 33},
            **{"crc": zlib.crc32(data), "packed": len(held), "size": unpacked},
            **{"name_length": len(name), "extra_length": len(extra), "comment_length": 0, "disk": 0, "internal": 0},
            **{"external": 0o644 << 16, "offset": at + len(entry["before"])},
        }
        if "shares" in entry:
            true["offset"] = offsets.get(entry["shares"], 0)
        else:
            offsets[entry["name"]] = true["offset"]
            piece = (
                entry["before"]
                + record(LOCAL, b"PK\3\4", LOCAL_FIELDS, {**true, **entry["local"]})
                + name
                + extra
                + held
            )
            body.append(piece)
            at += len(piece)
        directory.append(record(CENTRAL, b"PK\1\2", CENTRAL_FIELDS, {**true, **entry["central"]}) + name + extra)
    listing = b"".join(directory)
    last = {"disk": 0, "first_disk": 0, "here": len(entries), "count": len(entries), "comment_length": 0}
    last |= {"length": len(listing), "begin": at}
    more = b""
    if end64 is not None:
        whole = {
            **last,
            "rest": 44,
            "made_by": 45,
            "version": 45,
            "at_disk": 0,
            "at": at + len(listing),
            "disks": 1,
            **end64,
        }
        fields = [
            whole[name] % 2**16 if name in ("made_by", "version") else whole[name] % 2**32 for name in END64_FIELDS
        ]
        for k in (0, 5, 6, 7, 8, 10):
            fields[k] = whole[END64_FIELDS[k]]
        more = END64.pack(b"PK\6\6", *fields[:9], b"PK\6\7", *fields[9:])
    return b"".join(body) + listing + more + record(END, b"PK\5\6", END_FIELDS, {**last, **end})


def record(form, signature, names, fields):
    """Pack a record; numbers too large for their field are cut."""
    return form.pack(
        signature, *(fields[name] % 2 ** (16 if c == "H" else 32) for name, c in zip(names, letters(form), strict=True))
    )


@cache
def letters(form):
    """One letter for each number of a form, after its signature."""
    found, count = "", ""
    for c in form.format[3:]:
        if c.isdigit():
            count += c
        else:
            found, count = found + c * int(count or 1), ""
    return found
