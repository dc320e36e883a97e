"""Compile the kernels in cuda/ with CuPy at first use, cache them, and query how many blocks fit on the device.

A kernel's name consists of words from two tables and the numbers of a plan, and its source is constant: no user input reaches
the compiler.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from importlib import resources
from typing import Any

from rnncore_cupy._plan import Limits, Plan, choose

__all__ = ["FILES", "LINEAR", "STEPS", "STORAGE", "kernel", "limits", "name_of", "plan", "source"]

# Concatenated in this order. A name is defined before it is used.
FILES = ("device.cu", "numbers.cu", "step.cu", "product.cu", "block_scan.cu", "grid_scan.cu")
# The C++ type that stores a dtype, and the bytes of a number in computations.
STORAGE = {"float32": ("float", 4), "float64": ("double", 8), "float16": ("Half", 4), "bfloat16": ("BFloat16", 4)}
STEPS = {"tanh": "TANH", "relu": "RELU", "sigmoid": "SIGMOID", "identity": "IDENTITY"}
LINEAR = "LINEAR"
# CuPy adds -ftz=true: subnormal numbers are flushed to 0 in float32 arithmetic, including sums of 16-bit dtypes.
OPTIONS = ("-std=c++17",)

# More shared memory than this has to be requested explicitly.
ORDINARY_SHARED = 48 * 1024
# Load-acquire instructions, which the grid barrier needs, exist from this compute capability on.
ACQUIRES_FROM = 70


@lru_cache(maxsize=1)
def source() -> str:
    """The CUDA C++ source of all kernels."""
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
    """The compiled kernel, with its limit of shared memory set to the device's maximum for a block.

    The device must be the current one. CuPy 14.2 also caches compiled kernels on disk; 14.0 and 14.1 recompile kernels found by
    a name expression in each process.
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
    """The limits that the device reports."""
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
    """The plan for a scan on the current device, based on the device's count of resident blocks of the compiled kernel."""

    def resident(candidate: Plan) -> int:
        compiled = kernel(device, name_of(candidate, dtype, step), candidate.regime == "grid")
        count = _cupy().cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor
        return int(count(compiled.kernel.ptr, candidate.threads, candidate.shared)) * limits(device).multiprocessors

    return choose(width, batch, STORAGE[dtype][1], limits(device), resident)


def _cupy() -> Any:
    return importlib.import_module("cupy")
