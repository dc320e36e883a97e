"""The carry form: factors with which a scan keeps, drops or mixes its state, and the linear scan with them.

    nonlinear, with carry    h_t = a_t * h_{t-1} + g_t * f(p_t + (i_t * h_{t-1}) W^T)
    linear, with carry       x_t = c_t + a_t * x_{t-1} + o_t * ((i_t * x_{t-1}) M)

The nonlinear scan is in :mod:`rnncore.scan`; its derivatives are linear scans with carry. The linear scan is here, with its
own derivatives, which are the same scan again:

- its JVP runs along time, with the same factors;
- its VJP runs against time, with M^T and with o and i exchanged, each factor taken from the step after.

**A factor of exactly 0 cuts.** The number behind it counts as 0 even if it is NaN or infinite, in results and in derivatives.
So NaN in padding (g = 0) and an overflow before a reset (a = i = 0) have no effect.

**Shapes.** A factor may have any shape that broadcasts to (T, B, H). :func:`spread` reduces these to two: (H,) for a factor
that is the same at every step and in every row, else (T, B, H). The cotangent of a factor has the shape of the given factor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby, pairwise
from typing import Any, NamedTuple

from rnncore.arguments import shown
from rnncore.errors import ArgumentValueError
from rnncore.typing import Array, Namespace

__all__ = [
    "Carry",
    "LinearCarryCotangents",
    "after",
    "at_first",
    "by_rows",
    "factor_cotangent",
    "in_time",
    "linear_carry",
    "linear_carry_jvp",
    "linear_carry_vjp",
    "mixed",
    "outer",
    "previous",
    "seen",
    "spread",
    "stacked",
    "times",
    "with_tangent",
]


class Carry(NamedTuple):
    """Factors of the nonlinear scan ``h_t = a_t * h_{t-1} + g_t * f(p_t + (i_t * h_{t-1}) W^T)``.

    Each broadcasts to (T, B, H) or is None for its default. With all defaults it is the plain scan.

    Attributes
    ----------
    a : array, optional
        Fraction of the old state that is kept; 0 by default.
    g : array, optional
        Factor of the new value; 1 by default.
    i : array, optional
        Factor of the state that the recurrent weight reads; 1 by default.

    Examples
    --------
    A leak of 0.1 per step in one row, with a reset before step 2, which neither keeps nor reads the state before it.

    >>> import numpy as np
    >>> from rnncore import get_nonlinearity, scan
    >>> runs = np.asarray([1.0, 1.0, 0.0, 1.0])[:, None, None]
    >>> leak = scan.Carry(a=0.9 * runs, g=np.asarray(0.1), i=runs)
    >>> p, h0, w = np.ones((4, 1, 1)), np.ones((1, 1)), np.zeros((1, 1))
    >>> f = get_nonlinearity("identity")
    >>> scan.nonlinear(p, h0, w, nonlinearity=f, reverse=False, xp=np, carry=leak)[:, 0, 0].round(4).tolist()
    [1.0, 1.0, 0.1, 0.19]
    """

    a: Array | None = None
    g: Array | None = None
    i: Array | None = None

    def over(self, shape: Sequence[int], /, *, xp: Namespace) -> Carry:
        """The factors in the two shapes of :func:`spread`."""
        return Carry(*(spread(factor, shape, xp=xp) for factor in self))

    def cut(self, cut: Callable[[Array | None], Array | None], /) -> Carry:
        """Apply `cut`, such as the function that :func:`by_rows` passes, to each factor."""
        return Carry(*(cut(factor) for factor in self))


class LinearCarryCotangents(NamedTuple):
    """Cotangents from :func:`linear_carry_vjp`, in the order of the scan's arguments; None for a factor that is None."""

    c: Array
    o: Array | None
    i: Array | None
    a: Array | None
    x0: Array
    m: Array


