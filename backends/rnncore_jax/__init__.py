"""The JAX backend: networks that work under jit, grad, vmap and their compositions, and models that are pytrees.

``from rnncore_jax import RNN`` chooses it by import. JAX itself is imported at first use. 64-bit numbers need the user's
setting ``jax.config.update("jax_enable_x64", True)``: without it float64 is refused, never rounded. The plugin implements
version 2 of the contract.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

import rnncore
from rnncore.backend.arrays import from_user
from rnncore.errors import ArgumentTypeError, DTypeError

if TYPE_CHECKING:
    import jax

    from rnncore_jax._scans import JaxScans

name = "jax"
native_package = "jax"
contract_version = 2
scan_forms = frozenset({"carry"})

RNN, RNNCell = rnncore.bound_to(name)

OLDEST = (0, 10)  # older versions cannot transpose a scan inside a custom derivative rule
WIDE = 'call jax.config.update("jax_enable_x64", True) first'
# Settings of jax_default_matmul_precision that keep all 24 bits of a float32.
FULL_PRECISION = ("highest", "float32", "F32_F32_F32", "F64_F64_F64")


def namespace() -> Any:
    """``jax.numpy`` with float32 products in float32. The first call also registers the models as pytrees."""
    # Importing _pytree registers them, once per process, also if several threads import it.
    from rnncore_jax import _namespace, _pytree, _scans  # noqa: F401  # _scans here, in the first use, which a fork waits for

    return _namespace


def is_native(x: object, /) -> bool:
    """Whether x is a ``jax.Array``; tracers of jit, grad and vmap are instances too."""
    kind = getattr(sys.modules.get("jax"), "Array", None)
    return kind is not None and isinstance(x, kind)


def devices() -> Sequence[jax.Device]:
    """JAX's default device, then the other devices of its platform, then the host's."""
    import jax

    chosen = _setting("jax_default_device")
    found = [chosen] if isinstance(chosen, jax.Device) else []
    found += jax.local_devices(backend=chosen) if isinstance(chosen, str) else []
    found += jax.local_devices()
    with suppress(RuntimeError):  # JAX_PLATFORMS may exclude the host
        found += jax.local_devices(backend="cpu")
    return tuple(dict.fromkeys(found))


def device_name(device: Any, /) -> str:
    """Name a device as "cpu:0" or "cuda:1". None, for a model on several devices, gives the default device's name."""
    if device is None:
        device = devices()[0]
    shown = str(device)
    if re.fullmatch(r"[a-z]+:\d+", shown) or not hasattr(device, "platform"):
        return shown
    return f"{device.platform}:{device.id}"


def asarray(x: Any, /, *, dtype: Any = None, device: Any = None) -> jax.Array:
    """A new array of exactly this dtype; an error if JAX would round it.

    All arguments are as in :func:`rnncore.backend.arrays.from_user`.
    """
    import jax

    host, dtype, device = from_user(
        x, dtype, device, backend=sys.modules[__name__], kind=(jax.Device, jax.sharding.Sharding)
    )
    # Copy first: on the host, JAX may keep using the memory that it is given.
    host = np.array(host, dtype=dtype)
    # Arrays on the default device stay uncommitted, so that they can follow others, like arrays that users create.
    made: jax.Array = jax.device_put(host, None if device == devices()[0] else device)
    if made.dtype != host.dtype:
        raise DTypeError(
            f"dtype: expected one that JAX's settings allow, got {host.dtype.name}, which would become "
            f"{made.dtype.name}; for 64 bits {WIDE}"
        )
    return made


def dtype_advice(name: str, /) -> str | None:
    """How to have float64, which JAX lacks by default."""
    return WIDE if name == "float64" else None


def to_numpy(x: jax.Array, /) -> np.ndarray[Any, Any]:
    """The numbers on the host, as a read-only view if they are there already; bfloat16 as float32.

    Raises
    ------
    ArgumentTypeError
        Inside jit or vmap, where an array has no numbers yet.
    """
    import jax

    x = _untraced(x)
    if isinstance(x, jax.core.Tracer):
        raise ArgumentTypeError(
            f"expected an array whose numbers are known, got {type(x).__name__} {x.dtype.name}{list(x.shape)}: inside "
            "jax.jit and jax.vmap arrays have no numbers; there check_finite must be off, and set_params replaces "
            "load_state_dict"
        )
    host = np.asarray(jax.device_get(x))
    return host.astype(np.float32) if host.dtype.name == "bfloat16" else host


def readable(x: jax.Array, /) -> bool:
    """Whether an array has numbers: not inside jit and vmap, unless it comes from outside."""
    import jax

    return not isinstance(_untraced(x), jax.core.Tracer)


def scope(device: Any, /) -> AbstractContextManager[None]:
    """Allow transfers of the core's own constants where the user's ``jax.transfer_guard`` refuses implicit ones."""
    import jax

    allowed: AbstractContextManager[None] = jax.transfer_guard_host_to_device("allow")
    return allowed


def synchronize(device: Any, /) -> None:
    """Wait for every live array on the device and for the work that this thread has started."""
    import jax

    arrays: list[jax.Array] = jax.live_arrays()  # type: ignore[no-untyped-call]
    for x in arrays:
        if device in x.devices() and not x.is_deleted():
            x.block_until_ready()
    # Results without a reference are not live; but a device runs the work of one thread in order.
    (jax.device_put(np.zeros(1, np.float32), device) + 1).block_until_ready()


def scans() -> JaxScans:
    """Both scans as ``lax.scan``, compiled, with derivative rules that are scans again."""
    from rnncore_jax._scans import SCANS

    return SCANS


def grad(function: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    """``jax.grad`` with respect to every argument."""
    import jax

    def gradients(*arrays: Any) -> tuple[Any, ...]:
        found: tuple[Any, ...] = jax.grad(function, argnums=tuple(range(len(arrays))))(*arrays)
        return found

    return gradients


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """``jax.jit``."""
    import jax

    return jax.jit(function)


def precision(device: Any, /) -> str:
    """Return "tf32" if ``jax_default_matmul_precision`` allows a lower precision and the device is not a CPU, else "full"."""
    setting = _setting("jax_default_matmul_precision")
    on_host = device_name(device).startswith("cpu")
    return "full" if on_host or setting is None or setting in FULL_PRECISION else "tf32"


def unusable() -> str | None:
    """Report a missing jaxlib or a JAX that is too old."""
    if find_spec("jaxlib") is None:
        return 'jaxlib is not installed: pip install "rnncore[jax]"'
    try:
        found = version("jax")
    except PackageNotFoundError:
        return None
    if tuple(map(int, re.findall(r"\d+", found)[:2])) < OLDEST:
        return f"jax {found} is older than {'.'.join(map(str, OLDEST))}"
    return None


def register(kind: type[Any], /) -> type[Any]:
    """Register a user's subclass of RNN or RNNCell as a pytree; works as a class decorator.

    Leaves are the parameters; everything else about the model must be hashable and is static under jit.
    """
    namespace()
    from rnncore_jax._pytree import register as registered

    return registered(kind)


def _untraced(x: jax.Array) -> jax.Array:
    """x without its derivatives: under ``jax.grad`` alone the array itself."""
    import jax

    return jax.lax.stop_gradient(x) if isinstance(x, jax.core.Tracer) else x


def _setting(name: str) -> Any:
    """The user's setting in this thread and context."""
    import jax

    return getattr(jax.config, name)
