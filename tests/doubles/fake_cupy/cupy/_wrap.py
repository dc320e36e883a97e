"""NumPy's functions made CuPy's: operands are looked at, results become arrays of the current device."""

import functools

import numpy

from cupy import _traffic
from cupy._array import ndarray, of, on_current, operand
from cupy.cuda import runtime


def hosts(x):
    """The operands for NumPy, in whatever lists and tuples they are."""
    if isinstance(x, numpy.ndarray):
        raise TypeError(f"Unsupported type {type(x)}")
    if isinstance(x, ndarray):
        return operand(x)
    if isinstance(x, (list, tuple)):
        return type(x)(hosts(item) for item in x)
    return x


def has_arrays(x):
    """Whether there is an array in it."""
    return isinstance(x, ndarray) or (isinstance(x, (list, tuple)) and any(has_arrays(item) for item in x))


def results(x):
    """Arrays of the current device from what NumPy returned."""
    if isinstance(x, (numpy.ndarray, numpy.generic, bool)):
        return on_current(x)
    return tuple(results(item) for item in x) if isinstance(x, (list, tuple)) else x


def ufunc(of_numpy):
    """Elementwise functions and products: arrays and numbers only."""

    @functools.wraps(of_numpy)
    def call(*args, out=None, **kwargs):
        known = [operand(x) for x in args]
        with numpy.errstate(all="ignore"):  # a GPU warns of nothing
            if out is None:
                return results(of_numpy(*known, **kwargs))
            of_numpy(*known, out=operand(out), **kwargs)
        return out

    return call


def function(of_numpy):
    """Functions with axes, dtypes and the like among their arguments."""

    @functools.wraps(of_numpy)
    def call(*args, **kwargs):
        runtime.getDevice()
        with numpy.errstate(all="ignore"):
            return results(of_numpy(*hosts(args), **{name: hosts(value) for name, value in kwargs.items()}))

    return call


def waiting(of_numpy):
    """Functions that wait for a number, which is the result's shape."""
    inner = function(of_numpy)

    @functools.wraps(of_numpy)
    def call(*args, **kwargs):
        _traffic.log.append(("to host", 8))
        return inner(*args, **kwargs)

    return call


def view(of_numpy):
    """Functions whose result is a view, which may be made while another device is current; a copy may not."""

    @functools.wraps(of_numpy)
    def call(x, *args, **kwargs):
        if not isinstance(x, ndarray):
            raise TypeError(f"Unsupported type {type(x)}")
        others = [other._host if isinstance(other, ndarray) else other for other in args]
        sources = [x, *(other for other in args if isinstance(other, ndarray))]
        made = of_numpy(x._host, *others, **kwargs)
        if isinstance(made, numpy.ndarray):
            return as_view(made, x)
        kept = sources if len(sources) == len(made) else [x] * len(made)
        return tuple(as_view(host, source) for host, source in zip(made, kept, strict=True))

    def as_view(host, source):
        if host.size and not numpy.may_share_memory(host, source._host):
            operand(source)
            return on_current(host)
        return of(host, source._number)

    return call


def creation(of_numpy):
    """Functions that make an array on the current device, and know no other."""

    @functools.wraps(of_numpy)
    def call(*args, **kwargs):
        check_keywords(of_numpy, kwargs)
        return results(of_numpy(*hosts(args), **{name: hosts(value) for name, value in kwargs.items()}))

    return call


def like(of_numpy):
    """The same in the shape of an array, which may be on any device: it is not looked into."""

    @functools.wraps(of_numpy)
    def call(a, *args, **kwargs):
        check_keywords(of_numpy, kwargs)
        return on_current(of_numpy(a._host, *hosts(args), **kwargs))

    return call


def same(of_numpy):
    """Functions of shapes and dtypes."""
    return of_numpy


def check_keywords(of_numpy, kwargs):
    """NumPy's creation functions have a ``device=``; CuPy's have none."""
    if "device" in kwargs:
        raise TypeError(f"{of_numpy.__name__}() got an unexpected keyword argument 'device'")


def public(names, module, manner, into):
    """Define the named functions of a module of NumPy's in one of CuPy's; returns the names."""
    for name in names.split():
        into[name] = manner(getattr(module, name))
    return names.split()
