"""The CuPy backend: arrays on CUDA devices, scans as CUDA kernels. ``from rnncore_cupy import RNN`` chooses it by import.

CuPy has a current device and, for each device and thread, a current stream. During a call rnncore makes the model's device
current and does not change streams: work is queued on that device's current stream in the calling thread. So ``with device,
stream:`` around a call chooses the stream, and only :func:`to_numpy` and :func:`synchronize` wait. CuPy itself is imported at
first use. The plugin implements version 2 of the contract.
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
from rnncore.backend.arrays import from_user
from rnncore.errors import ArgumentTypeError, DeviceError
from rnncore_cupy._driver import cuda_fault
from rnncore_cupy._scans import CupyScans

if TYPE_CHECKING:
    import torch

name = "cupy"
native_package = "cupy"
contract_version = 2
writable = True
# Each window of a pullback launches every kernel once. Not measured on a GPU yet.
window_numbers = 2**24

RNN, RNNCell = rnncore.bound_to(name)

# kDLCUDA and kDLCUDAManaged of the DLPack protocol.
DLPACK_CUDA, DLPACK_CUDA_MANAGED = 2, 13

_SCANS = CupyScans()


def namespace() -> Any:
    """CuPy by way of array-api-compat, with a working ``device=``."""
    return importlib.import_module("rnncore_cupy._namespace")


def unusable() -> str | None:
    """Return the CUDA driver's reason why CuPy cannot run, or None; CuPy is not imported."""
    fault = cuda_fault()
    return None if fault is None else f"CUDA cannot be used: {fault}"


def is_native(x: object, /) -> bool:
    """Whether x is a CuPy array."""
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(x, cupy.ndarray)


def devices() -> Sequence[Any]:
    """Every visible CUDA device, the current one first. CUDA's own error is raised if there is none."""
    cuda = _cupy().cuda
    count = cuda.runtime.getDeviceCount()
    if not count:
        return ()
    current = cuda.runtime.getDevice()
    return tuple(cuda.Device(k) for k in sorted(range(count), key=lambda k: (k != current, k)))


def device_name(device: Any, /) -> str:
    """Name a device as PyTorch does, such as "cuda:0"."""
    return f"cuda:{int(device)}"


def scope(device: Any, /) -> AbstractContextManager[Any]:
    """A context that makes the device current in this thread and restores the previous one afterwards.

    Current streams do not change. Each call returns a new context, which any thread can enter, also inside another one.
    """
    context: AbstractContextManager[Any] = _cupy().cuda.Device(int(device))
    return context


def asarray(x: Any, /, *, dtype: Any = None, device: Any = None) -> Any:
    """A new array on the device; the caller may change x immediately.

    The numbers are copied on the host first, because CuPy may read x later: it copies pageable memory before it returns, but
    reads pinned memory in stream order, and with CUPY_ENABLE_UMP=1 the new array shares the memory of x.

    All arguments are as in :func:`rnncore.backend.arrays.from_user`.
    """
    host, dtype, device = from_user(x, dtype, device, backend=sys.modules[__name__], kind=_cupy().cuda.Device)
    with scope(device):
        return _cupy().asarray(np.array(host, dtype=dtype, order="C"))


def to_numpy(x: Any, /) -> np.ndarray[Any, Any]:
    """The numbers on the host, after all work queued on the current stream of x's device; bfloat16 as float32."""
    # CuPy copies on the current device's stream, so x's device has to be current.
    with scope(x.device):
        host: np.ndarray[Any, Any] = x.get()
    return host.astype(np.float32) if host.dtype.name == "bfloat16" else host


def synchronize(device: Any, /) -> None:
    """Wait for all work on the device, on every stream."""
    _cupy().cuda.Device(int(device)).synchronize()


def precision(device: Any, /) -> str:
    """Return "tf32" if CUPY_TF32=1 was set before CuPy's first float32 product and the device supports it, else "full".

    CuPy decides this once per process: at its first float32 product or at this call.
    """
    linalg = importlib.import_module("cupy._core._routines_linalg")
    with scope(device):
        return "tf32" if linalg.get_compute_type("float32") == linalg.COMPUTE_TYPE_TF32 else "full"


def scans() -> CupyScans:
    """Both scans, for the functions and dtypes that have kernels."""
    return _SCANS


def from_dlpack(x: Any, /) -> Any:
    """A CuPy array that shares the memory of another library's array on a CUDA device, without a copy.

    By the DLPack protocol CuPy passes its current stream on x's device, and x's library makes that stream wait for its own. So
    work on the result starts after the work queued on x. The memory belongs to x's library, which releases it with the last
    array on it: synchronize before that if work on another stream still reads it.

    Raises
    ------
    ArgumentTypeError
        If x does not support DLPack.
    DeviceError
        If x is not on a CUDA device.
    BackendUnavailableError
        If CuPy cannot be used here.
    BufferError
        From x's library, if it does not export x, such as PyTorch for a tensor that requires a gradient.
    """
    ask = getattr(x, "__dlpack_device__", None)
    if ask is None:
        raise ArgumentTypeError(
            f"x: expected an array on a CUDA device that supports DLPack, got {describe(x)}; "
            f"from numbers make one with rnncore.get_backend({name!r}).asarray(x)"
        )
    kind, number = ask()
    if kind not in (DLPACK_CUDA, DLPACK_CUDA_MANAGED):
        raise DeviceError(
            f"x: expected an array on a CUDA device, got {describe(x)} on DLPack device {(int(kind), number)}, not a "
            f"CUDA device (1 is the host); copy it with rnncore.get_backend({name!r}).asarray(x)"
        )
    rnncore.get_backend(name)
    return _cupy().from_dlpack(x)


def to_torch(x: Any, /) -> torch.Tensor:
    """A PyTorch tensor that shares the memory of a CuPy array, without a copy.

    PyTorch's current stream on x's device waits for CuPy's. The memory belongs to CuPy; see :func:`from_dlpack` for its
    lifetime.

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

    # CuPy makes the consumer wait for the current stream of the current device, which has to be x's.
    with scope(x.device):
        return dlpack.from_dlpack(x)


def _cupy() -> Any:
    return importlib.import_module("cupy")
