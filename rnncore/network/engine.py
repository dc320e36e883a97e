"""Engine: where arrays live, and which code runs a scan, the plugin's own or the reference.

The choice is made by a predicate that returns a reason, never by catching an exception. Errors raised inside a plugin's
scan propagate to the caller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, cast, get_args

from rnncore import scan
from rnncore.arguments import check_shape, lines, one_of
from rnncore.backend.abilities import Abilities, abilities_of
from rnncore.backend.arrays import check_array, dtype_name, plain
from rnncore.backend.contract import Backend, FormScans, ScanRequest, Scans, scan_words
from rnncore.carry import Carry, spread
from rnncore.errors import KernelUnsupportedError, ShapeError
from rnncore.nonlinearity.nonlinearity import Nonlinearity
from rnncore.typing import Array, Device, Host, KernelMode, Namespace

__all__ = ["Choice", "Engine", "Explanation", "check_kernel_mode", "make_engine"]

NO_SCOPE: AbstractContextManager[Any] = nullcontext()
# Shapes an engine remembers before it clears them.
REMEMBERED = 256
# The largest array of zeros that is kept, in elements.
KEPT_ZEROS = 2**14


@dataclass(frozen=True)
class Choice:
    """Which path a scan takes.

    Attributes
    ----------
    scan : str
        "nonlinear" or "linear".
    path : str
        "kernel" for the plugin's own scan, "reference" for :mod:`rnncore.scan`.
    reason : str
    """

    scan: str
    path: str
    reason: str


@dataclass(frozen=True)
class Engine:
    """A backend, device, dtype and kernel mode, and the scans that run there.

    Attributes
    ----------
    backend : Backend
    xp : Array API namespace
    device, dtype, dtype_name
    kernel : {"auto", "reference", "require"}
    scans : Scans or None
        The backend's own.
    abilities : Abilities
    writable : bool
        ``abilities.writable``: the core puts its own results together in place.
    tracing : callable or None
        ``abilities.tracing``: while it is true, nothing that depends on shapes is looked up or kept.
    multiply : callable
        ``abilities.product``, or the namespace's ``matmul``.
    """

    backend: Backend
    xp: Namespace
    device: Device
    dtype: Any
    dtype_name: str
    kernel: KernelMode
    scans: Scans | None
    abilities: Abilities = field(default_factory=Abilities)
    writable: bool = field(init=False)
    tracing: Callable[[], bool] | None = field(init=False, compare=False, repr=False)
    multiply: Callable[[Array, Array, bool], Array] = field(init=False, compare=False, repr=False)
    _zeros: dict[tuple[int, ...], Array] = field(init=False, compare=False, repr=False, default_factory=dict)
    _on_kernel: dict[Hashable, tuple[bool, Any]] = field(init=False, compare=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "writable", self.abilities.writable)
        object.__setattr__(self, "tracing", self.abilities.tracing)
        multiply = self.abilities.product if self.writable else None
        object.__setattr__(self, "multiply", multiply or (lambda a, b, whole: self.xp.matmul(a, b)))

    def choose(self, request: ScanRequest) -> Choice:
        """Return the path of a request; raise KernelUnsupportedError if kernel="require" and the plugin refuses it."""
        if self.kernel == "reference":
            return Choice(request.scan, "reference", 'kernel="reference" was asked for')
        if self.scans is None:
            reason: str | None = f"backend {self.backend.name!r} has no scans of its own"
        elif other := [form for form in request.forms if form not in self.abilities.scans]:
            reason = f"the scans of backend {self.backend.name!r} do not name the form {' or '.join(other)}"
        else:
            reason = self.scans.unsupported(request)
            reason = None if reason is None else lines(reason)
        if reason is None:
            return Choice(request.scan, "kernel", f"the scan of backend {self.backend.name!r}")
        if self.kernel == "require":
            raise KernelUnsupportedError(
                f'kernel="require": the {request.scan} scan cannot run on the kernel of backend '
                f"{self.backend.name!r}: {reason}"
            )
        return Choice(request.scan, "reference", reason)

    def explain(self, request: ScanRequest) -> Choice:
        """Like :meth:`choose`, with the scans' own explanation of the code path they take."""
        choice = self.choose(request)
        words = None if self.scans is None or choice.path == "reference" else scan_words(self.scans)
        return choice if words is None else replace(choice, reason=f"{choice.reason}: {lines(words(request))}")

    def nonlinear(
        self,
        p: Array,
        h0: Array,
        w_hh: Array,
        *,
        nonlinearity: Nonlinearity,
        reverse: bool,
        overwrite: bool = False,
        carry: Carry | None = None,
        rows: Sequence[int] | None = None,
    ) -> Array:
        """Run the nonlinear scan on the chosen path; with `overwrite` the result may take the storage of p."""
        # A plain scan, the usual one, takes the shortest way; scans of contract version 1 know no argument of forms.
        if carry is None and rows is None and (self.tracing is None or not self.tracing()):
            known = self._on_kernel.get((p.shape, reverse, id(nonlinearity)))
            if known is not None and known[0]:
                return self.scans.nonlinear(  # type: ignore[union-attr]
                    p, h0, w_hh, nonlinearity=nonlinearity, reverse=reverse, overwrite=overwrite
                )
        forms: dict[str, Any] = {} if rows is None else {"rows": tuple(rows)}
        factors = None
        if carry is not None:
            forms["carry"] = carry = carry.over(p.shape, xp=self.xp)
            factors = _kinds(carry._asdict())
        kernel = self._kernel_for("nonlinear", p, reverse, nonlinearity, factors, rows is not None)
        if kernel is not None:
            return kernel.nonlinear(
                p, h0, w_hh, nonlinearity=nonlinearity, reverse=reverse, overwrite=overwrite, **forms
            )  # fmt: skip
        return scan.nonlinear(p, h0, w_hh, nonlinearity=nonlinearity, reverse=reverse, xp=self.xp, **forms)

    def linear(
        self,
        u: Array,
        d: Array,
        s0: Array,
        m: Array,
        *,
        reverse: bool,
        overwrite: bool = False,
        rows: Sequence[int] | None = None,
    ) -> Array:
        """Run the linear scan on the chosen path; with `overwrite` the result may take the storage of d."""
        if rows is None and (self.tracing is None or not self.tracing()):
            known = self._on_kernel.get((u.shape, reverse, id(None)))
            if known is not None and known[0]:
                return self.scans.linear(u, d, s0, m, reverse=reverse, overwrite=overwrite)  # type: ignore[union-attr]
        forms: dict[str, Any] = {} if rows is None else {"rows": tuple(rows)}
        kernel = self._kernel_for("linear", u, reverse, None, None, rows is not None)
        if kernel is not None:
            return kernel.linear(u, d, s0, m, reverse=reverse, overwrite=overwrite, **forms)
        return scan.linear(u, d, s0, m, reverse=reverse, xp=self.xp, **forms)

    def linear_carry(
        self,
        c: Array,
        o: Array | None,
        i: Array | None,
        a: Array | None,
        x0: Array,
        m: Array,
        *,
        reverse: bool,
        overwrite: bool = False,
        rows: Sequence[int] | None = None,
    ) -> Array:
        """Run the linear scan with carry on the chosen path; with `overwrite` the result may take the storage of c."""
        o, i, a = (spread(factor, c.shape, xp=self.xp) for factor in (o, i, a))
        forms: dict[str, Any] = {} if rows is None else {"rows": tuple(rows)}
        factors = _kinds({"o": o, "i": i, "a": a})
        kernel = cast("FormScans | None", self._kernel_for("linear", c, reverse, None, factors, rows is not None))
        if kernel is not None:
            return kernel.linear_carry(c, o, i, a, x0, m, reverse=reverse, overwrite=overwrite, **forms)
        return scan.linear_carry(c, o, i, a, x0, m, reverse=reverse, xp=self.xp, **forms)

    def _kernel_for(
        self, kind: Any, x: Array, reverse: bool, nonlinearity: Nonlinearity | None, factors: Any, ragged: bool
    ) -> Scans | None:
        """Return the plugin's scans if they take this request. The answer is remembered by shape, direction, function, form."""
        key: Hashable = None
        known = None
        if self.tracing is None or not self.tracing():
            key = (x.shape, reverse, id(nonlinearity))  # a linear scan has none
            if factors is not None or ragged:
                key = (kind, key, factors, ragged)
            known = self._on_kernel.get(key)
        if known is None:
            networks = x.shape[1] if len(x.shape) == 4 else None
            steps, batch, width = x.shape if networks is None else (x.shape[0], *x.shape[2:])
            request = ScanRequest(
                kind,
                steps,
                batch,
                width,
                self.dtype_name,
                self.device,
                reverse,
                nonlinearity,
                factors,
                ragged,
                networks,
            )
            if len(self._on_kernel) >= REMEMBERED:
                self._on_kernel.clear()
            # Keep the function with the answer, so that its id is not reused.
            known = (self.choose(request).path == "kernel", nonlinearity)
            if key is not None:
                self._on_kernel[key] = known
        return self.scans if known[0] else None

    def scope(self) -> AbstractContextManager[Any]:
        """Return the backend's context manager for work on the device."""
        enter = self.abilities.scope
        # Inside a compiled function an array may have no device, and there is nothing to enter.
        return NO_SCOPE if enter is None or self.device is None else enter(self.device)

    def product(self, x: Array, m: Array) -> Array:
        """x (T, B, I) times m (I, K), all steps in one product: (T, B, K)."""
        xp = self.xp
        if not self.writable:
            return xp.matmul(x, m)
        steps, batch, width = x.shape
        if steps == 1:
            return self.multiply(x[0, ...], m, True)[None, ...]
        # With three axes NumPy runs one product per step, which is three to six times slower.
        rows = xp.reshape(x, (steps * batch, width))
        return xp.reshape(self.multiply(rows, m, True), (steps, batch, m.shape[1]))

    def matmul(self, a: Array, b: Array, *, whole: bool = True) -> Array:
        """a (N, K) times b (K, M), by the backend's own product where it has one. `whole`: see :class:`Abilities`."""
        return self.multiply(a, b, whole)

    def check(self, name: str, x: Any, shape: Sequence[int | None] | None = None, hint: str = "") -> Array:
        """Return x as a plain array if it is one of this backend, dtype and device, and of this shape (None: any)."""
        x = check_array(name, x, backend=self.backend, dtype=self.dtype, device=self.device)
        if shape is None:
            return x
        try:
            check_shape(name, x, shape)
        except ShapeError as error:
            raise ShapeError(f"{error}{hint}") from None
        return x

    def is_plain(self, *arrays: Array | None) -> bool:
        """Whether :meth:`check` returns these arrays of the backend as they are."""
        return all(plain(x, self.backend) is x for x in arrays)

    def give(self, x: Host) -> Array:
        """An array of the engine's dtype on its device, from host numbers."""
        return self.backend.asarray(x, dtype=self.dtype, device=self.device)

    def copy(self, x: Array) -> Array:
        """Copy by arithmetic, which every transformation of every library can trace."""
        return x * 1

    def cast(self, x: Array) -> Array:
        """Cast to the engine's dtype, in case automatic mixed precision changed it."""
        return x if x.dtype == self.dtype else self.xp.astype(x, self.dtype)

    def read_only(self, x: Array) -> Array:
        """A view of x that cannot be written to, where the backend can make one; else x."""
        view = self.abilities.read_only
        return x if view is None else view(x)

    def keeps(self, shape: tuple[int, ...]) -> bool:
        """Whether zeros of this shape are shared between calls: small ones, where nothing traces arrays."""
        # With a scope there are devices and streams, on which the zeros of another call need not be ready.
        return self.writable and self.abilities.scope is None and math.prod(shape) <= KEPT_ZEROS

    def nothing(self, shape: tuple[int, ...]) -> Array:
        """Return read-only zeros; small ones are reused where no transformation traces arrays."""
        if not self.keeps(shape):
            return self.zeros(shape)
        found = self._zeros.get(shape)
        if found is None:
            if len(self._zeros) >= REMEMBERED:
                self._zeros.clear()
            found = self._zeros[shape] = self.zeros(shape)
        return found

    def nothing_like(self, x: Array) -> Array:
        """Like :meth:`nothing`, in the shape and dtype of x."""
        return self.nothing(x.shape) if self.writable else self.xp.zeros_like(x)

    def zeros(self, shape: tuple[int, ...]) -> Array:
        """Make zeros of the engine's dtype on its device."""
        return self.xp.zeros(shape, dtype=self.dtype, device=self.device)


