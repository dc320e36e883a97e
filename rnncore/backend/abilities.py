"""The optional abilities of a backend: their table, and how they are read from a plugin's members."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import Any

from rnncore.arguments import brief, shown
from rnncore.typing import Array, Device

__all__ = ["ABILITIES", "SCAN_FORMS", "Abilities", "abilities_of", "ability", "fault_of", "member_of"]

# The possible names in `Abilities.scans`.
SCAN_FORMS = ("carry", "ragged", "networks")


def _same(x: Any, /) -> Any:
    return x


def _first(x: Any, y: Any, /) -> Any:
    return x


def _none(x: Any, /) -> None:
    return None


@dataclass(frozen=True)
class Abilities:
    """Optional abilities of a backend. By default it has none of them.

    A plugin defines its abilities as members of these names (``scan_forms`` for `scans`) and leaves out the others.
    :func:`abilities_of` collects them, once for each engine.

    Attributes
    ----------
    scans : frozenset of str
        The forms of :class:`rnncore.backend.contract.FormScans` that its scans support, among :data:`SCAN_FORMS`. The
        reference runs the others.
    writable : bool
        Whether elements of arrays can be assigned, and no transformation such as automatic differentiation follows them. The
        core then writes its results in place.
    window_numbers : int
        Elements per array in one window of a pullback on `writable` arrays: about the size of a cache on a host, larger where
        each window costs a kernel launch.
    read_only : callable or None
        ``read_only(x)``: a view of x that cannot be written to.
    detach : callable
        ``detach(x)``: the same numbers outside any graph that records operations.
    changes : callable
        ``changes(x)``: a counter of in-place changes to x, or None if there is none.
    mark_like : callable
        ``mark_like(new, old)``: copy the settings of automatic differentiation, such as ``requires_grad``, from `old` to `new`.
    device_name : callable
        ``device_name(device)``: the usual name of a device, such as "cuda:0".
    scope : callable or None
        ``scope(device)``: a context manager around all work of the core on the device, for libraries with a current device.
    product : callable or None
        ``product(a, b, whole)``: a (N, K) times b (K, M), used for the products around the scans of `writable` arrays. `whole`
        is True for a product over all steps of a window, False for a single step's.
    grad : callable or None
        The library's own reverse mode: ``grad(f)(*arrays)`` is the tuple of gradients of the scalar ``f(*arrays)``.
    jit : callable or None
        The library's own compiler, for a function of arrays.
    from_module : callable or None
        ``from_module(module)``: the library's own recurrent module as an :class:`rnncore.RNN` with copies of its weights.
        Raises ArgumentTypeError for any other module.
    find_module : callable or None
        ``find_module(module, name)``: the recurrent module in a module, and what is left out then, a tuple of str. Raises
        ArgumentValueError if there are several and `name` is None, and UnknownNameError if there is none of that name. A
        module of another kind is returned as it is.
    to_module : callable or None
        ``to_module(rnn, **options)``: the reverse, from a model of any backend. Raises InterchangeError for what the library's
        module cannot express.
    from_dlpack : callable or None
        ``from_dlpack(x)``: an array that shares the memory of another library's array, without a copy.
    dtype_advice : callable or None
        ``dtype_advice(name)``: what the user may do to have a dtype that the device lacks, such as a setting, or None.
    precision : callable or None
        ``precision(device)``: "full", or "tf32" if the user's settings allow float32 products to round their inputs to 10 bits.
    limit_threads : callable or None
        ``limit_threads(n)``: a context manager in which the backend's scans and products use at most n threads. A backend
        that can only be held to one thread may ignore a larger n.
    threads : callable or None
        ``threads()``: the number of threads that the user's settings allow.
    tracing : callable or None
        ``tracing()``: whether a compiler is recording the calls of this thread; then the core reads no remembered answers.
    readable : callable or None
        ``readable(x)``: whether the numbers of an array can be copied to the host now. A compiler that records calls, or a
        transformation that maps them, passes arrays without numbers. None: always.
    unusable : callable or None
        ``unusable()``: the reason why the backend cannot run here, found without importing its library, or None.
    """

    scans: frozenset[str] = frozenset()
    writable: bool = False
    window_numbers: int = 2**20
    read_only: Callable[[Array], Array] | None = None
    detach: Callable[[Array], Array] = _same
    changes: Callable[[Array], int | None] = _none
    mark_like: Callable[[Array, Array], Array] = _first
    device_name: Callable[[Device], str] = str
    scope: Callable[[Device], AbstractContextManager[Any]] | None = None
    product: Callable[[Array, Array, bool], Array] | None = None
    grad: Callable[..., Any] | None = None
    jit: Callable[..., Any] | None = None
    from_module: Callable[[Any], Any] | None = None
    find_module: Callable[[Any, str | None], tuple[Any, tuple[str, ...]]] | None = None
    to_module: Callable[..., Any] | None = None
    from_dlpack: Callable[[Any], Array] | None = None
    dtype_advice: Callable[[str], str | None] | None = None
    precision: Callable[[Device], str] | None = None
    limit_threads: Callable[[int], AbstractContextManager[Any]] | None = None
    threads: Callable[[], int] | None = None
    tracing: Callable[[], bool] | None = None
    readable: Callable[[Array], bool] | None = None
    unusable: Callable[[], str | None] | None = None


# The abilities in version 1 of the contract.
VERSION_1_NAMES = {
    "writable",
    "window_numbers",
    "read_only",
    "device_name",
    "scope",
    "product",
    "grad",
    "jit",
    "from_module",
    "precision",
    "unusable",
}


def abilities_of(backend: Any) -> Abilities:
    """Return the table of what the backend's members promise, by the version of the contract that it was written for."""
    return Abilities(**{f.name: ability(backend, f.name) for f in fields(Abilities)})


