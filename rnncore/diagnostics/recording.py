"""One run of a network with all its states: what every probe reads.

:func:`record` runs the network once. A :class:`Lane` is one layer in one direction of that run, and a probe is a function
of a lane.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np

from rnncore.arguments import Rng, describe, integer, shown
from rnncore.backend.arrays import check_floating
from rnncore.diagnostics.lane import Lane
from rnncore.diagnostics.numerics import device
from rnncore.diagnostics.results import Lanes
from rnncore.errors import ArgumentTypeError, ArgumentValueError
from rnncore.model.rnn import RNN
from rnncore.network import calls, stack
from rnncore.network.engine import Engine
from rnncore.network.layout import Layout
from rnncore.network.ragged import Ragged
from rnncore.network.step import Weights
from rnncore.nonlinearity.nonlinearity import Nonlinearity
from rnncore.spec import RNNSpec
from rnncore.typing import Array, Host, Namespace

__all__ = ["Record", "check_record", "lane_probe", "record", "run"]

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Record:
    """One run of a network, time-first whatever the layout of the call.

    Attributes
    ----------
    spec : RNNSpec
    params : mapping of str to array
        torch's names.
    engine : Engine
    weights : list of list of Weights
        By [layer][direction], with the sum of the two biases.
    x : array (T, B, I)
    h0 : list of list of array (B, H_k)
    h, z : list of list of array (T, B, H_k)
        States and pre-activations (before any clip), 0 in the padding.
    inputs : list of array (T, B, I_k)
        What each layer reads.
    ragged : Ragged or None
        The lengths, where they are not all T.
    plan : Plan
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
    plan: stack.Plan
    layout: Layout

    @property
    def xp(self) -> Namespace:
        """The namespace."""
        return self.engine.xp

    @property
    def nonlinearity(self) -> Nonlinearity:
        """The nonlinearity of all layers."""
        return self.spec.nonlinearity

    @property
    def steps(self) -> int:
        """Number of steps, T."""
        return int(self.x.shape[0])

    @property
    def batch(self) -> int:
        """Number of rows, B."""
        return int(self.x.shape[1])

    @property
    def directions(self) -> int:
        """Number of directions, 1 or 2."""
        return self.spec.num_directions

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """The valid steps of each row; T where no lengths were given."""
        return (self.steps,) * self.batch if self.ragged is None else self.ragged.lengths

    @cached_property
    def valid(self) -> Host:
        """Host array (T, B) of bool: whether the step belongs to the row."""
        return np.arange(self.steps)[:, None] < np.asarray(self.lengths, dtype=np.int64)[None, :]

    @cached_property
    def lanes(self) -> tuple[Lane, ...]:
        """Every layer and direction, the lowest layer first."""
        return tuple(
            Lane(
                k,
                d,
                self.weights[k][d],
                self.inputs[k],
                self.h0[k][d],
                self.h[k][d],
                self.z[k][d],
                self.lengths,
                self.valid,
                self.ragged,
                self.engine,
                self.nonlinearity,
                self.spec.suffix(k, d),
            )
            for k in range(self.spec.num_layers)
            for d in range(self.directions)
        )

    def lane(self, layer: int = -1, direction: int = 0) -> Lane:
        """One layer in one direction; by default the top layer.

        Raises
        ------
        ArgumentValueError
            For a layer or direction that the network lacks.
        """
        layers = self.spec.num_layers
        for name, value, low, count in (
            ("layer", layer, -layers, layers),
            ("direction", direction, 0, self.directions),
        ):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value < count:
                raise ArgumentValueError(f"{name}: expected an int in [0, {count - 1}], got {shown(value)}")
        return self.lanes[layer % layers * self.directions + direction]

    def layer(self, k: int) -> tuple[Lane, ...]:
        """The lanes of one layer."""
        layers = self.spec.num_layers
        k = integer("k", k, f"an int in [0, {layers - 1}]", lambda n: 0 <= n < layers)
        return self.lanes[k * self.directions : (k + 1) * self.directions]

    def mask_below(self, k: int) -> Array | None:
        """The dropout mask between layer k and the one below, if there is one."""
        masks, layers = self.plan.masks, self.spec.num_layers
        k = integer("k", k, f"an int in [0, {layers - 1}]", lambda n: 0 <= n < layers)
        return masks[k - 1] if 0 < k <= len(masks) else None

    def map(self, probe: Callable[..., R], *by_lane: Any, **options: Any) -> Lanes[R]:
        """Run a probe on every lane.

        Parameters
        ----------
        probe : callable
            Such as :func:`rnncore.diagnostics.saturation`.
        *by_lane
            Arguments by [layer][direction], such as the two results of :func:`rnncore.diagnostics.flow`.
        **options
            Passed to every call.

        Returns
        -------
        Lanes
            The results by [layer][direction].
        """
        if not callable(probe):
            raise ArgumentTypeError(f"probe: expected a function of a lane, got {describe(probe)}")
        found = [probe(lane, *(_of_lane(a, lane) for a in by_lane), **options) for lane in self.lanes]
        return Lanes(tuple(found[i : i + self.directions]) for i in range(0, len(found), self.directions))

    def masked(self, x: Array) -> Array:
        """x (T, B, ...), 0 in the padding."""
        return x if self.ragged is None else self.ragged.masked(x)

    def host(self, x: Array) -> Host:
        """Numbers on the host in float64."""
        if not self.engine.backend.is_native(x):
            raise ArgumentTypeError(f"x: expected an array of backend {self.engine.backend.name!r}, got {describe(x)}")
        check_floating("x", x)
        return device.on_host(x, self.engine)


