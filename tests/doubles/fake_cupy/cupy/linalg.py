"""CuPy's linear algebra: NumPy's."""

import numpy

from cupy import _functions, _wrap

__all__ = _wrap.public(
    "cholesky det eigh eigvalsh inv lstsq matrix_power matrix_rank norm pinv qr slogdet solve svd cross",
    numpy.linalg,
    _wrap.function,
    globals(),
)
matmul, matrix_transpose = _functions.matmul, _functions.matrix_transpose
__all__ += ["matmul", "matrix_transpose"]
