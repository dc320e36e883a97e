"""The stand-in for CuPy is as strict as CuPy, and has nothing that CuPy has not."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import rnncore
from tests.tools.fake_cupy import needs_real_cupy, on_fake_cupy, python
from tests.tools.places import FAKE


def test_the_stand_in_refuses_to_be_taken_for_cupy():
    code = "import cupy"
    for environment in ({"RNNCORE_FAKE_CUPY": ""},):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(FAKE), **environment},
            check=False,
        )
        assert done.returncode == 1 and "stand-in for CuPy" in done.stderr
    assert "NO GPU CODE IS RUN" in (FAKE / "cupy" / "__init__.py").read_text()


@on_fake_cupy()
def test_the_stand_in_is_as_strict_as_cupy():
    import cupy

    x, host = cupy.asarray([1.0, 2.0, 3.0]), np.ones(3)
    assert not isinstance(x, np.ndarray)
    for convert in (np.asarray, np.array, lambda a: np.asarray([a])):
        with pytest.raises(
            TypeError, match=r"Implicit conversion to a NumPy array is not allowed. Please use `.get\(\)`"
        ):
            convert(x)
    mixed = (
        lambda: x + host,
        lambda: host + x,
        lambda: x == host,
        lambda: x @ host,
        lambda: cupy.add(x, host),
        lambda: cupy.where(x > 0, x, host),
        lambda: np.tanh(x, out=host),
        lambda: cupy.concatenate([x, host]),
    )
    for mix in mixed:
        with pytest.raises(TypeError, match=r"Unsupported type <class 'numpy\.ndarray'>"):
            mix()
    with pytest.raises(ValueError, match=r"non-scalar numpy\.ndarray cannot be used for fill"):
        x[...] = host
    for reduced in (x.sum(), cupy.max(x), x[0], cupy.matmul(x, x), x.sum() + 1):
        assert isinstance(reduced, cupy.ndarray) and reduced.shape == ()
    for name in ("zeros", "ones", "empty"):
        with pytest.raises(TypeError, match="device"):
            getattr(cupy, name)((2,), device=cupy.cuda.Device(1))
    with cupy.cuda.Device(1):
        y = cupy.zeros(3)
    assert y.device.id == 1 and y[1:].device.id == 1 and y.reshape(3, 1).device.id == 1
    for use in (
        lambda: y + 1,
        lambda: x + y,
        lambda: y.sum(),
        lambda: cupy.matmul(y, y),
        lambda: y.fill(1),
        lambda: y[[0, 1]],
    ):
        with pytest.raises(ValueError, match=r"resides \(1\) is different from the current device \(0\)"):
            use()
    assert y.copy().device.id == 0 and cupy.asarray(y).device.id == 0
    # Indices out of bounds wrap, where they are arrays.
    np.testing.assert_array_equal(x[cupy.asarray([1, 3])].get(), [2, 1])
    np.testing.assert_array_equal(cupy.take(x, cupy.asarray([-1, 4])).get(), [3, 2])
    x[cupy.asarray([4])] = 9.0
    np.testing.assert_array_equal(x.get(), [1, 9, 3])
    with pytest.raises(IndexError):
        x[3]
    with pytest.raises(TypeError):
        hash(cupy.cuda.Device(0))
    with pytest.raises(TypeError):
        hash(x)
    assert cupy.cuda.Device(0) == cupy.cuda.Device(0) != cupy.cuda.Device(1)
    from rnncore.testing.tools.watch import overlaps

    plugin = rnncore.get_backend("cupy")
    assert overlaps(plugin, x, x[1:]) and not overlaps(plugin, x, x.copy()) and not overlaps(plugin, x[:1], x[1:])
    assert not hasattr(x, "__index__") and not hasattr(x, "__array_namespace__") and not hasattr(x, "to_device")


@needs_real_cupy
def test_the_stand_in_has_nothing_that_cupy_has_not():
    code = """
import json
import cupy, cupy.cuda.device, cupy.cuda.stream
from cupy._core import _routines_linalg

public = lambda module: [n for n in dir(module) if not n.startswith("_")]
every = lambda kind: [n for n in dir(kind) if not n.startswith("_") or n.endswith("__")]
modules = (cupy, cupy.linalg, cupy.fft, cupy.cuda, cupy.cuda.runtime, cupy.cuda.driver, _routines_linalg)
kinds = (cupy.ndarray, cupy.cuda.Device, cupy.cuda.Stream, cupy.cuda.Event, cupy.RawModule, cupy.RawKernel)
print(json.dumps([*map(public, modules), *map(every, kinds)]))
"""
    real = json.loads(python(code))
    fake = json.loads(python(code, PYTHONPATH=str(FAKE), RNNCORE_FAKE_CUPY="2"))
    known = {
        "os",
        "sys",
        "threading",
        "numpy",
        "__module__",
        "__dict__",
        "__weakref__",
    }  # what a module of Python's imports, a class has
    for_tests = {"synchronized", "waited_for", "recorded_on", "attributes", "runtime"}
    for of_fake, of_real in zip(fake, real, strict=True):
        assert set(of_fake) - set(of_real) - known - for_tests == set()
