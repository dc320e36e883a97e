"""CUDA's driver: how many blocks of a kernel a multiprocessor holds."""

from cupy.cuda import runtime


def occupancyMaxActiveBlocksPerMultiprocessor(func, blockSize, dynamicSMemSize):
    """Launch the stand-in's own version of the kernel."""
    from cupy import _raw

    return _raw.resident(_raw.kernels[func], blockSize, dynamicSMemSize) // runtime.attributes["MultiProcessorCount"]
