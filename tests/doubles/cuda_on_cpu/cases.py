"""Cases for the kernels, T, B and H multiples of nothing, and their answers from the float64 reference."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np

from rnncore import get_nonlinearity, scan

NUMPY = {"float": np.float32, "double": np.float64, "Half": np.float16, "BFloat16": ml_dtypes.bfloat16}
NONLINEARITY = {"TANH": "tanh", "RELU": "relu", "SIGMOID": "sigmoid", "IDENTITY": "identity"}
ROWS = QUAD = 4
# The design's bound for states: 64 roundings, of the largest state.
ROUNDINGS = 64


@dataclass(frozen=True)
class Case:
    """An instance of a template and what it is launched with."""

    regime: str
    storage: str
    step: str
    lanes: int
    states: int
    kept: int
    threads: int
    steps: int
    batch: int
    width: int
    tile: int = 0
    reverse: bool = False
    clip: float = math.inf
    in_place: bool = False
    transposed: bool = False

    @property
    def name(self):
        shape = f"{self.lanes}, {self.states}, {self.kept}, {self.threads}"
        return f"{self.regime}_scan<{self.storage}, {self.step}, {shape}>"

    @property
    def grid(self):
        if self.regime == "block":
            return (up(self.batch, self.states),)
        return (up(self.width, self.threads // self.lanes * ROWS), up(self.batch, self.tile))

    @property
    def shared(self):
        """Exactly as many bytes as the two copies of the states and the matrix's other quads take."""
        number = 8 if self.storage == "double" else 4
        quads = max(self.kept, up(self.width, QUAD * self.lanes))
        copies = 2 * self.states * quads * self.lanes * QUAD
        return (copies + (quads - self.kept) * ROWS * self.threads * QUAD) * number

    def other_ways(self):
        """It, and the same the other way round, in place, behind a bound and with a view of the matrix."""
        other = {"reverse": not self.reverse, "in_place": True, "clip": 0.75, "transposed": True}
        return (self, replace(self, **other), replace(self, reverse=True), replace(self, in_place=True))


