"""Which cases a run measures, in which order, and what a later run adds; and one quick run."""

from __future__ import annotations

import doctest
import importlib
import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import case as cases
from benchmarks import peers, report, suite, tables
from benchmarks.peers import Peer
from tests.benchmarks.tools import linux
from tests.tools.rounding import EPS


@pytest.mark.parametrize("name", ["case", "pool", "ratios", "markdown", "naive", "suite", "__main__"])
def test_the_examples_in_the_documentation(name):
    ran = doctest.testmod(importlib.import_module(f"benchmarks.{name}"), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert ran.failed == 0


def test_what_matters_first_is_measured_first_and_nothing_is_forgotten():
    options = suite.Options()
    found = suite.grid(options)
    assert len(found) == len(set(found)) == 8 * 2 * 2 * 2 * 2
    assert all((c.layers, c.nonlinearity, c.dtype) == (1, "tanh", "float32") for c in found[:16])
    assert [c.shape for c in found[:16:2]] == list(cases.SHAPES)
    assert [c.threads for c in found[:4]] == [2, 1, 2, 1]


def test_the_shares_of_the_time_left_add_up():
    waiting = suite.grid(suite.Options(layers=(1,), dtypes=("float32",)))
    assert sum(suite.share(c, waiting, 600.0) for c in waiting) == pytest.approx(600.0, rel=64 * EPS)
    assert suite.share(waiting[0], waiting, np.inf) == np.inf


def test_when_the_time_is_over_the_rest_is_listed():
    options = suite.Options(shapes=((3, 1, 4), (4, 1, 4)), threads=(1,), peers=(), parts=("grid",), minutes=0.0)
    data = suite.run(replace(options, layers=(1,), nonlinearities=("tanh",), dtypes=("float32",), quick=True))
    assert data["cases"] == []
    assert [c["steps"] for c in data["not_measured"]] == [3, 4]
    assert "ran out before 2" in report.page(data)


@linux
def test_a_later_run_adds_what_the_first_lacks(tmp_path, monkeypatch):
    asked = []

    def measured(pool, names, case, numbers, **rest):
        asked.append(case.steps)
        return {"case": case.to_json(), "rounds": 1, "peers": {}}

    monkeypatch.setattr(suite, "measure", measured)
    options = suite.Options(((3, 1, 4),), (1,), ("tanh",), ("float32",), (1,), ("numpy",), ("grid",), quick=True)
    saved = json.loads(suite.dumps(suite.run(options)))
    more = replace(options, shapes=((3, 1, 4), (5, 1, 4)), parts=("grid", "slopes"))
    data = suite.run(more, tmp_path / "numbers.json", before=saved)
    assert asked == [3, 5, 8, 16, 8, 8]  # the second once, and both sweeps
    assert [c.get("run", 0) for c in data["cases"]] == [0, 1]
    assert json.loads((tmp_path / "numbers.json").read_text())["cases"] == data["cases"]
    page = report.page(data)
    assert "- Run 1: " in page and "- Run 2: " in page and "1 thread, run 2, GFLOP/s" in page
    # The share of the peak is that of the product of the same run.
    data["peaks"] = [{"threads": 1, "dtype": "float32", "gflops": {"NumPy": 1.0}}]
    data["peaks"].append({**data["peaks"][0], "gflops": {"NumPy": 4.0}, "run": 1})
    first, later = ({"case": {"steps": 10, "batch": 1, "width": 8}} | run for run in ({}, {"run": 1}))
    assert tables.share(data, first, "forward", 1.0) == 4 * tables.share(data, later, "forward", 1.0)
    with pytest.raises(ValueError, match=r"python was 2\.7, is 3"):
        suite.run(more, before=saved | {"environment": saved["environment"] | {"python": "2.7"}})


def test_the_command_line_restricts_and_refuses(capsys):
    options, path, add = command.options(["--shapes", "3,1,4", "--layers", "1", "--rounds", "7", "--json", "x.json"])
    assert (options.shapes, options.layers, options.rounds, str(path)) == (((3, 1, 4),), (1,), 7, "x.json")
    assert not add and command.options(["--add"])[2]
    assert command.options(["--quick"])[0].rounds == 3
    for bad in (["--shapes", "3,1"], ["--shapes", "0,1,2"], ["--peers", "nobody"]):
        with pytest.raises(SystemExit):
            command.options(bad)
    assert "expected T,B,H" in capsys.readouterr().err


def test_every_peer_is_a_function_that_is_there():
    for peer in [*peers.PEERS.values(), *peers.CHECKPOINTED.values()]:
        module, _, function = peer.factory.partition(":")
        assert callable(getattr(importlib.import_module(module), function)), peer.label
    assert "not installed" in peers.usable(Peer("", "", packages=("no-such-distribution",)))
    assert "no_such_module" in peers.usable(Peer("", "", modules=("no_such_module.part",)))


@pytest.mark.slow
@linux
def test_a_quick_run_from_end_to_end(tmp_path):
    """NumPy's scans against PyTorch: everything that is measured, in small, and the page of it."""
    arguments = "--quick --peers numpy torch.nn.RNN --layers 2 --nonlinearities relu --dtypes float32 --threads 1"
    path = tmp_path / "numbers.json"
    command.main([*arguments.split(), "--json", str(path)])
    data = json.loads(path.read_text())
    assert len(data["cases"]) == len(cases.QUICK_SHAPES)
    assert [e["axis"] for e in data["sweeps"]] == ["T", "T", "B", "B"]
    for found in [*data["cases"], *data["sweeps"]]:
        assert set(found["peers"]) == {"numpy", "torch.nn.RNN"}
        assert all(row[1] > 0 and row[-1] <= 64 for row in found["peers"].values())
    assert all(len(rounds) == 3 for found in data["cases"] for rounds in found["ratios"]["both"][:1])
    assert set(data["memory"]["peers"]) == {"numpy", "torch.nn.RNN", "numpy, checkpoint"}
    assert set(data["starts"]["seconds"]) == {"numpy", "torch.nn.RNN"}
    assert data["peaks"][0]["gflops"]["NumPy"] > 0
    assert path.with_suffix(".md").read_text() == report.page(data)
    assert (tmp_path / "images" / "performance.png").is_file()
