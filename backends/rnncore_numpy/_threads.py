"""One thread of BLAS while a loop of small products runs.

A second thread spins between them: on idle cores it saves next to nothing, on busy ones each product waits for a core, and the
loop was up to twenty times slower. Large products keep the threads that the user gave them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from types import TracebackType
from typing import Any

import numpy as np

__all__ = ["limit_threads", "one_thread_for", "product", "threads"]

HostArray = np.ndarray[Any, Any]
# Multiplications in one step's product. Below, OpenBLAS does not divide a product (a vector's, one of matrices) ...
VECTOR_ALONE, MATRIX_ALONE = 2**13, 2**17
# ... and from here on two threads are faster than one: 1.5 times at 2**24 on two cores, not at all at 2**20.
WORTH_THREADS = 2**23
# A product of all steps stands alone, and its second thread starts from rest: one that takes less than half a millisecond waits
# for eight where a core is busy.
LONE_PRODUCT_ALONE, LONE_PRODUCT_WORTH_THREADS = 2**18, 2**25
# Multiplications in a whole scan; below, setting the number of threads would cost more than it saves.
SMALL_SCAN = 2**20

_NOTHING: AbstractContextManager[Any] = nullcontext()


def one_thread_for(steps: int, batch: int, width: int) -> AbstractContextManager[Any] | None:
    """The limit to one thread that a scan's loop runs in, or None where it needs none."""
    product = batch * width * width
    alone = VECTOR_ALONE if batch == 1 else MATRIX_ALONE
    if product <= alone or product >= WORTH_THREADS:
        return None
    return _ONE


def product(a: HostArray, b: HostArray, whole: bool = True, /) -> HostArray:
    """a times b by BLAS, with one thread where the product is too small to share."""
    if LONE_PRODUCT_ALONE < a.size * b.shape[1] < LONE_PRODUCT_WORTH_THREADS:
        with _ONE:
            return np.dot(a, b)  # type: ignore[no-any-return]
    return np.dot(a, b)  # type: ignore[no-any-return]  # matmul takes half as long again for small matrices


def limit_threads(count: int) -> AbstractContextManager[Any]:
    """Hold BLAS to one thread, in the whole process; BLAS keeps its number for any other count."""
    return _ONE if count == 1 else _NOTHING


def threads() -> int:
    """The number of threads that the user gives BLAS, also while a loop holds it to one."""
    return _ONE.given()


class _OneThread:
    """Sets NumPy's BLAS to one thread from the first loop that enters to the last that leaves, of whatever Python thread.

    The number is one for the whole process. A number set elsewhere while a loop runs stays; but a
    ``threadpool_limits`` that another thread opens meanwhile and closes later finds 1, and brings 1 back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: list[int] = []

    def __enter__(self) -> None:
        entered = False
        try:
            with self._lock:
                libraries = _libraries()
                if not self._inside:
                    self._before = [library.get_num_threads() for library in libraries]
                self._inside, entered = self._inside + 1, True
                if self._inside == 1:
                    for library in libraries:
                        library.set_num_threads(1)
        except BaseException:  # Ctrl-C falls anywhere, and the with statement leaves only what it has entered
            if entered:
                self._leave()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._give_back()

    def _give_back(self) -> None:
        for library, count in zip(_libraries(), self._before, strict=True):
            if count != 1 and library.get_num_threads() == 1:  # else somebody has set another since
                library.set_num_threads(count)

    def given(self) -> int:
        """The least number of threads that a library had before anyone entered, or has now."""
        with self._lock:
            counts = self._before if self._inside else [library.get_num_threads() for library in _libraries()]
            return min(counts, default=1)

    def forget(self) -> None:
        """In a forked child: of the threads that were inside none is here, nor the one that may hold the lock."""
        self._lock = threading.Lock()
        if self._inside:
            self._inside = 0
            self._give_back()


_ONE = _OneThread()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_ONE.forget)


class _Blas:
    """A library of BLAS and its number of threads.

    threadpoolctl looks a function up by its name at every call, which takes as long as a small product does: of OpenBLAS, which
    NumPy's wheels bring, the two functions are kept.
    """

    def __init__(self, controller: Any) -> None:
        self.get_num_threads: Callable[[], int] = controller.get_num_threads
        self.set_num_threads: Callable[[int], Any] = controller.set_num_threads
        if controller.internal_api != "openblas":
            return
        for name in (f"{a}openblas_{{}}_num_threads{z}" for a in ("scipy_", "") for z in ("64_", "_64", "")):
            count = getattr(controller.dynlib, name.format("get"), None)
            change = getattr(controller.dynlib, name.format("set"), None)
            if count is not None and change is not None:
                self.get_num_threads, self.set_num_threads = count, change
                return


@lru_cache(maxsize=1)
def _libraries() -> tuple[_Blas, ...]:
    """The BLAS that NumPy calls: its wheel's own, or, where it brought none, every one that is loaded."""
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

    found = [library for library in ThreadpoolController().lib_controllers if library.user_api == "blas"]
    own = [library for library in found if "numpy.libs" in library.filepath or "/numpy/" in library.filepath]
    return tuple(_Blas(library) for library in own or found)
