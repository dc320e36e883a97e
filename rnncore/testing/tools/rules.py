"""Rules of the conformance suite: its tolerances, its capabilities, and the description of a check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Tolerance:
    """Largest allowed error: `eps` times the eps of the dtype, relative to the largest number of the reference.

    `floor` is the smallest scale; it is 1 for states of bounded functions, so that their errors are absolute.
    """

    eps: float
    floor: float
    why: str


# At a spectral radius of at most 1.2 a network is not chaotic. There the worst error of a correct result is 10 eps, and the
# smallest error of a planted fault 400.
TOLERANCES: Mapping[str, Tolerance] = {
    "exact": Tolerance(0.0, 0.0, "the same operations in the same order, or no arithmetic at all"),
    "states": Tolerance(64.0, 1.0, "a state of a bounded function, spectral radius at most 1.2"),
    "gradients": Tolerance(64.0, 0.0, "a sum of products: measured against the largest entry of the array"),
    "half": Tolerance(
        16.0, 1.0, "16-bit storage: a few roundings of a state, products as the library accumulates them"
    ),
    "difference": Tolerance(2.0**27, 0.0, "central differences in float64 have about half of the digits: 3e-8"),
    "none": Tolerance(0.0, 0.0, "no number is compared"),
}


# Capabilities that a check may need, and the reason reported if a backend lacks one. Each follows from a public declaration:
# a member of the contract, or the dtypes that the namespace's inspection API lists for the device.
CAPABILITIES: Mapping[str, str] = {
    "float32": "the namespace lists no float32 for this device",
    "float64": "the namespace lists no float64 for this device",
    "float16": "the namespace has no float16",
    "bfloat16": "the namespace has no bfloat16",
    "scans": "the backend has no scans of its own (scans() is None)",
    "no_scans": "the backend has scans of its own",
    "forms": "the backend's scans have the plain form only (scan_forms)",
    "writable": "the backend does not declare its arrays writable (writable)",
    "read_only": "the backend makes no read-only views (read_only)",
    "grad": "the backend declares no reverse mode of its library (grad)",
    "jit": "the backend declares no compiler of its library (jit)",
    "modules": "the backend does not convert modules of its library both ways (from_module and to_module)",
    "two_devices": "the backend has one device",
    "addressable": "the library does not expose addresses of arrays, and to_numpy copies: shared memory cannot be detected",
    "watchable": "the methods of the array class cannot be replaced to watch them; its arrays are on the host",
    "open": "the functions of the backend cannot be replaced to watch them",
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
        The requirement, in one line.
    run : callable
        Takes a Subject; raises :class:`CheckFailed` if the rule does not hold.
    needs : tuple of str
        Names in :data:`CAPABILITIES`; the check is skipped for a backend that lacks one.
    tolerance : str
        A name in :data:`TOLERANCES`, for comparisons that name no other.
    dtypes : tuple of str
        The check runs in each of these dtypes that the device has.
    once : bool
        Whether it runs only in the first of them: for rules that do not depend on precision.
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
