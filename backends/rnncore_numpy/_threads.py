"""One thread of BLAS while a loop of small products runs.

A second thread spins between them: on idle cores it saves next to nothing, on busy ones each product waits for a core, and the
loop was up to twenty times slower. Large products keep the threads that the user gave them.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from types import TracebackType
from typing import Any

__all__ = ["threads_for"]

# Multiplications in one step's product. Below, OpenBLAS does not divide a product (a vector's, one of matrices) ...
VECTOR_ALONE, MATRIX_ALONE = 2**13, 2**17
# ... and from here on two threads are faster than one: 1.5 times at 2**24 on two cores, not at all at 2**20.
WORTH_THREADS = 2**23
# In a whole scan: below, setting the number of threads would be felt.
SMALL_SCAN = 2**20

_NOTHING: AbstractContextManager[Any] = nullcontext()


def threads_for(steps: int, batch: int, width: int) -> AbstractContextManager[Any]:
    """What a scan's loop runs in."""
    product = batch * width * width
    alone = VECTOR_ALONE if batch == 1 else MATRIX_ALONE
    if product <= alone or product >= WORTH_THREADS or steps * product < SMALL_SCAN:
        return _NOTHING
    return _ONE


class _OneThread:
    """Sets NumPy's BLAS to one thread from the first loop that enters to the last that leaves, of whatever Python thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: list[int] = []

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._before = [library.num_threads for library in _libraries()]
                for library in _libraries():
                    library.set_num_threads(1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                for library, count in zip(_libraries(), self._before, strict=True):
                    library.set_num_threads(count)


_ONE = _OneThread()


@lru_cache(maxsize=1)
def _libraries() -> tuple[Any, ...]:
    """The BLAS that NumPy calls: its wheel's own, or, where it brought none, every one that is loaded."""
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

    found = [library for library in ThreadpoolController().lib_controllers if library.user_api == "blas"]
    own = [library for library in found if "numpy.libs" in library.filepath or "/numpy/" in library.filepath]
    return tuple(own or found)
