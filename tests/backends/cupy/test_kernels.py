"""The CUDA kernels' arithmetic, indices and barriers on a CPU: the same source with threads of the system for a GPU's.

tests/cuda_on_cpu says what that shows and what it does not. Planted bugs show that it does.
"""

import math
import os
import subprocess
from dataclasses import replace

import cuda_on_cpu
import ml_dtypes
import numpy as np
import pytest
from cuda_on_cpu.cases import CASES, NONLINEARITY, NUMPY, ROUNDINGS, Case, answer, fault, inputs, run
from rnncore_cupy._plan import Limits, choose

from rnncore import get_nonlinearity

pytestmark = [pytest.mark.slow, pytest.mark.skipif(cuda_on_cpu.COMPILER is None, reason="needs g++")]

STEPS_ALONE = {
    f"step_alone<{storage}, {step}>": (storage, step)
    for storage, step in [("float", "TANH"), ("double", "SIGMOID"), ("Half", "LINEAR"), ("BFloat16", "RELU")]
}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """All instances that the cases name, compiled as two files at once."""
    names = sorted({case.name for case in CASES + OF_THE_RULE} | set(STEPS_ALONE))
    folder = tmp_path_factory.mktemp("kernels")
    first, second = (cuda_on_cpu.finish(s) for s in [cuda_on_cpu.start(names[k::2], folder) for k in (0, 1)])
    first.functions.update(second.functions)
    return first


# --- numbers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.name} {c.steps}x{c.batch}x{c.width}")
def test_every_kernel_agrees_with_the_float64_reference(library, case):
    for seed, other in enumerate(case.other_ways()):
        assert fault(library, other, seed) is None, other


def planned(width, batch, storage, step, multiprocessors, steps):
    """The case that the rule makes of a scan on an H100, or on one with fewer multiprocessors."""
    limits = Limits(multiprocessors, 232448, 65536, True)
    plan = choose(width, batch, 8 if storage == "double" else 4, limits, lambda plan: multiprocessors)
    shape = (plan.lanes, plan.states, plan.kept, plan.threads)
    case = Case(plan.regime, storage, step, *shape, steps, batch, width, tile=plan.tile)
    assert plan.shared == case.shared and plan.grid[: len(case.grid)] == case.grid
    return case


OF_THE_RULE = [
    planned(100, 3, "float", "TANH", 132, 5),
    planned(256, 2, "float", "LINEAR", 132, 3),
    planned(231, 11, "float", "RELU", 2, 3),
    planned(190, 3, "double", "SIGMOID", 132, 3),
    planned(333, 2, "float", "TANH", 3, 3),
    planned(401, 9, "float", "LINEAR", 4, 2),
    planned(270, 3, "Half", "TANH", 2, 3),
]


@pytest.mark.parametrize("case", OF_THE_RULE, ids=lambda c: f"{c.name} {c.steps}x{c.batch}x{c.width}")
def test_what_the_rule_picks_for_wide_layers_agrees_with_the_reference(library, case):
    assert fault(library, case) is None
    assert fault(library, replace(case, reverse=True, in_place=True, transposed=True), seed=1) is None


def test_tanh_and_sigmoid_are_accurate_over_their_range(library):
    z = np.concatenate([np.linspace(-20, 20, 4000), np.geomspace(1e-30, 1, 300), -np.geomspace(1e-30, 1, 300)])
    for name, f in (
        ("step_alone<float, TANH>", np.tanh),
        ("step_alone<double, SIGMOID>", lambda x: 1 / (1 + np.exp(-x))),
    ):
        x = z.astype(NUMPY[STEPS_ALONE[name][0]])
        got = step_alone(library, name, np.zeros_like(x), x, x)
        want = f(x.astype(np.longdouble))
        assert np.abs(got / want - 1).max() <= 4 * np.finfo(x.dtype).eps  # a few roundings, in the tails too


