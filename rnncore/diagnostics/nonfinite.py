"""nonfinite: where the first NaN or infinity is born, forward and backward, from what, and what should stand there.

Anomaly detection of a framework names an operation, and of a fused or compiled scan only the whole of it. Here the states
of all steps are at hand: one reduction says whether anything is wrong, another where it began, and that one step is gone
through again term by term on the host in integers, which neither round nor overflow.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from rnncore.arrays import floating_dtypes
from rnncore.backend import Array
from rnncore.cell import sum_rows
from rnncore.diagnostics.flow import _direct
from rnncore.diagnostics.record import Record

__all__ = ["NonFinite", "nonfinite"]

Host = np.ndarray[Any, Any]
Cause: TypeAlias = Literal[
    "input", "initial state", "parameter", "cotangent", "overflow", "inf - inf", "0 * inf", "nonlinearity"
]
# The growth is measured over so many steps before the fault: what was before them may have been of another kind.
GROWTH_STEPS = 16
# Every float64 is a whole number of 2^-1074.
UNIT_BITS = 1074
LARGE = 1e300  # far in the tails of every named function, and what is linear there does not overflow yet


@dataclass(frozen=True)
class NonFinite:
    """The first number that is not finite.

    Attributes
    ----------
    phase : "forward" or "backward"
    cause : str
        "input", "initial state", "parameter" and "cotangent" were given so; "overflow", "inf - inf" and "0 * inf" arose;
        "nonlinearity" made it of a finite number.
    quantity : str
        What it is: "x", "h0", a parameter's name, "z", "h"; backward "d_output", "d_h_n", "dL/dz", "dL/dh0",
        "dL/d input" of the layer, or "dL/d" and a parameter's name.
    where : str
        The element, product or sum from which it came.
    layer, direction : int
    step, row : int or None
        None for a parameter, its gradient and what has no time.
    unit : int
        Of the layer; the feature for an input, the first index for a parameter.
    index : tuple of int
        In the array itself: (t, b, i), or a parameter's index.
    value : float
        What stands there: NaN, inf or -inf.
    ranges : mapping of str to (float, float)
        Smallest and largest finite operand there, by name.
    growth : float
        Nats per step by which the norm of the row's state (backward: of dL/dz) grew up to there, over the last 16 steps
        at most; NaN where there are fewer than two.
    log_value : float
        ln of the magnitude that the number should have had, computed from its operands without overflow or rounding; NaN
        where the operands do not say (they were given so, or a user's function leaves the range of float64).
    """

    phase: Literal["forward", "backward"]
    cause: Cause
    quantity: str
    where: str
    layer: int
    direction: int
    step: int | None
    row: int | None
    unit: int
    index: tuple[int, ...]
    value: float
    ranges: Mapping[str, tuple[float, float]]
    growth: float
    log_value: float


def nonfinite(
    record: Record, d_output: Array | None = None, d_last: Sequence[Sequence[Array | None]] | None = None
) -> NonFinite | None:
    """The first NaN or infinity of a run, or None.

    The order of the search is input, initial states, parameters; then the states, the lowest layer first and in each its
    directions' own time; then, with cotangents, backpropagation as training does it, without rescaling: the top layer
    first, against the directions' time, then what is computed from all steps. Padding is not read, nor is the initial
    state of a row without steps.

    Parameters
    ----------
    record : Record
    d_output : array (T, B, D*H), optional
        dL/d output, as for :func:`rnncore.diagnostics.flow`.
    d_last : nested list of array (B, H_k), optional
        dL/dh_n by [layer][direction]. Without either the backward phase is left out.

    Returns
    -------
    NonFinite or None
        None where all is finite.

    Examples
    --------
    A linear unit that doubles leaves the range of float64 at its 1,025th step, with the value 2^1024:

    >>> import numpy as np, rnncore
    >>> from rnncore.diagnostics import record
    >>> from rnncore.diagnostics.nonfinite import nonfinite
    >>> rnn = rnncore.RNN(1, 1, nonlinearity="relu", bias=False)
    >>> rnn.load_state_dict({"weight_ih_l0": np.ones((1, 1)), "weight_hh_l0": 2 * np.ones((1, 1))})
    >>> x = np.zeros((1100, 1, 1))
    >>> x[0] = 1
    >>> with np.errstate(over="ignore"):
    ...     found = nonfinite(record(rnn, x))
    >>> found.cause, found.where, found.step
    ('overflow', 'h[0] * weight_hh_l0[0, 0]', 1024)
    >>> bool(np.isclose(found.log_value, 1024 * np.log(2))), bool(np.isclose(found.growth, np.log(2)))
    (True, True)
    """
    # NumPy would warn of the very thing that is looked for.
    with record.engine.scope(), np.errstate(all="ignore"):
        found = _given(record) or _forward(record)
        if found is None and not (d_output is None and d_last is None):
            found = _given_cotangents(record, d_output, d_last) or _backward(record, d_output, d_last)
        return found


# --- what was given ---------------------------------------------------------------------------------------------------


def _given(record: Record) -> NonFinite | None:
    h0s = [(k, d, _of_rows(record, h0)) for k, row in enumerate(record.h0) for d, h0 in enumerate(row)]
    params = list(record.params.items())
    ok = _finite(record, [record.x, *(h0 for _, _, h0 in h0s), *(p for _, p in params)])
    if all(ok):
        return None
    first = ok.index(False)
    if first == 0:
        return _as_given("forward", "input", "x", record.host(record.x), 0, 0, timed=True)
    if first <= len(h0s):
        k, d, h0 = h0s[first - 1]
        return _as_given("forward", "initial state", "h0", record.host(h0), k, d)
    name, value = params[first - 1 - len(h0s)]
    k, d = next((k, d) for k, d in _places(record) if name.endswith(f"_{record.spec.suffix(k, d)}"))
    return _as_given("forward", "parameter", name, record.host(value), k, d)


def _given_cotangents(record: Record, d_output: Array | None, d_last: Any) -> NonFinite | None:
    top = record.spec.num_layers - 1
    if d_output is not None:
        d_output = d_output if record.ragged is None else record.ragged.masked(d_output)
        if not all(_finite(record, [d_output])):
            host = record.host(d_output)
            # What backpropagation meets first is the last.
            t = int(np.nonzero(~np.isfinite(host).all(axis=(1, 2)))[0][-1])
            b, column = (int(i) for i in np.argwhere(~np.isfinite(host[t]))[0])
            d, unit = divmod(column, record.spec.hidden_sizes[top])
            return _bare("backward", "cotangent", "d_output", (t, b, column), host, top, d, t, b, unit)
    for k, d in _places(record) if d_last is not None else ():
        if d_last[k][d] is not None:
            g = _of_rows(record, d_last[k][d])
            if not all(_finite(record, [g])):
                return _as_given("backward", "cotangent", "d_h_n", record.host(g), k, d)
    return None


def _as_given(
    phase: Literal["forward", "backward"], cause: Cause, name: str, host: Host, k: int, d: int, *, timed: bool = False
) -> NonFinite:
    index = tuple(int(i) for i in np.argwhere(~np.isfinite(host))[0])
    if timed:
        return _bare(phase, cause, name, index, host, k, d, index[0], index[1], index[2])
    if cause == "parameter":
        return _bare(phase, cause, name, index, host, k, d, None, None, index[0])
    return _bare(phase, cause, name, index, host, k, d, None, index[0], index[1])


def _bare(
    phase: Literal["forward", "backward"],
    cause: Cause,
    name: str,
    index: tuple[int, ...],
    host: Host,
    k: int,
    d: int,
    step: int | None,
    row: int | None,
    unit: int,
) -> NonFinite:
    """A fault without operands."""
    where = f"{name}[{', '.join(map(str, index))}]"
    ranges = {name: _range(host[index[:-1]] if len(index) > 1 else host)}
    value = float(host[index])
    return NonFinite(phase, cause, name, where, k, d, step, row, unit, index, value, ranges, math.nan, math.nan)


# --- forward ----------------------------------------------------------------------------------------------------------


def _forward(record: Record) -> NonFinite | None:
    layers = range(record.spec.num_layers)
    ok = _finite(record, [a for k in layers for a in (*record.z[k], *record.h[k])])
    width = 2 * record.directions
    for k in layers:
        if k and record.plan.masks and not all(_finite(record, [record.inputs[k]])):
            host = record.host(record.inputs[k])
            found = _as_given("forward", "overflow", "input", host, k, 0, timed=True)
            return replace(found, where="h of the layer below * dropout mask")
        if not all(ok[k * width : (k + 1) * width]):
            d, t, b = _first(record, [(record.z[k][d], record.h[k][d]) for d in range(record.directions)])
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
        _Share(
            f"{source} @ weight_ih_{end}[{u}, :]",
            [f"{source}[{i}] * weight_ih_{end}[{u}, {i}]" for i in range(len(x))],
            _products(x, w_ih),
        ),
        _Share(
            f"bias_ih_{end}[{u}] + bias_hh_{end}[{u}]",
            [f"bias_ih_{end}[{u}]", f"bias_hh_{end}[{u}]"][: len(bias)],
            [_whole(v) << UNIT_BITS for v in bias],
        ),
        _Share(
            f"h @ weight_hh_{end}[{u}, :]",
            [f"h[{j}] * weight_hh_{end}[{u}, {j}]" for j in range(len(before))],
            _products(before, w_hh),
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
        cause, where = _explain(shares, float(value), _limit(record, 2))
        ln = _ln(exact, 2) if quantity == "z" else _log_state(record, exact)
    ranges = {
        f"{source}": _range(x),
        f"weight_ih_{end}[{u}, :]": _range(w_ih),
        "h": _range(before),
        f"weight_hh_{end}[{u}, :]": _range(w_hh),
    }
    if bias:
        ranges["bias"] = _range(np.asarray(bias))
    growth = _growth(record, record.h[k][d], t, b, back=1 if d else -1)
    return NonFinite("forward", cause, quantity, where, k, d, t, b, u, (t, b, u), float(value), ranges, growth, ln)


def _function_at(record: Record, z: float, *, wide: bool = False) -> float:
    """f(z) in the network's dtype, or in float64 where the device has it."""
    engine = record.engine
    dtype = floating_dtypes(xp=engine.xp, device=engine.device).get("float64", engine.dtype) if wide else engine.dtype
    point = engine.backend.asarray(np.asarray([z]), dtype=dtype, device=engine.device)
    return float(record.host(record.nonlinearity(point, xp=engine.xp))[0])


def _log_state(record: Record, exact: int) -> float:
    """ln |f(z)| for z in units of 2^-2148."""
    ln, sign = _ln(exact, 2), (exact > 0) - (exact < 0)
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


# --- backward ---------------------------------------------------------------------------------------------------------


def _backward(record: Record, d_output: Array | None, d_last: Any) -> NonFinite | None:
    """Backpropagation as :func:`rnncore.layer.vjp` does it."""
    xp, engine, spec = record.xp, record.engine, record.spec
    above: Array | None = None
    for k in reversed(range(spec.num_layers)):
        width, top = spec.hidden_sizes[k], k == spec.num_layers - 1
        direct, here, slopes, deltas, below = [], [], [], [], []
        for d in range(record.directions):
            columns = slice(d * width, (d + 1) * width)
            direct.append(_direct(record, k, d, d_output if top else None, d_last, columns).values)
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
        if not all(_finite(record, deltas)):
            d, t, b = _first(record, [(delta,) for delta in deltas], backward=True)
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
        "dL/dz of the later step": _range(later),
        f"weight_hh_{end}[:, {u}]": _range(column),
        "dL/dh direct": _range(np.asarray([given])),
        "dL/dh from above": _range(np.asarray([handed])),
        "f'(z)": _range(slopes),
    }

    def report(cause: Cause, where: str, ln: float) -> NonFinite:
        growth = _growth(record, delta, t, b, back=back)
        return NonFinite("backward", cause, "dL/dz", where, k, d, t, b, u, (t, b, u), value, ranges, growth, ln)

    if not math.isfinite(f_slope):
        z = float(host(record.z[k][d][t, b, :])[u])
        return report("nonlinearity", f"derivative of {record.nonlinearity.name} at {z:.9g}", math.nan)
    if not math.isfinite(given):  # each was finite
        return report("overflow", "d_output + d_h_n", math.nan)
    shares = [
        _Share("dL/dh direct", ["dL/dh direct"], [_whole(given) << UNIT_BITS]),
        _Share("dL/dh from above", ["dL/dh from above"], [_whole(handed) << UNIT_BITS]),
        _Share(
            f"dL/dz of the later step @ weight_hh_{end}[:, {u}]",
            [f"dL/dz[{j}] of the later step * weight_hh_{end}[{j}, {u}]" for j in range(len(later))],
            _products(later, column),
        ),
    ]
    bracket = sum(s.total for s in shares)
    exact = bracket * _whole(f_slope)
    ln = _ln(exact, 3)
    limit = _limit(record, 2)
    if f_slope == 0 and not (set(_signs(shares, limit)) >= {1, -1}):
        return report("0 * inf", f"f'(z) * ({_explain(shares, math.inf, limit)[1]})", ln)
    if abs(exact) >= limit << UNIT_BITS and not _signs(shares, limit):
        return report("overflow", "f'(z) * dL/dh", ln)
    return report(*_explain(shares, value, limit), ln)


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
        ok = _finite(record, [of_h0, of_ih, of_hh, of_bias])
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
    if all(_finite(record, [d_x])):
        return None
    _, t, b = _first(record, [(d_x,)], backward=True)
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
    share = _Share(labels[0], [labels[1].format(i) for i in range(len(a))], _products(a, b))
    value = float(host[index])
    cause, where = _explain([share], value, _limit(record, 2))
    ranges = {"left": _range(a), "right": _range(b)}
    place = index if step is None or row is None else (step, row, *index)
    ln = _ln(share.total, 2)
    return NonFinite("backward", cause, quantity, where, k, d, step, row, unit, place, value, ranges, math.nan, ln)


