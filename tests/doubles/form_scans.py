"""Scans that take every form, and the same with one fault each, for the checks of forms to fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from unittest import mock

import array_api_compat.numpy as xp
import numpy as np
import rnncore_numpy
from rnncore_numpy._scans import NumpyScans

from rnncore import carry as carry_form
from rnncore import scan
from rnncore.backend.abilities import SCAN_FORMS, Abilities
from rnncore.backend.contract import ScanRequest
from rnncore.carry import Carry
from rnncore.network import engine

PLAIN = ScanRequest("linear", 1, 1, 1, "float64", "cpu")


class FormScans(NumpyScans):
    """NumPy's scans, and the reference for the forms that they lack."""

    def unsupported(self, request):
        return None if request.forms else super().unsupported(request)

    def nonlinear(self, p, h0, w_hh, /, *, nonlinearity, reverse, overwrite=False, carry=None, rows=None):
        if carry is None and rows is None and p.ndim == 3:
            return super().nonlinear(p, h0, w_hh, nonlinearity=nonlinearity, reverse=reverse, overwrite=overwrite)
        options = {"nonlinearity": nonlinearity, "reverse": reverse, "xp": xp}
        return scan.nonlinear(p, h0, w_hh, carry=carry, rows=rows, **options)

    def linear(self, u, d, s0, m, /, *, reverse, overwrite=False, rows=None):
        if rows is None and u.ndim == 3:
            return super().linear(u, d, s0, m, reverse=reverse, overwrite=overwrite)
        return scan.linear(u, d, s0, m, reverse=reverse, rows=rows, xp=xp)

    def linear_carry(self, c, o, i, a, x0, m, /, *, reverse, overwrite=False, rows=None):
        return scan.linear_carry(c, o, i, a, x0, m, reverse=reverse, rows=rows, xp=xp)


class FormBackend:
    """NumPy's backend with scans that take forms."""

    contract_version = 2
    scan_forms = frozenset(SCAN_FORMS)

    def __init__(self, scans=FormScans):
        made = scans()
        self.scans = lambda: made

    def __getattr__(self, name):
        return getattr(rnncore_numpy, name)


@dataclass(frozen=True)
class Fault:
    """A wrong implementation, how to plant it, and the checks that must say so, each with a regular expression."""

    name: str
    plant: Callable[[], AbstractContextManager[FormBackend]]
    caught: Mapping[str, str]


def in_scans(**methods) -> Callable[[], AbstractContextManager[FormBackend]]:
    """Scans with function(right, *args, **options) in place of a method."""

    class Wrong(FormScans):
        pass

    def replaced(name, function):
        return lambda self, *args, **options: function(getattr(super(Wrong, self), name), *args, **options)

    for name, function in methods.items():
        setattr(Wrong, name, replaced(name, function))

    @contextmanager
    def plant() -> Iterator[FormBackend]:
        yield FormBackend(Wrong)

    return plant


def in_core(name, function, *places) -> Callable[[], AbstractContextManager[FormBackend]]:
    """function(right, ...) in place of a function of the core, in every module that has it."""

    @contextmanager
    def plant() -> Iterator[FormBackend]:
        right = getattr(places[0], name)
        patches = [mock.patch.object(place, name, lambda *a, **o: function(right, *a, **o)) for place in places]
        for patch in patches:
            patch.start()
        try:
            yield FormBackend()
        finally:
            for patch in patches:
                patch.stop()

    return plant


def with_factors(change) -> Callable[[], AbstractContextManager[FormBackend]]:
    """The nonlinear scan of change(carry)."""

    def nonlinear(run, *args, carry=None, **options):
        return run(*args, carry=carry and change(carry), **options)

    return in_scans(nonlinear=nonlinear)


def a_step_late(factor):
    return factor if factor is None or factor.ndim == 1 else np.concatenate([factor[:1], factor[:-1]])


def plainly(factor, x, /, *, xp):
    return x if factor is None else factor * x


