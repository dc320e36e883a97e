"""Checks of arrays, dtypes, devices and lengths, shared by all public functions.

Each raises an error of the form "name: expected ..., got ...". They read shapes, dtypes and devices, never values, except
``check_finite``, which is optional.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import AbstractContextManager, nullcontext, suppress
from itertools import islice
from typing import Any

import numpy as np

from rnncore.arguments import brief, check_bytes, check_shape, closest, describe, integer, printed, shown
from rnncore.backend.abilities import ability
from rnncore.backend.contract import Backend
from rnncore.backend.registry import get_backend, owner_name
from rnncore.errors import (
    ArgumentTypeError,
    BackendUnavailableError,
    DeviceError,
    DTypeError,
    NonFiniteError,
    RnncoreError,
    ShapeError,
)
from rnncore.typing import Array, Device, Namespace

_NO_SCOPE: AbstractContextManager[Any] = nullcontext()
_MASKED = "its masked entries have no numbers: give them some with"

FLOATS = ("float16", "bfloat16", "float32", "float64")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


def dtype_name(dtype: Any) -> str:
    """Short name of any library's dtype, or of what it prints: "float32" for ``torch.float32`` or "dtype('float32')"."""
    if isinstance(dtype, str):
        words = re.findall(r"\w+", dtype)
        return words[-1] if words and words[-1] in (*FLOATS, *INTEGERS) else dtype
    try:
        return np.dtype(dtype).name if np.dtype(dtype).isnative else str(np.dtype(dtype))
    except Exception:  # no dtype of NumPy's: NumPy asks the value itself, which may raise anything
        return printed(dtype).rsplit(".", 1)[-1].rstrip("'>")


def find_dtype(dtype: Any, *, xp: Namespace, device: Device, argument: str = "dtype") -> Any:
    """Return the namespace's floating dtype of that name, or the library's default on the device for None."""
    if dtype is None:
        return xp.__array_namespace_info__().default_dtypes(device=device)["real floating"]
    have = floating_dtypes(xp=xp, device=device)
    name = dtype_name(dtype)
    if name not in have:
        where = "" if device is None else f" on device {str(device)!r}"
        raise DTypeError(f"{argument}: expected one of {', '.join(have)}{where}, got {shown(dtype)}")
    return have[name]


def floating_dtypes(*, xp: Namespace, device: Device) -> dict[str, Any]:
    """Return the floating dtypes that the device supports, by name.

    The standard's inspection API covers float32 and float64: a device may lack the latter, or a setting hide it. Half
    precision is outside the standard, so there the name in the namespace is enough.
    """
    standard = xp.__array_namespace_info__().dtypes(device=device, kind="real floating")
    halves = {n: getattr(xp, n) for n in FLOATS[:2] if hasattr(xp, n)}
    # The namespace's attribute, not the info's entry, as libraries have several objects for one dtype.
    return halves | {n: getattr(xp, n) for n in FLOATS[2:] if n in standard}


def index_dtype(*, xp: Namespace, device: Device) -> Any:
    """Return the device's dtype for indices; a library may lack int64 or have it disabled."""
    return xp.__array_namespace_info__().default_dtypes(device=device)["indexing"]


def find_device(device: Any, *, backend: Backend) -> Device:
    """Return the backend's device of that name, or its default one for None."""
    usable = list(backend.devices())
    if not usable:
        raise BackendUnavailableError(f"backend {backend.name!r}: it has no usable device")
    if device is None:
        return usable[0]
    wanted, named = printed(device), [(device_name(backend, candidate), candidate) for candidate in usable]
    found = [d for name, d in named if d is device or wanted in (name, str(d), repr(d))]
    # "cuda" is the first of its kind, and "cpu:0" the one that a library calls "cpu".
    found += [d for name, d in named if wanted in (name.split(":")[0], f"{name}:0")]
    if not found:
        names = [name for name, _ in named]
        hint = closest(wanted, names)
        raise DeviceError(
            f"device: expected one of {', '.join(names)} of backend {backend.name!r}, got {shown(wanted)}{hint}"
        )
    return found[0]


def device_name(backend: Backend, device: Device) -> str:
    """Name of a device, for users."""
    return str(ability(backend, "device_name")(device))


def device_scope(backend: Backend, device: Device) -> AbstractContextManager[Any]:
    """Return the context in which a device is used, if the backend needs one."""
    enter = ability(backend, "scope")
    # Inside a compiled function an array may have no device, and then there is nothing to enter.
    return _NO_SCOPE if enter is None or device is None else enter(device)


