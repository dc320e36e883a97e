"""The description that every file carries, and what it can say wrongly."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rnncore
from rnncore import io
from rnncore.arguments import brief
from rnncore.errors import ArgumentValueError, FileFormatError
from rnncore.io import header
from tests.tools.weights_files import (
    CONFIG,
    description,
    hostile_tests,
    nested,
    small,
    st_meta,
    z_text,
)


def test_the_largest_description_fits(path):
    """What can be written can be read: the limits of the reader leave room for the longest of everything at once."""
    name = '"\\' * 33_000  # each takes two bytes in the text, and four in safetensors' metadata
    pair = (np.sin, np.cos)
    model = small(hidden_size=1, num_layers=1250, nonlinearity=rnncore.custom_nonlinearity(*pair, name=name[:63_000]))
    model.save(path)
    assert len(io.read(path).params) == header.MAX_PARAMETERS
    longer = rnncore.custom_nonlinearity(*pair, name=name)
    with pytest.raises(ArgumentValueError, match="at most"):
        small(nonlinearity=longer).save(path)


# What a description can say wrongly; put into files of either format.
TEXT_CASES = {
    "empty text": (lambda s: "", "JSON"),
    "text not json": (lambda s: s[:-1], "JSON"),
    "text a list": (lambda s: f"[{s}]", "not one of rnncore"),
    "text nested": (lambda s: nested(50_000), "nested"),
    "text too long": (lambda s: s + " " * 150_000, "at most"),
    "text with NaN": (lambda s: s.replace("0.0", "NaN"), "NaN"),
    "text with a duplicate": (lambda s: s.replace('"version": 1', '"version": 1, "version": 1'), "twice"),
    "duplicate in spec": (lambda s: s.replace('"bias": true', '"bias": true, "bias": true'), "twice"),
    "other format": (lambda s: s.replace('"rnncore"', '"keras"'), "not one of rnncore"),
    "newer version": (
        lambda s: s.replace('"version": 1', '"version": 2'),
        "version 2, and this rnncore reads versions up to 1: install a newer rnncore, as with pip install --upgrade rnncore",
    ),
    "newer version with newer keys": (
        lambda s: s.replace('"version": 1', '"version": 2, "written_by": "0.9"').replace(
            '"bias"', '"leak": 0.1, "bias"'
        ),
        "version 2, and this rnncore reads versions up to 1",
    ),
    "version of 4000 digits": (lambda s: s.replace('"version": 1', '"version": ' + "9" * 4000), "version about 2"),
    "newer key in this version": (lambda s: s.replace('"bias"', '"leak": 0.1, "bias"'), "unexpected 'leak'"),
    "key of 0.1 missing": (lambda s: s.replace('"dropout": 0.0, ', ""), "missing 'dropout'"),
    "version true": (lambda s: s.replace('"version": 1', '"version": true'), "version"),
    "version 0": (lambda s: s.replace('"version": 1', '"version": 0'), "version"),
    "version text": (lambda s: s.replace('"version": 1', '"version": "1"'), "version"),
    "extra key": (lambda s: s.replace('"version": 1', '"version": 1, "code": "x"'), "unexpected 'code'"),
    "no dtype": (lambda s: s.replace('"dtype": "float64", ', ""), "missing 'dtype'"),
    "dtype int64": (lambda s: s.replace("float64", "int64"), "dtype"),
    "dtype object": (lambda s: s.replace('"float64"', '["float64"]'), "dtype"),
    "dtype of other arrays": (lambda s: s.replace("float64", "float32"), "expected"),
    "spec a list": (lambda s: s.replace('"spec": {', '"spec": [{').replace("}}", "}]}"), "spec"),
    "other spec key": (lambda s: s.replace('"bias"', '"Bias"'), "missing 'bias', unexpected 'Bias'"),
    "input_size 0": (lambda s: s.replace('"input_size": 3', '"input_size": 0'), "input_size"),
    "input_size true": (lambda s: s.replace('"input_size": 3', '"input_size": true'), "input_size"),
    "input_size 3.0": (lambda s: s.replace('"input_size": 3', '"input_size": 3.0'), "input_size"),
    "input_size other": (lambda s: s.replace('"input_size": 3', '"input_size": 4'), "expected"),
    "input_size huge": (lambda s: s.replace('"input_size": 3', '"input_size": 1' + "0" * 30), "bytes"),
    "both sizes huge": (
        lambda s: s.replace('"input_size": 3', f'"input_size": {"9" * 4000}').replace("[2]", f"[{'9' * 4000}]"),
        "not valid",
    ),
    "width huge": (lambda s: s.replace("[2]", "[1000000000000]"), "bytes"),
    "width negative": (lambda s: s.replace("[2]", "[-2]"), "hidden_size"),
    "no layer": (lambda s: s.replace("[2]", "[]"), "hidden_size"),
    "60,000 layers": (lambda s: s.replace("[2]", "[" + "1," * 59_999 + "1]"), "fit in a file"),
    "widths a number": (lambda s: s.replace("[2]", "2"), "hidden_sizes"),
    "widths nested": (lambda s: s.replace("[2]", "[[2]]"), "hidden_size"),
    "two layers": (lambda s: s.replace("[2]", "[2, 2]"), "missing weight_ih_l1"),
    "bias 1": (lambda s: s.replace('"bias": true', '"bias": 1'), "bias"),
    "bias false": (lambda s: s.replace('"bias": true', '"bias": false'), "unexpected 'bias"),
    "bidirectional": (lambda s: s.replace('"bidirectional": false', '"bidirectional": true'), "missing.*_reverse"),
    "dropout 2": (lambda s: s.replace('"dropout": 0.0', '"dropout": 2'), "dropout"),
    "dropout infinite": (lambda s: s.replace('"dropout": 0.0', '"dropout": 1e999'), "dropout"),
    "dropout 4000 digits": (lambda s: s.replace('"dropout": 0.0', f'"dropout": {"9" * 4000}'), "dropout"),
    "unknown nonlinearity": (lambda s: s.replace('"tanh"', '"os.system"'), "nonlinearity"),
    "long nonlinearity": (lambda s: s.replace('"tanh"', '"' + "ab" * 60_000 + '"'), "nonlinearity"),
    "nonlinearity a list": (lambda s: s.replace('{"name": "tanh"}', '["tanh"]'), "nonlinearity"),
    "nonlinearity no name": (lambda s: s.replace('{"name": "tanh"}', "{}"), "nonlinearity"),
    "nonlinearity name a number": (lambda s: s.replace('"tanh"', "5"), "nonlinearity"),
    "alpha of tanh": (lambda s: s.replace('"tanh"', '"tanh", "alpha": 1'), "alpha"),
    "alpha 4000 digits": (lambda s: s.replace('"tanh"', '"elu", "alpha": ' + "9" * 4000), "not valid"),
    "clip negative": (lambda s: s.replace('"tanh"', '"tanh", "clip": -1'), "clip"),
    "clip infinite": (lambda s: s.replace('"tanh"', '"tanh", "clip": 1e999'), "clip"),
    "custom a number": (
        lambda s: s.replace('"custom_nonlinearity": false', '"custom_nonlinearity": 1'),
        "custom_nonlinearity",
    ),
    "custom with code": (
        lambda s: s.replace('"custom_nonlinearity": false', '"custom_nonlinearity": true').replace(
            '"tanh"', '"f", "code": "import os"'
        ),
        "nonlinearity",
    ),
}


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.just(10**4000),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=6,
)
keys = st.sampled_from([*CONFIG, "format", "version", "dtype", "spec"])


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.dictionaries(keys, values, min_size=1, max_size=3))
def test_any_description(changes):
    try:
        parsed = header.parse(description(**changes).encode())
    except FileFormatError:
        return
    function = "tanh" if parsed.config["custom_nonlinearity"] else None
    assert parsed.shapes == rnncore.RNNSpec.from_config(parsed.config, nonlinearity=function).parameter_shapes()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_any_bytes_are_no_description(text):
    with pytest.raises(FileFormatError):
        header.parse(text)


def test_messages_stay_short_and_printable():
    assert brief("a\x1b[2J\nb\x1b") == "a b"
    assert brief("a" * 500 + "b" * 500) == "a" * 200 + " [... 700 characters left out ...] " + "b" * 100


DESCRIPTION_FILES = {
    f"{suffix}: {name}": (suffix, into(change), reason)
    for suffix, into in (("safetensors", st_meta), ("npz", z_text))
    for name, (change, reason) in TEXT_CASES.items()
}

test_a_hostile_description_is_refused, test_a_hostile_description_takes_no_memory = hostile_tests(DESCRIPTION_FILES)
