"""NumPy's scans hold BLAS to one thread for small products, and leave its setting as they found it."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import rnncore_numpy
from rnncore_numpy import _scans, _threads

import rnncore


class Library:
    """A BLAS that records how its threads are set."""

    def __init__(self, count):
        self.num_threads, self.asked = count, []

    def get_num_threads(self):
        return self.num_threads

    def set_num_threads(self, count):
        self.asked.append(count)
        self.num_threads = count


@pytest.fixture
def blas(monkeypatch):
    libraries = (Library(2), Library(4))
    monkeypatch.setattr(_threads, "_libraries", lambda: libraries)
    return libraries


def run(steps, batch, width, dtype="float32"):
    rnn = rnncore.RNN(width, width, rng=0, backend="numpy", dtype=dtype)
    return rnn(np.ones((steps, batch, width), dtype))


@pytest.mark.parametrize(
    ("shape", "limited"),
    [
        ((1, 1, 16), False),  # a call a step: setting the number would be felt
        ((10_000, 1, 32), False),  # a vector's product that BLAS does not divide
        ((1000, 1, 128), True),
        ((200, 32, 128), True),
        ((200, 4, 64), False),
        ((4, 64, 512), False),  # large: two threads are faster
    ],
)
def test_the_rule(blas, monkeypatch, shape, limited):
    monkeypatch.setattr(rnncore_numpy, "product", lambda a, b, whole: np.matmul(a, b))
    run(*shape)
    assert (blas[0].asked == [1, 2]) == limited and (blas[1].asked == [1, 4]) == limited
    assert [b.num_threads for b in blas] == [2, 4]


def test_the_backward_scan_too(blas):
    rnn = rnncore.RNN(64, 128, rng=0, backend="numpy", dtype="float32")
    output, _, pullback = rnn.vjp(np.ones((200, 16, 64), "float32"))
    del blas[0].asked[:]
    pullback(np.ones_like(output))
    assert 1 in blas[0].asked and blas[0].num_threads == 2


def test_an_error_inside_gives_the_threads_back(blas, monkeypatch):
    def fails(*arrays):
        raise FloatingPointError("in the loop")

    monkeypatch.setattr(_scans, "_dot", fails)
    with pytest.raises(FloatingPointError):
        run(1000, 1, 128)
    assert [b.num_threads for b in blas] == [2, 4]


def test_loops_in_several_threads_give_back_what_was_before_the_first(blas):
    """One that enters while another runs finds 1, and must not take that for the user's setting."""
    inside, leave = threading.Barrier(3), threading.Event()

    def loop():
        with _threads._ONE:
            inside.wait()
            leave.wait()

    threads = [threading.Thread(target=loop) for _ in range(2)]
    for t in threads:
        t.start()
    inside.wait()
    assert [b.num_threads for b in blas] == [1, 1]
    leave.set()
    for t in threads:
        t.join()
    assert [b.num_threads for b in blas] == [2, 4] and blas[0].asked == [1, 2]


def test_the_real_library_is_found_and_set():
    threadpoolctl = pytest.importorskip("threadpoolctl")
    libraries = _threads._libraries()
    assert libraries, "NumPy's wheel brings a BLAS"

    def counts():
        """What threadpoolctl reads, which is not how they were set."""
        every = threadpoolctl.threadpool_info()
        return [pool["num_threads"] for pool in every if "numpy.libs" in pool["filepath"]]

    if not counts():
        pytest.skip("this NumPy brings no BLAS of its own")
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = counts()
        assert before == [library.get_num_threads() for library in libraries]
        with _threads._ONE:
            assert counts() == [1] * len(libraries)
        assert counts() == before


def test_what_the_user_gave_is_known_while_a_loop_holds_it_back(blas):
    assert rnncore_numpy.threads() == 2
    with rnncore_numpy.limit_threads(1):
        assert [b.num_threads for b in blas] == [1, 1] and rnncore_numpy.threads() == 2
    blas[1].num_threads = 1
    assert rnncore_numpy.threads() == 1


def test_a_number_that_was_set_meanwhile_stays(blas):
    with _threads._ONE:
        blas[0].set_num_threads(3)
    assert [b.num_threads for b in blas] == [3, 4]


@pytest.mark.parametrize("when", ["found", "set"])
def test_an_interrupt_on_the_way_in_leaves_nothing_behind(blas, monkeypatch, when):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if when == "found":
            patch.setattr(_threads, "_libraries", interrupted)
        else:
            patch.setattr(blas[1], "set_num_threads", interrupted, raising=False)
        with pytest.raises(KeyboardInterrupt), _threads._ONE:
            pass  # not reached
    if when == "found":
        assert [b.num_threads for b in blas] == [2, 4]
    run(1000, 1, 128)
    assert blas[0].asked[-2:] == [1, 2] and [b.num_threads for b in blas] == [2, 4]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_a_fork_in_the_middle_of_a_loop_leaves_the_child_free():
    """The child has neither the thread that was inside nor the one that would give the lock back."""
    code = """
import os
import subprocess
import sys
from rnncore_numpy import _threads

class Library:
    num_threads = 2
    def get_num_threads(self):
        return self.num_threads
    def set_num_threads(self, count):
        self.num_threads = count

library = Library()
_threads._libraries = lambda: (library,)
with _threads._ONE, _threads._ONE._lock:
    child = os.fork()
    if child == 0:
        free = _threads._ONE._lock.acquire(blocking=False)
        os._exit(0 if free and library.num_threads == 2 and not _threads._ONE._inside else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), library.num_threads)
"""
    # In a process of its own: libraries that other tests have loaded warn of every fork.
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["0", "1"]


@pytest.mark.parametrize(("steps", "limited"), [(10, False), (256, True), (10_000, False)])
def test_the_products_of_all_steps(blas, monkeypatch, steps, limited):
    """The input's product at 64 units: alone up to 2**18 multiplications, worth threads from 2**25 on."""
    monkeypatch.setattr(_scans, "one_thread_for", lambda *shape: None)
    run(steps, 1, 64)
    assert (blas[0].asked == [1, 2]) == limited
    output, _, pullback = rnncore.RNN(64, 64, rng=0, backend="numpy", dtype="float32").vjp(
        np.ones((steps, 1, 64), "f4")
    )
    del blas[0].asked[:]
    pullback(np.ones_like(output))
    assert blas[0].asked == ([1, 2] * 3 if limited else [])  # d_x, dW_ih and dW_hh
    assert blas[0].num_threads == 2
