"""Forks in the middle of another thread's work."""

import os
import textwrap

import pytest

from tests.tools.process import PATIENCE, python

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")

# A thread `busy` does `work`, and goes on when a fork of the main thread waits for it or is over: without the wait, the child
# is what it is when the thread is in the middle of its work.
FORK = """
    import os, signal, sys, threading
    import rnncore
    from rnncore.backend import forks
    from rnncore.backend.forks import first_use

    forks.LONGEST_WAIT = PATIENCE  # no loaded machine reaches it
    begun, noticed = threading.Event(), threading.Event()

    class Watched(threading.Condition):
        def wait(self, timeout=None):
            noticed.set()
            return super().wait(timeout)

    class WatchedLock:
        def __init__(self, lock):
            self.lock, self.release = lock, lock.release
        def acquire(self, *, timeout):
            noticed.set()
            return self.lock.acquire(timeout=timeout)

    def pause():
        if threading.current_thread() is busy:
            begun.set()
            noticed.wait()

    def fork_during(work, in_child):
        global busy
        begun.clear(), noticed.clear()
        first_use._changed = Watched()
        first_use._locks = [WatchedLock(lock) for lock in first_use._locks]
        busy = threading.Thread(target=work)
        busy.start()
        begun.wait()
        child = os.fork()
        if child == 0:
            signal.alarm(PATIENCE)  # reached only by a child that hangs
            try:
                in_child()
            except BaseException as error:
                print(type(error).__name__, error, file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        noticed.set()
        busy.join()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
""".replace("PATIENCE", str(PATIENCE))


def forked(code, **environment):
    """What the code prints in a process of its own, where it may call ``fork_during``."""
    # No flags: from Python 3.12 on, a fork with threads is a DeprecationWarning.
    return python(textwrap.dedent(FORK) + textwrap.dedent(code), flags=(), **environment)
