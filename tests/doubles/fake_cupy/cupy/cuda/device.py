"""Devices: as in CuPy they are equal by number, cannot be hashed, and as contexts share one stack for each thread."""

import threading

from cupy.cuda import runtime

_stack = threading.local()


class Device:
    """A device by number; by default the current one."""

    __hash__ = None

    def __init__(self, device=None):
        self.id = runtime.getDevice() if device is None else int(device)

    def __int__(self):
        return self.id

    def __eq__(self, other):
        return isinstance(other, Device) and self.id == other.id

    def __repr__(self):
        return f"<CUDA Device {self.id}>"

    def __enter__(self):
        before = runtime.getDevice()
        if not hasattr(_stack, "devices"):
            _stack.devices = []
        _stack.devices.append(before)
        runtime.setDevice(self.id)
        return self

    def __exit__(self, *error):
        runtime.setDevice(_stack.devices.pop())

    def use(self):
        """Make it current."""
        runtime.setDevice(self.id)
        return self

    def synchronize(self):
        """Wait for it, whichever is current."""
        before = runtime.getDevice()
        try:
            runtime.setDevice(self.id)
            runtime.deviceSynchronize()
        finally:
            runtime.setDevice(before)

    @property
    def compute_capability(self):
        """That of an H100."""
        return "90"
