"""Peers of the benchmark suite that are known beforehand: right, wrong, failing, dying, greedy, and telling of themselves."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks import naive
from benchmarks.peers import Prepared, Unsupported, host_clock, numpy_loop, rnncore_models


def right(problem):
    return Prepared(lambda: naive.both(problem), lambda: naive.both(problem), lambda found: found, "the oracle's code")


def wrong_weight(problem):
    """The gradient of one weight is off by a thousandth: a missing factor, not rounding."""

    def both():
        found = naive.both(problem)
        return found | {"weight_hh_l0": found["weight_hh_l0"] * np.float32(1.001)}

    return Prepared(both, both, lambda found: found)


def rnncore_cupy(problem):
    """The stand-in for CuPy has events of no duration."""
    return replace(rnncore_models.cupy(problem), clock=host_clock, peak=None)


def cupy_loop(problem):
    return replace(numpy_loop.cupy(problem), clock=host_clock, peak=None)


def forward_only(problem):
    return Prepared(lambda: naive.both(problem), None, lambda found: found)


def unsupported(problem):
    raise Unsupported("it has no such thing")


def failing(problem):
    print("this line is no answer")
    raise ValueError("it does\nnot work")


def dying(problem):
    os._exit(3)


def greedy(problem):
    """Backward has 64 MiB for a while, that it does not return; laying out the case had twice as much, before."""
    np.ones(128 * 2**17)

    def both():
        np.ones(64 * 2**17)
        return naive.both(problem)

    return Prepared(lambda: naive.both(problem), both, lambda found: found)


def telling(problem):
    """Writes down its variables, processors and the states of the processes beside it, every time it runs."""
    said = Path(os.environ["SAID"])

    def both():
        siblings = [int(p) for p in said.with_suffix(".pids").read_text().split()]
        states = {p: Path(f"/proc/{p}/stat").read_text().rpartition(")")[2].split()[0] for p in siblings}
        seen = {
            "env": dict(os.environ),
            "processors": len(os.sched_getaffinity(0)),
            "states": states,
            "pid": os.getpid(),
        }
        said.write_text(json.dumps(seen))
        return naive.both(problem)

    return Prepared(both, both, lambda found: found)
