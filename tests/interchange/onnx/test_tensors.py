"""Tensors of an ONNX file: every dtype, the numbers in it or beside it, and claims that do not fit."""

import os

import numpy as np
import pytest

import rnncore
from rnncore.errors import FileFormatError, FileMissingError, InterchangeError
from rnncore.interchange.onnx.tensors import BFLOAT16, array, widened

pytest.importorskip("onnx", reason="reads ONNX files")
from tests.interchange.onnx.graphs import constants, model, onnx, rnn, save, tensor, weights

TensorProto = onnx.TensorProto


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i4", "i8"])
@pytest.mark.parametrize("raw", [True, False])
def test_numbers_are_read_from_either_field(dtype, raw):
    values = (np.arange(6) - 2.5).astype(dtype).reshape(2, 3)
    kind = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
    made = onnx.helper.make_tensor("t", kind, (2, 3), values.tobytes() if raw else values.reshape(-1).tolist(), raw=raw)
    found = array(made, "")
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("raw", [True, False])
def test_bfloat16_is_read_by_its_bits_and_widened_exactly(raw):
    made = TensorProto(name="t", data_type=TensorProto.BFLOAT16, dims=[3])
    bits = [0x3F80, 0xC000, 0x7F80]  # 1, -2, infinity
    if raw:
        made.raw_data = np.asarray(bits, "<u2").tobytes()
    else:
        made.int32_data.extend(bits)
    found = array(made, "")
    assert found.dtype == BFLOAT16
    np.testing.assert_array_equal(widened(found), np.asarray([1, -2, np.inf], "f4"))


def test_a_scalar_and_no_numbers_are_read():
    assert array(tensor(np.float32(2), "t"), "").shape == ()
    assert array(tensor(np.zeros((0, 3), "f4"), "t"), "").shape == (0, 3)


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        (
            {"data_type": TensorProto.FLOAT, "dims": [-1], "raw_data": b""},
            FileFormatError,
            r"8 sizes >= 0, got \(-1,\)",
        ),
        ({"data_type": TensorProto.FLOAT, "dims": [1] * 9, "raw_data": b"1234"}, FileFormatError, "at most 8 sizes"),
        (
            {"data_type": TensorProto.FLOAT, "dims": [2**40, 2**40], "raw_data": b"1234"},
            FileFormatError,
            r"bytes for shape \(1099511627776, 1099511627776\), got 4",
        ),
        (
            {"data_type": TensorProto.FLOAT, "dims": [2**62] * 2},
            FileFormatError,
            r"expected about 2\*\*\d+ numbers|expected \d+ num",
        ),
        ({"data_type": TensorProto.FLOAT, "dims": [3], "float_data": [1, 2]}, FileFormatError, "expected 3 numbers"),
        ({"data_type": TensorProto.FLOAT16, "dims": [1], "int32_data": [-1]}, FileFormatError, "numbers of 16 bits"),
        ({"data_type": TensorProto.FLOAT16, "dims": [1], "int32_data": [2**16]}, FileFormatError, "numbers of 16 bits"),
        ({"data_type": TensorProto.STRING, "dims": [1]}, InterchangeError, "got data type 8 of ONNX"),
        ({"data_type": 77, "dims": [1]}, InterchangeError, "got data type 77 of ONNX"),
    ],
)
def test_claims_that_do_not_fit_are_refused(fields, error, words):
    with pytest.raises(error, match=words):
        array(TensorProto(name="t", **fields), "")


# --- beside the file --------------------------------------------------------------------------------------------------


def external(folder, **entries):
    """A network whose R is in another file, as the entries say."""
    made = model([rnn(outputs=["", "y"])], constants())
    r = next(t for t in made.graph.initializer if t.name == "R")
    (folder / "r.bin").write_bytes(b"1234" + r.raw_data)
    r.ClearField("raw_data")
    r.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "r.bin", "offset": "4", "length": "100", **entries}.items():
        if value is not None:
            r.external_data.add(key=key, value=value)
    return save(made, folder)


@pytest.mark.parametrize("entries", [{}, {"length": None}, {"checksum": "abc"}])
def test_numbers_beside_the_file_are_read(tmp_path, entries, monkeypatch):
    path = external(tmp_path, **entries)
    assert np.array_equal(rnncore.load(path).params["weight_hh_l0"], weights()[1][0])
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(rnncore.load("x.onnx").params["weight_hh_l0"], weights()[1][0])


def test_what_onnx_itself_puts_beside_the_file_is_read(tmp_path):
    path = tmp_path / "x.onnx"
    given = rnncore.RNN(3, 40, 2, dtype="float32", rng=0)
    given.save(path)
    onnx.save_model(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").exists()
    found = rnncore.load(path)
    assert all(np.array_equal(found.params[n], a) for n, a in given.params.items())


@pytest.mark.parametrize(
    "location",
    [
        "",
        "/etc/passwd",
        "../r.bin",
        "a/../r.bin",
        "./r.bin",
        "..\\r.bin",
        "C:\\r.bin",
        "C:r.bin",
        "a//r.bin",
        "r\0.bin",
    ],
)
def test_no_file_elsewhere_is_read(tmp_path, location):
    (tmp_path / "a").mkdir()
    (tmp_path / "deep").mkdir()
    (tmp_path / "r.bin").write_bytes(bytes(200))
    path = external(tmp_path / "deep", location=location)
    with pytest.raises(
        FileFormatError, match=r"x\.onnx: tensor 'R': expected external data in a file in the model's folder"
    ):
        rnncore.load(path)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    folder = tmp_path / "deep"
    folder.mkdir()
    path = external(folder)
    (folder / "r.bin").rename(tmp_path / "r.bin")
    try:
        os.symlink(tmp_path / "r.bin", folder / "r.bin")
    except OSError:
        pytest.skip("the system allows no symbolic links")
    with pytest.raises(FileFormatError, match="expected external data in a file in the model's folder"):
        rnncore.load(path)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"offset": "5"}, "expected 100 bytes at 5 of 'r.bin', which has 104"),
        ({"offset": "9" * 19}, "expected 100 bytes at 9999999999999999999 of 'r.bin'"),
        ({"offset": "9" * 20}, "expected the place of external data as a number of bytes"),
        ({"offset": "-4"}, "expected the place of external data as a number of bytes, got '-4'"),
        ({"offset": "four"}, "expected the place of external data as a number of bytes, got 'four'"),
        ({"length": "99"}, "expected 100 bytes, got external data of 99"),
        ({"length": "1" * 18}, "expected 100 bytes, got external data of 111111111111111111"),
    ],
)
def test_places_that_do_not_fit_are_refused(tmp_path, entries, words):
    with pytest.raises(FileFormatError, match=words):
        rnncore.load(external(tmp_path, **entries))


def test_a_missing_file_is_named(tmp_path):
    path = external(tmp_path)
    (tmp_path / "r.bin").unlink()
    with pytest.raises(FileMissingError) as caught:
        rnncore.load(path)
    assert caught.value.filename == str(tmp_path / "r.bin")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
def test_a_pipe_beside_the_file_is_not_read(tmp_path):
    path = external(tmp_path)
    (tmp_path / "r.bin").unlink()
    os.mkfifo(tmp_path / "r.bin")
    with pytest.raises(FileFormatError, match="expected a regular file"):
        rnncore.load(path)
