"""Matrix products over all steps. Large ones are divided among the threads that run the scans.

After each product, BLAS's own second thread spins for about 20 ms, on a processor that the next scan needs. At (T, B, H) =
(512, 64, 512) with two threads, this makes forward 1.4 times and forward and backward 1.3 times as slow. Smaller products
profit from the spinning thread: divided here, they take up to 1.3 times as long (two processors, OpenBLAS of NumPy 2.4).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rnncore_numba._threads import allowed, blas, divided, held_to_one, run

HostArray = np.ndarray[Any, Any]
# Multiplications times bytes per number from which a product is divided among this plugin's threads.
LARGE = 4 * 10**8
# Multiplications up to which BLAS itself uses one thread, for any shapes.
ALONE = 2**13
# BLAS works on blocks of rows whose size divides this on any processor, so parts of whole blocks waste nothing.
BLOCK = 64

__all__ = ["product"]


def product(a: HostArray, b: HostArray, whole: bool = True, /) -> HostArray:
    """Multiply a (N, K) by b (K, M). A product of one step uses one thread: a second would delay all later steps."""
    work = a.size * b.shape[1]
    if work <= ALONE:
        result: HostArray = np.dot(a, b)
        return result
    large = work * a.itemsize >= LARGE
    if whole and not large and not held_to_one():
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
    """Divide a short, wide a by columns: divided by rows, every thread would repack all of b."""
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
