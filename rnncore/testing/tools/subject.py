"""The argument of a check: a backend, a device and a dtype, with operations that every check uses."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from rnncore.arguments import brief
from rnncore.backend.abilities import abilities_of
from rnncore.backend.arrays import FLOATS, device_scope, floating_dtypes
from rnncore.backend.contract import Backend
from rnncore.backend.discovery import words
from rnncore.model.rnn import RNN
from rnncore.network.engine import Engine, make_engine
from rnncore.spec import RNNSpec
from rnncore.testing.tools.rules import TOLERANCES, Check, CheckFailed
from rnncore.testing.tools.watch import can_be_patched, tells_where
from rnncore.typing import Array, Device, Host, KernelMode, Namespace

__all__ = ["Measured", "Subject", "capabilities"]

# The distance from 1 to the next number. TF32 keeps ten bits of the inputs of a product.
EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7, "tf32": 2.0**-10}
# The scale of an array of exact zeros: a number that is distinct from 0 in float32.
SMALLEST_SCALE = 1e-30


@dataclass(frozen=True)
class Measured:
    """One comparison: the largest error in eps of the reference's scale, and the allowed one."""

    what: str
    eps: float
    allowed: float


@dataclass
class Subject:
    """One backend on one device in one dtype.

    Attributes
    ----------
    backend, device, dtype_name
    kernel : {"auto", "reference", "require"}
        How the check's networks run their scans, unless a check overrides it.
    check : Check
        The running check: its id is the seed, its tolerance the default.
    capabilities : frozenset of str
    measured : list of Measured
    precision : {"full", "tf32"}
        The precision of float32 products, as the backend reports it.
    """

    backend: Backend
    device: Device
    dtype_name: str
    kernel: KernelMode
    check: Check
    capabilities: frozenset[str]
    measured: list[Measured] = field(default_factory=list)
    precision: str = "full"

    @cached_property
    def xp(self) -> Namespace:
        """The namespace."""
        return self.backend.namespace()

    @cached_property
    def dtype(self) -> Any:
        """The dtype as an object of the namespace."""
        return floating_dtypes(xp=self.xp, device=self.device)[self.dtype_name]

    @cached_property
    def rng(self) -> np.random.Generator:
        """Random numbers on the host; the seed is the check's id."""
        return np.random.default_rng(zlib.crc32(self.check.id.encode()))

    @property
    def eps(self) -> float:
        """The unit of errors: the eps of the dtype, or of TF32 if the user's settings allow it."""
        if self.dtype_name == "float32" and self.precision == "tf32":
            return EPS["tf32"]
        return EPS[self.dtype_name]

    # --- numbers in and out ------------------------------------------------------------------------------------------

    def draw(self, *shape: int, scale: float = 1.0) -> Host:
        """Draw normal numbers that float16 and bfloat16 represent exactly, so that every precision gets the same problem."""
        drawn = self.rng.standard_normal(shape) * scale
        mantissa, exponent = np.frexp(drawn)
        return np.ldexp(np.round(mantissa * 2.0**7) / 2.0**7, exponent)

    def weights(self, width: int, radius: float = 1.0) -> Host:
        """Draw a random (H, H) matrix with a spectral radius of about `radius`."""
        return self.draw(width, width, scale=radius / math.sqrt(width))

    def give(self, numbers: Any, dtype: Any = None) -> Array:
        """Convert host numbers to an array of the backend."""
        host = np.asarray(numbers, dtype="f8") if dtype is None else np.asarray(numbers)
        return self.backend.asarray(host, dtype=self.dtype if dtype is None else dtype, device=self.device)

    def host(self, x: Array) -> Host:
        """Copy an array's numbers to the host, in float64."""
        return np.array(self.backend.to_numpy(x), dtype="f8")

    def engine(self, kernel: KernelMode | None = None) -> Engine:
        """The engine that runs the check's scans."""
        mode = self.kernel if kernel is None else kernel
        return make_engine(self.backend, device=self.device, dtype=self.dtype, kernel=mode)

    def scope(self) -> Any:
        """The backend's context, for a check's own array operations."""
        return device_scope(self.backend, self.device)

    def rnn(self, spec: RNNSpec, params: Mapping[str, Host], **options: Any) -> RNN:
        """A model with these parameters."""
        options = {"backend": self.backend, "device": self.device, "dtype": self.dtype, **options}
        kernel = options.pop("kernel", self.kernel)
        return RNN.from_spec(spec, dict(params), kernel=kernel, **options)

    # --- judging -----------------------------------------------------------------------------------------------------

    def compare(
        self, what: str, got: Array | Host, want: Host, *, tolerance: str | None = None, floor: float | None = None
    ) -> None:
        """Require the same shape, NaN and infinity in the same places, and all other numbers within the tolerance."""
        rule = TOLERANCES[self.check.tolerance if tolerance is None else tolerance]
        found = got if isinstance(got, np.ndarray) and not self.backend.is_native(got) else self.host(got)
        found, want = np.asarray(found, dtype="f8"), np.asarray(want, dtype="f8")
        if found.shape != want.shape:
            raise CheckFailed(f"{what}: expected shape {want.shape}, got {found.shape}")
        strange = ~np.isfinite(want)
        same = np.array_equal(found[strange], want[strange], equal_nan=True)
        if not same or not np.isfinite(found)[~strange].all():
            index = _first(~((found == want) | (np.isnan(found) & np.isnan(want)) | (np.isfinite(found) & ~strange)))
            raise CheckFailed(f"{what}{index}: expected {_at(want, index)}, got {_at(found, index)}")
        error = np.where(strange, 0.0, np.abs(found - want))
        scale = max(
            rule.floor if floor is None else floor, float(np.abs(np.where(strange, 0.0, want)).max(initial=0.0))
        )
        worst = float(error.max(initial=0.0)) / (max(scale, SMALLEST_SCALE) * self.eps)
        self.measured.append(Measured(what, worst, rule.eps))
        if worst > rule.eps:
            at = tuple(int(i) for i in np.unravel_index(int(error.argmax()), error.shape))
            raise CheckFailed(
                f"{what}{list(at)}: expected {float(want[at])!r}, got {float(found[at])!r}: {worst:.3g} eps of {scale:.3g}, "
                f"{rule.eps:g} are allowed ({rule.why})"
            )

    def compare_all(
        self, got: Mapping[str, Any], want: Mapping[str, Host], *, tolerance: str | None = None, where: str = ""
    ) -> None:
        """Compare arrays by name; the default tolerance is that of gradients for names ``dL/...``, else that of states."""
        for name, value in want.items():
            own = "gradients" if name.startswith("dL/") else "states"
            self.compare(f"{name}{where}", got[name], value, tolerance=own if tolerance is None else tolerance)

    def same(self, what: str, a: Array, b: Array) -> None:
        """Require that two arrays of the backend hold the same numbers exactly, NaN included."""
        self.compare(what, a, self.host(b), tolerance="exact")

    def expect(self, holds: Any, otherwise: str) -> None:
        """Fail with the message `otherwise` unless `holds` is true."""
        if not holds:
            raise CheckFailed(otherwise)

    def raises(self, kind: type[Exception], what: str, ask: Callable[[], Any]) -> Exception:
        """Require that `ask()` raises this kind of error, and return it."""
        try:
            got = ask()
        except kind as error:
            return error
        except Exception as error:
            raise CheckFailed(f"{what}: expected {kind.__name__}, got {brief(words(error))}") from error
        raise CheckFailed(f"{what}: expected {kind.__name__}, got an answer of type {type(got).__name__}")


