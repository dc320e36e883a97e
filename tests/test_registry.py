"""Choosing a backend: arguments, contexts, the environment, entry points; and what is said of one that cannot be used."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import rnncore
from rnncore import registry
from rnncore.errors import ArgumentTypeError, BackendUnavailableError, UnknownNameError

ACME = str(Path(__file__).parent / "acme_plugin")


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

    def write(name, body, distribution="broken", version="1.2", value=None):
        (tmp_path / f"rnncore_{distribution}.py").write_text(textwrap.dedent(body))
        info = tmp_path / f"{distribution}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[rnncore.backends]\n{name} = {value or f'rnncore_{distribution}'}\n")
        registry.refresh()

    monkeypatch.syspath_prepend(str(tmp_path))
    yield write
    registry.refresh()


def python(code, **environment):
    import os

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
    output, h_n, pullback = rnn.vjp(give(x), lengths=lengths, checkpoint=True)
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


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
        ("import a_module_that_is_not_there", "No module named 'a_module_that_is_not_there'"),
        ("name = 'broken'", "lacks"),
    ],
)
def test_a_broken_plugin_is_named_and_disturbs_nobody(plugin_files, body, words):
    plugin_files("broken", body)
    listed = {b.name: b for b in rnncore.backends()}
    assert not listed["broken"].usable and words in listed["broken"].reason
    assert listed["numpy"].usable and rnncore.RNN(2, 3)(np.ones((1, 1, 2)))[0].shape == (1, 1, 3)
    with pytest.raises(BackendUnavailableError, match=r"entry point broken = rnncore_broken of broken 1\.2"):
        rnncore.get_backend("broken")


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


def test_installed_is_not_usable(plugin_files):
    plugin_files("idle", SOUND.format(name="idle", devices="()", reason="its driver is too old"), "idle")
    with pytest.raises(BackendUnavailableError, match="installed but its driver is too old"):
        rnncore.RNN(2, 3, backend="idle")
    assert next(b.reason for b in rnncore.backends() if b.name == "idle") == "its driver is too old"


def test_a_plugin_must_call_itself_what_its_entry_point_does(plugin_files):
    plugin_files("one", SOUND.format(name="two", devices="('cpu',)", reason=None), "one")
    with pytest.raises(BackendUnavailableError, match="calls itself 'two'"):
        rnncore.get_backend("one")


def test_a_name_that_two_packages_claim_is_refused_and_ours_cannot_be_taken(plugin_files):
    for distribution in ("first", "second"):
        plugin_files("twice", SOUND.format(name="twice", devices="('cpu',)", reason=None), distribution)
    with pytest.raises(UnknownNameError, match=r"first \(rnncore_first\).*second \(rnncore_second\)"):
        rnncore.get_backend("twice")
    plugin_files("numpy", SOUND.format(name="numpy", devices="('cpu',)", reason=None), "impostor")
    import rnncore_numpy

    assert rnncore.get_backend("numpy") is rnncore_numpy


def test_our_plugins_satisfy_the_contract():
    import rnncore_numpy
    import rnncore_torch

    from rnncore.backend import Backend, Scans

    for plugin in (rnncore_numpy, rnncore_torch):
        assert isinstance(plugin, Backend) and isinstance(plugin.scans(), Scans)
        assert list(plugin.devices())
        x = plugin.asarray(np.asarray([1.5, 2.5]), dtype=plugin.namespace().float32, device=plugin.devices()[0])
        assert plugin.is_native(x) and not plugin.is_native([1.5])
        np.testing.assert_array_equal(plugin.to_numpy(x), np.asarray([1.5, 2.5], dtype="f4"))
        plugin.synchronize(plugin.devices()[0])
