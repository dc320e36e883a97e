"""Choose the code of a scan and its number of threads, from the shape alone, with the measurements behind the rule.

Tiling repacks W on every call, which pays off after a few steps; BLAS reads W in place. Time of a BLAS step loop divided by
the time of the tiles (tanh, float32, one thread, OpenBLAS of NumPy 2.4, AMD EPYC of family 26: Zen 5, AVX-512):

====  ====  =====  =====  =====  =====  =====  ======
   H     B    T=1    T=2    T=4    T=8   T=16    T=64
====  ====  =====  =====  =====  =====  =====  ======
  64     1   0.86    1.5    2.6    4.6    7.8    16
 128     1   0.43   0.74    1.3    2.2    3.4     6.4
 128    16   1.2     1.5    1.7    1.8    1.9     1.9
 256     1   0.19   0.33   0.56   0.87    1.2     1.7
 256     4   0.22   0.36   0.59   0.88    1.2     1.6
 512     1   0.16   0.27   0.44   0.69   0.92     1.4
 512     4   1.1     1.9    3.2    4.6    4.8    11
 512    64   1.1     1.3    1.5    1.4    1.3     1.5
1024     1   0.19   0.35   0.50   0.68   0.81    0.97
1024    16   0.69    1.4    1.8    3.5    1.8     2.6
2048    64   0.58   0.80    1.2    1.3
====  ====  =====  =====  =====  =====  =====  ======

In float64 the ratios differ by a few tenths up to H = 1024; at 2048, where W has 32 MB, they are 0.3 to 0.8 with 64 rows.
Restricted to AVX2 on the same processor, the tiles reach 105 to 117 GFLOP/s per core and OpenBLAS 110.

Time in one thread divided by the time in two, the rows divided between them (same processor, float32, tiles, medians of 650
runs on an idle machine):

=============  ========  =====  ====================
  T, B, H      T B H^2   gain
=============  ========  =====  ====================
 32, 16, 64     2.1e6    0.34
128, 16, 64     8.4e6    0.84
256, 16, 64     1.7e7    1.1
128, 32, 128    6.7e7    1.7
100, 16, 256    1.0e8    1.9
200, 16, 256    2.1e8    1.9
800,  2, 128    2.6e7    0.97   1 row for each
 50,  4, 512    5.2e7    0.90   2 rows for each
 50,  8, 512    1.0e8    1.5    4 rows for each
=============  ========  =====  ====================
"""

from __future__ import annotations

# Up to this width, packing W takes less time than a call of BLAS.
NARROW = 96
# Above it, with few rows, T has to reach H / 24. From 8 rows on, or 2 rows of 512 units, BLAS packs its operands in each step.
WIDTH_PER_STEP = 24
FEW_ROWS, WIDE = 8, 512
# In bytes. A larger W fits in no cache, and BLAS reads it in blocks.
LARGEST = 16 * 2**20
# Multiply-adds (T * B * H * H) and rows that pay for one more thread. Waking a thread takes about 50 us, or 5e6 multiply-adds
# of a core; tiles of fewer rows read W as often for less work.
PER_THREAD = 2**24
ROWS_PER_THREAD = 4


def plan(steps: int, batch: int, width: int, itemsize: int) -> tuple[bool, int]:
    """Return (whether BLAS computes the products, the largest useful number of threads)."""
    if width > NARROW:
        few = batch == 1 or (batch < FEW_ROWS and width < WIDE)
        if steps < (width / WIDTH_PER_STEP if few else 2) or width * width * itemsize > LARGEST:
            return True, 1
    return False, max(1, min(batch // ROWS_PER_THREAD, steps * batch * width * width // PER_THREAD))


def reason(steps: int, batch: int, width: int, itemsize: int) -> str:
    """Explain the result of :func:`plan`."""
    blas, threads = plan(steps, batch, width, itemsize)
    size = width * width * itemsize / 2**20
    if blas:
        if size * 2**20 > LARGEST:
            return f"step by step with BLAS: W has {size:.0f} MB, more than a cache holds"
        return f"step by step with BLAS: T = {steps} is too few steps to repack W for {width} units"
    if batch < 2:
        return "compiled, in one thread: one sequence cannot be divided"
    if batch < 2 * ROWS_PER_THREAD:
        return f"compiled, in one thread: {batch} rows are too few to divide"
    if threads < 2:
        return f"compiled, in one thread: T B H^2 = {steps * batch * width**2:.2g} is too small for a second thread"
    return (
        f"compiled, rows divided among threads: T B H^2 = {steps * batch * width**2:.2g} is enough for up to {threads}"
    )
