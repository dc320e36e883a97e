"""Choosing a backend: arguments, contexts, the environment, entry points; and what is said of one that cannot be used."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch

import rnncore
from rnncore.arguments import one_line
from rnncore.backend import registry, state
from rnncore.backend.discovery import Claim
from rnncore.errors import ArgumentTypeError, BackendUnavailableError, UnknownNameError
from tests.tools import places

ACME = str(places.ACME)


@pytest.fixture
def acme(monkeypatch):
    """A third party's distribution on the path, as pip would leave it."""
    monkeypatch.syspath_prepend(ACME)
    registry.refresh()
    yield
    registry.refresh()
    for module in ("rnncore_acme", "acme_arrays"):
        sys.modules.pop(module, None)


@pytest.fixture
def plugin_files(monkeypatch, tmp_path):
    """Write a plugin's module and its entry point."""

    def write(name, body, distribution="broken", version="1.2", value=None, folder=tmp_path, text=None):
        folder.mkdir(exist_ok=True)
        (folder / f"rnncore_{distribution}.py").write_text(textwrap.dedent(body))
        info = folder / f"{distribution}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        text = text or f"[rnncore.backends]\n{name} = {value or f'rnncore_{distribution}'}\n"
        (info / "entry_points.txt").write_text(text)
        registry.refresh()

    there, path = set(sys.modules), list(sys.path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield write
    sys.path[:] = path
    for module in set(sys.modules) - there:  # so that the next test's plugin of that name is its own
        if str(getattr(sys.modules[module], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[module]
    registry.refresh()


def python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- the choice -------------------------------------------------------------------------------------------------------


def test_argument_before_context_before_environment_before_numpy(monkeypatch):
    monkeypatch.delenv("RNNCORE_BACKEND", raising=False)
    assert rnncore.RNN(2, 3).backend == "numpy"
    monkeypatch.setenv("RNNCORE_BACKEND", "torch")
    assert rnncore.RNN(2, 3).backend == "torch"
    with rnncore.use_backend("numpy"):
        assert rnncore.RNN(2, 3).backend == "numpy"
        assert rnncore.RNN(2, 3, backend="torch").backend == "torch"
    assert rnncore.RNN(2, 3).backend == "torch"


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


# --- listing ----------------------------------------------------------------------------------------------------------


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


# --- plugins ----------------------------------------------------------------------------------------------------------


def test_a_third_partys_plugin_works_without_a_line_of_ours(acme):
    listed = {b.name: b for b in rnncore.backends()}["acme"]
    assert (listed.usable, listed.distribution, listed.version) == (True, "rnncore-acme", "0.1")
    numpy = rnncore.RNN(3, [4, 5], bidirectional=True, rng=0)
    rnn = numpy.to("acme")
    assert rnn.backend == "acme" and str(rnn.device) == str(rnncore.get_backend("acme").devices()[0])
    plugin = rnncore.get_backend("acme")
    rng = np.random.default_rng(0)
    x, lengths = rng.standard_normal((6, 3, 3)), [4, 0, 6]
    give = lambda a: plugin.asarray(np.asarray(a), dtype=rnn.dtype, device=rnn.device)  # noqa: E731
    output, h_n, pullback = rnn.vjp(give(x), lengths=lengths, checkpoint=2)
    want_output, want_h_n, want_pullback = numpy.vjp(x, lengths=lengths)
    np.testing.assert_allclose(plugin.to_numpy(output), want_output, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(plugin.to_numpy(h_n[1]), want_h_n[1], rtol=1e-13, atol=1e-14)
    d = rng.standard_normal(want_output.shape)
    got, want = pullback(give(d)), want_pullback(d)
    for k in want.params:
        np.testing.assert_allclose(plugin.to_numpy(got.params[k]), want.params[k], rtol=1e-12, atol=1e-13)
    assert "no scans of its own" in str(rnn.explain())
    with pytest.raises(ArgumentTypeError, match=r"'acme' \(acme_arrays\), got numpy.ndarray \(backend 'numpy'\)"):
        rnn(x)
    import rnncore_acme

    assert rnncore_acme.RNN(2, 3).backend == "acme"


def test_plugins_can_be_switched_off(acme, monkeypatch):
    for allowed, there in (("none", False), ("other", False), ("acme", True), ("x, acme", True)):
        monkeypatch.setenv("RNNCORE_PLUGINS", allowed)
        registry.refresh()
        assert ("acme" in [b.name for b in rnncore.backends()]) == there
        assert rnncore.RNN(2, 3).backend == "numpy"


SOUND = """
    name = {name!r}
    native_package = "numpy"
    def namespace():
        import array_api_compat.numpy as xp
        return xp
    def is_native(x, /): return False
    def devices(): return {devices}
    def unusable(): return {reason!r}
    def asarray(x, /, *, dtype, device): return x
    def to_numpy(x, /): return x
    def synchronize(device, /): pass
    def scans(): return None
"""


def sound(name="broken", more="", devices="('cpu',)", reason=None):
    """A plugin that keeps the contract, and lines that make it break it."""
    return textwrap.dedent(SOUND).format(name=name, devices=devices, reason=reason) + textwrap.dedent(more)


def as_object(more="", name="broken"):
    """The same as an object, whose members can be properties."""
    body = textwrap.indent(sound(name).replace("(x,", "(self, x,").replace("():", "(self):"), "    ")
    body = body.replace("(device,", "(self, device,")
    return f"class Broken:\n{body}\n{textwrap.indent(textwrap.dedent(more), '    ')}\nbackend = Broken()\n"


RAISES = "@property\ndef {}(self): raise RuntimeError('no licence')"
OBJECT = "rnncore_broken:backend"

# What is wrong, the module, the entry point's value, the words in the listing: those that no listing can miss.
SEEN_WHEN_LISTED = {
    "raises": ("raise RuntimeError('no licence')", None, "RuntimeError: no licence"),
    "raises what cannot be printed": (
        "class Mute(Exception):\n    def __str__(self): raise RuntimeError\nraise Mute",
        None,
        "failed to load: Mute",
    ),
    "imports what is missing": (
        "import a_module_that_is_not_there",
        None,
        "No module named 'a_module_that_is_not_there'",
    ),
    "exits": ("import sys; sys.exit(3)", None, "SystemExit: 3"),
    "panics": ("class Panic(BaseException): pass\nraise Panic('a library in Rust')", None, "Panic: a library in Rust"),
    "is no Python": ("def namespace(:", None, "SyntaxError"),
    "lacks everything": (
        "name = 'broken'",
        None,
        "lacks asarray, devices, is_native, namespace, native_package, scans",
    ),
    "lacks one": (sound(more="del to_numpy"), None, "lacks to_numpy"),
    "a member is no function": (sound(more="devices = ('cpu',)"), None, "devices must be a function, got tuple"),
    "another contract": (
        sound(more="contract_version = 2"),
        None,
        "version 2 of the contract, and this rnncore version 1",
    ),
    "another contract, other members": ("contract_version = 7", None, "version 7 of the contract"),
    "its version is no number": (sound(more="contract_version = '1'"), None, "version '1' of the contract"),
    "its version raises": (
        as_object(RAISES.format("contract_version")),
        OBJECT,
        "contract_version cannot be read: Runtime",
    ),
    "its name raises": (as_object(RAISES.format("name")), OBJECT, "its name cannot be read: RuntimeError: no licence"),
    "its package raises": (as_object(RAISES.format("native_package")), OBJECT, "its native_package cannot be read"),
    "a member raises": (
        as_object(RAISES.format("devices")),
        OBJECT,
        "its devices cannot be read: RuntimeError: no licence",
    ),
    "a member exits": (
        as_object("@property\ndef scans(self): raise SystemExit"),
        OBJECT,
        "its scans cannot be read: SystemExit",
    ),
    "its unusable cannot be read": (as_object(RAISES.format("unusable")), OBJECT, "its unusable failed: RuntimeError"),
    "another name": (sound("other"), None, "calls itself 'other'"),
    "its name is no string": (sound(more="name = 3"), None, "name must be a string, got int"),
    "its package is no string": (
        sound(more="native_package = None"),
        None,
        "native_package must be a string, got NoneType",
    ),
    "its package is empty": (sound(more="native_package = ''"), None, "must be a module's name, got ''"),
    "its package is relative": (
        sound(more="native_package = '.arrays'"),
        None,
        "must be a module's name, got '.arrays'",
    ),
    "its package has no parent": (
        sound(more="native_package = 'not_there.arrays'"),
        None,
        "not_there.arrays is not installed: pip install not_there",
    ),
    "unusable raises": (
        sound(more="def unusable(): raise RuntimeError('no licence')"),
        None,
        "unusable failed: RuntimeError",
    ),
    "unusable exits": (sound(more="def unusable(): raise SystemExit(3)"), None, "unusable failed: SystemExit: 3"),
    "unusable returns a number": (sound(more="def unusable(): return 3"), None, "unusable returned int, not a string"),
    "unusable is no function": (sound(more="unusable = 'no driver'"), None, "unusable failed: TypeError"),
    "no such object": (sound(), "rnncore_broken:nothing", "AttributeError"),
    "no such module": (sound(), "rnncore_missing", "No module named 'rnncore_missing'"),
    "its value is no name": (
        sound(),
        "not a module at all!",
        "entry point broken = not a module at all! of broken 1.2",
    ),
    "its value is empty": (sound(), " ", "entry point broken ="),
    "its value is a call": (sound(), "rnncore_broken:backend()", "entry point broken = rnncore_broken:backend()"),
}
# What is wrong, the module, the words of the error: only asking for it can tell.
SEEN_WHEN_ASKED_FOR = {
    "namespace raises": ("def namespace(): raise OSError('libacme.so: not found')", "OSError: libacme.so: not found"),
    "namespace exits": ("def namespace(): raise SystemExit(3)", "SystemExit: 3"),
    "devices raises": ("def devices(): raise RuntimeError('driver')", "RuntimeError: driver"),
    "devices exits": ("def devices(): raise SystemExit(4)", "SystemExit: 4"),
    "devices returns a number": ("def devices(): return 3", "TypeError"),
    "devices returns nothing": ("def devices(): pass", "installed but it has no usable device"),
    "devices is empty, unusable silent": ("def devices(): return ()", "installed but it has no usable device"),
}
# What is wrong, the module, the words when an array is nobody's.
SEEN_WITH_AN_ARRAY = {
    "is_native raises": (
        "def is_native(x, /): raise RuntimeError('no licence')",
        "is_native failed: RuntimeError: no licence",
    ),
    "is_native exits": ("def is_native(x, /): raise SystemExit(3)", "is_native failed: SystemExit: 3"),
    "is_native returns a string": ("def is_native(x, /): return 'yes'", "is_native returned str, not a bool"),
    "is_native returns nothing": ("def is_native(x, /): pass", "is_native returned NoneType, not a bool"),
    "is_native takes nothing": ("def is_native(): return True", "is_native failed: TypeError"),
}


def cases(table):
    return pytest.mark.parametrize("case", table.values(), ids=table.keys())


@pytest.fixture
def others():
    """The other backends: what is listed of them and what they do must be as without the plugin."""
    registry.refresh()
    alone = rnncore.backends()

    def check(*added):
        with_it = rnncore.backends()
        assert [b for b in with_it if b.name not in added] == alone
        assert {b.name for b in with_it} - {b.name for b in alone} == set(added)
        params = rnncore.RNN(2, 3, rng=0, backend="numpy").state_dict()
        x = np.ones((4, 1, 2))
        output, _ = rnncore.functional.rnn(x, {k: v.astype("f8") for k, v in params.items()}, lengths=[3])
        assert output.shape == (4, 1, 3)
        model = rnncore.RNN(2, 3, dtype="float64")
        assert model.backend == "numpy" and model(x, lengths=np.asarray([2]))[0].shape == (4, 1, 3)
        assert registry.backend_of(x, None, x).name == "numpy" and registry.owner_name(x) == "numpy"
        # Arrays that no shortcut leads to: all plugins that can be asked are.
        import array_api_strict

        for array, owner in ((torch.ones(2), "torch"), (array_api_strict.ones(2), "strict"), (Sub(3), "numpy")):
            assert registry.owner_name(array) == owner
        for thing in ([1.0], 2.0, None, object(), Nobodys()):
            assert registry.owner_name(thing) is None

    return check


class Sub(np.ndarray):
    """A user's own class of arrays."""


class Nobodys:
    """What no backend owns."""


@cases(SEEN_WHEN_LISTED)
def test_a_broken_plugin_is_listed_with_its_fault_and_disturbs_nobody(plugin_files, others, case):
    body, value, words = case
    plugin_files("broken", body, value=value)
    others("broken")
    row = next(b for b in rnncore.backends() if b.name == "broken")
    assert not row.usable and words in row.reason
    assert (row.distribution, row.version) == ("broken", "1.2")
    if "unusable" not in words and "installed" not in words:  # these two speak of the library, not of the plugin
        with pytest.raises(
            BackendUnavailableError, match=r"^backend 'broken': entry point broken = .* of broken 1\.2"
        ) as e:
            rnncore.get_backend("broken")
        assert words in str(e.value)
        assert row.reason.startswith("entry point broken = ")  # the row has its name already
    with rnncore.use_backend("broken"):  # chosen, it still has no say about arrays
        assert registry.backend_of(np.ones(2)).name == "numpy"
    others("broken")


@cases(SEEN_WHEN_ASKED_FOR)
def test_a_plugin_that_fails_when_it_is_used_says_so_from_then_on(plugin_files, others, case):
    more, words = case
    plugin_files("broken", sound(more=more))
    others("broken")
    assert next(b.usable for b in rnncore.backends() if b.name == "broken")
    for ask in (rnncore.get_backend, lambda name: rnncore.RNN(2, 3, backend=name)):
        with pytest.raises(BackendUnavailableError, match="backend 'broken': numpy ") as error:
            ask("broken")
        assert words in str(error.value)
    row = next(b for b in rnncore.backends() if b.name == "broken")
    assert not row.usable and row.reason in str(error.value)
    others("broken")


@cases(SEEN_WITH_AN_ARRAY)
def test_a_plugin_that_cannot_tell_its_arrays_has_none(plugin_files, others, case):
    more, words = case
    plugin_files("broken", sound(more=more))
    others("broken")
    assert rnncore.get_backend("broken").name == "broken"
    others("broken")
    with rnncore.use_backend("broken"):  # preferred or not
        assert registry.backend_of(np.ones(2), prefer="broken").name == "numpy"
    with pytest.raises(
        ArgumentTypeError, match=r"expected an array of a registered backend \(broken, .*got .*test_registry.Nobodys"
    ) as e:
        registry.backend_of(Nobodys())
    assert f"could not be asked: backend 'broken': its {words}" in str(e.value)


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
    assert registry.backend_of(np.ones(2), prefer="aaa").name == "aaa"  # who asks for it gets it


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


def test_arrays_of_a_backend_that_cannot_be_used_have_an_owner_all_the_same(plugin_files):
    more = f"import sys\nnative_package = {__name__!r}\n" + (
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


def test_a_library_whose_import_is_blocked_is_not_installed(plugin_files, others, monkeypatch):
    monkeypatch.setitem(sys.modules, "blocked", None)
    plugin_files("broken", sound(more="native_package = 'blocked'\ndef is_native(x, /): return True"))
    others("broken")
    assert registry.owner_name(Nobodys()) is None
    row = next(b for b in rnncore.backends() if b.name == "broken")
    assert row.reason == "blocked is not installed: pip install blocked"


def test_ctrl_c_passes(plugin_files):
    plugin_files("broken", "raise KeyboardInterrupt")
    for ask in (rnncore.backends, lambda: rnncore.get_backend("broken"), lambda: registry.owner_name(Sub(2))):
        with pytest.raises(KeyboardInterrupt):
            ask()
    plugin_files("later", sound("later", "def namespace(): raise KeyboardInterrupt"), "later")
    with pytest.raises(KeyboardInterrupt):
        rnncore.get_backend("later")


def test_is_native_is_not_asked_before_the_library_is_there(plugin_files, others):
    plugin_files("broken", sound(more="native_package = 'unheard_of'\ndef is_native(x, /): raise RuntimeError"))
    others("broken")
    with pytest.raises(ArgumentTypeError) as error:
        registry.backend_of(Nobodys())
    assert "could not be asked" not in str(error.value)


def test_arrays_of_the_librarys_own_type_load_no_stranger(plugin_files):
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


@pytest.mark.parametrize("value", [None, "rnncore_early:backend"])
def test_a_plugin_that_lists_the_backends_while_it_is_imported_is_not_held_to_be_broken(plugin_files, value):
    """It has nothing to show yet; afterwards it has."""
    body = sound("early") if value is None else as_object(name="early")
    plugin_files("early", f"import rnncore\nlisted = rnncore.backends()\n{body}", "early", value=value)
    import rnncore_early

    assert not next(b for b in rnncore_early.listed if b.name == "early").usable
    with pytest.raises(ArgumentTypeError) as error:
        registry.backend_of(Nobodys())
    assert "could not be asked" not in str(error.value)
    assert next(b for b in rnncore.backends() if b.name == "early").usable


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_name_that_two_packages_claim_is_refused_and_both_are_listed(plugin_files, others):
    for distribution in ("second", "first"):
        plugin_files("twice", sound("twice"), distribution)
    others("twice (first)", "twice (second)")
    for ask in (rnncore.get_backend, rnncore.use_backend, lambda name: rnncore.RNN(2, 3, backend=name)):
        with pytest.raises(UnknownNameError, match=r"first \(rnncore_first\), second \(rnncore_second\); uninstall"):
            ask("twice")
    rows = {b.name: b for b in rnncore.backends()}
    for distribution in ("first", "second"):
        row = rows[f"twice ({distribution})"]
        assert (row.usable, row.distribution, row.version) == (False, distribution, "1.2")
        assert "'twice' is registered more than once, by first (rnncore_first), second" in row.reason
    assert "rnncore_first" not in sys.modules  # which of them is meant cannot be told, so none is loaded
    with pytest.raises(UnknownNameError, match=r"twice \(first\): not usable"):
        rnncore.get_backend("twic")


def test_our_names_cannot_be_taken_and_who_tries_is_listed(plugin_files, others):
    plugin_files("numpy", sound("numpy", "def is_native(x, /): return True"), "impostor")
    plugin_files("torch", "raise SystemExit", "another")
    others("numpy (impostor)", "torch (another)")
    import rnncore_numpy

    assert rnncore.get_backend("numpy") is rnncore_numpy
    rows = {b.name: b for b in rnncore.backends()}
    assert rows["numpy"].distribution == "rnncore" and rows["numpy"].usable
    row = rows["numpy (impostor)"]
    assert (row.usable, row.distribution, row.version) == (False, "impostor", "1.2")
    assert "'numpy' is rnncore's own name" in row.reason and "rnncore_impostor" in row.reason
    assert "rnncore_impostor" not in sys.modules


@pytest.mark.parametrize(
    "text", ["twice = rnncore_one\ntwice = rnncore_two", "twice = rnncore_one\n twice=rnncore_one"]
)
def test_one_package_that_claims_a_name_twice(plugin_files, others, text):
    plugin_files("twice", sound("twice"), "one", text=f"[rnncore.backends]\n{text}\n")
    if "two" in text:
        others("twice (one)", "twice (one) 2")
        with pytest.raises(UnknownNameError, match=r"one \(rnncore_one\), one \(rnncore_two\)"):
            rnncore.get_backend("twice")
    else:  # the same twice is no contradiction
        others("twice")
        assert rnncore.get_backend("twice").name == "twice"


def test_names_and_winners_do_not_depend_on_the_order_of_the_path(plugin_files, tmp_path, monkeypatch):
    folders = [tmp_path / part for part in ("a", "b", "c")]
    for folder, distribution in zip(folders, ("zebra", "aardvark", "impostor"), strict=True):
        plugin_files("twice", sound("twice"), distribution, folder=folder)
        text = f"[rnncore.backends]\nnumpy = rnncore_{distribution}\nonly-{distribution} = rnncore_{distribution}\n"
        (folder / f"{distribution}-1.2.dist-info" / "entry_points.txt").write_text(
            text if distribution == "impostor" else f"{text}twice = rnncore_{distribution}\n"
        )
        plugin_files("", "", f"not-{distribution}", folder=folder, text="[rnncore.backends]\nno equals sign\n")
    plain, seen = list(sys.path), []
    for before, order in itertools.product((True, False), itertools.permutations(map(str, folders))):
        monkeypatch.setattr(sys, "path", [*order, *plain] if before else [*plain, *order])
        registry.refresh()
        with pytest.raises(UnknownNameError) as error:
            rnncore.get_backend("twice")
        seen.append((rnncore.backends(), str(error.value), type(rnncore.get_backend("numpy"))))
    assert all(one == seen[0] for one in seen)
    names = [b.name for b in seen[0][0]]
    assert names == sorted(names) and len(set(names)) == len(names)
    assert {"numpy (aardvark)", "numpy (impostor)", "numpy (zebra)", "twice (aardvark)", "twice (zebra)"} <= set(names)


@pytest.mark.parametrize(
    "text", ["[rnncore.backends]\nno equals sign\n", "[rnncore.backends]\na = b\n[other]\nbroken\n"]
)
def test_metadata_that_cannot_be_read_cost_nobody_else_anything(plugin_files, others, text, monkeypatch):
    """importlib.metadata.entry_points() raises for all packages if one has a malformed file."""
    plugin_files("broken", sound(), text=text)
    others("? (broken)")
    row = next(b for b in rnncore.backends() if b.name == "? (broken)")
    assert not row.usable and "entry_points.txt cannot be read" in row.reason and row.version == "1.2"
    monkeypatch.setenv("RNNCORE_PLUGINS", "none")
    registry.refresh()
    assert "? (broken)" not in [b.name for b in rnncore.backends()]


def test_metadata_of_packages_that_are_no_plugins_may_be_anything(plugin_files, others):
    plugin_files("broken", "", "one", text="[console_scripts]\nno equals sign\n")
    plugin_files("broken", "", "two")
    Path(sys.path[0], "two-1.2.dist-info", "entry_points.txt").write_bytes(b"\xff\xfe[rnncore.backends]")
    registry.refresh()
    others()


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"\xff\xfeName: one")])
def test_a_package_with_damaged_metadata_has_no_name(plugin_files, others, damage):
    for distribution in ("one", "two"):
        plugin_files(distribution, sound(distribution), distribution)
        damage(Path(sys.path[0], f"{distribution}-1.2.dist-info", "METADATA"))
    registry.refresh()
    others("one", "two")
    assert {(b.usable, b.distribution, b.version) for b in rnncore.backends() if b.name in ("one", "two")} == {
        (True, "", "")
    }


def test_of_one_package_installed_twice_the_one_that_python_imports_counts(plugin_files, others, tmp_path, monkeypatch):
    for version in ("1.2", "1.10"):
        plugin_files("acme", sound("acme"), "Acme.Arrays", version, value="rnncore_acme", folder=tmp_path / version)
        monkeypatch.syspath_prepend(str(tmp_path / version))
    registry.refresh()
    assert [b.version for b in rnncore.backends() if b.name.startswith("acme")] == ["1.10"]


def test_names_that_no_table_could_tell_apart_are_refused(plugin_files, others):
    plugin_files("numpy (impostor)", sound("numpy (impostor)"), "odd")
    plugin_files("", sound(""), "empty", text="[rnncore.backends]\n= rnncore_empty\n")
    plugin_files("numpy", sound("numpy"), "impostor")
    others("'numpy (impostor)' (odd)", "'' (empty)", "numpy (impostor)")
    for name in ("numpy (impostor)", ""):
        with pytest.raises(UnknownNameError):
            rnncore.get_backend(name)


def test_our_own_package_is_ours_however_it_is_spelt(plugin_files):
    entry = EntryPoint("numpy", "rnncore_numpy", "rnncore.backends")
    assert Claim(entry, "RnnCore", "1").ours
    assert not Claim(entry, "rnn-core", "1").ours and not Claim(entry, "", "").ours


def test_the_command_that_installs_a_library():
    for name, package in (("torch", "torch"), ("strict", "array_api_strict"), ("cupy", "cupy")):
        claim = Claim(EntryPoint(name, f"rnncore_{name}", "rnncore.backends"), "rnncore", "1")
        assert claim.install_command(package) == f'pip install "rnncore[{name}]"'
    claim = Claim(EntryPoint("acme", "rnncore_acme", "rnncore.backends"), "rnncore-acme", "1")
    assert claim.install_command("acme_arrays.core") == "pip install acme_arrays"


def test_a_librarys_words_on_one_line():
    assert one_line("a\n\n  b\t\x1b[1;31mred\x1b[0m\r\n\x07\ud800c é ") == "a b red c é"


# --- threads ----------------------------------------------------------------------------------------------------------


def at_once(count, *functions):
    """Call them from threads that start together; what they return, in order."""
    barrier = threading.Barrier(count)

    def run(k):
        barrier.wait(10)
        return functions[k % len(functions)]()

    with ThreadPoolExecutor(count) as pool:
        return [future.result(60) for future in [pool.submit(run, k) for k in range(count)]]


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
    end = time.monotonic() + 0.7

    def until_the_end(function):
        def run():
            while time.monotonic() < end:
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
        assert all(at_once(5, *map(until_the_end, jobs)))
    finally:
        sys.setswitchinterval(interval)


def test_a_refresh_during_a_first_use_is_not_undone_by_it(plugin_files):
    """The backend that was being prepared belongs to what was forgotten."""
    more = "import threading\nbegun, go = threading.Event(), threading.Event()\ncount = []\n" + (
        "def namespace():\n    count.append(1)\n    begun.set()\n    assert go.wait(10)\n    return __import__('numpy')"
    )
    plugin_files("slow", sound("slow", more), "slow")
    import rnncore_slow

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(rnncore.get_backend, "slow")
        assert rnncore_slow.begun.wait(10)
        registry.refresh()
        rnncore_slow.go.set()
        first.result(10)
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
        assert begun.wait(10)
        registry.refresh()
        first.result(10)
    rnncore.backends()
    assert len(scans) == 2


def test_a_refresh_finds_what_was_installed_in_the_same_tick_of_the_clock(plugin_files, tmp_path):
    """Python takes a folder whose time has not changed to be the folder it knows."""
    plugin_files("one", sound("one"), "one")
    assert "one" in [b.name for b in rnncore.backends()]
    then = tmp_path.stat().st_mtime_ns
    plugin_files("two", sound("two"), "two")
    os.utime(tmp_path, ns=(then, then))
    registry.refresh()
    assert rnncore.get_backend("two").name == "two"


def test_a_library_that_uses_rnncore_while_it_is_imported_stops_nobody(plugin_files):
    """One lock for all would be held by the first, waiting for the import, and wanted by the second, importing."""
    more = "native_package = 'embedder'\ndef namespace():\n    import embedder\n    return __import__('numpy')"
    plugin_files("slow", sound("slow", more), "slow")
    library = "import time, rnncore\ntime.sleep(0.3)\nrnncore.get_backend('numpy')\nrnncore.backends()\n"
    Path(sys.path[0], "embedder.py").write_text(library)
    code = """
        import threading, time, rnncore
        def first():
            import embedder
        def second():
            time.sleep(0.1)
            rnncore.get_backend("slow")
        threads = [threading.Thread(target=f, daemon=True) for f in (first, second)]
        for t in threads: t.start()
        for t in threads: t.join(20)
        print([t.is_alive() for t in threads])
    """
    assert python(code, PYTHONPATH=sys.path[0]) == "[False, False]"


# --- our own ----------------------------------------------------------------------------------------------------------


def test_our_plugins_satisfy_the_contract():
    import rnncore_numpy
    import rnncore_torch

    from rnncore.backend.contract import Backend, Scans

    for plugin in (rnncore_numpy, rnncore_torch):
        assert isinstance(plugin, Backend) and isinstance(plugin.scans(), Scans)
        assert list(plugin.devices())
        x = plugin.asarray(np.asarray([1.5, 2.5]), dtype=plugin.namespace().float32, device=plugin.devices()[0])
        assert plugin.is_native(x) and not plugin.is_native([1.5])
        np.testing.assert_array_equal(plugin.to_numpy(x), np.asarray([1.5, 2.5], dtype="f4"))
        plugin.synchronize(plugin.devices()[0])
