"""The two scans in plain Array API: the reference, and the specification of every kernel.

    nonlinear    h_t = f(p_t + h_{t-1} W^T)
    linear       s_t = d_t * (u_t + s_{t-1} M)

W is ``weight_hh``; time is the leading axis. With ``reverse`` time runs from T - 1 down to 0, and t + 1 replaces t - 1. A scan
takes a first state, and its result contains the last one, so time can be cut anywhere.

The pair is closed under differentiation, so no third primitive is needed:

- the VJP of the nonlinear scan is a linear scan against time with d = f' and M = W  (backpropagation through time,
  Werbos 1990, "Backpropagation through time: what it does and how to do it");
- its JVP is a linear scan along time with d = f' and M = W^T;
- the VJP of a linear scan is a linear scan against its time with the same d and M^T, its JVP one along it.

Each scan has three more forms, which can be combined:

- **carry**: factors for leaks, resets, padding and dropout of the state. :mod:`rnncore.carry` has the formulas and the linear
  scan of this form.
- **ragged**: ``rows``, the number of rows that run at each step, longest sequence first. Padding is not read, and is 0 in
  the result. In reverse a row starts from its first state at its own end.
- **networks**: p, u, d and the states have further axes before B, and w_hh one matrix for each: (T, ..., B, H), (..., H, H).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

from rnncore.carry import (
    Carry,
    LinearCarryCotangents,
    after,
    at_first,
    by_rows,
    factor_cotangent,
    in_time,
    linear_carry,
    linear_carry_jvp,
    linear_carry_vjp,
    mixed,
    outer,
    previous,
    seen,
    stacked,
    times,
    with_tangent,
)
from rnncore.errors import ArgumentValueError
from rnncore.nonlinearity.nonlinearity import Nonlinearity
from rnncore.typing import Array, Namespace

__all__ = [
    "Carry",
    "LinearCarryCotangents",
    "LinearCotangents",
    "NonlinearCotangents",
    "linear",
    "linear_carry",
    "linear_carry_jvp",
    "linear_carry_vjp",
    "linear_jvp",
    "linear_vjp",
    "nonlinear",
    "nonlinear_jvp",
    "nonlinear_vjp",
    "pre_activation",
    "previous",
    "slope",
]

Scan: TypeAlias = Callable[..., Array]


class NonlinearCotangents(NamedTuple):
    """Cotangents from :func:`nonlinear_vjp`, None where not needed. `carry` has those of the given factors."""

    p: Array
    h0: Array
    w_hh: Array
    carry: Carry | None = None


class LinearCotangents(NamedTuple):
    """Cotangents from :func:`linear_vjp`, in the order of the scan's arguments; None where not needed."""

    u: Array
    d: Array
    s0: Array
    m: Array


def nonlinear(
    p: Array,
    h0: Array,
    w_hh: Array,
    /,
    *,
    nonlinearity: Nonlinearity,
    reverse: bool,
    xp: Namespace,
    carry: Carry | None = None,
    rows: Sequence[int] | None = None,
) -> Array:
    """``h_t = f(p_t + h_{t-1} W^T)``, or with `carry` ``h_t = a_t * h_{t-1} + g_t * f(p_t + (i_t * h_{t-1}) W^T)``.

    Parameters
    ----------
    p : array (T, B, H)
        The input's part of the pre-activation, including the bias.
    h0 : array (B, H)
        The state before the first step.
    w_hh : array (H, H)
    nonlinearity : Nonlinearity
    reverse : bool
        Whether to run from the last step to the first.
    xp : Array API namespace
    carry : Carry, optional
        The factors a, g and i.
    rows : sequence of int, optional
        The number of rows that run at each of the T steps, longest sequence first; all rows by default.

    Returns
    -------
    array (T, B, H)
        h_t at its own t, in either direction; 0 where a row does not run.

    Raises
    ------
    ArgumentValueError
        If `rows` are not T numbers in [0, B], each at most the one before.
    """
    factors = None if carry is None else carry.over(p.shape, xp=xp)
    if rows is not None:
        options = {"nonlinearity": nonlinearity, "reverse": reverse, "xp": xp}
        return by_rows(
            lambda cut, h: nonlinear(cut(p), h, w_hh, carry=factors and factors.cut(cut), **options),
            rows, h0, p, reverse=reverse, xp=xp,
        )  # fmt: skip
    w_t = xp.matrix_transpose(w_hh)
    h = h0
    states = []
    if factors is None:
        for p_t in in_time(p, reverse):
            h = nonlinearity(p_t + xp.matmul(h, w_t), xp=xp)
            states.append(h)
        return stacked(states, p, reverse, xp)
    each = (in_time(k, reverse, steps=p.shape[0]) for k in factors)
    for p_t, a_t, g_t, i_t in zip(in_time(p, reverse), *each, strict=True):
        value = nonlinearity(p_t + xp.matmul(times(i_t, h, xp=xp), w_t), xp=xp)
        h = mixed(a_t, h, times(g_t, value, xp=xp), xp=xp)
        states.append(h)
    return stacked(states, p, reverse, xp)


