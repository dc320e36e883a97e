"""The products of all steps, of large matrices in the threads that run the scans.

BLAS's own second thread looks out for work for some 20 ms after each product, on the processor that a thread of the next scan
waits for: at (T, B, H) = (512, 64, 512), in two threads, forward takes 1.4 times as long, forward and backward 1.3 times.
Smaller products find it awake: divided here, they take up to 1.3 times as long (two processors, OpenBLAS of NumPy 2.4).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rnncore_numba._threads import allowed, blas, divided, run

HostArray = np.ndarray[Any, Any]
# Multiplications, times the bytes of a number, worth threads of our own.
LARGE = 4 * 10**8
# Multiplications that BLAS runs in one thread by itself, whatever the shapes.
ALONE = 2**13
# Rows that BLAS takes at a time, whatever the processor: parts of whole such blocks waste nothing.
BLOCK = 64

__all__ = ["product"]


def product(a: HostArray, b: HostArray, whole: bool = True, /) -> HostArray:
    """a (N, K) times b (K, M); a product of one step never wakes BLAS's second thread, which all others would wait for."""
    work = a.size * b.shape[1]
    if work <= ALONE:
        result: HostArray = np.dot(a, b)
        return result
    large = work * a.itemsize >= LARGE
    if whole and not large:
        result = blas().product(a, b, whole)
        return result
    with blas().limit_threads(1):
        threads = allowed() if large else 1
        if threads < 2:
            result = np.dot(a, b)
            return result
        return _sum_of_parts(a, b, threads) if a.shape[1] > a.shape[0] else _rows(a, b, threads)


def _rows(a: HostArray, b: HostArray, threads: int) -> HostArray:
    out = np.empty((a.shape[0], b.shape[1]), a.dtype)

    def rows(first: int, last: int) -> None:
        np.matmul(a[first:last], b, out=out[first:last])

    run(rows, divided(a.shape[0], threads, BLOCK))
    return out


def _sum_of_parts(a: HostArray, b: HostArray, threads: int) -> HostArray:
    """Of a short and wide a, each thread takes steps of all rows: divided by rows, each would lay out all of b."""
    parts = divided(a.shape[1], threads, BLOCK)
    sums = np.empty((len(parts), a.shape[0], b.shape[1]), a.dtype)
    of_part = {part: sums[n] for n, part in enumerate(parts)}

    def steps(first: int, last: int) -> None:
        np.matmul(a[:, first:last], b[first:last], out=of_part[first, last])

    run(steps, parts)
    total: HostArray = sums[0]
    for other in sums[1:]:
        total += other
    return total