@pytest.mark.parametrize("name", STEPS_ALONE)
def test_the_step_alone_goes_round_and_works_in_place(library, name):
    storage, step = STEPS_ALONE[name]
    product = inputs(Case("block", storage, "TANH", 8, 1, 1, 32, 3, 5, 67))[0].reshape(-1)
    source, factor = product[::-1].copy(), np.roll(product, 7)
    z = product.astype(float) + source.astype(float)
    want = factor * z if step == "LINEAR" else get_nonlinearity(NONLINEARITY[step])(z, xp=np)
    got = step_alone(library, name, product, source, factor)
    assert np.abs(got - want).max() <= ROUNDINGS * float(np.spacing(NUMPY[storage](1)))
    in_place = source.copy()
    assert np.array_equal(step_alone(library, name, product, in_place, factor, out=in_place), got)


def step_alone(library, name, product, source, factor, out=None):
    """Two blocks of 256, which have to go round."""
    out = np.full_like(source, np.nan) if out is None else out
    arguments = (product, source, factor, out, np.int64(out.size), np.float64(math.inf))
    library.launch(name, (2,), (256,), arguments)
    return out.astype(float)


def test_nan_and_infinities_are_the_references(library):
    by_step = {(case.regime, case.step, case.storage): case for case in CASES}
    for key in [
        ("block", "RELU", "float"),
        ("block", "SIGMOID", "float"),
        ("block", "TANH", "Half"),
        ("grid", "RELU", "float"),
        ("grid", "TANH", "double"),
        ("block", "LINEAR", "double"),
        ("grid", "IDENTITY", "BFloat16"),
    ]:
        for clip in (math.inf, 0.5):
            case = replace(by_step[key], steps=3, batch=4, clip=clip)
            source, factor, first, matrix = inputs(case)
            source[0, 0, :3], source[1, 1, 2], first[-1, -1] = (np.nan, np.inf, -np.inf), np.nan, np.inf
            want = answer(case, source, factor, first, matrix)
            got, written = run(library, case, source, factor, first, matrix)
            assert written == []
            np.testing.assert_array_equal(np.isnan(got), np.isnan(want), err_msg=str(case))
            assert np.isnan(got).any() and np.isfinite(got[:, 2]).all()
            infinite = np.isinf(want)
            np.testing.assert_array_equal(got[infinite], want[infinite])


def test_halves_are_rounded_to_the_nearest_with_ties_to_even(library):
    rng = np.random.default_rng(0)
    for name in ("step_alone<BFloat16, RELU>", "step_alone<Half, LINEAR>"):
        dtype = NUMPY[STEPS_ALONE[name][0]]
        small = rng.standard_normal(4096).astype(np.float32).astype(dtype)
        large = (small.astype(np.float32) * rng.choice([0.5, 2.0, 3.0, 1e-3], 4096)).astype(dtype)
        one = np.ones_like(small)
        exact = np.abs(small).astype(np.float32) + np.abs(large).astype(np.float32)
        got = step_alone(library, name, np.abs(small), np.abs(large), one)
        np.testing.assert_array_equal(got, exact.astype(dtype).astype(float))
        half_of_it = dtype(float(np.spacing(dtype(1))) / 2)
        tie = [one[:1], one[:1] + np.spacing(dtype(1))]
        for low, want in zip(tie, (1.0, 1.0 + 2 * float(np.spacing(dtype(1)))), strict=True):
            low = low.astype(dtype)
            assert step_alone(library, name, np.full_like(low, half_of_it), low, one[:1])[0] == want


def test_the_state_that_goes_on_is_the_one_that_is_stored(library):
    """1 + half an eps is stored as 1, so that -1 at the next step leaves nothing: the half is not carried along."""
    for regime, storage in (("block", "BFloat16"), ("grid", "Half")):
        found = next(c for c in CASES if (c.regime, c.storage, c.step) == (regime, storage, "LINEAR"))
        case = replace(found, steps=2, batch=1, width=1, tile=1)
        half = np.full((1, 1), float(ml_dtypes.finfo(NUMPY[storage]).eps) / 2)
        source, one = np.array([1.0, -1.0]).reshape(2, 1, 1), np.ones((2, 1, 1))
        given = (x.astype(NUMPY[storage]) for x in (source, one, half, np.ones((1, 1))))
        got, written = run(library, case, *given)
        assert written == [] and got.ravel().tolist() == [1, 0], case