def linear_carry(
    c: Array,
    o: Array | None,
    i: Array | None,
    a: Array | None,
    x0: Array,
    m: Array,
    /,
    *,
    reverse: bool,
    xp: Namespace,
    rows: Sequence[int] | None = None,
) -> Array:
    """``x_t = c_t + a_t * x_{t-1} + o_t * ((i_t * x_{t-1}) M)``.

    Parameters
    ----------
    c : array (T, B, H)
    o, i, a : array or None
        Factors that broadcast to (T, B, H). None is 1 for o and i, and 0 for a.
    x0 : array (B, H)
        The state before the first step.
    m : array (H, H)
    reverse : bool
        Whether to run from the last step to the first.
    xp : Array API namespace
    rows : sequence of int, optional
        The number of rows that run at each step, as in :func:`rnncore.scan.nonlinear`.

    Returns
    -------
    array (T, B, H)
    """
    so, si, sa = (spread(k, c.shape, xp=xp) for k in (o, i, a))
    if rows is not None:
        return by_rows(
            lambda cut, x: linear_carry(cut(c), cut(so), cut(si), cut(sa), x, m, reverse=reverse, xp=xp),
            rows, x0, c, reverse=reverse, xp=xp,
        )  # fmt: skip
    x = x0
    states = []
    factors = (in_time(k, reverse, steps=c.shape[0]) for k in (so, si, sa))
    for c_t, o_t, i_t, a_t in zip(in_time(c, reverse), *factors, strict=True):
        x = mixed(a_t, x, c_t + times(o_t, xp.matmul(times(i_t, x, xp=xp), m), xp=xp), xp=xp)
        states.append(x)
    return stacked(states, c, reverse, xp)


def linear_carry_vjp(
    d_x: Array,
    arguments: Sequence[Any],
    x: Array,
    /,
    *,
    reverse: bool,
    xp: Namespace,
    linear_scan: Callable[..., Array] | None = None,
) -> LinearCarryCotangents:
    """Cotangents of ``linear_carry(c, *arguments) = x``, with the arguments o, i, a, x0 and m, for the cotangent d_x of x.

    The total cotangent e_t of x_t is also that of c_t. It is a linear scan with carry against time:
    ``e_t = dx_t + a_{t+1} * e_{t+1} + i_{t+1} * ((o_{t+1} * e_{t+1}) M^T)``. The others are products over all steps.

    `linear_scan(c, o, i, a, x0, m, reverse=...)`, such as a kernel's, replaces :func:`linear_carry`.
    """
    scan = linear_scan or partial(linear_carry, xp=xp)
    o, i, a, x0, m = arguments
    m_t = xp.matrix_transpose(m)
    so, si, sa = (spread(k, x.shape, xp=xp) for k in (o, i, a))
    late_o, late_i, late_a = (after(k, reverse=reverse, xp=xp) for k in (so, si, sa))
    e = scan(d_x, late_i, late_o, late_a, xp.zeros_like(x0), m_t, reverse=not reverse)
    before = previous(x, x0, reverse=reverse, xp=xp)
    read, sent = times(si, before, xp=xp), times(so, e, xp=xp)
    back = xp.matmul(sent, m_t)
    d_o = factor_cotangent(e, xp.matmul(read, m), so, o, xp=xp)
    d_i = factor_cotangent(back, before, si, i, xp=xp)
    d_a = factor_cotangent(e, before, sa, a, xp=xp)
    a_0, i_0, e_0, back_0 = (at_first(k, reverse) for k in (sa, si, e, back))
    d_x0 = mixed(a_0, e_0, times(i_0, back_0, xp=xp), xp=xp)
    return LinearCarryCotangents(e, d_o, d_i, d_a, d_x0, outer(read, sent, m, xp=xp))


