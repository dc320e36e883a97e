"""Portability faults planted in the core: each would break on a GPU or in a compiled function, and names what catches it.

A fault is a function of the core rewritten as a developer might have written it. NumPy runs most of them without a word; the
same checks on array-api-strict's fake devices and under ``jax.jit`` do not, and need no GPU either.
``python -m tests.testing.checks.test_portability`` prints the whole table: each fault in each setup.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from rnncore import scan
from rnncore.network import layer
from rnncore.network import stack as network
from rnncore.network import step as cell
from rnncore.network.engine import Engine
from rnncore.network.ragged import Ragged
from rnncore.nonlinearity import activations
from rnncore.nonlinearity.activations import FAMILIES, Family


@dataclass(frozen=True)
class Fault:
    """What is planted where, and the setups that must fail, each with words of its reason.

    A setup is named where it is needed or sees the fault in its own way: no_float64 and no_x64 see what device1 does, too.
    """

    name: str
    kind: str
    target: Any
    attribute: str
    function: Any
    caught: dict[str, str]

    def plant(self, patch: pytest.MonkeyPatch) -> None:
        if isinstance(self.target, dict):
            patch.setitem(self.target, self.attribute, self.function)
        else:
            patch.setattr(self.target, self.attribute, self.function)


FAULTS: dict[str, Fault] = {}


def fault(kind: str, name: str, target: Any, attribute: str, **caught: str) -> Callable[[Any], Any]:
    """Register the decorated function as the replacement for ``target.attribute``."""

    def register(function: Any) -> Any:
        assert name not in FAULTS, name
        FAULTS[name] = Fault(name, kind, target, attribute, function, caught)
        return function

    return register


def nonlinearity(kind: str, name: str, function: str, part: str, **caught: str) -> Callable[[Any], Any]:
    """The same for f, df or df_from_h of a named function."""

    def register(body: Any) -> Any:
        faulty = replace(FAMILIES[function].build(), **{part: body})
        return fault(kind, name, FAMILIES, function, **caught)(Family(lambda: faulty))

    return register


GUARD = "ImplicitTransferError"

# --- devices and dtypes of what is created ----------------------------------------------------------------------------


@fault("creation", "zeros() without device=", Engine, "zeros", device1="same device")
def _(self, shape):
    return self.xp.zeros(shape, dtype=self.dtype)


@fault("creation", "arange() without device=", Ragged, "_valid", device1="two different devices")
@property
def _(self):
    counts = self._indices(np.asarray(self.lengths, dtype=np.int64))
    steps = self.xp.arange(self.steps, dtype=counts.dtype)
    return self.xp.reshape(steps, (-1, 1, 1)) < self.xp.reshape(counts, (1, -1, 1))


@fault("creation", "asarray() of host numbers without device=", Ragged, "_truth", device1="same device")
def _(self, x):
    return self.xp.asarray(x)


@fault("creation", "full() without device=", activations, "_two_slopes", device1="same device")
def _(z, xp, below, above):
    return xp.where(z <= 0, xp.full(z.shape, below, dtype=z.dtype), xp.full_like(z, above))


@fault("creation", "device=x.device of a traced array", Ragged, "masked", jit="no attribute device")
def _(self, x):
    return self.xp.where(self._valid, x, self.xp.zeros(x.shape, dtype=x.dtype, device=x.device))


@fault("creation", "a branch that only the CPU takes", layer, "_project", device1="output", jit="no attribute device")
def _(w, x, engine):
    p = engine.xp.matmul(x, engine.xp.matrix_transpose(w.weight_ih))
    if w.bias is None or str(x.device) != "cpu":
        return p
    return p + w.bias


@fault("creation", "zeros() without dtype=", Engine, "zeros", numpy="expected dtype float32", device1="expected dtype")
def _(self, shape):
    return self.xp.zeros(shape, device=self.device)


@fault("creation", "a dtype by its name", Engine, "zeros", device1="dtype must be")
def _(self, shape):
    return self.xp.zeros(shape, dtype=self.dtype_name, device=self.device)


_KEPT: dict[Any, Any] = {}


@fault("creation", "a cache of device arrays in the module", Ragged, "masked", jit="UnexpectedTracerError")
def _(self, x):
    key = (self.xp.__name__, str(self.device), x.shape, str(x.dtype))
    return self.xp.where(self._valid, x, _KEPT.setdefault(key, self.xp.zeros_like(x)))


# --- NumPy on arrays of another library -------------------------------------------------------------------------------


@nonlinearity("NumPy", "a NumPy ufunc", "tanh", "f", device1=GUARD, jit="TracerArrayConversionError")
def _(z, xp):
    return np.tanh(z)


@fault("NumPy", "np.asarray of an array", layer, "last_state", device1=GUARD, jit="TracerArrayConversionError")
def _(one, h, h0):
    h = np.asarray(h)
    if one.reverse:
        return h[0, ...] if one.ragged is None else one.ragged.nonempty_or(h[0, ...], h0)
    return h[-1, ...] if one.ragged is None else one.ragged.last_or(h, h0)


@fault("NumPy", "np.concatenate", network, "_side_by_side", device1=GUARD, jit="TracerArrayConversionError")
def _(h, plan):
    return np.concatenate(h, axis=2)


@nonlinearity("NumPy", "a NumPy array as an operand", "tanh", "df_from_h", device1=GUARD)
def _(h, xp):
    return np.ones(h.shape, dtype=np.float32) - h * h


@nonlinearity("NumPy", "a NumPy float64 as a constant", "tanh", "df_from_h", numpy="expected dtype", device1=GUARD)
def _(h, xp):
    return np.float64(1.0) - h * h


# --- numbers brought to the host --------------------------------------------------------------------------------------


@fault("transfer", "float() in every step", scan, "nonlinear", device1="__float__", jit="Concretization")
def _(p, h0, w_hh, /, *, nonlinearity, reverse, xp):
    h, states = h0, []
    for p_t in scan.in_time(p, reverse):
        h = nonlinearity(p_t + xp.matmul(h, xp.matrix_transpose(w_hh)), xp=xp)
        if math.isinf(float(xp.sum(h * h))):
            raise OverflowError
        states.append(h)
    return scan.stacked(states, p, reverse, xp)


@fault("transfer", "if xp.any(...)", layer, "_project", device1="__bool__", jit="TracerBoolConversionError")
def _(w, x, engine):
    xp = engine.xp
    p = xp.matmul(x, xp.matrix_transpose(w.weight_ih))
    if w.bias is not None and xp.any(w.bias != 0):
        p = p + w.bias
    return p


@fault("transfer", "while on a value", scan, "linear", device1="__bool__", jit="TracerBoolConversionError")
def _(u, d, s0, m, /, *, reverse, xp):
    s, states = s0, []
    for u_t, d_t in zip(scan.in_time(u, reverse), scan.in_time(d, reverse), strict=True):
        s = d_t * (u_t + xp.matmul(s, m))
        while xp.max(xp.abs(s)) > 1e30:
            s = s * 0.5
        states.append(s)
    return scan.stacked(states, u, reverse, xp)


@fault("transfer", "int() of the lengths", Ragged, "segments", device1="__int__", jit="Concretization")
@property
def _(self):
    counts = self._indices(np.asarray(self.lengths, dtype=np.int64))
    ends = sorted({int(n) for n in counts} - {0})
    return [(a, b, sum(n >= b for n in self.lengths)) for a, b in pairwise([0, *ends])]


@fault("transfer", "an array as the bound of a slice", Ragged, "masked", device1="__index__", jit="must be static")
def _(self, x):
    xp, counts = self.xp, self._indices(np.asarray(self.lengths, dtype=np.int64))
    rows = []
    for b in range(x.shape[1]):
        kept = x[: counts[b], b, :]
        rows.append(xp.concat([kept, xp.zeros_like(x[kept.shape[0] :, b, :])], axis=0))
    return xp.stack(rows, axis=1)


@fault("transfer", ".item()", layer, "sum_rows", device1="no attribute 'item'", jit="Concretization")
def _(x, /, *, xp):
    return cell.sum_rows(x, xp=xp) * (0.0 if xp.sum(x * x).item() == 0.0 else 1.0)


@fault("transfer", ".tolist()", Ragged, "at_ends", device1="no attribute 'tolist'", jit="Concretization")
def _(self, x):
    xp = self.xp
    flat = xp.reshape(x, (-1, x.shape[2]))
    rows = xp.stack([flat[k, ...] for k in self._flat_ends.tolist()], axis=0)
    return xp.where(self._nonempty, rows, xp.zeros_like(rows))


@fault("transfer", "np.from_dlpack", layer, "_before", device1="__dlpack__")
def _(one, h, h0):
    xp = one.engine.xp
    if not np.from_dlpack(h0).any():
        h0 = xp.zeros_like(h0)
    before = scan.previous(h, h0, reverse=one.reverse, xp=xp)
    return one.ragged.put_at_ends(before, h0) if one.ragged is not None and one.reverse else before


@fault("transfer", "to_device('cpu')", network, "_read_by_next", device1="Unsupported device", jit="device_put")
def _(h, k, plan):
    joined = network._side_by_side(h, plan)
    return joined * plan.masks[k].to_device("cpu") if k < len(plan.masks) else joined.to_device("cpu")


@fault("transfer", "to another device and back", network, "_read_by_next", device1="to_device")
def _(h, k, plan):
    here = plan.engine.device
    there = next((d for d in plan.engine.backend.devices() if d != here), here)
    h = [states.to_device(there).to_device(here) for states in h]
    joined = network._side_by_side(h, plan)
    return joined * plan.masks[k] if k < len(plan.masks) else joined


@fault(
    "transfer",
    "to_numpy and back",
    layer,
    "_project",
    numpy="brought to the host",
    device1="brought to the host",
    jit="numbers are known",
)
def _(w, x, engine):
    give, take = engine.backend.asarray, engine.backend.to_numpy
    p = np.matmul(take(x), take(w.weight_ih).T)
    p = p if w.bias is None else p + take(w.bias)
    return give(p, dtype=engine.dtype, device=engine.device)


@fault("transfer", "sent anew for each step", Ragged, "masked", numpy="arrays sent", device1="arrays sent")
def _(self, x):
    xp, steps = self.xp, []
    for t in range(x.shape[0]):
        valid = self._truth(np.asarray(self.lengths, dtype=np.int64)[:, None] > t)
        steps.append(xp.where(valid, x[t, ...], xp.zeros_like(x[t, ...])))
    return xp.stack(steps, axis=0)


@fault("transfer", "waiting after each product", layer, "_project", numpy="waited for", device1="waited for")
def _(w, x, engine):
    p = engine.xp.matmul(x, engine.xp.matrix_transpose(w.weight_ih))
    engine.backend.synchronize(engine.device)
    return p if w.bias is None else p + w.bias


@fault("transfer", "a number in a message", scan, "linear", device1="__format__", jit="unsupported format string")
def _(u, d, s0, m, /, *, reverse, xp):
    s, states, log = s0, [], []
    for u_t, d_t in zip(scan.in_time(u, reverse), scan.in_time(d, reverse), strict=True):
        s = d_t * (u_t + xp.matmul(s, m))
        log.append(f"|s|^2 = {xp.sum(s * s):.3f}")
        states.append(s)
    return scan.stacked(states, u, reverse, xp)


@fault("transfer", "an array printed", scan, "previous", device1="__str__")
def _(h, h0, /, *, reverse, xp):
    print("from", h0, file=io.StringIO())
    first = xp.expand_dims(xp.broadcast_to(h0, h.shape[1:]), axis=0)
    return xp.concat([h[1:, ...], first], axis=0) if reverse else xp.concat([first, h[:-1, ...]], axis=0)


_TRANSPOSED: dict[bytes, Any] = {}


@fault(
    "transfer",
    "a cache keyed by an array's numbers",
    layer,
    "_outer",
    device1="no attribute 'tobytes'",
    jit="Concretization",
)
def _(a, b, engine):
    xp = engine.xp
    flat = xp.reshape(a, (-1, a.shape[2]))
    return xp.matmul(_TRANSPOSED.setdefault(a.tobytes(), xp.matrix_transpose(flat)), xp.reshape(b, (-1, b.shape[2])))


@fault(
    "transfer", "an array without axes taken for a scalar", layer, "sum_rows", device1="expected a", jit="expected a"
)
def _(x, /, *, xp):
    top = xp.max(xp.abs(x))
    if not isinstance(top, (float, np.floating)):
        raise TypeError(f"expected a number, got {type(top).__name__}")
    return cell.sum_rows(x, xp=xp)


# --- writing into arrays ----------------------------------------------------------------------------------------------


@fault("mutation", "x[t, ...] = value", scan, "stacked", jit="immutable")
def _(states, like, reverse, xp):
    out = xp.zeros_like(like)
    for t, h in enumerate(states[::-1] if reverse else states):
        out[t, ...] = h
    return out


_source = layer._source


@fault("mutation", "+= on the caller's array", layer, "_source", numpy="d_output", device1="d_output")
def _(one, d_h, d_last, h):
    u = _source(one, d_h, None, h)
    if d_last is not None:
        u += _source(one, None, d_last, h)
    return u


@fault("mutation", "a slice taken for a view", Ragged, "add_at_ends", jit="dL/d")
def _(self, u, x):
    u = u * 1
    for b, n in enumerate(self.lengths):
        if n > 0:
            row = u[n - 1, b, :]
            row += x[b, :]
    return u


# --- indices and shapes -----------------------------------------------------------------------------------------------


@fault("shape", "selection by a mask", layer, "sum_rows", jit="NonConcreteBooleanIndexError")
def _(x, /, *, xp):
    rows = xp.reshape(x, (-1, x.shape[-1]))
    return cell.sum_rows(rows[xp.any(rows != 0, axis=1)], xp=xp)


@fault("shape", "nonzero()", layer, "sum_rows", jit="Concretization")
def _(x, /, *, xp):
    rows = xp.reshape(x, (-1, x.shape[-1]))
    return cell.sum_rows(xp.take(rows, xp.nonzero(xp.any(rows != 0, axis=1))[0], axis=0), xp=xp)


@fault("shape", "an array of indices in brackets", Ragged, "at_ends", device1="IndexError")
def _(self, x):
    rows = self.xp.reshape(x, (-1, x.shape[2]))[self._flat_ends, ...]
    return self.xp.where(self._nonempty, rows, self.xp.zeros_like(rows))


@fault("shape", "a negative index into take()", Ragged, "_flat_ends", numpy="an index of", device1="an index of")
@property
def _(self):
    batch = len(self.lengths)
    return self._indices((np.asarray(self.lengths, dtype=np.int64) - 1) * batch + np.arange(batch))


@fault("shape", "missing axes in brackets", layer, "last_state", device1="IndexError")
def _(one, h, h0):
    if one.reverse:
        return h[0] if one.ragged is None else one.ragged.nonempty_or(h[0], h0)
    return h[-1] if one.ragged is None else one.ragged.last_or(h, h0)


@fault("shape", "a loop over an array", scan, "in_time", device1="iteration is not allowed")
def _(x, reverse):
    return list(x)[::-1] if reverse else list(x)


@fault("shape", "len() of an array", scan, "in_time", device1="has no len()")
def _(x, reverse):
    steps = range(len(x))
    return [x[t, ...] for t in (reversed(steps) if reverse else steps)]


@fault("shape", "an IndexError waited for", scan, "in_time", jit="expected shape")
def _(x, reverse):
    steps = []
    for t in range(x.shape[0] + 1):
        try:
            steps.append(x[t, ...])
        except IndexError:
            break
    return steps[::-1] if reverse else steps


# --- dtypes -----------------------------------------------------------------------------------------------------------


@fault("dtype", "float64 on the way", layer, "sum_rows", no_float64="does not support dtype", no_x64="does not support")
def _(x, /, *, xp):
    return xp.astype(cell.sum_rows(xp.astype(x, xp.float64), xp=xp), x.dtype)


@fault("dtype", "int64 indices", Ragged, "_indices", no_x64="does not support dtype")
def _(self, x):
    return self.backend.asarray(x.astype(np.int64), dtype=self.xp.int64, device=self.device)


@nonlinearity("dtype", "a truth value times a float", "relu", "f", device1="Only numeric dtypes")
def _(z, xp):
    return z * xp.logical_not(z <= 0)


@fault("dtype", "finfo().tiny", layer, "sum_rows", device1="no attribute 'tiny'")
def _(x, /, *, xp):
    return cell.sum_rows(x, xp=xp) + 0.0 * float(xp.finfo(x.dtype).tiny)


@fault("dtype", "dtype.itemsize", layer, "_windows", device1="no attribute 'itemsize'")
def _(one, h):
    length = max(1, 2**22 // max(1, math.prod(h.shape[1:]) * h.dtype.itemsize))
    return [(a, min(a + length, h.shape[0])) for a in range(0, h.shape[0], length)]


# --- what only NumPy calls so -----------------------------------------------------------------------------------------


@fault("interface", "a method in place of a function", layer, "sum_rows", device1="no attribute 'sum'")
def _(x, /, *, xp):
    return x.sum(axis=(0, 1))


@fault("interface", "NumPy's name of a function", network, "_side_by_side", device1="concatenate")
def _(h, plan):
    return h[0] if len(h) == 1 else plan.engine.xp.concatenate(h, axis=2)


@fault("interface", "a function outside the standard", layer, "_outer", device1="einsum")
def _(a, b, engine):
    return engine.xp.einsum("tbi,tbj->ij", a, b)


@fault("interface", "out=", scan, "nonlinear", device1="keyword argument", jit="keyword argument")
def _(p, h0, w_hh, /, *, nonlinearity, reverse, xp):
    h, states, product = h0, [], xp.zeros_like(h0)
    for p_t in scan.in_time(p, reverse):
        xp.matmul(h, xp.matrix_transpose(w_hh), out=product)
        h = nonlinearity(p_t + product, xp=xp)
        states.append(h)
    return scan.stacked(states, p, reverse, xp)


@fault("interface", "an axis by its place", layer, "sum_rows", device1="positional argument")
def _(x, /, *, xp):
    return xp.sum(x, (0, 1))


@fault("interface", "the operator @", layer, "_project", device1="__matmul__")  # its precision is the library's own
def _(w, x, engine):
    p = x @ engine.xp.matrix_transpose(w.weight_ih)
    return p if w.bias is None else p + w.bias


@fault("interface", ".T of three axes", layer, "_outer", device1="x.T requires")
def _(a, b, engine):
    xp = engine.xp
    flat = xp.reshape(xp.permute_dims(b, (1, 0, 2)), (-1, b.shape[2]))
    return xp.matmul(xp.reshape(a.T, (a.shape[2], -1)), flat)


@fault("interface", "asarray() of a list of arrays", scan, "stacked", device1="Nested Arrays")
def _(states, like, reverse, xp):
    return xp.asarray(states[::-1] if reverse else states)


@fault("interface", "a function of a Python number", layer, "_windows", device1="Only Array objects")
def _(one, h):
    steps, xp = h.shape[0], one.engine.xp
    length = int(xp.ceil(steps / xp.sqrt(float(steps))))
    return [(a, min(a + length, steps)) for a in range(0, steps, length)]


@fault("interface", "the layout in memory", layer, "_project", device1="no attribute 'flags'", jit="no attribute flags")
def _(w, x, engine):
    x = x if x.flags.c_contiguous else x * 1
    p = engine.xp.matmul(x, engine.xp.matrix_transpose(w.weight_ih))
    return p if w.bias is None else p + w.bias
