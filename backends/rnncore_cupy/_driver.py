"""Ask the CUDA driver through ctypes whether a device is usable, without an array library and without a CUDA context.

This has the two consequences of any first use of CUDA: CUDA_VISIBLE_DEVICES is read now and not again, and a process that is
forked afterwards cannot use CUDA (a spawned one can).
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

__all__ = ["cuda_fault"]

# The name under which the CUDA runtime, and so CuPy, loads the driver.
LIBRARY = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
SUCCESS = 0


def cuda_fault() -> str | None:
    """Return the loader's or the driver's reason why no device is usable, or None."""
    try:
        driver = _load(LIBRARY)
    except OSError as error:
        return f"its driver cannot be loaded: {error}"
    count = ctypes.c_int(0)
    try:
        for call, arguments in (("cuInit", (0,)), ("cuDeviceGetCount", (ctypes.byref(count),))):
            status = getattr(driver, call)(*arguments)
            if status != SUCCESS:
                return f"{call}: {_words(driver, status)}"
    except AttributeError as error:  # a library of that name without these functions
        return f"its driver is not a CUDA driver: {error}"
    return None if count.value > 0 else "its driver reports no device"


def _load(library: str) -> Any:
    loader = getattr(ctypes, "WinDLL", ctypes.CDLL)
    return loader(library)


def _words(driver: Any, status: int) -> str:
    """The driver's text for a status, such as "CUDA_ERROR_NO_DEVICE: no CUDA-capable device is detected"."""
    parts = []
    for call in ("cuGetErrorName", "cuGetErrorString"):
        text = ctypes.c_char_p()
        if getattr(driver, call)(status, ctypes.byref(text)) == SUCCESS and text.value:
            parts.append(text.value.decode(errors="replace"))
    return ": ".join(parts) or f"CUDA error {status}"
