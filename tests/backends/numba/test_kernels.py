"""Kernels: compiled once, found again, and vectors in registers."""

import re
import shutil
import textwrap
from pathlib import Path

import pytest
import rnncore_numba
from rnncore_numba import _kernels
from rnncore_numba._vectors import fuses

from tests.tools.forks import forked, needs_fork
from tests.tools.numba_scans import needs_x86
from tests.tools.process import python

COMPILE = """
from rnncore_numba._kernels import compiled
from rnncore_numba._tiles import Kind
found = compiled(Kind("relu", "float32", False))
print([sum(f.stats.cache_hits.values()) for f in found])
"""


@pytest.mark.slow
def test_the_second_process_reads_what_the_first_compiled(tmp_path):
    assert python(COMPILE, NUMBA_CACHE_DIR=str(tmp_path)) == "[0, 0, 0]"
    assert python(COMPILE, NUMBA_CACHE_DIR=str(tmp_path)) == "[1, 1, 1]"


@pytest.mark.slow
def test_a_change_of_any_source_is_noticed(tmp_path):
    """Numba looks only at the file that defines a function, and the function uses others."""
    code = (
        "import sys; sys.path.insert(0, '.')\nimport numpy as np, rnncore_numba\n"
        "from rnncore.nonlinearity import get_nonlinearity\n"
        "h = rnncore_numba.scans().nonlinear(np.full((1, 1, 1), -2.0), np.zeros((1, 1)), np.zeros((1, 1)), "
        "nonlinearity=get_nonlinearity('relu'), reverse=False)\nprint(h.item())"
    )
    folder = tmp_path / "rnncore_numba"
    shutil.copytree(Path(rnncore_numba.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    cache = str(tmp_path / "cache")
    assert python(code, cwd=tmp_path, NUMBA_CACHE_DIR=cache).split()[-1] == "0.0"
    source = folder / "_functions.py"
    right, wrong = '"relu": relu', '"relu": identity'
    assert source.read_text().count(right) == 1
    source.write_text(source.read_text().replace(right, wrong))
    assert python(code, cwd=tmp_path, NUMBA_CACHE_DIR=cache).split()[-1] == "-2.0"


FORKS = """
    import numpy as np, numba
    from numba.core.compiler_lock import global_compiler_lock
    from rnncore_numba import _kernels, scans

    real, numbers = _kernels._jit, np.linspace(-2, 2, 24, dtype="f4").reshape(2, 3, 4)

    def held(*arguments):
        pause()
        return real(*arguments)

    _kernels._jit = held

    def compute(name, dtype):
        p, w = numbers.astype(dtype), np.zeros((4, 4), dtype)
        f = rnncore.get_nonlinearity(name)
        found = scans().nonlinear(p, p[0], w, nonlinearity=f, reverse=False)
        want = {"relu": np.maximum(p, 0), "identity": p}[name]
        assert np.array_equal(found, want), (name, found)
"""


@needs_fork
def test_a_child_forked_while_another_thread_compiles_can_compile_and_compute():
    """With Numba's compilation of ours, and again with one of the user's own."""
    code = """
    cases = [(name, dtype) for name in ("relu", "identity") for dtype in ("f4", "f8")]
    for case, other in zip(cases, cases[1:] + cases[:1]):
        # What the other thread compiles, and what nobody has.
        fork_during(lambda: compute(*case), lambda: (compute(*case), compute(*other)))

    def work():
        with global_compiler_lock:
            pause()

    for _ in range(5):
        fork_during(work, lambda: numba.njit("i8(i8)")(lambda n: n + 1)(1))
    print("done")
    """
    assert forked(textwrap.dedent(FORKS) + textwrap.dedent(code)) == "done"


def test_a_fork_holds_the_locks_of_numba_and_llvmlite():
    from llvmlite.binding import ffi
    from numba.core.compiler_lock import global_compiler_lock

    assert list(_kernels._locks()) == [global_compiler_lock._lock, ffi.lib._lock._lock]


@pytest.mark.slow
@needs_x86
def test_sums_are_vectors_that_stay_in_registers(tmp_path):
    """The instructions themselves: hundreds of products of whole vectors, and no product of single numbers."""
    code = (
        "from rnncore_numba._kernels import compiled\nfrom rnncore_numba._tiles import Kind\n"
        "print(*compiled(Kind('tanh', 'float32', False)).rows.inspect_asm().values())"
    )
    text = python(code, NUMBA_CACHE_DIR=str(tmp_path))
    register = {64: "zmm", 32: "ymm", 16: "xmm"}[_kernels.lane_count("float32") * 4]
    product = r"vfmadd\d+ps" if fuses() else r"v?mulps"
    assert len(re.findall(rf"{product}\s.*%{register}", text)) > 200
    assert not re.findall(r"v(fmadd\d+ss|mulss)\s", text)
