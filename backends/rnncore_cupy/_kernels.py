"""The kernels in cuda/ as CuPy has them: compiled at first use for the current device, kept, and asked what fits.

A kernel's name is put together from the words of two tables and the numbers of a plan, and its source is constant: nothing
that a user writes reaches the compiler.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from importlib import resources
from typing import Any

from rnncore_cupy._plan import Limits, Plan, choose

__all__ = ["FILES", "LINEAR", "STEPS", "STORAGE", "kernel", "limits", "name_of", "plan", "source"]

# In this order they are one source. A name is used after the file that defines it.
FILES = ("device.cu", "numbers.cu", "step.cu", "product.cu", "block_scan.cu", "grid_scan.cu")
# What a dtype is called there, and the bytes of a number as it is computed with.
STORAGE = {"float32": ("float", 4), "float64": ("double", 8), "float16": ("Half", 4), "bfloat16": ("BFloat16", 4)}
STEPS = {"tanh": "TANH", "relu": "RELU", "sigmoid": "SIGMOID", "identity": "IDENTITY"}
LINEAR = "LINEAR"
# CuPy adds -ftz=true to these: what is smaller than the smallest normal number is 0 in float32, and in what is summed in it.
OPTIONS = ("-std=c++17",)

# More shared memory than this has to be asked for.
ORDINARY_SHARED = 48 * 1024
# From this compute capability on a load can be an acquiring one, which the barrier across the grid needs.
ACQUIRES_FROM = 70


@lru_cache(maxsize=1)
def source() -> str:
    """CUDA C++ of all kernels."""
    folder = resources.files(__package__) / "cuda"
    return "\n".join((folder / file).read_text(encoding="utf-8") for file in FILES)


def name_of(plan: Plan, dtype: str, step: str) -> str:
    """The instance of a template that a plan launches, such as ``block_scan<float, TANH, 8, 1, 2, 128>``."""
    storage = STORAGE[dtype][0]
    if plan.regime == "product":
        return f"step_alone<{storage}, {step}>"
    return f"{plan.regime}_scan<{storage}, {step}, {plan.lanes}, {plan.states}, {plan.kept}, {plan.threads}>"


@lru_cache(maxsize=4096)
def kernel(device: int, name: str, cooperative: bool) -> Any:
    """The compiled kernel, with all the shared memory allowed to it that the device gives a block.

    The device must be the current one. CuPy 14.2 keeps what it has compiled on disk, too; 14.0 and 14.1 compile a kernel
    that is found by a name expression anew in each process.
    """
    module = _cupy().RawModule(
        code=source(), options=OPTIONS, name_expressions=(name,), enable_cooperative_groups=cooperative
    )
    compiled = module.get_function(name)
    shared = limits(device).shared_bytes
    if shared > ORDINARY_SHARED:
        compiled.max_dynamic_shared_size_bytes = shared
    return compiled


@lru_cache(maxsize=256)
def limits(device: int) -> Limits:
    """What the device holds, in its own words."""
    cuda = _cupy().cuda
    runtime, capability = cuda.runtime, int(cuda.Device(device).compute_capability)  # 90 for 9.0

    def told(attribute: str) -> int:
        return int(runtime.deviceGetAttribute(getattr(runtime, f"cudaDevAttr{attribute}"), device))

    return Limits(
        multiprocessors=told("MultiProcessorCount"),
        shared_bytes=told("MaxSharedMemoryPerBlockOptin"),
        registers=told("MaxRegistersPerBlock"),
        cooperative=bool(told("CooperativeLaunch")) and capability >= ACQUIRES_FROM,
    )


@lru_cache(maxsize=4096)
def plan(device: int, width: int, batch: int, dtype: str, step: str) -> Plan:
    """The plan for a scan on the current device, whose own count of resident blocks of the compiled kernel decides."""

    def resident(candidate: Plan) -> int:
        compiled = kernel(device, name_of(candidate, dtype, step), candidate.regime == "grid")
        count = _cupy().cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor
        return int(count(compiled.kernel.ptr, candidate.threads, candidate.shared)) * limits(device).multiprocessors

    return choose(width, batch, STORAGE[dtype][1], limits(device), resident)


def _cupy() -> Any:
    return importlib.import_module("cupy")
