"""The rules of a check: its tolerances and the capabilities it may need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Tolerance:
    """How far a result may be from the truth: so many eps of the dtype, of the largest number of the reference.

    `floor` is the smallest scale: 1 for states of bounded functions, which are what an eps is measured against there.
    """

    eps: float
    floor: float
    why: str


# DESIGN.md section 6: outside chaos the worst correct result is 10 eps, the smallest planted fault 400.
TOLERANCES: Mapping[str, Tolerance] = {
    "exact": Tolerance(0.0, 0.0, "the same operations in the same order, or no arithmetic at all"),
    "states": Tolerance(64.0, 1.0, "a state of a bounded function, spectral radius at most 1.2"),
    "gradients": Tolerance(64.0, 0.0, "a sum of products: measured against the largest entry of the array"),
    "half": Tolerance(
        16.0, 1.0, "16-bit storage: a few roundings of a state, products as the library accumulates them"
    ),
    "difference": Tolerance(2.0**27, 0.0, "central differences in float64 see about half of the digits: 3e-8"),
    "none": Tolerance(0.0, 0.0, "no number is compared"),
}


# What a check may need, and what it means that a backend lacks it. Each follows from a declaration that others can read:
# a name of the contract, or the dtypes that the namespace's own inspection API lists for the device.
CAPABILITIES: Mapping[str, str] = {
    "float32": "the namespace lists no float32 for this device",
    "float64": "the namespace lists no float64 for this device",
    "float16": "the namespace has no float16",
    "bfloat16": "the namespace has no bfloat16",
    "scans": "the backend has no scans of its own (scans() is None)",
    "no_scans": "the backend has scans of its own",
    "forms": "the backend's scans take no other form than the plain one (scan_forms)",
    "writable": "the backend does not say that its arrays can be assigned into (writable)",
    "read_only": "the backend makes no read-only views (read_only)",
    "grad": "the backend names no reverse mode of its library's own (grad)",
    "jit": "the backend names no compiler of its library's own (jit)",
    "two_devices": "the backend has one device",
    "addressable": "the library does not tell where an array lies, and to_numpy copies: sharing cannot be seen",
    "watchable": "the arrays' class cannot be changed for a check to look at it; its arrays are the host's",
    "open": "the backend is an object whose functions cannot be replaced for a check to look at them",
    "registered": "the backend is not installed under its name",
    "lacks_a_dtype": "the device has every floating dtype",
}


class CheckFailed(AssertionError):
    """A rule does not hold."""


BOTH = ("float32", "float64")


@dataclass(frozen=True)
class Check:
    """One rule.

    Attributes
    ----------
    id : str
        Stable: ``RC-GROUP-NNN``. Never used again for another rule.
    rule : str
        What must be so, in one line.
    run : callable
        Takes a Subject; raises :class:`CheckFailed` where the rule does not hold.
    needs : tuple of str
        Names in :data:`CAPABILITIES`; a backend that lacks one is not asked.
    tolerance : str
        A name in :data:`TOLERANCES`, for comparisons that name no other.
    dtypes : tuple of str
        It is run in each of these that the device has.
    once : bool
        Only in the first of them: for a rule in which precision plays no part.
    """

    id: str
    rule: str
    run: Callable[[Any], None]
    needs: tuple[str, ...]
    tolerance: str
    dtypes: tuple[str, ...]
    once: bool = False

    @property
    def group(self) -> str:
        """The middle part of the id."""
        return self.id.split("-")[1]