def capabilities(backend: Backend, device: Device, *, registered: bool) -> frozenset[str]:
    """The capabilities that the backend declares for this device, by the contract and its namespace's inspection API."""
    xp = backend.namespace()
    dtypes = floating_dtypes(xp=xp, device=device)
    found = set(dtypes)
    if len(dtypes) < len(FLOATS):
        found.add("lacks_a_dtype")
    abilities = abilities_of(backend)
    found |= {name for name in ("read_only", "grad", "jit", "writable") if getattr(abilities, name)}
    if abilities.from_module is not None and abilities.to_module is not None:
        found.add("modules")
    if backend.scans() is None:
        found.add("no_scans")
    else:
        found |= {"scans", "forms"} if abilities.scans else {"scans"}
    if len(tuple(backend.devices())) > 1:
        found.add("two_devices")
    if registered:
        found.add("registered")
    try:
        x = backend.asarray(np.ones(3, dtype="f4"), dtype=dtypes[min(dtypes, key=FLOATS[::-1].index)], device=device)
        seen = tells_where(backend, x), can_be_patched(type(x), "__matmul__"), can_be_patched(backend, "synchronize")
    except KeyboardInterrupt:
        raise
    except BaseException:  # asarray or to_numpy is at fault, which the checks that need them report
        seen = (True, True, True)
    found |= {name for name, yes in zip(("addressable", "watchable", "open"), seen, strict=True) if yes}
    return frozenset(found)


def precision_of(backend: Backend, device: Device) -> str:
    """Return "full" or "tf32", as the backend reports it."""
    ask = abilities_of(backend).precision
    return "full" if ask is None else str(ask(device))


def _first(bad: Host) -> list[int]:
    where = np.argwhere(bad)
    return [int(i) for i in where[0]] if len(where) else []


def _at(x: Host, at: list[int]) -> Any:
    # A single number has no index; without an index there is no entry to show.
    return float(x[tuple(at)]) if at or x.ndim == 0 else "other numbers"