def _slope(record: Record, k: int, d: int) -> Array:
    """f' as a pullback takes it: from h where it can."""
    if record.nonlinearity.derivative_needs_z:
        return record.slope(k, d)
    slope = record.nonlinearity.derivative_from_h(record.h[k][d], xp=record.xp)
    return slope if record.ragged is None else record.ragged.masked(slope)


# --- exact arithmetic -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Share:
    """One part of a sum: its name, the names of its terms, and the terms as whole numbers of 2^-2148."""

    label: str
    labels: list[str]
    terms: list[int]

    @property
    def total(self) -> int:
        return sum(self.terms)


def _explain(shares: Sequence[_Share], value: float, limit: int) -> tuple[Cause, str]:
    """Why a sum of shares is not finite, from its exact terms."""
    found = _overflows(shares, limit)
    if math.isnan(value):
        signs = [next((label for sign, label in found if sign == s), None) for s in (1, -1)]
        if None not in signs:
            return "inf - inf", f"{signs[0]} and {signs[1]}"
    if found:
        return "overflow", found[0][1]
    every = " + ".join(s.label for s in shares if s.terms)
    if abs(sum(s.total for s in shares)) >= limit:
        return "overflow", every
    return ("inf - inf" if math.isnan(value) else "overflow"), f"partial sums of {every}"


