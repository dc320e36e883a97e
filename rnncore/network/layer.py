"""One layer in one direction: the products over all steps, and the two scans between them.

Arrays are time-first, (T, B, .). With lengths, x must be 0 in the padding, and so is every result.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from rnncore import scan
from rnncore.arguments import are_known
from rnncore.network.engine import Engine
from rnncore.network.joining import TimeJoin
from rnncore.network.ragged import Lengths, Ragged, TracedLengths
from rnncore.network.step import Weights, sum_rows
from rnncore.nonlinearity.nonlinearity import Nonlinearity
from rnncore.typing import Array

__all__ = ["Layer", "LayerCotangents", "add_weights", "forward", "jvp", "last_state", "pre_activation", "vjp"]


class Layer(NamedTuple):
    """One layer in one direction of one call: its weights, and how its scans run.

    `boundaries` are times across which no gradient is carried (truncated BPTT, Williams and Peng 1990).
    """

    weights: Weights
    reverse: bool
    ragged: Lengths | None
    nonlinearity: Nonlinearity
    engine: Engine
    boundaries: tuple[int, ...] = ()


class LayerCotangents(NamedTuple):
    """Cotangents of a layer's weights, of x (T, B, I) and of h0 (B, H)."""

    weights: Weights
    x: Array
    h0: Array


def forward(layer: Layer, x: Array, h0: Array) -> Array:
    """The states (T, B, H) of x (T, B, I) from h0 (B, H)."""
    p = _project(layer.weights, x, layer.engine)
    if isinstance(layer.ragged, TracedLengths):
        return _forward_traced(layer, p, h0, layer.ragged)
    if isinstance(layer.ragged, Ragged):
        return _forward_ragged(layer, p, h0, layer.ragged)
    return layer.engine.nonlinear(
        p, h0, layer.weights.weight_hh, nonlinearity=layer.nonlinearity, reverse=layer.reverse, overwrite=True
    )


def last_state(layer: Layer, h: Array, h0: Array) -> Array:
    """The state after the last step the direction runs, (B, H); h0 where a sequence has no steps."""
    ragged = layer.ragged
    if layer.reverse:
        return h[0, ...] if ragged is None else ragged.nonempty_or(h[0, ...], h0)
    return h[-1, ...] if ragged is None else ragged.last_or(h, h0)


def pre_activation(layer: Layer, x: Array, h0: Array, h: Array) -> Array:
    """Pre-activations z (T, B, H) computed from the states by products; before any clip, 0 in the padding."""
    engine, w = layer.engine, layer.weights
    z = _project(w, x, engine) + engine.product(_before(layer, h, h0), w.weight_hh.T)
    return z if layer.ragged is None else layer.ragged.masked(z)


def vjp(layer: Layer, d_h: Array | None, d_last: Array | None, x: Array, h0: Array, h: Array) -> LayerCotangents:
    """Backpropagation through time: one linear scan against time, then one product for each result.

    d_h (T, B, H) and d_last (B, H) are the cotangents of the states and of the last state; None is zero. Without lengths
    the work goes window by window against the time of the layer, so that delta is never held for all steps.
    """
    if layer.ragged is not None:
        return _vjp_ragged(layer, layer.ragged, d_h, d_last, x, h0, h)
    steps, reverse, engine, w = x.shape[0], layer.reverse, layer.engine, layer.weights
    windows = _windows(layer, h)
    d_x = None if len(windows) == 1 else TimeJoin(steps, engine)
    total: Weights | None = None
    zero = s = first = engine.nothing_like(h0)
    for a, b in windows if reverse else windows[::-1]:
        entry, at_end = (b, b == steps) if reverse else (a - 1, a == 0)
        state = h0 if at_end else h[entry, ...]
        h_w, x_w, d_h_w = h, x, d_h
        if b - a < steps:
            h_w, x_w, d_h_w = h[a:b, ...], x[a:b, ...], None if d_h is None else d_h[a:b, ...]
        u = _source(layer, d_h_w, d_last if (a == 0 if reverse else b == steps) else None, h_w)
        d = _slope(layer, x_w, state, h_w)
        if (a if reverse else b) in layer.boundaries:
            s = zero
        # A custom derivative may keep the array it returns, so do not overwrite it.
        mine = not layer.nonlinearity.is_custom
        delta = engine.linear(u, d, s, w.weight_hh, reverse=not reverse, overwrite=mine)
        del u, d
        s = first = delta[-1, ...] if reverse else delta[0, ...]
        found = _weight_cotangents(layer, delta, first, x_w, state, h_w)
        total = found if total is None else add_weights(total, found)
        x_part = engine.product(delta, w.weight_ih)
        if d_x is not None:
            d_x.put(a, b, x_part)
    # T >= 1, so there is at least one window.
    whole = x_part if d_x is None else d_x.joined()
    return LayerCotangents(total, whole, engine.multiply(first, w.weight_hh, False))  # type: ignore[arg-type]


