"""The two scans in plain Array API: the reference, and the specification of every kernel.

    nonlinear    h_t = f(p_t + h_{t-1} W^T)
    linear       s_t = d_t * (u_t + s_{t-1} M)

W is ``weight_hh``; time is the leading axis. With ``reverse`` time runs from T - 1 down to 0, so that t + 1 stands for
t - 1. A scan takes a first state and its last one is in the result, so time can be cut anywhere.

The pair is closed under differentiation, which is why no third primitive is needed. With e the cotangent of the bracket,

- the VJP of the nonlinear scan is a linear scan against time with d = f' and M = W  (backpropagation through time,
  Werbos 1990, "Backpropagation through time: what it does and how to do it");
- its JVP is a linear scan along time with d = f' and M = W^T;
- the VJP of a linear scan is a linear scan against its time with the same d and M^T, its JVP one along it.

p, u, d and the states may carry further batch axes before B, and w_hh then one matrix for each: (T, ..., B, H), (..., H, H).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from rnncore.errors import ArgumentValueError
from rnncore.nonlinearity.nonlinearity import Nonlinearity
from rnncore.typing import Array, Namespace

__all__ = [
    "LinearCotangents",
    "NonlinearCotangents",
    "linear",
    "linear_jvp",
    "linear_vjp",
    "nonlinear",
    "nonlinear_jvp",
    "nonlinear_vjp",
    "pre_activation",
    "previous",
    "slope",
]


class NonlinearCotangents(NamedTuple):
    """Cotangents from :func:`nonlinear_vjp`, in the order of the scan's arguments; None where not needed."""

    p: Array
    h0: Array
    w_hh: Array


class LinearCotangents(NamedTuple):
    """Cotangents from :func:`linear_vjp`, in the order of the scan's arguments; None where not needed."""

    u: Array
    d: Array
    s0: Array
    m: Array


def nonlinear(
    p: Array, h0: Array, w_hh: Array, /, *, nonlinearity: Nonlinearity, reverse: bool, xp: Namespace
) -> Array:
    """``h_t = f(p_t + h_{t-1} W^T)``.

    Parameters
    ----------
    p : array (T, B, H)
        The input's share of the pre-activation, bias included.
    h0 : array (B, H)
        The state before the first step.
    w_hh : array (H, H)
    nonlinearity : Nonlinearity
    reverse : bool
        From the last step to the first.
    xp : Array API namespace

    Returns
    -------
    array (T, B, H)
        h_t at its own t, in either direction.
    """
    w_t = xp.matrix_transpose(w_hh)
    h = h0
    states = []
    for p_t in _in_time(p, reverse):
        h = nonlinearity(p_t + xp.matmul(h, w_t), xp=xp)
        states.append(h)
    return _stacked(states, p, reverse, xp)


