"""The public calls on (spec, parameters, engine): check the arguments, turn shapes time-first, run, turn them back.

:class:`rnncore.RNN` and :mod:`rnncore.functional` are both thin over this file, so they cannot disagree.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from rnncore.arguments import Rng, as_generator, check_bytes, check_mapping, elements, positive_int
from rnncore.backend.arrays import check_finite, host_lengths
from rnncore.errors import ArgumentTypeError, ArgumentValueError, StateDictError
from rnncore.network import layout
from rnncore.network import stack as network
from rnncore.network.layout import Call, Layout
from rnncore.network.ragged import Ragged
from rnncore.network.results import Gradients, Pullback, State, Tangents, Trace
from rnncore.network.stack import Parameters, PerDirection, Plan
from rnncore.network.step import Weights
from rnncore.spec import RNNSpec
from rnncore.typing import Array

__all__ = ["Call", "State", "forward", "jvp", "nested_weights", "prepare", "trace", "vjp"]

FLOAT64_BYTES = 8
# States in a window of checkpoint=True, at the least: 2 MB in float32, which nobody checkpoints for.
CHECKPOINT_NUMBERS = 2**19


def forward(
    call: Call, x: Array, h0: Any = None, lengths: Any = None, training: bool = False, rng: Rng = None
) -> tuple[Array, State]:
    """See :meth:`rnncore.RNN.__call__`."""
    with call.engine.scope():
        shape, xt, h0s, plan = prepare(call, x, h0, lengths, training, rng)
        output, h_n = network.forward(nested_weights(call.spec, call.params), xt, h0s, plan)
        return _finish(call, shape, output, h_n)


def vjp(
    call: Call,
    x: Array,
    h0: Any = None,
    lengths: Any = None,
    training: bool = False,
    rng: Rng = None,
    checkpoint: bool | int = False,
    truncate: int | None = None,
) -> tuple[Array, State, Pullback]:
    """See :meth:`rnncore.RNN.vjp`."""
    with call.engine.scope():
        return _vjp(call, x, h0, lengths, training, rng, checkpoint, truncate)


def _vjp(
    call: Call,
    x: Array,
    h0: Any,
    lengths: Any,
    training: bool,
    rng: Rng,
    checkpoint: bool | int,
    truncate: int | None,
) -> tuple[Array, State, Pullback]:
    shape, xt, h0s, plan = prepare(call, x, h0, lengths, training, rng, truncate)
    weights = nested_weights(call.spec, call.params)
    every = _checkpoint_steps(checkpoint, shape, call.spec)
    output, h_n, pull = network.vjp(weights, xt, h0s, plan, checkpoint=every)
    public_output, public_h_n = _finish(call, shape, output, h_n)
    output_shape = tuple(public_output.shape)
    if not call.spec.bidirectional and every is None:  # these are the states that the pullback goes on from
        public_output = call.engine.read_only(public_output)
    # A backend whose arrays may be written to unseen counts no versions.
    held = {} if call.engine.writable else {"x": x, "output": public_output, **call.params}
    versions = {name: getattr(value, "_version", None) for name, value in held.items()}

    def pullback(d_output: Array | None = None, d_h_n: Any = None) -> Gradients:
        """Gradients for the cotangents of output and h_n; None is zero. May be called more than once."""
        for name, value in held.items():
            if getattr(value, "_version", None) != versions[name]:
                raise ArgumentValueError(
                    f"{name}: expected the array as it was in vjp, got one that was changed in place"
                )
        with call.engine.scope():
            d_out = None
            if d_output is not None:
                layout.check(call, "d_output", d_output, output_shape)
                d_out = shape.inward(d_output)
            d_last = None if d_h_n is None else layout.state_in(call, shape, "d_h_n", d_h_n)
            found = pull(d_out, d_last)
            return Gradients(
                _named(call, found.parameters),
                call.engine.cast(shape.outward(found.x)),
                layout.state_out(call, shape, [[call.engine.cast(g) for g in row] for row in found.h0]),
            )

    return public_output, public_h_n, pullback


def jvp(
    call: Call,
    x: Array,
    h0: Any = None,
    lengths: Any = None,
    training: bool = False,
    rng: Rng = None,
    *,
    x_dot: Array | None = None,
    h0_dot: Any = None,
    params_dot: Mapping[str, Array] | None = None,
) -> tuple[Array, State, Tangents]:
    """See :meth:`rnncore.RNN.jvp`."""
    with call.engine.scope():
        shape, xt, h0s, plan = prepare(call, x, h0, lengths, training, rng)
        xt_dot = None
        if x_dot is not None:
            layout.check(call, "x_dot", x_dot, tuple(x.shape))
            xt_dot = shape.inward(x_dot)
            xt_dot = xt_dot if plan.ragged is None else plan.ragged.masked(xt_dot)
        h0s_dot = None if h0_dot is None else layout.state_in(call, shape, "h0_dot", h0_dot)
        weights_dot = None if params_dot is None else nested_weights(call.spec, _complete(call, params_dot))
        output, h_n, output_dot, h_n_dot = network.jvp(
            weights_dot, xt_dot, h0s_dot, nested_weights(call.spec, call.params), xt, h0s, plan
        )
        tangents = Tangents(shape.outward(output_dot), layout.state_out(call, shape, h_n_dot))
        return *_finish(call, shape, output, h_n), tangents


def trace(call: Call, x: Array, h0: Any = None, lengths: Any = None, training: bool = False, rng: Rng = None) -> Trace:
    """See :meth:`rnncore.RNN.trace`."""
    with call.engine.scope():
        shape, xt, h0s, plan = prepare(call, x, h0, lengths, training, rng)
        xp = call.engine.xp
        found = network.trace(nested_weights(call.spec, call.params), xt, h0s, plan)
        output, h_n = _finish(call, shape, found.output, found.last)
        return Trace(
            tuple(xp.stack(row, axis=0) for row in found.h),
            tuple(xp.stack(row, axis=0) for row in found.z),
            output,
            h_n,
        )


# --- arguments ---------------------------------------------------------------------------------------------------------


def prepare(
    call: Call,
    x: Array,
    h0: Any,
    lengths: Any,
    training: bool,
    rng: Rng,
    truncate: int | None = None,
) -> tuple[Layout, Array, PerDirection, Plan]:
    """The arguments of a call, checked and time-first: the layout, x (T, B, I), h0[layer][direction], and the plan."""
    shape = layout.layout_of(call, x)
    counts = host_lengths(lengths, batch=shape.batch, steps=shape.steps)
    if rng is not None:
        rng = as_generator(rng)
    if not isinstance(training, bool):
        raise ArgumentTypeError(f"training: expected True or False, got {training!r}")
    widest = max(call.spec.hidden_sizes) * call.spec.num_directions
    item = FLOAT64_BYTES if call.engine.dtype_name == "float64" else 4
    check_bytes(f"output of {shape.steps} steps", elements((shape.steps, shape.batch, widest)), item)
    h0s = layout.zero_state(call, shape.batch) if h0 is None else layout.state_in(call, shape, "h0", h0)
    engine = call.engine
    ragged = None
    if counts is not None and any(n != shape.steps for n in counts):
        ragged = Ragged(counts, shape.steps, engine.backend, engine.device, engine.xp)
    xt = shape.inward(x)
    if ragged is not None:
        xt = ragged.masked(xt)
    if call.check_finite:
        _check_all_finite(call, shape, xt, h0s)
    masks = _dropout_masks(call, shape, rng) if training and call.spec.dropout > 0 else ()
    if truncate is not None:
        truncate = positive_int("truncate", truncate)
    return shape, xt, h0s, Plan(call.spec, engine, ragged, masks, truncate)


def _finish(call: Call, shape: Layout, output: Array, h_n: PerDirection) -> tuple[Array, State]:
    public = shape.outward(output), layout.state_out(call, shape, h_n)
    if call.check_finite:
        check_finite("output", public[0], xp=call.engine.xp, backend=call.engine.backend)
        for k, rows in enumerate(public[1] if isinstance(public[1], tuple) else (public[1],)):
            name = f"h_n[{k}]" if isinstance(public[1], tuple) else "h_n"
            check_finite(name, rows, xp=call.engine.xp, backend=call.engine.backend)
    return public


def _check_all_finite(call: Call, shape: Layout, x: Array, h0: PerDirection) -> None:
    tools = {"xp": call.engine.xp, "backend": call.engine.backend}
    check_finite("x", shape.outward(x), **tools)
    state = layout.state_out(call, shape, h0)
    if isinstance(state, tuple):
        for k, rows in enumerate(state):
            check_finite(f"h0[{k}]", rows, **tools)
    else:
        check_finite("h0", state, **tools)
    for name, value in call.params.items():
        check_finite(name, value, **tools)


# --- parameters -------------------------------------------------------------------------------------------------------


def nested_weights(spec: RNNSpec, params: Mapping[str, Array]) -> Parameters:
    """Nested weights from torch's names; the two biases become their sum, which is all that the scans see."""
    nested: Parameters = []
    for k in range(spec.num_layers):
        row = []
        for d in range(spec.num_directions):
            end = spec.suffix(k, d)
            bias = params[f"bias_ih_{end}"] + params[f"bias_hh_{end}"] if spec.bias else None
            row.append(Weights(params[f"weight_ih_{end}"], params[f"weight_hh_{end}"], bias))
        nested.append(row)
    return nested


