"""A thread pool for rows of a batch, which works after a fork and respects the limits that users set elsewhere.

Numba's parallel loops need a threading layer, and some layers cannot be called from two threads at once or after a fork. A
plain pool is enough here: the functions release the interpreter lock and never wait for each other.
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
from rnncore.backend.abilities import abilities_of

_limit: ContextVar[int | None] = ContextVar("rnncore_numba_limit", default=None)
_lock = Lock()
_pool: ThreadPoolExecutor | None = None


def allowed() -> int:
    """The largest number of threads that a call may use now.

    The minimum of NUMBA_NUM_THREADS, the number of processors available to this process, the number of threads of NumPy's BLAS
    (set by OMP_NUM_THREADS, OPENBLAS_NUM_THREADS or ``threadpoolctl.threadpool_limits``), and :func:`limit_threads`.
    """
    from numba import config

    affinity = getattr(os, "sched_getaffinity", None)
    processors = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    limits = [config.NUMBA_NUM_THREADS, processors, blas().threads()]  # type: ignore[attr-defined]
    return max(1, min(int(n) for n in (*limits, _limit.get() or limits[0])))


@contextmanager
def limit_threads(count: int) -> Iterator[None]:
    """Limit calls to `count` threads; limit BLAS too if `count` is 1."""
    token = _limit.set(count)
    try:
        yield
    finally:
        _limit.reset(token)


def around_blas() -> AbstractContextManager[Any]:
    """The context for a loop of BLAS products."""
    return blas().limit_threads(1) if held_to_one() else nullcontext()


def held_to_one() -> bool:
    """Whether :func:`limit_threads` holds calls to one thread here."""
    return _limit.get() == 1


def divided(rows: int, threads: int, tile: int) -> list[tuple[int, int]]:
    """Divide `rows` rows into at most `threads` parts (first, last), of whole tiles if there are enough."""
    unit = tile if rows >= tile * threads else 1
    units = -(-rows // unit)
    edges = [min(rows, unit * (units * n // threads)) for n in range(threads)] + [rows]
    return [(a, b) for a, b in pairwise(edges) if a < b]


def run(function: Callable[[int, int], None], parts: list[tuple[int, int]]) -> None:
    """Call ``function(first, last)`` for every part, the last one in the calling thread; return or raise when all are done."""
    waiting: list[Future[None]] = []
    here = [parts[-1]]
    try:
        for part in parts[:-1]:
            try:
                waiting.append(_executor().submit(function, *part))
            except RuntimeError:  # the interpreter is shutting down and starts no more threads
                here.append(part)
        for part in here:
            function(*part)
    finally:
        for future in waiting:  # wait for all before raising an error: they write into the caller's arrays
            future.exception()
    for future in waiting:
        future.result()


@cache
def blas() -> Any:
    """The abilities of NumPy's plugin: its BLAS product and thread limit."""
    return abilities_of(rnncore.get_backend("numpy"))


def _executor() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), thread_name_prefix="rnncore_numba")
        return _pool


def _forget() -> None:
    """Reset after a fork: the child has none of the pool's threads, and the lock may never be released there."""
    global _pool, _lock
    _pool, _lock = None, Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
