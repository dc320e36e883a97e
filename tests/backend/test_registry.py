"""Choosing a backend, listing the backends, and finding the owner of an array."""

import asyncio
import sys
import textwrap
import threading
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch

import rnncore
from rnncore.backend import registry
from rnncore.backend.discovery import Claim
from rnncore.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    BackendUnavailableError,
    UnknownNameError,
)
from tests.tools.plugins import Nobodys, Sub, sound
from tests.tools.process import python


def test_argument_before_context_before_environment_before_numpy(monkeypatch):
    monkeypatch.delenv("RNNCORE_BACKEND", raising=False)
    assert rnncore.RNN(2, 3).backend == "numpy"
    monkeypatch.setenv("RNNCORE_BACKEND", "torch")
    assert rnncore.RNN(2, 3).backend == "torch"
    with rnncore.use_backend("numpy"):
        assert rnncore.RNN(2, 3).backend == "numpy"
        assert rnncore.RNN(2, 3, backend="torch").backend == "torch"
    assert rnncore.RNN(2, 3).backend == "torch"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("tourch", "got 'tourch'. Did you mean 'torch'?"),
        ("TORCH", "got 'TORCH'. Did you mean 'torch'?"),
        ("no such\x1b[2J", r"got 'no such\x1b[2J'. Known here:"),
        ("x" * 10**5, "characters left out"),
    ],
)
def test_a_wrong_name_in_the_environment_is_blamed_on_the_variable(monkeypatch, value, words):
    monkeypatch.setenv("RNNCORE_BACKEND", value)
    for act in (lambda: rnncore.RNN(2, 3), rnncore.get_backend, lambda: rnncore.RNNCell(2, 3)):
        with pytest.raises(UnknownNameError, match=r"^environment variable RNNCORE_BACKEND: expected one of") as error:
            act()
        assert words in str(error.value) and len(str(error.value)) < 5000
    # Not to blame, where a name is given in another way.
    for act in (lambda: rnncore.RNN(2, 3, backend="nunpy"), lambda: rnncore.use_backend("nunpy")):
        with pytest.raises(UnknownNameError, match=r"^backend: expected one of .* Did you mean 'numpy'"):
            act()
    assert rnncore.functional.rnn(np.ones((4, 1, 2)), rnncore.RNN(2, 3, backend="numpy").state_dict())[0].shape


def test_the_environment_is_read_at_first_use_in_a_new_process():
    assert python("import rnncore; print(rnncore.RNN(2, 3).backend)", RNNCORE_BACKEND="torch") == "torch"


def test_as_a_statement_it_lasts_and_as_contexts_it_nests():
    code = """
        import rnncore
        rnncore.use_backend("torch")
        print(rnncore.RNN(2, 3).backend)
        with rnncore.use_backend("numpy"):
            with rnncore.use_backend("torch"):
                pass
            print(rnncore.RNN(2, 3).backend)
        print(rnncore.RNN(2, 3).backend)
    """
    assert python(code).split() == ["torch", "numpy", "torch"]


def test_an_exception_restores_the_choice():
    with pytest.raises(KeyError), rnncore.use_backend("torch"):
        raise KeyError
    assert registry.selected_backend() == "numpy"


def test_threads_start_from_the_default_and_tasks_inherit():
    seen = {}
    with rnncore.use_backend("torch"):
        thread = threading.Thread(target=lambda: seen.update(thread=registry.selected_backend()))
        thread.start()
        thread.join()

        async def task():
            seen["task"] = registry.selected_backend()
            seen["to_thread"] = await asyncio.to_thread(registry.selected_backend)

        asyncio.run(task())
    assert seen == {"thread": "numpy", "task": "torch", "to_thread": "torch"}


def test_a_model_keeps_its_backend():
    with rnncore.use_backend("torch"):
        rnn = rnncore.RNN(2, 3)
    assert rnn.backend == "torch" and rnn(torch.zeros(1, 1, 2))[0].shape == (1, 1, 3)


def test_the_arrays_decide_for_the_functions():
    params = rnncore.RNN(2, 3).state_dict()
    with rnncore.use_backend("torch"):
        assert isinstance(rnncore.functional.rnn(np.ones((2, 3, 2)), params)[0], np.ndarray)


def test_listing_names_state_reason_distribution_and_version():
    listed = {b.name: b for b in rnncore.backends()}
    assert {"numpy", "torch"} <= set(listed)
    for b in listed.values():
        assert b.usable == (b.reason == "")
    assert listed["numpy"].distribution == "rnncore" and listed["numpy"].version == rnncore.__version__


def test_listing_imports_no_library():
    code = "import sys, rnncore; rnncore.backends(); print('torch' in sys.modules)"
    assert python(code) == "False"


