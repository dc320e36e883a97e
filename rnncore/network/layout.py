"""The layout of a call: torch's shapes and orders of axes outside, time-first (T, B, .) and [layer][direction] inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rnncore.arguments import check_shape, describe
from rnncore.backend.arrays import check_array
from rnncore.errors import ShapeError
from rnncore.network.engine import Engine
from rnncore.network.results import State
from rnncore.network.stack import PerDirection
from rnncore.spec import RNNSpec
from rnncore.typing import Array

__all__ = ["Call", "Layout", "check", "layout_of", "state_in", "state_out", "zero_state"]


@dataclass(frozen=True)
class Call:
    """What every call of one network shares."""

    spec: RNNSpec
    params: Mapping[str, Array]
    engine: Engine
    check_finite: bool = False


@dataclass(frozen=True)
class Layout:
    """The layout of one call's input, and the way to time-first (T, B, .) and back."""

    steps: int
    batch: int
    batched: bool
    batch_first: bool
    call: Call

    def inward(self, x: Array) -> Array:
        """An input or a cotangent of the output, time-first."""
        xp = self.call.engine.xp
        if not self.batched:
            return xp.expand_dims(x, axis=1)
        return xp.permute_dims(x, (1, 0, 2)) if self.batch_first else x

    def outward(self, x: Array) -> Array:
        """A time-first array as the caller has his."""
        xp = self.call.engine.xp
        if not self.batched:
            return xp.squeeze(x, axis=1)
        return xp.permute_dims(x, (1, 0, 2)) if self.batch_first else x


def layout_of(call: Call, x: Array) -> Layout:
    """The layout of an input, which is checked: its kind, number of axes, width, and that it has a step."""
    spec = call.spec
    check(call, "x", x, None)
    order = "(B, T, input_size)" if spec.batch_first else "(T, B, input_size)"
    if x.ndim not in (2, 3):
        raise ShapeError(f"x: expected {order} or unbatched (T, input_size), got shape {tuple(x.shape)}")
    if x.shape[-1] != spec.input_size:
        raise ShapeError(
            f"x: expected input_size {spec.input_size} as the last axis of {order} or (T, input_size), "
            f"got shape {tuple(x.shape)}"
        )
    batched = x.ndim == 3
    time_axis = 1 if batched and spec.batch_first else 0
    steps = x.shape[time_axis]
    if steps < 1:
        raise ShapeError(
            f"x: expected at least one time step on axis {time_axis} of {order if batched else '(T, input_size)'}, "
            f"got shape {tuple(x.shape)}"
        )
    return Layout(steps, x.shape[1 - time_axis] if batched else 1, batched, spec.batch_first, call)


def state_in(call: Call, shape: Layout, name: str, state: Any) -> PerDirection:
    """h0 or its cotangent from torch's shape, (D*L, B, H) or unbatched (D*L, H), to [layer][direction] (B, H)."""
    spec, xp = call.spec, call.engine.xp
    directions = spec.num_directions
    batch: tuple[int, ...] = (shape.batch,) if shape.batched else ()
    if spec.uniform:
        check(call, name, state, (spec.num_layers * directions, *batch, spec.hidden_sizes[0]), _hint(shape))
        if not shape.batched:
            state = xp.expand_dims(state, axis=1)
        return [[state[k * directions + d, ...] for d in range(directions)] for k in range(spec.num_layers)]
    if not isinstance(state, (list, tuple)) or len(state) != spec.num_layers:
        got = f"{len(state)} entries" if isinstance(state, (list, tuple)) else describe(state)
        raise ShapeError(
            f"{name}: expected a sequence of {spec.num_layers} arrays, one per layer, as the layers differ in width, "
            f"got {got}"
        )
    nested = []
    for k, rows in enumerate(state):
        check(call, f"{name}[{k}]", rows, (directions, *batch, spec.hidden_sizes[k]), _hint(shape))
        rows = rows if shape.batched else xp.expand_dims(rows, axis=1)
        nested.append([rows[d, ...] for d in range(directions)])
    return nested


def state_out(call: Call, shape: Layout, nested: PerDirection) -> State:
    """The way back: one array, or one for each layer where they differ in width."""
    xp = call.engine.xp
    layers = [xp.stack(row, axis=0) for row in nested]
    if not shape.batched:
        layers = [xp.squeeze(rows, axis=1) for rows in layers]
    if not call.spec.uniform:
        return tuple(layers)
    return layers[0] if len(layers) == 1 else xp.concat(layers, axis=0)


def _hint(shape: Layout) -> str:
    if not shape.batched:
        return " for an unbatched input"
    return " (never batch-first)" if shape.batch_first else ""


def zero_state(call: Call, batch: int) -> PerDirection:
    """h0 where none is given."""
    return [[call.engine.zeros((batch, h))] * call.spec.num_directions for h in call.spec.hidden_sizes]


def check(call: Call, name: str, x: Any, shape: Sequence[int] | None, hint: str = "") -> None:
    """An argument must be an array of the call's backend, dtype and device, and of this shape (None: any)."""
    engine = call.engine
    check_array(name, x, backend=engine.backend, dtype=engine.dtype, device=engine.device, shape=None, xp=engine.xp)
    if shape is not None:
        try:
            check_shape(name, x, shape)
        except ShapeError as error:
            raise ShapeError(f"{error}{hint}") from None