def linear(u: Array, d: Array, s0: Array, m: Array, /, *, reverse: bool, xp: Namespace) -> Array:
    """``s_t = d_t * (u_t + s_{t-1} M)``.

    Parameters
    ----------
    u, d : array (T, B, H)
    s0 : array (B, H)
        The state before the first step.
    m : array (H, H)
    reverse : bool
        From the last step to the first.
    xp : Array API namespace

    Returns
    -------
    array (T, B, H)
    """
    s = s0
    states = []
    for u_t, d_t in zip(_in_time(u, reverse), _in_time(d, reverse), strict=True):
        s = d_t * (u_t + xp.matmul(s, m))
        states.append(s)
    return _stacked(states, u, reverse, xp)


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
    linear_scan: Callable[..., Array] | None = None,
    needs: Sequence[bool] = (True, True, True),
) -> NonlinearCotangents:
    """Cotangents of ``nonlinear(p, h0, w_hh) = h`` for the cotangent d_h of h. p may be None where h determines f'.

    `linear_scan(u, d, s0, m, reverse=...)`, such as a kernel's, runs in place of :func:`linear`. Where an entry of `needs` is
    False, the product for that argument is skipped; p's cotangent is always there, as the others are made of it.
    """
    scan = linear_scan or partial(linear, xp=xp)
    d = slope(p, h0, w_hh, h, nonlinearity=nonlinearity, reverse=reverse, xp=xp)
    delta = scan(d_h, d, xp.zeros_like(h0), w_hh, reverse=not reverse)
    d_h0 = d_w = None
    if needs[1]:
        d_h0 = xp.matmul(delta[-1, ...] if reverse else delta[0, ...], w_hh)
    if needs[2]:
        d_w = _sum_to(_outer(delta, previous(h, h0, reverse=reverse, xp=xp), xp), w_hh.ndim, xp)
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
    linear_scan: Callable[..., Array] | None = None,
) -> Array:
    """The tangent of h for tangents of p, h0 and w_hh; None is a tangent of zero.

    `linear_scan`: as in :func:`nonlinear_vjp`.
    """
    scan = linear_scan or partial(linear, xp=xp)
    d = slope(p, h0, w_hh, h, nonlinearity=nonlinearity, reverse=reverse, xp=xp)
    u = xp.zeros_like(h) if p_dot is None else p_dot
    if w_dot is not None:
        u = u + xp.matmul(previous(h, h0, reverse=reverse, xp=xp), xp.matrix_transpose(w_dot))
    s0 = xp.zeros_like(h0) if h0_dot is None else h0_dot
    return scan(u, d, s0, xp.matrix_transpose(w_hh), reverse=reverse)


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
    linear_scan: Callable[..., Array] | None = None,
    needs: Sequence[bool] = (True, True, True, True),
) -> LinearCotangents:
    """Cotangents of ``linear(u, d, s0, m) = s`` for the cotangent d_s of s.

    With g_t the whole cotangent of s_t and e_t = d_t * g_t that of the bracket, ``e_t = d_t * (ds_t + e_{t+1} M^T)``:
    the linear scan against time. Then du = e, dd = g * (u + s_{t-1} M), dM = sum_t s_{t-1}^T e_t, ds0 = e_first M^T.
    `linear_scan` and `needs`: as in :func:`nonlinear_vjp`; u's cotangent is always there.
    """
    scan = linear_scan or partial(linear, xp=xp)
    m_t, zero = xp.matrix_transpose(m), xp.zeros_like(s0)
    e = scan(d_s, d, zero, m_t, reverse=not reverse)
    before = previous(s, s0, reverse=reverse, xp=xp)
    d_d = d_s0 = d_m = None
    if needs[1]:
        after = previous(e, zero, reverse=not reverse, xp=xp)
        # Not s / d and e / d: d may be exactly 0, and the cotangent of d is then still given by these two products.
        d_d = (d_s + xp.matmul(after, m_t)) * (u + xp.matmul(before, m))
    if needs[2]:
        d_s0 = xp.matmul(e[-1, ...] if reverse else e[0, ...], m_t)
    if needs[3]:
        d_m = _sum_to(_outer(before, e, xp), m.ndim, xp)
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
    linear_scan: Callable[..., Array] | None = None,
) -> Array:
    """The tangent of s for tangents of u, d, s0 and m, None for zero: again a linear scan, with a source made by products.

    ``s'_t = d'_t * b_t + d_t * (u'_t + s_{t-1} M' + s'_{t-1} M)`` with the bracket b_t = u_t + s_{t-1} M. A source outside
    the factor d_t is carried inside it by running the scan on what is left after subtracting it:
    s' = c + r, with c_t = d'_t * b_t and r_t = d_t * (u'_t + s_{t-1} M' + c_{t-1} M + r_{t-1} M).
    `linear_scan`: as in :func:`nonlinear_vjp`.
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


def previous(h: Array, h0: Array, /, *, reverse: bool, xp: Namespace) -> Array:
    """h_{t-1} at every t, with h0 before the first step: (T, B, H). With `reverse`, h_{t+1}."""
    first = xp.expand_dims(xp.broadcast_to(h0, h.shape[1:]), axis=0)
    return xp.concat([h[1:, ...], first], axis=0) if reverse else xp.concat([first, h[:-1, ...]], axis=0)


def pre_activation(p: Array, h0: Array, w_hh: Array, h: Array, /, *, reverse: bool, xp: Namespace) -> Array:
    """z_t = p_t + h_{t-1} W^T for all steps from the states, by one product and no loop."""
    return p + xp.matmul(previous(h, h0, reverse=reverse, xp=xp), xp.matrix_transpose(w_hh))


def slope(
    p: Array | None,
    h0: Array,
    w_hh: Array,
    h: Array,
    /,
    *,
    nonlinearity: Nonlinearity,
    reverse: bool,
    xp: Namespace,
) -> Array:
    """f' at every step: from h where h determines it, else from z, recomputed from p by one product."""
    if not nonlinearity.derivative_needs_z:
        return nonlinearity.derivative_from_h(h, xp=xp)
    if p is None:
        raise ArgumentValueError(f"p: expected an array, as {nonlinearity.name!r} has its derivative from z, got None")
    z = pre_activation(p, h0, w_hh, h, reverse=reverse, xp=xp)
    return nonlinearity.derivative(z, xp=xp)


def _in_time(x: Array, reverse: bool) -> list[Array]:
    steps = range(x.shape[0])
    return [x[t, ...] for t in (reversed(steps) if reverse else steps)]


def _stacked(states: list[Array], like: Array, reverse: bool, xp: Namespace) -> Array:
    if not states:
        return xp.zeros_like(like)
    return xp.stack(states[::-1] if reverse else states, axis=0)


def _outer(a: Array, b: Array, xp: Namespace) -> Array:
    """The sum over time and batch of a_t^T b_t as one product over T*B rows: (T, ..., B, H), (T, ..., B, K) to (..., H, K)."""
    return xp.matmul(xp.matrix_transpose(_rows(a, xp)), _rows(b, xp))


def _rows(a: Array, xp: Namespace) -> Array:
    moved = xp.moveaxis(a, 0, -3)
    return xp.reshape(moved, (*moved.shape[:-3], moved.shape[-3] * moved.shape[-2], moved.shape[-1]))


def _sum_to(x: Array, ndim: int, xp: Namespace) -> Array:
    """Sum away the leading axes that a shared matrix was broadcast over."""
    return xp.sum(x, axis=tuple(range(x.ndim - ndim))) if x.ndim > ndim else x
