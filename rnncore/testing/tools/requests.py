"""The requests that the checks of a backend's ``unsupported`` make: every function, empty and single axes, both directions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from rnncore.backend.arrays import FLOATS
from rnncore.backend.contract import ScanRequest
from rnncore.nonlinearity.nonlinearity import NONLINEARITIES, Nonlinearity, custom_nonlinearity
from rnncore.typing import Device

__all__ = ["requests", "serpentine"]

# Those of the checks of scans: what a library has compiled for those it need not compile again.
SHAPES = ((6, 3, 5), (1, 1, 1), (0, 3, 5), (6, 0, 5))
CLIP = 0.5
FEW = 4  # tanh, relu, the logistic function and the identity


def requests(dtype: str, device: Device, make: Callable[..., Nonlinearity]) -> Iterator[ScanRequest]:
    """(T, B, H) x direction x function, a clipped one and a user's own included; and the linear scan."""
    functions = [make(name) for name in NONLINEARITIES]
    functions += [make("tanh", clip=CLIP), serpentine()]
    half = dtype in FLOATS[:2]
    for k, (steps, batch, width) in enumerate(SHAPES):
        for reverse in (False, True):
            yield ScanRequest("linear", steps, batch, width, dtype, device, reverse)
            # In half precision a few functions forwards are enough: a kernel has those, and another for each is the fault.
            asked = functions[:1] if k or (half and reverse) else functions[:FEW] if half else functions
            for f in asked:
                yield ScanRequest("nonlinear", steps, batch, width, dtype, device, reverse, f)


def serpentine() -> Nonlinearity:
    """z / (1 + z^2), a user's function that stays bounded and needs nothing but operators."""
    return custom_nonlinearity(_function, _derivative, name="serpentine", gamma=1.0)


def _function(z: Any) -> Any:
    return z / (1 + z * z)


def _derivative(z: Any) -> Any:
    return (1 - z * z) / ((1 + z * z) * (1 + z * z))
