"""The registry used from several threads at once."""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import rnncore
from rnncore.backend import registry, state
from rnncore.errors import BackendUnavailableError
from tests.tools.plugins import Sub, sound
from tests.tools.process import PATIENCE, python


def at_once(count, *functions):
    """Call them from threads that start together; what they return, in order."""
    barrier = threading.Barrier(count)

    def run(k):
        barrier.wait(PATIENCE)
        return functions[k % len(functions)]()

    with ThreadPoolExecutor(count) as pool:
        return [future.result(PATIENCE) for future in [pool.submit(run, k) for k in range(count)]]


def test_threads_that_ask_at_once_prepare_a_backend_once(plugin_files):
    more = """
        import time
        calls = []
        half = time.sleep(0.05)
        def namespace():
            calls.append("begun")
            time.sleep(0.05)
            calls.append("done")
            return __import__("numpy")
        def devices():
            assert calls == ["begun", "done"]
            return ("cpu",)
    """
    plugin_files("slow", sound("slow", more), "slow")
    got = at_once(8, lambda: rnncore.get_backend("slow"))
    assert len(set(map(id, got))) == 1 and got[0].calls == ["begun", "done"]


def test_threads_that_list_load_and_refresh_at_once(plugin_files):
    for name in ("one", "two"):
        plugin_files(name, sound(name), name)
    plugin_files("broken", "raise RuntimeError")

    def again_and_again(function):
        def run():
            for _ in range(30):
                function()
            return True

        return run

    def fails():
        with pytest.raises(BackendUnavailableError):
            rnncore.get_backend("broken")

    jobs = [
        registry.refresh,
        rnncore.backends,
        lambda: [rnncore.get_backend(name) for name in ("one", "two", "numpy")],
        lambda: registry.backend_of(Sub(3)),
        fails,
    ]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        assert all(at_once(5, *map(again_and_again, jobs)))
    finally:
        sys.setswitchinterval(interval)


def test_a_refresh_during_a_first_use_is_not_undone_by_it(plugin_files):
    """The backend that was being prepared belongs to what was forgotten."""
    more = "import threading\nbegun, go = threading.Event(), threading.Event()\ncount = []\n" + (
        "def namespace():\n    count.append(1)\n    begun.set()\n    assert go.wait()\n    return __import__('numpy')"
    )
    plugin_files("slow", sound("slow", more), "slow")
    import rnncore_slow

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(rnncore.get_backend, "slow")
        assert rnncore_slow.begun.wait(PATIENCE)
        registry.refresh()
        rnncore_slow.go.set()
        first.result(PATIENCE)
    rnncore.get_backend("slow")
    assert len(rnncore_slow.count) == 2


def test_a_refresh_during_a_scan_is_not_undone_by_it(monkeypatch):
    """What the scan has read may be from before what the refresh is for."""
    begun, scans, read = threading.Event(), [], state.read_metadata

    def slow():
        scans.append(1)
        found = read()
        begun.set()
        time.sleep(0.1)
        return found

    monkeypatch.setattr(state, "read_metadata", slow)
    registry.refresh()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(rnncore.backends)
        assert begun.wait(PATIENCE)
        registry.refresh()
        first.result(PATIENCE)
    rnncore.backends()
    assert len(scans) == 2


def test_a_library_that_uses_rnncore_while_it_is_imported_blocks_no_thread(plugin_files):
    """One lock for all would be held by the first, waiting for the import, and wanted by the second, importing."""
    more = "native_package = 'embedder'\ndef namespace():\n    import embedder\n    return __import__('numpy')"
    plugin_files("slow", sound("slow", more), "slow")
    library = "import time, rnncore\ntime.sleep(0.3)\nrnncore.get_backend('numpy')\nrnncore.backends()\n"
    Path(sys.path[0], "embedder.py").write_text(library)
    code = f"""
        import threading, time, rnncore
        def first():
            import embedder
        def second():
            time.sleep(0.1)
            rnncore.get_backend("slow")
        threads = [threading.Thread(target=f, daemon=True) for f in (first, second)]
        for t in threads: t.start()
        for t in threads: t.join({PATIENCE})
        print([t.is_alive() for t in threads])
    """
    assert python(code, PYTHONPATH=sys.path[0]) == "[False, False]"
