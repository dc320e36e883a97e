"""rnncore_cupy's kernels on a CPU: the same source, compiled as C++ behind cuda_on_cpu.h and called by ctypes.

:func:`build` makes a library of the named instances of the kernels; its :meth:`Library.launch` takes what CuPy's RawKernel
takes. The source can be given, so that a test can break it first.
"""

import ctypes
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from rnncore_cupy import _kernels

HERE = Path(__file__).parent
# The threads of the header are those of Linux.
COMPILER = shutil.which("g++") if sys.platform == "linux" else None
FLAGS = ("-std=c++17", "-O1", "-pthread", "-Wno-unknown-pragmas")


def source():
    """The kernels without device.cu, whose twin is in the header."""
    folder = Path(_kernels.__file__).parent / "cuda"
    return "\n".join((folder / file).read_text() for file in _kernels.FILES if file != "device.cu")


def build(names, folder, kernels=None):
    """A library with these instances, such as ``block_scan<float, TANH, 8, 1, 2, 64>``, in the folder."""
    return finish(start(names, folder, kernels))


def start(names, folder, kernels=None):
    """Begin to compile, so that several can be compiled at once; :func:`finish` waits."""
    text = '#include "cuda_on_cpu.h"\n' + (source() if kernels is None else kernels)
    text += '\nextern "C" long loads() { return cuda_on_cpu::loads; }\n'
    for k, name in enumerate(names):
        text += f"""
extern "C" void run_{k}(void** arguments, unsigned x, unsigned y, unsigned threads, size_t shared, int together,
                        unsigned from, unsigned seed) {{
    cuda_on_cpu::launch({name}, arguments, x, y, threads, shared, together, from, seed);
}}
"""
    path = Path(folder) / f"kernels{len(list(Path(folder).glob('*.cpp')))}.cpp"
    path.write_text(text)
    library = path.with_suffix(".so")
    command = [COMPILER, *FLAGS, "-shared", "-fPIC", f"-I{HERE}", str(path), "-o", str(library)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return process, library, tuple(names)


def finish(started):
    """The library that :func:`start` has begun."""
    process, library, names = started
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return Library(library, names)


def lacks(sanitizer, folder):
    """Why the compiler's checker cannot be used here, found out with a program that does nothing; or None."""
    program = Path(folder) / "nothing"
    command = [COMPILER, f"-fsanitize={sanitizer}", "-x", "c++", "-", "-o", str(program)]
    made = subprocess.run(command, input="int main() {}", capture_output=True, text=True, check=False)
    done = made if made.returncode else subprocess.run([str(program)], capture_output=True, text=True, check=False)
    return f"{sanitizer} cannot be used: {done.stderr.strip()}" if done.returncode else None


class Library:
    """Compiled instances by name."""

    def __init__(self, path, names):
        loaded = ctypes.CDLL(str(path))
        self.loads = loaded.loads  # how many numbers blocks have read that others may have written
        self.loads.restype = ctypes.c_long
        self.functions = {name: getattr(loaded, f"run_{k}") for k, name in enumerate(names)}

    def launch(self, name, grid, block, arguments, shared=0, start=0, seed=0):
        """Run to the end, from block `start` on. Arguments are NumPy's arrays and scalars of exactly the parameters' types."""
        threads = re.match(r"\w+<.*?(\d+)>$", name)
        if threads is not None:  # what __launch_bounds__ promises
            assert block == (int(threads[1]),), (name, block)
        assert len(grid) <= 2 and len(block) == 1
        values = [
            ctypes.c_void_p(x.ctypes.data)
            if isinstance(x, np.ndarray)
            else np.ctypeslib.as_ctypes_type(x.dtype)(x.item())
            for x in arguments
        ]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.cast(ctypes.byref(v), ctypes.c_void_p) for v in values))
        x, y = (*grid, 1)[:2]
        together = name.startswith("grid_scan")
        function, count = self.functions[name], ctypes.c_uint
        function(
            pointers, *map(count, (x, y, *block)), ctypes.c_size_t(shared), int(together), count(start), count(seed)
        )
