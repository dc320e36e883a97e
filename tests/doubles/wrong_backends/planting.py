"""Ways to plant a fault in a sound backend, or in rnncore for as long as a context lasts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from unittest import mock

import array_api_compat.numpy as xp
import numpy as np
from rnncore_numpy._scans import NumpyScans

from rnncore import get_backend
from rnncore.backend.contract import Backend

Plant = Callable[[], AbstractContextManager[Backend]]


def _times(steps, reverse):
    return range(steps - 1, -1, -1) if reverse else range(steps)


@dataclass(frozen=True)
class Wrong:
    """One fault.

    Attributes
    ----------
    name : str
    plant : callable
        A context that has the wrong backend.
    caught : mapping of str to str
        The checks that are named for the fault, and what each must say of it, as a regular expression.
    of : str
        The sound backend: there the same checks pass.
    """

    name: str
    plant: Plant
    caught: Mapping[str, str]
    of: str = "numpy"


class Altered:
    """A backend with other members in the place of some of its own."""

    def __init__(self, backend, **changed):
        vars(self).update({n: getattr(backend, n) for n in dir(backend) if not n.startswith("_")} | changed)


class AlteredNamespace:
    """A namespace with other functions in the place of some of its own."""

    def __init__(self, xp, **changed):
        self._xp = xp
        vars(self).update({n: partial(function, getattr(xp, n)) for n, function in changed.items()})

    def __getattr__(self, name):
        return getattr(self._xp, name)


def members(of="numpy", **changed) -> Plant:
    """A backend with these members."""
    return lambda: nullcontext(Altered(get_backend(of), **changed))


def namespace(of="numpy", *, also=None, **changed) -> Plant:
    """A backend whose namespace has function(right, ...) in the place of each right one, on which all is run: it has no scans
    and no product of its own.
    """

    def plant():
        made = AlteredNamespace(get_backend(of).namespace(), **changed)
        return nullcontext(
            Altered(
                get_backend(of), **{"namespace": lambda: made, "scans": lambda: None, "product": None} | (also or {})
            )
        )

    return plant


def scans(kind, of="numpy") -> Plant:
    """A backend with scans of this class: one object, as in a plugin. The class may have a parameter, the backend."""

    def plant():
        backend = Altered(get_backend(of))
        made = kind(backend) if "__init__" in vars(kind) else kind()
        backend.scans = lambda: made
        return nullcontext(backend)

    return plant


def nonlinear(function) -> Plant:
    """NumPy's backend with function(right, p, h0, w_hh, **options) for its nonlinear scan."""

    class Scans(NumpyScans):
        def nonlinear(self, *given, **options):
            return function(super().nonlinear, *given, **options)

    return scans(Scans)


def linear(function) -> Plant:
    """NumPy's backend with function(right, u, d, s0, m, **options) for its linear scan."""

    class Scans(NumpyScans):
        def linear(self, *given, **options):
            return function(super().linear, *given, **options)

    return scans(Scans)


def steps_of(step, activate=None) -> Plant:
    """NumPy's backend with a plain loop over step(p_t, h, w_hh) = z for its nonlinear scan."""

    def run(right, p, h0, w_hh, /, *, nonlinearity, reverse, overwrite=False):
        out, h = np.empty_like(p), h0
        for t in _times(len(p), reverse):
            z = step(p[t], h, w_hh)
            h = out[t] = nonlinearity(z, xp=xp) if activate is None else activate(nonlinearity, z)
        return out

    return nonlinear(run)


def core(owner, name, function, of="numpy") -> Plant:
    """A sound backend under an rnncore that has function(right, ...) in the place of owner.name."""

    @contextmanager
    def plant():
        right = getattr(owner, name)
        with mock.patch.object(owner, name, lambda *args, **kwargs: function(right, *args, **kwargs)):
            yield get_backend(of)

    return plant


def put(x, where, value):
    x[where] = value
    return x


def torch_scans(nonlinear=None, linear=None) -> Plant:
    """PyTorch's scans with function(right, ...) in the place of one."""

    def plant():
        from rnncore_torch._scans import SCANS, TorchScans

        class Scans(TorchScans):
            def __init__(self, backend):
                super().__init__(SCANS.plain)

        for name, function in (("nonlinear", nonlinear), ("linear", linear)):
            if function is not None:
                right = getattr(SCANS, name)
                setattr(Scans, name, lambda self, *a, right=right, function=function, **o: function(right, *a, **o))
        return scans(Scans, "torch")()

    return plant