def test_indices_go_past_two_to_the_31(library, tmp_path):
    """The last block alone, in place, in an array of 2^31 numbers and more that is a file without content elsewhere."""
    for case in (
        next(c for c in CASES if (c.regime, c.storage) == ("block", "Half")),
        next(c for c in CASES if (c.regime, c.storage, c.step) == ("grid", "Half", "LINEAR")),
    ):
        small = replace(case, batch=case.states, steps=3, tile=case.states)
        given = source, factor, first, matrix = inputs(small)
        batch = (2**31 // (2 * case.width) // case.states + 1) * case.states
        shape = (3, batch, case.width)
        arrays = []
        for name, x in (("source", source), ("factor", factor), ("first", first)):
            of = shape[-x.ndim :]
            arrays.append(np.memmap(tmp_path / name, dtype=np.float16, mode="w+", shape=of))
            arrays[-1][..., -case.states :, :] = x
        assert arrays[0].size > 2**31
        out = arrays[1] if case.step == "LINEAR" else arrays[0]
        strides = (np.int64(case.width), np.int64(1))
        counts = np.int64(3), np.int64(batch), np.int32(case.width), np.int32(0), np.float64(math.inf)
        arguments = (*arrays, matrix, out, *strides, *counts)
        last = batch // case.states - 1
        grid = (last + 1,)
        if case.regime == "grid":
            grid, last = (small.grid[0], last + 1), last * small.grid[0]
            arguments += (np.int64(case.states), np.zeros(grid[1] * 16, np.uint64))
        library.launch(case.name, grid, (case.threads,), arguments, case.shared, start=last)
        want = answer(small, *given)
        assert np.abs(out[:, -case.states :].astype(float) - want).max() <= ROUNDINGS * 2.0**-10 * np.abs(want).max()


# --- planted bugs --------------------------------------------------------------------------------------------------------

BLOCK = next(c for c in CASES if (c.regime, c.step) == ("block", "RELU"))
GRID = next(c for c in CASES if (c.regime, c.width) == ("grid", 37))
DOUBLE = next(c for c in CASES if (c.regime, c.storage, c.step) == ("block", "double", "TANH"))
STAGED = next(c for c in CASES if (c.regime, c.width) == ("grid", 69))  # four groups of states in a step

BUGS = {
    "missing barrier": (BLOCK, "        __syncthreads();\n        now = 1 - now;", "        now = 1 - now;"),
    "missing barrier between blocks": (GRID, "if (step > 0) wait_for(", "if (step > steps) wait_for("),
    "a block that does not wait for the last of the others": (GRID, "step * gridDim.x", "step * gridDim.x - 1"),
    "an arrival before all is stored": (GRID, "__syncthreads();\n    if (threadIdx.x == 0) add", "if (threadIdx.x == 0) add"),
    "missing barrier after staging": (STAGED, "            __syncthreads();  // the states are there", "            //"),
    "wrong tile edge of the matrix": (BLOCK, "row < width && column + c < width", "row < width && column + c < width - 1"),
    "wrong tile edge of the batch": (GRID, "begin + tile < batch ? begin + tile", "begin + tile < batch ? begin + tile - 1"),
    "a state past the tile's edge": (GRID, "&& column < width && b < end", "&& column < width"),
    "h0 ignored": (BLOCK, "inside ? widen(first[(first_state + b) * width + k])", "inside ? Number(0)"),
    "h0 ignored by the grid": (GRID, "step == 0 ? first : out", "step == 0 ? source : out"),
    "off by one in reverse": (BLOCK, "Index at = reverse ? (steps - 1) * stride", "Index at = reverse ? (steps - 2) * stride"),
    "stale double buffer": (BLOCK, "next_states = states + (1 - now) *", "next_states = states + now *"),
    "half of a quad of doubles twice": (DOUBLE, "quad.x[i * SIZE + c]", "quad.x[c]"),
    "stale double buffer of the grid": (STAGED, "other = states + (1 - now) *", "other = states + now *"),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(tmp_path, bug):
    case, right, wrong = BUGS[bug]
    source = cuda_on_cpu.source()
    assert right in source
    case = replace(case, reverse="reverse" in bug)
    broken = cuda_on_cpu.build([case.name], tmp_path, source.replace(right, wrong))
    # A race is a matter of chance, although one thread in many falls behind: it is given several.
    assert any(fault(broken, case, seed) for seed in range(8))


# --- a race detector and a memory checker --------------------------------------------------------------------------------


def checked_program(folder, sanitizer, source):
    """The exit status and the words of a program that runs two small cases under one of the compiler's checkers."""
    reason = cuda_on_cpu.lacks(sanitizer, folder)
    if reason is not None:
        pytest.skip(reason)
    text = ['#include "cuda_on_cpu.h"', source, "int main() {"]
    for case in (BLOCK, replace(STAGED, batch=3, tile=3, steps=3, reverse=True)):
        case = replace(case, steps=3)
        storage, sequence, state = case.storage, case.steps * case.batch * case.width, case.batch * case.width
        text.append(f"""  {{
    std::vector<{storage}> source({sequence}, 0.5f), factor({sequence}, 0.5f), first({state}, 0.25f), out({sequence});
    std::vector<{storage}> matrix({case.width**2}, 0.125f);
    std::vector<unsigned long long> counters({case.grid[-1] * 16});
    const {storage} *p = source.data(), *d = factor.data(), *h0 = first.data(), *a = matrix.data();
    {storage}* h = out.data();
    Index row = {case.width}, column = 1, steps = {case.steps}, batch = {case.batch}, tile = {case.tile};
    int width = {case.width}, reverse = {int(case.reverse)};
    double clip = INFINITY;
    unsigned long long* c = counters.data();
    void* arguments[] = {{&p, &d, &h0, &a, &h, &row, &column, &steps, &batch, &width, &reverse, &clip, &tile, &c}};
    cuda_on_cpu::launch({case.name}, arguments, {", ".join(map(str, (*case.grid, 1)[:2]))}, {case.threads}, {case.shared},
                        {int(case.regime == "grid")}, 0, 0);
  }}""")
    path = folder / f"{sanitizer}.cpp"
    path.write_text("\n".join([*text, "}"]))
    command = [cuda_on_cpu.COMPILER, "-std=c++17", "-O1", "-g", "-pthread", f"-fsanitize={sanitizer}"]
    command += ["-Wno-unknown-pragmas", f"-I{cuda_on_cpu.HERE}", str(path), "-o", str(path.with_suffix(""))]
    compiled = subprocess.run(command, capture_output=True, text=True, check=False)
    assert compiled.returncode == 0, compiled.stderr
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1", "UBSAN_OPTIONS": "halt_on_error=1"}
    done = subprocess.run([str(path.with_suffix(""))], capture_output=True, text=True, check=False, env=environment)
    return done.returncode, done.stderr


def test_each_block_loads_each_state_of_its_rows_once_and_nothing_for_what_is_past_the_edge(tmp_path):
    library = cuda_on_cpu.build([GRID.name], tmp_path)
    before = library.loads()
    assert fault(library, GRID) is None
    assert library.loads() - before == GRID.grid[0] * GRID.steps * GRID.batch * GRID.width


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_no_race_and_no_access_out_of_bounds_is_seen(tmp_path, sanitizer):
    status, words = checked_program(tmp_path, sanitizer, cuda_on_cpu.source())
    assert (status, words) == (0, "")


def test_a_missing_barrier_is_a_race_and_a_wrong_edge_an_access_out_of_bounds(tmp_path):
    for bug in ("missing barrier", "missing barrier after staging"):
        _, right, wrong = BUGS[bug]
        _, words = checked_program(tmp_path, "thread", cuda_on_cpu.source().replace(right, wrong))
        assert "WARNING: ThreadSanitizer: data race" in words, bug
    past_the_end = cuda_on_cpu.source().replace("next_p[i] = more && mine[i]", "next_p[i] = mine[i]")
    _, words = checked_program(tmp_path, "address,undefined", past_the_end)
    assert "heap-buffer-overflow" in words


def test_every_step_is_in_the_cases():
    assert {case.step for case in CASES} == {*NONLINEARITY, "LINEAR"}
    assert {case.storage for case in CASES} == set(NUMPY)
