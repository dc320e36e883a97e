"""The Numba backend: its functions to the last places, its scans in every tile, its rule, threads, forks and files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import mpmath
import numpy as np
import pytest

import rnncore
from rnncore.backend.contract import ScanRequest
from rnncore.backend.registry import backend_of
from rnncore.errors import KernelUnsupportedError
from rnncore.nonlinearity.nonlinearity import get_nonlinearity
from rnncore.testing.tools.oracle import linear_scan, nonlinear_scan

rnncore_numba = pytest.importorskip("rnncore_numba")
from rnncore_numba import _kernels, _products, _rule, _scans, _threads  # noqa: E402
from rnncore_numba._kernels import compiled  # noqa: E402
from rnncore_numba._lanes import fuses, target  # noqa: E402
from rnncore_numba._tiles import Kind  # noqa: E402

SCANS = rnncore_numba.scans()
FUNCTIONS = ("tanh", "relu", "sigmoid", "identity")
DTYPES = ("float32", "float64")
# What the functions promise, in units in the last place; unfused products add roundings of their own.
ULP = 4 if fuses() else 6
# A sum of products in another order than the oracle's, through a few contracting steps; DESIGN.md section 6 allows 64.
EPS_ALLOWED = 64
X86 = target()[0] == "x86_64"
needs_x86 = pytest.mark.skipif(not X86, reason="the instructions and the flag are those of x86")


def applied(name, x):
    """The function of every number, by the code that ends a step."""
    x = np.ascontiguousarray(x).reshape(1, -1)
    out, nothing = np.empty_like(x), -np.zeros_like(x)  # x + -0 is x, for x = -0 too
    compiled(Kind(name, x.dtype.name, False)).finish(nothing, x.copy(), nothing, out, 0.0)
    return out[0]


def sigmoid64(x):
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


# --- functions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "exact"), [("tanh", np.tanh), ("sigmoid", sigmoid64)])
@pytest.mark.parametrize("sign", [1, -1])
def test_float32_functions_are_within_4_units_in_the_last_place(name, exact, sign):
    """Every 200th of all finite float32 numbers, 10 million, and every one of a binade where the error is largest."""
    largest = int(np.float32(np.finfo("f4").max).view("u4"))
    start = int(np.float32(1.0).view("u4"))
    for bits in (range(0, largest, 200), range(start, start + 2**23)):
        x = np.arange(bits.start, bits.stop, bits.step, dtype="u4").view("f4") * np.float32(sign)
        got, want = applied(name, x).astype("f8"), exact(x.astype("f8"))
        error = np.abs(got - want) / np.spacing(np.abs(want).astype("f4")).astype("f8")
        assert error.max() <= ULP, x[error.argmax()]
        assert np.abs(got).max() <= 1


@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
def test_float64_functions_are_within_4_units_in_the_last_place(name):
    """Against 40 digits: every exponent, subnormal ones too, and dense where the functions bend."""
    rng = np.random.default_rng(0)
    exponents = np.ldexp(rng.uniform(1, 2, 2098), np.arange(-1074, 1024))
    x = np.concatenate(
        [exponents, -exponents, rng.uniform(-40, 40, 6000), rng.uniform(-1, 1, 4000), -rng.uniform(36, 750, 2000)]
    )
    got = applied(name, x)
    with mpmath.workdps(40):
        for xi, gi in zip(x.tolist(), got.tolist(), strict=True):
            far = max(-4000.0, min(4000.0, xi))  # beyond it both are 0 or 1 to 1000 digits
            want = mpmath.tanh(far) if name == "tanh" else 1 / (1 + mpmath.exp(-far))
            assert abs(gi - want) <= ULP * mpmath.mpf(float(np.spacing(abs(float(want))))), xi


@pytest.mark.parametrize("dtype", DTYPES)
def test_functions_of_special_numbers(dtype):
    tiny = float(np.finfo(dtype).smallest_subnormal)
    x = np.asarray([0.0, -0.0, tiny, -tiny, np.inf, -np.inf, np.nan, 30.0, -30.0], dtype)
    tanh, identity = applied("tanh", x), applied("identity", x)
    np.testing.assert_array_equal(tanh, [0.0, -0.0, tiny, -tiny, 1.0, -1.0, np.nan, 1.0, -1.0])
    assert list(np.signbit(tanh[:4])) == [False, True, False, True]
    np.testing.assert_array_equal(identity, x)
    assert np.signbit(identity[1])
    np.testing.assert_array_equal(applied("relu", x), [0, 0, tiny, 0, np.inf, 0, np.nan, 30, 0])
    np.testing.assert_array_equal(applied("sigmoid", x)[:7], [0.5, 0.5, 0.5, 0.5, 1.0, 0.0, np.nan])


# --- scans ------------------------------------------------------------------------------------------------------------


def arguments(dtype, steps, batch, width, seed=0):
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((width, width)) * 0.9 / np.sqrt(width)
    shapes = [(steps, batch, width), (steps, batch, width), (batch, width)]
    return [x.astype(dtype) for x in (*(rng.uniform(-1, 1, s) for s in shapes), w)]


def assert_close(got, want):
    assert got.shape == want.shape
    scale = max(1.0, np.abs(want).max(initial=0))
    assert np.abs(got - want).max(initial=0) <= EPS_ALLOWED * np.finfo(got.dtype).eps * scale


def check_both(scans, dtype, steps, batch, width, names=FUNCTIONS, clips=(None, 0.5)):
    p, d, h0, w = arguments(dtype, steps, batch, width)
    wide = [x.astype("f8") for x in (p, d, h0, w)]
    for reverse in (False, True):
        assert_close(scans.linear(p, d, h0, w, reverse=reverse), linear_scan(*wide, reverse=reverse))
        for name in names:
            for clip in clips:
                f = get_nonlinearity(name, clip=clip)
                want = nonlinear_scan(
                    wide[0], wide[2], wide[3], name, reverse=reverse, clip=np.inf if clip is None else clip
                )
                assert_close(scans.nonlinear(p, h0, w, nonlinearity=f, reverse=reverse), want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 3, 8, 15, 16, 17, 33, 48, 63, 70, 129])
def test_every_width_of_tile(dtype, width):
    """One row and several, strips of each number, with and without a part of a vector left over."""
    for batch in (1, 3):
        check_both(SCANS, dtype, 3, batch, width, names=("tanh", "relu"), clips=(None,))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [*range(1, 18), 23, 31])
def test_every_number_of_rows(dtype, batch):
    check_both(SCANS, dtype, 4, batch, 21, names=("tanh", "identity"), clips=(None,))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_function_with_and_without_a_limit(dtype):
    check_both(SCANS, dtype, 5, 11, 19)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 5, 9])
def test_with_blas(dtype, batch, monkeypatch):
    monkeypatch.setattr(_scans, "plan", lambda *shape: (True, 1))
    check_both(SCANS, dtype, 4, batch, 37)


@pytest.mark.parametrize("threads", [2, 3, 40])
def test_threads_change_no_bit_of_a_row(threads, monkeypatch):
    p, d, h0, w = arguments("float32", 5, 48, 24)
    f = get_nonlinearity("tanh")
    one = SCANS.nonlinear(p, h0, w, nonlinearity=f, reverse=False), SCANS.linear(p, d, h0, w, reverse=True)
    monkeypatch.setattr(_scans, "plan", lambda *shape: (False, threads))
    monkeypatch.setattr(_scans, "allowed", lambda: threads)
    many = SCANS.nonlinear(p, h0, w, nonlinearity=f, reverse=False), SCANS.linear(p, d, h0, w, reverse=True)
    if threads <= 6:  # the parts are then of whole tiles of eight rows
        for a, b in zip(one, many, strict=True):
            np.testing.assert_array_equal(a, b)
    check_both(SCANS, "float32", 5, 43, 24, names=("tanh",), clips=(None,))


@pytest.mark.parametrize("shape", [(0, 3, 5), (4, 0, 5), (0, 0, 1), (1, 1, 1)])
def test_empty_and_single_axes(shape):
    check_both(SCANS, "float64", *shape, clips=(None,))


@pytest.mark.parametrize("blas", [False, True])
def test_views_read_only_arrays_and_subclasses(blas, monkeypatch):
    monkeypatch.setattr(_scans, "plan", lambda *shape: (blas, 1))

    class Mine(np.ndarray):
        pass

    plain = arguments("float32", 6, 5, 18)
    f = get_nonlinearity("tanh")
    want = SCANS.nonlinear(plain[0], plain[2], plain[3], nonlinearity=f, reverse=False)
    want_linear = SCANS.linear(*plain, reverse=True)

    def strided(x):
        return np.repeat(x, 2, axis=0)[::2]

    def reversed_view(x):
        return np.ascontiguousarray(x[..., ::-1])[..., ::-1]

    def locked(x):
        y = x.copy()
        y.flags.writeable = False
        return y

    def unaligned(x):
        return np.frombuffer(b"x" + x.tobytes(), x.dtype, offset=1).reshape(x.shape)

    ways = [strided, reversed_view, locked, unaligned, np.asfortranarray, lambda x: x.copy().view(Mine)]
    for way in ways:
        for overwrite in (False, True):
            given = [way(x) for x in plain]
            got = SCANS.nonlinear(given[0], given[2], given[3], nonlinearity=f, reverse=False, overwrite=overwrite)
            np.testing.assert_array_equal(got, want)
            given = [way(x) for x in plain]
            np.testing.assert_array_equal(SCANS.linear(*given, reverse=True, overwrite=overwrite), want_linear)
            for n in (0, 2, 3):
                np.testing.assert_array_equal(given[n], plain[n])
            assert type(got) is np.ndarray


def test_overwriting_is_in_place_and_only_when_told():
    p, d, h0, w = arguments("float64", 6, 5, 18)
    f = get_nonlinearity("relu")
    before = [x.copy() for x in (p, d, h0, w)]
    assert SCANS.nonlinear(p, h0, w, nonlinearity=f, reverse=False) is not p
    assert SCANS.linear(p, d, h0, w, reverse=False) is not d
    for x, y in zip((p, d, h0, w), before, strict=True):
        np.testing.assert_array_equal(x, y)
    assert SCANS.linear(p, d, h0, w, reverse=False, overwrite=True) is d
    assert SCANS.nonlinear(p, h0, w, nonlinearity=f, reverse=False, overwrite=True) is p


def test_nothing_is_written_beside_the_result():
    """A mask that is one lane too wide would write into the rows next to it, or past the end."""
    for width in (1, 15, 17, 31, 70):
        for batch in (1, 3, 9):
            p, d, h0, w = arguments("float32", 4, batch, width)
            room = np.full(p.size + 64, 7.0, "f4")
            inside = room[32 : 32 + p.size].reshape(p.shape)
            for run in ("nonlinear", "linear"):
                inside[...] = p if run == "nonlinear" else d
                if run == "nonlinear":
                    SCANS.nonlinear(inside, h0, w, nonlinearity=get_nonlinearity("tanh"), reverse=False, overwrite=True)
                else:
                    SCANS.linear(p, inside, h0, w, reverse=False, overwrite=True)
                assert (room[:32] == 7).all()
                assert (room[32 + p.size :] == 7).all()


# --- numbers too small to be normal -----------------------------------------------------------------------------------


@needs_x86
@pytest.mark.parametrize("blas", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_linear_scan_takes_subnormal_numbers_for_0_and_puts_the_flag_back(dtype, blas, monkeypatch):
    monkeypatch.setattr(_scans, "plan", lambda *shape: (blas, 1))
    smallest = np.finfo(dtype).smallest_normal
    u, d = np.zeros((200, 3, 5), dtype), np.full((200, 3, 5), 0.5, dtype)
    s = SCANS.linear(u, d, np.full((3, 5), smallest * 2**40, dtype), np.eye(5, dtype=dtype), reverse=False)
    assert s[30].min() > 0
    assert (s[60:] == 0).all()
    assert ((s == 0) | (s >= smallest)).all()
    assert (np.full(3, smallest) * np.asarray(0.5, dtype) > 0).all()  # everywhere else they count


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_nonlinear_scan_keeps_subnormal_numbers(dtype):
    small = np.finfo(dtype).smallest_subnormal * 6
    p = np.full((1, 3, 5), small, dtype)
    for name in ("identity", "relu", "tanh"):
        h = SCANS.nonlinear(
            p, np.zeros((3, 5), dtype), np.eye(5, dtype=dtype), nonlinearity=get_nonlinearity(name), reverse=False
        )
        assert (h == small).all()


# --- the rule, and what is told of it ---------------------------------------------------------------------------------


def request(steps, batch, width, dtype="float32", name="tanh"):
    return ScanRequest("nonlinear", steps, batch, width, dtype, "cpu", False, get_nonlinearity(name))


@pytest.mark.parametrize(
    ("shape", "blas", "threads"),
    [
        ((256, 1, 64), False, 1),
        ((1024, 1, 16), False, 1),
        ((128, 32, 128), False, 4),
        ((100, 16, 256), False, 4),
        ((512, 64, 512), False, 16),
        ((5000, 1, 128), False, 1),
        ((1, 1, 512), True, 1),
        ((4, 4, 256), True, 1),
        ((8, 4, 512), False, 1),
        ((5000, 7, 512), False, 1),
        ((5000, 8, 512), False, 2),
        ((64, 64, 4096), True, 1),
    ],
)
def test_the_rule(shape, blas, threads):
    assert _rule.plan(*shape, 4) == (blas, threads)
    words = SCANS.explain(request(*shape))
    assert ("BLAS" in words) == blas
    assert ("rows of its own" in words) == (threads > 1)


@pytest.mark.parametrize("shape", [(40, 2, 24), (1, 1, 200), (60, 16, 160)])
def test_what_is_explained_is_what_runs(shape, monkeypatch):
    ran = []

    class Spy:
        def __init__(self, real):
            self.real = real

        def __getattr__(self, name):
            ran.append(name)
            return getattr(self.real, name)

    parts = []
    real_run = _scans.run
    monkeypatch.setattr(_scans, "allowed", lambda: 2)
    monkeypatch.setattr(_scans, "run", lambda f, rows: (parts.append(len(rows)), real_run(f, rows)))
    scans = _scans.NumbaScans()
    real = scans._functions
    monkeypatch.setattr(scans, "_functions", lambda *key: Spy(real(*key)))
    p, _, h0, w = arguments("float32", *shape)
    words = scans.explain(request(*shape))
    scans.nonlinear(p, h0, w, nonlinearity=get_nonlinearity("tanh"), reverse=False)
    assert ("BLAS" in words) == ("finish" in ran) == ("pack" not in ran)
    assert ("2 may be used now" in words) == (parts == [2])


def test_rnn_explain_tells_the_way_and_the_reason():
    rnn = rnncore.RNN(8, 200, backend="numba", dtype="float32")
    assert "backend 'numba': compiled, in one thread: one sequence" in str(rnn.explain(steps=100))
    assert "step by step with BLAS: T = 1" in str(rnn.explain(steps=1))
    assert "step by step" not in str(rnncore.RNN(8, 200, backend="numpy").explain(steps=1))


def test_what_is_not_compiled_is_declined_with_a_reason():
    assert "softplus" in SCANS.unsupported(request(1, 1, 1, name="softplus"))
    assert "float16" in SCANS.unsupported(request(1, 1, 1, dtype="float16"))
    assert SCANS.unsupported(request(1, 1, 1)) is None
    square = rnncore.custom_nonlinearity(lambda z: z * z, lambda z: 2 * z, name="tanh")
    assert "no compiled form" in SCANS.unsupported(ScanRequest("nonlinear", 1, 1, 1, "float32", "cpu", False, square))
    with pytest.raises(KernelUnsupportedError, match="softplus"):
        rnncore.RNN(2, 3, nonlinearity="softplus", backend="numba", kernel="require")(np.zeros((4, 2, 2)))


# --- threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 16, 17, 43, 64])
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_rows_are_divided_without_gap_or_overlap(rows, threads):
    parts = _threads.divided(rows, threads, 8)
    assert [r for a, b in parts for r in range(a, b)] == list(range(rows))
    assert len(parts) == min(rows, threads)
    if rows >= 8 * threads:
        assert all(a % 8 == 0 for a, _ in parts)


def test_limits_set_elsewhere_hold(monkeypatch):
    from threadpoolctl import threadpool_info, threadpool_limits

    monkeypatch.setattr("numba.config.NUMBA_NUM_THREADS", 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)

    with monkeypatch.context() as m:
        m.setattr(_threads, "blas", lambda: SimpleNamespace(threads=lambda: 48))
        assert _threads.allowed() == 48
        m.setattr("numba.config.NUMBA_NUM_THREADS", 12)
        assert _threads.allowed() == 12
        m.setattr(os, "sched_getaffinity", lambda pid: {3, 4}, raising=False)
        assert _threads.allowed() == 2
    with threadpool_limits(1):
        assert _threads.allowed() == 1
    with threadpool_limits(2), _threads.limit_threads(1):
        assert _threads.allowed() == 1
        with _threads.around_blas():  # a loop of BLAS's products is held to one as well
            assert {p["num_threads"] for p in threadpool_info() if "numpy" in p["filepath"]} == {1}
    with threadpool_limits(2), _threads.limit_threads(3), _threads.around_blas():
        assert _threads.allowed() == 2
        assert {p["num_threads"] for p in threadpool_info() if "numpy" in p["filepath"]} == {2}
    with threadpool_limits(2), _threads.blas().limit_threads(1):
        assert _threads.allowed() == 2  # what the user gave, whoever holds BLAS to one meanwhile


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "inner", "columns"), [(300, 40, 24), (40, 300, 24), (1, 130, 1), (130, 1, 7), (0, 5, 3)]
)
def test_products_in_threads_of_our_own(rows, inner, columns, dtype, monkeypatch):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((inner, rows)).astype(dtype).T, rng.standard_normal((inner, columns)).astype(dtype)
    seen = []
    monkeypatch.setattr(_products, "LARGE", 0)
    monkeypatch.setattr(_products, "allowed", lambda: 3)
    monkeypatch.setattr(_products, "BLOCK", 16)
    run_parts = _products.run
    monkeypatch.setattr(_products, "run", lambda f, parts: (seen.append(parts), run_parts(f, parts)))
    found = rnncore_numba.product(a, b)
    assert (found.shape, found.dtype) == ((rows, columns), np.dtype(dtype))
    exact = a.astype("f8") @ b.astype("f8")
    bound = inner * np.finfo(dtype).eps * (np.abs(a).astype("f8") @ np.abs(b).astype("f8"))
    assert np.all(np.abs(found - exact) <= bound)
    divided = max(rows, inner)
    assert [n for first, last in seen[0] for n in range(first, last)] == list(range(divided))
    assert len(seen[0]) == min(3, divided)


def test_large_products_take_threads_of_our_own_and_small_ones_are_blas(monkeypatch):
    asked = []
    monkeypatch.setattr(_products, "allowed", lambda: 2)
    run_parts = _products.run
    monkeypatch.setattr(_products, "run", lambda f, parts: (asked.append(len(parts)), run_parts(f, parts)))
    small, large = np.ones((100, 30), "f4"), np.ones((200, 1000), "f4")
    assert np.all(rnncore_numba.product(small, small.T) == 30) and not asked
    assert np.all(rnncore_numba.product(large, np.ones((1000, 1000), "f4")) == 1000) and asked == [2]
    monkeypatch.setattr(_products, "allowed", lambda: 1)
    assert np.all(rnncore_numba.product(large, np.ones((1000, 1000), "f4")) == 1000) and asked == [2]


def test_a_product_of_one_step_wakes_no_other_thread(monkeypatch):
    """At 256 rows of 512 units BLAS would take two."""
    from threadpoolctl import threadpool_info, threadpool_limits

    seen = []

    def counted(right, a, b, **o):
        seen.append((a.shape, {p["num_threads"] for p in threadpool_info() if "numpy" in p["filepath"]}))
        return right(a, b, **o)

    monkeypatch.setattr(np, "matmul", partial(counted, np.matmul))
    with threadpool_limits(2, user_api="blas"):
        x = np.ones((256, 512), "f4")
        rnncore_numba.product(x, x[:1].T @ x[:1], False)
        rnncore_numba.product(x, x[:1].T @ x[:1], True)
    assert seen == [((256, 512), {1}), ((256, 512), {2})]


def test_an_error_in_any_part_reaches_the_caller_after_all_have_ended():
    ended = []

    def part(first, last):
        if first == bad:
            raise ZeroDivisionError(first)
        ended.append(first)

    for bad in (0, 1, 2):
        ended.clear()
        with pytest.raises(ZeroDivisionError):
            _threads.run(part, [(0, 1), (1, 2), (2, 3)])
        assert sorted(ended) == [n for n in range(3) if n != bad]


def test_calls_from_many_threads_at_once(monkeypatch):
    monkeypatch.setattr(_scans, "plan", lambda *shape: (False, 2))
    monkeypatch.setattr(_scans, "allowed", lambda: 2)
    rnn = rnncore.RNN(12, 40, backend="numba", dtype="float32", rng=0)
    inputs = [np.random.default_rng(n).standard_normal((30, 16, 12)).astype("f4") for n in range(6)]

    def everything(x):
        output, _, pullback = rnn.vjp(x)
        return output, pullback(np.ones_like(output)).params["weight_hh_l0"]

    want = [everything(x) for x in inputs]
    wrong, barrier = [], threading.Barrier(len(inputs))

    def work(n):
        barrier.wait()
        for _ in range(20):
            for a, b in zip(everything(inputs[n]), want[n], strict=True):
                if not np.array_equal(a, b):
                    wrong.append(n)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(len(inputs))]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert not wrong


def python(code, *, cwd=None, status=0, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
        timeout=300,
        check=False,
    )
    assert done.returncode == status, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


FORK = """
import os, sys, signal
import numpy as np
from rnncore_numba import _scans, scans
_scans.plan = lambda *shape: (False, 2)
_scans.allowed = lambda: 2
rng = np.random.default_rng(0)
u, d, s0, m = (rng.uniform(-.3, .3, s).astype("f4") for s in ((9, 32, 8), (9, 32, 8), (32, 8), (8, 8)))
want = scans().linear(u, d, s0, m, reverse=False)
child = os.fork()
if child == 0:
    signal.alarm(60)  # a child that waits for threads it has not would wait for ever
    os._exit(0 if np.array_equal(scans().linear(u, d, s0, m, reverse=False), want) else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert np.array_equal(scans().linear(u, d, s0, m, reverse=False), want)
print("both")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_has_threads_of_its_own():
    assert python(FORK, PYTHONWARNINGS="ignore") == "both\n"


# --- compiled once ----------------------------------------------------------------------------------------------------

COMPILE = """
from rnncore_numba._kernels import compiled
from rnncore_numba._tiles import Kind
found = compiled(Kind("relu", "float32", False))
print([sum(f.stats.cache_hits.values()) for f in found])
"""


def test_the_second_process_reads_what_the_first_compiled(tmp_path):
    assert python(COMPILE, NUMBA_CACHE_DIR=str(tmp_path)) == "[0, 0, 0]\n"
    assert python(COMPILE, NUMBA_CACHE_DIR=str(tmp_path)) == "[1, 1, 1]\n"


def test_a_change_of_any_source_is_noticed(tmp_path):
    """Numba looks at the file that a function stands in; what it is written with stands in others."""
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


def test_without_a_folder_to_write_to_it_compiles_all_the_same(monkeypatch):
    asked, real = [], _kernels.numba.njit

    def njit(*signature, **options):
        asked.append(options.get("cache", False))
        if options.get("cache"):
            raise RuntimeError("cannot cache function 'f': no locator available for file 'x'")
        return real(*signature, **options)

    monkeypatch.setattr(_kernels.numba, "njit", njit)
    assert _kernels._jit("int64(int64)", lambda x: x + 1)(2) == 3
    assert asked == [True, False]


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


# --- the plugin -------------------------------------------------------------------------------------------------------


def test_numpy_arrays_stay_numpys_and_a_model_takes_them_where_numba_is_named():
    x = np.zeros((4, 2, 3))
    assert backend_of(x).name == "numpy"
    assert backend_of(x, prefer="numba").name == "numba"
    model = rnncore_numba.RNN(3, 5, rng=0)
    assert model.backend == "numba"
    output, _ = model(x)
    want, _ = model.to("numpy")(x)
    assert type(output) is np.ndarray
    assert_close(output, want)


def test_what_is_missing_is_the_reason(monkeypatch):
    assert rnncore_numba.unusable() is None
    monkeypatch.setattr(rnncore_numba, "find_spec", lambda name: None if name == "numba" else object())
    assert rnncore_numba.unusable() == "numba is not installed"


def test_the_plugin_imports_no_numba():
    assert (
        python("import sys, rnncore_numba; print('numba' in sys.modules, 'llvmlite' in sys.modules)") == "False False\n"
    )


def test_gradients_and_tangents_are_numpys():
    for options in ({}, {"bidirectional": True, "num_layers": 2, "nonlinearity": "sigmoid"}):
        model = rnncore.RNN(5, 23, backend="numba", kernel="require", rng=1, **options)
        other = model.to("numpy")
        x = np.random.default_rng(2).standard_normal((12, 9, 5))
        for lengths in (None, [12, 0, 3, 5, 12, 1, 7, 8, 9]):
            output, _, pullback = model.vjp(x, lengths=lengths)
            want, _, other_pullback = other.vjp(x, lengths=lengths)
            assert_close(output, want)
            got, expected = pullback(np.ones_like(output)), other_pullback(np.ones_like(want))
            assert_close(got.x, expected.x)
            for name, value in expected.params.items():
                assert_close(got.params[name], value)
            assert_close(
                model.jvp(x, lengths=lengths, x_dot=x)[2].output, other.jvp(x, lengths=lengths, x_dot=x)[2].output
            )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "width"), [(8, 17), (9, 257), (13, 40), (27, 21), (44, 49)])