def linear(
    u: Array, d: Array, s0: Array, m: Array, /, *, reverse: bool, xp: Namespace, rows: Sequence[int] | None = None
) -> Array:
    """``s_t = d_t * (u_t + s_{t-1} M)``.

    Parameters
    ----------
    u, d : array (T, B, H)
    s0 : array (B, H)
        The state before the first step.
    m : array (H, H)
    reverse : bool
        Whether to run from the last step to the first.
    xp : Array API namespace
    rows : sequence of int, optional
        The number of rows that run at each step, as in :func:`nonlinear`.

    Returns
    -------
    array (T, B, H)
    """
    if rows is not None:
        options = {"reverse": reverse, "xp": xp}
        return by_rows(lambda cut, s: linear(cut(u), cut(d), s, m, **options), rows, s0, u, **options)
    s = s0
    states = []
    for u_t, d_t in zip(in_time(u, reverse), in_time(d, reverse), strict=True):
        s = d_t * (u_t + xp.matmul(s, m))
        states.append(s)
    return stacked(states, u, reverse, xp)


def nonlinear_vjp(
    d_h: Array,
    p: Array | None,
    h0: Array,
    w_hh: Array,
    h: Array,
    /,
    *,
    nonlinearity: Nonlinearity,
    reverse: bool,
    xp: Namespace,
    carry: Carry | None = None,
    linear_scan: Scan | None = None,
    needs: Sequence[bool] = (True, True, True),
) -> NonlinearCotangents:
    """Cotangents of ``nonlinear(p, h0, w_hh) = h`` for the cotangent d_h of h. p may be None if h determines f'.

    `linear_scan(u, d, s0, m, reverse=...)`, such as a kernel's, replaces :func:`linear`. `needs` says for each argument whether
    its cotangent is computed; that of p always is. With `carry` p is required, all cotangents are computed, and `linear_scan`
    replaces :func:`linear_carry` and has its arguments. See :func:`_carry_vjp`.
    """
    if carry is not None:
        lived = _lived(p, h0, w_hh, h, carry, nonlinearity, reverse, xp)
        return _carry_vjp(d_h, h0, w_hh, carry, lived, reverse, xp, linear_scan)
    scan = linear_scan or partial(linear, xp=xp)
    d = slope(p, h0, w_hh, h, nonlinearity=nonlinearity, reverse=reverse, xp=xp)
    delta = scan(d_h, d, xp.zeros_like(h0), w_hh, reverse=not reverse)
    d_h0 = xp.matmul(at_first(delta, reverse), w_hh) if needs[1] else None
    d_w = outer(delta, previous(h, h0, reverse=reverse, xp=xp), w_hh, xp=xp) if needs[2] else None
    return NonlinearCotangents(delta, d_h0, d_w)


def nonlinear_jvp(
    p_dot: Array | None,
    h0_dot: Array | None,
    w_dot: Array | None,
    p: Array | None,
    h0: Array,
    w_hh: Array,
    h: Array,
    /,
    *,
    nonlinearity: Nonlinearity,
    reverse: bool,
    xp: Namespace,
    carry: Carry | None = None,
    carry_dot: Carry | None = None,
    linear_scan: Scan | None = None,
) -> Array:
    """The tangent of h for tangents of p, h0 and w_hh, and of the factors in `carry_dot`. None is a tangent of 0.

    With `carry`, p and the first three tangents are required. See :func:`nonlinear_vjp` for `linear_scan`.
    """
    if carry is not None:
        lived = _lived(p, h0, w_hh, h, carry, nonlinearity, reverse, xp)
        scan = linear_scan or partial(linear_carry, xp=xp)
        return _carry_jvp(p_dot, h0_dot, w_dot, w_hh, carry_dot or Carry(), lived, reverse, xp, scan)
    scan = linear_scan or partial(linear, xp=xp)
    d = slope(p, h0, w_hh, h, nonlinearity=nonlinearity, reverse=reverse, xp=xp)
    u = xp.zeros_like(h) if p_dot is None else p_dot
    if w_dot is not None:
        u = u + xp.matmul(previous(h, h0, reverse=reverse, xp=xp), xp.matrix_transpose(w_dot))
    return scan(u, d, xp.zeros_like(h0) if h0_dot is None else h0_dot, xp.matrix_transpose(w_hh), reverse=reverse)


