"""Limit BLAS to one thread while a loop of small products runs.

A second thread spins between small products. On idle cores it saves next to nothing; on busy ones each product waits for a
core, and the loop was up to twenty times slower. Large products keep the user's number of threads.
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

from rnncore.backend.forks import first_use

__all__ = ["limit_threads", "one_thread_for", "product", "threads"]

HostArray = np.ndarray[Any, Any]
# Multiplications in one step's product. Up to these, OpenBLAS does not divide a product of a vector or of matrices ...
VECTOR_ALONE, MATRIX_ALONE = 2**13, 2**17
# ... and from here on two threads are faster than one: 1.5 times at 2**24 on two cores, not at all at 2**20.
WORTH_THREADS = 2**23
# A product over all steps runs once, and its second thread has to be woken: with a busy core, a product of less than half a
# millisecond waits for eight.
LONE_PRODUCT_ALONE, LONE_PRODUCT_WORTH_THREADS = 2**18, 2**25
# Multiplications in a whole scan. Below this, setting the number of threads costs more than it saves.
SMALL_SCAN = 2**20

_NOTHING: AbstractContextManager[Any] = nullcontext()


def one_thread_for(steps: int, batch: int, width: int) -> AbstractContextManager[Any] | None:
    """The context that limits a scan's loop to one thread, or None where no limit is needed."""
    product = batch * width * width
    alone = VECTOR_ALONE if batch == 1 else MATRIX_ALONE
    if product <= alone or product >= WORTH_THREADS:
        return None
    return _ONE


def product(a: HostArray, b: HostArray, whole: bool = True, /) -> HostArray:
    """Multiply a by b with BLAS, in one thread where the product is too small to divide."""
    if LONE_PRODUCT_ALONE < a.size * b.shape[1] < LONE_PRODUCT_WORTH_THREADS:
        with _ONE:
            return np.dot(a, b)  # type: ignore[no-any-return]
    return np.dot(a, b)  # type: ignore[no-any-return]  # np.matmul takes 1.5 times as long for small matrices


def limit_threads(count: int) -> AbstractContextManager[Any]:
    """Limit BLAS to one thread in the whole process; any other count leaves its number unchanged."""
    return _ONE if count == 1 else _NOTHING


def threads() -> int:
    """The user's number of threads for BLAS, also while a loop limits it to one."""
    return _ONE.given()


class _OneThread:
    """Keep NumPy's BLAS at one thread from the first loop that enters to the last that leaves, in any Python thread.

    The number applies to the whole process. A number set elsewhere while a loop runs is kept. However, a ``threadpool_limits``
    that another thread opens during a loop and closes after it finds 1, and restores 1.
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
        except BaseException:  # Ctrl-C can arrive here, and __exit__ runs only after a complete __enter__
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
            if count != 1 and library.get_num_threads() == 1:  # otherwise it has been changed since
                library.set_num_threads(count)

    def given(self) -> int:
        """The user's number of threads: the smallest over all libraries, from before the limit if one is active."""
        with self._lock:
            counts = self._before if self._inside else [library.get_num_threads() for library in _libraries()]
            return min(counts, default=1)

    def forget(self) -> None:
        """Reset in a forked child, which has none of the threads that were inside or may hold the lock."""
        self._lock = threading.Lock()
        if self._inside:
            self._inside = 0
            self._give_back()


_ONE = _OneThread()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_ONE.forget)


class _Blas:
    """A BLAS library and its number of threads.

    threadpoolctl looks a function up by name at every call, which takes as long as a small product. For OpenBLAS, which NumPy's
    wheels contain, the two functions are looked up once.
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
    """The BLAS libraries that NumPy calls: its wheel's own, or every loaded one if the wheel has none."""
    with first_use:
        from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

    found = [library for library in ThreadpoolController().lib_controllers if library.user_api == "blas"]
    own = [library for library in found if "numpy.libs" in library.filepath or "/numpy/" in library.filepath]
    return tuple(_Blas(library) for library in own or found)
