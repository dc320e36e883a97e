"""Time and memory on a GPU, by CUDA events and by the allocators of CuPy and PyTorch."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.case import Numbers
from benchmarks.peers import Prepared

Call = Callable[[], Any]


def prepared(made: Prepared, library: str, read: Callable[[Any], Numbers] | None = None) -> Prepared:
    """Add the clock and the memory of "cupy" or "torch" to calls that only queue their work."""
    module: Any = importlib.import_module(library)
    once, most = {"cupy": (_cupy_clock, _cupy_peak), "torch": (_torch_clock, _torch_peak)}[library]

    def clock(call: Call, calls: int = 1, /) -> float:
        return sum(once(module, call) for _ in range(calls)) / calls

    return replace(made, read=read or made.read, clock=clock, peak=partial(most, module))


def _cupy_clock(cupy: Any, call: Call) -> float:
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    cupy.cuda.Device().synchronize()
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(cupy.cuda.get_elapsed_time(start, end)) / 1000


def _cupy_peak(cupy: Any, call: Call) -> int:
    class Held(cupy.cuda.MemoryHook):  # type: ignore[misc]
        name = "Held"
        now = most = 0

        def malloc_postprocess(self, **given: Any) -> None:
            self.now += given["mem_size"]
            self.most = max(self.most, self.now)

        def free_postprocess(self, **given: Any) -> None:
            self.now -= given["mem_size"]

    with Held() as held:
        call()
    return int(held.most)


def _torch_clock(torch: Any, call: Call) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


def _torch_peak(torch: Any, call: Call) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated() - before)
