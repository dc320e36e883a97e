"""CUDA's driver: how many blocks of a kernel a multiprocessor holds."""

from cupy.cuda import runtime


def occupancyMaxActiveBlocksPerMultiprocessor(func, blockSize, dynamicSMemSize):
    """By what the stand-in makes of the kernel."""
    from cupy import _raw

    return _raw.resident(_raw.kernels[func], blockSize, dynamicSMemSize) // runtime.attributes["MultiProcessorCount"]
