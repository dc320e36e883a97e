"""Which code runs a scan: the plugin's own, or the reference; decided by a predicate and a reason, never by an exception.

An :class:`Engine` is a backend, a device, a dtype and a kernel mode, fixed once per call and handed down. An error raised
inside a plugin's scan is the caller's to see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, cast, get_args

from rnncore import scan
from rnncore.backend.arrays import device_scope, dtype_name
from rnncore.backend.contract import Backend, FormScans, ScanRequest, Scans, abilities_of
from rnncore.carry import Carry, spread
from rnncore.errors import (
    ArgumentTypeError,
    KernelUnsupportedError,
    UnknownNameError,
)
from rnncore.nonlinearity.nonlinearity import Nonlinearity
from rnncore.typing import Array, Device, KernelMode, Namespace

__all__ = ["Choice", "Engine", "check_kernel_mode", "make_engine"]


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
    """Where the arrays of one call live and how its scans are run.

    `writable` is a backend's word that its arrays can be assigned into and that nothing traces what is done to them: then
    results of the core's own are put together in place. A backend without a word is taken to be unable.
    """

    backend: Backend
    xp: Namespace
    device: Device
    dtype: Any
    dtype_name: str
    kernel: KernelMode
    scans: Scans | None
    writable: bool = False
    multiply: Callable[[Array, Array, bool], Array] | None = None

    def choose(self, request: ScanRequest) -> Choice:
        """The path for a request; with kernel="require" an error where the plugin's scan does not take it."""
        if self.kernel == "reference":
            return Choice(request.scan, "reference", 'kernel="reference" was asked for')
        if self.scans is None:
            reason: str | None = f"backend {self.backend.name!r} has no scans of its own"
        elif other := [form for form in request.forms if form not in abilities_of(self.backend).scans]:
            reason = f"the scans of backend {self.backend.name!r} do not name the form {' or '.join(other)}"
        else:
            reason = self.scans.unsupported(request)
        if reason is None:
            return Choice(request.scan, "kernel", f"the scan of backend {self.backend.name!r}")
        if self.kernel == "require":
            raise KernelUnsupportedError(
                f'kernel="require": the {request.scan} scan cannot run on the kernel of backend '
                f"{self.backend.name!r}: {reason}"
            )
        return Choice(request.scan, "reference", reason)

    def explain(self, request: ScanRequest) -> Choice:
        """The same with what the plugin's scans say of themselves: more than a call has to know."""
        choice, words = self.choose(request), getattr(self.scans, "explain", None)
        if choice.path == "reference" or words is None:
            return choice
        return replace(choice, reason=f"{choice.reason}: {words(request)}")

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
        # Scans of contract version 1 know neither argument.
        options: dict[str, Any] = {"nonlinearity": nonlinearity, "reverse": reverse, **_rows(rows)}
        factors = None
        if carry is not None:
            options["carry"] = carry = carry.over(p.shape, xp=self.xp)
            factors = carry._asdict()
        request = self._request("nonlinear", p, reverse, nonlinearity, factors, rows is not None)
        if self.choose(request).path == "kernel" and self.scans is not None:
            return self.scans.nonlinear(p, h0, w_hh, overwrite=overwrite, **options)
        return scan.nonlinear(p, h0, w_hh, xp=self.xp, **options)

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
        options: dict[str, Any] = {"reverse": reverse, **_rows(rows)}
        request = self._request("linear", u, reverse, None, None, rows is not None)
        if self.choose(request).path == "kernel" and self.scans is not None:
            return self.scans.linear(u, d, s0, m, overwrite=overwrite, **options)
        return scan.linear(u, d, s0, m, xp=self.xp, **options)

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
        options: dict[str, Any] = {"reverse": reverse, **_rows(rows)}
        o, i, a = (spread(factor, c.shape, xp=self.xp) for factor in (o, i, a))
        request = self._request("linear", c, reverse, None, {"o": o, "i": i, "a": a}, rows is not None)
        if self.choose(request).path == "kernel":
            scans = cast("FormScans", self.scans)  # as its backend names the form
            return scans.linear_carry(c, o, i, a, x0, m, overwrite=overwrite, **options)
        return scan.linear_carry(c, o, i, a, x0, m, xp=self.xp, **options)

    def scope(self) -> AbstractContextManager[Any]:
        """What everything asked of the device is asked in: a backend's own context, where it needs one."""
        return device_scope(self.backend, self.device)

    def product(self, x: Array, m: Array) -> Array:
        """x (T, B, I) times m (I, K), all steps at once: (T, B, K)."""
        xp = self.xp
        if not self.writable:
            return xp.matmul(x, m)
        # NumPy makes of three axes one product for each step, three to six times slower; others fold them themselves.
        steps, batch, width = x.shape
        rows = xp.reshape(x, (steps * batch, width))
        return xp.reshape(self.matmul(rows, m), (steps, batch, m.shape[1]))

    def matmul(self, a: Array, b: Array, *, whole: bool = True) -> Array:
        """a (N, K) times b (K, M), over all steps of a window or, if not `whole`, of one: a backend's own, where it has one."""
        return self.xp.matmul(a, b) if self.multiply is None else self.multiply(a, b, whole)

    def copy(self, x: Array) -> Array:
        """A copy by arithmetic, which every transformation of every library knows."""
        return x * 1

    def cast(self, x: Array) -> Array:
        """x in the engine's dtype: a library's automatic mixed precision may have left it in another."""
        return x if x.dtype == self.dtype else self.xp.astype(x, self.dtype)

    def read_only(self, x: Array) -> Array:
        """A view that refuses to be written to, where the backend can make one; else x."""
        view = getattr(self.backend, "read_only", None)
        return x if view is None else view(x)

    def zeros(self, shape: tuple[int, ...]) -> Array:
        """Zeros of the engine's dtype on its device."""
        return self.xp.zeros(shape, dtype=self.dtype, device=self.device)

    def _request(
        self,
        kind: Any,
        x: Array,
        reverse: bool,
        nonlinearity: Nonlinearity | None,
        factors: Mapping[str, Array | None] | None,
        ragged: bool,
    ) -> ScanRequest:
        steps, *networks, batch, width = x.shape
        request = ScanRequest(kind, steps, batch, width, self.dtype_name, self.device, reverse, nonlinearity)
        if factors is None and not ragged and not networks:
            return request
        carry: Any = factors and tuple(
            (name, "unit" if k.ndim == 1 else "step") for name, k in factors.items() if k is not None
        )
        return replace(request, carry=carry, ragged=ragged, networks=networks[0] if networks else None)


def _rows(rows: Sequence[int] | None) -> dict[str, Any]:
    return {} if rows is None else {"rows": tuple(rows)}


def make_engine(backend: Backend, *, device: Device, dtype: Any, kernel: KernelMode) -> Engine:
    """An engine for arrays of this dtype on this device."""
    return Engine(
        backend,
        backend.namespace(),
        device,
        dtype,
        dtype_name(dtype),
        check_kernel_mode(kernel),
        backend.scans(),
        bool(getattr(backend, "writable", False)),
        getattr(backend, "product", None),
    )


def check_kernel_mode(kernel: Any) -> KernelMode:
    """ "auto", "reference" or "require", or an error with the closest."""
    modes: tuple[KernelMode, ...] = get_args(KernelMode)
    if not isinstance(kernel, str):
        raise ArgumentTypeError(f"kernel: expected one of {', '.join(modes)}, got {kernel!r}")
    for mode in modes:
        if kernel == mode:
            return mode
    close = get_close_matches(kernel, modes, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise UnknownNameError(f"kernel: expected one of {', '.join(modes)}, got {kernel!r}{hint}")


@dataclass(frozen=True)
class Explanation:
    """Which code runs, and why. ``print`` it.

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
