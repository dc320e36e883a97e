"""One layer in one direction: the products over all steps at once that stand around the two scans.

Everything here is time-first, (T, B, .). With ``ragged``, x is 0 in the padding already, and so is every result.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from rnncore import scan
from rnncore.network.engine import Engine
from rnncore.network.joining import TimeJoin
from rnncore.network.ragged import Ragged
from rnncore.network.step import Weights, sum_rows
from rnncore.nonlinearity.nonlinearity import Nonlinearity
from rnncore.typing import Array

# A pullback's window holds about so many numbers of each array: small beside long sequences, large beside a call's cost.
WINDOW_NUMBERS = 2**20

__all__ = ["LayerCotangents", "add_weights", "forward", "jvp", "last_state", "pre_activation", "vjp"]


class LayerCotangents(NamedTuple):
    """What :func:`vjp` returns: weights, x (T, B, I) and h0 (B, H)."""

    weights: Weights
    x: Array
    h0: Array


def forward(
    w: Weights,
    x: Array,
    h0: Array,
    *,
    reverse: bool,
    ragged: Ragged | None,
    nonlinearity: Nonlinearity,
    engine: Engine,
) -> Array:
    """The states (T, B, H) of x (T, B, I) from h0 (B, H)."""
    p = _project(w, x, engine)
    if ragged is None:
        return engine.nonlinear(p, h0, w.weight_hh, nonlinearity=nonlinearity, reverse=reverse, overwrite=True)
    return _forward_ragged(p, h0, w.weight_hh, ragged, reverse, nonlinearity, engine)


def last_state(h: Array, h0: Array, *, reverse: bool, ragged: Ragged | None) -> Array:
    """The state after the last step the direction runs, (B, H); h0 where a sequence has no steps."""
    if reverse:
        return h[0, ...] if ragged is None else ragged.nonempty_or(h[0, ...], h0)
    return h[-1, ...] if ragged is None else ragged.last_or(h, h0)


def pre_activation(
    w: Weights, x: Array, h0: Array, h: Array, *, reverse: bool, ragged: Ragged | None, engine: Engine
) -> Array:
    """z (T, B, H) for all steps from the states, by products and no loop; before any clip, 0 in the padding."""
    xp = engine.xp
    before = _before(h, h0, reverse, ragged, engine)
    z = _project(w, x, engine) + engine.product(before, xp.matrix_transpose(w.weight_hh))
    return z if ragged is None else ragged.masked(z)


def vjp(
    d_h: Array | None,
    d_last: Array | None,
    w: Weights,
    x: Array,
    h0: Array,
    h: Array,
    *,
    reverse: bool,
    ragged: Ragged | None,
    boundaries: tuple[int, ...] = (),
    nonlinearity: Nonlinearity,
    engine: Engine,
) -> LayerCotangents:
    """Backpropagation through time for one layer: one linear scan against time, then one product for each result.

    d_h (T, B, H) and d_last (B, H) are the cotangents of the states and of the last state; None is zero. No gradient is
    carried through the recurrence across the times in `boundaries` (truncated BPTT, Williams and Peng 1990).
    """
    if ragged is None:
        return _vjp_by_window(d_h, d_last, w, x, h0, h, reverse, boundaries, nonlinearity, engine)
    xp = engine.xp
    d = _slope(w, x, h0, h, reverse, ragged, nonlinearity, engine)
    u = _source(d_h, d_last, h, reverse, ragged, engine)
    delta = _scan_between(u, d, w.weight_hh, boundaries, not reverse, not nonlinearity.is_custom, engine)
    first = ragged.at_ends(delta) if reverse else delta[0, ...]
    h0 = ragged.nonempty_or(h0, xp.zeros_like(h0))  # NaN in the state of a sequence without steps reaches no weight
    d_h0 = xp.matmul(first, w.weight_hh)
    if d_last is not None:
        d_h0 = ragged.nonempty_or(d_h0, d_last)
    return LayerCotangents(
        _weight_cotangents(delta, first, w, x, h0, h, reverse, engine), engine.product(delta, w.weight_ih), d_h0
    )


def jvp(
    w_dot: Weights | None,
    x_dot: Array | None,
    h0_dot: Array | None,
    w: Weights,
    x: Array,
    h0: Array,
    h: Array,
    *,
    reverse: bool,
    ragged: Ragged | None,
    nonlinearity: Nonlinearity,
    engine: Engine,
) -> Array:
    """The tangent (T, B, H) of the states: one linear scan along time. None stands for a tangent of zero."""
    xp = engine.xp
    w_t = xp.matrix_transpose(w.weight_hh)
    d = _slope(w, x, h0, h, reverse, ragged, nonlinearity, engine)
    u = xp.zeros_like(h)
    if x_dot is not None:
        u = u + engine.product(x_dot, xp.matrix_transpose(w.weight_ih))
    if w_dot is not None:
        before = _before(h, h0, reverse, ragged, engine)
        u = u + _project(w_dot, x, engine) + engine.product(before, xp.matrix_transpose(w_dot.weight_hh))
    s0 = xp.zeros_like(h0) if h0_dot is None else h0_dot
    if ragged is not None:
        if reverse:  # a row starts at its own end, and d = 0 in the padding before it would swallow s0
            u = ragged.add_at_ends(u, xp.matmul(s0, w_t))
            s0 = xp.zeros_like(h0)
        u = ragged.masked(u)
    return engine.linear(u, d, s0, w_t, reverse=reverse, overwrite=not nonlinearity.is_custom)


def _vjp_by_window(
    d_h: Array | None,
    d_last: Array | None,
    w: Weights,
    x: Array,
    h0: Array,
    h: Array,
    reverse: bool,
    boundaries: tuple[int, ...],
    nonlinearity: Nonlinearity,
    engine: Engine,
) -> LayerCotangents:
    """The pullback in windows of time, against the time of the layer, so that delta is never held for all steps."""
    xp = engine.xp
    steps = x.shape[0]
    edges = [0, *sorted({*boundaries, *_window_edges(h, engine)}), steps]
    windows = list(pairwise(edges))
    d_x = TimeJoin(steps, engine)
    total: Weights | None = None
    s = first = xp.zeros_like(h0)
    for a, b in windows if reverse else windows[::-1]:
        entry, at_end = (b, b == steps) if reverse else (a - 1, a == 0)
        state = h0 if at_end else h[entry, ...]
        ends_here = a == 0 if reverse else b == steps
        h_w, x_w = h[a:b, ...], x[a:b, ...]
        d = _slope(w, x_w, state, h_w, reverse, None, nonlinearity, engine)
        d_h_w = None if d_h is None else d_h[a:b, ...]
        u = _source(d_h_w, d_last if ends_here else None, h_w, reverse, None, engine)
        cut = (a if reverse else b) in boundaries
        # A user's derivative may hand out an array that it keeps, so its storage is not ours to reuse.
        delta = engine.linear(
            u,
            d,
            xp.zeros_like(s) if cut else s,
            w.weight_hh,
            reverse=not reverse,
            overwrite=not nonlinearity.is_custom,
        )
        del u, d
        s = first = delta[-1, ...] if reverse else delta[0, ...]
        found = _weight_cotangents(delta, first, w, x_w, state, h_w, reverse, engine)
        total = found if total is None else add_weights(total, found)
        d_x.put(a, b, engine.product(delta, w.weight_ih))
    # There is at least one window, as a call has at least one step, so the total is not None.
    return LayerCotangents(total, d_x.joined(), engine.matmul(first, w.weight_hh, whole=False))  # type: ignore[arg-type]


def _window_edges(h: Array, engine: Engine) -> range:
    """Where the pullback is cut so that one window of (T, B, H) stays small beside the whole."""
    steps, batch, width = h.shape
    if not engine.writable:  # the parts of dx would have to be joined by a copy: one window is best
        return range(0)
    numbers: int = getattr(engine.backend, "window_numbers", WINDOW_NUMBERS)
    length = max(1, numbers // max(1, batch * width))
    return range(length, steps, length)


def _weight_cotangents(
    delta: Array, first: Array, w: Weights, x: Array, h0: Array, h: Array, reverse: bool, engine: Engine
) -> Weights:
    """delta^T x, delta^T h_{t-1} and the sum of delta: one product each.

    h_{t-1} is never built: h0's share, at the steps whose delta is `first`, is added to that of the other states.
    """
    xp = engine.xp
    rest, before = (delta[:-1, ...], h[1:, ...]) if reverse else (delta[1:, ...], h[:-1, ...])
    d_w_hh = _outer(rest, before, engine)
    of_h0 = engine.matmul(xp.matrix_transpose(first), h0, whole=False)
    if engine.writable:
        d_w_hh += of_h0
    else:
        d_w_hh = d_w_hh + of_h0
    return Weights(_outer(delta, x, engine), d_w_hh, None if w.bias is None else sum_rows(delta, xp=xp))


def add_weights(a: Weights, b: Weights) -> Weights:
    """The sums, one by one."""
    bias = None if a.bias is None or b.bias is None else a.bias + b.bias
    return Weights(a.weight_ih + b.weight_ih, a.weight_hh + b.weight_hh, bias)


def _project(w: Weights, x: Array, engine: Engine) -> Array:
    """x W_ih^T + b for all steps by one product."""
    p = engine.product(x, engine.xp.matrix_transpose(w.weight_ih))
    if w.bias is None:
        return p
    if engine.writable:  # the product is ours, and a second array of its size is what this saves
        p += w.bias
        return p
    return p + w.bias


def _forward_ragged(
    p: Array,
    h0: Array,
    w_hh: Array,
    ragged: Ragged,
    reverse: bool,
    nonlinearity: Nonlinearity,
    engine: Engine,
) -> Array:
    xp = engine.xp
    steps, batch, width = p.shape
    sorted_p = xp.take(p, ragged.longest_first, axis=1)
    sorted_h0 = xp.take(h0, ragged.longest_first, axis=0)
    pieces = []
    state = None
    for start, stop, rows in ragged.segments[::-1] if reverse else ragged.segments:
        if state is None:
            first = sorted_h0[:rows, ...]
        elif reverse:  # rows whose own end lies here join
            first = xp.concat([state, sorted_h0[state.shape[0] : rows, ...]], axis=0)
        else:  # rows that ended stay behind
            first = state[:rows, ...]
        h = engine.nonlinear(sorted_p[start:stop, :rows, :], first, w_hh, nonlinearity=nonlinearity, reverse=reverse)
        state = h[0, ...] if reverse else h[-1, ...]
        if rows < batch:
            h = xp.concat([h, engine.zeros((stop - start, batch - rows, width))], axis=1)
        pieces.append(h)
    if reverse:
        pieces.reverse()
    longest = max(ragged.lengths, default=0)
    if longest < steps:
        pieces.append(engine.zeros((steps - longest, batch, width)))
    joined = pieces[0] if len(pieces) == 1 else xp.concat(pieces, axis=0)
    return xp.take(joined, ragged.original_order, axis=1)


def _before(h: Array, h0: Array, reverse: bool, ragged: Ragged | None, engine: Engine) -> Array:
    """h_{t-1} at every step of the direction, (T, B, H)."""
    before = scan.previous(h, h0, reverse=reverse, xp=engine.xp)
    return ragged.put_at_ends(before, h0) if ragged is not None and reverse else before


def _slope(
    w: Weights,
    x: Array,
    h0: Array,
    h: Array,
    reverse: bool,
    ragged: Ragged | None,
    nonlinearity: Nonlinearity,
    engine: Engine,
) -> Array:
    """f' at every step, 0 in the padding."""
    if nonlinearity.derivative_needs_z:
        z = pre_activation(w, x, h0, h, reverse=reverse, ragged=ragged, engine=engine)
        d = nonlinearity.derivative(z, xp=engine.xp)
    else:
        d = nonlinearity.derivative_from_h(h, xp=engine.xp)
    return d if ragged is None else ragged.masked(d)