def multiplies(run, p, h0, w_hh, /, *, nonlinearity, reverse, overwrite=False, carry=None, rows=None):
    """Factors that multiply and do not cut."""
    with mock.patch.object(scan, "times", plainly), mock.patch.object(carry_form, "times", plainly):
        return run(p, h0, w_hh, nonlinearity=nonlinearity, reverse=reverse, carry=carry, rows=rows)


def runs_on(run, *args, rows=None, **options):
    """The padding is run like any step."""
    return run(*args, **options)


def keeps_the_last_state(run, p, h0, w_hh, /, *, rows=None, **options):
    h = run(p, h0, w_hh, rows=rows, **options)
    for t in range(1, len(h) if rows is not None else 0):
        h[t, rows[t] :] = h[t - 1, rows[t] :]
    return h


def starts_late(run, p, h0, w_hh, /, *, reverse, rows=None, **options):
    """In reverse a row starts from 0 at its own end, its first state forgotten."""
    if rows is not None and reverse:
        h0 = np.where(np.arange(len(h0))[:, None] < rows[-1], h0, 0.0).astype(h0.dtype)
    return run(p, h0, w_hh, reverse=reverse, rows=rows, **options)


def first_matrix(run, *args, **options):
    *first, w = args
    return run(*first, np.broadcast_to(w[:1], w.shape) if w.ndim == 3 else w, **options)


def exchanged(run, c, o, i, a, x0, m, /, **options):
    return run(c, i, o, a, x0, m, **options)


def into_c(run, c, *args, **options):
    out = run(c, *args, **options)
    c[...] = out
    return out


def slope_from_h(right, p, h0, w_hh, h, carry, f, reverse, xp):
    found = right(p, h0, w_hh, h, carry, f, reverse, xp)
    d = f.derivative_from_h(h, xp=xp) if not f.derivative_needs_z else found.slope
    return found._replace(slope=d, d=d if found.factors.g is None else found.factors.g * d)


