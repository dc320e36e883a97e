"""The public calls of a network: check the arguments, convert them to time-first, run, and convert back.

:class:`rnncore.RNN` and :mod:`rnncore.functional` both call these functions, so they cannot disagree.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeAlias

import numpy as np

from rnncore.arguments import (
    Rng,
    as_generator,
    check_bytes,
    check_known,
    check_mapping,
    elements,
    flag,
    positive_int,
)
from rnncore.backend.arrays import check_finite, host_lengths, plain, traced_lengths
from rnncore.errors import ArgumentValueError, StateDictError
from rnncore.network import layout, stack
from rnncore.network.engine import Engine
from rnncore.network.layout import Layout
from rnncore.network.network import Network
from rnncore.network.ragged import Lengths, Ragged, TracedLengths
from rnncore.network.results import Gradients, Pullback, State, Tangents, Trace
from rnncore.network.stack import PerDirection, Plan
from rnncore.spec import RNNSpec
from rnncore.typing import Array

__all__ = ["Prepared", "forward", "jvp", "prepare", "trace", "vjp", "warn_if_dropout_is_idle"]

FLOAT64_BYTES = 8
# The fewest states in a window of checkpoint=True: 2 MB in float32, too few to be worth recomputing.
CHECKPOINT_NUMBERS = 2**19


# The arguments of a call, checked and time-first: the layout, x (T, B, I) with 0 in the padding, h0 by [layer][direction],
# and the plan.
Prepared: TypeAlias = tuple[Layout, Array, PerDirection, Plan]


def forward(
    network: Network, x: Array, h0: Any = None, lengths: Any = None, training: bool = False, rng: Rng = None
) -> tuple[Array, State]:
    """See :meth:`rnncore.RNN.__call__`."""
    if network.engine.abilities.scope is not None:
        with network.engine.scope():
            return _forward(network, x, h0, lengths, training, rng)
    return _forward(network, x, h0, lengths, training, rng)


def _forward(network: Network, x: Array, h0: Any, lengths: Any, training: bool, rng: Rng) -> tuple[Array, State]:
    shape, xt, h0s, plan = prepare(network, x, h0, lengths, training, rng)
    output, h_n = stack.forward(network.weights(), xt, h0s, plan)
    return _finish(network, shape, output, h_n)


def vjp(
    network: Network,
    x: Array,
    h0: Any = None,
    lengths: Any = None,
    training: bool = False,
    rng: Rng = None,
    *,
    checkpoint: bool | int = False,
    truncate: int | None = None,
) -> tuple[Array, State, Pullback]:
    """See :meth:`rnncore.RNN.vjp`."""
    engine = network.engine
    with engine.scope():
        shape, xt, h0s, plan = prepare(network, x, h0, lengths, training, rng, truncate)
        every = _checkpoint_steps(checkpoint, shape)
        output, h_n, pull = stack.vjp(network.weights(), xt, h0s, plan, checkpoint=every)
        public_output, public_h_n = _finish(network, shape, output, h_n)
    output_shape = tuple(public_output.shape)
    if not network.spec.bidirectional and every is None:  # the pullback reads these states
        public_output = engine.read_only(public_output)
    given = {f"h0[{k}]": rows for k, rows in enumerate(h0)} if isinstance(h0, (list, tuple)) else {"h0": h0}
    check_unchanged = watch(engine, {"x": x, **given, "output": public_output, **network.params})

    def pullback(d_output: Array | None = None, d_h_n: Any = None) -> Gradients:
        """Gradients for the cotangents of output and h_n; None is zero. May be called more than once."""
        check_unchanged()
        with engine.scope():
            d_out = None
            if d_output is not None:
                d_out = shape.inward(engine.check("d_output", d_output, output_shape))
            d_last = None if d_h_n is None else layout.state_in(shape, "d_h_n", d_h_n)
            found = pull(d_out, d_last)
            d_h0 = layout.state_out(shape, found.h0)
            d_h0 = tuple(map(engine.cast, d_h0)) if isinstance(d_h0, tuple) else engine.cast(d_h0)
            return Gradients(network.named(found.parameters), engine.cast(shape.outward(found.x)), d_h0)

    return public_output, public_h_n, pullback


def watch(engine: Engine, held: Mapping[str, Array | None]) -> Callable[[], None]:
    """Return a function that raises if one of the arrays was changed in place since, where the backend can tell."""
    changes = engine.abilities.changes
    # Writable arrays have no counter of changes.
    kept = {} if engine.writable else {name: value for name, value in held.items() if value is not None}
    before = {name: changes(value) for name, value in kept.items()}

    def check() -> None:
        for name, value in kept.items():
            if changes(value) != before[name]:
                raise ArgumentValueError(
                    f"{name}: expected the array as it was in vjp, got one that was changed in place"
                )

    return check


def jvp(
    network: Network,
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
    with network.engine.scope():
        shape, xt, h0s, plan = prepare(network, x, h0, lengths, training, rng)
        xt_dot = None
        if x_dot is not None:
            xt_dot = shape.inward(network.engine.check("x_dot", x_dot, tuple(x.shape)))
            xt_dot = xt_dot if plan.ragged is None else plan.ragged.masked(xt_dot)
        h0s_dot = None if h0_dot is None else layout.state_in(shape, "h0_dot", h0_dot)
        weights_dot = None if params_dot is None else network.weights(complete(network, params_dot))
        output, h_n, output_dot, h_n_dot = stack.jvp(weights_dot, xt_dot, h0s_dot, network.weights(), xt, h0s, plan)
        tangents = Tangents(shape.outward(output_dot), layout.state_out(shape, h_n_dot))
        return *_finish(network, shape, output, h_n), tangents


def trace(
    network: Network, x: Array, h0: Any = None, lengths: Any = None, training: bool = False, rng: Rng = None
) -> Trace:
    """See :meth:`rnncore.RNN.trace`."""
    with network.engine.scope():
        shape, xt, h0s, plan = prepare(network, x, h0, lengths, training, rng)
        xp = network.engine.xp
        found = stack.trace(network.weights(), xt, h0s, plan)
        output, h_n = _finish(network, shape, found.output, found.last)
        h, z = (tuple(xp.stack(row, axis=0) for row in nested) for nested in (found.h, found.z))
        return Trace(h, z, output, h_n)


# --- arguments ---------------------------------------------------------------------------------------------------------


def prepare(
    network: Network, x: Array, h0: Any, lengths: Any, training: bool, rng: Rng, truncate: int | None = None
) -> Prepared:
    """Check the arguments of a call and lay them out time-first.

    The result of checks that depend only on the types, shapes, dtypes and devices of x and h0 is remembered. Calls with other
    options, and calls that fail a check, always go through all checks.
    """
    engine = network.engine
    key: Hashable = None
    plain = lengths is None and rng is None and truncate is None and training is False and not network.check_finite
    if plain and (engine.tracing is None or not engine.tracing()):
        try:  # what the checks of arrays read
            key = type(x), x.shape, x.dtype, getattr(x, "device", None)
            key = key if h0 is None else (*key, type(h0), h0.shape, h0.dtype, getattr(h0, "device", None))
            ready = network.plans.get(key)
        except (AttributeError, TypeError, RuntimeError):  # no array, no shape, or a device that cannot be hashed
            key = ready = None
        is_native = engine.backend.is_native
        if ready is not None and is_native(x) and (h0 is None or is_native(h0)):
            shape, plan, first = ready
            if h0 is not None:
                first = layout.split_state(shape, h0)
            return shape, x if shape.time_first else shape.inward(x), first or layout.zero_state(shape), plan
    prepared = _prepared(network, x, h0, lengths, training, rng, truncate)
    if key is not None and engine.is_plain(x, h0):  # else the next call has to convert them again
        shape, _, first, plan = prepared
        kept = h0 is None and engine.keeps((shape.batch, max(network.spec.hidden_sizes)))
        network.remember(key, (shape, plan, first if kept else None))
    return prepared


def _prepared(
    network: Network, x: Array, h0: Any, lengths: Any, training: bool, rng: Rng, truncate: int | None
) -> Prepared:
    spec, engine = network.spec, network.engine
    shape, x = layout.layout_of(spec, engine, x), plain(x, engine.backend)
    ragged = _lengths_of(shape, lengths)
    if rng is not None:
        rng = as_generator(rng)
    flag("training", training)
    widest = max(spec.hidden_sizes) * spec.num_directions
    item = FLOAT64_BYTES if engine.dtype_name == "float64" else 4
    check_bytes(f"output of {shape.steps} steps", elements((shape.steps, shape.batch, widest)), item)
    h0s = layout.zero_state(shape) if h0 is None else layout.state_in(shape, "h0", h0)
    xt = shape.inward(x)
    if ragged is not None:
        xt = ragged.masked(xt)
    if network.check_finite:
        _check_all_finite(network, shape, xt, h0s)
    masks = _dropout_masks(shape, rng) if training and spec.dropout > 0 else ()
    if truncate is not None:
        truncate = positive_int("truncate", truncate)
        check_known("truncate", "steps are divided", shape.steps)
    return shape, xt, h0s, Plan(spec, engine, ragged, masks, truncate)


def _finish(network: Network, shape: Layout, output: Array, h_n: PerDirection) -> tuple[Array, State]:
    public = output if shape.time_first else shape.outward(output), layout.state_out(shape, h_n)
    if network.check_finite:
        _check_finite(network, "output", public[0])
        _check_state_finite(network, "h_n", public[1])
    return public


def _check_all_finite(network: Network, shape: Layout, x: Array, h0: PerDirection) -> None:
    _check_finite(network, "x", shape.outward(x))
    _check_state_finite(network, "h0", layout.state_out(shape, h0))
    for name, value in network.params.items():
        _check_finite(network, name, value)


def _check_state_finite(network: Network, name: str, state: State) -> None:
    for k, rows in enumerate(state if isinstance(state, tuple) else (state,)):
        _check_finite(network, f"{name}[{k}]" if isinstance(state, tuple) else name, rows)


def _check_finite(network: Network, name: str, x: Array) -> None:
    check_finite(name, x, xp=network.engine.xp, backend=network.engine.backend)


def complete(network: Network, tangents: Mapping[str, Array]) -> dict[str, Array]:
    """Return tangents of all parameters: those given, checked, and zeros for the rest."""
    check_mapping("params_dot", tangents)
    shapes = network.spec.parameter_shapes()
    unknown = [str(name) for name in tangents if name not in shapes]
    if unknown:
        raise StateDictError(f"params_dot: unexpected {', '.join(unknown)}; expected names are {', '.join(shapes)}")
    given = {n: network.engine.check(f"params_dot[{n!r}]", value, shapes[n]) for n, value in tangents.items()}
    return {n: given[n] if n in given else network.engine.zeros(shape) for n, shape in shapes.items()}


# --- options ----------------------------------------------------------------------------------------------------------


def _lengths_of(layout: Layout, lengths: Any) -> Lengths | None:
    """Check lengths; None if every row has all steps."""
    steps, engine = layout.steps, layout.engine
    readable, xp = engine.abilities.readable, engine.xp
    if lengths is None:
        return None
    if readable is not None and engine.backend.is_native(lengths) and not readable(lengths):
        counts = traced_lengths(lengths, batch=layout.batch, steps=steps, xp=xp, device=engine.device)
        return TracedLengths(counts, steps, xp)
    check_known("lengths", "plain numbers are checked", steps, layout.batch)
    numbers = host_lengths(lengths, batch=layout.batch, steps=steps)
    if numbers is None or all(n == steps for n in numbers):
        return None
    return Ragged(numbers, steps, engine.backend, engine.device, xp)


def _dropout_masks(layout: Layout, rng: Rng) -> tuple[Array, ...]:
    """Draw one mask on the host for each gap between layers; kept values are scaled to preserve the mean."""
    spec, engine = layout.spec, layout.engine
    check_known("training", "dropout masks are drawn", layout.steps, layout.batch)
    generator = as_generator(rng)
    keep = 1.0 - spec.dropout
    masks = []
    for width in spec.hidden_sizes[:-1]:
        drawn = generator.random((layout.steps, layout.batch, width * spec.num_directions)) < keep
        scaled = drawn / keep if keep > 0 else np.zeros(drawn.shape)
        masks.append(engine.give(scaled))
    return tuple(masks)


def _checkpoint_steps(checkpoint: bool | int, layout: Layout) -> int | None:
    if checkpoint is False or checkpoint is None:
        return None
    check_known("checkpoint", "steps are divided", layout.steps, layout.batch)
    if checkpoint is True:
        # Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"; a smaller window would not be worth its calls.
        root = math.isqrt(layout.steps - 1) + 1
        numbers = max(1, layout.batch * sum(layout.spec.hidden_sizes) * layout.spec.num_directions)
        return max(root, CHECKPOINT_NUMBERS // numbers)
    return positive_int("checkpoint", checkpoint)


def warn_if_dropout_is_idle(spec: RNNSpec) -> None:
    """Warn that dropout, which acts between layers, has no effect with one layer."""
    if spec.dropout > 0 and spec.num_layers == 1:
        warnings.warn(
            f"dropout={spec.dropout} has no effect with num_layers=1: it is applied between layers", stacklevel=3
        )
