"""Run a test on the stand-in for CuPy, in a process of its own; or only where the real CuPy is installed."""

import functools
import importlib.util
import os

import numpy as np
import pytest

import rnncore
from tests.tools.places import DOUBLES, FAKE, ROOT
from tests.tools.process import python
from tests.tools.rounding import agree

needs_real_cupy = pytest.mark.skipif(
    importlib.util.find_spec("cupy_backends") is None,  # the stand-in lacks it
    reason='the real CuPy is not installed: pip install cupy-cuda13x, or "rnncore[cupy]"',
)


def on_fake_cupy(devices=2, **environment):
    """Run the test in a new process, in which ``import cupy`` finds the stand-in with this number of devices."""

    def decorate(body):
        @functools.wraps(body)
        def test():
            code = f"import {body.__module__} as tests; tests.{body.__name__}.__wrapped__()"
            path = os.pathsep.join([str(FAKE), str(ROOT), str(DOUBLES), *filter(None, [os.environ.get("PYTHONPATH")])])
            python(code, PYTHONPATH=path, RNNCORE_FAKE_CUPY=str(devices), **environment)

        return test

    return decorate


class Elsewhere:
    """Models and arrays on device 1 while device 0 is current, beside the same on NumPy."""

    def __init__(self):
        import cupy

        self.cupy, self.plugin = cupy, rnncore.get_backend("cupy")
        self.rng = np.random.default_rng(0)

    def give(self, numbers, dtype=None):
        host = np.asarray(numbers)
        return self.plugin.asarray(host, dtype=host.dtype if dtype is None else dtype, device=self.cupy.cuda.Device(1))

    def same(self, got, want):
        """The same numbers, on device 1; and device 0 is current as before."""
        assert self.cupy.cuda.runtime.getDevice() == 0
        if isinstance(want, dict):
            assert got.keys() == want.keys()
            got, want = list(got.values()), list(want.values())
        if isinstance(want, (list, tuple)):
            assert len(got) == len(want)
            for g, w in zip(got, want, strict=True):
                self.same(g, w)
            return
        assert isinstance(got, self.cupy.ndarray) and got.device.id == 1, type(got)
        assert got.dtype == want.dtype and got.shape == want.shape
        agree(self.plugin.to_numpy(got), want)
