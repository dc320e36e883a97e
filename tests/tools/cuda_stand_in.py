"""A stand-in for CUDA under PyTorch: CuPy's kernels on the CPU."""

import contextlib
import threading
import types

import torch

from tests.backends.cupy.test_launch import DEVICES, device

NUMBER, POINTER = 1, 4711
PERSISTENT = [kind for kind in DEVICES if kind != "product"]


class Told:
    """Calls to PyTorch and CuPy since the stand-ins were put in, and the launches."""

    def __init__(self):
        from cupy import _raw

        self.handed_over, self.devices, self.launches = [], [], _raw.launches
        self.torchs = threading.local()  # its current device, in each thread

    def clear(self):
        for kept in (self.handed_over, self.devices, self.launches):
            kept.clear()

    @property
    def templates(self):
        return {launch["name"].partition("<")[0] for launch in self.launches}


def stand_in(kind="block"):
    """From here on, in this process, CPU tensors are on CUDA's device 1, and its current stream is at POINTER."""
    import cupy
    import rnncore_cupy
    from cupy._array import of
    from cupy.cuda import runtime
    from cupy.cuda.stream import Stream, get_current_stream
    from rnncore_torch import _cuda, _steps

    told = Told()

    @contextlib.contextmanager
    def of_torch(index):
        told.devices.append(index)
        told.torchs.current = index
        yield
        told.torchs.current = None

    def from_external(stream):
        version, pointer = stream.__cuda_stream__()
        assert version == 0
        made = Stream()
        made.ptr = pointer
        return made

    array = torch.Tensor.numpy  # as it is now: the conformance suite watches its callers

    def from_dlpack(x):
        assert runtime.getDevice() == NUMBER == told.torchs.current
        assert x.__dlpack_device__() == (2, NUMBER)
        # Once only, and as CuPy asks: the memory is the tensor's for as long as the array is there.
        memory = torch.utils.dlpack.from_dlpack(x.__dlpack__(stream=POINTER, max_version=(1, 0), copy=None))
        told.handed_over.append((memory.data_ptr(), get_current_stream().ptr))
        return of(array(memory), NUMBER)

    def copy(x):
        raise AssertionError("what has gaps is copied by PyTorch, into its own memory")

    _steps.HOSTS = ()
    _cuda.index_of = lambda x: NUMBER
    cupy.ascontiguousarray = copy
    _cuda._ruled.cache_clear()
    torch.cuda.device = of_torch
    torch.cuda.current_stream = lambda index: types.SimpleNamespace(cuda_stream=POINTER + index)
    torch.cuda.is_current_stream_capturing = lambda: False
    rnncore_cupy.from_dlpack = from_dlpack
    cupy.cuda.Stream.from_external = staticmethod(from_external)
    device(kind)
    told.clear()
    return told


def arguments(steps, batch, width, dtype=torch.float64, **options):
    """u, d, s0 and m."""
    draw = torch.Generator().manual_seed(0)
    shapes = ((steps, batch, width), (steps, batch, width), (batch, width), (width, width))
    u, d, s0, m = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes)
    made = (u, d.clamp(-1, 1), s0, m / width**0.5)
    return [x.to(dtype).requires_grad_(options.get("requires_grad", False)) for x in made]


@contextlib.contextmanager
def fresh(monkeypatch):
    """What the rule remembers of this machine, forgotten before and after; tensors seem to be on a GPU."""
    from rnncore_torch import _cuda, _steps

    monkeypatch.setattr(_cuda, "index_of", lambda x: NUMBER)
    monkeypatch.setattr(_steps, "HOSTS", ())
    caches = (_cuda._plugin, _cuda._ruled, _steps._hosts, _steps._host)
    for cached in caches:
        cached.cache_clear()
    yield
    monkeypatch.undo()
    for cached in caches:
        cached.cache_clear()
