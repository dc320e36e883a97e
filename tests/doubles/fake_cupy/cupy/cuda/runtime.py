"""CUDA's runtime as far as CuPy's users see it: how many devices, and which is current in this thread."""

import os
import threading

streamLegacy, streamPerThread = 1, 2

synchronized: list[int] = []  # what was waited for, for tests

# Of every device; those of an H100, which tests may change. The constants are CUDA's numbers.
attributes = {
    "MultiProcessorCount": 132,
    "MaxSharedMemoryPerBlockOptin": 232448,
    "MaxRegistersPerBlock": 65536,
    "CooperativeLaunch": 1,
}
cudaDevAttrMaxRegistersPerBlock = 12
cudaDevAttrMultiProcessorCount = 16
cudaDevAttrCooperativeLaunch = 95
cudaDevAttrMaxSharedMemoryPerBlockOptin = 97

_state = threading.local()


class CUDARuntimeError(RuntimeError):
    """An error of CUDA, in its words."""

    def __init__(self, status, words):
        super().__init__(words)
        self.status = status


def getDeviceCount():
    """As many as RNNCORE_FAKE_CUPY says; none is an error, as it is CUDA's."""
    count = int(os.environ["RNNCORE_FAKE_CUPY"])
    if count == 0:
        raise CUDARuntimeError(100, "cudaErrorNoDevice: no CUDA-capable device is detected")
    return count


def getDevice():
    """The current device of this thread; 0 at first."""
    getDeviceCount()
    return getattr(_state, "device", 0)


def setDevice(device):
    """Make a device current in this thread."""
    if not 0 <= device < getDeviceCount():
        raise CUDARuntimeError(101, "cudaErrorInvalidDevice: invalid device ordinal")
    _state.device = device


def deviceSynchronize():
    """There is nothing to wait for; the device is noted."""
    synchronized.append(getDevice())


def getDeviceProperties(device):
    """The name, which is no GPU's."""
    return {"name": b"no GPU: NumPy in disguise", "major": 9, "minor": 0}


def runtimeGetVersion():
    """As of CUDA 13.0."""
    return 13000


def driverGetVersion():
    """As of CUDA 13.0."""
    return 13000


def deviceGetAttribute(attribute, device):
    """A number that CUDA has of a device."""
    names = {globals()[f"cudaDevAttr{name}"]: name for name in attributes}
    if not 0 <= device < getDeviceCount():
        raise CUDARuntimeError(101, "cudaErrorInvalidDevice: invalid device ordinal")
    return attributes[names[attribute]]
