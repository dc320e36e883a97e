"""A path of either format."""

import pytest

FORMATS = ("safetensors", "npz")


@pytest.fixture(params=FORMATS)
def suffix(request):
    return request.param


@pytest.fixture
def path(tmp_path, suffix):
    return tmp_path / f"rnn.{suffix}"
