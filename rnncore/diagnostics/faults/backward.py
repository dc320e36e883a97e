"""Where backpropagation first leaves the finite numbers, followed as :func:`rnncore.network.layer.vjp` computes it.

The top layer first, each direction against its own time, then what is computed from all steps.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rnncore.diagnostics.faults.fault import NonFinite, finite, first_fault, growth_before, range_of
from rnncore.diagnostics.gradient.flow import _direct
from rnncore.diagnostics.numerics.integers import (
    UNIT_BITS,
    Cause,
    Share,
    explain,
    log_of,
    overflow_limit,
    products,
    signs,
    whole,
)
from rnncore.diagnostics.recording import Record
from rnncore.network.step import sum_rows
from rnncore.typing import Array, Host

__all__ = ["backward"]


def backward(record: Record, d_output: Array | None, d_last: Any) -> NonFinite | None:
    """Backpropagation as :func:`rnncore.network.layer.vjp` does it."""
    xp, engine, spec = record.xp, record.engine, record.spec
    above: Array | None = None
    for k in reversed(range(spec.num_layers)):
        width, top = spec.hidden_sizes[k], k == spec.num_layers - 1
        direct, here, slopes, deltas, below = [], [], [], [], []
        for d in range(record.directions):
            columns = slice(d * width, (d + 1) * width)
            direct.append(_direct(record, k, d, d_output if top else None, d_last, columns)[0].values)
            here.append(None if above is None else above[..., columns])
            slopes.append(_slope(record, k, d))
            w = record.weights[k][d]
            u = direct[d] if above is None else direct[d] + above[..., columns]
            delta = engine.linear(u, slopes[d], xp.zeros_like(u[0, ...]), w.weight_hh, reverse=not d)
            deltas.append(delta)
            below.append(xp.matmul(delta, w.weight_ih))
        d_x = below[0] if len(below) == 1 else below[0] + below[1]
        if 0 < k <= len(record.plan.masks):
            d_x = d_x * record.plan.masks[k - 1]
        if not all(finite(record, deltas)):
            d, t, b = first_fault(record, [(delta,) for delta in deltas], backward=True)
            return _backward_step(record, k, d, t, b, direct[d], here[d], slopes[d], deltas[d])
        found = _products_of_all_steps(record, k, deltas) or _input_gradient(record, k, deltas, d_x)
        if found is not None:
            return found
        above = d_x
    return None


def _backward_step(
    record: Record, k: int, d: int, t: int, b: int, direct: Array, above: Array | None, slope: Array, delta: Array
) -> NonFinite:
    host = record.host
    values, slopes = host(delta[t, b, :]), host(slope[t, b, :])
    u = int(np.argmax(~np.isfinite(values)))
    value, f_slope = float(values[u]), float(slopes[u])
    end, back = record.spec.suffix(k, d), -1 if d else 1
    inside = 0 <= t + back < record.lengths[b]
    later = host(delta[t + back, b, :]) if inside else np.zeros(len(values))
    column = host(record.params[f"weight_hh_{end}"][:, u])
    given, handed = float(host(direct[t, b, :])[u]), 0.0 if above is None else float(host(above[t, b, :])[u])
    ranges = {
        "dL/dz of the later step": range_of(later),
        f"weight_hh_{end}[:, {u}]": range_of(column),
        "dL/dh direct": range_of(np.asarray([given])),
        "dL/dh from above": range_of(np.asarray([handed])),
        "f'(z)": range_of(slopes),
    }

    def report(cause: Cause, where: str, ln: float) -> NonFinite:
        growth = growth_before(record, delta, t, b, back=back)
        return NonFinite("backward", cause, "dL/dz", where, k, d, t, b, u, (t, b, u), value, ranges, growth, ln)

    if not math.isfinite(f_slope):
        z = float(host(record.z[k][d][t, b, :])[u])
        return report("nonlinearity", f"derivative of {record.nonlinearity.name} at {z:.9g}", math.nan)
    if not math.isfinite(given):  # each was finite
        return report("overflow", "d_output + d_h_n", math.nan)
    shares = [
        Share("dL/dh direct", ["dL/dh direct"], [whole(given) << UNIT_BITS]),
        Share("dL/dh from above", ["dL/dh from above"], [whole(handed) << UNIT_BITS]),
        Share(
            f"dL/dz of the later step @ weight_hh_{end}[:, {u}]",
            [f"dL/dz[{j}] of the later step * weight_hh_{end}[{j}, {u}]" for j in range(len(later))],
            products(later, column),
        ),
    ]
    bracket = sum(s.total for s in shares)
    exact = bracket * whole(f_slope)
    ln = log_of(exact, 3)
    limit = overflow_limit(record, 2)
    if f_slope == 0 and not (set(signs(shares, limit)) >= {1, -1}):
        return report("0 * inf", f"f'(z) * ({explain(shares, math.inf, limit)[1]})", ln)
    if abs(exact) >= limit << UNIT_BITS and not signs(shares, limit):
        return report("overflow", "f'(z) * dL/dh", ln)
    return report(*explain(shares, value, limit), ln)


def _products_of_all_steps(record: Record, k: int, deltas: list[Array]) -> NonFinite | None:
    """The gradients of the initial states and of the parameters: sums over rows and steps, each by one product."""
    xp = record.xp
    for d, delta in enumerate(deltas):
        end = record.spec.suffix(k, d)
        w, x, before = record.weights[k][d], record.inputs[k], record.previous(k, d)
        first = (delta[-1, ...] if record.ragged is None else record.ragged.at_ends(delta)) if d else delta[0, ...]
        if record.ragged is not None:
            before = record.ragged.masked(before)
        rows = xp.reshape(delta, (-1, delta.shape[2]))
        turned = xp.matrix_transpose(rows)
        of_h0 = xp.matmul(first, w.weight_hh)
        of_ih = xp.matmul(turned, xp.reshape(x, (-1, x.shape[2])))
        of_hh = xp.matmul(turned, xp.reshape(before, rows.shape))
        of_bias = sum_rows(delta, xp=xp)
        ok = finite(record, [of_h0, of_ih, of_hh, of_bias])
        if all(ok):
            continue
        if not ok[0]:
            host = record.host(of_h0)
            b, u = (int(i) for i in np.argwhere(~np.isfinite(host))[0])
            a, other = record.host(first[b, :]), record.host(w.weight_hh[:, u])
            labels = (
                f"dL/dz of the first step @ weight_hh_{end}[:, {u}]",
                f"dL/dz[{{0}}] * weight_hh_{end}[{{0}}, {u}]",
            )
            return _of_sum(record, "dL/dh0", labels, a, other, (b, u), host, k, d, row=b, unit=u)
        if not ok[1] or not ok[2]:
            name, host, right = (
                (f"weight_ih_{end}", record.host(of_ih), x)
                if not ok[1]
                else (f"weight_hh_{end}", record.host(of_hh), before)
            )
            u, j = (int(i) for i in np.argwhere(~np.isfinite(host))[0])
            a, other = record.host(delta[..., u]).ravel(), record.host(right[..., j]).ravel()
            labels = f"sum over steps and rows of dL/dz[{u}] * {'h' if ok[1] else 'input'}[{j}]", "step and row {0}"
            return _of_sum(record, f"dL/d {name}", labels, a, other, (u, j), host, k, d, unit=u)
        if record.spec.bias:
            host = record.host(of_bias)
            u = int(np.argmax(~np.isfinite(host)))
            a = record.host(delta[..., u]).ravel()
            labels = f"sum over steps and rows of dL/dz[{u}]", "step and row {0}"
            return _of_sum(record, f"dL/d bias_ih_{end}", labels, a, np.ones(len(a)), (u,), host, k, d, unit=u)
    return None


def _input_gradient(record: Record, k: int, deltas: list[Array], d_x: Array) -> NonFinite | None:
    if all(finite(record, [d_x])):
        return None
    _, t, b = first_fault(record, [(d_x,)], backward=True)
    host = record.host(d_x[t, b, :])
    i = int(np.argmax(~np.isfinite(host)))
    a = np.concatenate([record.host(delta[t, b, :]) for delta in deltas])
    other = np.concatenate([record.host(w.weight_ih[:, i]) for w in record.weights[k]])
    labels = f"dL/dz @ weight_ih of layer {k}[:, {i}]", f"dL/dz[{{0}}] * weight_ih[{{0}}, {i}]"
    return _of_sum(record, "dL/d input", labels, a, other, (i,), host, k, 0, row=b, unit=i, step=t)


def _of_sum(
    record: Record,
    quantity: str,
    labels: tuple[str, str],
    a: Host,
    b: Host,
    index: tuple[int, ...],
    host: Host,
    k: int,
    d: int,
    *,
    unit: int,
    row: int | None = None,
    step: int | None = None,
) -> NonFinite:
    """A fault in the sum of a_i b_i."""
    share = Share(labels[0], [labels[1].format(i) for i in range(len(a))], products(a, b))
    value = float(host[index])
    cause, where = explain([share], value, overflow_limit(record, 2))
    ranges = {"left": range_of(a), "right": range_of(b)}
    place = index if step is None or row is None else (step, row, *index)
    ln = log_of(share.total, 2)
    return NonFinite("backward", cause, quantity, where, k, d, step, row, unit, place, value, ranges, math.nan, ln)


def _slope(record: Record, k: int, d: int) -> Array:
    """f' as a pullback takes it: from h where it can."""
    if record.nonlinearity.derivative_needs_z:
        return record.slope(k, d)
    slope = record.nonlinearity.derivative_from_h(record.h[k][d], xp=record.xp)
    return slope if record.ragged is None else record.ragged.masked(slope)
