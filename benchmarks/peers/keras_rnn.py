"""Keras' SimpleRNN on two of its backends: batch-first, one bias a layer, whose gradient is that of both.

KERAS_BACKEND is set for the whole process, so each function here runs in its own. In float64, Keras 3 computes products in
float32 on both backends; the check before the timing refuses them.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from benchmarks.case import Host, Numbers, Problem
from benchmarks.peers import Prepared, layer_names
from benchmarks.peers.jax_scan import compiled


def torch(problem: Problem) -> Prepared:
    """Under inference_mode, and with autograd's gradients."""
    library: Any = importlib.import_module("torch")
    library.set_num_threads(problem.case.threads)
    layers = _layers(problem)
    variables = [v.value for layer in layers for v in layer.trainable_variables]
    x, h0, d_output, d_h_n = (library.from_numpy(np.array(v)) for v in _arrays(problem))
    leaves = [x.clone().requires_grad_(), h0.clone().requires_grad_()]

    def forward() -> Any:
        with library.inference_mode():
            output, h_n = _stack(layers, x, h0, library.stack)
        return {"output": output, "h_n": h_n}

    def both() -> Any:
        output, h_n = _stack(layers, leaves[0], leaves[1], library.stack)
        grads = library.autograd.grad((output, h_n), [*leaves, *variables], (d_output, d_h_n))
        return {"output": output, "h_n": h_n, "x": grads[0], "h0": grads[1], "params": grads[2:]}

    return Prepared(forward, both, lambda found: _read(found, lambda v: v.detach().numpy()))


def jax(problem: Problem) -> Prepared:
    """Keras' stateless calls under one jit."""
    library: Any = importlib.import_module("jax")
    library.config.update("jax_enable_x64", problem.case.dtype == "float64")
    jnp: Any = importlib.import_module("jax.numpy")
    layers = _layers(problem)
    keras: Any = importlib.import_module("keras")
    held = [v for layer in layers for v in layer.trainable_variables]
    variables = [v.value for v in held]
    x, h0, d_output, d_h_n = (jnp.asarray(v) for v in _arrays(problem))

    def run(variables: Any, x: Any, h0: Any) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(held, variables, strict=True))):
            return _stack(layers, x, h0, jnp.stack)

    forward, both = compiled(library, run, variables, (x, h0), (d_output, d_h_n))
    return Prepared(forward, both, lambda found: _read(found, np.asarray))


def _arrays(problem: Problem) -> tuple[Host, Host, Host, Host]:
    """Return the arrays in Keras' own layout, before the clock starts."""
    turned = [np.ascontiguousarray(v.transpose(1, 0, 2)) for v in (problem.x, problem.d_output)]
    return turned[0], problem.h0, turned[1], problem.d_h_n


def _layers(problem: Problem) -> list[Any]:
    keras: Any = importlib.import_module("keras")
    case = problem.case
    layers = []
    for k in range(case.layers):
        layer = keras.layers.SimpleRNN(
            case.width, case.nonlinearity, return_sequences=True, return_state=True, dtype=case.dtype
        )
        layer.build((case.batch, case.steps, case.width))
        w_ih, w_hh, b_ih, b_hh = problem.layer(k)
        layer.set_weights([w_ih.T, w_hh.T, b_ih + b_hh])
        layers.append(layer)
    return layers


def _stack(layers: list[Any], x: Any, h0: Any, stack: Any) -> Any:
    last = []
    for k, layer in enumerate(layers):
        x, h = layer(x, initial_state=h0[k])
        last.append(h)
    return x, stack(last)


def _read(found: Any, host: Any) -> Numbers:
    found = dict(found)
    variables = [host(v) for v in found.pop("params", ())]
    numbers = {n: host(v) for n, v in found.items()}
    for name in ("output", "x"):
        if name in numbers:
            numbers[name] = numbers[name].transpose(1, 0, 2)
    for k in range(len(variables) // 3):
        kernel, recurrent, bias = variables[3 * k : 3 * k + 3]
        numbers |= dict(zip(layer_names(k), (kernel.T, recurrent.T, bias, bias), strict=True))
    return numbers