def _of_lane(results: Any, lane: Lane) -> Any:
    """The result of one lane, among results by [layer][direction]."""
    try:
        return results[lane.layer][lane.direction]
    except (TypeError, LookupError):
        raise ArgumentTypeError(
            f"expected results by [layer][direction], such as those of rnncore.diagnostics.flow, got {describe(results)}"
        ) from None


def check_record(record: Any) -> None:
    """Raise ArgumentTypeError for anything but a Record."""
    if not isinstance(record, Record):
        raise ArgumentTypeError(
            f"record: expected what rnncore.diagnostics.record(rnn, x) returns, got {describe(record)}"
        )


def lane_probe(*by_lane: str, alone: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a probe of a lane take a whole record too, as in version 0.1, with a DeprecationWarning.

    Parameters
    ----------
    *by_lane : str
        The names that the probe's arguments by [layer][direction] had.
    alone : bool
        Whether the old form had the options `layer` and `direction` and returned the result of one lane.
    """

    def decorate(probe: Callable[P, R]) -> Callable[P, R]:
        name = getattr(probe, "__name__", "probe")

        @wraps(probe)
        def run(lane: Any = None, *args: Any, record: Any = None, **options: Any) -> Any:
            call: Callable[..., Any] = probe
            lane = record if lane is None else lane
            if isinstance(lane, Lane):
                return call(lane, *args, **options)
            if not isinstance(lane, Record):
                raise ArgumentTypeError(
                    f"lane: expected a lane of what rnncore.diagnostics.record(rnn, x) returns, such as record.lane(), "
                    f"got {describe(lane)}"
                )
            text = f"{name}(record) is deprecated: write {name}(record.lane(), ...), or record.map({name}, ...) for all lanes"
            warnings.warn(text, DeprecationWarning, stacklevel=2)
            args = (*args, *(options.pop(n) for n in by_lane[len(args) :] if n in options))
            nested, rest = args[: len(by_lane)], args[len(by_lane) :]
            if alone:
                one = lane.lane(options.pop("layer", -1), options.pop("direction", 0))
                return call(one, *(_of_lane(a, one) for a in nested), *rest, **options)
            return lane.map(lambda one, *own, **more: call(one, *own, *rest, **more), *nested, **options)

        return run

    return decorate


def record(
    rnn: RNN, x: Array, h0: Any = None, lengths: Any = None, *, training: bool = False, rng: Rng = None
) -> Record:
    """Run the network once and keep everything: what is done to x, h0 or the weights later does not change the record.

    Parameters
    ----------
    rnn : RNN
    x, h0, lengths, training, rng
        As for a call of the network.

    Returns
    -------
    Record
        Time-first arrays on the network's device, with copies of x, h0 and the parameters.

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
    return run(rnn, x, h0, lengths, training, rng)


def run(
    rnn: RNN,
    x: Array,
    h0: Any = None,
    lengths: Any = None,
    training: bool = False,
    rng: Rng = None,
    *,
    own: bool = True,
) -> Record:
    """See :func:`record`. With `own` False x, h0 and the parameters are not copied, for a record that is not kept."""
    if not isinstance(rnn, RNN):
        raise ArgumentTypeError(f"rnn: expected an rnncore.RNN, got {describe(rnn)}")
    call = rnn.network
    with call.engine.scope():
        layout, xt, h0s, plan = calls.prepare(call, x, h0, lengths, training, rng)
        if not (plan.ragged is None or isinstance(plan.ragged, Ragged)):
            raise ArgumentTypeError(
                f"lengths: expected numbers, which a record reads, got a traced {describe(lengths)}"
            )
        copy = call.engine.copy
        if own:
            xt, call = copy(xt), call.with_params({name: copy(p) for name, p in call.params.items()})
        if own or h0 is None:  # without h0, zeros that the engine may share between calls
            h0s = [[copy(h) for h in row] for row in h0s]
        weights = call.weights()
        found = stack.trace(weights, xt, h0s, plan)
        inputs = stack.inputs(xt, found.h, plan)
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
