"""A library that is missing, and one that is broken: one line with the command that installs it."""

import sys

import pytest

from rnncore.errors import BackendUnavailableError
from rnncore.interchange.libraries import needed


def test_a_library_that_is_there_is_given():
    assert needed("json.decoder", "x", "this") is sys.modules["json.decoder"]


def test_a_missing_library_is_named_with_the_command_that_installs_it():
    with pytest.raises(BackendUnavailableError) as caught:
        needed("no_such_library.part", "onnx", "reading .onnx")
    assert str(caught.value) == 'reading .onnx needs no_such_library: pip install "rnncore[onnx]"'


def test_what_is_wrong_with_a_broken_library_is_said(tmp_path, monkeypatch):
    (tmp_path / "half_a_library.py").write_text("import the_other_half")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackendUnavailableError) as caught:
        needed("half_a_library", "onnx", "reading .onnx")
    assert str(caught.value) == (
        "reading .onnx needs half_a_library, which cannot be imported (No module named 'the_other_half'): "
        'pip install "rnncore[onnx]"'
    )