def check_array(
    argument: str,
    x: Any,
    *,
    backend: Backend,
    dtype: Any,
    device: Device,
    shape: Sequence[int | None] | None = None,
) -> Array:
    """Require an array of the backend with this dtype, device and shape; None in a shape stands for any size.

    Returns the array, as :func:`plain` makes it.
    """
    if not backend.is_native(x):
        other = owner_name(x)
        text = f"{describe(x)} (backend {other!r})" if other is not None and other != backend.name else describe(x)
        raise ArgumentTypeError(
            f"{argument}: expected an array of backend {backend.name!r} ({backend.native_package}), got {text}; "
            + (_special(x) or _conversion(backend, dtype, device))
        )
    if x.dtype != dtype:
        got = dtype_name(x.dtype)
        model = f", or the model with rnn.to(dtype={got!r})" if got in FLOATS else ""
        raise DTypeError(
            f"{argument}: expected dtype {dtype_name(dtype)}, the model's, got {got}; "
            f"{_conversion(backend, dtype, device)}{model}"
        )
    if shape is not None:
        check_shape(argument, x, shape)
    where = device_of(x)
    if where is not None and device is not None and where != device and str(where) != str(device):
        want, got = device_name(backend, device), device_name(backend, where)
        raise DeviceError(
            f"{argument}: expected an array on device {want!r}, the model's, got {shown(got)}; "
            f"{_conversion(backend, dtype, device)}"
        )
    return x if type(x) is np.ndarray else plain(x, backend)


def plain(x: Array, backend: Backend) -> Array:
    """x, or the same memory as a plain ``numpy.ndarray`` if x is one of NumPy's other classes, such as ``numpy.memmap``.

    So results are plain arrays too, and the methods of a user's class do not take part in computing them.
    """
    return np.asarray(x) if isinstance(x, np.ndarray) and backend.native_package == "numpy" else x


def _conversion(backend: Backend, dtype: Any, device: Device) -> str:
    """How to convert an array: a call that works as it stands, where the backend's ``asarray`` takes names."""
    where = None if device is None else device_name(backend, device)
    return (
        f"convert with rnncore.get_backend({backend.name!r}).asarray(x, dtype={dtype_name(dtype)!r}, device={where!r})"
    )


def _special(x: Any) -> str:
    """What to do with what is no array and yet holds one, or "" for anything else."""
    if isinstance(x, np.ma.MaskedArray):
        return f"{_MASKED} x.filled(0.0), and end rows early with lengths="
    if all(hasattr(x, name) for name in ("batch_sizes", "sorted_indices", "unsorted_indices")):
        return (
            "unpack it with x, lengths = torch.nn.utils.rnn.pad_packed_sequence(x, batch_first=rnn.spec.batch_first), "
            "and call rnn(x, lengths=lengths)"
        )
    return ""


# --- what a user gives a backend's asarray ---------------------------------------------------------------------------


def from_user(
    x: Any, dtype: Any, device: Any, *, backend: Backend, kind: type | tuple[type, ...] = object
) -> tuple[np.ndarray[Any, Any], Any, Device]:
    """Return host numbers, a dtype of the namespace (or None) and a device, for a backend's ``asarray``.

    Parameters
    ----------
    x : array of any registered backend, or numbers in nested sequences
    dtype : dtype of any library, its name or None
        None keeps an array's own; Python's floats then get the library's default.
    device : device of the backend, its name or None
        Names are those that rnncore and the library print.
    kind : type or tuple of type
        The library's class of devices, whose objects are taken as they are.

    Raises
    ------
    ArgumentTypeError, DTypeError, DeviceError
    """
    if device is None or isinstance(device, (str, int)) or not isinstance(device, kind):
        device = find_device(device, backend=backend)
    host, found = host_numbers(x), _known_dtype(dtype, backend)
    check_bytes("x", host.size, host.itemsize)  # a view may have more elements than there is memory
    if (
        found is None and host.dtype.kind == "f" and not hasattr(x, "dtype")
    ):  # Python's numbers, which have no precision
        found = find_dtype(None, xp=backend.namespace(), device=device)
    return host, found, device


def host_numbers(x: Any, argument: str = "x") -> np.ndarray[Any, Any]:
    """Copy the numbers of anything that has some to the host; an array that is there already is not copied."""
    if special := _special(x):
        raise ArgumentTypeError(f"{argument}: expected numbers, got {describe(x)}; {special}")
    if type(x) is not np.ndarray:
        owner = owner_name(x)
        try:
            x = np.asarray(x) if owner is None else get_backend(owner).to_numpy(x)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            if isinstance(error, RnncoreError):
                raise
            raise ArgumentTypeError(f"{argument}: expected numbers, got {describe(x)}: {brief(error)}") from error
    if x.dtype.kind not in "biuf" and x.dtype.name != "bfloat16":
        raise DTypeError(f"{argument}: expected real numbers, got dtype {brief(x.dtype)}")
    host: np.ndarray[Any, Any] = x
    return host if host.dtype.isnative else host.astype(host.dtype.newbyteorder("="))


