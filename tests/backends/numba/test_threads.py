"""Threads: shares of rows, limits, errors and forks."""

import os
import threading
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import rnncore_numba
from rnncore_numba import _products, _scans, _threads

import rnncore
from tests.tools.numba_scans import DTYPES
from tests.tools.process import python


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
    monkeypatch.setattr(_products, "ALONE", -1)
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

    monkeypatch.setattr(np, "dot", partial(counted, np.dot))
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
    signal.alarm(1800)  # a child that waits for threads it has not would wait for ever
    os._exit(0 if np.array_equal(scans().linear(u, d, s0, m, reverse=False), want) else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert np.array_equal(scans().linear(u, d, s0, m, reverse=False), want)
print("both")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_has_threads_of_its_own():
    assert python(FORK, flags=()) == "both"