def linear_carry_jvp(
    tangents: Sequence[Any],
    arguments: Sequence[Any],
    x: Array,
    /,
    *,
    reverse: bool,
    xp: Namespace,
    linear_scan: Callable[..., Array] | None = None,
) -> Array:
    """The tangent of ``linear_carry(c, *arguments) = x``, with the arguments o, i, a, x0 and m.

    `tangents` are those of c, o, i, a, x0 and m; for a factor, None is a tangent of 0. A factor of None has no tangent.

    ``x'_t = s_t + a_t * x'_{t-1} + o_t * ((i_t * x'_{t-1}) M)``: a linear scan with the same factors and the source
    ``s_t = c'_t + a'_t * x_{t-1} + o'_t * ((i_t * x_{t-1}) M) + o_t * ((i'_t * x_{t-1}) M + (i_t * x_{t-1}) M')``.
    See :func:`linear_carry_vjp` for `linear_scan`.
    """
    scan = linear_scan or partial(linear_carry, xp=xp)
    c_dot, o_dot, i_dot, a_dot, x0_dot, m_dot = tangents
    *factors, x0, m = arguments
    so, si, sa = (spread(k, x.shape, xp=xp) for k in factors)
    before = previous(x, x0, reverse=reverse, xp=xp)
    read = times(si, before, xp=xp)
    sent, through = xp.matmul(read, m), xp.matmul(read, m_dot)
    if i_dot is not None and si is not None:
        through = through + xp.matmul(i_dot * seen(before, si, xp=xp), m)
    source = c_dot + times(so, through, xp=xp, by=sent)
    source = with_tangent(source, o_dot, so, sent, xp=xp)
    source = with_tangent(source, a_dot, sa, before, xp=xp)
    return scan(source, so, si, sa, x0_dot, m, reverse=reverse)


# --- factors ----------------------------------------------------------------------------------------------------------


def spread(factor: Array | None, shape: Sequence[int], /, *, xp: Namespace) -> Array | None:
    """A factor as (H,) if it is the same at every step and in every row, else broadcast to `shape`, (T, B, H)."""
    if factor is None or tuple(factor.shape) == tuple(shape):
        return factor
    if all(n == 1 for n in factor.shape[:-1]):
        return xp.broadcast_to(xp.reshape(factor, (-1,)), (shape[-1],))
    return xp.broadcast_to(factor, tuple(shape))


def times(factor: Array | None, x: Array, /, *, xp: Namespace, by: Array | None = None) -> Array:
    """``factor * x``, with 0 wherever the factor is exactly 0; x for a factor of None. `by`: see :func:`seen`."""
    return x if factor is None else factor * seen(x, factor, xp=xp, by=by)


def mixed(a: Array | None, kept: Array, new: Array, /, *, xp: Namespace) -> Array:
    """``a * kept + new``; `new` for a factor of None."""
    return new if a is None else times(a, kept, xp=xp) + new


def seen(x: Array, factor: Array, /, *, xp: Namespace, by: Array | None = None) -> Array:
    """x with 0 in place of NaN and infinity wherever the factor in front of it is exactly 0.

    `by` is the array in which they are looked for, x itself by default. For a tangent it is what the tangent belongs to, so
    that the result is linear in the tangent, as a library that transposes derivatives requires.
    """
    return xp.where(xp.logical_or(factor != 0, xp.isfinite(x if by is None else by)), x, xp.zeros_like(x))


def factor_cotangent(
    whole: Array | None, x: Array, factor: Array | None, given: Array | None, /, *, xp: Namespace
) -> Array | None:
    """The cotangent of `factor`, in the shape of `given`, from the cotangent `whole` of ``factor * x``."""
    return None if factor is None else _sum_as(whole * seen(x, factor, xp=xp), given, xp)


def with_tangent(source: Array, dot: Array | None, factor: Array | None, x: Array, /, *, xp: Namespace) -> Array:
    """Add ``dot * x``, the tangent of ``factor * x``, to `source`."""
    return source if dot is None or factor is None else source + dot * seen(x, factor, xp=xp)


# --- time -------------------------------------------------------------------------------------------------------------


def previous(h: Array, h0: Array, /, *, reverse: bool, xp: Namespace) -> Array:
    """h_{t-1} at every t, with h0 before the first step: (T, B, H). With `reverse`, h_{t+1}."""
    first = xp.expand_dims(xp.broadcast_to(h0, h.shape[1:]), axis=0)
    return xp.concat([h[1:, ...], first], axis=0) if reverse else xp.concat([first, h[:-1, ...]], axis=0)


