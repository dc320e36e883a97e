"""NOT CuPy: a stand-in for tests, made of NumPy. NO GPU CODE IS RUN, and nothing here says that the GPU's results are right.

It shows what can go wrong around CuPy on any machine: it has several devices of which one is current in each thread, and
is as strict as CuPy 14, or stricter. Its arrays do not turn into NumPy's by themselves and do not mix with them, reductions
have an axis-less array as their result, creation functions know the current device only, an array of another device is
an error wherever CuPy would reach through to it (or has no peer access), and so is a copy on another device's stream.
:mod:`cupy._traffic` counts what passes between host and devices.

It is for a process of its own that has this folder on PYTHONPATH and says in RNNCORE_FAKE_CUPY how many devices there are
("2"; with "0" CUDA finds none). Without that variable, or beside the real CuPy, it refuses to be imported.
"""

import os
import sys

if not os.environ.get("RNNCORE_FAKE_CUPY"):
    raise ImportError(
        "this is the tests' stand-in for CuPy, and RNNCORE_FAKE_CUPY is not set: it is not to be used here"
    )
if "cupy_backends" in sys.modules:
    raise ImportError("the real CuPy is imported in this process: its stand-in is not to be used beside it")

from numpy import (  # noqa: F401
    bool_,
    complex64,
    complex128,
    complexfloating,
    dtype,
    e,
    finfo,
    float16,
    float32,
    float64,
    floating,
    generic,
    iinfo,
    inexact,
    inf,
    int8,
    int16,
    int32,
    int64,
    int_,
    integer,
    intp,
    nan,
    newaxis,
    number,
    pi,
    signedinteger,
    uint8,
    uint16,
    uint32,
    uint64,
    unsignedinteger,
)

bool = bool_

from cupy import _core, _operators, cuda, fft, linalg  # noqa: E402, F401
from cupy._array import ndarray  # noqa: E402, F401
from cupy._functions import *  # noqa: E402, F403
from cupy._raw import RawKernel, RawModule  # noqa: E402, F401

__version__ = "14.2.0"


def is_available():
    """Whether there is a device."""
    return cuda.is_available()
