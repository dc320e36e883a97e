"""Other people's networks in and out: modules of other libraries, and file formats that are not rnncore's own.

A framework is a module here with ``owns``, ``read`` and ``make``; a format is one with ``decode`` and ``encode``. Both work on
:class:`~rnncore.interchange.portable.Portable`. To add one, write the module and list it in a table below. A library is
imported only when one of its modules or files is asked for. Where a backend's plugin has ``from_module`` and ``to_module`` of
its own, those are asked first, and the library has no module here.

    owns(module) -> bool                           without importing the library
    read(module, asked) -> Portable                `asked` an Asked
    make(network, **options) -> module             options by name, which the module documents

    decode(file, asked) -> Portable                `file` is open for reading and has a name
    encode(file, network, **options) -> None       OPTIONS are the names of these
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["FORMATS", "FRAMEWORKS", "format_of", "framework", "owner"]

# Module of this package by the name of the framework. The last one owns every mapping, of which some are another's.
FRAMEWORKS: dict[str, str] = {"flax": "flax", "keras": "keras.module", "arrays": "arrays"}
# Module of this package by the end of a file's name; the longest that fits counts.
FORMATS: dict[str, str] = {
    ".keras": "keras.archive",
    ".msgpack": "flax.files",
    ".onnx": "onnx",
    ".weights.h5": "keras.weights",
    ".pt": "torch_files",
    ".pth": "torch_files",
}


def framework(name: str) -> Any:
    """Return the module for a framework in :data:`FRAMEWORKS`."""
    return import_module(f"{__name__}.{FRAMEWORKS[name]}")


def owner(module: object) -> Any:
    """Return the module for the framework whose recurrent module this is, or None; imports no library."""
    return next((own for own in map(framework, FRAMEWORKS) if own.owns(module)), None)


def format_of(path: str) -> Any:
    """Return the module for a file's format, or None where the end of its name is in no table."""
    fitting = max((end for end in FORMATS if path.endswith(end)), key=len, default=None)
    return None if fitting is None else import_module(f"{__name__}.{FORMATS[fitting]}")
