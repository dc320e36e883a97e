"""The first number of a forward pass that is not finite: the lowest layer first, each direction in its own time."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from rnncore.backend.arrays import floating_dtypes
from rnncore.diagnostics.faults.fault import NonFinite, finite, first_fault, given, growth_before, place_of, range_of
from rnncore.diagnostics.lane import Lane
from rnncore.diagnostics.numerics import integers
from rnncore.diagnostics.numerics.device import on_device
from rnncore.diagnostics.numerics.integers import Cause, Share
from rnncore.diagnostics.recording import Record

__all__ = ["forward"]

# Far in the tails of every named function; what is linear there does not overflow yet.
LARGE = 1e300


def forward(record: Record) -> NonFinite | None:
    """Find the first state or pre-activation that is not finite, and explain it term by term."""
    ok = iter(finite(record.engine, [a for lane in record.lanes for a in (lane.z, lane.h)]))
    for k in range(record.spec.num_layers):
        lanes = record.layer(k)
        if record.mask_below(k) is not None and not all(finite(record.engine, [record.inputs[k]])):
            found = given("forward", "overflow", "input", record.host(record.inputs[k]), lanes[0])
            return replace(found, where="h of the layer below * dropout mask")
        if not all(next(ok) for _ in lanes for _ in ("z", "h")):
            d, t, b = first_fault(lanes, [(lane.z, lane.h) for lane in lanes])
            return _explain(record, lanes[d], t, b)
    return None


def _explain(record: Record, lane: Lane, t: int, b: int) -> NonFinite:
    z, h, x, before = (lane.host(a[t, b, :]) for a in (lane.z, lane.h, lane.x, lane.previous()))
    u = int(np.argmax(~(np.isfinite(z) & np.isfinite(h))))
    names = {n: f"{n}_{lane.suffix}" for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    w_ih, w_hh = (lane.host(record.params[names[n]][u, :]) for n in ("weight_ih", "weight_hh"))
    of_bias = [names["bias_ih"], names["bias_hh"]] if record.spec.bias else []
    bias = [float(lane.host(record.params[n])[u]) for n in of_bias]
    source, row = "x" if lane.layer == 0 else "input", f"[{u}, :]"
    shares = [
        Share.of_products(
            f"{source} @ {names['weight_ih']}{row}", f"{source}[{{0}}] * {names['weight_ih']}[{u}, {{0}}]", x, w_ih
        ),
        Share.of_numbers(f"{names['bias_ih']}[{u}] + {names['bias_hh']}[{u}]", [f"{n}[{u}]" for n in of_bias], bias),
        Share.of_products(
            f"h @ {names['weight_hh']}{row}", f"h[{{0}}] * {names['weight_hh']}[{u}, {{0}}]", before, w_hh
        ),
    ]
    exact = sum(s.total for s in shares)
    cause: Cause
    if np.isfinite(z[u]) and not np.isfinite(_function_at(lane, z[u])):
        quantity, value, cause, where = "h", h[u], "nonlinearity", f"{lane.nonlinearity.name}({z[u]:.9g})"
    else:
        # A state may be wrong where z is not: the scan and the product over all steps add up in different orders.
        quantity, value = ("h", h[u]) if np.isfinite(z[u]) else ("z", z[u])
        cause, where = integers.explain(shares, float(value), integers.overflow_limit(lane.engine, 2))
    ranges = {
        source: range_of(x),
        names["weight_ih"] + row: range_of(w_ih),
        "h": range_of(before),
        names["weight_hh"] + row: range_of(w_hh),
    }
    if bias:
        ranges["bias"] = range_of(np.asarray(bias))
    return NonFinite(
        phase="forward",
        cause=cause,
        quantity=quantity,
        where=where,
        **place_of(lane, t, b, u),
        value=float(value),
        ranges=ranges,
        growth=growth_before(lane, lane.h, t, b, back=1 if lane.reverse else -1),
        log_value=integers.log_of(exact, 2) if quantity == "z" else _log_state(lane, exact),
    )


def _function_at(lane: Lane, z: float, *, wide: bool = False) -> float:
    """f(z) in the network's dtype, or in float64 where the device has it."""
    engine = lane.engine
    dtype = floating_dtypes(xp=engine.xp, device=engine.device).get("float64", engine.dtype) if wide else engine.dtype
    return float(lane.host(lane.nonlinearity(on_device(np.asarray([z]), engine, dtype), xp=engine.xp))[0])


def _log_state(lane: Lane, exact: int) -> float:
    """ln |f(z)| for z in units of 2^-2148."""
    ln, sign = integers.log_of(exact, 2), (exact > 0) - (exact < 0)
    if ln < math.log(LARGE):
        value = abs(_function_at(lane, sign * math.exp(ln) if sign else 0.0, wide=True))
        return math.log(value) if 0 < value < math.inf else (-math.inf if value == 0 else math.nan)
    if lane.nonlinearity.is_custom:
        return math.nan
    # That far out a named function is either constant or proportional to z.
    tail = abs(float(lane.nonlinearity(np.asarray([sign * LARGE]), xp=np)[0]))
    if tail == 0:
        return -math.inf
    return math.log(tail) + (ln - math.log(LARGE) if tail > math.sqrt(LARGE) else 0.0)