def _named(call: Call, nested: Parameters) -> dict[str, Array]:
    named: dict[str, Array] = {}
    for k, row in enumerate(nested):
        for d, w in enumerate(row):
            end = call.spec.suffix(k, d)
            named[f"weight_ih_{end}"] = call.engine.cast(w.weight_ih)
            named[f"weight_hh_{end}"] = call.engine.cast(w.weight_hh)
            if w.bias is not None:
                named[f"bias_ih_{end}"] = call.engine.cast(w.bias)
                # A copy: who scales gradients in place must not scale one of the two twice.
                named[f"bias_hh_{end}"] = call.engine.copy(named[f"bias_ih_{end}"])
    return named


def _complete(call: Call, tangents: Mapping[str, Array]) -> dict[str, Array]:
    """Tangents for all parameters: checked where given, zero where not."""
    check_mapping("params_dot", tangents)
    shapes = call.spec.parameter_shapes()
    unknown = [str(name) for name in tangents if name not in shapes]
    if unknown:
        raise StateDictError(f"params_dot: unexpected {', '.join(unknown)}; expected names are {', '.join(shapes)}")
    for name, value in tangents.items():
        layout.check(call, f"params_dot[{name!r}]", value, shapes[name])
    return {name: tangents[name] if name in tangents else call.engine.zeros(shape) for name, shape in shapes.items()}


