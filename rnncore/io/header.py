"""The description that a weights file holds beside its arrays, as JSON.

    {"format": "rnncore", "version": 1, "dtype": "float32", "spec": {...}}

``spec`` is ``RNNSpec.to_config()``. It determines the names and shapes of all parameters, so a reader compares the file's
claims with it before it allocates memory. The caller adds the path to messages.

Files of every earlier version stay readable. VERSION is raised whenever a key is added, so that an older rnncore says that
the file is newer, and never reads it as another network.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnncore.arguments import brief, check_mapping, describe, digits, elements
from rnncore.errors import ArgumentValueError, FileFormatError, RnncoreError
from rnncore.spec import RNNSpec
from rnncore.typing import Host

KEY = "rnncore"
FORMAT = "rnncore"
VERSION = 1
KEYS = ("format", "version", "dtype", "spec")

# A parameter takes at most 120 bytes of either format's table of contents, and the description at most twice its length
# inside a JSON string. 5,000 parameters are 625 bidirectional layers. Parsing a hostile file of this size takes 30 MiB and
# a quarter of a second.
MAX_PARAMETERS = 5_000
MAX_DIRECTORY_BYTES = 2**20
MAX_TEXT_BYTES = 2**17

# Dtypes on the host and in the file. NumPy has no bfloat16; float32 holds every bfloat16 number exactly.
HOST_DTYPES = {"float16": "<f2", "float32": "<f4", "float64": "<f8", "bfloat16": "<f4"}


class BareArraysError(FileFormatError):
    """A file that has arrays and no description of a network; :func:`rnncore.io.open_arrays` reads them."""

    def __init__(self, path: str = "") -> None:
        super().__init__(
            f"{path}{': ' if path else ''}it has no rnncore description of the network, only arrays; say what they leave "
            "open, with rnncore.load(path, nonlinearity=..., batch_first=...)"
        )


@dataclass(frozen=True)
class Description:
    """A checked description: ``shapes`` has every parameter's name, in torch's order."""

    config: dict[str, Any]
    dtype: str
    shapes: dict[str, tuple[int, ...]]

    @property
    def host_dtype(self) -> np.dtype[Any]:
        """Dtype of the arrays in the file, little-endian."""
        return np.dtype(HOST_DTYPES[self.dtype])

    def nbytes(self, name: str) -> int:
        """Size of a parameter in the file."""
        return elements(self.shapes[name]) * self.host_dtype.itemsize


def write_description(config: Any, dtype: Any) -> tuple[str, Description]:
    """Return the text to write, and the description parsed from it, so that what is written can be read.

    Raises
    ------
    ArgumentTypeError, ArgumentValueError
    """
    check_mapping("config", config, "options, as from RNNSpec.to_config")
    content = {"format": FORMAT, "version": VERSION, "dtype": dtype, "spec": dict(config)}
    try:
        text = json.dumps(content)
        return text, parse(text.encode())
    except (TypeError, ValueError, RecursionError) as error:  # FileFormatError is a ValueError
        raise ArgumentValueError(f"config, dtype: expected those of a network; {brief(error)}") from error


def parse(text: bytes) -> Description:
    """Parse and check a description from a file.

    Raises
    ------
    FileFormatError
    """
    check_text_size(len(text))
    content = parse_json(text, "its description")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FileFormatError(f'its description is not one of rnncore: expected "format": "{FORMAT}"')
    version = content.get("version")
    if type(version) is not int or version < 1:
        raise FileFormatError(f"its description has no version: expected an int >= 1, got {brief(repr(version))}")
    if version > VERSION:
        raise FileFormatError(
            f"its format has version {digits(version)}, and this rnncore reads versions up to {VERSION}: install a newer "
            "rnncore, as with pip install --upgrade rnncore"
        )
    faults = [f"missing {key!r}" for key in KEYS if key not in content]
    faults += [f"unexpected {key!r}" for key in content if key not in KEYS]
    if faults:
        raise FileFormatError(f"its description has unexpected or missing keys: {brief(', '.join(faults))}")
    dtype, config = content["dtype"], content["spec"]
    if not isinstance(dtype, str) or dtype not in HOST_DTYPES:
        raise FileFormatError(f"dtype: expected one of {', '.join(HOST_DTYPES)}, got {brief(repr(dtype))}")
    return Description(config, dtype, _shapes(config))


def check_text_size(count: int) -> None:
    """Refuse a description of more bytes than are read.

    Raises
    ------
    FileFormatError
    """
    if count > MAX_TEXT_BYTES:
        raise FileFormatError(f"its description has {count} bytes, at most {MAX_TEXT_BYTES} are read")


def check_names(description: Description, names: Iterable[str]) -> None:
    """Require exactly the parameters that the description implies.

    Raises
    ------
    FileFormatError
    """
    found = set(names)
    faults = [f"missing {name}" for name in description.shapes if name not in found]
    faults += [f"unexpected {name!r}" for name in sorted(found - set(description.shapes))]
    if faults:
        raise FileFormatError(f"its parameters do not fit its description: {brief('; '.join(faults))}")


def storable(description: Description, params: Any) -> dict[str, Host]:
    """Return the arrays in torch's order, contiguous and little-endian.

    Raises
    ------
    ArgumentTypeError, ArgumentValueError
    """
    check_mapping("params", params)
    faults = [f"unexpected {name!r}" for name in params if name not in description.shapes]
    for name, shape in description.shapes.items():
        value = params.get(name)
        if not isinstance(value, np.ndarray):
            faults.append(f"{name}: expected a NumPy array, got {describe(value)}")
        elif value.shape != shape or value.dtype.newbyteorder("<") != description.host_dtype:
            want = description.host_dtype.name
            faults.append(f"{name}: expected {want} of shape {shape}, got {value.dtype} of shape {value.shape}")
    if faults:
        raise ArgumentValueError(f"params: they do not fit config and dtype: {brief('; '.join(faults))}")
    return {name: np.ascontiguousarray(params[name], description.host_dtype) for name in description.shapes}


def parse_json(text: bytes, what: str) -> Any:
    """Parse JSON, refusing what readers disagree on: duplicate keys, NaN, other encodings than UTF-8.

    Raises
    ------
    FileFormatError
    """
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError as error:
        raise FileFormatError(f"{what} is nested too deeply") from error
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, more digits than Python converts
        raise FileFormatError(f"{what} is not valid JSON: {brief(error)}") from error


def _shapes(config: Any) -> dict[str, tuple[int, ...]]:
    try:
        spec = RNNSpec.from_config(_without_custom(config))
    except (RnncoreError, ValueError, OverflowError) as error:
        # ValueError and OverflowError: Python refuses to print, or convert to float, an integer of thousands of digits.
        raise FileFormatError(f"its description of the network is not valid: {brief(error)}") from error
    count = spec.num_layers * spec.num_directions * (4 if spec.bias else 2)
    if count > MAX_PARAMETERS:  # before making their names
        raise FileFormatError(f"its network has {count} parameters, at most {MAX_PARAMETERS} fit in a file")
    return spec.parameter_shapes()


def _without_custom(config: Any) -> Any:
    """Replace a custom nonlinearity, which no file holds, by tanh; shapes do not depend on it."""
    if not isinstance(config, dict):
        raise FileFormatError(f"spec: expected a JSON object, got {brief(repr(config))}")
    custom, function = config.get("custom_nonlinearity"), config.get("nonlinearity")
    if not isinstance(custom, bool):
        raise FileFormatError(f"custom_nonlinearity: expected true or false, got {brief(repr(custom))}")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise FileFormatError(f"nonlinearity: expected a JSON object with a name, got {brief(repr(function))}")
    if not custom:
        return config
    return {**config, "custom_nonlinearity": False, "nonlinearity": {**function, "name": "tanh"}}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key appears twice in an object")
    return made


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
