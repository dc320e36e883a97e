"""RawModule and RawKernel for rnncore_cupy's kernels: launches are checked and written down, and done by a twin in NumPy.

The twin takes a launch apart as the kernel would: what is not covered by the grid stays as it is, and what the device could
not do is an error. `runner` may be set to something that runs the kernel's own source instead.
"""

import re

import numpy

from cupy._array import operand
from cupy.cuda import runtime
from cupy.cuda.stream import get_current_stream

launches: list[dict] = []
kernels: dict = {}  # by address, for the driver's functions
runner = None

ORDINARY_SHARED = 48 * 1024
NUMBERS = {"float": 4, "double": 8, "Half": 4, "BFloat16": 4}
DTYPES = {"float": "float32", "double": "float64", "Half": "float16", "BFloat16": "bfloat16"}
SCALARS = [*[numpy.int64] * 4, *[numpy.int32] * 2, numpy.float64]
FUNCTIONS = {
    "TANH": numpy.tanh,
    "RELU": lambda z: numpy.where(z <= 0, 0, z),
    "SIGMOID": lambda z: 1 / (1 + numpy.exp(-z)),
    "IDENTITY": lambda z: z,
}


class RawModule:
    """Compiled for the current device, which makes its kernels that device's."""

    def __init__(self, *, code, options=(), name_expressions=None, enable_cooperative_groups=False, backend="nvrtc"):
        self.code, self.names, self.cooperative = code, tuple(name_expressions), enable_cooperative_groups

    def get_function(self, name):
        """One of the names that it was made with."""
        if name not in self.names:
            raise KeyError(name)
        return RawKernel(self, name)


class _Function:
    def __init__(self):
        self.ptr = 1 + len(kernels)


class RawKernel:
    """An instance of one of the templates."""

    def __init__(self, module, name):
        self.name, self.cooperative, self.device = name, module.cooperative, runtime.getDevice()
        self.template, words = re.fullmatch(r"(\w+)<(.*)>", name).groups()
        self.storage, self.step, *numbers = words.split(", ")
        if not re.search(rf"\b{self.template}\(", module.code):
            raise RuntimeError(f"{self.template} is undefined")
        self.numbers = [int(n) for n in numbers]
        self.kernel, self._shared = _Function(), ORDINARY_SHARED
        kernels[self.kernel.ptr] = self

    @property
    def max_dynamic_shared_size_bytes(self):
        """How much a launch may ask for."""
        return self._shared

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size):
        if size > runtime.attributes["MaxSharedMemoryPerBlockOptin"]:
            raise RuntimeError("CUDA_ERROR_INVALID_VALUE: invalid argument")
        self._shared = size

    @property
    def num_regs(self):
        """About as many as a compiler would use."""
        if not self.numbers:
            return 32
        _, states, kept, _ = self.numbers
        return 56 + 4 * (states + 4 * kept) * NUMBERS[self.storage] // 4

    def __call__(self, grid, block, args, *, shared_mem=0):
        if runtime.getDevice() != self.device:
            raise RuntimeError("CUDA_ERROR_INVALID_HANDLE: the kernel is another device's")
        if min(*grid, *block) < 1 or block[0] > 1024 or grid[0] >= 2**31 or any(n > 65535 for n in grid[1:]):
            raise RuntimeError(f"CUDA_ERROR_INVALID_VALUE: invalid argument: {grid} {block}")
        if shared_mem > self._shared:
            raise RuntimeError("CUDA_ERROR_INVALID_VALUE: more shared memory than is allowed")
        args = [operand(x) for x in args]
        given = [x.dtype.name for x in args[: 4 if self.template == "step_alone" else 5]]
        if set(given) != {DTYPES[self.storage]}:  # a GPU reads the bytes as what they are not
            raise TypeError(f"the kernel reads {DTYPES[self.storage]} where {given} are given")
        launches.append(
            {
                "name": self.name,
                "grid": grid,
                "block": block,
                "shared": shared_mem,
                "cooperative": self.cooperative,
                "stream": get_current_stream(),
            }
        )
        if self.template == "step_alone":
            _check_types(args[4:], [numpy.int64, numpy.float64])
            _step(self.step, *args)
            return
        if block != (self.numbers[-1],) or block[0] * self.num_regs > runtime.attributes["MaxRegistersPerBlock"]:
            raise RuntimeError("CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES: too many resources requested for launch")
        if self.cooperative and grid[0] * grid[1] > resident(self, block[0], shared_mem):
            raise RuntimeError("CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE: too many blocks in cooperative launch")
        _check_types(args[5:12], SCALARS)
        with numpy.errstate(all="ignore"):
            (runner or _twin)(self, grid, args, shared_mem)


