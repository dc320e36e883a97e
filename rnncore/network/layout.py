"""Layout of a call: torch's shapes and axis orders outside, time-first (T, B, .) and [layer][direction] inside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rnncore.arguments import describe
from rnncore.errors import ShapeError
from rnncore.network.engine import Engine
from rnncore.network.results import State
from rnncore.network.stack import PerDirection
from rnncore.spec import RNNSpec
from rnncore.typing import Array

__all__ = ["Layout", "layout_of", "split_state", "state_in", "state_out", "zero_state"]


@dataclass(frozen=True)
class Layout:
    """Layout of one call's input, with conversion to time-first (T, B, .) and back."""

    steps: int
    batch: int
    batched: bool
    spec: RNNSpec
    engine: Engine

    @property
    def time_first(self) -> bool:
        """Whether the caller's arrays are time-first already."""
        return self.batched and not self.spec.batch_first

    def inward(self, x: Array) -> Array:
        """Convert an input, or a cotangent of the output, to time-first."""
        if not self.batched:
            return x[:, None, :]
        return self.engine.xp.permute_dims(x, (1, 0, 2)) if self.spec.batch_first else x

    def outward(self, x: Array) -> Array:
        """Convert a time-first array to the caller's layout."""
        if not self.batched:
            return x[:, 0, :]
        return self.engine.xp.permute_dims(x, (1, 0, 2)) if self.spec.batch_first else x


def layout_of(spec: RNNSpec, engine: Engine, x: Array) -> Layout:
    """Check an input's type, axes and width, and that it has at least one step; return its layout."""
    engine.check("x", x)
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
    return Layout(steps, x.shape[1 - time_axis] if batched else 1, batched, spec, engine)


def state_in(layout: Layout, name: str, state: Any) -> PerDirection:
    """Check h0 or its cotangent in torch's shape, (D*L, B, H) or unbatched (D*L, H); return [layer][direction] (B, H)."""
    spec, engine = layout.spec, layout.engine
    directions = spec.num_directions
    batch: tuple[int, ...] = (layout.batch,) if layout.batched else ()
    hint = " for an unbatched input" if not layout.batched else " (never batch-first)" if spec.batch_first else ""
    if spec.uniform:
        state = engine.check(name, state, (spec.num_layers * directions, *batch, spec.hidden_sizes[0]), hint)
        return split_state(layout, state)
    if not isinstance(state, (list, tuple)) or len(state) != spec.num_layers:
        got = f"{len(state)} entries" if isinstance(state, (list, tuple)) else describe(state)
        raise ShapeError(
            f"{name}: expected a sequence of {spec.num_layers} arrays, one per layer, as the layers differ in width, "
            f"got {got}"
        )
    nested = []
    for k, rows in enumerate(state):
        rows = engine.check(f"{name}[{k}]", rows, (directions, *batch, spec.hidden_sizes[k]), hint)
        rows = rows if layout.batched else engine.xp.expand_dims(rows, axis=1)
        nested.append([rows[d, ...] for d in range(directions)])
    return nested


def split_state(layout: Layout, state: Array) -> PerDirection:
    """Split a checked state of equally wide layers by [layer][direction]."""
    spec = layout.spec
    directions = spec.num_directions
    state = state if layout.batched else state[:, None, :]
    return [[state[k * directions + d, ...] for d in range(directions)] for k in range(spec.num_layers)]


def state_out(layout: Layout, nested: PerDirection) -> State:
    """Undo :func:`state_in`: one array, or one for each layer where they differ in width."""
    xp = layout.engine.xp
    if layout.spec.uniform:
        if len(nested) == len(nested[0]) == 1:
            stacked = (nested[0][0] * 1)[None, ...]  # a copy by arithmetic
        else:
            stacked = xp.stack([h for row in nested for h in row], axis=0)
        return stacked if layout.batched else stacked[:, 0, :]
    layers = [xp.stack(row, axis=0) for row in nested]
    return tuple(rows if layout.batched else rows[:, 0, :] for rows in layers)


def zero_state(layout: Layout) -> PerDirection:
    """Zero initial state by [layer][direction]."""
    spec = layout.spec
    return [[layout.engine.nothing((layout.batch, h))] * spec.num_directions for h in spec.hidden_sizes]