def _overflows(shares: Sequence[_Share], limit: int) -> list[tuple[int, str]]:
    """(sign, name) of each product that overflows, then of each share that does."""
    terms = [(n, label) for s in shares for n, label in zip(s.terms, s.labels, strict=True)]
    sums = [(s.total, s.label) for s in shares]
    return [(1 if n > 0 else -1, label) for n, label in (*terms, *sums) if abs(n) >= limit]


def _signs(shares: Sequence[_Share], limit: int) -> list[int]:
    return [sign for sign, _ in _overflows(shares, limit)]


def _whole(x: float) -> int:
    """x in units of 2^-1074."""
    n, d = float(x).as_integer_ratio()
    return n * ((1 << UNIT_BITS) // d)


def _products(a: Host, b: Host) -> list[int]:
    return [_whole(v) * _whole(w) for v, w in zip(a.tolist(), b.tolist(), strict=True)]


def _ln(n: int, factors: int) -> float:
    """ln |n 2^(-1074 factors)|."""
    if n == 0:
        return -math.inf
    bits = abs(n).bit_length()
    return math.log(abs(n) / (1 << bits)) + (bits - UNIT_BITS * factors) * math.log(2.0)


def _limit(record: Record, factors: int) -> int:
    """The magnitude from which on a result rounds to infinity in the network's dtype: half a step above the largest."""
    info = record.xp.finfo(record.engine.dtype)
    top, eps = float(info.max), float(info.eps)
    half_step = _whole(top / (2 - eps) * eps) // 2
    return (_whole(top) + half_step) << (UNIT_BITS * (factors - 1))


# --- search -----------------------------------------------------------------------------------------------------------


def _finite(record: Record, arrays: Iterable[Array]) -> list[bool]:
    """Whether each holds finite numbers only; one transfer for all."""
    xp = record.xp
    return [bool(v) for v in record.engine.backend.to_numpy(xp.stack([xp.all(xp.isfinite(a)) for a in arrays]))]


def _first(record: Record, arrays: Sequence[tuple[Array, ...]], *, backward: bool = False) -> tuple[int, int, int]:
    """(direction, step, row) of the first fault, each direction's arrays seen in its own time, or against it."""
    xp = record.xp
    t, lengths = np.arange(record.steps)[:, None], np.asarray(record.lengths, dtype=np.int64)[None, :]
    best: tuple[int, int, int, int] | None = None
    for d, group in enumerate(arrays):
        ok = xp.all(xp.isfinite(group[0]), axis=-1)
        for a in group[1:]:
            ok = xp.logical_and(ok, xp.all(xp.isfinite(a), axis=-1))
        bad = ~record.engine.backend.to_numpy(ok).astype(bool) & record.valid
        order = np.where(bad, lengths - 1 - t if bool(d) != backward else t + 0 * lengths, record.steps)
        if bad.any():
            n = int(order.min())
            b = int(np.argmax((order == n).any(axis=0)))
            candidate = (n, d, b, int(np.argmax(order[:, b] == n)))
            best = candidate if best is None else min(best, candidate)
    if best is None:
        raise AssertionError("called where something is not finite")
    return best[1], best[3], best[2]


def _growth(record: Record, h: Array, t: int, b: int, *, back: int) -> float:
    """Nats per step of the norms at t + back, t + 2 back, ..., as far as they are finite and not 0."""
    a, e = (t + 1, min(t + GROWTH_STEPS + 2, record.lengths[b])) if back > 0 else (max(0, t - GROWTH_STEPS - 1), t)
    near = record.host(h[a:e, b, :])[::back]
    largest = np.abs(near).max(axis=-1, initial=0.0)
    usable = np.isfinite(largest) & (largest > 0)
    count = len(usable) if usable.all() else int(np.argmin(usable))
    if count < 2:
        return math.nan
    ends, unit = near[[0, count - 1]], largest[[0, count - 1], None]
    ln = np.log(unit[:, 0]) + np.log(np.linalg.norm(ends / unit, axis=-1))
    return float(ln[0] - ln[1]) / (count - 1)


def _range(a: Host) -> tuple[float, float]:
    finite = a[np.isfinite(a)]
    return (float(finite.min()), float(finite.max())) if finite.size else (math.nan, math.nan)


def _places(record: Record) -> list[tuple[int, int]]:
    return [(k, d) for k in range(record.spec.num_layers) for d in range(record.directions)]


def _of_rows(record: Record, x: Array) -> Array:
    """x (B, H), 0 for the rows without steps."""
    return x if record.ragged is None else record.ragged.nonempty_or(x, record.xp.zeros_like(x))