def ability(backend: Any, name: str) -> Any:
    """Return one entry of :func:`abilities_of`, without making the table."""
    if getattr(backend, "contract_version", 1) == 1 and name not in VERSION_1_NAMES:
        return VERSION_1_DEFAULTS.get(name, ABILITIES[name])
    member = getattr(backend, member_of(name), None)
    return ABILITIES[name] if member is None else member


def member_of(name: str) -> str:
    """Return the name of the plugin's member for an ability."""
    return "scan_forms" if name == "scans" else name  # a plugin's `scans` is the function that returns its scans


def fault_of(name: str, value: Any) -> str | None:
    """Return what is wrong with a value of :func:`ability`, or None."""
    member, default = member_of(name), ABILITIES[name]
    if name == "scans":
        unknown = (
            [repr(value)] if isinstance(value, str) else sorted(repr(form) for form in set(value) - set(SCAN_FORMS))
        )
        names = f"its {member} must be a set of names among {', '.join(SCAN_FORMS)}"
        return f"{names}, got {brief(', '.join(unknown))}" if unknown else None
    if isinstance(default, (bool, int)):
        kind = type(default)
        return None if type(value) is kind else f"its {member} must be of type {kind.__name__}, got {shown(value)}"
    return None if value is None or callable(value) else f"its {member} must be a function, got {type(value).__name__}"


def _detached(x: Any, /) -> Any:
    detach = getattr(x, "detach", None)
    return x if detach is None else detach()


def _version(x: Any, /) -> int | None:
    return getattr(x, "_version", None)


def _marked(new: Any, old: Any, /) -> Any:
    return new.requires_grad_() if getattr(old, "requires_grad", False) else new


ABILITIES: dict[str, Any] = {f.name: f.default for f in fields(Abilities)}
# Version 1 had no names for these: arrays of its plugins are asked themselves, by PyTorch's names.
VERSION_1_DEFAULTS: dict[str, Any] = {"detach": _detached, "changes": _version, "mark_like": _marked}
