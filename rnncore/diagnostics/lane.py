"""A lane of a network: one layer in one direction of a recorded run, which is what a probe looks at."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from rnncore import scan
from rnncore.diagnostics.numerics import device
from rnncore.network.engine import Engine
from rnncore.network.ragged import Ragged
from rnncore.network.step import Weights
from rnncore.nonlinearity.nonlinearity import Nonlinearity
from rnncore.typing import Array, Host, Namespace

__all__ = ["Lane"]


@dataclass(frozen=True, eq=False)
class Lane:
    """One layer in one direction of a run. Arrays are time-first and on the network's device.

    Attributes
    ----------
    layer, direction : int
        Direction 1 is the reverse one.
    weights : Weights
        With the sum of the two biases.
    x : array (T, B, I)
        What the layer reads.
    h0 : array (B, H)
    h, z : array (T, B, H)
        States and pre-activations (before any clip), 0 in the padding.
    lengths : tuple of int
        The valid steps of each row.
    valid : host array (T, B) of bool
        Whether the step belongs to the row.
    ragged : Ragged or None
        The lengths, where they are not all T.
    engine : Engine
    nonlinearity : Nonlinearity
    suffix : str
        The end of the names of its parameters, such as "l0" or "l1_reverse".
    """

    layer: int
    direction: int
    weights: Weights
    x: Array
    h0: Array
    h: Array
    z: Array
    lengths: tuple[int, ...]
    valid: Host
    ragged: Ragged | None
    engine: Engine
    nonlinearity: Nonlinearity
    suffix: str

    @property
    def xp(self) -> Namespace:
        """The array namespace."""
        return self.engine.xp

    @property
    def steps(self) -> int:
        """Number of steps, T."""
        return int(self.z.shape[0])

    @property
    def batch(self) -> int:
        """Number of rows, B."""
        return int(self.z.shape[1])

    @property
    def width(self) -> int:
        """Number of units, H."""
        return int(self.z.shape[2])

    @property
    def reverse(self) -> bool:
        """Whether time runs backwards."""
        return bool(self.direction)

    @cached_property
    def matrix(self) -> Host:
        """W_hh (H, H) on the host in float64."""
        return self.host(self.weights.weight_hh)

    def slope(self) -> Array:
        """Compute f' at every step, (T, B, H), from z; 0 in the padding."""
        f = self.nonlinearity
        if f.name == "tanh" and not f.derivative_needs_z:  # made from tanh(z) in any case, and that is h
            return self.masked(f.derivative_from_h(self.h, xp=self.xp))
        return self.masked(f.derivative(self.z, xp=self.xp))

    def log_slope(self) -> Array:
        """Compute ln |f'(z)|, (T, B, H), accurate where f' has rounded to 0; meaningless in the padding."""
        return self.nonlinearity.log_derivative(self.z, xp=self.xp)

    def previous(self) -> Array:
        """Compute the state that each step started from, (T, B, H): h0 at a row's first step in the direction's time."""
        before = scan.previous(self.h, self.h0, reverse=self.reverse, xp=self.xp)
        return self.ragged.put_at_ends(before, self.h0) if self.ragged is not None and self.reverse else before

    def first(self, x: Array) -> Array:
        """The rows of x (T, B, H) at each row's first step in the direction's time: (B, H)."""
        if not self.reverse:
            return x[0, ...]
        return x[-1, ...] if self.ragged is None else self.ragged.at_ends(x)

    def masked(self, x: Array) -> Array:
        """x (T, B, ...), 0 in the padding."""
        return x if self.ragged is None else self.ragged.masked(x)

    def host(self, x: Array) -> Host:
        """Numbers on the host in float64."""
        return device.on_host(x, self.engine)

    def on_device(self, x: Host) -> Array:
        """Host numbers on the device in the network's dtype."""
        return device.on_device(x, self.engine)