def _source(
    d_h: Array | None, d_last: Array | None, h: Array, reverse: bool, ragged: Ragged | None, engine: Engine
) -> Array:
    """dL/dh_t as it arrives at each step from outside the recurrence, that of the last state included."""
    xp = engine.xp
    if d_h is None:
        d_h = xp.zeros_like(h)
    elif ragged is not None:
        d_h = ragged.masked(d_h)
    if d_last is None:
        return d_h
    if reverse:
        first = d_h[:1, ...] + xp.expand_dims(d_last, axis=0)
        u = xp.concat([first, d_h[1:, ...]], axis=0)
        return u if ragged is None else ragged.masked(u)
    if ragged is not None:
        return ragged.add_at_ends(d_h, d_last)
    return xp.concat([d_h[:-1, ...], d_h[-1:, ...] + xp.expand_dims(d_last, axis=0)], axis=0)


def _scan_between(
    u: Array,
    d: Array,
    m: Array,
    boundaries: tuple[int, ...],
    reverse: bool,
    overwrite: bool,
    engine: Engine,
) -> Array:
    """The linear scan from state 0, begun anew at each boundary."""
    zero = engine.xp.zeros_like(u[0, ...])
    if not boundaries:
        return engine.linear(u, d, zero, m, reverse=reverse, overwrite=overwrite)
    edges = [0, *boundaries, u.shape[0]]
    return engine.xp.concat(
        [engine.linear(u[a:b, ...], d[a:b, ...], zero, m, reverse=reverse) for a, b in pairwise(edges)],
        axis=0,
    )


def _outer(a: Array, b: Array, engine: Engine) -> Array:
    """The sum over time and batch of a_t^T b_t, as one product."""
    xp = engine.xp
    steps, batch, width = a.shape
    flat = xp.reshape(a, (steps * batch, width))
    return engine.matmul(xp.matrix_transpose(flat), xp.reshape(b, (steps * batch, b.shape[2])))
