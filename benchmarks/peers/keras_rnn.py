"""Keras' SimpleRNN on two of its backends: batch-first, one bias a layer, whose gradient is that of both.

KERAS_BACKEND is set for the process, so that each function here runs in one of its own. In float64 Keras 3 promotes products to
float32 on both of these backends: the check before the timing finds that out, and there is no time to show.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from benchmarks.case import Host, Numbers, Problem
from benchmarks.peers import Prepared, layer_names


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
        return {"output": output, "h_n": h_n, "x": grads[0], "h0": grads[1], "variables": grads[2:]}

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

    def run_back(variables: Any, x: Any, h0: Any, d_output: Any, d_h_n: Any) -> Any:
        found, pullback = library.vjp(run, variables, x, h0)
        return found, pullback((d_output, d_h_n))

    compiled, compiled_back = library.jit(run), library.jit(run_back)

    def forward() -> Any:
        output, h_n = library.block_until_ready(compiled(variables, x, h0))
        return {"output": output, "h_n": h_n}

    def both() -> Any:
        ran = library.block_until_ready(compiled_back(variables, x, h0, d_output, d_h_n))
        (output, h_n), (d_variables, d_x, d_h0) = ran
        return {"output": output, "h_n": h_n, "x": d_x, "h0": d_h0, "variables": d_variables}

    return Prepared(forward, both, lambda found: _read(found, np.asarray))


def _arrays(problem: Problem) -> tuple[Host, Host, Host, Host]:
    """The arrays in Keras' own layout, before the clock starts."""
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
    variables = [host(v) for v in found.pop("variables", ())]
    numbers = {n: host(v) for n, v in found.items()}
    for name in ("output", "x"):
        if name in numbers:
            numbers[name] = numbers[name].transpose(1, 0, 2)
    for k in range(len(variables) // 3):
        kernel, recurrent, bias = variables[3 * k : 3 * k + 3]
        numbers |= dict(zip(layer_names(k), (kernel.T, recurrent.T, bias, bias), strict=True))
    return numbers
