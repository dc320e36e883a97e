"""The first number of backpropagation that is not finite, followed as :func:`rnncore.network.layer.vjp` computes it.

The top layer first, each direction against its own time, then the products over all steps.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rnncore.diagnostics.faults.fault import NonFinite, finite, first_fault, growth_before, place_of, range_of
from rnncore.diagnostics.gradient.flow import of_loss, own_cotangents
from rnncore.diagnostics.lane import Lane
from rnncore.diagnostics.numerics.integers import UNIT_BITS, Cause, Share, explain, log_of, overflow_limit, signs, whole
from rnncore.diagnostics.recording import Record
from rnncore.network.step import sum_rows
from rnncore.typing import Array, Host

__all__ = ["backward"]


def backward(record: Record, d_output: Array | None, d_last: Any) -> NonFinite | None:
    """Find the first number of backpropagation that is not finite, and explain it term by term."""
    xp, engine = record.xp, record.engine
    above: Array | None = None
    for k in reversed(range(record.spec.num_layers)):
        lanes = record.layer(k)
        parts, deltas = [], []
        for lane in lanes:
            direct, slope, w = (
                of_loss(lane, *own_cotangents(record, lane, d_output, d_last)),
                _slope(lane),
                lane.weights,
            )
            start = lane.direction * lane.width
            here = None if above is None else above[..., start : start + lane.width]
            u = direct if here is None else direct + here
            deltas.append(engine.linear(u, slope, xp.zeros_like(u[0, ...]), w.weight_hh, reverse=not lane.reverse))
            parts.append((direct, here, slope))
        below = [xp.matmul(delta, lane.weights.weight_ih) for delta, lane in zip(deltas, lanes, strict=True)]
        d_x = below[0] if len(below) == 1 else below[0] + below[1]
        mask = record.mask_below(k)
        d_x = d_x if mask is None else d_x * mask
        if not all(finite(engine, deltas)):
            d, t, b = first_fault(lanes, [(delta,) for delta in deltas], backward=True)
            return _of_step(record, lanes[d], t, b, *parts[d], deltas[d])
        for lane, delta in zip(lanes, deltas, strict=True):
            if (found := _of_all_steps(record, lane, delta)) is not None:
                return found
        if not all(finite(engine, [d_x])):
            return _of_input(lanes, deltas, d_x)
        above = d_x
    return None


def _of_step(
    record: Record, lane: Lane, t: int, b: int, direct: Array, above: Array | None, slope: Array, delta: Array
) -> NonFinite:
    host, back = lane.host, -1 if lane.reverse else 1
    values, slopes = host(delta[t, b, :]), host(slope[t, b, :])
    u = int(np.argmax(~np.isfinite(values)))
    f_slope, name = float(slopes[u]), f"weight_hh_{lane.suffix}"
    inside = 0 <= t + back < lane.lengths[b]
    later = host(delta[t + back, b, :]) if inside else np.zeros(lane.width)
    column = host(record.params[name][:, u])
    given, handed = float(host(direct[t, b, :])[u]), 0.0 if above is None else float(host(above[t, b, :])[u])
    shares = [
        Share.of_numbers("dL/dh direct", ["dL/dh direct"], [given] if math.isfinite(given) else []),
        Share.of_numbers("dL/dh from above", ["dL/dh from above"], [handed]),
        Share.of_products(
            f"dL/dz of the later step @ {name}[:, {u}]",
            f"dL/dz[{{0}}] of the later step * {name}[{{0}}, {u}]",
            later,
            column,
        ),
    ]
    cause, where, ln = _cause(lane, shares, float(values[u]), given, f_slope, (t, b, u))
    return NonFinite(
        phase="backward",
        cause=cause,
        quantity="dL/dz",
        where=where,
        **place_of(lane, t, b, u),
        value=float(values[u]),
        ranges={
            "dL/dz of the later step": range_of(later),
            f"{name}[:, {u}]": range_of(column),
            "dL/dh direct": range_of(np.asarray([given])),
            "dL/dh from above": range_of(np.asarray([handed])),
            "f'(z)": range_of(slopes),
        },
        growth=growth_before(lane, delta, t, b, back=back),
        log_value=ln,
    )


def _cause(
    lane: Lane, shares: list[Share], value: float, given: float, slope: float, at: tuple[int, int, int]
) -> tuple[Cause, str, float]:
    """The cause, the place and ln of the exact magnitude of ``f'(z) * (sum of the shares)``."""
    if not math.isfinite(slope):
        z = float(lane.host(lane.z[at]))
        return "nonlinearity", f"derivative of {lane.nonlinearity.name} at {z:.9g}", math.nan
    if not math.isfinite(given):  # each was finite
        return "overflow", "d_output + d_h_n", math.nan
    exact = sum(s.total for s in shares) * whole(slope)
    ln, limit = log_of(exact, 3), overflow_limit(lane.engine, 2)
    if slope == 0 and not (set(signs(shares, limit)) >= {1, -1}):
        return "0 * inf", f"f'(z) * ({explain(shares, math.inf, limit)[1]})", ln
    if abs(exact) >= limit << UNIT_BITS and not signs(shares, limit):
        return "overflow", "f'(z) * dL/dh", ln
    return *explain(shares, value, limit), ln


