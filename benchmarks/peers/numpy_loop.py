"""A plain loop of NumPy calls, as one writes it first: a product of each kind, a sum and a function for every step."""

from __future__ import annotations

from benchmarks import naive
from benchmarks.case import Host, Numbers, Problem
from benchmarks.peers import Prepared


def loop(problem: Problem) -> Prepared:
    """The oracle's own code, in the dtype of the case."""

    def forward() -> Numbers:
        states, h_n = naive.forward(problem)
        return {"output": states[-1], "h_n": h_n}

    def read(found: dict[str, Host]) -> Numbers:
        return found

    return Prepared(forward, lambda: naive.both(problem), read)
