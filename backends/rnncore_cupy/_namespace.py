"""array_api_compat.cupy with two corrections; importing this imports CuPy.

The creation functions there ignore ``device=`` and use the current device; here they enter the given one. The ``clip`` there
assigns through boolean masks, each of which transfers a count to the host at each step of a scan; here it compares on the
device.
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
    # Without device= the standard uses x's device, but CuPy the current one.
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
    """Convert to an array. Without `device`, an array stays on its device and other objects go to the current one."""
    if device is None and isinstance(obj, _cupy.ndarray):
        device = obj.device
    return _compat.asarray(obj, dtype=dtype, device=device, copy=copy)


def from_dlpack(x: Any, /, *, device: Any = None, copy: bool | None = None) -> Any:
    """An array that shares the memory of x, or a copy if `copy` or another device requires it."""
    return asarray(_cupy.from_dlpack(x), device=device, copy=copy)


def clip(x: Any, /, min: Any = None, max: Any = None) -> Any:
    """Limit x to the bounds, in its dtype; NaN stays."""
    if x.dtype.kind != "f":  # array-api-compat handles bounds that an integer dtype cannot hold
        return _compat.clip(x, min, max)
    clipped = x
    for bound, nearest in ((min, _cupy.maximum), (max, _cupy.minimum)):
        if bound is not None:
            own = bound.astype(x.dtype, copy=False) if isinstance(bound, _cupy.ndarray) else bound
            clipped = nearest(clipped, own)
    return x.copy() if clipped is x else clipped