def resident(kernel, threads, shared):
    """How many blocks the device holds at once."""
    had = runtime.attributes
    for_each = min(
        had["MaxRegistersPerBlock"] // (kernel.num_regs * threads),
        had["MaxSharedMemoryPerBlockOptin"] // max(shared, 1),
        2048 // threads,
    )
    return for_each * had["MultiProcessorCount"]


def _check_types(scalars, types):
    if [type(x) for x in scalars] != types:
        raise TypeError(f"the kernel reads {types} where {[type(x) for x in scalars]} are given")


def _step(step, product, source, factor, out, count, clip):
    flat = [x.reshape(-1)[:count] for x in (product, source, factor)]
    out.reshape(-1)[:count] = _done(step, flat[0], *flat[1:], clip)


def _done(step, product, source, factor, clip):
    with numpy.errstate(all="ignore"):
        z = source + product
        return factor * z if step == "LINEAR" else FUNCTIONS[step](numpy.clip(z, -clip, clip))


def _twin(kernel, grid, args, shared):
    """The scan as far as the blocks reach, from memory as the pointers and strides say."""
    lanes, states, kept, threads = kernel.numbers
    source, factor, first, matrix, out = args[:5]
    row, column, steps, batch, width, reverse, clip = args[5:12]
    a = numpy.lib.stride_tricks.as_strided(matrix, (width, width), (row * matrix.itemsize, column * matrix.itemsize))
    quads = max(kept, -(-int(width) // (4 * lanes)))
    needed = (2 * states * quads * lanes * 4 + (quads - kept) * 16 * threads) * NUMBERS[kernel.storage]
    if needed > shared:
        raise RuntimeError(f"the kernel uses {needed} bytes of shared memory and has {shared}")
    covered = threads // lanes * 4 * (1 if kernel.template == "block_scan" else grid[0])
    if kernel.template == "block_scan":
        rows = grid[0] * states
    else:
        tile, counters = args[12:]
        if type(tile) is not numpy.int64 or counters.dtype != numpy.uint64:
            raise TypeError("the kernel reads an int64 and 64-bit counters")
        if counters.size < 16 * grid[1] or counters.any():
            raise RuntimeError("too few counters, or not at 0")
        rows = grid[1] * int(tile)
    if rows < batch or covered < width:
        raise RuntimeError(f"{rows} of {batch} rows and {covered} of {width} units are covered by {grid}")
    memory = [_flat(x)[: int(steps * batch * width)].reshape(steps, batch, width) for x in (source, factor, out)]
    h = _flat(first)[: int(batch * width)].reshape(batch, width)
    wide = numpy.float32 if source.dtype.itemsize == 2 else source.dtype
    for t in reversed(range(steps)) if reverse else range(steps):
        product = h.astype(wide) @ a.astype(wide).T
        memory[2][t] = _done(kernel.step, product, memory[0][t].astype(wide), memory[1][t].astype(wide), clip)
        h = memory[2][t]


def _flat(x):
    """What a pointer to x reaches in order: of x only if it has no gaps."""
    if not x.flags.c_contiguous:
        raise RuntimeError("the kernel reads memory in order, and this array is a view with gaps")
    return x.reshape(-1)
