"""Threads of our own for rows of a batch: a pool that survives a fork, and the limits that users set elsewhere.

Numba's own parallel loops bring a threading layer, and some may not be called from two threads at once or after a fork. What
is needed here is less: a few functions that let go of the interpreter lock and never wait for each other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from itertools import pairwise
from threading import Lock
from typing import Any

import rnncore
from rnncore.backend.contract import abilities_of

_limit: ContextVar[int | None] = ContextVar("rnncore_numba_limit", default=None)
_lock = Lock()
_pool: ThreadPoolExecutor | None = None


def allowed() -> int:
    """The most threads a call may use now.

    The least of NUMBA_NUM_THREADS, the processors that this process may run on, the limit of NumPy's BLAS (that is what
    OMP_NUM_THREADS, OPENBLAS_NUM_THREADS and ``threadpoolctl.threadpool_limits`` set), and what :func:`limit_threads` says.
    """
    from numba import config

    affinity = getattr(os, "sched_getaffinity", None)
    processors = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    limits = [config.NUMBA_NUM_THREADS, processors, blas().threads()]  # type: ignore[attr-defined]
    return max(1, min(int(n) for n in (*limits, _limit.get() or limits[0])))


@contextmanager
def limit_threads(count: int) -> Iterator[None]:
    """Hold calls to this many threads at most; BLAS too, where that is one."""
    token = _limit.set(count)
    try:
        yield
    finally:
        _limit.reset(token)


def around_blas() -> AbstractContextManager[Any]:
    """What a loop of BLAS's products runs in."""
    return blas().limit_threads(1) if _limit.get() == 1 else nullcontext()


def divided(rows: int, threads: int, tile: int) -> list[tuple[int, int]]:
    """Rows 0 to `rows` in at most so many parts, of whole tiles where there are enough: (first, last) of each."""
    unit = tile if rows >= tile * threads else 1
    units = -(-rows // unit)
    edges = [min(rows, unit * (units * n // threads)) for n in range(threads)] + [rows]
    return [(a, b) for a, b in pairwise(edges) if a < b]


def run(function: Callable[[int, int], None], parts: list[tuple[int, int]]) -> None:
    """``function(first, last)`` for every part, the last in the calling thread; returns, or raises, when all are done."""
    waiting: list[Future[None]] = []
    here = [parts[-1]]
    try:
        for part in parts[:-1]:
            try:
                waiting.append(_executor().submit(function, *part))
            except RuntimeError:  # the interpreter is shutting down, and starts no threads any more
                here.append(part)
        for part in here:
            function(*part)
    finally:
        for future in waiting:  # all of them before any error is raised: they write into the caller's arrays
            future.exception()
    for future in waiting:
        future.result()


@cache
def blas() -> Any:
    """NumPy's plugin, whose BLAS this is: its product, and the limit of its threads."""
    return abilities_of(rnncore.get_backend("numpy"))


def _executor() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), thread_name_prefix="rnncore_numba")
        return _pool


def _forget() -> None:
    """After a fork the child has the pool but none of its threads, and a lock that nobody may ever give back."""
    global _pool, _lock
    _pool, _lock = None, Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
