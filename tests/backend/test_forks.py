"""Forks while another thread imports a library, compiles or holds a lock that the child needs."""

import os
import threading

import pytest

from rnncore.backend import forks
from rnncore.backend.forks import FirstUses, first_use
from rnncore.errors import BackendUnavailableError
from tests.tools.forks import forked, needs_fork
from tests.tools.plugins import sound
from tests.tools.process import PATIENCE


@needs_fork
def told_of_waiting(uses):
    """An event that is set as soon as a thread waits."""
    waiting = threading.Event()

    class Watched(threading.Condition):
        def wait(self, timeout=None):
            waiting.set()
            return super().wait(timeout)

    uses._changed = Watched()
    return waiting


def test_a_fork_waits_for_a_library_that_another_thread_imports(plugin_files, tmp_path):
    more = "native_package = 'slowlib'\ndef namespace():\n    import slowlib\n    return __import__('numpy')"
    plugin_files("slow", sound("slow", more), "slow")
    (tmp_path / "slowlib.py").write_text("import __main__\n__main__.pause()\n")
    code = """
        fork_during(lambda: rnncore.get_backend("slow"), lambda: rnncore.get_backend("slow").namespace().ones(3))
        print("done")
    """
    assert forked(code, PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])) == "done"


@needs_fork
def test_a_fork_waits_for_the_list_of_plugins():
    code = """
        from rnncore.backend import state
        read = state.read_metadata
        state.read_metadata = lambda: (pause(), read())[1]
        fork_during(rnncore.backends, lambda: rnncore.RNN(2, 3, backend="numpy"))
        print("done")
    """
    assert forked(code) == "done"


@needs_fork
def test_a_fork_waits_for_the_holder_of_a_lock():
    code = """
        lock = threading.RLock()
        first_use.hold_in_forks(lock)
        def work():
            with lock:
                pause()
        def in_child():
            with lock, first_use:
                pass
        for _ in range(20):
            fork_during(work, in_child)
            with lock:
                pass
        print("done")
    """
    assert forked(code) == "done"


@needs_fork
@pytest.mark.parametrize("kind", ["first use", "lock"])
def test_after_the_longest_wait_the_child_gets_an_error_instead_of_a_hang(kind):
    code = f"""
        forks.LONGEST_WAIT = 0
        rnncore.get_backend("numpy")
        lock = threading.RLock()
        first_use.hold_in_forks(lock)
        busy_with = first_use if {kind!r} == "first use" else lock
        go_on = threading.Event()
        noticed.wait = go_on.wait
        def work():
            with busy_with:
                pause()
        def in_child():
            assert rnncore.get_backend("numpy").name == "numpy"
            try:
                rnncore.get_backend("torch")
            except rnncore.errors.BackendUnavailableError as error:
                assert "forked" in str(error) and "spawn" in str(error)
            else:
                raise AssertionError("no error")
        fork = os.fork
        def fork_and_go_on():
            child = fork()
            if child:
                go_on.set()
            return child
        os.fork = fork_and_go_on
        fork_during(work, in_child)
        assert rnncore.get_backend("torch").name == "torch"
        print("done")
    """
    assert forked(code) == "done"


@needs_fork
def test_a_library_that_forks_while_it_is_imported_waits_for_nobody():
    """Another thread may be waiting for that import."""
    code = """
        go_on = threading.Event()
        noticed.wait = go_on.wait
        def work():
            with first_use:
                pause()
        def in_child():
            with first_use:
                pass
        with first_use:
            fork = os.fork
            def fork_and_go_on():
                child = fork()
                if child:
                    go_on.set()
                return child
            os.fork = fork_and_go_on
            fork_during(work, in_child)
        with first_use:
            pass
        print("done")
    """
    assert forked(code) == "done"


