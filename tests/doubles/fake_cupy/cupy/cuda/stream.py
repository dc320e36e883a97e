"""Streams: the current one is a matter of the thread and of the device, and a stream belongs to the device it is made on."""

import threading

from cupy.cuda import runtime

_state = threading.local()
_pointers = iter(range(1000, 1_000_000))


class Event:
    """A point in a stream."""

    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self.recorded_on = None

    def record(self, stream=None):
        """At this point of the current stream."""
        self.recorded_on = get_current_stream() if stream is None else stream

    def synchronize(self):
        """There is nothing to wait for."""


def get_elapsed_time(start_event, end_event):
    """No time: nothing was done on a GPU."""
    if start_event.recorded_on is None or end_event.recorded_on is None:
        raise runtime.CUDARuntimeError(400, "cudaErrorInvalidResourceHandle: invalid resource handle")
    return 0.0


class Stream:
    """A stream of the current device."""

    null = None

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        self.ptr = 0 if null else next(_pointers)
        self.device_id = -1 if null else runtime.getDevice()
        self.waited_for = []

    def __eq__(self, other):
        return isinstance(other, Stream) and self.ptr == other.ptr

    def __hash__(self):
        return self.ptr

    def __enter__(self):
        self._check()
        _current().setdefault(runtime.getDevice(), []).append(self)
        return self

    def __exit__(self, *error):
        (_current()[runtime.getDevice()] if self.device_id < 0 else _current()[self.device_id]).pop()

    def _check(self):
        if self.device_id not in (-1, runtime.getDevice()):
            raise RuntimeError(
                f"The device that the stream is created on ({self.device_id}) does not match with the current device "
                f"({runtime.getDevice()})"
            )

    def record(self, event=None):
        """An event on it."""
        event = Event() if event is None else event
        event.recorded_on = self
        return event

    def wait_event(self, event):
        """Go on after the event."""
        self.waited_for.append(event.recorded_on)

    def synchronize(self):
        """There is nothing to wait for."""


Stream.null = Stream(null=True)


def get_current_stream(device_id=-1):
    """The current stream of a device, by default of the current one, in this thread."""
    stack = _current().get(runtime.getDevice() if device_id < 0 else device_id)
    return stack[-1] if stack else Stream.null


def stream_for(device_id, stream=None):
    """The stream that CuPy would use for an array on this device; that of another device is a race there, an error here."""
    stream = get_current_stream() if stream is None else stream
    if stream.device_id not in (-1, device_id):
        raise RuntimeError(
            f"an array on device {device_id} is used on a stream of device {stream.device_id}, which does not wait for what "
            "makes the array"
        )
    return stream


def _current():
    if not hasattr(_state, "stacks"):
        _state.stacks = {}
    return _state.stacks