def test_a_library_that_is_not_installed_is_listed_with_the_command_that_brings_it():
    code = """
        import sys
        class Hide:
            def find_spec(self, name, path=None, target=None):
                if name == "torch":
                    raise ModuleNotFoundError("No module named 'torch'", name="torch")
        sys.meta_path.insert(0, Hide())
        import importlib.util
        real = importlib.util.find_spec
        importlib.util.find_spec = lambda n, p=None: None if n == "torch" else real(n, p)
        import rnncore
        print([b.reason for b in rnncore.backends() if b.name == "torch"][0])
        try:
            rnncore.RNN(2, 3, backend="torch")
        except rnncore.errors.BackendUnavailableError as error:
            print(error)
    """
    first, second = python(code).splitlines()
    assert first == 'torch is not installed: pip install "rnncore[torch]"'
    assert "No module named 'torch'" in second and 'pip install "rnncore[torch]"' in second


def test_an_unknown_backend_is_answered_with_all_known_ones_and_the_closest():
    with pytest.raises(UnknownNameError) as error:
        rnncore.RNN(2, 3, backend="trch")
    text = str(error.value)
    assert "got 'trch'" in text and "Did you mean 'torch'?" in text
    assert "numpy: usable" in text and "pip install" in text
    with pytest.raises(UnknownNameError):
        rnncore.use_backend("nump")
    with pytest.raises(ArgumentTypeError, match="backend: expected a name"):
        rnncore.get_backend(3)  # type: ignore[arg-type]


def test_a_plugin_that_claims_every_array_takes_none_from_the_others(plugin_files, others):
    packages = {"aaa": "numpy", "aab": "rnncore_greedy_aab", "aac": "torch", "array_api_strict": "array_api_strict"}
    for name, package in packages.items():
        greedy = f"native_package = {package!r}\ndef is_native(x, /): return True"
        plugin_files(name, sound(name, greedy), f"greedy_{name}")
    import rnncore_greedy_aab  # noqa: F401

    assert registry.owner_name(np.ones(2)) == registry.owner_name(Sub(2)) == "numpy"
    assert registry.owner_name(torch.ones(2)) == "torch"
    assert registry.owner_name([1.0]) is registry.owner_name(None) is None
    import array_api_strict

    assert registry.owner_name(array_api_strict.ones(2)) == "strict"
    assert registry.backend_of(np.ones(2), prefer="aaa").name == "aaa"  # unless it is asked for by name


def test_arrays_of_a_class_derived_from_anothers_are_the_derived_classs(plugin_files):
    more = """
        import sys
        native_package = "quantities"
        def is_native(x, /): return isinstance(x, sys.modules["quantities"].Quantity)
    """
    plugin_files("acme", sound("acme", more), "derived")
    Path(sys.path[0], "quantities.py").write_text("import numpy\nclass Quantity(numpy.ndarray): pass\n")
    import quantities

    assert registry.owner_name(quantities.Quantity(3)) == "acme"
    assert registry.owner_name(np.ones(3)) == "numpy"


def test_arrays_of_an_unusable_backend_still_have_an_owner(plugin_files):
    more = f"import sys\nnative_package = {Nobodys.__module__!r}\n" + (
        "def is_native(x, /): return type(x).__name__ == 'Nobodys'\ndef devices(): raise RuntimeError('driver')"
    )
    plugin_files("acme", sound("acme", more), "acme")
    assert registry.owner_name(Nobodys()) == "acme"
    with pytest.raises(BackendUnavailableError, match="RuntimeError: driver"):
        registry.backend_of(Nobodys())


def test_arrays_of_two_libraries_are_refused_by_name():
    with pytest.raises(ArgumentTypeError, match=r"one library, got numpy.ndarray and torch.Tensor; .*'numpy'"):
        registry.backend_of(None, np.ones(2), torch.ones(2))
    with pytest.raises(ArgumentTypeError, match="expected at least one array"):
        registry.backend_of(None, None)


def test_is_native_is_not_asked_before_the_library_is_there(plugin_files, others):
    plugin_files("broken", sound(more="native_package = 'unheard_of'\ndef is_native(x, /): raise RuntimeError"))
    others("broken")
    with pytest.raises(ArgumentTypeError) as error:
        registry.backend_of(Nobodys())
    assert "could not be asked" not in str(error.value)


def test_arrays_of_the_librarys_own_type_load_no_other_plugin(plugin_files):
    plugin_files("broken", "raise RuntimeError")
    plugin_files("slow", "import time; time.sleep(60)", "slow")
    code = """
        import sys, numpy, rnncore
        rnn = rnncore.RNN(2, 3, dtype="float64")
        rnn(numpy.ones((4, 1, 2)), lengths=[2])
        rnncore.functional.rnn(numpy.ones((4, 1, 2)), rnn.state_dict())
        import torch
        rnncore.functional.rnn_cell(*(torch.ones(s) for s in ((1, 2), (1, 3), (3, 2), (3, 3))))
        print(sorted(m for m in sys.modules if m.startswith("rnncore_") and "." not in m))
    """
    assert python(code, PYTHONPATH=sys.path[0]) == "['rnncore_numpy', 'rnncore_torch']"