# --- options ----------------------------------------------------------------------------------------------------------


def _dropout_masks(call: Call, shape: Layout, rng: Rng) -> tuple[Array, ...]:
    """One mask for each gap between layers, drawn on the host; kept values are scaled so that the mean stays."""
    spec, engine = call.spec, call.engine
    generator = as_generator(rng)
    keep = 1.0 - spec.dropout
    masks = []
    for width in spec.hidden_sizes[:-1]:
        drawn = generator.random((shape.steps, shape.batch, width * spec.num_directions)) < keep
        scaled = drawn / keep if keep > 0 else np.zeros(drawn.shape)
        masks.append(engine.backend.asarray(scaled, dtype=engine.dtype, device=engine.device))
    return tuple(masks)


def _checkpoint_steps(checkpoint: bool | int, shape: Layout, spec: RNNSpec) -> int | None:
    if checkpoint is False or checkpoint is None:
        return None
    if checkpoint is True:
        # Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"; but no window so small that its calls are felt.
        root = math.isqrt(shape.steps - 1) + 1
        numbers = max(1, shape.batch * sum(spec.hidden_sizes) * spec.num_directions)
        return max(root, CHECKPOINT_NUMBERS // numbers)
    return positive_int("checkpoint", checkpoint)


def warn_if_dropout_is_idle(spec: RNNSpec) -> None:
    """Dropout stands between layers: with one layer it does nothing, which is seldom what was meant."""
    if spec.dropout > 0 and spec.num_layers == 1:
        warnings.warn(
            f"dropout={spec.dropout} has no effect with num_layers=1: it is applied between layers", stacklevel=3
        )
