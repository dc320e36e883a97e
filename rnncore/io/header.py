"""The description that a weights file carries beside its arrays: JSON text, and what it implies about every array.

    {"format": "rnncore", "version": 1, "dtype": "float32", "spec": {...}}

``spec`` is ``RNNSpec.to_config()``. It fixes the names and shapes of all parameters, so a reader compares what a file
claims with what it must hold before it takes any memory for it. In the messages here the path is left to the caller.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnncore.errors import ArgumentTypeError, ArgumentValueError, FileFormatError, RnncoreError
from rnncore.spec import RNNSpec
from rnncore.typing import Host

__all__ = ["KEY", "MAX_DIRECTORY_BYTES", "MAX_PARAMETERS", "MAX_TEXT_BYTES", "Description", "Host"]


KEY = "rnncore"
FORMAT = "rnncore"
VERSION = 1

# A parameter takes at most 120 bytes of either format's table of contents, and the description, inside a JSON string, at
# most twice its length: so many fit. 5,000 are 625 bidirectional layers. Parsing that much hostile JSON or zip directory
# takes 30 MiB and a quarter of a second.
MAX_PARAMETERS = 5_000
MAX_DIRECTORY_BYTES = 2**20
MAX_TEXT_BYTES = 2**17

# What the host holds, and the file: NumPy has no bfloat16, and float32 holds every bfloat16 number exactly.
HOST_DTYPES = {"float16": "<f2", "float32": "<f4", "float64": "<f8", "bfloat16": "<f4"}


@dataclass(frozen=True)
class Description:
    """A checked description: ``shapes`` has every parameter's name, in torch's order."""

    config: dict[str, Any]
    dtype: str
    shapes: dict[str, tuple[int, ...]]

    @property
    def host_dtype(self) -> np.dtype[Any]:
        """Of the arrays in the file, little-endian."""
        return np.dtype(HOST_DTYPES[self.dtype])

    def nbytes(self, name: str) -> int:
        """Size of a parameter in the file."""
        return math.prod(self.shapes[name]) * self.host_dtype.itemsize


def describe(config: Any, dtype: Any) -> tuple[str, Description]:
    """The text to write, read back once: nothing is written that could not be read.

    Raises
    ------
    ArgumentTypeError, ArgumentValueError
    """
    if not isinstance(dtype, str) or dtype not in HOST_DTYPES:
        raise ArgumentValueError(f"dtype: expected one of {', '.join(HOST_DTYPES)}, got {dtype!r}")
    if not isinstance(config, Mapping):
        raise ArgumentTypeError(f"config: expected a mapping, as from RNNSpec.to_config, got {type(config).__name__}")
    content = {"format": FORMAT, "version": VERSION, "dtype": dtype, "spec": dict(config)}
    try:
        text = json.dumps(content)
        return text, parse(text.encode())
    except (TypeError, ValueError, RecursionError) as error:  # FileFormatError is a ValueError
        raise ArgumentValueError(f"config: expected one as from RNNSpec.to_config; {brief(error)}") from error


def parse(text: bytes) -> Description:
    """Check a description from a file.

    Raises
    ------
    FileFormatError
    """
    if len(text) > MAX_TEXT_BYTES:
        raise FileFormatError(f"its description has {len(text)} bytes, at most {MAX_TEXT_BYTES} are read")
    content = parse_json(text, "its description")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FileFormatError(f'its description is not one of rnncore: expected "format": "{FORMAT}"')
    version = content.get("version")
    if type(version) is not int or version < 1:
        raise FileFormatError(f"its description has no version: expected an int >= 1, got {brief(repr(version))}")
    if version > VERSION:
        raise FileFormatError(
            f"it has format version {brief(version)}, and this rnncore reads up to {VERSION}: upgrade"
        )
    if set(content) != {"format", "version", "dtype", "spec"}:
        raise FileFormatError(f"its description has unexpected or missing keys: {brief(sorted(content))}")
    dtype, config = content["dtype"], content["spec"]
    if not isinstance(dtype, str) or dtype not in HOST_DTYPES:
        raise FileFormatError(f"dtype: expected one of {', '.join(HOST_DTYPES)}, got {brief(repr(dtype))}")
    return Description(config, dtype, _shapes(config))


def check_names(description: Description, names: Iterable[str]) -> None:
    """Exactly the parameters that the description implies.

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
    """The arrays in torch's order, contiguous and little-endian.

    Raises
    ------
    ArgumentTypeError, ArgumentValueError
    """
    if not isinstance(params, Mapping):
        raise ArgumentTypeError(f"params: expected a mapping of names to arrays, got {type(params).__name__}")
    faults = [f"unexpected {name!r}" for name in params if name not in description.shapes]
    for name, shape in description.shapes.items():
        value = params.get(name)
        if not isinstance(value, np.ndarray):
            faults.append(f"{name}: expected a NumPy array, got {type(value).__name__}")
        elif value.shape != shape or value.dtype.newbyteorder("<") != description.host_dtype:
            want = description.host_dtype.name
            faults.append(f"{name}: expected {want} of shape {shape}, got {value.dtype} of shape {value.shape}")
    if faults:
        raise ArgumentValueError(f"params: they do not fit config and dtype: {brief('; '.join(faults))}")
    return {name: np.ascontiguousarray(params[name], description.host_dtype) for name in description.shapes}


def bare(load: str) -> FileFormatError:
    """The error for a file of parameters alone, with the expression that gives them as a mapping."""
    return FileFormatError(
        "it has no rnncore description of the network, only arrays; if they are the state_dict of an RNN, make the "
        f"network first, rnn = rnncore.RNN(...), and load them with rnn.load_state_dict({load})"
    )


def parse_json(text: bytes, what: str) -> Any:
    """JSON without what two readers could understand in two ways: duplicate keys, NaN, anything but UTF-8.

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


def brief(message: object) -> str:
    """A message that a hostile file cannot blow up or put control characters in: at most 300 characters of one line."""
    text = str(message)
    shown = "".join(c if c.isprintable() else " " for c in text[:300])
    return shown if len(text) <= 300 else f"{shown}..."


def _shapes(config: Any) -> dict[str, tuple[int, ...]]:
    try:
        spec = RNNSpec.from_config(_without_custom(config))
    except (RnncoreError, ValueError, OverflowError) as error:
        # The last two: Python refuses to print, or to make a float of, an integer of some thousand digits.
        raise FileFormatError(f"its description of the network is not valid: {brief(error)}") from error
    count = spec.num_layers * spec.num_directions * (4 if spec.bias else 2)
    if count > MAX_PARAMETERS:  # before their names are made
        raise FileFormatError(f"its network has {count} parameters, at most {MAX_PARAMETERS} fit in a file")
    return spec.parameter_shapes()


def _without_custom(config: Any) -> Any:
    """The same network with tanh for a user's own function, which no file holds and which changes no shape."""
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
        raise ValueError("the same key stands twice in an object")
    return made


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
