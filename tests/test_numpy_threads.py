"""NumPy's scans hold BLAS to one thread for small products, and leave its setting as they found it."""

import threading

import numpy as np
import pytest
from rnncore_numpy import _scans, _threads

import rnncore


class Library:
    """A BLAS that counts what is asked of it."""

    def __init__(self, count):
        self.num_threads, self.asked = count, []

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
def test_the_rule(blas, shape, limited):
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
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = [library.num_threads for library in libraries]
        with _threads._ONE:
            assert [library.num_threads for library in libraries] == [1] * len(libraries)
        assert [library.num_threads for library in libraries] == before
