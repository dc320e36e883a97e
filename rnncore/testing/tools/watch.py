"""Watch a backend: count transfers between host and device, and detect arrays that share memory.

Methods of the array class and functions of the library are replaced while a check watches. This happens for one check at a
time in a process, and only calls from the checking thread are counted.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

import numpy as np

from rnncore.backend.contract import Backend
from rnncore.typing import Array

__all__ = ["Watched", "can_be_patched", "noted", "overlaps", "patched", "tells_where"]

# Methods in any library that transfer an array's numbers to the host, or wait for them, without the backend's functions.
SILENT = (
    "__bool__",
    "__int__",
    "__float__",
    "__complex__",
    "__index__",
    "__array__",
    "__dlpack__",
    "__buffer__",
    "__getitem__",
    "item",
    "tolist",
    "numpy",
    "cpu",
    "get",
    "nonzero",
    "to",
    "to_device",
)
WAITS = ("block_until_ready",)
# kDLCPU and kDLCUDAHost in the DLPack standard.
HOST_DEVICES = (1, 3)
# Functions of libraries that do the same, in the library's top module and in the module of its array class.
FUNCTIONS = ("allclose", "array_equal", "async_eval", "block_until_ready", "device_get", "equal", "eval", "synchronize")

Wrap = Callable[[str, Callable[..., Any]], Callable[..., Any]]

_patching = threading.RLock()


def _renew() -> None:
    """Free a forked child, which has no other thread, of the lock. What another one had replaced calls the original."""
    global _patching
    _patching = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


@contextmanager
def patched(target: Any, names: Iterable[str], wrap: Wrap) -> Iterator[list[str]]:
    """Temporarily replace attributes of a class, module or object; yield the names of those that could be replaced."""
    with _patching:
        own = dict(getattr(target, "__dict__", {}))
        replaced: list[str] = []
        try:
            for name in names:
                original = getattr(target, name, None)
                if not callable(original):
                    continue
                try:
                    setattr(target, name, wrap(name, original))
                except (AttributeError, TypeError):  # a class written in C, or an object that cannot be changed
                    break
                replaced.append(name)
            yield replaced
        finally:
            for name in replaced:
                if name in own:
                    setattr(target, name, own[name])
                else:  # inherited, or a method of the object's class
                    delattr(target, name)


def noted(calls: list[str]) -> Wrap:
    """A wrapper that appends a function's name to `calls` at each call."""

    def wrap(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return function(*args, **kwargs)

        return call

    return wrap


def can_be_patched(target: Any, name: str) -> bool:
    """Whether an attribute can be replaced, so that a check can watch it."""
    with patched(target, (name,), lambda _, original: original) as replaced:
        return bool(replaced)


class Watched:
    """A backend that forwards and counts every call; as a context it also watches the arrays and their library.

    Attributes
    ----------
    given : int
        Arrays sent to the device by ``asarray``.
    taken : list of str
        The transfers to the host: "to_numpy", or the name of the method or function.
    waits : int
        Calls of ``synchronize`` and of the array's own waiting methods.

    For an array class that cannot be changed (NumPy's) only the contract's functions are watched: its arrays are on the host.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._stack = ExitStack()
        self._thread = threading.get_ident()
        self._inside = 0
        self.clear()

    def clear(self) -> None:
        """Reset the counts to 0."""
        self.given, self.waits = 0, 0
        self.taken: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def asarray(self, x: Any, /, *, dtype: Any, device: Any) -> Array:
        """Counted."""
        self.given += 1
        return self._quietly(lambda: self._backend.asarray(x, dtype=dtype, device=device))

    def to_numpy(self, x: Array, /) -> np.ndarray[Any, Any]:
        """Counted."""
        self.taken.append("to_numpy")
        found: np.ndarray[Any, Any] = self._quietly(lambda: self._backend.to_numpy(x))
        return found

    def synchronize(self, device: Any, /) -> None:
        """Counted."""
        self.waits += 1
        self._quietly(lambda: self._backend.synchronize(device))

    def __enter__(self) -> Watched:
        backend, self._thread = self._backend, threading.get_ident()
        device = backend.devices()[0]
        kind = type(backend.asarray(np.zeros(1, dtype="f4"), dtype=backend.namespace().float32, device=device))
        with ExitStack() as stack:
            if stack.enter_context(patched(kind, (*SILENT, *WAITS), self._counted)):
                for module in {kind.__module__.partition(".")[0], kind.__module__, backend.native_package}:
                    if module in sys.modules:
                        stack.enter_context(patched(sys.modules[module], FUNCTIONS, self._counted))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _counted(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if not self._inside and threading.get_ident() == self._thread:
                if name in WAITS or name in ("synchronize", "eval", "async_eval"):
                    self.waits += 1
                elif _reaches_the_host(name, args[0] if args else None, args[1:], kwargs):
                    self.taken.append(name)
            return original(*args, **kwargs)

        return counted

    def _quietly(self, ask: Callable[[], Any]) -> Any:
        """Call `ask` without counting the transfers inside it."""
        self._inside += 1
        try:
            return ask()
        finally:
            self._inside -= 1


def overlaps(backend: Backend, a: Array, b: Array) -> bool:
    """Whether two arrays share memory, as far as the library exposes addresses."""
    if a is b:
        return True
    span_a, span_b = _span(a), _span(b)
    if span_a is not None and span_b is not None:
        return span_a[0] == span_b[0] and span_a[1] < span_b[2] and span_b[1] < span_a[2]
    return np.shares_memory(backend.to_numpy(a), backend.to_numpy(b))


def tells_where(backend: Backend, x: Array) -> bool:
    """Whether the address of an array is visible, by its interface or because its host numbers are a view of it."""
    return _span(x) is not None or np.shares_memory(backend.to_numpy(x), backend.to_numpy(x))


def _reaches_the_host(name: str, array: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    given = [*args, *kwargs.values()]
    if name == "__dlpack__":  # also used to pass arrays to another library on the same device
        where = kwargs.get("dl_device") or array.__dlpack_device__()
        return int(where[0]) in HOST_DEVICES
    if name == "to":  # also changes dtypes
        return any(isinstance(a, str) or type(a).__name__ == "device" for a in given)
    if name == "__getitem__":  # a mask transfers the number of selected elements
        return any(
            str(getattr(k, "dtype", "")).endswith("bool") for a in given for k in (a if isinstance(a, tuple) else (a,))
        )
    return True


def _span(x: Array) -> tuple[str, int, int] | None:
    """(device, first byte, byte past the last) of a device array that exposes its address, else None."""
    described = getattr(x, "__cuda_array_interface__", None)
    if not isinstance(described, dict):
        return None
    start, shape = described["data"][0], described["shape"]
    item = np.dtype(described["typestr"]).itemsize
    strides = described.get("strides") or tuple(item * int(np.prod(shape[k + 1 :])) for k in range(len(shape)))
    if 0 in shape:
        return None
    reach = sum((n - 1) * abs(step) for n, step in zip(shape, strides, strict=True))
    return str(getattr(x, "device", "")), start, start + reach + item
