"""Forbid transfers from a device to the host except by ``to_device``.

array-api-strict allows float(), bool(), int(), print and DLPack on any device. On a GPU each of these waits for the device, or
fails, or is refused inside a compiled function. The methods of the class are replaced, so that all arrays are guarded; those on
the host device behave as before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["ImplicitTransferError", "install", "remove"]

# __repr__ stays allowed: debuggers and failed assertions use it, while programs print by __str__ and __format__.
WATCHED = (
    "__bool__",
    "__int__",
    "__float__",
    "__complex__",
    "__index__",
    "__str__",
    "__format__",
    "__dlpack__",
    "__array__",
    "__buffer__",
)

_original: dict[str, Callable[..., Any]] = {}


class ImplicitTransferError(TypeError):
    """An array on a device would have been transferred to the host implicitly."""


def install(xp: Any) -> None:
    """Guard the array class; repeated calls have no effect."""
    kind = xp._array_object.Array
    if _original:
        return
    for method in WATCHED:
        original = getattr(kind, method, None)
        if original is not None:
            _original[method] = original
            setattr(kind, method, _watched(method, original))


def remove(xp: Any) -> None:
    """Restore the methods of the array class."""
    kind = xp._array_object.Array
    while _original:
        method, original = _original.popitem()
        setattr(kind, method, original)


def _watched(method: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        if str(self.device._device) != "CPU_DEVICE":
            raise ImplicitTransferError(
                f"{method} of an array on {self.device}: it would wait for the device and copy numbers to the host; "
                "keep the array there, or copy it with to_device"
            )
        return original(self, *args, **kwargs)

    watched.__name__ = method
    return watched
