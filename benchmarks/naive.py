"""The recurrence and its gradients step by step, as in a textbook: the oracle in float64, a peer in a case's dtype.

``h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)``, Elman (1990); backpropagation through time, Werbos (1990). A test compares
it with the oracle of the conformance suite, which also goes row by row and would take minutes at these sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.case import Host, Numbers, Problem


def forward(problem: Problem, xp: Any = np) -> tuple[list[Host], Host]:
    """Return the states of every layer, (T, B, H) each, and h_n (L, B, H)."""
    below, states = problem.x, []
    for k in range(problem.case.layers):
        w_ih, w_hh, b_ih, b_hh = problem.layer(k)
        h, run = problem.h0[k], []
        for x_t in below:
            z = x_t @ w_ih.T + b_ih + h @ w_hh.T + b_hh
            h = xp.tanh(z) if problem.case.nonlinearity == "tanh" else xp.maximum(z, 0)
            run.append(h)
        below = xp.stack(run)
        states.append(below)
    return states, xp.stack([h[-1] for h in states])


def both(problem: Problem, xp: Any = np) -> Numbers:
    """Return output, h_n and the gradients of x, h0 and all parameters."""
    states, h_n = forward(problem, xp)
    grads: Numbers = {}
    d_above, d_h0 = problem.d_output, xp.empty_like(problem.h0)
    for k in reversed(range(problem.case.layers)):
        w_ih, w_hh, _, _ = problem.layer(k)
        h, below = states[k], problem.x if k == 0 else states[k - 1]
        d_ih, d_hh, d_b = xp.zeros_like(w_ih), xp.zeros_like(w_hh), xp.zeros_like(w_hh[0])
        d_below, carried = xp.empty_like(below), problem.d_h_n[k]
        for t in reversed(range(len(h))):
            slope = 1 - h[t] ** 2 if problem.case.nonlinearity == "tanh" else (h[t] > 0).astype(h.dtype)
            delta = (d_above[t] + carried) * slope
            d_ih += delta.T @ below[t]
            d_hh += delta.T @ (h[t - 1] if t else problem.h0[k])
            d_b += delta.sum(axis=0)
            d_below[t] = delta @ w_ih
            carried = delta @ w_hh
        d_above, d_h0[k] = d_below, carried
        grads |= {f"weight_ih_l{k}": d_ih, f"weight_hh_l{k}": d_hh, f"bias_ih_l{k}": d_b, f"bias_hh_l{k}": d_b}
    return {"output": states[-1], "h_n": h_n, "x": d_above, "h0": d_h0} | grads


def errors(found: Mapping[str, Host], truth: Mapping[str, Host], dtype: str) -> dict[str, float]:
    """Return the largest error of each array, in units of eps times its largest number.

    >>> one = np.ones(3, "float32")
    >>> errors({"x": one + np.finfo("float32").eps}, {"x": one.astype(float)}, "float32")
    {'x': 1.0}

    An error is infinite if an array is missing, not finite, or of another shape.
    """
    return {name: _error(found.get(name), want, dtype) for name, want in truth.items()}


def _error(got: Host | None, want: Host, dtype: str) -> float:
    if got is None or got.shape != want.shape or got.dtype != dtype or not np.isfinite(got).all():
        return float("inf")
    unit = float(np.finfo(dtype).eps) * max(float(np.abs(want).max()), float(np.finfo(dtype).tiny))
    # In slabs: the float64 difference of a whole long run would be the largest array of the process.
    slabs = range(0, len(want), 64)
    return max(float(np.abs(got[i : i + 64] - want[i : i + 64]).max()) for i in slabs) / unit