def _kinds(factors: Mapping[str, Array | None]) -> tuple[tuple[str, str], ...]:
    """As in :attr:`ScanRequest.carry`."""
    return tuple((name, "unit" if k.ndim == 1 else "step") for name, k in factors.items() if k is not None)


def make_engine(backend: Backend, *, device: Device, dtype: Any, kernel: KernelMode) -> Engine:
    """Make the engine for a backend, device, dtype and kernel mode."""
    return Engine(
        backend,
        backend.namespace(),
        device,
        dtype,
        dtype_name(dtype),
        check_kernel_mode(kernel),
        backend.scans(),
        abilities_of(backend),
    )


def check_kernel_mode(kernel: Any) -> KernelMode:
    """Return a valid kernel mode, or raise with the closest match."""
    return cast("KernelMode", one_of("kernel", kernel, get_args(KernelMode)))


@dataclass(frozen=True)
class Explanation:
    """Which code runs, and why; print it.

    Attributes
    ----------
    backend, device, dtype, kernel : str
    choices : tuple of Choice
        One for each scan: path "kernel" or "reference", and the reason.
    """

    backend: str
    device: str
    dtype: str
    kernel: str
    choices: tuple[Choice, ...]

    def __str__(self) -> str:
        head = f"backend {self.backend}, device {self.device}, {self.dtype}, kernel={self.kernel!r}"
        return "\n".join([head, *(f"  {c.scan} scan: {c.path} ({c.reason})" for c in self.choices)])