def up(n, by):
    return -(-n // by)


# regime, storage, step, lanes, states, kept, threads; steps, batch, width; tile
CASES = [
    Case("block", "float", "TANH", 8, 1, 1, 32, 1, 1, 1),
    Case("block", "float", "TANH", 8, 1, 1, 32, 5, 3, 13),
    Case("block", "float", "TANH", 8, 1, 1, 32, 7, 2, 16),
    Case("block", "float", "RELU", 8, 2, 2, 96, 6, 3, 37),
    Case("block", "float", "SIGMOID", 8, 8, 1, 224, 4, 11, 101),  # three quads of the matrix in shared memory
    Case("block", "float", "IDENTITY", 8, 1, 1, 64, 3, 2, 31),
    Case("block", "float", "LINEAR", 8, 8, 1, 64, 5, 7, 30),
    Case("block", "double", "TANH", 8, 4, 2, 192, 5, 5, 71),  # threads without rows
    Case("block", "double", "LINEAR", 8, 4, 1, 96, 5, 5, 37),
    Case("block", "Half", "TANH", 8, 2, 1, 64, 6, 3, 29),
    Case("block", "BFloat16", "LINEAR", 8, 1, 2, 96, 5, 2, 45),
    Case("grid", "float", "TANH", 16, 2, 1, 64, 1, 1, 1, tile=1),
    Case("grid", "float", "TANH", 16, 2, 1, 64, 6, 5, 37, tile=3),  # two groups, of 3 and of 2 rows
    Case("grid", "float", "TANH", 16, 2, 1, 64, 4, 7, 69, tile=7),  # and a quad in shared memory
    Case("grid", "float", "RELU", 32, 8, 1, 64, 5, 11, 21, tile=11),
    Case("grid", "float", "SIGMOID", 32, 4, 1, 128, 3, 3, 133, tile=3),
    Case("grid", "float", "LINEAR", 16, 1, 1, 64, 5, 3, 19, tile=2),
    Case("grid", "double", "TANH", 16, 4, 2, 128, 4, 6, 97, tile=6),
    Case("grid", "double", "LINEAR", 32, 1, 1, 64, 5, 2, 11, tile=1),
    Case("grid", "Half", "LINEAR", 16, 2, 1, 64, 6, 3, 29, tile=3),
    Case("grid", "BFloat16", "IDENTITY", 16, 2, 1, 64, 3, 3, 17, tile=2),
]


class Guarded:
    """An array between two stretches of a number that the kernels do not compute, which have to stay as they are."""

    MARK = 57005.0

    def __init__(self, numbers, dtype):
        host = np.asarray(numbers).astype(dtype)
        pad = 2 * host[0].size if host.ndim == 3 else 64
        self.whole = np.full(host.size + 2 * pad, self.MARK, dtype)
        self.array = self.whole[pad : pad + host.size].reshape(host.shape)
        self.array[...] = host
        self.outside = (self.whole[:pad], self.whole[pad + host.size :])

    @property
    def intact(self):
        mark = self.whole.dtype.type(self.MARK)
        return all(bool((part == mark).all()) for part in self.outside)


def inputs(case, seed=0):
    """source, factor, first and matrix, rounded to the dtype; the matrix has a spectral radius of about 1."""
    rng = np.random.default_rng(seed)
    dtype, shape = NUMPY[case.storage], (case.steps, case.batch, case.width)
    matrix = (rng.standard_normal((case.width, case.width)) / math.sqrt(case.width)).astype(dtype)
    draw = lambda *of: rng.standard_normal(of).astype(dtype)  # noqa: E731
    return draw(*shape), rng.uniform(-1, 1, shape).astype(dtype), draw(*shape[1:]), matrix


def answer(case, source, factor, first, matrix):
    """The reference in float64, for A = matrix."""
    source, factor, first, matrix = (x.astype(np.float64) for x in (source, factor, first, matrix))
    with np.errstate(all="ignore"):
        if case.step == "LINEAR":
            return scan.linear(source, factor, first, matrix.T, reverse=case.reverse, xp=np)
        clip = None if math.isinf(case.clip) else case.clip
        f = get_nonlinearity(NONLINEARITY[case.step], clip=clip)
        return scan.nonlinear(source, first, matrix, nonlinearity=f, reverse=case.reverse, xp=np)


def run(library, case, source, factor, first, matrix, seed=0):
    """What the kernel stores, and what has been written where nothing belongs."""
    dtype = NUMPY[case.storage]
    out = np.full(source.shape, np.nan)
    held = {"source": source, "factor": factor, "first": first, "out": out}
    held = {name: Guarded(x, dtype) for name, x in held.items()}
    a = np.asfortranarray(matrix) if case.transposed else matrix
    target = ("factor" if case.step == "LINEAR" else "source") if case.in_place else "out"
    arrays = {name: guarded.array for name, guarded in held.items()}
    arguments = [
        *(arrays[name] for name in ("source", "factor", "first")),
        a,
        arrays[target],
        *(np.int64(stride // a.itemsize) for stride in a.strides),
        *map(np.int64, (case.steps, case.batch)),
        *map(np.int32, (case.width, case.reverse)),
        np.float64(case.clip),
    ]
    if case.regime == "grid":
        arguments += [np.int64(case.tile), np.zeros(case.grid[1] * 16, np.uint64)]
    library.launch(case.name, case.grid, (case.threads,), arguments, case.shared, seed=seed)
    kept = {"source": source, "factor": factor, "first": first}
    written = [name for name, x in held.items() if not x.intact]
    written += [name for name, x in kept.items() if name != target and x.tobytes() != arrays[name].tobytes()]
    return arrays[target].astype(np.float64), written


def fault(library, case, seed=0):
    """What is wrong with one run, or None."""
    given = inputs(case, seed)
    want = answer(case, *given)
    got, written = run(library, case, *given, seed=seed)
    if written:
        return f"wrote outside its result: {written}"
    bound = ROUNDINGS * float(ml_dtypes.finfo(NUMPY[case.storage]).eps) * max(1.0, float(np.abs(want).max()))
    error = np.abs(got - want).max()
    return None if error <= bound else f"off by {error}, more than {bound}"
