"""The overhead of small calls: microseconds, and Python functions entered, at T = B = 1 and H = 16.

``python -m benchmarks.calls`` measures every backend in one run, in interleaved rounds, and prints Markdown. It uses public
names only, so it also runs on other versions: ``PYTHONPATH=OTHER:OTHER/backends python benchmarks/calls.py``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import numpy as np

import rnncore
from benchmarks.markdown import table

SIZE = 16
BACKENDS = {"numpy": "float64", "numba": "float64", "torch": "float32"}
# A round repeats a call for about this many seconds.
ROUND = 0.005

Call = Callable[[], Any]


def bare_cell() -> Call:
    """Return one step written in plain NumPy, the lower bound for every library."""
    draw = np.random.default_rng(0).standard_normal
    (w_ih, w_hh), (b_ih, b_hh), (x, h) = draw((2, SIZE, SIZE)) / SIZE**0.5, draw((2, SIZE)), draw((2, 1, SIZE))
    return lambda: np.tanh(x @ w_ih.T + b_ih + h @ w_hh.T + b_hh)


def calls(backend: str, dtype: str) -> dict[str, Call]:
    """Return the calls of one backend, by name."""
    rnn = rnncore.RNN(SIZE, SIZE, backend=backend, dtype=dtype, rng=0)
    cell = rnn.cell()
    numbers = np.random.default_rng(0).standard_normal((1, 1, SIZE)).astype(dtype)
    x = rnncore.get_backend(backend).asarray(numbers, dtype=rnn.dtype, device=rnn.device)
    h = 0 * x[0]

    def vjp() -> Any:
        output, _, pullback = rnn.vjp(x)
        return pullback(output)

    return {"rnn(x)": lambda: rnn(x), "cell(x, h)": lambda: cell(x[0], h), "vjp + pullback": vjp}


def microseconds(candidates: dict[Any, Call], rounds: int) -> dict[Any, float]:
    """Return the median over interleaved rounds of the mean time of one call; the first round only warms up."""
    taken: dict[Any, list[float]] = {name: [] for name in candidates}
    repeats = dict.fromkeys(candidates, 3)
    for number in range(rounds + 1):
        for name, call in candidates.items():
            began = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            seconds = (time.perf_counter() - began) / repeats[name]
            if number:
                taken[name].append(1e6 * seconds)
            repeats[name] = max(3, int(ROUND / seconds))
    return {name: statistics.median(values) for name, values in taken.items()}


def entered(call: Call) -> tuple[int, int, int]:
    """Count the Python functions that a call enters: in total, distinct ones, and the files they are in."""
    found: list[CodeType] = []

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            found.append(frame.f_code)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    inside = found[1:]  # without the call's own function here
    return len(inside), len(set(inside)), len({code.co_filename for code in inside} - {__file__})


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calls", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--backends", nargs="+", choices=tuple(BACKENDS), default=tuple(BACKENDS))
    options = parser.parse_args()
    candidates: dict[Any, Call] = {("a cell in plain NumPy", ""): bare_cell()}
    for backend in options.backends:
        candidates |= {(name, backend): call for name, call in calls(backend, BACKENDS[backend]).items()}
    times = microseconds(candidates, options.rounds)
    rows = [[*key, f"{times[key]:.1f}", *map(str, entered(call))] for key, call in candidates.items()]
    print(f"rnncore from {rnncore.__path__[0]}; medians of {options.rounds} rounds; T = B = 1, H = {SIZE}\n")
    print(table(["call", "backend", "us", "functions entered", "distinct", "files"], rows))


if __name__ == "__main__":
    main()