def jvp(
    layer: Layer, w_dot: Weights | None, x_dot: Array | None, h0_dot: Array | None, x: Array, h0: Array, h: Array
) -> Array:
    """The tangent (T, B, H) of the states: one linear scan along time. None is a tangent of zero."""
    engine, ragged, xp = layer.engine, layer.ragged, layer.engine.xp
    w_t = layer.weights.weight_hh.T
    d = _slope(layer, x, h0, h)
    u = xp.zeros_like(h)
    if x_dot is not None:
        u = u + engine.product(x_dot, layer.weights.weight_ih.T)
    if w_dot is not None:
        u = u + _project(w_dot, x, engine) + engine.product(_before(layer, h, h0), w_dot.weight_hh.T)
    s0 = xp.zeros_like(h0) if h0_dot is None else h0_dot
    if ragged is not None:
        s0 = _begun(layer, s0)
        if layer.reverse:  # a row starts at its own end; d = 0 in the padding would discard s0
            u = ragged.add_at_ends(u, xp.matmul(s0, w_t))
            s0 = xp.zeros_like(h0)
        u = ragged.masked(u)
    return engine.linear(u, d, s0, w_t, reverse=layer.reverse, overwrite=not layer.nonlinearity.is_custom)


def _vjp_ragged(
    layer: Layer, ragged: Lengths, d_h: Array | None, d_last: Array | None, x: Array, h0: Array, h: Array
) -> LayerCotangents:
    """Like :func:`vjp` for sequences of several lengths, in one window."""
    engine, w, xp = layer.engine, layer.weights, layer.engine.xp
    h0 = _begun(layer, h0)
    d, u = _slope(layer, x, h0, h), _source(layer, d_h, d_last, h)
    zero, parts = engine.nothing_like(h0), []
    for a, b in pairwise([0, *layer.boundaries, x.shape[0]]):
        parts.append(engine.linear(u[a:b, ...], d[a:b, ...], zero, w.weight_hh, reverse=not layer.reverse))
    delta = parts[0] if len(parts) == 1 else xp.concat(parts, axis=0)
    first = ragged.at_ends(delta) if layer.reverse else delta[0, ...]
    d_h0 = xp.matmul(first, w.weight_hh)
    if d_last is not None:
        d_h0 = ragged.nonempty_or(d_h0, d_last)
    return LayerCotangents(_weight_cotangents(layer, delta, first, x, h0, h), engine.product(delta, w.weight_ih), d_h0)