def test_the_listing_looks_up_no_more_than_the_library_itself(plugin_files):
    """importlib's find_spec imports the parents of a dotted name: that is the array library."""
    plugin_files("dotted", sound("dotted", "native_package = 'dotted_library.core'"), "dotted")
    library = Path(sys.path[0], "dotted_library")
    library.mkdir()
    (library / "__init__.py").write_text("raise RuntimeError('imported')")
    assert next(b for b in rnncore.backends() if b.name == "dotted").usable
    assert "dotted_library" not in sys.modules


def test_installed_is_not_usable(plugin_files):
    plugin_files("idle", sound("idle", devices="()", reason="its driver is too old"), "idle")
    with pytest.raises(BackendUnavailableError, match="installed but its driver is too old"):
        rnncore.RNN(2, 3, backend="idle")
    assert next(b.reason for b in rnncore.backends() if b.name == "idle") == "its driver is too old"


def test_no_device_and_no_answer_why(plugin_files):
    plugin_files("idle", sound("idle", "def unusable(): raise RuntimeError('oh')", devices="()"), "idle")
    with pytest.raises(BackendUnavailableError, match="no usable device; its unusable failed: RuntimeError: oh"):
        rnncore.get_backend("idle")


def test_what_failed_is_tried_again_and_a_success_clears_it(plugin_files):
    state = lambda: next(b for b in rnncore.backends() if b.name == "moody")  # noqa: E731
    more = """
        import os
        def namespace():
            if os.path.exists(__file__ + ".off"): raise RuntimeError("the licence server is down")
            return __import__("numpy")
    """
    plugin_files("moody", sound("moody", more), "moody")
    off = Path(sys.path[0], "rnncore_moody.py.off")
    off.touch()
    assert state().usable
    for _ in range(2):
        with pytest.raises(BackendUnavailableError, match="licence server"):
            rnncore.get_backend("moody")
        assert state().reason == "RuntimeError: the licence server is down"
    off.unlink()
    assert not state().usable  # what happened counts, until it is tried again
    assert rnncore.get_backend("moody").name == "moody"
    assert state().usable


def test_a_plugin_that_failed_to_load_is_loaded_when_it_is_asked_for_again_but_not_for_every_array(plugin_files):
    body = """
        import os
        with open(__file__ + ".log", "a") as log: log.write("x")
        if os.path.exists(__file__ + ".off"): raise RuntimeError("the licence server is down")
    """
    plugin_files("moody", textwrap.dedent(body) + sound("moody"), "moody")
    module = Path(sys.path[0], "rnncore_moody.py")
    off, log = Path(f"{module}.off"), Path(f"{module}.log")
    off.touch()
    for _ in range(3):
        with pytest.raises(ArgumentTypeError, match="licence server"):
            registry.backend_of(Nobodys())
    assert log.read_text() == "x"
    with pytest.raises(BackendUnavailableError, match="licence server"):
        rnncore.get_backend("moody")
    assert log.read_text() == "xx"
    off.unlink()
    assert rnncore.get_backend("moody").name == "moody"
    with pytest.raises(ArgumentTypeError) as error:
        registry.backend_of(Nobodys())
    assert "licence" not in str(error.value) and log.read_text() == "xxx"


def test_the_command_that_installs_a_library():
    for name, package in (("torch", "torch"), ("strict", "array_api_strict"), ("cupy", "cupy")):
        claim = Claim(EntryPoint(name, f"rnncore_{name}", "rnncore.backends"), "rnncore", "1", True)
        assert claim.install_command(package) == f'pip install "rnncore[{name}]"'
    claim = Claim(EntryPoint("acme", "rnncore_acme", "rnncore.backends"), "rnncore-acme", "1")
    assert claim.install_command("acme_arrays.core") == "pip install acme_arrays"


def test_a_context_can_be_used_again_nested_and_not_out_of_order():
    from rnncore.backend.registry import selected_backend

    context = rnncore.use_backend("torch")
    with context:
        pass
    assert selected_backend() == "numpy"
    with context:
        assert selected_backend() == "torch"
        with context:
            pass
        assert selected_backend() == "torch"
    assert selected_backend() == "numpy"
    outer = rnncore.use_backend("torch")
    with outer:
        inner = rnncore.use_backend("numpy")
        inner.__enter__()
        with pytest.raises(ArgumentValueError, match="reverse order"):
            outer.__exit__(None, None, None)
        inner.__exit__(None, None, None)
    assert selected_backend() == "numpy"
    with pytest.raises(ArgumentValueError, match="without having been entered"):
        inner.__exit__(None, None, None)
