"""JAX's lax.scan under jit, with both products in the step, or with the input's product before the loop."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from benchmarks.case import Numbers, Problem
from benchmarks.peers import Prepared, gradients


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

    def run_back(params: Any, x: Any, h0: Any, d_output: Any, d_h_n: Any) -> Any:
        found, pullback = jax.vjp(run, params, x, h0)
        return found, pullback((d_output, d_h_n))

    x, h0, d_output, d_h_n = (jnp.asarray(v) for v in (problem.x, problem.h0, problem.d_output, problem.d_h_n))
    params = {n: jnp.asarray(v) for n, v in problem.params.items()}
    compiled, compiled_back = jax.jit(run), jax.jit(run_back)

    def forward() -> Any:
        output, h_n = jax.block_until_ready(compiled(params, x, h0))
        return {"output": output, "h_n": h_n}

    def both() -> Any:
        (output, h_n), (d_params, d_x, d_h0) = jax.block_until_ready(compiled_back(params, x, h0, d_output, d_h_n))
        return {"output": output, "h_n": h_n, **gradients(case, d_x, d_h0, d_params)}

    def read(found: Any) -> Numbers:
        return {n: np.asarray(v) for n, v in found.items()}

    return Prepared(forward, both, read)
