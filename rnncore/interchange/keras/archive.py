"""Keras 3's ``.keras``: a zip of a configuration in JSON, of metadata, and of weights in HDF5.

Nothing in it is executed, and Keras need not be installed: what its configuration names and this room does not know is refused,
or left out where it is no part of the network. Entries are stored, as Keras writes them, so that none holds more than the
file does.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from typing import BinaryIO

from rnncore.arguments import check_bytes, flag
from rnncore.errors import FileFormatError
from rnncore.interchange.keras.cells import portable
from rnncore.interchange.keras.config import find
from rnncore.interchange.keras.describe import describe
from rnncore.interchange.keras.hdf5 import opened
from rnncore.interchange.keras.weights import path_of, read_cell, write_weights
from rnncore.interchange.portable import Asked, Portable
from rnncore.io import zips
from rnncore.io.header import parse_json

__all__ = ["OPTIONS", "decode", "encode"]

OPTIONS = ("return_sequences",)
WHAT = "a .keras file"
CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
# A model of a thousand layers has a few MB; parsed, it takes about ten times as much.
MAX_CONFIG_BYTES = 2**24
# The version whose format is written. Keras reads that of its earlier ones, and does not read this number.
VERSION = "3.0.0"


def decode(file: BinaryIO, asked: Asked) -> Portable:
    """Read a network; ``asked.name`` is the name of one of its layers where the model holds several networks.

    Raises
    ------
    FileFormatError, InterchangeError, ArgumentValueError, BackendUnavailableError
    """
    check_bytes("the file", os.fstat(file.fileno()).st_size, 1)
    with zips.opened(file, WHAT) as (archive, entries):
        for name in (CONFIG, WEIGHTS):
            if name not in entries:
                raise FileFormatError(f"it has no {name}, as a .keras file of Keras 3 does")
        if entries[CONFIG].file_size > MAX_CONFIG_BYTES:
            raise FileFormatError(f"its {CONFIG} has more than {MAX_CONFIG_BYTES} bytes")
        text, weights = archive.read(entries[CONFIG]), io.BytesIO(archive.read(entries[WEIGHTS]))
    try:
        described = parse_json(text, CONFIG)
        found = find(described)
        with opened(weights, WHAT) as tree:
            return portable(found, asked, lambda cell: read_cell(tree, path_of(cell.where)), notes=_compiled(described))
    except RecursionError as error:
        raise FileFormatError(f"{CONFIG} is nested too deeply") from error


def encode(file: BinaryIO, network: Portable, *, return_sequences: bool = True) -> None:
    """Write a Sequential model of SimpleRNN layers, bidirectional ones in Bidirectional.

    Parameters
    ----------
    file : binary file
    network : Portable
    return_sequences : bool
        Whether the model's output has every step or only the last.

    Raises
    ------
    InterchangeError
        If Keras has no such activation.
    BackendUnavailableError
        If h5py is not installed.
    """
    described = describe(network, return_sequences=flag("return_sequences", return_sequences))
    weights = io.BytesIO()
    write_weights(weights, network, described, WHAT)
    texts = {METADATA: {"keras_version": VERSION}, CONFIG: described}
    contents = {name: json.dumps(text).encode() for name, text in texts.items()} | {WEIGHTS: weights.getvalue()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in contents.items():
            with zips.create(archive, name) as entry:
                entry.write(content)


def _compiled(described: dict[str, object]) -> list[str]:
    compiled = described.get("compile_config")
    return ["how it was compiled, and the state of its optimizer"] if compiled else []
