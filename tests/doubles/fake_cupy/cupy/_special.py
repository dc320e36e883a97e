"""Functions whose manners differ from NumPy's by more than what an operand may be."""

import os

import numpy

from cupy import _traffic
from cupy._array import KDL_CUDA, current, ndarray, of, on_current, operand
from cupy._wrap import has_arrays, hosts
from cupy.cuda import runtime
from cupy.cuda.stream import get_current_stream

__all__ = ["array", "asarray", "ascontiguousarray", "copy", "from_dlpack", "result_type", "take", "take_along_axis"]

KDL_CUDA_MANAGED = 13


def array(obj, dtype=None, copy=True, order="K", subok=False, ndmin=0, *, blocking=False):
    """An array on the current device."""
    if isinstance(obj, ndarray):
        if obj._number != current():
            return obj.copy().astype(dtype or obj.dtype, copy=False)
        if dtype is None or numpy.dtype(dtype) == obj.dtype:
            return obj.copy() if copy else obj
        if copy is False:
            raise ValueError("Unable to avoid copy while creating an array as requested.")
        return obj.astype(dtype)
    if isinstance(obj, (list, tuple)) and has_arrays(obj):
        return on_current(numpy.array(hosts(obj), dtype=dtype, ndmin=ndmin))
    shared = os.environ.get("CUPY_ENABLE_UMP") == "1"  # then CuPy works on the host's memory, even if told to copy
    host = numpy.asarray(obj, dtype) if shared else numpy.array(obj, dtype, ndmin=ndmin)
    if host.dtype.kind not in "biufc" and host.dtype.name != "bfloat16":  # of ml_dtypes' CuPy 14 has this one
        raise ValueError(f"Unsupported dtype {host.dtype}")
    _traffic.log.append(("to device", host.nbytes))
    return on_current(host)


def asarray(a, dtype=None, order=None, *, blocking=False):
    """An array on the current device, without a copy if it is one."""
    return array(a, dtype=dtype, copy=None)


def ascontiguousarray(a, dtype=None):
    """As asarray, in C's order."""
    return on_current(numpy.ascontiguousarray(operand(asarray(a, dtype))))


def copy(a, order="K"):
    """A copy on the current device."""
    return a.copy()


def take(a, indices, axis=None, out=None):
    """Elements by index; beyond the end it begins again, as on CuPy."""
    indices = indices if isinstance(indices, (ndarray, int, numpy.integer)) else array(indices)
    return on_current(numpy.take(operand(a), operand(indices), axis=axis, mode="wrap"))


def take_along_axis(a, indices, axis):
    """The same along one axis."""
    host = operand(a)
    return on_current(numpy.take_along_axis(host, operand(indices) % max(host.shape[axis], 1), axis))


def result_type(*arrays_and_dtypes):
    """The dtype of arithmetic, found on the host."""
    return numpy.result_type(*(x._host if isinstance(x, ndarray) else x for x in arrays_and_dtypes))


def from_dlpack(array, *, device=None, copy=None):
    """An array on another's memory, whose library is told this one's current stream on the array's device."""
    kind, number = array.__dlpack_device__()
    if device is not None:
        raise NotImplementedError("from_dlpack() does not support device yet.")
    if kind not in (KDL_CUDA, KDL_CUDA_MANAGED):
        raise TypeError(
            "CPU arrays cannot be directly imported to CuPy. Use `cupy.array(numpy.from_dlpack(input))` instead."
        )
    before = runtime.getDevice()
    try:
        runtime.setDevice(number)
        stream = get_current_stream()
        capsule = array.__dlpack__(stream=stream.ptr or runtime.streamLegacy, max_version=(1, 0), copy=copy)
        if capsule.waits_for is not None:
            stream.wait_event(capsule.waits_for.record())
    finally:
        runtime.setDevice(before)
    return of(capsule.array._host, number)
