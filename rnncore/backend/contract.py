"""The contract between rnncore and a backend: two Protocols that a plain module satisfies.

A backend is an Array API namespace and a few functions for devices and host arrays. For speed it can also have the two scans;
a backend without them is complete and runs on the reference in :mod:`rnncore.scan`.

A plugin registers itself under the entry-point group ``rnncore.backends``::

    [project.entry-points."rnncore.backends"]
    acme = "rnncore_acme"

where ``rnncore_acme`` is a module (or ``rnncore_acme:backend`` an object) with the names of :class:`Backend`. Importing the
plugin must not import the array library: that happens in :meth:`Backend.namespace`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np

from rnncore.backend.abilities import SCAN_FORMS
from rnncore.carry import Carry
from rnncore.typing import Array, Device, Namespace

if TYPE_CHECKING:
    from rnncore.nonlinearity.nonlinearity import Nonlinearity

__all__ = [
    "CONTRACT_VERSION",
    "READABLE_VERSIONS",
    "Backend",
    "FormScans",
    "ScanRequest",
    "Scans",
    "scan_words",
]

# Increased when the contract grows or changes. Plugins of all READABLE_VERSIONS are accepted without changes.
CONTRACT_VERSION = 2
READABLE_VERSIONS = (1, 2)


@dataclass(frozen=True)
class ScanRequest:
    """Description of a scan, from which a backend decides whether its own code supports it.

    Attributes
    ----------
    scan : {"nonlinear", "linear"}
        "linear" is :meth:`FormScans.linear_carry` if there is a `carry`.
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
    carry : tuple of (str, str), or None
        For the form "carry": the name of each factor that is not None, with "unit" for shape (H,) and "step" for the shape of
        the first argument, such as ``(("a", "unit"), ("g", "unit"))`` for a leak. Otherwise None.
    ragged : bool
        Whether the scan has the form "ragged": it receives the number of rows of each step.
    networks : int or None
        For the form "networks": N, where the first argument is ``(T, N, B, H)``. Otherwise None.
    """

    scan: Literal["nonlinear", "linear"]
    steps: int
    batch: int
    width: int
    dtype: str
    device: Device
    reverse: bool = False
    nonlinearity: Nonlinearity | None = None
    carry: tuple[tuple[str, Literal["unit", "step"]], ...] | None = None
    ragged: bool = False
    networks: int | None = None

    @property
    def forms(self) -> tuple[str, ...]:
        """The names of this request's forms, among :data:`SCAN_FORMS`."""
        there = (self.carry is not None, self.ragged, self.networks is not None)
        return tuple(form for form, is_there in zip(SCAN_FORMS, there, strict=True) if is_there)


@runtime_checkable
class Scans(Protocol):
    """A backend's own two scans. Time is the leading axis; the result is a new array of the first argument's shape.

    A backend that names forms of a scan in :class:`rnncore.backend.abilities.Abilities` implements :class:`FormScans`.

    One more member is optional: ``explain(request) -> str``, which says which code path the scans use for a request, and why.
    """

    def unsupported(self, request: ScanRequest, /) -> str | None:
        """Return the reason why this request is not supported, or None if it is."""
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

        With ``overwrite`` the result may be stored in p; without it no argument is changed or aliased.
        """
        ...

    def linear(self, u: Array, d: Array, s0: Array, m: Array, /, *, reverse: bool, overwrite: bool = False) -> Array:
        """``s_t = d_t * (u_t + s_{t-1} M)``: u, d (T, B, H), s0 (B, H), m (H, H) to s (T, B, H).

        With ``reverse``, ``s_{t+1}`` takes the place of ``s_{t-1}``. With ``overwrite`` the result may be stored in d.
        """
        ...


@runtime_checkable
class FormScans(Scans, Protocol):
    """The scans of a backend with ``scan_forms``, with the arguments of the named forms.

    Forms can be combined; ``unsupported`` may refuse any combination, size or shape.

    **carry** (contract version 2): factors of shape (H,), the same at every step and in every row, or of the shape of the
    first argument. A factor of exactly 0 cuts: NaN and infinity behind it count as 0. See :mod:`rnncore.carry` for formulas and
    derivatives.

    **ragged** (contract version 2): ``rows``, T integers in [0, B], none larger than the one before: at step t the first
    ``rows[t]`` rows run. The batch is sorted by length, the longest sequence first. Past a row's end nothing is read and
    the result is 0. In reverse a row starts from its first state at its own end.

    **networks** (contract version 2): the arguments have an axis for N networks, and one matrix for each: (T, N, B, H) for p,
    u, d and c, (N, B, H) for a first state, (N, H, H) for W_hh and M.
    """

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
        carry: Carry | None = None,
        rows: Sequence[int] | None = None,
    ) -> Array:
        """``h_t = a_t * h_{t-1} + g_t * f(p_t + (i_t * h_{t-1}) W_hh^T)`` with the factors a, g and i of `carry`.

        A factor of None is 0 for a and 1 for g and i.
        """
        ...

    def linear(
        self,
        u: Array,
        d: Array,
        s0: Array,
        m: Array,
        /,
        *,
        reverse: bool,
        overwrite: bool = False,
        rows: Sequence[int] | None = None,
    ) -> Array:
        """``s_t = d_t * (u_t + s_{t-1} M)``. The form "carry" is :meth:`linear_carry`."""
        ...

    def linear_carry(
        self,
        c: Array,
        o: Array | None,
        i: Array | None,
        a: Array | None,
        x0: Array,
        m: Array,
        /,
        *,
        reverse: bool,
        overwrite: bool = False,
        rows: Sequence[int] | None = None,
    ) -> Array:
        """``x_t = c_t + a_t * x_{t-1} + o_t * ((i_t * x_{t-1}) M)``. A factor of None is 1 for o and i and 0 for a.

        With ``overwrite`` the result may be stored in c.
        """
        ...


def scan_words(scans: Scans) -> Callable[[ScanRequest], str] | None:
    """The scans' optional ``explain``, or None."""
    return getattr(scans, "explain", None)


@runtime_checkable
class Backend(Protocol):
    """The required members of a plugin. A module with these names qualifies; there is no base class to inherit.

    Optional are ``contract_version``, the :data:`CONTRACT_VERSION` that the plugin was written for (1 if absent), and the
    members listed in :class:`rnncore.backend.abilities.Abilities`.
    """

    @property
    def name(self) -> str:
        """The entry point's name."""
        ...

    @property
    def native_package(self) -> str:
        """The array library's top package, looked up in ``sys.modules`` before :meth:`is_native` is called."""
        ...

    def namespace(self) -> Namespace:
        """The Array API namespace. The array library is imported here, not earlier."""
        ...

    def is_native(self, x: object, /) -> bool:
        """Whether x is an array of this backend."""
        ...

    def devices(self) -> Sequence[Device]:
        """The usable devices, the default one first; empty if there is none."""
        ...

    def asarray(self, x: np.ndarray[Any, Any], /, *, dtype: Any, device: Device) -> Array:
        """A new array of a dtype of the namespace on the device, from host numbers."""
        ...

    def to_numpy(self, x: Array, /) -> np.ndarray[Any, Any]:
        """The numbers on the host, in the same precision (bfloat16, which NumPy lacks, as float32)."""
        ...

    def synchronize(self, device: Device, /) -> None:
        """Wait until the device has finished all work."""
        ...

    def scans(self) -> Scans | None:
        """The backend's own scans, or None to run the reference."""
        ...
