"""What every probe reads: one run of a network, with all its states and pre-activations, its weights and its inputs.

A probe never runs the network again: it is a function of a :class:`Record`, made once by :func:`record`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from rnncore.arguments import Rng, describe
from rnncore.errors import ArgumentTypeError
from rnncore.model.rnn import RNN
from rnncore.network import calls
from rnncore.network import stack as network
from rnncore.network.engine import Engine
from rnncore.network.layout import Layout
from rnncore.network.ragged import Ragged
from rnncore.network.step import Weights
from rnncore.nonlinearity.nonlinearity import Nonlinearity
from rnncore.spec import RNNSpec
from rnncore.typing import Array, Host, Namespace

__all__ = ["Record", "check_record", "record"]


@dataclass(frozen=True)
class Record:
    """One run, time-first whatever the layout of the call; everything by [layer][direction] where there is one for each.

    Attributes
    ----------
    spec : RNNSpec
    params : mapping of str to array
        torch's names.
    engine : Engine
    weights : list of list of Weights
        The same numbers, with the sum of the two biases.
    x : array (T, B, I)
    h0 : list of list of array (B, H_k)
    h, z : list of list of array (T, B, H_k)
        States and pre-activations (before any clip), 0 in the padding.
    inputs : list of array (T, B, I_k)
        What each layer reads.
    ragged : Ragged or None
        The lengths, where they are not all T.
    plan : network.Plan
    layout : Layout
        How the caller's arrays were laid out.
    """

    spec: RNNSpec
    params: Mapping[str, Array]
    engine: Engine
    weights: list[list[Weights]]
    x: Array
    h0: list[list[Array]]
    h: list[list[Array]]
    z: list[list[Array]]
    inputs: list[Array]
    ragged: Ragged | None
    plan: network.Plan
    layout: Layout

    @property
    def xp(self) -> Namespace:
        """The namespace."""
        return self.engine.xp

    @property
    def nonlinearity(self) -> Nonlinearity:
        """The network's."""
        return self.spec.nonlinearity

    @property
    def steps(self) -> int:
        """T."""
        return int(self.x.shape[0])

    @property
    def batch(self) -> int:
        """B."""
        return int(self.x.shape[1])

    @property
    def directions(self) -> int:
        """D."""
        return self.spec.num_directions

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """The valid steps of each row; T where no lengths were given."""
        return (self.steps,) * self.batch if self.ragged is None else self.ragged.lengths

    @cached_property
    def valid(self) -> Host:
        """Host array (T, B) of bool: whether the step belongs to the row."""
        return np.arange(self.steps)[:, None] < np.asarray(self.lengths, dtype=np.int64)[None, :]

    def slope(self, layer: int, direction: int) -> Array:
        """f' at every step (T, B, H_k), from z; 0 in the padding."""
        f = self.nonlinearity
        if f.name == "tanh" and not f.derivative_needs_z:  # made from tanh(z) in any case, and that is h
            d = f.derivative_from_h(self.h[layer][direction], xp=self.xp)
        else:
            d = f.derivative(self.z[layer][direction], xp=self.xp)
        return d if self.ragged is None else self.ragged.masked(d)

    def previous(self, layer: int, direction: int) -> Array:
        """The state that each step started from, (T, B, H_k): h0 at a row's first step in the direction's time."""
        from rnncore import scan

        h, h0 = self.h[layer][direction], self.h0[layer][direction]
        before = scan.previous(h, h0, reverse=bool(direction), xp=self.xp)
        return self.ragged.put_at_ends(before, h0) if self.ragged is not None and direction else before

    def host(self, x: Array) -> Host:
        """Numbers on the host in float64."""
        return np.asarray(self.engine.backend.to_numpy(x), dtype=np.float64)


def check_record(record: Any) -> None:
    """A Record, or an error that says how to have one."""
    if not isinstance(record, Record):
        raise ArgumentTypeError(
            f"record: expected what rnncore.diagnostics.record(rnn, x) returns, got {describe(record)}"
        )


def record(
    rnn: RNN, x: Array, h0: Any = None, lengths: Any = None, *, training: bool = False, rng: Rng = None
) -> Record:
    """Run the network once and keep everything.

    Parameters
    ----------
    rnn : RNN
    x, h0, lengths, training, rng
        As for a call of the network.

    Returns
    -------
    Record
        Time-first arrays on the network's device.

    Raises
    ------
    RnncoreError
        Whatever a call raises.

    Examples
    --------
    >>> import numpy as np, rnncore
    >>> from rnncore.diagnostics import record
    >>> seen = record(rnncore.RNN(3, 4, num_layers=2, bidirectional=True, rng=0), np.ones((5, 2, 3)))
    >>> seen.steps, seen.batch, seen.h[1][0].shape, seen.inputs[1].shape
    (5, 2, (5, 2, 4), (5, 2, 8))
    """
    if not isinstance(rnn, RNN):
        raise ArgumentTypeError(f"rnn: expected an rnncore.RNN, got {describe(rnn)}")
    call = rnn.network
    with call.engine.scope():
        layout, xt, h0s, plan = calls.prepare(call, x, h0, lengths, training, rng)
        weights = call.weights()
        found = network.trace(weights, xt, h0s, plan)
        inputs = network.inputs(xt, found.h, plan)
    return Record(
        spec=call.spec,
        params=dict(call.params),
        engine=call.engine,
        weights=weights,
        x=xt,
        h0=h0s,
        h=found.h,
        z=found.z,
        inputs=inputs,
        ragged=plan.ragged,
        plan=plan,
        layout=layout,
    )
