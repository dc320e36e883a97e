"""A whole network: forward, vjp, jvp and trace over layers, directions, lengths, dropout and checkpoints.

Everything is time-first, (T, B, .), and nested by layer and direction: ``states[layer][direction]``. A layer above the
first reads the outputs of all directions below, side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

from rnncore.network import layer
from rnncore.network.engine import Engine
from rnncore.network.joining import TimeJoin
from rnncore.network.layer import Layer
from rnncore.network.ragged import Lengths
from rnncore.network.step import Weights
from rnncore.spec import RNNSpec
from rnncore.typing import Array

__all__ = ["Cotangents", "Plan", "forward", "inputs", "jvp", "states", "trace", "vjp"]

PerDirection: TypeAlias = list[list[Array]]
Parameters: TypeAlias = list[list[Weights]]


class Cotangents(NamedTuple):
    """Cotangents of parameters[layer][direction], x (T, B, I) and h0[layer][direction] (B, H)."""

    parameters: Parameters
    x: Array
    h0: PerDirection


class Traced(NamedTuple):
    """States and pre-activations by [layer][direction], the output, and the last states."""

    h: PerDirection
    z: PerDirection
    output: Array
    last: PerDirection


@dataclass(frozen=True)
class Plan:
    """Everything about one call except its arrays.

    Attributes
    ----------
    spec, engine
    ragged : Lengths or None
        Lengths, where the sequences have several.
    masks : tuple of array
        For each layer but the last the dropout mask (T, B, D*H), already divided by what is kept; empty for none.
    truncate : int or None
        Do not carry the gradient across multiples of this many steps.
    start : int
        The time of the first step, where this is a window of a longer call.
    """

    spec: RNNSpec
    engine: Engine
    ragged: Lengths | None = None
    masks: tuple[Array, ...] = ()
    truncate: int | None = None
    start: int = 0

    def window(self, start: int, stop: int) -> Plan:
        """Restrict the call to the time window [start, stop)."""
        return replace(
            self,
            ragged=None if self.ragged is None else self.ragged.piece(start, stop),
            masks=tuple(m[start:stop, ...] for m in self.masks),
            start=self.start + start,
        )

    def layers(self, parameters: Parameters, boundaries: tuple[int, ...] = ()) -> list[list[Layer]]:
        """Bind weights by [layer][direction] to this call."""
        ragged, f, engine = self.ragged, self.spec.nonlinearity, self.engine
        every = []
        for row in parameters:
            layers: list[Layer] = []
            for w in row:  # the second one, if any, is the reverse direction
                layers.append(Layer(w, bool(layers), ragged, f, engine, boundaries))
            every.append(layers)
        return every

    def boundaries(self, steps: int) -> tuple[int, ...]:
        """Times in this window across which truncation carries no gradient."""
        if self.truncate is None:
            return ()
        first = -self.start % self.truncate or self.truncate
        return tuple(range(first, steps, self.truncate))


Pullback: TypeAlias = Callable[[Array | None, PerDirection | None], Cotangents]


def forward(parameters: Parameters, x: Array, h0: PerDirection, plan: Plan) -> tuple[Array, PerDirection]:
    """The top layer's output (T, B, D*H) and the last state of each layer and direction (B, H).

    Holds one layer at a time, not the whole stack.
    """
    below = x
    last: PerDirection = []
    for k, row in enumerate(plan.layers(parameters)):
        h, ends = [], []
        for one, first in zip(row, h0[k], strict=True):
            h.append(layer.forward(one, below, first))
            ends.append(layer.last_state(one, h[-1], first))
        last.append(ends)
        below = _read_by_next(h, k, plan)
    return below, last


def states(layers: list[list[Layer]], x: Array, h0: PerDirection, plan: Plan) -> PerDirection:
    """Every state: for each layer and direction (T, B, H)."""
    every: PerDirection = []
    below = x
    for k, row in enumerate(layers):
        every.append(_layer_states(row, below, h0[k]))
        below = _read_by_next(every[-1], k, plan)
    return every


def trace(parameters: Parameters, x: Array, h0: PerDirection, plan: Plan) -> Traced:
    """Every state and pre-activation (before the clip), each (T, B, H), with the output and the last states."""
    layers = plan.layers(parameters)
    every = states(layers, x, h0, plan)
    z = [
        [layer.pre_activation(one, below, *at) for one, *at in zip(row, h0[k], every[k], strict=True)]
        for k, (row, below) in enumerate(zip(layers, inputs(x, every, plan), strict=True))
    ]
    last = [_last_states(*at) for at in zip(layers, every, h0, strict=True)]
    return Traced(every, z, _side_by_side(every[-1], plan), last)


def vjp(
    parameters: Parameters, x: Array, h0: PerDirection, plan: Plan, *, checkpoint: int | None = None
) -> tuple[Array, PerDirection, Pullback]:
    """Output, last states and the pullback of cotangents of the two.

    With `checkpoint` the pullback recomputes states instead of holding them all. A network of one direction is cut into
    windows of this many steps, and only the states between windows are held. In a bidirectional network a layer needs the
    whole layer below, so no states are held and the pullback recomputes layer by layer.
    """
    if checkpoint is None:
        layers = plan.layers(parameters, plan.boundaries(x.shape[0]))
        every = states(layers, x, h0, plan)

        def pullback(d_output: Array | None, d_last: PerDirection | None) -> Cotangents:
            return _pull(layers, x, h0, plan, every.__getitem__, d_output, d_last)

        last = [_last_states(*at) for at in zip(layers, every, h0, strict=True)]
        return _side_by_side(every[-1], plan), last, pullback
    if plan.spec.bidirectional:
        return _vjp_by_layer(parameters, x, h0, plan)
    return _vjp_by_window(parameters, x, h0, plan, checkpoint)


def jvp(
    parameters_dot: Parameters | None,
    x_dot: Array | None,
    h0_dot: PerDirection | None,
    parameters: Parameters,
    x: Array,
    h0: PerDirection,
    plan: Plan,
) -> tuple[Array, PerDirection, Array, PerDirection]:
    """Output, last states, and the tangents of the two. None stands for a tangent of zero."""
    layers = plan.layers(parameters)
    every = states(layers, x, h0, plan)
    tangents: PerDirection = []
    last: PerDirection = []
    last_dot: PerDirection = []
    below_dot = x_dot
    for k, below in enumerate(inputs(x, every, plan)):
        row = [
            layer.jvp(
                layers[k][d],
                None if parameters_dot is None else parameters_dot[k][d],
                below_dot,
                None if h0_dot is None else h0_dot[k][d],
                below,
                h0[k][d],
                every[k][d],
            )
            for d in range(plan.spec.num_directions)
        ]
        tangents.append(row)
        last.append(_last_states(layers[k], every[k], h0[k]))
        first_dot = [plan.engine.xp.zeros_like(h) for h in h0[k]] if h0_dot is None else h0_dot[k]
        last_dot.append(_last_states(layers[k], row, first_dot))
        below_dot = _read_by_next(row, k, plan)
    return _side_by_side(every[-1], plan), last, _side_by_side(tangents[-1], plan), last_dot


# --- forward pieces ---------------------------------------------------------------------------------------------------


def _layer_states(row: list[Layer], below: Array, h0: list[Array]) -> list[Array]:
    return [layer.forward(one, below, first) for one, first in zip(row, h0, strict=True)]


def _side_by_side(h: list[Array], plan: Plan) -> Array:
    return h[0] if len(h) == 1 else plan.engine.xp.concat(h, axis=2)


def _read_by_next(h: list[Array], k: int, plan: Plan) -> Array:
    """Input of the layer above k; the output for the last layer."""
    joined = h[0] if len(h) == 1 else _side_by_side(h, plan)
    return joined * plan.masks[k] if k < len(plan.masks) else joined


def inputs(x: Array, every: PerDirection, plan: Plan) -> list[Array]:
    """Input of each layer, (T, B, .): x, then the outputs of the layers below."""
    return [x, *(_read_by_next(h, k, plan) for k, h in enumerate(every[:-1]))]


def _last_states(row: list[Layer], h: list[Array], h0: list[Array]) -> list[Array]:
    return [layer.last_state(*at) for at in zip(row, h, h0, strict=True)]


# --- backward ---------------------------------------------------------------------------------------------------------


def _pull(
    layers: list[list[Layer]],
    x: Array,
    h0: PerDirection,
    plan: Plan,
    states_of: Callable[[int], list[Array]],
    d_output: Array | None,
    d_last: PerDirection | None,
) -> Cotangents:
    """Backpropagation through the stack, the top layer first."""
    cotangents: Parameters = []
    d_h0: PerDirection = []
    d_above = d_output
    for k in reversed(range(len(layers))):
        below = x if k == 0 else _read_by_next(states_of(k - 1), k - 1, plan)
        width = plan.spec.hidden_sizes[k]
        h = states_of(k)
        shares = [d_above] if len(h) == 1 or d_above is None else [d_above[..., :width], d_above[..., width:]]
        found = [
            layer.vjp(one, shares[d % len(shares)], None if d_last is None else d_last[k][d], below, h0[k][d], h[d])
            for d, one in enumerate(layers[k])
        ]
        cotangents.insert(0, [c.weights for c in found])
        d_h0.insert(0, [c.h0 for c in found])
        d_above = found[0].x if len(found) == 1 else found[0].x + found[1].x
        if 0 < k <= len(plan.masks):
            d_above = d_above * plan.masks[k - 1]
    return Cotangents(cotangents, d_above, d_h0)


def _vjp_by_layer(
    parameters: Parameters, x: Array, h0: PerDirection, plan: Plan
) -> tuple[Array, PerDirection, Pullback]:
    output, last = forward(parameters, x, h0, plan)
    layers = plan.layers(parameters, plan.boundaries(x.shape[0]))

    def states_of(k: int) -> list[Array]:
        below = x
        for lower in range(k):
            below = _read_by_next(_layer_states(layers[lower], below, h0[lower]), lower, plan)
        return _layer_states(layers[k], below, h0[k])

    def pullback(d_output: Array | None, d_last: PerDirection | None) -> Cotangents:
        return _pull(layers, x, h0, plan, states_of, d_output, d_last)

    return output, last, pullback


def _vjp_by_window(
    parameters: Parameters, x: Array, h0: PerDirection, plan: Plan, every: int
) -> tuple[Array, PerDirection, Pullback]:
    steps = x.shape[0]
    windows = [(a, min(a + every, steps)) for a in range(0, steps, every)]
    firsts = [h0]
    join = TimeJoin(steps, plan.engine)
    for a, b in windows:
        piece, last = forward(parameters, x[a:b, ...], firsts[-1], plan.window(a, b))
        join.put(a, b, piece)
        # Copy: a view of the last state would keep the whole window alive.
        firsts.append([[plan.engine.copy(h) for h in row] for row in last])

    def pullback(d_output: Array | None, d_last: PerDirection | None) -> Cotangents:
        carried = d_last
        d_x = TimeJoin(steps, plan.engine)
        total: Parameters | None = None
        for (a, b), first in zip(windows[::-1], firsts[-2::-1], strict=True):
            window = plan.window(a, b)
            x_w = x[a:b, ...]
            layers = window.layers(parameters, window.boundaries(b - a))
            held = states(layers, x_w, first, window)
            d_out = None if d_output is None else d_output[a:b, ...]
            found = _pull(layers, x_w, first, window, held.__getitem__, d_out, carried)
            total = found.parameters if total is None else _added(total, found.parameters)
            d_x.put(a, b, found.x)
            cut = plan.truncate is not None and a > 0 and (plan.start + a) % plan.truncate == 0
            carried = _cut(found.h0, plan, a, steps) if cut else found.h0
        if total is None or carried is None:
            raise AssertionError("a call has at least one step")
        return Cotangents(total, d_x.joined(), carried)

    return join.joined(), firsts[-1], pullback


def _cut(d_h0: PerDirection, plan: Plan, start: int, steps: int) -> PerDirection:
    """Zero the gradient at the start of a window, except for sequences that ended before it."""
    zeros = [[plan.engine.xp.zeros_like(g) for g in row] for row in d_h0]
    if plan.ragged is None:
        return zeros
    later = plan.ragged.piece(start, steps)
    return [
        [later.nonempty_or(zero, g) for zero, g in zip(row_z, row_g, strict=True)]
        for row_z, row_g in zip(zeros, d_h0, strict=True)
    ]


def _added(a: Parameters, b: Parameters) -> Parameters:
    return [
        [layer.add_weights(v, w) for v, w in zip(row_a, row_b, strict=True)] for row_a, row_b in zip(a, b, strict=True)
    ]
