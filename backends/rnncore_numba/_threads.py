"""How many threads a call may use: the limits that users set elsewhere.

Numba's own parallel loops bring a threading layer, and some may not be called from two threads at once or after a fork. What
is needed here is less, and :mod:`rnncore.parallel` has it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from rnncore.parallel import processors


def allowed() -> int:
    """The most threads a call may use now.

    The least of NUMBA_NUM_THREADS, the processors that this process may run on, and the limit of NumPy's BLAS: that is what
    OMP_NUM_THREADS, OPENBLAS_NUM_THREADS and ``threadpoolctl.threadpool_limits`` set.
    """
    from numba import config

    limits = [config.NUMBA_NUM_THREADS, processors(), *(c.num_threads for c in _blas())]  # type: ignore[attr-defined]
    return max(1, min(int(n) for n in limits))


@cache
def _blas() -> tuple[Any, ...]:
    """NumPy's BLAS, or all where it cannot be told apart."""
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

    found = [c for c in ThreadpoolController().lib_controllers if c.user_api == "blas"]
    return tuple([c for c in found if "numpy" in c.filepath] or found)
