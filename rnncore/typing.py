"""Type aliases: Array, Namespace, Device, Host, KernelMode.

Arrays are Any, because the Array API standard has no static types yet (data-apis/array-api#267).
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np

__all__ = ["Array", "Device", "Host", "KernelMode", "Namespace"]

Array: TypeAlias = Any
Namespace: TypeAlias = Any
Device: TypeAlias = Any
Host: TypeAlias = np.ndarray[Any, Any]
KernelMode: TypeAlias = Literal["auto", "reference", "require"]
