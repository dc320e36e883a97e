"""The CUDA kernels compile for real devices, by nvcc and by NVRTC, and stay within the registers that the rule counts on.

ptxas tells how many registers a kernel uses and what it spills; no GPU is needed to compile.
"""

import json
import re
import shutil
import subprocess

import pytest
from rnncore_cupy import _kernels
from rnncore_cupy._plan import Limits, choose

from tests.tools.fake_cupy import needs_real_cupy, python

pytestmark = pytest.mark.slow

NVCC = shutil.which("nvcc")
# What CuPy 14 adds to a RawModule's own options (cupy/cuda/compiler.py); the second is NVRTC's alone.
FLUSHED, ON_THE_DEVICE = "-ftz=true", "--device-as-default-execution-space"
DEVICES = {
    "sm_80": Limits(108, 166912, 65536, True),
    "sm_86": Limits(84, 101376, 65536, True),  # the shared memory of sm_89 and sm_120, too
    "sm_90": Limits(132, 232448, 65536, True),
}
# What rnn.explain() would name for these: width, batch, dtype, step.
SHAPES = [
    (64, 1, "float32", "TANH"),
    (128, 64, "float32", "LINEAR"),
    (256, 16, "float32", "TANH"),
    (256, 600, "float32", "LINEAR"),
    (192, 600, "float32", "SIGMOID"),
    (128, 600, "float64", "TANH"),
    (224, 20, "float16", "RELU"),
    (512, 64, "float32", "TANH"),
    (1024, 64, "float32", "LINEAR"),
    (2048, 1, "float32", "TANH"),
    (512, 512, "float16", "LINEAR"),
    (512, 64, "float64", "LINEAR"),
    (1024, 32, "bfloat16", "TANH"),
    (8192, 1, "float32", "IDENTITY"),
    (8192, 64, "float64", "LINEAR"),
]
# Bytes for each thread: a few addresses that are spilled once, before the loop, cost nothing; sums or the matrix would be more.
SPILLED = 64


def instances(limits):
    """The kernels that the rule picks on a device, by name."""
    plans = {}
    for width, batch, dtype, step in SHAPES:
        plan = choose(width, batch, _kernels.STORAGE[dtype][1], limits, lambda plan: limits.multiprocessors)
        plans[_kernels.name_of(plan, dtype, step)] = plan
    assert {plan.regime for plan in plans.values()} == {"block", "grid", "product"}
    return plans


def parameters(name):
    """The types of a kernel's parameters, as an explicit instantiation has to repeat them."""
    storage = re.search(r"<(\w+)", name)[1]
    if name.startswith("step_alone"):
        return f"const {storage}*, const {storage}*, const {storage}*, {storage}*, Index, double"
    scan = f"{', '.join([f'const {storage}*'] * 4)}, {storage}*, Index, Index, Index, Index, int, int, double"
    return f"{scan}, Index, unsigned long long*" if name.startswith("grid") else scan


def compiled(names, arch, folder):
    """Registers and spilled bytes of each kernel, in ptxas's words."""
    words = nvcc(names, arch, folder / "kernels.cubin", "-cubin", "-Xptxas", "-v", "-Werror", "all-warnings")
    told = re.findall(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores.*?Used (\d+) registers",
        words,
        re.S,
    )
    assert len(told) == len(names), words
    return {mangled: tuple(map(int, numbers)) for mangled, *numbers in told}


def nvcc(names, arch, path, *options):
    """Compile these instances to the path; what the compiler says."""
    source = path.with_suffix(".cu")
    instantiated = [f"template __global__ void {name}({parameters(name)});" for name in names]
    source.write_text("\n".join([_kernels.source(), *instantiated]))
    command = [NVCC, *_kernels.OPTIONS, FLUSHED, f"-arch={arch}", *options, str(source), "-o", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
@pytest.mark.parametrize("arch", DEVICES)
def test_nvcc_compiles_what_the_rule_picks_and_little_is_spilled(arch, tmp_path):
    plans = instances(DEVICES[arch])
    for mangled, (stack, spilled, registers) in compiled(plans, arch, tmp_path).items():
        assert spilled <= SPILLED, (mangled, spilled)
        assert stack <= SPILLED, (mangled, stack)  # an array of sums that is indexed at run time would be here
        threads = re.search(r"Li(\d+)EEv", mangled)
        if "scan" in mangled:
            assert registers * int(threads[1]) <= DEVICES[arch].registers, mangled


@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
@pytest.mark.parametrize("storage", ["float", "double", "Half", "BFloat16"])
def test_blocks_exchange_states_by_release_and_acquire_and_past_their_l1_cache(storage, tmp_path):
    """What the CPU's stronger order of memory hides, as the instructions have it."""
    path = tmp_path / "grid.ptx"
    nvcc([f"grid_scan<{storage}, LINEAR, 16, 2, 1, 64>"], "sm_80", path, "-ptx")
    text = path.read_text()
    assert text.count("red.release.gpu.global.add.u64") == text.count("ld.acquire.gpu.global.u64") == 1
    # Two places stage the states, with eight loads each. `out` may be `source` or `factor`: none may be read as constant.
    assert len(re.findall(r"ld\.global\.cg\.", text)) == 16 and "ld.global.nc" not in text


@needs_real_cupy
def test_nvrtc_compiles_the_source_by_name_expressions():
    code = f"""
import json
from cupy.cuda import nvrtc
from rnncore_cupy import _kernels
names = {sorted(instances(DEVICES["sm_90"]))[::3]!r}
try:
    nvrtc.getVersion()
except Exception as error:
    print(json.dumps(f"{{type(error).__name__}}: {{error}}"))
    raise SystemExit
sizes = []
for arch in ("80", "90"):
    program = nvrtc.createProgram(_kernels.source(), "kernels.cu", (), ())
    for name in names:
        nvrtc.addNameExpression(program, name)
    try:
        nvrtc.compileProgram(program, (*_kernels.OPTIONS, {FLUSHED!r}, f"-arch=sm_{{arch}}", {ON_THE_DEVICE!r}))
    except Exception:
        raise SystemExit(nvrtc.getProgramLog(program))
    lowered = [nvrtc.getLoweredName(program, name) for name in names]
    sizes.append([len(nvrtc.getCUBIN(program)), len(set(lowered)), nvrtc.getProgramLog(program).strip()])
    nvrtc.destroyProgram(program)
print(json.dumps({{"names": len(names), "sizes": sizes}}))
"""
    told = json.loads(python(code))
    if isinstance(told, str):
        pytest.skip(f"NVRTC is not here: {told}")
    for size, lowered, log in told["sizes"]:
        assert size > 1000 and lowered == told["names"] and log == ""
