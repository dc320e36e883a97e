"""Every plugin of this repository keeps the contract, and imports its library only when it is asked for."""

from importlib import import_module

import numpy as np
import pytest

import rnncore
from rnncore.backend.contract import CONTRACT_VERSION, Backend, Scans
from tests.tools.process import python

LIBRARIES = {
    "numpy": "torch",
    "numba": "numba",
    "torch": "torch",
    "jax": "jax",
    "mlx": "mlx",
    "cupy": "cupy",
    "strict": "array_api_strict",
}


def test_every_plugin_is_listed():
    assert {b.name for b in rnncore.backends() if b.distribution == "rnncore"} == set(LIBRARIES)


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_plugin_keeps_the_contract(name):
    plugin = import_module(f"rnncore_{name}")
    assert isinstance(plugin, Backend) and plugin.name == name
    assert getattr(plugin, "contract_version", CONTRACT_VERSION) == CONTRACT_VERSION
    assert issubclass(plugin.RNN, rnncore.RNN) and issubclass(plugin.RNNCell, rnncore.RNNCell)
    if name == "cupy":  # whose library is not to be imported without a GPU
        return
    assert rnncore.get_backend(name) is plugin and plugin.RNN(2, 3).backend == name
    assert plugin.scans() is None or isinstance(plugin.scans(), Scans)
    device = next(iter(plugin.devices()))
    x = plugin.asarray(np.asarray([1.5, 2.5]), dtype=plugin.namespace().float32, device=device)
    assert plugin.is_native(x) and not plugin.is_native([1.5])
    np.testing.assert_array_equal(plugin.to_numpy(x), np.asarray([1.5, 2.5], dtype="f4"))
    plugin.synchronize(device)


@pytest.mark.parametrize("name", LIBRARIES)
def test_neither_importing_a_plugin_nor_asking_what_it_is_imports_its_library(name):
    code = f"""
        import sys, rnncore, rnncore_{name} as plugin
        rnncore.backends(), plugin.is_native(1), getattr(plugin, "unusable", lambda: None)()
        print({LIBRARIES[name]!r} in sys.modules, "llvmlite" in sys.modules)
    """
    assert python(code) == "False False"
