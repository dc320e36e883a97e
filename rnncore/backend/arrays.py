"""What every public function asks of its arguments: the checks of arrays, dtypes, devices and lengths, in one place.

Each raises an error that names the argument, what was expected and what was got. They read shapes, dtypes and devices,
never values, except ``check_finite``, which is asked for.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from rnncore.arguments import check_shape, describe
from rnncore.backend.contract import Backend, abilities_of
from rnncore.backend.registry import get_backend, owner_name
from rnncore.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    BackendUnavailableError,
    DeviceError,
    DTypeError,
    NonFiniteError,
    ShapeError,
)
from rnncore.typing import Array, Device, Namespace

__all__ = [
    "FLOATS",
    "check_array",
    "check_finite",
    "check_floating",
    "device_name",
    "device_scope",
    "dtype_name",
    "find_device",
    "find_dtype",
    "floating_dtypes",
    "host_lengths",
    "index_dtype",
]

_NO_SCOPE: AbstractContextManager[Any] = nullcontext()

FLOATS = ("float16", "bfloat16", "float32", "float64")


def dtype_name(dtype: Any) -> str:
    """The short name of any library's dtype: "float32" for ``numpy.float32``, ``torch.float32`` or "float32"."""
    if isinstance(dtype, str):
        return dtype
    try:
        return np.dtype(dtype).name if np.dtype(dtype).isnative else str(np.dtype(dtype))
    except (TypeError, ValueError):
        return str(dtype).rsplit(".", 1)[-1].rstrip("'>")


def find_dtype(dtype: Any, *, xp: Namespace, device: Device, argument: str = "dtype") -> Any:
    """The namespace's floating dtype of that name; None for the library's own default on the device."""
    if dtype is None:
        return xp.__array_namespace_info__().default_dtypes(device=device)["real floating"]
    have = floating_dtypes(xp=xp, device=device)
    name = dtype_name(dtype)
    if name not in have:
        where = "" if device is None else f" on device {str(device)!r}"
        raise DTypeError(f"{argument}: expected one of {', '.join(have)}{where}, got {dtype!r}")
    return have[name]


def floating_dtypes(*, xp: Namespace, device: Device) -> dict[str, Any]:
    """The floating dtypes that the device computes with, by name.

    The standard's own question tells of float32 and float64: a device may lack the latter, or a setting hide it. Half
    precision is outside the standard, so there the name alone has to do.
    """
    standard = xp.__array_namespace_info__().dtypes(device=device, kind="real floating")
    halves = {n: getattr(xp, n) for n in FLOATS[:2] if hasattr(xp, n)}
    # The namespace's own attribute, not the info's entry: libraries have several objects for one dtype.
    return halves | {n: getattr(xp, n) for n in FLOATS[2:] if n in standard}


def index_dtype(*, xp: Namespace, device: Device) -> Any:
    """The dtype of the device's indices: a library may have no int64, or have it switched off."""
    return xp.__array_namespace_info__().default_dtypes(device=device)["indexing"]


def find_device(device: Any, *, backend: Backend) -> Device:
    """The backend's device of that name; None for its default one."""
    usable = list(backend.devices())
    if not usable:
        raise BackendUnavailableError(f"backend {backend.name!r}: it has no usable device")
    if device is None:
        return usable[0]
    names = [device_name(backend, candidate) for candidate in usable]
    for candidate, name in zip(usable, names, strict=True):
        if candidate is device or str(device) in (name, str(candidate)):
            return candidate
    for candidate, name in zip(usable, names, strict=True):
        if name.split(":")[0] == str(device):
            return candidate
    raise DeviceError(f"device: expected one of {', '.join(names)} of backend {backend.name!r}, got {str(device)!r}")


def device_name(backend: Backend, device: Device) -> str:
    """What users call a device."""
    return str(abilities_of(backend).device_name(device))


def device_scope(backend: Backend, device: Device) -> AbstractContextManager[Any]:
    """What everything asked of the device is asked in: the backend's own context, where it needs one."""
    enter = abilities_of(backend).scope
    # Inside a compiled function an array may have no device, and there is nothing to enter.
    return _NO_SCOPE if enter is None or device is None else enter(device)