def _windows(layer: Layer, h: Array) -> list[tuple[int, int]]:
    """Time windows [a, b) of a pullback, cut at the layer's boundaries."""
    steps, batch, width = h.shape
    length = steps  # one window if joining the parts of dx would need a copy
    if layer.engine.writable:
        length = max(1, layer.engine.abilities.window_numbers // max(1, batch * width))
    if length >= steps and not layer.boundaries:
        return [(0, steps)]
    return list(pairwise(sorted({*range(0, steps, length), *layer.boundaries, steps})))


def _weight_cotangents(layer: Layer, delta: Array, first: Array, x: Array, h0: Array, h: Array) -> Weights:
    """delta^T x, delta^T h_{t-1} and the sum of delta: one product each.

    Where the number of steps is known, h_{t-1} is never built: the share of h0, which belongs to `first`, is added to that of
    the other states.
    """
    engine = layer.engine
    d_w_hh = engine.matmul(first.T, h0, whole=False)
    if not are_known(h.shape[0]):  # no compiler knows whether there are other states
        d_w_hh = _outer(delta, _before(layer, h, h0), engine)
    elif h.shape[0] > 1:
        rest, before = (delta[:-1, ...], h[1:, ...]) if layer.reverse else (delta[1:, ...], h[:-1, ...])
        d_w_hh = d_w_hh + _outer(rest, before, engine)
    bias = None if layer.weights.bias is None else sum_rows(delta, xp=engine.xp)
    return Weights(_outer(delta, x, engine), d_w_hh, bias)


def add_weights(a: Weights, b: Weights) -> Weights:
    """Add two sets of weights."""
    bias = None if a.bias is None or b.bias is None else a.bias + b.bias
    return Weights(a.weight_ih + b.weight_ih, a.weight_hh + b.weight_hh, bias)


def _project(w: Weights, x: Array, engine: Engine) -> Array:
    """x W_ih^T + b for all steps, by one product."""
    p = engine.product(x, w.weight_ih.T)
    if w.bias is None:
        return p
    if engine.writable and x.shape[0] > 1:  # in place, to save a second array of this size
        p += w.bias
        return p
    return p + w.bias[None, None, :]  # a library may be set to refuse other ranks


def _forward_ragged(layer: Layer, p: Array, h0: Array, ragged: Ragged) -> Array:
    reverse, engine, xp = layer.reverse, layer.engine, layer.engine.xp
    steps, batch, width = p.shape
    sorted_p = xp.take(p, ragged.longest_first, axis=1)
    sorted_h0 = xp.take(h0, ragged.longest_first, axis=0)
    pieces = []
    state = None
    for start, stop, rows in ragged.segments[::-1] if reverse else ragged.segments:
        if state is None:
            first = sorted_h0[:rows, ...]
        elif reverse:  # rows that end here join
            first = xp.concat([state, sorted_h0[state.shape[0] : rows, ...]], axis=0)
        else:  # drop the rows that have ended
            first = state[:rows, ...]
        h = engine.nonlinear(
            sorted_p[start:stop, :rows, :],
            first,
            layer.weights.weight_hh,
            nonlinearity=layer.nonlinearity,
            reverse=reverse,
        )
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


def _forward_traced(layer: Layer, p: Array, h0: Array, lengths: TracedLengths) -> Array:
    """Like :func:`_forward_ragged`, over all steps: in the padding a row keeps its state."""
    h = layer.engine.nonlinear(
        p,
        h0,
        layer.weights.weight_hh,
        nonlinearity=layer.nonlinearity,
        reverse=layer.reverse,
        overwrite=True,
        carry=lengths.carry(p),
    )
    return lengths.masked(h)


def _before(layer: Layer, h: Array, h0: Array) -> Array:
    """h_{t-1} at every step of the direction, (T, B, H)."""
    h0 = _begun(layer, h0)
    before = scan.previous(h, h0, reverse=layer.reverse, xp=layer.engine.xp)
    return layer.ragged.put_at_ends(before, h0) if layer.ragged is not None and layer.reverse else before


def _begun(layer: Layer, h0: Array) -> Array:
    """h0 (B, H) with 0 for sequences without steps: theirs may be NaN, and must not reach the weights or the padding."""
    return h0 if layer.ragged is None else layer.ragged.nonempty_or(h0, layer.engine.xp.zeros_like(h0))


def _slope(layer: Layer, x: Array, h0: Array, h: Array) -> Array:
    """f' at every step, 0 in the padding."""
    f, xp = layer.nonlinearity, layer.engine.xp
    if f.derivative_needs_z:
        d = f.derivative(pre_activation(layer, x, h0, h), xp=xp)
    else:
        d = f.derivative_from_h(h, xp=xp)
    return d if layer.ragged is None else layer.ragged.masked(d)


def _source(layer: Layer, d_h: Array | None, d_last: Array | None, h: Array) -> Array:
    """dL/dh_t that enters each step from outside the recurrence, including that of the last state."""
    ragged, xp = layer.ragged, layer.engine.xp
    if d_h is None:
        d_h = xp.zeros_like(h)
    elif ragged is not None:
        d_h = ragged.masked(d_h)
    if d_last is None:
        return d_h
    if not layer.reverse and ragged is not None:
        return ragged.add_at_ends(d_h, d_last)
    end = 0 if layer.reverse else -1
    at_end = d_h[end, ...] + d_last
    if layer.engine.writable:
        d_h = layer.engine.copy(d_h)
        d_h[end, ...] = at_end
    elif layer.reverse:
        d_h = xp.concat([at_end[None, ...], d_h[1:, ...]], axis=0)
    else:
        d_h = xp.concat([d_h[:-1, ...], at_end[None, ...]], axis=0)
    return d_h if ragged is None else ragged.masked(d_h)


def _outer(a: Array, b: Array, engine: Engine) -> Array:
    """The sum over time and batch of a_t^T b_t, as one product."""
    xp = engine.xp
    steps, batch, width = a.shape
    if steps == 1:
        return engine.matmul(a[0, ...].T, b[0, ...])
    flat = xp.reshape(a, (steps * batch, width))
    return engine.matmul(flat.T, xp.reshape(b, (steps * batch, b.shape[2])))
