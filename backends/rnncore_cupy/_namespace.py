"""array_api_compat.cupy with two gaps closed; importing this imports CuPy.

Its creation functions take ``device=`` and pass it by, so that the array lands on the current device: these enter it. Its
``clip`` assigns through boolean masks, each of which brings a count to the host, once for each step of a scan: this one
compares on the device.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

from array_api_compat.cupy import *  # noqa: F403

from rnncore_cupy import scope

_compat: Any = importlib.import_module("array_api_compat.cupy")
_cupy: Any = importlib.import_module("cupy")

_Create = Callable[..., Any]


def _on(device: Any) -> AbstractContextManager[Any]:
    return nullcontext() if device is None else scope(device)


def _obeying(create: _Create) -> _Create:
    @wraps(create)
    def created(*args: Any, device: Any = None, **kwargs: Any) -> Any:
        with _on(device):
            return create(*args, **kwargs)

    return created


def _obeying_like(create: _Create) -> _Create:
    # Without a device= the standard's answer is x's device, CuPy's the current one.
    @wraps(create)
    def created(x: Any, /, *args: Any, device: Any = None, **kwargs: Any) -> Any:
        with _on(x.device if device is None else device):
            return create(x, *args, **kwargs)

    return created


arange = _obeying(_compat.arange)
empty = _obeying(_compat.empty)
eye = _obeying(_compat.eye)
full = _obeying(_compat.full)
linspace = _obeying(_compat.linspace)
ones = _obeying(_compat.ones)
zeros = _obeying(_compat.zeros)
empty_like = _obeying_like(_compat.empty_like)
full_like = _obeying_like(_compat.full_like)
ones_like = _obeying_like(_compat.ones_like)
zeros_like = _obeying_like(_compat.zeros_like)


def asarray(obj: Any, /, *, dtype: Any = None, device: Any = None, copy: bool | None = None) -> Any:
    """An array stays on its device, anything else goes to the current one, if no device is given."""
    if device is None and isinstance(obj, _cupy.ndarray):
        device = obj.device
    return _compat.asarray(obj, dtype=dtype, device=device, copy=copy)


def from_dlpack(x: Any, /, *, device: Any = None, copy: bool | None = None) -> Any:
    """An array on the memory of x; a copy where it is asked for, or where another device is."""
    return asarray(_cupy.from_dlpack(x), device=device, copy=copy)


def clip(x: Any, /, min: Any = None, max: Any = None) -> Any:
    """x within the bounds, in its dtype; NaN stays."""
    if x.dtype.kind != "f":  # bounds that an integer dtype cannot hold need array-api-compat's care
        return _compat.clip(x, min, max)
    clipped = x
    for bound, nearest in ((min, _cupy.maximum), (max, _cupy.minimum)):
        if bound is not None:
            own = bound.astype(x.dtype, copy=False) if isinstance(bound, _cupy.ndarray) else bound
            clipped = nearest(clipped, own)
    return x.copy() if clipped is x else clipped
