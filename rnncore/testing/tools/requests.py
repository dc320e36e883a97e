"""Requests for checks of ``unsupported``: every function, empty and single axes, both directions, each form."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any

from rnncore.backend.arrays import FLOATS
from rnncore.backend.contract import ScanRequest
from rnncore.nonlinearity.nonlinearity import NONLINEARITIES, Nonlinearity, custom_nonlinearity
from rnncore.typing import Device

__all__ = ["form_requests", "requests", "serpentine"]

# The shapes of the checks of scans, for which a library has already compiled code.
SHAPES = ((6, 3, 5), (1, 1, 1), (0, 3, 5), (6, 0, 5))
CLIP = 0.5
# Factors of a leak, of all kinds, of one kind, and none.
FACTORS: dict[str, tuple[Any, ...]] = {
    "nonlinear": (
        (("a", "unit"), ("g", "unit")),
        (("a", "step"), ("g", "step"), ("i", "step")),
        (("i", "unit"),),
        (),
    ),
    "linear": (
        (("o", "step"), ("a", "unit")),
        (("o", "step"), ("i", "step"), ("a", "step")),
        (("i", "step"), ("a", "unit")),
        (),
    ),
}
FEW = 4  # tanh, relu, the logistic function and the identity


def requests(dtype: str, device: Device, make: Callable[..., Nonlinearity]) -> Iterator[ScanRequest]:
    """Requests over (T, B, H), direction and function, including a clipped and a custom one; and for the linear scan."""
    functions = [make(name) for name in NONLINEARITIES]
    functions += [make("tanh", clip=CLIP), serpentine()]
    half = dtype in FLOATS[:2]
    for k, (steps, batch, width) in enumerate(SHAPES):
        for reverse in (False, True):
            yield ScanRequest("linear", steps, batch, width, dtype, device, reverse)
            # In half precision a few functions, forwards, are enough: those are the functions that kernels have.
            asked = functions[:1] if k or (half and reverse) else functions[:FEW] if half else functions
            for f in asked:
                yield ScanRequest("nonlinear", steps, batch, width, dtype, device, reverse, f)


def form_requests(
    forms: Collection[str], dtype: str, device: Device, make: Callable[..., Nonlinearity]
) -> Iterator[ScanRequest]:
    """Requests over (T, B, H), direction and scan, for each form and for all together, with factors of both shapes and none."""
    functions = [make(name) for name in NONLINEARITIES[:FEW]]
    half = dtype in FLOATS[:2]
    for k, (steps, batch, width) in enumerate(SHAPES[:1] if half else SHAPES):
        for reverse in (False,) if half else (False, True):
            linear = ScanRequest("linear", steps, batch, width, dtype, device, reverse)
            nonlinear = [replace(linear, scan="nonlinear", nonlinearity=f) for f in (functions[:1] if k else functions)]
            for n, request in enumerate([linear, *nonlinear]):
                if "carry" in forms:
                    # All factors with the first function, a leak with the others: a compiler takes seconds for each.
                    kinds = FACTORS[request.scan][: 1 if n > 1 else None]
                    yield from (replace(request, carry=carry) for carry in kinds)
                if "ragged" in forms:
                    yield replace(request, ragged=True)
                if "networks" in forms:
                    yield replace(request, networks=2)
                if len(forms) > 1:
                    carry = FACTORS[request.scan][0] if "carry" in forms else None
                    yield replace(
                        request, carry=carry, ragged="ragged" in forms, networks=2 if "networks" in forms else None
                    )


def serpentine() -> Nonlinearity:
    """z / (1 + z^2), a bounded custom function that needs only operators."""
    return custom_nonlinearity(_function, _derivative, name="serpentine", gamma=1.0)


def _function(z: Any) -> Any:
    return z / (1 + z * z)


def _derivative(z: Any) -> Any:
    return (1 - z * z) / ((1 + z * z) * (1 + z * z))