def linear_vjp(
    d_s: Array,
    u: Array,
    d: Array,
    s0: Array,
    m: Array,
    s: Array,
    /,
    *,
    reverse: bool,
    xp: Namespace,
    linear_scan: Scan | None = None,
    needs: Sequence[bool] = (True, True, True, True),
) -> LinearCotangents:
    """Cotangents of ``linear(u, d, s0, m) = s`` for the cotangent d_s of s.

    With g_t the total cotangent of s_t and e_t = d_t * g_t that of the bracket, ``e_t = d_t * (ds_t + e_{t+1} M^T)``:
    the linear scan against time. Then du = e, dd = g * (u + s_{t-1} M), dM = sum_t s_{t-1}^T e_t, ds0 = e_first M^T.
    See :func:`nonlinear_vjp` for `linear_scan` and `needs`; u's cotangent is always computed.
    """
    scan = linear_scan or partial(linear, xp=xp)
    m_t, zero = xp.matrix_transpose(m), xp.zeros_like(s0)
    e = scan(d_s, d, zero, m_t, reverse=not reverse)
    before = previous(s, s0, reverse=reverse, xp=xp)
    d_d = None
    if needs[1]:
        after = previous(e, zero, reverse=not reverse, xp=xp)
        # Not by s / d and e / d: d may be exactly 0, and these two products are then still correct.
        d_d = (d_s + xp.matmul(after, m_t)) * (u + xp.matmul(before, m))
    d_s0 = xp.matmul(at_first(e, reverse), m_t) if needs[2] else None
    d_m = outer(before, e, m, xp=xp) if needs[3] else None
    return LinearCotangents(e, d_d, d_s0, d_m)


def linear_jvp(
    u_dot: Array | None,
    d_dot: Array | None,
    s0_dot: Array | None,
    m_dot: Array | None,
    u: Array,
    d: Array,
    s0: Array,
    m: Array,
    s: Array,
    /,
    *,
    reverse: bool,
    xp: Namespace,
    linear_scan: Scan | None = None,
) -> Array:
    """The tangent of s for tangents of u, d, s0 and m; None is a tangent of 0. It is a linear scan again.

    ``s'_t = d'_t * b_t + d_t * (u'_t + s_{t-1} M' + s'_{t-1} M)`` with the bracket b_t = u_t + s_{t-1} M. The first term is
    outside the factor d_t, so it is split off: s' = c + r with c_t = d'_t * b_t, and r is the linear scan
    r_t = d_t * (u'_t + s_{t-1} M' + c_{t-1} M + r_{t-1} M). See :func:`nonlinear_vjp` for `linear_scan`.
    """
    scan = linear_scan or partial(linear, xp=xp)
    before, zero = previous(s, s0, reverse=reverse, xp=xp), xp.zeros_like(s0)
    source = xp.zeros_like(u) if u_dot is None else u_dot
    if m_dot is not None:
        source = source + xp.matmul(before, m_dot)
    first = zero if s0_dot is None else s0_dot
    if d_dot is None:
        return scan(source, d, first, m, reverse=reverse)
    c = d_dot * (u + xp.matmul(before, m))
    source = source + xp.matmul(previous(c, zero, reverse=reverse, xp=xp), m)
    return c + scan(source, d, first, m, reverse=reverse)


def pre_activation(p: Array, h0: Array, w_hh: Array, h: Array, /, *, reverse: bool, xp: Namespace) -> Array:
    """Recompute z_t = p_t + h_{t-1} W^T for all steps from the states, by one product without a loop."""
    return p + xp.matmul(previous(h, h0, reverse=reverse, xp=xp), xp.matrix_transpose(w_hh))


