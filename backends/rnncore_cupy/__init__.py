"""The CuPy backend: arrays on CUDA devices, scans as CUDA kernels. ``from rnncore_cupy import RNN`` chooses it by import.

CuPy works on a current device and, for each device and thread, on a current stream. rnncore makes a model's device current
for as long as a call takes and leaves the streams alone: the work is queued on the stream that is current on that device in
the calling thread, so ``with device, stream:`` around a call decides where it goes, and no call but :func:`to_numpy` and
:func:`synchronize` waits for it. CuPy itself is imported at first use.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

import rnncore
from rnncore.arguments import describe
from rnncore.errors import ArgumentTypeError, DeviceError
from rnncore_cupy._driver import cuda_fault
from rnncore_cupy._scans import CupyScans

if TYPE_CHECKING:
    import torch

name = "cupy"
native_package = "cupy"
contract_version = 2
writable = True
# Each window of a pullback is a launch of every kernel. Not measured on a GPU yet.
window_numbers = 2**24

RNN, RNNCell = rnncore.bound_to(name)

# Numbers of the DLPack protocol: memory of a CUDA device, and memory that CUDA moves between devices and host.
DLPACK_CUDA, DLPACK_CUDA_MANAGED = 2, 13

_SCANS = CupyScans()


def namespace() -> Any:
    """CuPy by way of array-api-compat, with ``device=`` obeyed."""
    return importlib.import_module("rnncore_cupy._namespace")


def unusable() -> str | None:
    """What CUDA's driver itself says against it, or None; CuPy is not imported to find out."""
    fault = cuda_fault()
    return None if fault is None else f"CUDA cannot be used: {fault}"


def is_native(x: object, /) -> bool:
    """Whether x is a CuPy array."""
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(x, cupy.ndarray)


def devices() -> Sequence[Any]:
    """Every device that CUDA shows, the current one first. Where there is none, CUDA's own error."""
    cuda = _cupy().cuda
    count = cuda.runtime.getDeviceCount()
    if not count:
        return ()
    current = cuda.runtime.getDevice()
    return tuple(cuda.Device(k) for k in sorted(range(count), key=lambda k: (k != current, k)))


def device_name(device: Any, /) -> str:
    """The name that PyTorch gives the same device: "cuda:0"."""
    return f"cuda:{int(device)}"


def scope(device: Any, /) -> AbstractContextManager[Any]:
    """Makes the device current in this thread, and afterwards the one that was.

    The stream that is current on the device stays so, and the one that the surrounding code works on is current again
    with its device. Each call gives a new context, to be entered by any thread and inside any other.
    """
    context: AbstractContextManager[Any] = _cupy().cuda.Device(int(device))
    return context


def asarray(x: np.ndarray[Any, Any], /, *, dtype: Any, device: Any) -> Any:
    """A new array on the device, and the caller may change x at once.

    The numbers are copied on the host first, as CuPy's own copy is no promise: it takes ordinary memory through a buffer of
    its own before it returns (or has CUDA do so, which is synchronous for pageable memory), but pinned memory is read when
    the stream gets there, and with CUPY_ENABLE_UMP=1 the new array shares the memory of x.
    """
    with scope(device):
        return _cupy().asarray(np.array(x, dtype=dtype, order="C"))


def to_numpy(x: Any, /) -> np.ndarray[Any, Any]:
    """The numbers on the host, after everything queued on the stream of x's device; bfloat16 as float32."""
    # CuPy copies on the current device's stream, which on another device than x's is not the one that x is made on.
    with scope(x.device):
        host: np.ndarray[Any, Any] = x.get()
    return host.astype(np.float32) if host.dtype.name == "bfloat16" else host


def synchronize(device: Any, /) -> None:
    """Wait for everything on the device, on whatever stream."""
    _cupy().cuda.Device(int(device)).synchronize()


def precision(device: Any, /) -> str:
    """ "tf32" where CUPY_TF32=1 was set before CuPy's first float32 product and the device can do it, else "full".

    CuPy settles this once in a process: with its first float32 product, or with this question.
    """
    linalg = importlib.import_module("cupy._core._routines_linalg")
    with scope(device):
        return "tf32" if linalg.get_compute_type("float32") == linalg.COMPUTE_TYPE_TF32 else "full"


def scans() -> CupyScans:
    """Both, for the functions and dtypes that have kernels."""
    return _SCANS


def from_dlpack(x: Any, /) -> Any:
    """A CuPy array on the memory of any library's array on a CUDA device, without a copy.

    By the DLPack protocol CuPy names its current stream on x's device, and x's library has that stream wait for its own:
    what is asked of the result comes after what was asked of x. The memory stays that of x's library, which takes it back
    when the last array on it is gone: synchronise before that if work on another stream is still to read it.

    Raises
    ------
    ArgumentTypeError
        If x does not speak DLPack.
    DeviceError
        If x is not on a CUDA device.
    BackendUnavailableError
        If CuPy cannot be used here.
    BufferError
        From x's own library, if it does not give x away: PyTorch's for a tensor that requires a gradient, say.
    """
    ask = getattr(x, "__dlpack_device__", None)
    if ask is None:
        raise ArgumentTypeError(
            f"x: expected an array on a CUDA device that speaks DLPack, got {describe(x)}; "
            f"from numbers make one with rnncore.get_backend({name!r}).asarray(x, dtype=..., device=...)"
        )
    kind, number = ask()
    if kind not in (DLPACK_CUDA, DLPACK_CUDA_MANAGED):
        raise DeviceError(
            f"x: expected an array on a CUDA device, got {describe(x)} on DLPack device {(int(kind), number)}, which is "
            f"none (1 is the host); copy it with rnncore.get_backend({name!r}).asarray(x, dtype=..., device=...)"
        )
    rnncore.get_backend(name)
    return _cupy().from_dlpack(x)


def to_torch(x: Any, /) -> torch.Tensor:
    """A PyTorch tensor on the memory of a CuPy array, without a copy.

    PyTorch's current stream on x's device waits for CuPy's. The memory stays CuPy's, as :func:`from_dlpack` says of the
    other way.

    Raises
    ------
    ArgumentTypeError
        If x is not a CuPy array.
    BackendUnavailableError
        If PyTorch is not installed.
    """
    if not is_native(x):
        raise ArgumentTypeError(f"x: expected cupy.ndarray, got {describe(x)}")
    rnncore.get_backend("torch")
    from torch.utils import dlpack

    # CuPy has the consumer wait for the current stream of the current device, which has to be x's.
    with scope(x.device):
        return dlpack.from_dlpack(x)


def _cupy() -> Any:
    return importlib.import_module("cupy")
