"""Which kernel runs a scan and in what shape: a rule from the width, the batch and what the device holds.

Three regimes. In "block" a block has the whole matrix in registers and shared memory, and some rows of the batch. In "grid" a
row of blocks has it between them and waits for each other after each step, so that all blocks have to be resident at once. In
"product" each step is a product of cuBLAS's and one elementwise kernel.

The costs below put candidates in order; they are estimates from published figures of Hopper devices, and say nothing exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

__all__ = ["Limits", "Plan", "choose"]

# What the kernels are written with: rows of the matrix for each thread, and numbers in a quad (cuda/product.cu).
ROWS = QUAD = 4
WARP = 32
MAX_THREADS = 1024
# A thread cannot address more, and the compiler hands registers out in eights.
MAX_REGISTERS, REGISTER_UNIT = 255, 8
# Registers for all but matrix and sums, as ptxas counts them for sm_80 to sm_90 (tests/test_cuda_kernels_compile.py).
OTHER_REGISTERS = 60
MAX_KEPT = 8  # quads in registers; the compiler's time grows with it
BLOCK_LANES, GRID_LANES = 8, (16, 32)
MAX_STATES = {4: 8, 8: 4}  # by bytes of a number: their sums are in registers
GRID_THREADS = (64, 128, 192, 256, 384, 512)

# Clock cycles. Barrier across the grid and the first load after it: 0.7 to 2 us measured by others, at 1.7 GHz.
BARRIER = 2500
# Bytes a cycle: L2 to one of 132 multiprocessors (3.6 TB/s between them), and shared memory to one.
L2_BYTES, SHARED_BYTES = 16, 128
# Instructions of a warp in a cycle, and the part of them that fused multiply-adds get.
ISSUED, EFFICIENCY = 4, 0.7
# A step of cuBLAS and one kernel through CuPy takes the host so long: 25 us.
HOST_STEP = 42_000


@dataclass(frozen=True)
class Limits:
    """What a device holds: shared memory in bytes and 32-bit registers of one block, and whether blocks may wait."""

    multiprocessors: int
    shared_bytes: int
    registers: int
    cooperative: bool


@dataclass(frozen=True)
class Plan:
    """A launch. All but `regime` and `reason` are without meaning for "product".

    Attributes
    ----------
    regime : {"block", "grid", "product"}
    lanes, states, kept, threads : int
        The template's: threads that share a row of the matrix, rows of the batch at a time, quads of the matrix in registers,
        threads of a block.
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
        """How many there are."""
        return self.grid[0] * self.grid[1]


Resident = Callable[[Plan], int]


def choose(width: int, batch: int, itemsize: int, limits: Limits, resident: Resident) -> Plan:
    """The plan for a scan of `width` and `batch`, both at least 1.

    Parameters
    ----------
    itemsize : int
        Bytes of a number as it is computed with: 4 or 8.
    resident : callable
        How many blocks of a plan the whole device holds at once, by its own count for the compiled kernel.
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
        why = f"the products of {batch} rows are what takes the time, or the blocks for them are not resident at once"
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
    """Quads in registers, quads altogether and bytes of shared memory for a block, or None where it does not fit."""
    words = itemsize // 4
    quads = _divide(width, QUAD * lanes)
    registers = min(MAX_REGISTERS, limits.registers // threads // REGISTER_UNIT * REGISTER_UNIT)
    free = registers - OTHER_REGISTERS - states * ROWS * words
    kept = min(quads, MAX_KEPT, free // (ROWS * QUAD * words))
    copies = 2 * states * quads * lanes * QUAD * itemsize
    shared = copies + (quads - kept) * ROWS * threads * QUAD * itemsize
    return (kept, quads, shared) if kept > 0 and shared <= limits.shared_bytes else None


def _grid_cost(plan: Plan, quads: int, itemsize: int) -> float:
    """Cycles of one step."""
    warps, passes = plan.threads / WARP, _divide(plan.tile, plan.states)
    words = itemsize // 4
    products = quads * QUAD * ROWS * plan.states * words * max(1.0, warps / ISSUED) / EFFICIENCY
    of_states = warps * quads * plan.states * plan.lanes * QUAD * itemsize / SHARED_BYTES
    of_matrix = warps * (quads - plan.kept) * ROWS * WARP * QUAD * itemsize / SHARED_BYTES
    staged = plan.tile * quads * plan.lanes * QUAD * itemsize / L2_BYTES
    return BARRIER + staged + passes * max(products, of_states + of_matrix)


def _states(rows: int, itemsize: int) -> int:
    """The power of two from `rows` up, as far as there is one."""
    states = 1
    while states < rows and states < MAX_STATES[itemsize]:
        states *= 2
    return states


def _divide(n: int, by: int) -> int:
    return -(-n // by)


def _up(n: int, multiple: int) -> int:
    return _divide(n, multiple) * multiple
