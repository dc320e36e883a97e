"""The driver, asked why there is no device."""

import ctypes

import pytest


class Driver:
    """libcuda as ctypes shows it: what its functions return, and the devices it counts."""

    def __init__(self, init=0, count=0, devices=1, words=None):
        self.statuses, self.devices, self.words = (init, count), devices, words or {}

    def cuInit(self, flags):
        assert flags == 0
        return self.statuses[0]

    def cuDeviceGetCount(self, pointer):
        ctypes.cast(pointer, ctypes.POINTER(ctypes.c_int))[0] = self.devices
        return self.statuses[1]

    def cuGetErrorName(self, status, pointer):
        return self._say(status, 0, pointer)

    def cuGetErrorString(self, status, pointer):
        return self._say(status, 1, pointer)

    def _say(self, status, which, pointer):
        if status not in self.words:
            return 1
        ctypes.cast(pointer, ctypes.POINTER(ctypes.c_char_p))[0] = self.words[status][which]
        return 0


NO_DEVICE = {100: (b"CUDA_ERROR_NO_DEVICE", b"no CUDA-capable device is detected")}


@pytest.mark.parametrize(
    ("driver", "words"),
    [
        (Driver(), None),
        (
            Driver(init=100, words=NO_DEVICE),
            "CUDA cannot be used: cuInit: CUDA_ERROR_NO_DEVICE: no CUDA-capable device is detected",
        ),
        (
            Driver(count=100, words=NO_DEVICE),
            "CUDA cannot be used: cuDeviceGetCount: CUDA_ERROR_NO_DEVICE: no CUDA-capable device is detected",
        ),
        (Driver(init=34), "CUDA cannot be used: cuInit: CUDA error 34"),
        (Driver(devices=0), "CUDA cannot be used: its driver reports no device"),
        (object(), "CUDA cannot be used: its driver is not a CUDA driver: 'object' object has no attribute 'cuInit'"),
    ],
)
def test_the_driver_is_quoted(monkeypatch, driver, words):
    import rnncore_cupy
    from rnncore_cupy import _driver

    monkeypatch.setattr(_driver, "_load", lambda library: driver)
    assert rnncore_cupy.unusable() == words


def test_the_loader_is_quoted_where_there_is_no_driver(monkeypatch):
    import rnncore_cupy
    from rnncore_cupy import _driver

    monkeypatch.setattr(_driver, "LIBRARY", "libno-such-driver.so.1")
    assert rnncore_cupy.unusable().startswith("CUDA cannot be used: its driver cannot be loaded: ")
    assert "no-such-driver" in rnncore_cupy.unusable()
