"""Rows of a batch in threads of their own, for backends on the host: a pool that survives a fork, and no barrier per step.

For functions that let go of the interpreter lock and never wait for each other: no row of a batch reads another, so each thread
takes its rows through all steps.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from itertools import pairwise
from threading import Lock

__all__ = ["divided", "processors", "run"]

_lock = Lock()
_pool: ThreadPoolExecutor | None = None


def processors() -> int:
    """How many processors this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def divided(rows: int, threads: int, tile: int) -> list[tuple[int, int]]:
    """Rows 0 to `rows` in at most so many parts, of whole tiles where there are enough: (first, last) of each."""
    unit = tile if rows >= tile * threads else 1
    units = -(-rows // unit)
    edges = [min(rows, unit * (units * n // threads)) for n in range(threads)] + [rows]
    return [(a, b) for a, b in pairwise(edges) if a < b]


def run(function: Callable[[int, int], None], parts: list[tuple[int, int]]) -> None:
    """``function(first, last)`` for every part, the last in the calling thread; returns, or raises, when all are done.

    Context variables are the caller's in every thread: with them goes what ``numpy.errstate`` says of overflows.
    """
    waiting: list[Future[None]] = []
    here = [parts[-1]]
    try:
        for part in parts[:-1]:
            try:
                waiting.append(_executor().submit(partial(copy_context().run, function, *part)))
            except RuntimeError:  # the interpreter is shutting down, and starts no threads any more
                here.append(part)
        for part in here:
            function(*part)
    finally:
        for future in waiting:  # all of them before any error is raised: they write into the caller's arrays
            future.exception()
    for future in waiting:
        future.result()


def _executor() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), thread_name_prefix="rnncore")
        return _pool


def _forget() -> None:
    """After a fork the child has the pool but none of its threads, and a lock that nobody may ever give back."""
    global _pool, _lock
    _pool, _lock = None, Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
