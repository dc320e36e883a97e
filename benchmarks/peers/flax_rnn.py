"""Flax's nnx.RNN of a SimpleCell under nnx.jit; one bias a layer, whose gradient is that of both."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from benchmarks.case import Numbers, Problem
from benchmarks.peers import Prepared, layer_names
from benchmarks.peers.jax_scan import compiled


def rnn(problem: Problem) -> Prepared:
    """Time-major, layer upon layer; the state of the modules is an argument of the compiled function."""
    jax: Any = importlib.import_module("jax")
    case = problem.case
    jax.config.update("jax_enable_x64", case.dtype == "float64")
    jnp: Any = importlib.import_module("jax.numpy")
    nnx: Any = importlib.import_module("flax.nnx")
    f = jnp.tanh if case.nonlinearity == "tanh" else nnx.relu
    layers = [_layer(nnx, jnp, problem, k, f) for k in range(case.layers)]
    graph, state = nnx.split(layers)

    def run(state: Any, x: Any, h0: Any) -> Any:
        last = []
        for k, module in enumerate(nnx.merge(graph, state)):
            h, x = module(x, initial_carry=h0[k], return_carry=True, time_major=True)
            last.append(h)
        return x, jnp.stack(last)

    x, h0, d_output, d_h_n = (jnp.asarray(v) for v in (problem.x, problem.h0, problem.d_output, problem.d_h_n))
    forward, both = compiled(jax, run, state, (x, h0), (d_output, d_h_n))

    def read(found: Any) -> Numbers:
        found = dict(found)
        d_layers = nnx.merge(graph, found.pop("params")) if "params" in found else []
        numbers = {n: np.asarray(v) for n, v in found.items()}
        for k, module in enumerate(d_layers):
            cell = module.cell
            bias = np.asarray(cell.dense_i.bias[...])
            values = np.asarray(cell.dense_i.kernel[...]).T, np.asarray(cell.dense_h.kernel[...]).T, bias, bias
            numbers |= dict(zip(layer_names(k), values, strict=True))
        return numbers

    return Prepared(forward, both, read)


def _layer(nnx: Any, jnp: Any, problem: Problem, k: int, f: Any) -> Any:
    width, dtype = problem.case.width, getattr(jnp, problem.case.dtype)
    cell = nnx.SimpleCell(width, width, activation_fn=f, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))
    w_ih, w_hh, b_ih, b_hh = problem.layer(k)
    cell.dense_i.kernel[...] = jnp.asarray(w_ih.T)
    cell.dense_i.bias[...] = jnp.asarray(b_ih + b_hh)
    cell.dense_h.kernel[...] = jnp.asarray(w_hh.T)
    return nnx.RNN(cell)
