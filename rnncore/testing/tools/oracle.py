"""Reference results in float64, one row and one step at a time, without code of the library.

It is written as differently from the library as possible: no scan, no products over all steps, no padding (each row stops at
its own end), and its own definitions of the nonlinearities. Backpropagation is Werbos 1990, step by step; tests compare it
with central differences and with PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

__all__ = [
    "FUNCTIONS",
    "Solution",
    "carry_pullback",
    "carry_scan",
    "carry_tangent",
    "linear_carry_pullback",
    "linear_carry_scan",
    "linear_carry_tangent",
    "linear_scan",
    "nonlinear_scan",
    "solve",
    "solve_tangent",
]

Host: TypeAlias = np.ndarray[Any, Any]
Function: TypeAlias = Callable[[Host], Host]
Given: TypeAlias = Mapping[str, Host]
Ends: TypeAlias = Sequence[int] | None


def _sigmoid(z: Host) -> Host:
    return 0.5 * (1 + np.tanh(z / 2))


def _softplus(z: Host) -> Host:
    return np.logaddexp(0.0, z)


# f and f' with ONNX's defaults for alpha and beta, by a formula that differs from the library's wherever possible.
FUNCTIONS: Mapping[str, tuple[Function, Function]] = {
    "tanh": (np.tanh, lambda z: 1 / np.cosh(z) ** 2),
    "relu": (lambda z: np.maximum(z, 0.0), lambda z: np.where(z > 0, 1.0, 0.0)),
    "sigmoid": (_sigmoid, lambda z: _sigmoid(z) * _sigmoid(-z)),
    "identity": (lambda z: z + 0, np.ones_like),
    "leaky_relu": (lambda z: np.where(z > 0, z, 0.01 * z), lambda z: np.where(z > 0, 1.0, 0.01)),
    "thresholded_relu": (lambda z: np.where(z > 1, z, 0.0), lambda z: np.where(z > 1, 1.0, 0.0)),
    "hard_sigmoid": (
        lambda z: np.minimum(1, np.maximum(0, 0.2 * z + 0.5)),
        lambda z: np.where(np.abs(z) < 2.5, 0.2, 0.0),
    ),
    "elu": (lambda z: np.where(z > 0, z, np.exp(np.minimum(z, 0)) - 1), lambda z: np.exp(np.minimum(z, 0))),
    "softsign": (lambda z: z / (1 + np.abs(z)), lambda z: (1 + np.abs(z)) ** -2.0),
    "softplus": (_softplus, _sigmoid),
    "scaled_tanh": (np.tanh, lambda z: 1 / np.cosh(z) ** 2),
    "affine": (lambda z: z + 0, np.ones_like),
}


def nonlinear_scan(p: Host, h0: Host, w: Host, name: str, *, reverse: bool = False, clip: float = math.inf) -> Host:
    """``h_t = f(p_t + h_{t-1} W^T)`` of (T, B, H), one row at a time."""
    f, _ = FUNCTIONS[name]
    h = np.empty(p.shape)
    for b in range(p.shape[1]):
        state = h0[b]
        for t in _order(len(p), reverse):
            state = h[t, b] = f(np.clip(p[t, b] + w @ state, -clip, clip))
    return h


def linear_scan(u: Host, d: Host, s0: Host, m: Host, *, reverse: bool = False) -> Host:
    """``s_t = d_t * (u_t + s_{t-1} M)`` of (T, B, H), one row at a time."""
    s = np.empty(u.shape)
    for b in range(u.shape[1]):
        state = s0[b]
        for t in _order(len(u), reverse):
            state = s[t, b] = d[t, b] * (u[t, b] + m.T @ state)
    return s


def carry_scan(given: Given, name: str, *, reverse: bool = False, ends: Ends = None) -> Host:
    """``h_t = a_t * h_{t-1} + g_t * f(p_t + (i_t * h_{t-1}) W^T)`` from p, h0, w, a, g and i; all factors (T, B, H).

    Row b stops at ``ends[b]``, if given; results past it are 0.
    """
    f, _ = FUNCTIONS[name]
    p, w = given["p"], given["w"]
    h: Host = np.zeros(p.shape)
    for b in range(p.shape[1]):
        state = given["h0"][b]
        for t in _order(len(p) if ends is None else ends[b], reverse):
            a, g, i = (given[k][t, b] for k in ("a", "g", "i"))
            state = h[t, b] = _gated(a, state) + _gated(g, f(p[t, b] + w @ _gated(i, state)))
    return h


def carry_pullback(d_h: Host, given: Given, name: str, *, reverse: bool = False) -> dict[str, Host]:
    """The cotangents of the arguments of :func:`carry_scan`, by name, each in the shape of its argument."""
    f, df = FUNCTIONS[name]
    w = given["w"]
    h = carry_scan(given, name, reverse=reverse)
    found: dict[str, Host] = {k: np.zeros(np.shape(v)) for k, v in given.items()}
    for b in range(h.shape[1]):
        steps = list(_order(len(h), reverse))
        carried = np.zeros(len(w))
        for k, t in reversed(list(enumerate(steps))):
            p, a, g, i = (given[n][t, b] for n in ("p", "a", "g", "i"))
            before = h[steps[k - 1], b] if k else given["h0"][b]
            z = p + w @ _gated(i, before)
            whole = d_h[t, b] + carried
            found["a"][t, b] = whole * before
            found["g"][t, b] = whole * f(z)
            delta = found["p"][t, b] = _gated(g, df(z) * whole)
            found["w"] += np.outer(delta, _gated(i, before))
            found["i"][t, b] = before * (w.T @ delta)
            carried = _gated(a, whole) + _gated(i, w.T @ delta)
        found["h0"][b] = carried
    return found


def carry_tangent(given: Given, dots: Given, name: str, *, reverse: bool = False) -> Host:
    """The tangent of the states for tangents of all arguments of :func:`carry_scan`, by name."""
    f, df = FUNCTIONS[name]
    moved: Host = np.zeros(given["p"].shape)
    for b in range(moved.shape[1]):
        h, h_dot = given["h0"][b], dots["h0"][b]
        for t in _order(len(moved), reverse):
            p, a, g, i = (given[k][t, b] for k in ("p", "a", "g", "i"))
            p_dot, a_dot, g_dot, i_dot = (dots[k][t, b] for k in ("p", "a", "g", "i"))
            z = p + given["w"] @ (i * h)
            z_dot = p_dot + dots["w"] @ (i * h) + given["w"] @ (i_dot * h + i * h_dot)
            h_dot = moved[t, b] = a_dot * h + a * h_dot + g_dot * f(z) + g * df(z) * z_dot
            h = a * h + g * f(z)
    return moved


def linear_carry_scan(given: Given, *, reverse: bool = False, ends: Ends = None) -> Host:
    """``x_t = c_t + a_t * x_{t-1} + o_t * ((i_t * x_{t-1}) M)`` from c, o, i, a, x0 and m. `ends`: see :func:`carry_scan`."""
    m = given["m"].T
    x: Host = np.zeros(given["c"].shape)
    for b in range(x.shape[1]):
        state = given["x0"][b]
        for t in _order(len(x) if ends is None else ends[b], reverse):
            c, o, i, a = (given[k][t, b] for k in ("c", "o", "i", "a"))
            state = x[t, b] = c + _gated(a, state) + _gated(o, m @ _gated(i, state))
    return x


def linear_carry_pullback(d_x: Host, given: Given, *, reverse: bool = False) -> dict[str, Host]:
    """The cotangents of the arguments of :func:`linear_carry_scan`, by name, each in the shape of its argument."""
    o, i, a, x0, m = (given[k] for k in ("o", "i", "a", "x0", "m"))
    x = linear_carry_scan(given, reverse=reverse)
    found: dict[str, Host] = {k: np.zeros(np.shape(v)) for k, v in given.items()}
    for b in range(x.shape[1]):
        steps = list(_order(len(x), reverse))
        carried = np.zeros(len(m))
        for k, t in reversed(list(enumerate(steps))):
            before = x[steps[k - 1], b] if k else x0[b]
            whole = found["c"][t, b] = d_x[t, b] + carried
            found["a"][t, b] = whole * before
            found["o"][t, b] = whole * (m.T @ (i[t, b] * before))
            found["i"][t, b] = before * (m @ (o[t, b] * whole))
            found["m"] += np.outer(i[t, b] * before, o[t, b] * whole)
            carried = a[t, b] * whole + i[t, b] * (m @ (o[t, b] * whole))
        found["x0"][b] = carried
    return found


def linear_carry_tangent(given: Given, dots: Given, *, reverse: bool = False) -> Host:
    """The tangent of x for tangents of all arguments of :func:`linear_carry_scan`, by name."""
    m, m_dot = given["m"].T, dots["m"].T
    moved: Host = np.zeros(given["c"].shape)
    for b in range(moved.shape[1]):
        x, x_dot = given["x0"][b], dots["x0"][b]
        for t in _order(len(moved), reverse):
            c, o, i, a = (given[k][t, b] for k in ("c", "o", "i", "a"))
            c_dot, o_dot, i_dot, a_dot = (dots[k][t, b] for k in ("c", "o", "i", "a"))
            inner_dot = m_dot @ (i * x) + m @ (i_dot * x + i * x_dot)
            x_dot = moved[t, b] = c_dot + a_dot * x + a * x_dot + o_dot * (m @ (i * x)) + o * inner_dot
            x = c + a * x + o * (m @ (i * x))
    return moved


def _gated(factor: Host, x: Host) -> Host:
    """factor * x, and 0 where the factor is 0, for any x."""
    return np.where(factor == 0, 0.0, factor * x)


@dataclass
class Solution:
    """All results of one network for one batch.

    h and z are [layer][direction] (T, B, H_k), 0 past a row's end; h_n and h0 [layer] (D, B, H_k).
    """

    output: Host
    h_n: list[Host]
    h: list[list[Host]]
    z: list[list[Host]]
    params: dict[str, Host]
    x: Host
    h0: list[Host]


def solve(
    params: Mapping[str, Host],
    x: Host,
    h0: Sequence[Host],
    *,
    name: str,
    lengths: Sequence[int] | None = None,
    clip: float = math.inf,
    cotangents: tuple[Host | None, Sequence[Host] | None] = (None, None),
    masks: Sequence[Host] = (),
    truncate: int | None = None,
) -> Solution:
    """Solve forward and backward: x (T, B, I), h0[layer] (D, B, H_k), the cotangents of output and h_n in their shapes."""
    d_output, d_h_n = cotangents
    steps, batch, _ = x.shape
    ends = [steps] * batch if lengths is None else list(lengths)
    layers, directions = len(h0), len(h0[0])
    functions = FUNCTIONS[name]
    weights = [[_weights(params, k, d) for d in range(directions)] for k in range(layers)]
    inputs, h, z = [x], [], []
    h_n = [np.array(rows, dtype=float) for rows in h0]
    for k in range(layers):
        sides = [
            _forward(weights[k][d], inputs[k], h0[k][d], h_n[k][d], ends, d, functions, clip) for d in range(directions)
        ]
        h.append([side[0] for side in sides])
        z.append([side[1] for side in sides])
        below = np.concatenate(h[k], axis=2)
        inputs.append(below * masks[k] if k < len(masks) else below)

    grads = {n: np.zeros(np.shape(v)) for n, v in params.items()}
    d_h0 = [np.zeros(np.shape(rows)) for rows in h0]
    d_above = np.zeros(inputs[-1].shape) if d_output is None else np.array(d_output, dtype=float)
    for k in reversed(range(layers)):
        d_below = np.zeros(inputs[k].shape)
        for d in range(directions):
            start = np.zeros_like(d_h0[k][d]) if d_h_n is None else np.array(d_h_n[k][d], dtype=float)
            width = start.shape[1]
            side = _Side(
                weights[k][d], inputs[k], h0[k][d], h[k][d], z[k][d], d_above[:, :, d * width : (d + 1) * width]
            )
            found = side.backward(start, ends, d, functions[1], clip, truncate)
            suffix = f"l{k}" + ("_reverse" if d else "")
            for kind, value in found.items():
                if f"{kind}_{suffix}" in grads:
                    grads[f"{kind}_{suffix}"] += value
            d_below += found["x"]
            d_h0[k][d] = found["h0"]
        d_above = d_below * masks[k - 1] if 0 < k <= len(masks) else d_below
    return Solution(inputs[-1], h_n, h, z, grads, d_above, d_h0)


def _forward(
    weights: tuple[Host, Host, Host],
    x: Host,
    h0: Host,
    h_n: Host,
    ends: Sequence[int],
    direction: int,
    functions: tuple[Function, Function],
    clip: float,
) -> tuple[Host, Host]:
    """The states and pre-activations of one layer and direction, step by step; the last states go into h_n."""
    w_ih, w_hh, bias = weights
    h, z = np.zeros((2, *x.shape[:2], len(w_hh)))
    for b, end in enumerate(ends):
        state = h0[b]
        for t in _order(end, bool(direction)):
            z[t, b] = w_ih @ x[t, b] + bias + w_hh @ state
            state = h[t, b] = functions[0](np.clip(z[t, b], -clip, clip))
        h_n[b] = state
    return h, z


class _Side(NamedTuple):
    """One layer and direction after its forward pass, and dL/d of its output."""

    weights: tuple[Host, Host, Host]
    x: Host
    h0: Host
    h: Host
    z: Host
    d_h: Host

    def backward(
        self, carried: Host, ends: Sequence[int], direction: int, df: Function, clip: float, truncate: int | None
    ) -> dict[str, Host]:
        """Backpropagate step by step from the gradients of the last states."""
        w_ih, w_hh, _ = self.weights
        found = {"weight_ih": np.zeros_like(w_ih), "weight_hh": np.zeros_like(w_hh), "x": np.zeros(self.x.shape)}
        found |= {"bias_ih": np.zeros(len(w_hh)), "h0": carried}
        for b, end in enumerate(ends):
            for t in reversed(list(_order(end, bool(direction)))):
                delta = (self.d_h[t, b] + carried[b]) * np.where(np.abs(self.z[t, b]) <= clip, df(self.z[t, b]), 0.0)
                first = t == (end - 1 if direction else 0)
                before = self.h0[b] if first else self.h[t + 1 if direction else t - 1, b]
                found["weight_ih"] += np.outer(delta, self.x[t, b])
                found["weight_hh"] += np.outer(delta, before)
                found["bias_ih"] += delta
                found["x"][t, b] = w_ih.T @ delta
                cut = truncate is not None and not first and (t + 1 if direction else t) % truncate == 0
                carried[b] = 0 if cut else w_hh.T @ delta
        return {**found, "bias_hh": found["bias_ih"]}


def solve_tangent(
    params: Mapping[str, Host],
    x: Host,
    h0: Sequence[Host],
    dots: Mapping[str, Host],
    x_dot: Host,
    h0_dot: Sequence[Host],
    *,
    name: str,
    lengths: Sequence[int] | None = None,
    clip: float = math.inf,
) -> tuple[Host, list[Host]]:
    """Compute the tangents of output and h_n, step by step."""
    steps, batch, _ = x.shape
    ends = [steps] * batch if lengths is None else list(lengths)
    f, df = FUNCTIONS[name]
    below, below_dot = x, x_dot
    last_dot = [np.array(rows, dtype=float) for rows in h0_dot]
    for k in range(len(h0)):
        sides, sides_dot = [], []
        for d in range(len(h0[k])):
            w_ih, w_hh, bias = _weights(params, k, d)
            v_ih, v_hh, bias_dot = _weights(dots, k, d)
            hs, hs_dot = np.zeros((steps, batch, len(w_hh))), np.zeros((steps, batch, len(w_hh)))
            for b, end in enumerate(ends):
                state, moved = h0[k][d, b], h0_dot[k][d, b]
                for t in _order(end, bool(d)):
                    z = w_ih @ below[t, b] + bias + w_hh @ state
                    z_dot = w_ih @ below_dot[t, b] + v_ih @ below[t, b] + bias_dot + w_hh @ moved + v_hh @ state
                    state = hs[t, b] = f(np.clip(z, -clip, clip))
                    moved = hs_dot[t, b] = np.where(np.abs(z) <= clip, df(z), 0.0) * z_dot
                last_dot[k][d, b] = moved
            sides.append(hs)
            sides_dot.append(hs_dot)
        below, below_dot = np.concatenate(sides, axis=2), np.concatenate(sides_dot, axis=2)
    return below_dot, last_dot


def _weights(params: Mapping[str, Host], k: int, d: int) -> tuple[Host, Host, Host]:
    suffix = f"l{k}" + ("_reverse" if d else "")
    w_hh = params[f"weight_hh_{suffix}"]
    zero = np.zeros(len(w_hh))
    bias = params.get(f"bias_ih_{suffix}", zero) + params.get(f"bias_hh_{suffix}", zero)
    return params[f"weight_ih_{suffix}"], w_hh, bias


def _order(steps: int, reverse: bool) -> range:
    return range(steps - 1, -1, -1) if reverse else range(steps)