def test_the_number_of_threads_that_may_be_used_changes_no_bit(dtype, batch, width, monkeypatch):
    """Strips left over, tiles of 8, 4, 2 and 1 row, and parts that end between two tiles of 8."""
    p, d, h0, w = arguments(dtype, 5, batch, width)
    f = get_nonlinearity("tanh")
    worth = batch // _rule.ROWS_PER_THREAD  # the most that the rule takes
    monkeypatch.setattr(_scans, "plan", lambda *shape: (False, worth))
    found = []
    for threads in range(1, worth + 1):
        monkeypatch.setattr(_scans, "allowed", lambda threads=threads: threads)
        found.append(
            (SCANS.nonlinear(p, h0, w, nonlinearity=f, reverse=False), SCANS.linear(p, d, h0, w, reverse=True))
        )
    for scans in found[1:]:
        for one, many in zip(found[0], scans, strict=True):
            np.testing.assert_array_equal(one, many)


def test_with_numbas_compiler_switched_off_the_reference_runs_and_says_why():
    code = """
import numpy as np, rnncore
rnn = rnncore.RNN(3, 4, rng=0, backend="numba")
same = np.allclose(rnn(np.ones((5, 2, 3)))[0], rnn.to("numpy")(np.ones((5, 2, 3)))[0], rtol=0, atol=1e-12)
print(same, "NUMBA_DISABLE_JIT is set" in str(rnn.explain()))
"""
    assert python(code, NUMBA_DISABLE_JIT="1") == "True True\n"
