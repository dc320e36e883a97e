"""What is computed: the cases, fixed before anything was measured, and their numbers, drawn once from one seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

Host: TypeAlias = "np.ndarray[Any, Any]"
Numbers: TypeAlias = "dict[str, Host]"

# T, B, H; the input is as wide as the state. Named in the issue before there was a kernel, losses included.
SHAPES = (
    (256, 1, 64),
    (1024, 1, 16),
    (128, 32, 128),
    (100, 16, 256),
    (512, 64, 512),
    (50, 1024, 512),
    (4096, 16, 256),
    (5000, 1, 128),
)
QUICK_SHAPES = ((20, 1, 8), (12, 6, 16))
LAYERS, NONLINEARITIES, DTYPES, THREADS = (1, 4), ("tanh", "relu"), ("float32", "float64"), (1, 2)
# The cost of one more step and of one more row: one size grows, the other two stay. The rows begin where a product of
# matrices is one: below that a row more costs next to nothing, on any library.
STEPS_SWEEP = tuple((steps, 16, 128) for steps in (128, 256, 512, 1024, 2048, 4096))
ROWS_SWEEP = tuple((128, rows, 128) for rows in (16, 32, 64, 128, 256, 512))
DENORMAL_SHAPE = (2048, 1, 128)
PASSES = ("forward", "both")


@dataclass(frozen=True)
class Case:
    """One computation: a network, a batch, a precision, and how many threads may do it.

    Parameters
    ----------
    steps, batch, width : int
        T, B and H = I.
    layers : int
    nonlinearity : {"tanh", "relu"}
    dtype : {"float32", "float64"}
    threads : int
    kind : {"usual", "vanishing", "vanishing, loss everywhere"}
        "usual" has W_hh of spectral radius 1, x of variance 1 and cotangents on every output and on h_n. In "vanishing" the
        loss is at the last step only and every step backwards multiplies the gradient by 0.95: it passes through the
        denormal numbers, which many processors multiply a hundred times more slowly, on its way to zero. "vanishing, loss
        everywhere" is the same work without them, to compare with.
    """

    steps: int
    batch: int
    width: int
    layers: int = 1
    nonlinearity: str = "tanh"
    dtype: str = "float32"
    threads: int = 1
    kind: str = "usual"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(T, B, H)."""
        return self.steps, self.batch, self.width

    def flops(self, of: str) -> int:
        """Floating-point operations of all products: a multiplication and an addition are two.

        Forward has two products a layer, x W_ih^T and h W_hh^T; backward has four more of the same size: to x, to h, and the
        gradients of both weights.

        >>> Case(1, 1, 10).flops("forward"), Case(1, 1, 10).flops("both")
        (400, 1200)
        """
        forward = 4 * self.steps * self.batch * self.width**2 * self.layers
        return forward if of == "forward" else 3 * forward

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> Case:
        """The inverse of to_json."""
        return Case(**fields)


@dataclass(frozen=True)
class Problem:
    """The numbers of a case, in its dtype, under the names of ``torch.nn.RNN``'s state.

    x (T, B, I), h0 (L, B, H), params, and the cotangents d_output (T, B, H) and d_h_n (L, B, H).
    """

    case: Case
    x: Host
    h0: Host
    params: Numbers
    d_output: Host
    d_h_n: Host

    def astype(self, dtype: str) -> Problem:
        """The same numbers in another precision, in memory of their own."""
        arrays = [np.array(v, dtype=dtype) for v in (self.x, self.h0, self.d_output, self.d_h_n)]
        params = {n: np.array(v, dtype=dtype) for n, v in self.params.items()}
        return Problem(self.case, arrays[0], arrays[1], params, arrays[2], arrays[3])

    def to_numbers(self) -> Numbers:
        """All arrays by name; from_numbers is the inverse."""
        return {"x": self.x, "h0": self.h0, "d_output": self.d_output, "d_h_n": self.d_h_n} | self.params

    @staticmethod
    def from_numbers(case: Case, numbers: Mapping[str, Host]) -> Problem:
        """The problem of a case, in its dtype."""
        held = dict(numbers)
        x, h0, d_output, d_h_n = (held.pop(n) for n in ("x", "h0", "d_output", "d_h_n"))
        return Problem(case, x, h0, held, d_output, d_h_n).astype(case.dtype)

    def layer(self, k: int) -> tuple[Host, Host, Host, Host]:
        """weight_ih, weight_hh, bias_ih and bias_hh of one layer."""
        p = self.params
        return p[f"weight_ih_l{k}"], p[f"weight_hh_l{k}"], p[f"bias_ih_l{k}"], p[f"bias_hh_l{k}"]


def make(case: Case) -> Problem:
    """Draw the numbers, the same on every call; as float32 first, so that one oracle's answer serves both precisions."""
    rng = np.random.default_rng(2026)
    steps, batch, width = case.shape
    vanishing = case.kind != "usual"
    # Small in a vanishing run, so that f' is about 1 and the weights alone set the pace.
    size = 0.01 if vanishing else 1.0

    def normal(*shape: int, scale: float = 1.0) -> Host:
        drawn: Host = rng.standard_normal(shape, dtype=np.float32)
        drawn *= np.float32(scale)
        return drawn

    params: Numbers = {}
    for k in range(case.layers):
        drawn = normal(width, width).astype(np.float64)
        # Orthogonal but for a factor, every direction shrinks alike: all of them are denormal together.
        recurrent = 0.95 * np.linalg.qr(drawn)[0] if vanishing else drawn / max(abs(np.linalg.eigvals(drawn)))
        params[f"weight_ih_l{k}"] = normal(width, width, scale=width**-0.5)
        params[f"weight_hh_l{k}"] = recurrent.astype(np.float32)
        params[f"bias_ih_l{k}"] = normal(width, scale=0.1 * size)
        params[f"bias_hh_l{k}"] = normal(width, scale=0.1 * size)
    x, h0 = normal(steps, batch, width, scale=size), normal(case.layers, batch, width, scale=0.5 * size)
    d_output, d_h_n = normal(steps, batch, width), normal(case.layers, batch, width)
    if case.kind == "vanishing":
        d_output[:-1] = 0
    return Problem(case, x, h0, params, d_output, d_h_n).astype(case.dtype)


def save(folder: Path, numbers: Mapping[str, Host]) -> None:
    """Write arrays, a file each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in numbers.items():
        np.save(folder / f"{name}.npy", value)


def load(folder: Path) -> Numbers:
    """What save wrote, as views of the files: read when they are used."""
    return {path.stem: np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))}