def slope(
    p: Array | None, h0: Array, w_hh: Array, h: Array, /, *, nonlinearity: Nonlinearity, reverse: bool, xp: Namespace
) -> Array:
    """f' at every step: from h if h determines it, else from z, which one product recomputes from p."""
    if not nonlinearity.derivative_needs_z:
        return nonlinearity.derivative_from_h(h, xp=xp)
    if p is None:
        raise ArgumentValueError(f"p: expected an array, as {nonlinearity.name!r} has its derivative from z, got None")
    z = pre_activation(p, h0, w_hh, h, reverse=reverse, xp=xp)
    return nonlinearity.derivative(z, xp=xp)


# --- derivatives with carry -------------------------------------------------------------------------------------------


class _Lived(NamedTuple):
    """Quantities at every step that both derivatives need. With carry, h does not determine f'."""

    factors: Carry  # in the shapes of `spread`
    before: Array  # h_{t-1}
    read: Array  # i * h_{t-1}
    z: Array
    value: Array  # f(z)
    slope: Array  # f'(z)
    d: Array  # g * f'(z)


def _lived(
    p: Array | None, h0: Array, w_hh: Array, h: Array, carry: Carry, f: Nonlinearity, reverse: bool, xp: Namespace
) -> _Lived:
    if p is None:
        raise ArgumentValueError("p: expected an array, as with carry f' is computed from z, got None")
    factors = carry.over(h.shape, xp=xp)
    before = previous(h, h0, reverse=reverse, xp=xp)
    read = times(factors.i, before, xp=xp)
    z = p + xp.matmul(read, xp.matrix_transpose(w_hh))
    slope_z = f.derivative(z, xp=xp)
    return _Lived(factors, before, read, z, f(z, xp=xp), slope_z, times(factors.g, slope_z, xp=xp))


def _carry_vjp(
    d_h: Array, h0: Array, w_hh: Array, carry: Carry, at: _Lived, reverse: bool, xp: Namespace, linear_scan: Scan | None
) -> NonlinearCotangents:
    """Cotangents with carry, from the total cotangent l of h, a linear scan against time with d = g * f'.

    ``l_t = dh_t + a_{t+1} * l_{t+1} + i_{t+1} * ((d_{t+1} * l_{t+1}) W)``. Then dp = d * l, dW = sum_t dp_t^T (i * h_{t-1}),
    dh0 = a * l + i * (dp W) at the first step, da = l * h_{t-1}, dg = l * f and di = (dp W) * h_{t-1}.
    """
    scan = linear_scan or partial(linear_carry, xp=xp)
    a, g, i = at.factors
    late_i, late_d, late_a = (after(k, reverse=reverse, xp=xp) for k in (i, at.d, a))
    whole = scan(d_h, late_i, late_d, late_a, xp.zeros_like(h0), w_hh, reverse=not reverse)
    delta = times(g, at.slope * whole, xp=xp)
    a_0, i_0, whole_0, delta_0 = (at_first(k, reverse) for k in (a, i, whole, delta))
    d_h0 = mixed(a_0, whole_0, times(i_0, xp.matmul(delta_0, w_hh), xp=xp), xp=xp)
    back = None if i is None else xp.matmul(delta, w_hh)
    d_a = factor_cotangent(whole, at.before, a, carry.a, xp=xp)
    d_g = factor_cotangent(whole, at.value, g, carry.g, xp=xp)
    d_i = factor_cotangent(back, at.before, i, carry.i, xp=xp)
    return NonlinearCotangents(delta, d_h0, outer(delta, at.read, w_hh, xp=xp), Carry(d_a, d_g, d_i))


def _carry_jvp(
    u: Array, s0: Array, w_dot: Array, w_hh: Array, dots: Carry, at: _Lived, reverse: bool, xp: Namespace, scan: Scan
) -> Array:
    """Linear scan with o = d and ``c = d * (p' + (i' * h_{t-1}) W^T + (i * h_{t-1}) W'^T) + a' * h_{t-1} + g' * f``."""
    w_t, (a, g, i) = xp.matrix_transpose(w_hh), at.factors
    u = u + xp.matmul(at.read, xp.matrix_transpose(w_dot))
    if i is not None and dots.i is not None:
        u = u + xp.matmul(dots.i * seen(at.before, i, xp=xp), w_t)
    c = with_tangent(times(g, at.slope * u, xp=xp, by=at.z), dots.a, a, at.before, xp=xp)
    c = with_tangent(c, dots.g, g, at.value, xp=xp)
    return scan(c, at.d, i, a, s0, w_t, reverse=reverse)
