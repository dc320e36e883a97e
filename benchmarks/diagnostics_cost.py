"""The cost of the cheap probes, in units of one backward pass, and products of Jacobians in units of one recurrent pass.

In one process and in interleaved rounds, so that a slow moment of the machine meets every candidate; medians of the rounds.
Prints Markdown. Run it with ``python benchmarks/diagnostics_cost.py [--rounds N] [--quick]``.

The goals: flow + saturation + horizon <= 1.3 x one backward pass (``rnn.vjp`` and its pullback: the forward pass, the
backward scan and the gradients of all parameters); one sweep of k directions through the product <= 1.5 k x one pass of the
recurrence (the linear scan of the same steps, rows and units).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import rnncore
from rnncore import diagnostics
from rnncore.diagnostics.jacobians.sweep import JacobianChain

GOAL, GOAL_PER_DIRECTION = 1.3, 1.5
DIRECTIONS = (1, 2, 8)
# T, B, H: a long run of few rows, a common batch, a wide layer, a small net.
SHAPES = ((2000, 4, 64), (200, 32, 128), (200, 32, 256), (64, 32, 64), (500, 8, 32))
QUICK = ((64, 8, 16),)


@dataclass(frozen=True)
class Times:
    """Median seconds by name."""

    shape: tuple[int, int, int]
    seconds: Mapping[str, float]

    def ratio(self, name: str, unit: str) -> float:
        """How many times as long as."""
        return self.seconds[name] / self.seconds[unit]


def measure(candidates: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The median of each, after one round that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for n in range(rounds + 1):
        for name, run in candidates.items():
            began = time.perf_counter()
            run()
            if n:
                taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in taken.items()}


def cheap(shape: tuple[int, int, int], rounds: int, dtype: str) -> Times:
    """The probes of a loss at the last step, and of one at every step, and what they are compared with."""
    steps, batch, width = shape
    rnn = rnncore.RNN(16, width, init={"weight_hh": "orthogonal"}, rng=0, backend="numpy", dtype=dtype)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((steps, batch, 16)).astype(dtype)
    every = rng.standard_normal((steps, batch, width)).astype(dtype)
    last = every[-1:].copy()
    seen = diagnostics.record(rnn, x)
    lane = seen.lane()
    of_last = _of_lane(*diagnostics.flow(seen, None, [[last[0]]]))
    of_every = _of_lane(*diagnostics.flow(seen, every))
    _, _, pullback = rnn.vjp(x)

    def backward() -> None:
        rnn.vjp(x)[2](d_h_n=last)

    def three(d_output: Any, d_last: Any) -> None:
        found = _of_lane(*diagnostics.flow(seen, d_output, d_last))
        diagnostics.saturation(lane)
        diagnostics.horizon(lane, *found)

    candidates = {
        "backward": backward,
        "pullback": lambda: pullback(d_h_n=last),
        "record": lambda: diagnostics.record(rnn, x),
        "flow": lambda: diagnostics.flow(seen, None, [[last[0]]]),
        "saturation": lambda: diagnostics.saturation(lane),
        "horizon": lambda: diagnostics.horizon(lane, *of_last),
        "horizon, all losses": lambda: diagnostics.horizon(lane, *of_every),
        "three": lambda: three(None, [[last[0]]]),
        "three, all losses": lambda: three(every, None),
        "diagnose": lambda: diagnostics.diagnose(rnn, x, (None, last)),
    }
    return Times(shape, measure(candidates, rounds))


def _of_lane(flows: Any, deltas: Any) -> tuple[Any, Any]:
    """The gradient of a network of one lane."""
    return flows[0][0], deltas[0][0]


def products(shape: tuple[int, int, int], rounds: int, dtype: str) -> Times:
    """One sweep of k directions through the whole product, without and with its orthonormalisations."""
    steps, batch, width = shape
    rnn = rnncore.RNN(16, width, init={"weight_hh": "orthogonal"}, rng=0, backend="numpy", dtype=dtype)
    x = np.random.default_rng(0).standard_normal((steps, batch, 16)).astype(dtype)
    lane = diagnostics.record(rnn, x).lane()
    engine, d, w = lane.engine, lane.slope(), lane.weights.weight_hh
    zeros, h0 = np.zeros_like(d), np.zeros_like(d[0])
    chain = JacobianChain.of_network(d, w, engine=engine)

    def sweep(k: int) -> Callable[[], Any]:
        v = np.random.default_rng(0).standard_normal((batch, k, width)).astype(dtype)
        return lambda: chain.push(v, 0, steps)

    def whole(k: int) -> Callable[[], Any]:
        return lambda: diagnostics.product(lane, k, max_sweeps=2)

    candidates: dict[str, Callable[[], Any]] = {
        "forward": lambda: rnn(x),
        "scan": lambda: engine.linear(zeros, d, h0, np.matrix_transpose(w), reverse=False),
    }
    for k in DIRECTIONS:
        candidates[f"sweep {k}"] = sweep(k)
        candidates[f"product {k}"] = whole(k)
    return Times(shape, measure(candidates, rounds))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="one small shape, to see that it runs")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    options = parser.parse_args()
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    # Threads that wait for each other on a busy machine would be all that is measured.
    with threadpool_limits(1):
        _tables(options)


def _tables(options: argparse.Namespace) -> None:
    shapes = QUICK if options.quick else SHAPES
    names = ("record", "flow", "saturation", "horizon", "horizon, all losses", "three", "three, all losses", "diagnose")
    print(
        f"In units of one backward pass, NumPy, {options.dtype}, {options.rounds} rounds; the goal of `three` is {GOAL}.\n"
    )
    print("| T, B, H | backward, ms | pullback alone | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 3) + "|")
    for shape in shapes:
        found = cheap(shape, options.rounds, options.dtype)
        cells = [f"{found.ratio(name, 'backward'):.2f}" for name in ("pullback", *names)]
        print(f"| {', '.join(map(str, shape))} | {1e3 * found.seconds['backward']:.1f} | " + " | ".join(cells) + " |")
    print(
        f"\nIn units of k passes of the linear scan over the same steps and rows; the goal of a sweep is "
        f"{GOAL_PER_DIRECTION}. `product` is at two sweeps, of k + 2 directions each.\n"
    )
    columns = [f"{what} {k}" for what in ("sweep", "product") for k in DIRECTIONS]
    print("| T, B, H | scan, ms | forward, ms | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 3) + "|")
    for shape in shapes:
        found = products(shape, options.rounds, options.dtype)
        cells = [f"{found.ratio(name, 'scan') / int(name.split()[1]):.2f}" for name in columns]
        ms = [f"{1e3 * found.seconds[name]:.1f}" for name in ("scan", "forward")]
        print(f"| {', '.join(map(str, shape))} | " + " | ".join([*ms, *cells]) + " |")


if __name__ == "__main__":
    main()
