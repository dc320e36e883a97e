"""JAX's lax.scan under jit, with both products in the step, or with the input's product before the loop."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.case import Numbers, Problem
from benchmarks.peers import Prepared


def naive(problem: Problem) -> Prepared:
    """``f(W_ih x_t + b + W_hh h)`` in the step."""
    return _prepared(problem, hoist=False)


def hoisted(problem: Problem) -> Prepared:
    """W_ih x + b of all steps by one product."""
    return _prepared(problem, hoist=True)


def _prepared(problem: Problem, *, hoist: bool) -> Prepared:
    jax: Any = importlib.import_module("jax")
    case = problem.case
    jax.config.update("jax_enable_x64", case.dtype == "float64")
    if case.device != "cpu":
        jax.config.update("jax_default_matmul_precision", "highest")
    jnp: Any = importlib.import_module("jax.numpy")
    f = jnp.tanh if case.nonlinearity == "tanh" else jax.nn.relu

    def run(params: Any, x: Any, h0: Any) -> Any:
        last = []
        for k in range(case.layers):
            w_ih, w_hh = params[f"weight_ih_l{k}"], params[f"weight_hh_l{k}"]
            bias = params[f"bias_ih_l{k}"] + params[f"bias_hh_l{k}"]

            def step(h: Any, row: Any, w_ih: Any = w_ih, w_hh: Any = w_hh, bias: Any = bias) -> Any:
                p = row if hoist else row @ w_ih.T + bias
                h = f(p + h @ w_hh.T)
                return h, h

            h, x = jax.lax.scan(step, h0[k], x @ w_ih.T + bias if hoist else x)
            last.append(h)
        return x, jnp.stack(last)

    x, h0, d_output, d_h_n = (jnp.asarray(v) for v in (problem.x, problem.h0, problem.d_output, problem.d_h_n))
    params = {n: jnp.asarray(v) for n, v in problem.params.items()}
    forward, both = compiled(jax, run, params, (x, h0), (d_output, d_h_n))

    def read(found: Any) -> Numbers:
        found = dict(found)
        return {n: np.asarray(v) for n, v in (found.pop("params", {}) | found).items()}

    return Prepared(forward, both, read)


def compiled(
    jax: Any, run: Any, params: Any, inputs: Any, cotangents: Any
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Compile ``run(params, x, h0) -> (output, h_n)``, and the same with its gradients; return both calls."""

    def run_back(params: Any, inputs: Any, cotangents: Any) -> Any:
        found, pullback = jax.vjp(run, params, *inputs)
        return found, pullback(cotangents)

    once, back = jax.jit(run), jax.jit(run_back)

    def forward() -> Any:
        output, h_n = jax.block_until_ready(once(params, *inputs))
        return {"output": output, "h_n": h_n}

    def both() -> Any:
        (output, h_n), (d_params, d_x, d_h0) = jax.block_until_ready(back(params, inputs, cotangents))
        return {"output": output, "h_n": h_n, "x": d_x, "h0": d_h0, "params": d_params}

    return forward, both
