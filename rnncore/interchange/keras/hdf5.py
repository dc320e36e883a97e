"""Arrays of numbers in HDF5, read without trusting the file.

HDF5 can name other files, in links, external storage and virtual datasets; hold filters that decompress to any size, shapes
without numbers and Python's objects. So only hard links are followed, and only datasets are read that hold their numbers as
they are and within the file. The file is read to memory first: an error of the HDF5 library then is the file's fault.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np

from rnncore.arguments import brief, check_bytes, elements
from rnncore.errors import FileFormatError, RnncoreError
from rnncore.interchange.libraries import needed
from rnncore.typing import Host

__all__ = ["MAX_GROUPS", "Tree", "opened", "write"]

# Groups and datasets that are visited, in a file whose hard links may lead in circles.
MAX_GROUPS = 20_000
# What h5py raises for damaged files; RuntimeError is also NotImplementedError and RecursionError.
DAMAGE = (OSError, KeyError, RuntimeError, ValueError, TypeError, ArithmeticError, AttributeError, SystemError)
BFLOAT16 = "bfloat16"


class Tree:
    """The groups of an open file, by path."""

    def __init__(self, h5py: Any, file: Any, size: int) -> None:
        self._h5py = h5py
        self._file = file
        self._left = size
        self._visits = MAX_GROUPS

    def names(self, path: str) -> list[str]:
        """Return the names in a group that hard links lead to; [] where there is no group of this path."""
        group = self._at(path)
        if not self._is("Group", group):
            return []
        if len(group) > self._visits:
            raise FileFormatError(f"it has more than {MAX_GROUPS} groups and datasets")
        self._visits -= len(group)
        return [name for name in group if isinstance(name, str) and self._is_hard(group, name)]

    def text(self, path: str, attribute: str) -> str | None:
        """Return a text among the attributes of a group; None where there is none."""
        node = self._at(path)
        if node is None or attribute not in node.attrs:
            return None
        stored = node.attrs.get_id(attribute)
        if stored.shape != () or stored.dtype.kind not in "OS":
            return None
        found = node.attrs[attribute]
        return found if isinstance(found, str) else None

    def shape(self, path: str) -> tuple[int, ...] | None:
        """Return the shape of a dataset; None where there is no dataset of this path."""
        node = self._at(path)
        return None if not self._is("Dataset", node) or node.shape is None else tuple(node.shape)

    def array(self, path: str, shape: tuple[int | None, ...]) -> tuple[Host, str]:
        """Read floating numbers of this shape, in which None is any size, and the name of their dtype.

        bfloat16 is read as float32.

        Raises
        ------
        FileFormatError
            If there are none, or not stored as they are.
        ArgumentValueError
            If they are more than memory.
        """
        found = self.shape(path)
        if found is None:
            raise FileFormatError(f"{path}: expected a dataset, which is not in the file")
        if len(found) != len(shape) or any(w not in (None, g) for w, g in zip(shape, found, strict=True)):
            raise FileFormatError(f"{path}: expected shape {_shape(shape)}, got {brief(found)}")
        node = self._at(path)
        dtype, plan = node.dtype, node.id.get_create_plist()
        bfloat16 = dtype == np.dtype("V2") and self.text(path, "dtype") == BFLOAT16
        if not bfloat16 and (dtype.kind != "f" or dtype.itemsize not in (2, 4, 8)):
            raise FileFormatError(f"{path}: expected floating numbers, got {brief(dtype)}")
        if plan.get_nfilters() or plan.get_external_count() or node.is_virtual:
            raise FileFormatError(f"{path}: expected numbers as they are, got compressed, external or virtual ones")
        count = elements(found)
        if count * dtype.itemsize > min(self._left, node.id.get_storage_size()):
            raise FileFormatError(
                f"{path}: it claims more numbers than the file holds, {dtype} of shape {brief(found)}"
            )
        self._left -= count * dtype.itemsize
        check_bytes(path, count, max(dtype.itemsize, 4))
        numbers: Host = node[()]
        if bfloat16:
            return (numbers.view("<u2").astype("u4") << 16).view("f4"), BFLOAT16
        return numbers.astype(dtype.newbyteorder("="), copy=False), dtype.newbyteorder("=").name

    def _at(self, path: str) -> Any:
        """The group or dataset of a path that hard links lead to, or None."""
        node = self._file
        for name in path.split("/") if path else ():
            if not self._is("Group", node) or not self._is_hard(node, name):
                return None
            node = node[name]
        return node

    def _is(self, kind: str, node: Any) -> bool:
        return isinstance(node, getattr(self._h5py, kind))

    def _is_hard(self, group: Any, name: str) -> bool:
        """Whether a name is a hard link, found without following it: others may lead to another file."""
        links, key = group.id.links, name.encode("utf-8", "surrogateescape")
        return bool(links.exists(key)) and links.get_info(key).type == self._h5py.h5l.TYPE_HARD


@contextmanager
def opened(file: BinaryIO, what: str) -> Iterator[Tree]:
    """Open the HDF5 file in an open file, to its end, as a context manager.

    Raises
    ------
    FileFormatError
        Also where the body finds it damaged.
    BackendUnavailableError
        If h5py is not installed.
    """
    h5py = needed("h5py", "keras", what)
    check_bytes("the file", file.seek(0, os.SEEK_END), 1)
    file.seek(0)
    content = file.read()
    try:
        with h5py.File(io.BytesIO(content), "r") as opened_file:
            yield Tree(h5py, opened_file, len(content))
    except RnncoreError:
        raise
    except DAMAGE as error:
        raise FileFormatError(f"it is damaged or not an HDF5 file: {brief(error) or type(error).__name__}") from error


def write(file: BinaryIO, what: str, arrays: Mapping[str, Host], texts: Mapping[str, str], *, bfloat16: bool) -> None:
    """Write arrays by path and, by path of a group, the text of its attribute "name".

    Raises
    ------
    BackendUnavailableError
    """
    h5py = needed("h5py", "keras", what)
    made = io.BytesIO()
    with h5py.File(made, "w") as opened_file:
        for path, text in texts.items():
            opened_file.require_group(path).attrs["name"] = text
        for path, array in arrays.items():
            if bfloat16:
                opened_file.create_dataset(path, data=_bfloat16(array)).attrs["dtype"] = BFLOAT16
            else:
                opened_file.create_dataset(path, data=array)
    file.write(made.getbuffer())


def _bfloat16(array: Host) -> Host:
    """The upper halves of float32 numbers, rounded to the nearest, to even in the middle."""
    bits = array.astype("<f4").view("<u4")
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), 0x7FC0, rounded).astype("<u2").view("V2")


def _shape(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("*" if n is None else str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"