def _known_dtype(dtype: Any, backend: Backend) -> Any:
    """The namespace's dtype of that name, or None for None."""
    if dtype is None:
        return None
    with suppress(TypeError, ValueError):  # NumPy's codes, such as "f4"
        dtype = np.dtype(dtype) if isinstance(dtype, str) else dtype
    xp, name = backend.namespace(), dtype_name(dtype)
    known = [n for n in (*FLOATS, *INTEGERS, "bool") if hasattr(xp, n)]
    if name not in known:
        raise DTypeError(f"dtype: expected one of {', '.join(known)}, got {shown(dtype)}{closest(name, known)}")
    return getattr(xp, name)


def check_floating(argument: str, x: Array) -> None:
    """Require a real floating dtype."""
    if dtype_name(x.dtype) not in FLOATS:
        raise DTypeError(f"{argument}: expected a dtype among {', '.join(FLOATS)}, got {dtype_name(x.dtype)}")


def device_of(x: Array) -> Device:
    """Return an array's device, or None if it has none, as inside a compiled function."""
    return getattr(x, "device", None)


def host_lengths(lengths: Any, *, batch: int, steps: int) -> tuple[int, ...] | None:
    """Return lengths as Python ints in [0, steps]; None for None.

    `lengths` is a sequence of int or an integer array of any registered backend, with one entry per sequence.
    """
    if lengths is None:
        return None
    values = _host_list(lengths, batch)
    expected = f"an int in [0, {steps}]"
    return tuple(integer(f"lengths[{k}]", n, expected, lambda n: 0 <= n <= steps) for k, n in enumerate(values))


def traced_lengths(lengths: Array, *, batch: int, steps: int, xp: Namespace, device: Device) -> Array:
    """Return lengths whose numbers are not known yet as an array (B,) of indices, each clamped to [0, steps].

    Raises
    ------
    ArgumentTypeError, ShapeError
    """
    if not xp.isdtype(lengths.dtype, "integral"):
        raise ArgumentTypeError(f"lengths: expected integers, got dtype {dtype_name(lengths.dtype)}")
    if lengths.ndim == 0:
        lengths = lengths[None]
    check_shape("lengths", lengths, (batch,))
    unsigned = xp.isdtype(lengths.dtype, "unsigned integer")
    n = xp.astype(lengths, index_dtype(xp=xp, device=device), copy=False)
    # The largest numbers of an unsigned dtype are negative in a signed one of its width.
    return xp.clip(xp.where(n < 0, steps, n) if unsigned else n, 0, steps)


def _host_list(lengths: Any, batch: int) -> list[Any]:
    """The entries, of which there must be `batch`: counted first, as there may be more than memory has place for."""

    def check_count(count: int) -> None:
        if count != batch:
            raise ShapeError(f"lengths: expected {batch} entries, one per sequence, got {count}")

    if hasattr(lengths, "__index__") and not hasattr(lengths, "shape"):
        check_count(1)
        return [lengths]
    if isinstance(lengths, np.ma.MaskedArray):
        raise ArgumentTypeError(f"lengths: expected integers, got {describe(lengths)}; {_MASKED} lengths.filled(0)")
    if hasattr(lengths, "shape") and hasattr(lengths, "dtype"):
        name = owner_name(lengths)
        if name is not None:
            lengths = get_backend(name).to_numpy(lengths)
        host = np.asarray(lengths)
        if host.ndim > 1:
            raise ShapeError(f"lengths: expected one axis, got shape {host.shape}")
        if host.dtype.kind not in "iu":
            raise ArgumentTypeError(f"lengths: expected integers, got dtype {host.dtype}")
        check_count(host.size)
        return [int(n) for n in host.reshape(-1)]
    if isinstance(lengths, (str, bytes, Mapping, Set)) or not isinstance(lengths, Iterable):
        raise ArgumentTypeError(f"lengths: expected a sequence of int, got {describe(lengths)}")
    if isinstance(lengths, (list, tuple, range)):
        check_count(len(lengths))
    values = list(islice(lengths, batch + 1))
    check_count(len(values))
    return values


def check_finite(argument: str, x: Array, *, xp: Namespace, backend: Backend) -> None:
    """Require finite numbers; the error has the index of the first NaN or infinity."""
    # By the backend's to_numpy, as a library may refuse bool() of an array on a device.
    if bool(backend.to_numpy(xp.all(xp.isfinite(x)))):
        return
    host = backend.to_numpy(x)
    where = tuple(int(i) for i in np.argwhere(~np.isfinite(host))[0])
    raise NonFiniteError(f"{argument}{list(where)}: expected a finite number, got {host[where]}")
