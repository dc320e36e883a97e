"""Devices, streams and events without a GPU."""

from cupy.cuda import device, driver, runtime, stream  # noqa: F401
from cupy.cuda.device import Device  # noqa: F401
from cupy.cuda.memory_hook import MemoryHook  # noqa: F401
from cupy.cuda.stream import Event, Stream, get_current_stream, get_elapsed_time  # noqa: F401


def is_available():
    """Whether there is a device."""
    try:
        return runtime.getDeviceCount() > 0
    except runtime.CUDARuntimeError:
        return False
