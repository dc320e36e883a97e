"""The cases, fixed before anything was measured, and their numbers, drawn from one seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

Host: TypeAlias = "np.ndarray[Any, Any]"
Numbers: TypeAlias = "dict[str, Host]"

# T, B, H; I = H. Chosen before there was a kernel, so that losses are published too.
SHAPES = (
    (256, 1, 64), (1024, 1, 16), (128, 32, 128), (100, 16, 256),
    (512, 64, 512), (50, 1024, 512), (4096, 16, 256), (5000, 1, 128),
)  # fmt: skip
QUICK_SHAPES = ((20, 1, 8), (12, 6, 16))
LAYERS, NONLINEARITIES, DTYPES, THREADS = (1, 4), ("tanh", "relu"), ("float32", "float64"), (1, 2)
# For the cost of one more step and one more row. Below 16 rows a further row costs almost nothing in any library.
STEPS_SWEEP = tuple((steps, 16, 128) for steps in (128, 256, 512, 1024, 2048, 4096))
ROWS_SWEEP = tuple((128, rows, 128) for rows in (16, 32, 64, 128, 256, 512))
DENORMAL_SHAPE = (2048, 1, 128)
PASSES = ("forward", "both")
# Wider matrices get a spectral radius of about 1 by the circular law: their eigenvalues would take longer than the benchmark.
EIGENVALUES = 512


@dataclass(frozen=True)
class Case:
    """One computation: a network, a batch, a precision, a number of threads and a device.

    Parameters
    ----------
    steps, batch, width : int
        T, B and H = I.
    layers : int
    nonlinearity : {"tanh", "relu"}
    dtype : {"float32", "float64"}
    threads : int
    kind : {"usual", "vanishing", "vanishing, loss everywhere"}
        "usual": W_hh has spectral radius 1, x has variance 1, and every output and h_n have a cotangent. "vanishing": the
        loss is at the last step, and each step backwards multiplies the gradient by 0.95, so that it becomes denormal
        before it is zero. Many processors multiply denormal numbers a hundred times more slowly. "vanishing, loss
        everywhere": the same work without denormal numbers.
    device : {"cpu", "cuda"}
    """

    steps: int
    batch: int
    width: int
    layers: int = 1
    nonlinearity: str = "tanh"
    dtype: str = "float32"
    threads: int = 1
    kind: str = "usual"
    device: str = "cpu"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(T, B, H)."""
        return self.steps, self.batch, self.width

    def flops(self, of: str) -> int:
        """Count the floating-point operations of all products; a multiplication and an addition are two.

        Forward has two products a layer, x W_ih^T and h W_hh^T. Backward has four more of the same size: the gradients of
        x, h and both weights.

        >>> Case(1, 1, 10).flops("forward"), Case(1, 1, 10).flops("both")
        (400, 1200)
        """
        forward = 4 * self.steps * self.batch * self.width**2 * self.layers
        return forward if of == "forward" else 3 * forward

    def to_json(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults; ``Case(**fields)`` is the inverse."""
        return {name: value for name, value in vars(self).items() if value != getattr(Case, name, None)}


@dataclass(frozen=True)
class Problem:
    """The numbers of a case, named as in the state of ``torch.nn.RNN``.

    x (T, B, I), h0 (L, B, H), the cotangents d_output (T, B, H) and d_h_n (L, B, H), and params.
    """

    case: Case
    x: Host
    h0: Host
    d_output: Host
    d_h_n: Host
    params: Numbers

    def astype(self, dtype: str) -> Problem:
        """Return a copy in another precision."""
        return Problem.from_numbers(self.case, {n: np.array(v, dtype=dtype) for n, v in self.to_numbers().items()})

    def first(self, steps: int) -> Problem:
        """Return the problem of the first steps only."""
        case = replace(self.case, steps=min(steps, self.case.steps))
        return replace(self, case=case, x=self.x[:steps], d_output=self.d_output[:steps])

    def to_numbers(self) -> Numbers:
        """Return all arrays by name; from_numbers is the inverse."""
        return {"x": self.x, "h0": self.h0, "d_output": self.d_output, "d_h_n": self.d_h_n} | self.params

    @staticmethod
    def from_numbers(case: Case, numbers: Mapping[str, Host]) -> Problem:
        """Make a problem of named arrays."""
        params = dict(numbers)
        x, h0, d_output, d_h_n = (params.pop(n) for n in ("x", "h0", "d_output", "d_h_n"))
        return Problem(case, x, h0, d_output, d_h_n, params)

    def layer(self, k: int) -> tuple[Host, Host, Host, Host]:
        """Return weight_ih, weight_hh, bias_ih and bias_hh of one layer."""
        p = self.params
        return p[f"weight_ih_l{k}"], p[f"weight_hh_l{k}"], p[f"bias_ih_l{k}"], p[f"bias_hh_l{k}"]


def make(case: Case) -> Problem:
    """Draw the numbers, the same on every call, in float32 first: one answer of the oracle serves both precisions."""
    rng = np.random.default_rng(2026)
    steps, batch, width = case.shape
    vanishing = case.kind != "usual"
    # Small in a vanishing run, so that f' is about 1 and only the weights shrink the gradient.
    size = 0.01 if vanishing else 1.0

    def normal(*shape: int, scale: float = 1.0) -> Host:
        drawn: Host = rng.standard_normal(shape, dtype=np.float32)
        drawn *= np.float32(scale)
        return drawn

    params: Numbers = {}
    for k in range(case.layers):
        drawn = normal(width, width).astype(np.float64)
        # Orthogonal up to a factor, so that every direction shrinks alike and all become denormal together.
        if vanishing:
            recurrent = 0.95 * np.linalg.qr(drawn)[0]
        else:
            recurrent = drawn / (max(abs(np.linalg.eigvals(drawn))) if width <= EIGENVALUES else width**0.5)
        params[f"weight_ih_l{k}"] = normal(width, width, scale=width**-0.5)
        params[f"weight_hh_l{k}"] = recurrent.astype(np.float32)
        params[f"bias_ih_l{k}"] = normal(width, scale=0.1 * size)
        params[f"bias_hh_l{k}"] = normal(width, scale=0.1 * size)
    x, h0 = normal(steps, batch, width, scale=size), normal(case.layers, batch, width, scale=0.5 * size)
    d_output, d_h_n = normal(steps, batch, width), normal(case.layers, batch, width)
    if case.kind == "vanishing":
        d_output[:-1] = 0
    return Problem(case, x, h0, d_output, d_h_n, params).astype(case.dtype)


def save(folder: Path, numbers: Mapping[str, Host]) -> None:
    """Write each array to a file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in numbers.items():
        np.save(folder / f"{name}.npy", value)


def load(folder: Path) -> Numbers:
    """Return what save wrote, mapped into memory."""
    return {path.stem: np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))}
