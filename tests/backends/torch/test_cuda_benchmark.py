"""The scripts that time PyTorch's scans on a GPU, run on the stand-in."""

import sys
import types
from importlib.machinery import SourceFileLoader

import pytest

from tests.tools.cuda_stand_in import NUMBER, stand_in
from tests.tools.fake_cupy import on_fake_cupy
from tests.tools.places import ROOT


def loaded(name, path):
    loader = SourceFileLoader(name, str(ROOT / path))
    module = types.ModuleType(name)
    module.__file__ = loader.path
    sys.modules[name] = module
    loader.exec_module(module)
    return module


@pytest.mark.slow
@on_fake_cupy()
def test_the_benchmark_times_both_ways_and_leaves_the_setting_as_it_was():
    import os

    from rnncore_torch import _cuda

    told, library = stand_in(), benchmarked()
    library.place(numbers(9, 2, 5))
    library.on_gpu = True
    library.rnn.explain = lambda **shape: "the kernel of backend 'cupy'"  # which asks the weights for their device
    launched = []
    library.milliseconds = lambda call: (told.clear(), call(), launched.append(len(told.launches)), 7.0)[-1]
    for before in ("rule", None):
        if before is None:
            del os.environ[_cuda.SETTING]
        else:
            os.environ[_cuda.SETTING] = before
        found = library.besides(library.both, 2)
        assert (found["pytorch_ms"], found["kernels_ms"]) == (7.0, 7.0) and "the kernel of" in found["runs"]
        times = len(launched) // 2
        assert os.environ.get(_cuda.SETTING) == before and launched == times * [0] + times * [2]
        launched.clear()
        library.milliseconds(library.both)
        assert launched == [2]
        launched.clear()


@pytest.mark.slow
@on_fake_cupy(devices=0)
def test_without_kernels_the_benchmark_has_no_times_of_theirs():
    from rnncore_torch import _cuda, _steps

    _cuda.index_of, _steps.HOSTS = lambda x: NUMBER, ()
    library = benchmarked()
    library.place(numbers(9, 2, 5))
    library.on_gpu, library.milliseconds = True, lambda call: 7.0
    assert library.besides(library.both, 2).keys() == {"runs", "pytorch_ms"}


def benchmarked():
    """What benchmarks/gpu.py measures of rnncore_torch, on tensors of the CPU."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.gpu_libraries import MAKE

    return MAKE["rnncore_torch"]("cpu")


def numbers(*shape):
    from benchmarks.gpu import numbers

    return numbers(*shape)


def test_the_check_prints_what_was_picked_beside_what_is_fastest():
    times = loaded("gpu_times", "scripts/gpu_times.py")
    of = {"shape": [512, 64, 512], "pass": "forward"}
    runs = (
        "  nonlinear scan: kernel (the kernel of backend 'cupy', on the tensor's own memory and stream: grid_scan<...>)"
    )
    records = [{**of, "library": "torch_cudnn", "ms": ms} for ms in (5.0, 4.0, 2.0)]
    ours = {**of, "library": "rnncore_torch", "runs": runs}
    records += [{**ours, "ms": ms, "kernels_ms": ms + 1, "pytorch_ms": 2 * ms} for ms in (6.0, 3.0, 1.0)]
    other = {**of, "shape": [256, 1, 2048], "library": "rnncore_torch", "runs": "PyTorch's operations (...)"}
    records += [{**other, "ms": 8.0, "pytorch_ms": 8.0}, {"library": "jax_scan", "fault": "no room"}]
    for record in records:
        record["round"] = 1
    section = lambda of: "\n".join(times.section(of, lambda record: None))  # noqa: E731
    text = section(records)
    assert "| 512, 64, 512 | forward | kernels | 3.000 | **4.000** | 6.000 | 4.000 |" in text
    assert "| 256, 1, 2048 | forward | PyTorch's operations | 8.000 | not measured | **8.000** | not measured |" in text
    assert "Which code" not in section(records[:3])
