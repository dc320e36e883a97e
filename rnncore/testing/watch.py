"""Who looks at what a backend does: a stand-in that counts what crosses between host and device, and whose memory overlaps."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np

from rnncore.backend import Array, Backend

__all__ = ["Watched", "overlaps"]

# Ways by which an array's numbers reach the host without the backend being asked, in any library.
SILENT = (
    "__bool__",
    "__int__",
    "__float__",
    "__complex__",
    "__index__",
    "__array__",
    "item",
    "tolist",
    "numpy",
    "cpu",
    "get",
)
WAITS = ("block_until_ready",)


class Watched:
    """A backend that passes everything on, and counts; as a context it also watches the class of the arrays.

    Attributes
    ----------
    given : int
        Arrays sent to the device by ``asarray``.
    taken : list of str
        What brought numbers to the host: "to_numpy", or the method of the array that did.
    waits : int
        Calls of ``synchronize`` and of the array's own waiting methods.

    A class that cannot be changed (NumPy's) is watched by the contract's functions only: its arrays are the host's.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._own: dict[str, Any] = {}
        self._replaced: list[str] = []
        self._kind: type | None = None
        self.clear()

    def clear(self) -> None:
        """Count from 0."""
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
        self._backend.synchronize(device)

    def __enter__(self) -> Watched:
        backend = self._backend
        device = backend.devices()[0]
        kind = type(backend.asarray(np.zeros(1, dtype="f4"), dtype=backend.namespace().float32, device=device))
        self._kind, self._own = kind, dict(vars(kind))
        for name in (*SILENT, *WAITS):
            original = getattr(kind, name, None)
            if not callable(original):
                continue
            try:
                setattr(kind, name, self._counted(name, original))
            except TypeError:  # a class written in C
                break
            self._replaced.append(name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._replaced:
            name = self._replaced.pop()
            if name in self._own:
                setattr(self._kind, name, self._own[name])
            else:  # it was inherited
                delattr(self._kind, name)

    def _counted(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if name in WAITS:
                self.waits += 1
            else:
                self.taken.append(name)
            return original(*args, **kwargs)

        return counted

    def _quietly(self, ask: Callable[[], Any]) -> Any:
        """What the contract's own functions do inside is theirs."""
        taken, waits = list(self.taken), self.waits
        found = ask()
        self.taken, self.waits = taken, waits
        return found


def overlaps(backend: Backend, a: Array, b: Array) -> bool:
    """Whether two arrays share memory, as far as the library lets anyone see where an array lies."""
    span_a, span_b = _span(a), _span(b)
    if span_a is not None and span_b is not None:
        return span_a[0] == span_b[0] and span_a[1] < span_b[2] and span_b[1] < span_a[2]
    return np.shares_memory(backend.to_numpy(a), backend.to_numpy(b))


def _span(x: Array) -> tuple[str, int, int] | None:
    """(device, first byte, byte past the last) of a device array that tells; None otherwise."""
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
