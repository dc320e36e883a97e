"""fault_forward: where a forward pass first leaves the finite numbers: the lowest layer, each direction in its own time."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from rnncore.backend.arrays import floating_dtypes
from rnncore.diagnostics.faults.fault import NonFinite, as_given, finite, first_fault, growth_before, range_of
from rnncore.diagnostics.numerics.integers import (
    UNIT_BITS,
    Cause,
    Share,
    explain,
    log_of,
    overflow_limit,
    products,
    whole,
)
from rnncore.diagnostics.recording import Record

__all__ = ["forward"]

LARGE = 1e300  # far in the tails of every named function, and what is linear there does not overflow yet


def forward(record: Record) -> NonFinite | None:
    """The first state or pre-activation that is not finite, explained term by term."""
    layers = range(record.spec.num_layers)
    ok = finite(record, [a for k in layers for a in (*record.z[k], *record.h[k])])
    width = 2 * record.directions
    for k in layers:
        if k and record.plan.masks and not all(finite(record, [record.inputs[k]])):
            host = record.host(record.inputs[k])
            found = as_given("forward", "overflow", "input", host, k, 0, timed=True)
            return replace(found, where="h of the layer below * dropout mask")
        if not all(ok[k * width : (k + 1) * width]):
            d, t, b = first_fault(record, [(record.z[k][d], record.h[k][d]) for d in range(record.directions)])
            return _forward_step(record, k, d, t, b)
    return None


def _forward_step(record: Record, k: int, d: int, t: int, b: int) -> NonFinite:
    z, h = (record.host(a[k][d][t, b, :]) for a in (record.z, record.h))
    u = int(np.argmax(~(np.isfinite(z) & np.isfinite(h))))
    end = record.spec.suffix(k, d)
    x, before = record.host(record.inputs[k][t, b, :]), record.host(record.previous(k, d)[t, b, :])
    w_ih, w_hh = (record.host(record.params[f"{name}_{end}"][u, :]) for name in ("weight_ih", "weight_hh"))
    bias = [record.host(record.params[f"{n}_{end}"])[u] for n in ("bias_ih", "bias_hh")] if record.spec.bias else []
    source = "x" if k == 0 else "input"
    shares = [
        Share(
            f"{source} @ weight_ih_{end}[{u}, :]",
            [f"{source}[{i}] * weight_ih_{end}[{u}, {i}]" for i in range(len(x))],
            products(x, w_ih),
        ),
        Share(
            f"bias_ih_{end}[{u}] + bias_hh_{end}[{u}]",
            [f"bias_ih_{end}[{u}]", f"bias_hh_{end}[{u}]"][: len(bias)],
            [whole(v) << UNIT_BITS for v in bias],
        ),
        Share(
            f"h @ weight_hh_{end}[{u}, :]",
            [f"h[{j}] * weight_hh_{end}[{u}, {j}]" for j in range(len(before))],
            products(before, w_hh),
        ),
    ]
    exact = sum(s.total for s in shares)
    cause: Cause
    if np.isfinite(z[u]) and (not np.isfinite(_function_at(record, z[u]))):
        quantity, value, cause, where = "h", h[u], "nonlinearity", f"{record.nonlinearity.name}({z[u]:.9g})"
        ln = _log_state(record, exact)
    else:
        # A state may be wrong where z is not: the scan and the product over all steps add up in different orders.
        quantity, value = ("h", h[u]) if np.isfinite(z[u]) else ("z", z[u])
        cause, where = explain(shares, float(value), overflow_limit(record, 2))
        ln = log_of(exact, 2) if quantity == "z" else _log_state(record, exact)
    ranges = {
        f"{source}": range_of(x),
        f"weight_ih_{end}[{u}, :]": range_of(w_ih),
        "h": range_of(before),
        f"weight_hh_{end}[{u}, :]": range_of(w_hh),
    }
    if bias:
        ranges["bias"] = range_of(np.asarray(bias))
    growth = growth_before(record, record.h[k][d], t, b, back=1 if d else -1)
    return NonFinite("forward", cause, quantity, where, k, d, t, b, u, (t, b, u), float(value), ranges, growth, ln)


def _function_at(record: Record, z: float, *, wide: bool = False) -> float:
    """f(z) in the network's dtype, or in float64 where the device has it."""
    engine = record.engine
    dtype = floating_dtypes(xp=engine.xp, device=engine.device).get("float64", engine.dtype) if wide else engine.dtype
    point = engine.backend.asarray(np.asarray([z]), dtype=dtype, device=engine.device)
    return float(record.host(record.nonlinearity(point, xp=engine.xp))[0])


def _log_state(record: Record, exact: int) -> float:
    """ln |f(z)| for z in units of 2^-2148."""
    ln, sign = log_of(exact, 2), (exact > 0) - (exact < 0)
    if ln < math.log(LARGE):
        value = abs(_function_at(record, sign * math.exp(ln) if sign else 0.0, wide=True))
        return math.log(value) if 0 < value < math.inf else (-math.inf if value == 0 else math.nan)
    if record.nonlinearity.is_custom:
        return math.nan
    # Out there a named function is either constant or proportional to z.
    tail = abs(float(record.nonlinearity(np.asarray([sign * LARGE]), xp=np)[0]))
    if tail == 0:
        return -math.inf
    return math.log(tail) + (ln - math.log(LARGE) if tail > math.sqrt(LARGE) else 0.0)
