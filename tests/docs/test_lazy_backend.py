"""examples/rnncore_dask_array.py: the backend for a lazy library that docs/writing-a-backend.md describes."""

import importlib.util
import sys

import numpy as np
import pytest

from rnncore.testing import check_backend
from tests.tools.places import ROOT

NAME = "rnncore_dask_array"
# Of each kind of check one or two: all of them compute thousands of small graphs, which takes minutes.
ONLY = ["RC-CON", "RC-SCAN-001", "RC-FWD-014", "RC-LEN-001", "RC-GRAD-001", "RC-CARRY-001", "RC-SYNC", "RC-ANA"]


@pytest.fixture
def plugin(monkeypatch):
    spec = importlib.util.spec_from_file_location(NAME, ROOT / "examples" / f"{NAME}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, NAME, module)
    spec.loader.exec_module(module)
    return module


def needs_dask():
    return pytest.importorskip("dask.array", reason="Dask is not among the requirements of the tests")


def test_importing_the_plugin_imports_no_dask(plugin):
    assert not plugin.is_native(np.ones(1))
    assert plugin.devices() == ("cpu",) and plugin.scans() is None


def test_some_of_every_kind_of_check_pass(plugin):
    needs_dask()
    report = check_backend(plugin, only=ONLY)
    assert report.ok, str(report)
    assert report.count("passed") > 25


@pytest.mark.slow
def test_the_whole_suite_passes(plugin):
    needs_dask()
    report = check_backend(plugin)
    assert report.ok, str(report)


def test_the_graph_of_a_call_does_not_grow_with_the_steps(plugin):
    """Each scan is computed where it ends."""
    needs_dask()
    import rnncore

    rnn = rnncore.RNN(2, 3, backend=plugin, dtype="float64", rng=0)
    nodes = []
    for steps in (2, 40):
        x = plugin.asarray(np.ones((steps, 1, 2)), dtype=plugin.namespace().float64, device="cpu")
        nodes.append(len(rnn(x)[0].__dask_graph__()))
    assert nodes[0] == nodes[1]
