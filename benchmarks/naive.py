"""The recurrence and its gradients as the textbook has them, step by step: the oracle in float64, a peer in a case's dtype.

``h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)``, Elman (1990); backpropagation through time, Werbos (1990), with the
gradients of the weights summed up step by step. A test holds it against the oracle of the conformance suite, which goes row by
row as well and would take minutes at these sizes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from benchmarks.case import Case, Host, Numbers, Problem, make


def forward(problem: Problem) -> tuple[list[Host], Host]:
    """The states of every layer, (T, B, H) each, and h_n (L, B, H)."""
    below, states = problem.x, []
    for k in range(problem.case.layers):
        w_ih, w_hh, b_ih, b_hh = problem.layer(k)
        h, run = problem.h0[k], []
        for x_t in below:
            z = x_t @ w_ih.T + b_ih + h @ w_hh.T + b_hh
            h = np.tanh(z) if problem.case.nonlinearity == "tanh" else np.maximum(z, 0)
            run.append(h)
        below = np.stack(run)
        states.append(below)
    return states, np.stack([h[-1] for h in states])


def both(problem: Problem) -> Numbers:
    """Output, h_n and the gradients of x, h0 and all parameters."""
    states, h_n = forward(problem)
    grads: Numbers = {}
    d_above, d_h0 = problem.d_output, np.empty_like(problem.h0)
    for k in reversed(range(problem.case.layers)):
        w_ih, w_hh, _, _ = problem.layer(k)
        h, below = states[k], problem.x if k == 0 else states[k - 1]
        d_ih, d_hh, d_b = np.zeros_like(w_ih), np.zeros_like(w_hh), np.zeros_like(w_hh[0])
        d_below, carried = np.empty_like(below), problem.d_h_n[k]
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


def answer(case: Case) -> Numbers:
    """What is true of a case, in float64."""
    return both(make(case).astype("float64"))


def errors(found: Mapping[str, Host], truth: Mapping[str, Host], dtype: str) -> dict[str, float]:
    """The largest error of each array, in units of eps times the largest number in it.

    >>> one = np.ones(3, "float32")
    >>> errors({"x": one + np.finfo("float32").eps}, {"x": one.astype(float)}, "float32")
    {'x': 1.0}

    Infinite where an array is missing, has another shape or is not finite.
    """
    return {name: _error(found.get(name), want, dtype) for name, want in truth.items()}


def _error(got: Host | None, want: Host, dtype: str) -> float:
    if got is None or got.shape != want.shape or got.dtype != dtype or not np.isfinite(got).all():
        return float("inf")
    unit = float(np.finfo(dtype).eps) * max(float(np.abs(want).max()), float(np.finfo(dtype).tiny))
    # In slabs: the difference of a whole long run in float64 would be the largest array of the process.
    slabs = range(0, len(want), 64)
    return max(float(np.abs(got[i : i + 64] - want[i : i + 64]).max()) for i in slabs) / unit
