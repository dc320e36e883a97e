"""The array: NumPy's memory and the number of a device, behind CuPy's manners."""

from typing import NamedTuple

import numpy

from cupy import _traffic
from cupy.cuda import runtime
from cupy.cuda.device import Device
from cupy.cuda.stream import stream_for

__all__ = ["check_operand", "current", "ndarray", "of", "on_current", "operand"]

REFUSAL = (
    "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array explicitly."
)
KDL_CPU, KDL_CUDA = 1, 2
SCALARS = (bool, int, float, complex, numpy.generic)


class Flags(NamedTuple):
    """What CuPy tells of an array's memory: not whether it can be written to, which it always can."""

    c_contiguous: bool
    f_contiguous: bool
    owndata: bool


class ndarray:
    """An array on a device."""

    __slots__ = ("_host", "_number")
    __module__ = "cupy"
    __array_priority__ = 100
    __hash__ = None

    def __init__(self, shape, dtype=float):
        self._host = numpy.empty(shape, dtype)
        self._number = runtime.getDevice()

    # --- what it is --------------------------------------------------------------------------------------------------

    @property
    def device(self):
        """Where it is."""
        return Device(self._number)

    dtype = property(lambda self: self._host.dtype)
    shape = property(lambda self: self._host.shape)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    strides = property(lambda self: self._host.strides)
    flags = property(
        lambda self: Flags(self._host.flags.c_contiguous, self._host.flags.f_contiguous, self._host.base is None)
    )
    T = property(lambda self: of(self._host.T, self._number))
    real = property(lambda self: of(self._host.real, self._number))
    imag = property(lambda self: of(self._host.imag, self._number))

    @property
    def mT(self):
        """The transpose of the last two axes."""
        if self.ndim < 2:
            raise ValueError("matrix transpose with ndim < 2 is undefined")
        return self.swapaxes(-1, -2)

    # --- to the host -------------------------------------------------------------------------------------------------

    def get(self, stream=None, order="C", out=None, blocking=True):
        """A copy on the host. As in CuPy it is the current device's stream that is used, not that of x's device."""
        stream_for(self._number, stream)
        _traffic.log.append(("to host", self.nbytes))
        return self._host.copy(order)

    def item(self):
        """The number in it."""
        if self.size != 1:
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        return self.get().item()

    def tolist(self):
        """Its numbers."""
        return self.get().tolist()

    def tobytes(self, order="C"):
        """Its bytes."""
        return self.get().tobytes(order)

    def __bool__(self):
        if self.size != 1:
            raise ValueError(
                "The truth value of an array with more than one element is ambiguous. Use a.any() or a.all()"
            )
        return bool(self.get())

    def __int__(self):
        return int(self.get())

    def __float__(self):
        return float(self.get())

    def __complex__(self):
        return complex(self.get())

    def __repr__(self):
        return repr(self.get())

    def __str__(self):
        return str(self.get())

    def __format__(self, spec):
        return format(self.get(), spec)

    def __array__(self, dtype=None, copy=None):
        raise TypeError(REFUSAL)

    def __reduce__(self):
        from cupy import array

        return array, (self.get(),)

    # --- to other libraries ------------------------------------------------------------------------------------------

    @property
    def __cuda_array_interface__(self):
        host = self._host
        return {
            "shape": host.shape,
            "typestr": host.dtype.str,
            "descr": host.dtype.descr,
            "stream": stream_for(self._number).ptr or runtime.streamLegacy,
            "version": 3,
            "strides": None if host.flags.c_contiguous else host.strides,
            "data": (host.ctypes.data if host.size else 0, False),
        }

    def __dlpack_device__(self):
        return KDL_CUDA, self._number

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        if copy is True:
            raise BufferError("copy=True only supported for copy to CPU.")
        if dl_device not in (None, self.__dlpack_device__()):
            raise BufferError("unsupported device requested.")
        producer = stream_for(self._number)
        consumer = runtime.streamLegacy if stream is None else stream
        if consumer < -1:
            raise ValueError(
                f"On CUDA, the valid stream for the DLPack protocol is -1, 1, 2, or any larger value, {stream}"
            )
        waits = consumer >= 0 and consumer != (producer.ptr or runtime.streamLegacy)
        return Capsule(self, producer if waits else None)

    # --- copies ------------------------------------------------------------------------------------------------------

    def copy(self, order="C"):
        """A copy on the current device, wherever the array is."""
        return on_current(self._host.copy(order))

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        """A copy in the dtype on the current device; itself if it may and need not be copied."""
        if not copy and numpy.dtype(dtype) == self.dtype:
            return self
        return on_current(_quietly(operand(self).astype, dtype, order=order))

    def fill(self, value):
        """One number everywhere."""
        if isinstance(value, numpy.ndarray) and value.shape != ():
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        _quietly(operand(self).fill, operand(value) if isinstance(value, ndarray) else value)

    def set(self, arr, stream=None):
        """Numbers from the host."""
        if not isinstance(arr, numpy.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if (self.dtype, self.shape) != (arr.dtype, arr.shape):
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        _traffic.log.append(("to device", arr.nbytes))
        self._host[...] = arr

    __copy__ = copy

    def __deepcopy__(self, memo):
        with self.device:
            return self.copy()

    # --- indices -----------------------------------------------------------------------------------------------------

    def __len__(self):
        if not self.ndim:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    def __iter__(self):
        if not self.ndim:
            raise TypeError("iteration over a 0-d array")
        return (self[k] for k in range(len(self)))

    def __getitem__(self, index):
        basic, index = _index(self, index)
        if basic:
            index = (
                index if any(item is Ellipsis for item in index) else (*index, ...)
            )  # a view without axes, no scalar
            return of(self._host[index], self._number)
        return on_current(operand(self)[index])

    def __setitem__(self, index, value):
        if isinstance(value, numpy.ndarray) and value.shape != ():
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        index = _index(self, index)[1]
        _quietly(operand(self).__setitem__, index, operand(value) if isinstance(value, ndarray) else value)

    # --- arithmetic by way of NumPy's functions ----------------------------------------------------------------------

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        import cupy

        function = getattr(cupy, ufunc.__name__, None)
        if method != "__call__" or function is None:
            return NotImplemented
        if "out" in kwargs:
            (kwargs["out"],) = kwargs["out"]
        return function(*inputs, **kwargs)

    def __array_function__(self, func, types, args, kwargs):
        import cupy

        function = getattr(cupy, func.__name__, None)
        if function is None or not all(issubclass(t, (ndarray, numpy.ndarray)) for t in types):
            return NotImplemented
        return function(*args, **kwargs)


class Capsule:
    """What DLPack hands over, and the stream that the consumer's has been made to wait for."""

    def __init__(self, array, waits_for):
        self.array, self.waits_for = array, waits_for


# --- the inside ---------------------------------------------------------------------------------------------------------


def of(host, number):
    """An array on a device from NumPy's."""
    made = object.__new__(ndarray)
    made._host, made._number = host, number
    return made


def on_current(host):
    """An array on the current device; NumPy's scalars become arrays without axes, as CuPy has no others."""
    return of(numpy.asarray(host), current())


def current():
    """The number of the current device."""
    return runtime.getDevice()


def operand(x):
    """NumPy's array behind an operand, which has to be on the current device; numbers as they are."""
    check_operand(x)
    return x._host if isinstance(x, ndarray) else x


def check_operand(x):
    """CuPy's own errors for arrays of the host and for arrays of another device without peer access."""
    if isinstance(x, ndarray):
        if x._number != current():
            raise ValueError(
                f"The device where the array resides ({x._number}) is different from the current device ({current()}). "
                "Peer access is unavailable between these devices."
            )
        stream_for(x._number)
    elif not isinstance(x, SCALARS):
        raise TypeError(f"Unsupported type {type(x)}")


def _quietly(function, *args, **kwargs):
    with numpy.errstate(all="ignore"):  # a GPU warns of nothing
        return function(*args, **kwargs)


def _index(x, index):
    """Whether the index makes a view, and the index for NumPy: arrays wrap around where they are out of bounds."""
    items = list(index) if isinstance(index, tuple) else [index]
    for k, item in enumerate(items):
        if isinstance(item, (list, tuple, numpy.ndarray, bool, numpy.bool_)):
            _traffic.log.append(("to device", numpy.asarray(item).nbytes))
            host = numpy.asarray(item)
            items[k] = on_current(
                host.astype(numpy.int32) if not host.size and isinstance(item, (list, tuple)) else host
            )
        elif not (item is None or item is Ellipsis or isinstance(item, (slice, int, numpy.integer, ndarray))):
            raise IndexError(
                "only integers, slices (`:`), ellipsis (`...`), numpy.newaxis (`None`) and arrays are valid"
            )
    spans = [_span(item) for item in items]
    basic = not any(isinstance(item, ndarray) for item in items)
    axis, found = 0, []
    for item, span in zip(items, spans, strict=True):
        if isinstance(item, ndarray):
            host = operand(item)
            if host.dtype.kind not in "biu":
                raise IndexError(
                    f"arrays used as indices must be of integer or boolean type. (actual: {host.dtype.type})"
                )
            if host.dtype.kind == "b":
                _traffic.log.append(("to host", 8))  # how many there are decides on the shape
            found.append(host if host.dtype.kind == "b" else host % max(x.shape[axis], 1))
        else:
            found.append(item)
        axis += x.ndim - sum(spans) if item is Ellipsis else span
    return basic, tuple(found)


def _span(item):
    if item is None or item is Ellipsis:
        return 0
    return item.ndim if isinstance(item, ndarray) and item.dtype.kind == "b" else 1
