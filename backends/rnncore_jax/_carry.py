"""Both scans with carry as ``lax.scan``, with derivative rules that are linear scans with carry again.

A linear scan of tangents is transposed by JAX, so it must be linear in them: it cannot ask which of them are finite, as
:func:`rnncore.carry.seen` does. It cuts wherever a or i is exactly 0, and multiplies by o.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from jax import lax
from jax.custom_derivatives import SymbolicZero

from rnncore import carry, scan
from rnncore.carry import Carry
from rnncore.nonlinearity.nonlinearity import Nonlinearity
from rnncore_jax import _namespace as xp


@partial(jax.custom_jvp, nondiff_argnums=(4, 5))
def _nonlinear(p: Any, h0: Any, w_hh: Any, factors: Carry, nonlinearity: Nonlinearity, reverse: bool) -> Any:
    w_t = xp.matrix_transpose(w_hh)
    fixed, moving = _parted(factors)

    def step(h: Any, now: Any) -> tuple[Any, Any]:
        p_t, *each = now
        a, g, i = _joined(fixed, each)
        value = nonlinearity(p_t + xp.matmul(carry.times(i, h, xp=xp), w_t), xp=xp)
        h = carry.mixed(a, h, carry.times(g, value, xp=xp), xp=xp)
        return h, h

    return lax.scan(step, first_state(h0, w_hh, p, *factors), (p, *moving), reverse=reverse)[1]


def _nonlinear_jvp(nonlinearity: Nonlinearity, reverse: bool, primals: Any, tangents: Any) -> tuple[Any, Any]:
    p, h0, w_hh, factors = primals
    *dots, factors_dot = tangents
    h = _nonlinear(p, h0, w_hh, factors, nonlinearity, reverse)
    rule = partial(scan.nonlinear_jvp, nonlinearity=nonlinearity, reverse=reverse, xp=xp, linear_scan=_tangent_scan)
    p_dot, h0_dot, w_dot = map(_number, dots, (p, h0, w_hh))
    return h, rule(p_dot, h0_dot, w_dot, p, h0, w_hh, h, carry=factors, carry_dot=Carry(*map(_some, factors_dot)))


_nonlinear.defjvp(_nonlinear_jvp, symbolic_zeros=True)


@partial(jax.custom_jvp, nondiff_argnums=(6,))
def _linear(c: Any, o: Any, i: Any, a: Any, x0: Any, m: Any, reverse: bool) -> Any:
    fixed, moving = _parted((o, i, a))

    def step(x: Any, now: Any) -> tuple[Any, Any]:
        c_t, *each = now
        o_t, i_t, a_t = _joined(fixed, each)
        x = carry.mixed(a_t, x, c_t + carry.times(o_t, xp.matmul(carry.times(i_t, x, xp=xp), m), xp=xp), xp=xp)
        return x, x

    return lax.scan(step, first_state(x0, m, c, o, i, a), (c, *moving), reverse=reverse)[1]


@partial(jax.custom_jvp, nondiff_argnums=(6,))
def _of_tangents(c: Any, o: Any, i: Any, a: Any, x0: Any, m: Any, reverse: bool) -> Any:
    # Compared before the loop: in it, JAX would split the comparisons off into a loop of their own.
    reads, keeps = (None if k is None else k != 0 for k in (i, a))
    fixed, moving = _parted((o, i, a, reads, keeps))

    def step(x: Any, now: Any) -> tuple[Any, Any]:
        c_t, *each = now
        o_t, i_t, a_t, reads_t, keeps_t = _joined(fixed, each)
        sent = xp.matmul(_cut(i_t, reads_t, x), m)
        new = c_t + (sent if o_t is None else o_t * sent)
        x = new if a_t is None else _cut(a_t, keeps_t, x) + new
        return x, x

    return lax.scan(step, first_state(x0, m, c, o, i, a), (c, *moving), reverse=reverse)[1]


def _jvp_of(scan_of: Any) -> Callable[..., tuple[Any, Any]]:
    def rule(reverse: bool, primals: Any, tangents: Any) -> tuple[Any, Any]:
        c, *arguments = primals
        x0, m = arguments[-2:]
        c_dot, *factors_dot, x0_dot, m_dot = tangents
        x = scan_of(c, *arguments, reverse)
        c_dot, x0_dot, m_dot = map(_number, (c_dot, x0_dot, m_dot), (c, x0, m))
        dots = c_dot, *map(_some, factors_dot), x0_dot, m_dot
        return x, scan.linear_carry_jvp(dots, arguments, x, reverse=reverse, xp=xp, linear_scan=_tangent_scan)

    return rule


_linear.defjvp(_jvp_of(_linear), symbolic_zeros=True)
_of_tangents.defjvp(_jvp_of(_of_tangents), symbolic_zeros=True)


def _tangent_scan(c: Any, o: Any, i: Any, a: Any, x0: Any, m: Any, *, reverse: bool) -> Any:
    return _of_tangents(c, o, i, a, x0, m, reverse)


def _cut(factor: Any, nonzero: Any, x: Any) -> Any:
    """``factor * x``, and 0 where the factor is exactly 0: linear in x."""
    return x if factor is None else factor * xp.where(nonzero, x, xp.zeros_like(x))


def _parted(factors: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """The factors that are the same at every step, as (1, H), and those of each step; None for the others."""
    fixed = [k[None, :] if k is not None and k.ndim == 1 else None for k in factors]
    return fixed, [k if one is None else None for k, one in zip(factors, fixed, strict=True)]


def _joined(fixed: Sequence[Any], each: Sequence[Any]) -> list[Any]:
    return [k if one is None else one for one, k in zip(fixed, each, strict=True)]


def _number(dot: Any, like: Any) -> Any:
    return xp.zeros_like(like) if isinstance(dot, SymbolicZero) else dot


def _some(dot: Any) -> Any:
    return None if isinstance(dot, SymbolicZero) else dot


def first_state(s0: Any, m: Any, *others: Any) -> Any:
    """s0 with the type of the later states: on a mesh, these vary or are sharded along the axes of the other arrays.

    Adding empty sums compiles to nothing and gives this type. JAX's own function for it has changed its name several times.
    """
    sequences = [x for x in others if x is not None and x.ndim == 3]
    fixed = [m, *(x for x in others if x is not None and x.ndim == 1)]
    return s0 + sum(xp.sum(x[:0, ...], axis=0) for x in sequences) + sum(xp.sum(x[:0, ...]) for x in fixed)


# Nonlinearities compare by value, so that an eager call reuses the code compiled for an earlier one.
nonlinear = jax.jit(_nonlinear, static_argnums=(4, 5))
linear = jax.jit(_linear, static_argnums=6)
