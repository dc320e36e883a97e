"""Dtypes, devices and lengths by name, and checks of arrays."""

import numpy as np
import pytest
import torch

import rnncore
from rnncore.backend import arrays
from rnncore.errors import ArgumentTypeError, ArgumentValueError, DeviceError, DTypeError, NonFiniteError, ShapeError


@pytest.mark.parametrize("name", ["float16", "float32", "float64"])
def test_a_dtype_has_one_name_in_every_library(name):
    for dtype in (name, np.dtype(name), getattr(np, name), getattr(torch, name)):
        assert arrays.dtype_name(dtype) == name


@pytest.mark.parametrize("backend", ["numpy", "torch", "strict"])
def test_a_dtype_is_found_by_name_and_the_default_is_the_librarys(backend):
    plugin = rnncore.get_backend(backend)
    place = {"xp": plugin.namespace(), "device": plugin.devices()[0]}
    assert arrays.find_dtype("float32", **place) == place["xp"].float32
    assert arrays.find_dtype(None, **place) in (place["xp"].float32, place["xp"].float64)
    with pytest.raises(DTypeError, match=r"dtype: expected one of .*float32, float64.*got 'int8'"):
        arrays.find_dtype("int8", **place)


def test_a_device_is_found_by_itself_or_by_its_name():
    plugin = rnncore.get_backend("strict")
    for device in plugin.devices():
        assert arrays.find_device(device, backend=plugin) == device
        assert arrays.find_device(arrays.device_name(plugin, device), backend=plugin) == device
    assert arrays.find_device(None, backend=plugin) == plugin.devices()[0]
    with pytest.raises(DeviceError, match=r"device: expected one of .* of backend 'strict', got 'cuda'"):
        arrays.find_device("cuda", backend=plugin)


@pytest.mark.parametrize("lengths", [[2, 0], (2, 0), np.asarray([2, 0], "u1"), torch.tensor([2, 0])])
def test_lengths_are_ints_on_the_host(lengths):
    found = arrays.host_lengths(lengths, batch=2, steps=2)
    assert found == (2, 0) and all(type(n) is int for n in found)


@pytest.mark.parametrize(
    ("lengths", "error", "words"),
    [
        ([3, 0], ArgumentValueError, r"lengths\[0\]: expected an int in \[0, 2\], got 3"),
        ([0, -1], ArgumentValueError, r"lengths\[1\]: expected an int in \[0, 2\], got -1"),
        ([0, True], ArgumentTypeError, r"lengths\[1\]: expected an int"),
        ([1], ShapeError, "expected 2 entries, one per sequence, got 1"),
        (np.ones((2, 1), int), ShapeError, "expected one axis"),
        (np.ones(2), ArgumentTypeError, "expected integers, got dtype float64"),
        ({0: 1}, ArgumentTypeError, "expected a sequence of int"),
    ],
)
def test_bad_lengths_are_named(lengths, error, words):
    with pytest.raises(error, match=words):
        arrays.host_lengths(lengths, batch=2, steps=2)


def test_the_first_number_that_is_not_finite_is_named():
    plugin = rnncore.get_backend("numpy")
    x = np.ones((2, 3))
    arrays.check_finite("x", x, xp=plugin.namespace(), backend=plugin)
    x[1, 2] = np.inf
    with pytest.raises(NonFiniteError, match=r"x\[1, 2\]: expected a finite number, got inf"):
        arrays.check_finite("x", x, xp=plugin.namespace(), backend=plugin)
