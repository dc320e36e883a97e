"""What is measured of a library on a GPU: its calls, its clock and its memory; benchmarks/gpu_libraries.py has them all."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["Call", "Library", "Numbers", "clocked", "times_of"]

Numbers = dict[str, np.ndarray[Any, Any]]
Call = Callable[[], Any]

WARM_UP = 3
# A slow call is repeated less often, that all shapes have their turn: so many seconds in all, and never fewer repeats than 3.
SECONDS, FEWEST = 5.0, 3


class Library:
    """What is measured: calls that queue the work, and the clock and the memory of their library."""

    clock = "CUDA events"

    def place(self, numbers: Numbers) -> None:
        """Take the numbers to the device, and be ready."""
        raise NotImplementedError

    def forward(self) -> Any:
        """All states, (T, B, H)."""
        raise NotImplementedError

    def both(self) -> Any:
        """All states, and by name the gradients of everything for a cotangent of ones."""
        raise NotImplementedError

    def host(self, x: Any) -> np.ndarray[Any, Any]:
        """An array's numbers."""
        raise NotImplementedError

    def milliseconds(self, call: Call) -> float:
        """How long one call takes from its first to its last kernel."""
        raise NotImplementedError

    def peak(self, call: Call) -> int | None:
        """The most bytes that a call has at once beyond what was there before it; None where the library cannot tell."""
        raise NotImplementedError

    def besides(self, call: Call, repeats: int) -> dict[str, Any]:
        """What a record of a call has besides: which code ran, and other ways to the same."""
        return {}


def times_of(library: Library, call: Call, repeats: int) -> list[float]:
    """Milliseconds of each of the repeats, after warming up."""
    for _ in range(WARM_UP):
        library.milliseconds(call)
    times: list[float] = []
    while len(times) < FEWEST or (len(times) < repeats and sum(times) < 1000 * SECONDS):
        times.append(library.milliseconds(call))
    return times


def clocked(call: Call, wait: Callable[[Any], Any]) -> float:
    """Milliseconds by the clock of the host, from the call to the end of its work."""
    start = time.perf_counter()
    wait(call())
    return 1000 * (time.perf_counter() - start)
