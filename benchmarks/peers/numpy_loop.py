"""A plain loop of NumPy or CuPy calls, as in a first version: two products, a sum and a function for every step."""

from __future__ import annotations

import importlib
from typing import Any

from benchmarks import naive
from benchmarks.case import Numbers, Problem
from benchmarks.peers import Prepared, cuda


def loop(problem: Problem) -> Prepared:
    """The oracle's own code, in the dtype of the case."""
    return _prepared(problem)


def cupy(problem: Problem) -> Prepared:
    """The same on a GPU."""
    library: Any = importlib.import_module("cupy")
    numbers = {n: library.asarray(v) for n, v in problem.to_numbers().items()}
    made = _prepared(Problem.from_numbers(problem.case, numbers), library)
    return cuda.prepared(made, "cupy", lambda found: {n: v.get() for n, v in found.items()})


def _prepared(problem: Problem, *xp: Any) -> Prepared:
    def forward() -> Numbers:
        states, h_n = naive.forward(problem, *xp)
        return {"output": states[-1], "h_n": h_n}

    return Prepared(forward, lambda: naive.both(problem, *xp), lambda found: found)
