"""Choose the kernel of a scan and its launch parameters, from the width, the batch and the device's limits.

There are three regimes. In "block" each block holds the whole matrix in registers and shared memory, and some rows of the
batch. In "grid" a row of blocks shares the matrix; the blocks wait for each other after each step, so all of them have to be
resident at once. In "product" each step is one cuBLAS product and one elementwise kernel.

The costs below rank candidates; they are rough estimates from published figures of Hopper devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

__all__ = ["Limits", "Plan", "choose"]

# Constants of the kernels: rows of the matrix for each thread, and numbers in a quad (cuda/product.cu).
ROWS = QUAD = 4
WARP = 32
MAX_THREADS = 1024
# A thread cannot address more registers, and the compiler allocates them in units of eight.
MAX_REGISTERS, REGISTER_UNIT = 255, 8
# Registers for everything but matrix and sums, by ptxas for sm_80 to sm_90 (tests/backends/cupy/test_compile.py).
OTHER_REGISTERS = 60
MAX_KEPT = 8  # quads in registers; compile time grows with it
BLOCK_LANES, GRID_LANES = 8, (16, 32)
MAX_STATES = {4: 8, 8: 4}  # by bytes of a number: their sums are in registers
GRID_THREADS = (64, 128, 192, 256, 384, 512)

# Clock cycles. Barrier across the grid and the first load after it: 0.7 to 2 us measured by others, at 1.7 GHz.
BARRIER = 2500
# Bytes a cycle: L2 to one of 132 multiprocessors (3.6 TB/s between them), and shared memory to one.
L2_BYTES, SHARED_BYTES = 16, 128
# Instructions of a warp in a cycle, and the part of them that fused multiply-adds get.
ISSUED, EFFICIENCY = 4, 0.7
# Host time of a step with cuBLAS and one kernel through CuPy: 25 us.
HOST_STEP = 42_000


@dataclass(frozen=True)
class Limits:
    """Limits of a device: shared memory (bytes) and 32-bit registers of a block; whether blocks may wait for each other."""

    multiprocessors: int
    shared_bytes: int
    registers: int
    cooperative: bool


@dataclass(frozen=True)
class Plan:
    """A launch. For "product" only `regime` and `reason` are used.

    Attributes
    ----------
    regime : {"block", "grid", "product"}
    lanes, states, kept, threads : int
        Template parameters: threads that share a row of the matrix, rows of the batch at a time, quads of the matrix in
        registers, threads of a block.
    grid : tuple of int
        Blocks: along the batch for "block", along the matrix and the batch for "grid".
    shared : int
        Bytes of shared memory for each block.
    tile : int
        Rows of the batch for each row of blocks.
    """

    regime: Literal["block", "grid", "product"]
    reason: str
    lanes: int = 0
    states: int = 0
    kept: int = 0
    threads: int = 0
    grid: tuple[int, int] = (0, 0)
    shared: int = 0
    tile: int = 0

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.grid[0] * self.grid[1]


Resident = Callable[[Plan], int]


def choose(width: int, batch: int, itemsize: int, limits: Limits, resident: Resident) -> Plan:
    """Choose the plan for a scan of `width` and `batch`, both at least 1.

    Parameters
    ----------
    itemsize : int
        Bytes of a number in computations: 4 or 8.
    resident : callable
        ``resident(plan)``: the number of blocks that the whole device holds at once, by its own count for the compiled kernel.
    """
    for plan in _block_plans(width, batch, itemsize, limits):
        if resident(plan) > 0:
            return plan
    product = max(HOST_STEP, batch * width * width / (limits.multiprocessors * WARP * ISSUED * EFFICIENCY))
    found = False
    if limits.cooperative:
        plans = _grid_plans(width, batch, itemsize, limits)
        for cost, plan in sorted(plans, key=lambda pair: (pair[0], pair[1].blocks)):
            found = True
            if cost > product:
                break
            if resident(plan) >= plan.blocks:
                return plan
    if not limits.cooperative:
        why = "the device has no cooperative launch"
    elif not found:
        why = f"a matrix of width {width} is more than its {limits.multiprocessors} multiprocessors hold"
    else:
        why = f"the products of {batch} rows dominate, or their blocks do not all fit on the device at once"
    return Plan("product", f"cuBLAS and one kernel at each step: {why}")


def _block_plans(width: int, batch: int, itemsize: int, limits: Limits) -> Iterator[Plan]:
    threads = _up(_divide(width, ROWS) * BLOCK_LANES, WARP)
    if threads > WARP * 2:
        threads = _up(threads, WARP * 2)  # fewer kernels to compile
    if threads > MAX_THREADS:
        return
    states = _states(_divide(batch, limits.multiprocessors), itemsize)
    while states:
        fitted = _fitted(width, BLOCK_LANES, states, threads, itemsize, limits)
        if fitted is not None:
            kept, _, shared = fitted
            blocks = _divide(batch, states)
            rows = "each row" if states == 1 else f"every {states} rows"
            reason = f"a block with the whole matrix for {rows} of {batch}"
            yield Plan("block", reason, BLOCK_LANES, states, kept, threads, (blocks, 1), shared, states)
        states //= 2


def _grid_plans(width: int, batch: int, itemsize: int, limits: Limits) -> Iterator[tuple[float, Plan]]:
    for lanes in GRID_LANES:
        for threads in GRID_THREADS:
            rows = threads // lanes * ROWS
            along = _divide(width, rows)
            if along > limits.multiprocessors:
                continue
            tile = _divide(batch, min(batch, limits.multiprocessors // along))
            grid = (along, _divide(batch, tile))
            states = _states(tile, itemsize)
            while states:
                fitted = _fitted(width, lanes, states, threads, itemsize, limits)
                if fitted is not None:
                    kept, quads, shared = fitted
                    reason = (
                        f"{grid[0]} x {grid[1]} blocks on {limits.multiprocessors} multiprocessors, each with {rows} rows "
                        f"of the matrix and {tile} of {batch} rows of the batch"
                    )
                    plan = Plan("grid", reason, lanes, states, kept, threads, grid, shared, tile)
                    yield _grid_cost(plan, quads, itemsize), plan
                states //= 2


def _fitted(
    width: int, lanes: int, states: int, threads: int, itemsize: int, limits: Limits
) -> tuple[int, int, int] | None:
    """Return (quads in registers, total quads, bytes of shared memory) of a block, or None if it does not fit."""
    words = itemsize // 4
    quads = _divide(width, QUAD * lanes)
    registers = min(MAX_REGISTERS, limits.registers // threads // REGISTER_UNIT * REGISTER_UNIT)
    free = registers - OTHER_REGISTERS - states * ROWS * words
    kept = min(quads, MAX_KEPT, free // (ROWS * QUAD * words))
    copies = 2 * states * quads * lanes * QUAD * itemsize
    shared = copies + (quads - kept) * ROWS * threads * QUAD * itemsize
    return (kept, quads, shared) if kept > 0 and shared <= limits.shared_bytes else None


def _grid_cost(plan: Plan, quads: int, itemsize: int) -> float:
    """Estimated cycles of one step."""
    warps, passes = plan.threads / WARP, _divide(plan.tile, plan.states)
    words = itemsize // 4
    products = quads * QUAD * ROWS * plan.states * words * max(1.0, warps / ISSUED) / EFFICIENCY
    of_states = warps * quads * plan.states * plan.lanes * QUAD * itemsize / SHARED_BYTES
    of_matrix = warps * (quads - plan.kept) * ROWS * WARP * QUAD * itemsize / SHARED_BYTES
    staged = plan.tile * quads * plan.lanes * QUAD * itemsize / L2_BYTES
    return BARRIER + staged + passes * max(products, of_states + of_matrix)


def _states(rows: int, itemsize: int) -> int:
    """The smallest power of two that is at least `rows`, at most MAX_STATES."""
    states = 1
    while states < rows and states < MAX_STATES[itemsize]:
        states *= 2
    return states


def _divide(n: int, by: int) -> int:
    return -(-n // by)


def _up(n: int, multiple: int) -> int:
    return _divide(n, multiple) * multiple