def _of_all_steps(record: Record, lane: Lane, delta: Array) -> NonFinite | None:
    """The gradients of the initial state and of the parameters: sums over rows and steps, each by one product."""
    xp, w, end = lane.xp, lane.weights, lane.suffix
    before, first = lane.masked(lane.previous()), lane.first(delta)
    turned = xp.matrix_transpose(xp.reshape(delta, (-1, lane.width)))
    of_h0 = xp.matmul(first, w.weight_hh)
    of_ih, of_hh = (xp.matmul(turned, xp.reshape(a, (-1, a.shape[2]))) for a in (lane.x, before))
    of_bias = sum_rows(delta, xp=xp)
    ok = finite(lane.engine, [of_h0, of_ih, of_hh, of_bias])
    if not ok[0]:
        host = lane.host(of_h0)
        b, u = (int(i) for i in np.argwhere(~np.isfinite(host))[0])
        label = f"dL/dz of the first step @ weight_hh_{end}[:, {u}]"
        term = f"dL/dz[{{0}}] * weight_hh_{end}[{{0}}, {u}]"
        share = Share.of_products(label, term, a := lane.host(first[b, :]), other := lane.host(w.weight_hh[:, u]))
        return _of_sum(lane, "dL/dh0", share, (a, other), host, (b, u), row=b, unit=u)
    for good, kind, product, right, source in (
        (ok[1], "ih", of_ih, lane.x, "input"),
        (ok[2], "hh", of_hh, before, "h"),
    ):
        if not good:
            host = lane.host(product)
            u, j = (int(i) for i in np.argwhere(~np.isfinite(host))[0])
            a, other = lane.host(delta[..., u]).ravel(), lane.host(right[..., j]).ravel()
            share = Share.of_products(
                f"sum over steps and rows of dL/dz[{u}] * {source}[{j}]", "step and row {0}", a, other
            )
            return _of_sum(lane, f"dL/d weight_{kind}_{end}", share, (a, other), host, (u, j), unit=u)
    if not ok[3] and record.spec.bias:
        host = lane.host(of_bias)
        u = int(np.argmax(~np.isfinite(host)))
        a = lane.host(delta[..., u]).ravel()
        share = Share.of_products(
            f"sum over steps and rows of dL/dz[{u}]", "step and row {0}", a, other := np.ones(len(a))
        )
        return _of_sum(lane, f"dL/d bias_ih_{end}", share, (a, other), host, (u,), unit=u)
    return None


def _of_input(lanes: tuple[Lane, ...], deltas: list[Array], d_x: Array) -> NonFinite:
    _, t, b = first_fault(lanes, [(d_x,)], backward=True)
    host = lanes[0].host(d_x[t, b, :])
    i, k = int(np.argmax(~np.isfinite(host))), lanes[0].layer
    a = np.concatenate([lane.host(delta[t, b, :]) for lane, delta in zip(lanes, deltas, strict=True)])
    other = np.concatenate([lane.host(lane.weights.weight_ih[:, i]) for lane in lanes])
    label, term = f"dL/dz @ weight_ih of layer {k}[:, {i}]", f"dL/dz[{{0}}] * weight_ih[{{0}}, {i}]"
    share = Share.of_products(label, term, a, other)
    return _of_sum(lanes[0], "dL/d input", share, (a, other), host, (i,), row=b, unit=i, step=t)


def _of_sum(
    lane: Lane,
    quantity: str,
    share: Share,
    factors: tuple[Host, Host],
    host: Host,
    index: tuple[int, ...],
    **place: int,
) -> NonFinite:
    """A fault in a sum of products."""
    cause, where = explain([share], float(host[index]), overflow_limit(lane.engine, 2))
    step, row = place.get("step"), place.get("row")
    return NonFinite(
        phase="backward",
        cause=cause,
        quantity=quantity,
        where=where,
        layer=lane.layer,
        direction=lane.direction,
        step=step,
        row=row,
        unit=place["unit"],
        index=index if step is None or row is None else (step, row, *index),
        value=float(host[index]),
        ranges={"left": range_of(factors[0]), "right": range_of(factors[1])},
        growth=math.nan,
        log_value=log_of(share.total, 2),
    )


def _slope(lane: Lane) -> Array:
    """f' as a pullback takes it: from h where it can."""
    if lane.nonlinearity.derivative_needs_z:
        return lane.slope()
    return lane.masked(lane.nonlinearity.derivative_from_h(lane.h, xp=lane.xp))
