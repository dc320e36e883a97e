"""The contract between rnncore and a backend: two Protocols that a plain module satisfies.

A backend is an Array API namespace and a handful of functions about devices and host arrays. If it wants to be fast it
also has the two scans; a backend without them is complete, and runs on the reference in :mod:`rnncore.scan`.

A plugin registers itself under the entry-point group ``rnncore.backends``::

    [project.entry-points."rnncore.backends"]
    acme = "rnncore_acme"

where ``rnncore_acme`` is a module (or ``rnncore_acme:backend`` an object) with the names of :class:`Backend`. Importing the
plugin must not import the array library: that happens in :meth:`Backend.namespace`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np

from rnncore.typing import Array, Device, Namespace

if TYPE_CHECKING:
    from rnncore.nonlinearity.nonlinearity import Nonlinearity

__all__ = ["CONTRACT_VERSION", "Backend", "ScanRequest", "Scans"]

# Raised when a plugin written for the old contract would no longer be right. A plugin may say which one it speaks.
CONTRACT_VERSION = 1


@dataclass(frozen=True)
class ScanRequest:
    """What a scan is about to be asked: enough for a backend to say whether its own code takes it.

    Attributes
    ----------
    scan : {"nonlinear", "linear"}
    steps, batch, width : int
        T, B and H of the first argument, ``(T, B, H)``. Any of them but H may be 0.
    dtype : str
        The dtype's name: "float32", "float64", "float16" or "bfloat16".
    device : object
        The device of the arrays.
    reverse : bool
        Whether time runs from T - 1 down to 0.
    nonlinearity : Nonlinearity or None
        The function of a nonlinear scan, its clip included; None for a linear scan.
    """

    scan: Literal["nonlinear", "linear"]
    steps: int
    batch: int
    width: int
    dtype: str
    device: Device
    reverse: bool = False
    nonlinearity: Nonlinearity | None = None


@runtime_checkable
class Scans(Protocol):
    """A backend's own two scans. Time is the leading axis; the result is a new array of the first argument's shape.

    One name more is optional: ``explain(request) -> str``, which of several ways the scans take for a request and why.
    """

    def unsupported(self, request: ScanRequest, /) -> str | None:
        """Why this request cannot be run here, as a sentence, or None if it can."""
        ...

    def nonlinear(
        self,
        p: Array,
        h0: Array,
        w_hh: Array,
        /,
        *,
        nonlinearity: Nonlinearity,
        reverse: bool,
        overwrite: bool = False,
    ) -> Array:
        """``h_t = f(p_t + h_{t-1} W_hh^T)``: p (T, B, H), h0 (B, H), w_hh (H, H) to h (T, B, H).

        With ``overwrite`` the result may be stored in p; without it no argument is changed and none is aliased.
        """
        ...

    def linear(self, u: Array, d: Array, s0: Array, m: Array, /, *, reverse: bool, overwrite: bool = False) -> Array:
        """``s_t = d_t * (u_t + s_{t-1} M)``: u, d (T, B, H), s0 (B, H), m (H, H) to s (T, B, H).

        With ``reverse``, ``s_{t+1}`` takes the place of ``s_{t-1}``. With ``overwrite`` the result may be stored in d.
        """
        ...


@runtime_checkable
class Backend(Protocol):
    """What a plugin must have. A module with these names qualifies; there is no base class to inherit.

    These names more are optional; a plugin that lacks one makes no promise.

    ``contract_version = 1``
        The :data:`CONTRACT_VERSION` it was written for. Another one than this library's is refused, with both named.
    ``unusable() -> str | None``
        Why it cannot run here, found out without importing the library, or None.
    ``writable = True``
        Arrays can be assigned into and no transformation follows what is done to them, which lets the core put its own
        results together in place.
    ``window_numbers = 2**20``
        How many numbers of each array one window of a pullback on `writable` arrays holds: what a cache holds on a host, more
        where each window costs a launch.
    ``read_only(x) -> Array``
        A view of x that cannot be written to.
    ``device_name(device) -> str``
        What users call a device, such as "cuda:0"; by default ``str(device)``.
    ``scope(device) -> ContextManager``
        Entered around everything the core asks of a device, for a library whose current device decides where it works.
    ``product(a, b, whole) -> Array``
        a (N, K) times b (K, M), by which the products around the scans are made where arrays are `writable`: for a library that
        has better than its ``matmul``, or whose threads have to be held back. `whole` is True for one over all steps of a
        window, and False for one of a single step beside them.
    ``grad(function) -> Callable``
        The library's own reverse mode: ``grad(f)(*arrays)`` is the tuple of the gradients of the scalar ``f(*arrays)``.
    ``jit(function) -> Callable``
        The library's own compiler, for a function of arrays.
    ``from_module(module) -> rnncore.RNN``
        A library's own recurrent module as a network with copies of its weights, dtype and device kept: what lets
        :func:`rnncore.diagnose` take it as it is. ArgumentTypeError, with what was expected and got, for any other module.
    ``precision(device) -> str``
        "full", or "tf32" where the user's own settings let the library round the inputs of float32 products to 10 bits.
    """

    @property
    def name(self) -> str:
        """The entry point's name."""
        ...

    @property
    def native_package(self) -> str:
        """The array library's top package, looked up in ``sys.modules`` before :meth:`is_native` is asked."""
        ...

    def namespace(self) -> Namespace:
        """The Array API namespace. The array library is imported here, not before."""
        ...

    def is_native(self, x: object, /) -> bool:
        """Whether x is an array of this backend."""
        ...

    def devices(self) -> Sequence[Device]:
        """The usable devices, the default one first; empty where there is none."""
        ...

    def asarray(self, x: np.ndarray[Any, Any], /, *, dtype: Any, device: Device) -> Array:
        """A new array of the namespace's dtype on the device, from host numbers."""
        ...

    def to_numpy(self, x: Array, /) -> np.ndarray[Any, Any]:
        """The numbers on the host, in the same precision (bfloat16, which NumPy lacks, as float32)."""
        ...

    def synchronize(self, device: Device, /) -> None:
        """Wait until everything asked of the device is done."""
        ...

    def scans(self) -> Scans | None:
        """The backend's own scans, or None: then the reference runs."""
        ...
