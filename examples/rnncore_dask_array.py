"""A backend for a lazy library: Dask's arrays, which record operations as a graph and compute when numbers are asked for.

``rnncore.testing.check_backend(rnncore_dask_array, limit=600)`` runs the conformance suite on it. To install it, it needs an
entry point, as docs/writing-a-backend.md shows. Each function that differs from an eager library's says why.
"""

import math
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np

import rnncore
from rnncore import scan

name = "dask"
native_package = "dask.array"
contract_version = 2

RNN, RNNCell = rnncore.bound_to(name)


def namespace():
    """That of array-api-compat with one function corrected."""
    import array_api_compat.dask.array as xp

    return SimpleNamespace(**{n: getattr(xp, n) for n in dir(xp)} | {"reshape": partial(_reshape, xp)})


def is_native(x, /):
    library = sys.modules.get("dask.array")
    return library is not None and isinstance(x, library.Array)


def devices():
    return ("cpu",)


def asarray(x, /, *, dtype, device):
    """One chunk: a graph has a node for each chunk of each operation."""
    import dask.array

    return dask.array.from_array(np.array(x, dtype=dtype), chunks=-1)


def to_numpy(x, /):
    """Compute the graph of x. Nothing else does, and nothing is kept: two arrays with the same past compute it twice."""
    return np.asarray(x.compute(scheduler="synchronous"))


def synchronize(device, /):
    """Nothing is running."""


def scans():
    return _Scans()


class _Scans:
    """Each scan is one node, which runs the reference on NumPy's arrays. As operations it would be some five for each step."""

    def unsupported(self, request, /):
        return None

    def nonlinear(self, p, h0, w_hh, /, *, nonlinearity, reverse, overwrite=False):
        return _node(partial(scan.nonlinear, nonlinearity=nonlinearity, reverse=reverse), p, h0, w_hh)

    def linear(self, u, d, s0, m, /, *, reverse, overwrite=False):
        return _node(partial(scan.linear, reverse=reverse), u, d, s0, m)


def _node(run, first, *others):
    """run(first, *others) as one node of the graph, of the shape and dtype of `first`."""
    import dask
    import dask.array

    lazy = dask.delayed(_on_numpy)(run, first, *others)
    return dask.array.from_delayed(lazy, first.shape, dtype=first.dtype)


def _on_numpy(run, *arrays):
    import array_api_compat.numpy as xp

    return run(*arrays, xp=xp)


def _reshape(xp, x, /, shape, *, copy=None):
    """Dask's cannot reshape an array without elements."""
    return xp.reshape(x, shape) if math.prod(x.shape) else xp.zeros(shape, dtype=x.dtype)