def check_array(
    argument: str,
    x: Any,
    *,
    backend: Backend,
    dtype: Any,
    device: Device,
    shape: Sequence[int | None] | None = None,
) -> None:
    """x must be an array of the backend with this dtype, on this device, of this shape (None: any size)."""
    if not backend.is_native(x):
        other = owner_name(x)
        text = f"{describe(x)} (backend {other!r})" if other is not None and other != backend.name else describe(x)
        raise ArgumentTypeError(
            f"{argument}: expected an array of backend {backend.name!r} ({backend.native_package}), got {text}; "
            f"convert with rnncore.get_backend({backend.name!r}).asarray(x, dtype=..., device=...)"
        )
    if x.dtype != dtype:
        raise DTypeError(
            f"{argument}: expected dtype {dtype_name(dtype)}, the model's, got {dtype_name(x.dtype)}; "
            "convert the array, or the model with .to(dtype=...)"
        )
    if shape is not None:
        check_shape(argument, x, shape)
    where = device_of(x)
    if where is not None and device is not None and where != device and str(where) != str(device):
        want, got = device_name(backend, device), device_name(backend, where)
        raise DeviceError(f"{argument}: expected an array on device {want!r}, the model's, got {got!r}")


def check_floating(argument: str, x: Array) -> None:
    """x must have a real floating dtype."""
    if dtype_name(x.dtype) not in FLOATS:
        raise DTypeError(f"{argument}: expected a dtype among {', '.join(FLOATS)}, got {dtype_name(x.dtype)}")


def device_of(x: Array) -> Device:
    """The array's device, or None where it has none to tell (inside a compiled function)."""
    return getattr(x, "device", None)


def host_lengths(lengths: Any, *, batch: int, steps: int) -> tuple[int, ...] | None:
    """`lengths` as Python ints, each checked to be a whole number in [0, steps]; None if there are none.

    `lengths` is a sequence of int or an integer array of any registered backend, one entry per sequence.
    """
    if lengths is None:
        return None
    values = _host_list(lengths)
    if len(values) != batch:
        raise ShapeError(f"lengths: expected {batch} entries, one per sequence, got {len(values)}")
    out = []
    for k, value in enumerate(values):
        if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__index__"):
            raise ArgumentTypeError(f"lengths[{k}]: expected an int in [0, {steps}], got {value!r}")
        n = operator.index(value)
        if not 0 <= n <= steps:
            raise ArgumentValueError(f"lengths[{k}]: expected an int in [0, {steps}], got {n}")
        out.append(n)
    return tuple(out)


def _host_list(lengths: Any) -> list[Any]:
    if hasattr(lengths, "__index__") and not hasattr(lengths, "shape"):
        return [lengths]
    if hasattr(lengths, "shape") and hasattr(lengths, "dtype"):
        name = owner_name(lengths)
        if name is not None:
            lengths = get_backend(name).to_numpy(lengths)
        host = np.asarray(lengths)
        if host.ndim > 1:
            raise ShapeError(f"lengths: expected one axis, got shape {host.shape}")
        if host.dtype.kind not in "iu":
            raise ArgumentTypeError(f"lengths: expected integers, got dtype {host.dtype}")
        return [int(n) for n in host.reshape(-1)]
    if isinstance(lengths, (str, bytes, Mapping, Set)) or not isinstance(lengths, Iterable):
        raise ArgumentTypeError(f"lengths: expected a sequence of int, got {describe(lengths)}")
    return list(lengths)


def check_finite(argument: str, x: Array, *, xp: Namespace, backend: Backend) -> None:
    """Refuse NaN and infinity, naming the first one's index."""
    # To the host by the backend's own way: a library may refuse to make a truth value of an array on a device.
    if bool(backend.to_numpy(xp.all(xp.isfinite(x)))):
        return
    host = backend.to_numpy(x)
    where = tuple(int(i) for i in np.argwhere(~np.isfinite(host))[0])
    raise NonFiniteError(f"{argument}{list(where)}: expected a finite number, got {host[where]}")
