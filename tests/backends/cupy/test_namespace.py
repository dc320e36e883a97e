"""The namespace: creation obeys device=, and products are in full precision unless the user asks for TF32."""

import numpy as np
import pytest

import rnncore
from tests.tools.fake_cupy import needs_real_cupy, on_fake_cupy, python


@on_fake_cupy()
def test_every_creation_function_obeys_device():
    import cupy

    xp = rnncore.get_backend("cupy").namespace()
    there = cupy.cuda.Device(1)
    here = xp.ones((2, 3))
    made = {
        "arange": xp.arange(3, device=there),
        "asarray": xp.asarray([1.0, 2.0], device=there),
        "asarray of an array": xp.asarray(here, device=there),
        "asarray with copy": xp.asarray(here, device=there, copy=True),
        "empty": xp.empty((2, 3), device=there),
        "empty_like": xp.empty_like(here, device=there),
        "eye": xp.eye(3, device=there),
        "from_dlpack": xp.from_dlpack(here, device=there),
        "full": xp.full((2, 3), 7.0, device=there),
        "full_like": xp.full_like(here, 7.0, device=there),
        "linspace": xp.linspace(0.0, 1.0, 5, device=there),
        "ones": xp.ones((2, 3), device=there),
        "ones_like": xp.ones_like(here, device=there),
        "zeros": xp.zeros((2, 3), dtype=xp.float32, device=there),
        "zeros_like": xp.zeros_like(here, device=there),
    }
    standard = "arange asarray empty empty_like eye from_dlpack full full_like linspace ones ones_like zeros zeros_like"
    assert {name.split()[0] for name in made} == set(standard.split())
    assert {name: x.device.id for name, x in made.items() if x.device != there} == {}
    assert cupy.cuda.runtime.getDevice() == 0
    # What is made like an array, or of one, stays with it.
    x = made["ones"]
    for y in (xp.zeros_like(x), xp.full_like(x, 2.0), xp.asarray(x), xp.asarray(x, copy=True), xp.from_dlpack(x)):
        assert y.device == there
    assert xp.asarray(x) is x and xp.asarray(x, copy=True) is not x
    assert xp.zeros((2,)).device.id == 0
    np.testing.assert_array_equal(made["linspace"].get(), np.linspace(0, 1, 5))
    assert made["zeros"].dtype == np.float32
    with pytest.raises(ValueError, match="Unable to avoid copy"):
        xp.asarray(here, device=there, copy=False)


@on_fake_cupy()
def test_clip_compares_on_the_device():
    from cupy import _traffic

    xp = rnncore.get_backend("cupy").namespace()
    host = np.asarray([-3.0, -0.5, np.nan, 0.5, np.inf], dtype="f4")
    x, low = xp.asarray(host), xp.asarray([-1.0, 0.0, 0.0, 1.0, 0.0])
    _traffic.log.clear()
    got = [xp.clip(x, -1.0, 1.0), xp.clip(x, min=0.0), xp.clip(x, max=0.25), xp.clip(x), xp.clip(x, low, None)]
    assert _traffic.log == []
    want = [host.clip(-1, 1), host.clip(0, None), host.clip(None, 0.25), host, np.maximum(host, low.get())]
    for g, w in zip(got, want, strict=True):
        assert g.dtype == np.float32 and g is not x
        np.testing.assert_array_equal(g.get(), w.astype("f4"))
    np.testing.assert_array_equal(xp.clip(xp.asarray([1, 2, 3], dtype=xp.int8), 2, 400).get(), [2, 2, 3])


@on_fake_cupy()
def test_products_are_full_by_default():
    import rnncore_cupy as plugin

    assert plugin.precision(plugin.devices()[1]) == "full"


@on_fake_cupy(CUPY_TF32="1")
def test_tf32_is_reported_where_the_user_has_asked_for_it():
    import rnncore_cupy as plugin

    assert plugin.precision(plugin.devices()[1]) == "tf32"


@needs_real_cupy
def test_the_namespace_fits_the_real_cupy():
    code = """
import inspect, rnncore_cupy
xp = rnncore_cupy.namespace()
assert xp.__array_api_version__ >= "2024.12", xp.__array_api_version__
import cupy
assert xp.float32 is cupy.float32 and "linspace" in dir(xp.__dict__ and xp)
for name in "arange empty eye full linspace ones zeros empty_like full_like ones_like zeros_like asarray from_dlpack".split():
    assert "device" in inspect.signature(getattr(xp, name)).parameters, name
assert set(xp.__array_namespace_info__().dtypes(kind="real floating")) == {"float32", "float64"}
linalg = __import__("cupy._core._routines_linalg", fromlist=["_"])
assert linalg.COMPUTE_TYPE_TF32 != 0 and callable(linalg.get_compute_type)
assert cupy.cuda.Device(0) == cupy.cuda.Device(0) and int(cupy.cuda.Device(3)) == 3
assert rnncore_cupy.device_name(cupy.cuda.Device(3)) == "cuda:3" and not rnncore_cupy.is_native(1.0)
"""
    python(code)
