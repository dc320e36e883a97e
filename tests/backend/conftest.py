"""Plugins as installers leave them, and the check that they disturb no other backend."""

import sys
import textwrap

import numpy as np
import pytest
import torch

import rnncore
from rnncore.backend import registry
from tests.tools import places
from tests.tools.plugins import Nobodys, Sub

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


@pytest.fixture
def others():
    """Check that the other backends are listed and work as they do without the plugin."""
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
