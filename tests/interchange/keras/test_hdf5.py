"""Arrays in HDF5: only numbers that the file itself holds as they are, whatever it claims."""

import io
import struct
import sys

import numpy as np
import pytest

from rnncore.errors import BackendUnavailableError, FileFormatError
from rnncore.interchange.keras import hdf5

h5py = pytest.importorskip("h5py", reason="it reads the file")
NUMBERS = np.arange(6, dtype="f4").reshape(2, 3)


def made(change):
    out = io.BytesIO()
    with h5py.File(out, "w") as file:
        change(file)
    return io.BytesIO(out.getvalue())


def read(change, path="a/x", shape=(2, 3)):
    with hdf5.opened(made(change), "this test") as tree:
        return tree.array(path, shape)


@pytest.mark.parametrize("options", [{}, {"chunks": (2, 2)}], ids=str)
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2"])
def test_plain_numbers_are_read_in_the_hosts_order(dtype, options):
    array, name = read(lambda file: file.create_dataset("a/x", data=NUMBERS.astype(dtype), **options))
    np.testing.assert_array_equal(array, NUMBERS)
    assert array.dtype.isnative and name == array.dtype.name


def test_compact_numbers_are_read():
    def compact(file):
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_layout(h5py.h5d.COMPACT)
        group = file.create_group("a")
        data = h5py.h5d.create(group.id, b"x", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((2, 3)), plan)
        data.write(h5py.h5s.ALL, h5py.h5s.ALL, NUMBERS)

    np.testing.assert_array_equal(read(compact)[0], NUMBERS)


def compressed(file):
    file.create_dataset("a/x", data=NUMBERS, compression="gzip")


def external(file):
    file.create_group("a").create_dataset("x", (2, 3), "f4", external=[("other.bin", 0, 24)])


def virtual(file):
    layout = h5py.VirtualLayout((2, 3), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (2, 3))
    file.create_group("a").create_virtual_dataset("x", layout)


HOSTILE = {
    "none": (lambda file: None, "expected a dataset, which is not in the file"),
    "a group": (lambda file: file.create_group("a/x"), "expected a dataset"),
    "a soft link": (lambda file: file.__setitem__("a/x", h5py.SoftLink("/y")), "expected a dataset"),
    "an external link": (lambda file: file.__setitem__("a", h5py.ExternalLink("other.h5", "/")), "expected a dataset"),
    "compressed": (compressed, "got compressed, external or virtual"),
    "external": (external, "got compressed, external or virtual"),
    "virtual": (virtual, "got compressed, external or virtual"),
    "texts": (
        lambda file: file.__setitem__("a/x", np.array([["a"] * 3] * 2, dtype=object)),
        "expected floating numbers, got",
    ),
    "integers": (lambda file: file.__setitem__("a/x", NUMBERS.astype("i4")), "expected floating numbers, got int32"),
    "opaque": (lambda file: file.__setitem__("a/x", NUMBERS.astype("f2").view("V2")), "expected floating numbers"),
    "complex": (lambda file: file.__setitem__("a/x", NUMBERS.astype("c8")), "expected floating numbers"),
    "no numbers": (lambda file: file.create_dataset("a/x", (2, 3), "f4"), "claims more numbers than the file holds"),
    "without a shape": (lambda file: file.create_dataset("a/x", data=h5py.Empty("f4")), "expected a dataset"),
    "another shape": (lambda file: file.__setitem__("a/x", NUMBERS.T), r"expected shape \(2, 3\), got \(3, 2\)"),
    "one axis": (lambda file: file.__setitem__("a/x", NUMBERS[0]), r"expected shape \(2, 3\), got \(3,\)"),
}


@pytest.mark.parametrize(("change", "words"), HOSTILE.values(), ids=HOSTILE)
def test_anything_else_is_refused(change, words):
    with pytest.raises(FileFormatError, match=words):
        read(change)


@pytest.mark.parametrize("options", [{}, {"chunks": (1000, 1000)}], ids=str)
def test_a_huge_shape_is_refused_before_memory_is_taken(options):
    with pytest.raises(FileFormatError, match="claims more numbers than the file holds"):
        read(lambda file: file.create_dataset("a/x", (10**7, 10**7), "f8", **options), shape=(None, None))


def test_the_same_numbers_are_not_counted_twice():
    """Many names of one dataset would otherwise take many times the memory of the file."""

    def change(file):
        file["a/x"] = np.ones((100, 100), "f4")
        for k in range(9):
            file[f"a/{k}"] = file["a/x"]

    with hdf5.opened(made(change), "this test") as tree, pytest.raises(FileFormatError, match="claims more"):
        [tree.array(f"a/{k}", (100, 100)) for k in range(9)]


def test_groups_in_a_circle_end():
    def change(file):
        group = file.create_group("a")
        for k in range(200):
            group[f"{k}"] = group

    with hdf5.opened(made(change), "this test") as tree, pytest.raises(FileFormatError, match="more than 20000 groups"):
        [tree.names("a") for _ in range(200)]


def test_names_and_texts():
    def change(file):
        file["a/x"] = NUMBERS
        file["a/y"] = h5py.SoftLink("/a/x")
        file["a"].attrs["name"] = "low"
        file["a"].attrs["numbers"] = NUMBERS
        file["a"].attrs["texts"] = ["b", "c"]
        file["a"].attrs["number"] = 3

    with hdf5.opened(made(change), "this test") as tree:
        assert tree.names("a") == ["x"] and tree.names("a/x") == tree.names("none") == []
        assert tree.text("a", "name") == "low"
        assert all(tree.text("a", key) is None for key in ("none", "numbers", "texts", "number"))
        assert tree.text("none", "name") is None


def test_a_missing_library_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(BackendUnavailableError, match=r'this test needs h5py.*: pip install "rnncore\[keras\]"'):
        hdf5.write(io.BytesIO(), "this test", {}, {}, bfloat16=False)
    with (
        pytest.raises(BackendUnavailableError, match="this test needs h5py"),
        hdf5.opened(io.BytesIO(), "this test"),
    ):
        pass


def test_bfloat16_is_rounded_to_even_and_what_is_not_finite_is_kept():
    halfway = struct.unpack("<2f", struct.pack("<2I", 0x3F808000, 0x3F818000))
    given = np.array([1.0, *halfway, np.inf, -np.inf, np.nan, -0.0, 3.0e38], "f4")
    out = io.BytesIO()
    hdf5.write(out, "this test", {"a/x": given}, {}, bfloat16=True)
    with hdf5.opened(io.BytesIO(out.getvalue()), "this test") as tree:
        found, name = tree.array("a/x", (8,))
    assert name == "bfloat16"
    np.testing.assert_array_equal(found.view("u4")[:3], [0x3F800000, 0x3F800000, 0x3F820000])
    assert np.isnan(found[5]) and (found[[3, 4]] == [np.inf, -np.inf]).all() and np.signbit(found[6])
    assert abs(found[7] / given[7] - 1) <= 2.0**-8  # half of bfloat16's eps