FAULTS = (
    Fault(
        "the state is not kept",
        with_factors(lambda c: c._replace(a=None)),
        {"RC-CARRY-001": r"h \(tanh\) \(kernel", "RC-CARRY-007": r"h \(kernel"},
    ),
    Fault(
        "g is left out", with_factors(lambda c: c._replace(g=None)), {"RC-CARRY-001": r"kernel", "RC-KER-011": r"'g'"}
    ),
    Fault(
        "i is left out",
        with_factors(lambda c: c._replace(i=None)),
        {"RC-CARRY-001": r"kernel", "RC-CARRY-008": r"kernel"},
    ),
    Fault(
        "factors are those of the step before",
        with_factors(lambda c: Carry(*map(a_step_late, c))),
        {"RC-CARRY-001": r"kernel", "RC-CARRY-009": r"kernel", "RC-KER-011": r"'step'"},
    ),
    Fault(
        "every unit has the first one's factor",
        with_factors(lambda c: Carry(*(k if k is None or k.ndim > 1 else k[:1] for k in c))),
        {"RC-CARRY-001": r"kernel.*\(5,\)", "RC-KER-011": r"'unit'"},
    ),
    Fault(
        "a factor of 0 multiplies and does not cut",
        in_scans(nonlinear=multiplies),
        {"RC-CARRY-008": r"nan \(kernel", "RC-CARRY-009": r"nan in the padding \(kernel"},
    ),
    Fault(
        "o and i of the linear scan change places",
        in_scans(linear_carry=exchanged),
        {"RC-CARRY-002": r"kernel", "RC-CARRY-004": r"kernel", "RC-CARRY-006": r"kernel", "RC-KER-011": r"linear scan"},
    ),
    Fault(
        "M of the linear scan with carry is transposed",
        in_scans(linear_carry=lambda run, *a, **o: run(*a[:5], np.swapaxes(a[5], -1, -2), **o)),
        {"RC-CARRY-002": r"kernel", "RC-CARRY-003": r"kernel", "RC-CARRY-005": r"kernel", "RC-NETS-002": r"network 0"},
    ),
    Fault(
        "the linear scan with carry runs forwards only",
        in_scans(linear_carry=lambda run, *a, reverse, **o: run(*a, reverse=False, **o)),
        {"RC-CARRY-002": r"kernel, reverse", "RC-CARRY-010": r"kernel, reverse"},
    ),
    Fault("c is overwritten without leave", in_scans(linear_carry=into_c), {"RC-CARRY-011": r"p \(kernel\)"}),
    Fault("padding is run", in_scans(nonlinear=runs_on), {"RC-RAGGED-001": r"kernel", "RC-RAGGED-004": r"h \(kernel"}),
    Fault(
        "padding is run by the linear scans",
        in_scans(linear=runs_on, linear_carry=runs_on),
        {"RC-RAGGED-002": r"kernel", "RC-RAGGED-003": r"kernel", "RC-RAGGED-004": r"x \(kernel"},
    ),
    Fault(
        "past its end a row keeps its last state",
        in_scans(nonlinear=keeps_the_last_state),
        {"RC-RAGGED-001": r"h with 0.0 in the padding \(kernel\)\[4, 1"},
    ),
    Fault(
        "in reverse a row begins from 0",
        in_scans(nonlinear=starts_late),
        {"RC-RAGGED-001": r"kernel, reverse", "RC-RAGGED-004": r"kernel, reverse"},
    ),
    Fault(
        "all networks have the first one's matrix",
        in_scans(nonlinear=first_matrix, linear=first_matrix),
        {"RC-NETS-001": r"h of network 1 \(kernel", "RC-KER-011": r"networks"},
    ),
    Fault(
        "the linear scan of networks has the first one's matrix",
        in_scans(linear=first_matrix),
        {"RC-NETS-001": r"s of network 1 \(kernel"},
    ),
    Fault(
        "f' is computed from h, although a state is mixed into it",
        in_core("_lived", slope_from_h, scan),
        {"RC-CARRY-003": r"tanh", "RC-CARRY-004": r"tangent of h"},
    ),
    Fault(
        "factors of the pullback are not those of the step after",
        in_core("after", lambda right, factor, **o: factor, scan, carry_form),
        {"RC-CARRY-003": r"d\w+ \(tanh\)", "RC-CARRY-005": r"cotangent of"},
    ),
    Fault(
        "the reference multiplies by 0 and does not cut",
        in_core("times", lambda right, factor, x, **o: plainly(factor, x, **o), scan, carry_form),
        {"RC-CARRY-008": r"nan", "RC-CARRY-009": r"nan in the padding"},
    ),
    Fault(
        "the cotangent of a factor has the shape of the states",
        in_core("_sum_as", lambda right, x, like, xp: x if x.ndim > like.ndim else right(x, like, xp), carry_form),
        {"RC-CARRY-003": r"da .*expected shape \(5,\), got \(6, 3, 5\)"},
    ),
    Fault(
        "tangents of factors are left out",
        in_core("with_tangent", lambda right, source, *a, **o: source, scan, carry_form),
        {"RC-CARRY-004": r"tangent of h", "RC-CARRY-006": r"tangent of x"},
    ),
    Fault(
        "the core gives a form to scans that do not name it",
        in_core("choose", lambda right, self, r: right(self, PLAIN), engine.Engine),
        {"RC-KER-009": r"carry is not named, but was given"},
    ),
    Fault(
        "the core never gives a form",
        in_core("choose", lambda right, self, r: right(replace(self, abilities=Abilities()), r), engine.Engine),
        {"RC-KER-010": r"raised KernelUnsupportedError"},
    ),
    Fault(
        "factors reach the scans in the shapes in which they were given",
        in_core("over", lambda right, self, shape, **o: self, Carry),
        {"RC-KER-010": r"expected \(\(\('a', 'step'\).*|factors: expected shapes"},
    ),
    Fault(
        "rows do not reach the scans",
        in_core("nonlinear", lambda right, *a, rows=None, **o: right(*a, **o), engine.Engine),
        {"RC-RAGGED-001": r"h with", "RC-KER-010": r"the request of the form ragged"},
    ),
)