def test_nobody_waits_to_enter_while_a_fork_waits():
    """Whoever is inside may need what the one that enters holds."""
    uses, entered, order = FirstUses(), threading.Event(), []
    waiting = told_of_waiting(uses)

    def inside():
        with uses:
            first_is_in.set()
            assert entered.wait(PATIENCE)
            order.append("first leaves")

    def enters():
        with uses:
            entered.set()

    def forks_now():
        uses.before_fork()
        order.append("forks")
        uses.after_fork_in_parent()

    first_is_in = threading.Event()
    threads = [threading.Thread(target=f) for f in (inside, forks_now, enters)]
    for thread, ready in zip(threads, (first_is_in, waiting, entered), strict=True):
        thread.start()
        assert ready.wait(PATIENCE)
    for thread in threads:
        thread.join()
    assert order == ["first leaves", "forks"]


def test_a_thread_with_one_first_use_after_another_lets_a_waiting_fork_pass_between_them():
    uses, order = FirstUses(), []
    waiting = told_of_waiting(uses)

    def one_after_another():
        with uses:
            inside.set()
            assert waiting.wait(PATIENCE)
        for n in range(3):
            with uses:
                order.append(n)

    inside = threading.Event()
    thread = threading.Thread(target=one_after_another)
    thread.start()
    assert inside.wait(PATIENCE)
    uses.before_fork()
    order.append("forks")
    uses.after_fork_in_parent()
    thread.join()
    assert order == ["forks", 0, 1, 2]


def test_whoever_enters_during_the_fork_waits_until_it_is_over():
    uses, order = FirstUses(), []
    waiting = told_of_waiting(uses)

    def enters():
        with uses:
            order.append("in")

    uses.before_fork()
    with uses:  # the forking thread itself may
        pass
    thread = threading.Thread(target=enters)
    thread.start()
    assert waiting.wait(PATIENCE)
    order.append("forked")
    uses.after_fork_in_parent()
    thread.join()
    assert order == ["forked", "in"]


def test_an_error_inside_leaves_it():
    with pytest.raises(ZeroDivisionError), first_use:
        raise ZeroDivisionError
    assert not first_use._depths


def test_a_child_that_was_cut_stays_cut_in_its_children(monkeypatch):
    monkeypatch.setattr(forks, "LONGEST_WAIT", 0.0)
    uses = FirstUses()
    uses._depths[-1] = 1  # another thread
    for _ in range(2):
        uses.before_fork()
        uses._pid = 0  # the parent's
        uses.after_fork_in_child()
        with pytest.raises(BackendUnavailableError, match="half done"):
            uses.__enter__()


def test_a_wait_that_is_interrupted_is_over():
    """Python forks all the same, after it has called the handler that was registered before, too."""
    uses, waits = FirstUses(), []

    class Interrupted(threading.Condition):
        def wait(self, timeout=None):
            waits.append(timeout)
            raise KeyboardInterrupt

    uses._changed = Interrupted()
    uses._depths[-1] = 1  # another thread
    with pytest.raises(KeyboardInterrupt):
        uses.before_fork()
    uses.before_fork()
    assert len(waits) == 1
    uses._pid = 0  # the parent's
    uses.after_fork_in_child()
    with pytest.raises(BackendUnavailableError, match="half done"):
        uses.__enter__()


@needs_fork
def test_the_standard_library_releases_nothing_that_it_has_not_taken_if_it_is_imported_while_a_fork_waits():
    code = """
        def work():
            with first_use:
                pause()
                import concurrent.futures.thread, logging
        errors = []
        sys.unraisablehook = errors.append
        fork_during(work, lambda: errors and sys.exit("an error in the child"))
        assert not errors
        print("done")
    """
    assert forked(code) == "done"


@needs_fork
def test_what_the_other_thread_needs_of_the_standard_library_is_free_while_a_fork_waits():
    """Its own handlers hold locks during forks, and those that register last come first."""
    code = """
        assert "logging" not in sys.modules and "concurrent.futures" not in sys.modules
        def work():
            with first_use:
                import concurrent.futures, logging
                pause()
                logging.getLogger("new").isEnabledFor(10)
                with concurrent.futures.ThreadPoolExecutor(1) as pool:
                    pool.submit(int).result()
                done.append(1)
        done = []
        os.register_at_fork(before=lambda: None, after_in_parent=lambda: order.append(len(done)))
        order = []
        fork_during(work, lambda: len(done) == 1 or sys.exit("the fork did not wait"))
        assert order == [1]
        print("done")
    """
    assert forked(code) == "done"
