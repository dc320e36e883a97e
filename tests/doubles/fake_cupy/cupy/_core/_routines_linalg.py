"""How CuPy decides on TF32: once, from CUPY_TF32, at the first product or the first question."""

import os

import numpy

COMPUTE_TYPE_TBD, COMPUTE_TYPE_DEFAULT, COMPUTE_TYPE_TF32 = 0, 1, 7

_settled: dict[str, int] = {}


def get_compute_type(dtype):
    """The compute type of products of this dtype."""
    char = numpy.dtype(dtype).char
    if char not in _settled:
        wanted = char in "fF" and int(os.getenv("CUPY_TF32", "0")) > 0
        _settled[char] = COMPUTE_TYPE_TF32 if wanted else COMPUTE_TYPE_DEFAULT
    return _settled[char]