def after(factor: Array | None, /, *, reverse: bool, xp: Namespace) -> Array | None:
    """A factor of :func:`spread` at the step after each t, 0 after the last. A factor of shape (H,) is returned unchanged."""
    if factor is None or factor.ndim == 1:
        return factor
    return previous(factor, xp.zeros_like(factor[0, ...]), reverse=not reverse, xp=xp)


def at_first(x: Array | None, reverse: bool, /) -> Array | None:
    """x (T, B, H) or a factor of :func:`spread` at the first step to run."""
    if x is None or x.ndim == 1:
        return x
    return x[-1, ...] if reverse else x[0, ...]


def in_time(x: Array | None, reverse: bool, /, *, steps: int | None = None) -> list[Any]:
    """The steps of x in running order; a factor that is None or (H,) is repeated `steps` times."""
    if x is None or x.ndim == 1:
        return [x] * (steps or 0)
    order = range(x.shape[0])
    return [x[t, ...] for t in (reversed(order) if reverse else order)]


def stacked(states: list[Array], like: Array, reverse: bool, xp: Namespace, /) -> Array:
    """Stack states, given in running order, into one array, each at its own t."""
    if not states:
        return xp.zeros_like(like)
    return xp.stack(states[::-1] if reverse else states, axis=0)


def by_rows(
    run: Callable[[Callable[[Any], Any], Array], Array],
    rows: Sequence[int],
    first: Array,
    like: Array,
    /,
    *,
    reverse: bool,
    xp: Namespace,
) -> Array:
    """Run a scan on each piece of time with a constant number of rows, and put 0 in the padding.

    `run(cut, first)` runs one piece from a first state; `cut` restricts an array of the shape of `like`, or a factor, to the
    steps and rows of the piece.
    """
    batch = like.shape[-2]
    if len(rows) != like.shape[0] or any(n < m for n, m in pairwise([batch, *rows, 0])):
        raise ArgumentValueError(
            f"rows: expected {like.shape[0]} numbers from {batch} down to 0, each at most the one before, got {shown(rows)}"
        )
    pieces, start = [], 0
    for n, same in groupby(rows):
        pieces.append((start, start := start + len(list(same)), n))
    done = []
    for begin, end, n in reversed(pieces) if reverse else pieces:
        out = run(partial(_cut, begin, end, n), first[..., :n, :])
        done.append(xp.concat([out, xp.zeros_like(like[begin:end, ..., n:, :])], axis=-2))
        # The state of a row that has ended is not read. In reverse, a row that has not begun keeps its first state.
        first = xp.concat([at_first(out, not reverse), first[..., n:, :]], axis=-2)
    return xp.concat(done[::-1] if reverse else done, axis=0) if done else xp.zeros_like(like)


def outer(a: Array, b: Array, like: Array, /, *, xp: Namespace) -> Array:
    """Sum a_t^T b_t over time and batch, by one product over T*B rows, in the shape of the matrix `like`."""
    return _sum_as(xp.matmul(xp.matrix_transpose(_rows(a, xp)), _rows(b, xp)), like, xp)


def _sum_as(x: Array, like: Array, xp: Namespace) -> Array:
    """Sum x over the axes along which an array of the shape of `like` was broadcast."""
    lead = x.ndim - like.ndim
    axes = tuple(k for k in range(x.ndim) if k < lead or (like.shape[k - lead] == 1 and x.shape[k] != 1))
    return xp.reshape(xp.sum(x, axis=axes), like.shape) if axes else x


def _cut(begin: int, end: int, n: int, x: Array | None) -> Array | None:
    return x if x is None or x.ndim == 1 else x[begin:end, ..., :n, :]


def _rows(a: Array, xp: Namespace) -> Array:
    moved = xp.moveaxis(a, 0, -3)
    return xp.reshape(moved, (*moved.shape[:-3], moved.shape[-3] * moved.shape[-2], moved.shape[-1]))
