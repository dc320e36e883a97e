"""The benchmark suite: its oracle, its checks, its rounds in turn, its statistics and its page, on stubs; and one quick run."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import sys
from dataclasses import replace

import numpy as np
import pytest

from tests.tools.places import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks import __main__ as command
from benchmarks import case as cases
from benchmarks import memory, naive, peers, ratios, report, rounds, suite, tables
from benchmarks.case import Case, Problem, make
from benchmarks.markdown import DASH
from benchmarks.peers import Peer
from benchmarks.pool import PINNED, Pool, environment
from rnncore.testing.tools import oracle

TINY = Case(5, 3, 4, layers=2)
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are looked at in /proc")


def stub(name, ours=False, **env):
    return Peer(name, f"stub_peers:{name}", ours, env={"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", **env})


def stubs(*names):
    return {name: stub(name) for name in names}


@pytest.mark.parametrize("name", ["case", "pool", "ratios", "markdown", "naive", "suite", "__main__"])
def test_the_examples_in_the_documentation(name):
    ran = doctest.testmod(importlib.import_module(f"benchmarks.{name}"), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert ran.failed == 0


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_the_oracle_agrees_with_the_conformance_suites(nonlinearity):
    problem = make(replace(TINY, nonlinearity=nonlinearity)).astype("float64")
    want = oracle.solve(
        problem.params,
        problem.x,
        [h[None] for h in problem.h0],
        name=nonlinearity,
        d_output=problem.d_output,
        d_h_n=[d[None] for d in problem.d_h_n],
    )
    truth = {"output": want.output, "h_n": np.concatenate(want.h_n), "x": want.x, "h0": np.concatenate(want.h0)}
    truth |= want.params
    found = naive.both(problem)
    assert set(found) == set(truth)
    # Sums of at most 5 x 3 terms of order 1 in another order: 64 eps is the library's own bound.
    assert max(naive.errors(found, truth, "float64").values()) <= 64


def test_the_numbers_are_the_same_each_time_and_in_both_precisions():
    single, again, double = make(TINY), make(TINY), make(replace(TINY, dtype="float64"))
    for name, value in single.to_numbers().items():
        np.testing.assert_array_equal(value, again.to_numbers()[name])
        np.testing.assert_array_equal(value, double.to_numbers()[name])
        assert (value.dtype, double.to_numbers()[name].dtype) == ("float32", "float64")


@pytest.mark.parametrize("shape", [(3, 2, 16), (3, 2, 64)])
def test_the_spectral_radius_is_one_and_nothing_is_zero(shape):
    problem = make(Case(*shape, layers=2))
    for k in range(2):
        radius = max(abs(np.linalg.eigvals(problem.params[f"weight_hh_l{k}"].astype(float))))
        assert radius == pytest.approx(1.0, abs=1e-5)  # eigenvalues of a matrix rounded to float32
    assert all(np.abs(v).max() > 0.01 for v in problem.to_numbers().values())


def test_the_vanishing_run_meets_denormal_numbers_and_its_twin_does_not():
    case = Case(*cases.DENORMAL_SHAPE, kind="vanishing")
    reached = {}
    for kind in ("vanishing", "vanishing, loss everywhere"):
        d_x = np.abs(naive.both(make(replace(case, kind=kind)))["x"])
        tiny = np.finfo("float32").tiny
        reached[kind] = int(((d_x > 0) & (d_x < tiny)).any(axis=(1, 2)).sum())
    # 0.95^n passes from 2^-126 to 2^-149 in 311 steps.
    assert reached["vanishing"] > 200
    assert reached["vanishing, loss everywhere"] == 0


def test_numbers_survive_the_disk(tmp_path):
    problem = make(TINY)
    cases.save(tmp_path / "problem", problem.to_numbers())
    back = Problem.from_numbers(TINY, cases.load(tmp_path / "problem"))
    assert all((v == back.to_numbers()[n]).all() for n, v in problem.to_numbers().items())


def test_an_error_is_counted_in_eps_of_the_largest_number():
    truth = {"x": np.full((200, 2), 8.0)}
    found = truth["x"].astype("float32")
    found[150, 1] += 8 * 3 * np.finfo("float32").eps
    assert naive.errors({"x": found}, truth, "float32") == {"x": 3.0}
    for bad in ({}, {"x": found[1:]}, {"x": found.astype(float)}, {"x": found * np.float32("nan")}):
        assert naive.errors(bad, truth, "float32") == {"x": np.inf}


def test_operations_are_counted_over_all_products():
    # x W_ih^T and h W_hh^T, 2 x 7 x 5 x 9 x 9 each, of three layers; backward has twice as many.
    assert Case(7, 5, 9, layers=3).flops("forward") == 3 * 2 * (2 * 7 * 5 * 81)
    assert Case(7, 5, 9, layers=3).flops("both") == 9 * 2 * (2 * 7 * 5 * 81)


def test_a_slow_moment_of_the_machine_leaves_the_ratio_as_it_is():
    slow = np.array([1, 1, 30, 1, 1, 20, 1, 1, 10.0])
    ours = slow * np.linspace(0.99, 1.01, 9)
    found = ratios.ratio(2.0 * slow, ours)
    assert found.value == pytest.approx(2.0, rel=1e-3)
    assert 1.97 < found.low <= found.value <= found.high < 2.03
    # Unpaired, against times in another order, the interval would hold almost anything.
    assert ratios.ratio(2.0 * slow, ours[[2, 0, 1, 5, 3, 4, 8, 6, 7]]).low < 1.5


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(200):
        noise = np.exp(0.2 * rng.standard_normal(15))
        found = ratios.ratio(3.0 * noise, np.ones(15))
        held += found.low <= 3.0 <= found.high
    # 95 % is 190, the bootstrap of a median of 15 is known to be a little off; four standard deviations are 12.
    assert 174 <= held <= 200


def test_the_geometric_mean_is_over_shapes_and_its_interval_shrinks_with_them():
    rng = np.random.default_rng(0)
    two, half = (factor * np.exp(0.1 * rng.standard_normal(15)) for factor in (2.0, 0.5))
    assert ratios.geometric_mean([two, half]).value == pytest.approx(np.sqrt(np.median(two) * np.median(half)))
    one, many = ratios.geometric_mean([two]), ratios.geometric_mean([two] * 9)
    assert many.high / many.low < one.high / one.low


def test_workers_are_not_pinned_to_an_old_kernel_and_have_their_threads():
    found = environment(2, {"EXTRA": "1"}, dict.fromkeys(PINNED, "Haswell") | {"KEPT": "yes"})
    assert not set(PINNED) & set(found)
    assert (found["KEPT"], found["EXTRA"], found["OMP_WAIT_POLICY"]) == ("yes", "1", "passive")
    assert {found[n] for n in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")} == {
        "2"
    }


@linux
def test_one_process_runs_while_the_others_are_stopped(tmp_path, monkeypatch):
    for name in PINNED:
        monkeypatch.setenv(name, "Haswell")
    known = {n: stub("telling", SAID=str(tmp_path / n)) for n in ("first", "second")}
    numbers = rounds.Numbers(tmp_path / "numbers")
    for n in known:
        (tmp_path / n).with_suffix(".pids").write_text("")
    with Pool(known) as pool:
        for n in known:
            pool.ask(n, 1, {"do": "where"})
        for n in known:
            (tmp_path / n).with_suffix(".pids").write_text(" ".join(map(str, pool.pids())))
        found = rounds.measure(pool, list(known), TINY, numbers, rounds=2)
        assert all(len(p["seconds"]["both"]) == 2 for p in found["peers"].values())
    for n in known:
        seen = json.loads((tmp_path / n).read_text())
        own = str(seen["pid"])
        assert len(seen["states"]) == 2
        assert {pid: state for pid, state in seen["states"].items() if pid != own}.popitem()[1] == "T"
        assert not set(PINNED) & set(seen["env"])
        assert seen["processors"] == 1


def test_what_is_wrong_fails_or_dies_is_not_timed_and_says_why(tmp_path):
    known = stubs("right", "wrong_weight", "forward_only", "unsupported", "failing", "dying")
    with Pool(known) as pool:
        found = rounds.measure(pool, list(known), TINY, rounds.Numbers(tmp_path), rounds=2)["peers"]
        assert pool.ask("dying", 1, {"do": "where"})["processors"] == 1  # another one was started in its place
    assert {n: len(s) for n, s in found["right"]["seconds"].items()} == {"forward": 2, "both": 2}
    assert found["right"]["about"] == "the oracle's code"
    assert 0 < found["right"]["errors"]["both"] < 64
    assert list(found["forward_only"]["seconds"]) == ["forward"]
    reasons = {n: p["left_out"] for n, p in found.items() if "left_out" in p}
    assert set(reasons) == {"wrong_weight", "unsupported", "failing", "dying"}
    assert "wrong by" in reasons["wrong_weight"]
    assert "weight_hh_l0" in reasons["wrong_weight"]
    assert reasons["unsupported"] == "it has no such thing"
    assert reasons["failing"] == "ValueError: it does not work"
    assert "ended" in reasons["dying"]


class FakePool:
    """Answers at once; what a call took is told, not measured."""

    def __init__(self, costs, clock):
        self.costs, self.clock, self.order = costs, clock, []

    def ask(self, name, threads, request):
        if request["do"] == "prepare":
            again = {"both": self.costs[name]}
            return {"errors": {"both": {"x": 1.0}}, "first": {"both": 0.5}, "again": again, "about": ""}
        if request["do"] == "time":
            self.order.append(name)
            self.clock[0] += self.costs[name]
            return {"seconds": self.costs[name]}
        return {}


def timed(costs, tmp_path, **options):
    clock = [0.0]
    pool = FakePool(costs, clock)
    found = rounds.measure(pool, list(costs), TINY, rounds.Numbers(tmp_path), clock=lambda: clock[0], **options)
    return pool, {n: len(p["seconds"]["both"]) for n, p in found["peers"].items()}


def test_who_is_far_behind_and_takes_seconds_is_called_once(tmp_path):
    """Minutes for a number that nobody compares with; but two that are alike are compared however long they take."""
    far = rounds.FAR_BEHIND
    pool, counts = timed({"fast": 1.0, "behind": 1.01 * far, "near": 0.99 * far}, tmp_path, rounds=4)
    assert counts == {"fast": 4, "behind": 1, "near": 4}
    assert "behind" not in pool.order
    _, counts = timed({"fast": 1e-3, "behind": 1e-2 * far}, tmp_path, rounds=4)
    assert counts == {"fast": 4, "behind": 4}


def test_every_round_begins_one_further_on(tmp_path):
    pool, counts = timed({"a": 1.0, "b": 1.0, "c": 1.0}, tmp_path, rounds=3)
    assert "".join(pool.order) == "abcbcacab"
    assert counts == {"a": 3, "b": 3, "c": 3}


def test_the_slow_rest_when_their_share_of_the_time_is_spent_but_not_before_five_rounds(tmp_path):
    _, counts = timed({"fast": 0.1, "slow": 1.0}, tmp_path, rounds=20, seconds=8.0)
    assert counts["slow"] == rounds.FEWEST
    assert counts["fast"] > 2 * rounds.FEWEST
    _, counts = timed({"fast": 0.1, "slow": 1.0}, tmp_path, rounds=20, seconds=0.0)
    assert counts == {"fast": rounds.FEWEST, "slow": rounds.FEWEST}


def test_what_matters_first_is_measured_first_and_nothing_is_forgotten():
    options = suite.Options()
    found = suite.grid(options)
    assert len(found) == len(set(found)) == 8 * 2 * 2 * 2 * 2
    assert all((c.layers, c.nonlinearity, c.dtype) == (1, "tanh", "float32") for c in found[:16])
    assert [c.shape for c in found[:16:2]] == list(cases.SHAPES)
    assert [c.threads for c in found[:4]] == [2, 1, 2, 1]


def test_the_shares_of_the_time_left_add_up():
    waiting = suite.grid(suite.Options(layers=(1,), dtypes=("float32",)))
    assert sum(suite.share(c, waiting, 600.0) for c in waiting) == pytest.approx(600.0)
    assert suite.share(waiting[0], waiting, np.inf) == np.inf


def test_when_the_time_is_over_the_rest_is_listed():
    options = suite.Options(shapes=((3, 1, 4), (4, 1, 4)), threads=(1,), peers=(), parts=("grid",), minutes=0.0)
    data = suite.run(replace(options, layers=(1,), nonlinearities=("tanh",), dtypes=("float32",), quick=True))
    assert data["cases"] == []
    assert [c["steps"] for c in data["not_measured"]] == [3, 4]
    assert "over before 2" in report.page(data)


@linux
def test_a_later_run_adds_what_the_first_lacks(tmp_path, monkeypatch):
    asked = []

    def measured(pool, names, case, numbers, **rest):
        asked.append(case.steps)
        return {"case": case.to_json(), "rounds": 1, "peers": {}}

    monkeypatch.setattr(suite, "measure", measured)
    options = suite.Options(((3, 1, 4),), (1,), ("tanh",), ("float32",), (1,), ("numpy",), ("grid",), quick=True)
    first = json.loads(json.dumps(suite.run(options)))
    more = replace(options, shapes=((3, 1, 4), (5, 1, 4)), parts=("grid", "slopes"))
    data = suite.run(more, tmp_path / "numbers.json", before=first)
    assert asked == [3, 5, 8, 16, 8, 8]  # the second once, and both sweeps
    assert [c.get("run", 0) for c in data["cases"]] == [0, 1]
    assert json.loads((tmp_path / "numbers.json").read_text())["cases"] == data["cases"]
    page = report.page(data)
    assert "- Run 1: " in page and "- Run 2: " in page and "1 thread, run 2, GFLOP/s" in page
    # The share of the peak is by the product of the same run.
    data["peaks"] = [
        {"threads": 1, "dtype": "float32", "gflops": {"NumPy": 1.0}},
        {"threads": 1, "dtype": "float32", "gflops": {"NumPy": 4.0}, "run": 1},
    ]
    case = Case(10, 1, 8)
    assert tables.share(data, case, "forward", 1.0) == 4 * tables.share(data, case, "forward", 1.0, run=1)
    first["environment"]["python"] = "2.7"
    with pytest.raises(ValueError, match=r"python was 2\.7, is 3"):
        suite.run(more, before=first)


@linux
def test_the_peak_is_what_the_passes_had_at_once(tmp_path):
    numbers, tiny = rounds.Numbers(tmp_path / "a"), rounds.Numbers(tmp_path / "b")
    known = stubs("right", "greedy", "forward_only")
    found = memory.peaks(known, TINY, numbers, tiny, rounds=1)
    grown = {n: p["grown"] for n, p in found["peers"].items()}
    assert grown["right"][0] < 8 * 2**20
    # The kernel counts pages in batches of 64 for each processor: within 1 MiB below.
    assert 63 * 2**20 <= grown["greedy"][0] < 80 * 2**20
    assert "no gradients" in found["peers"]["forward_only"]["left_out"]
    # output and x, h_n and h0, four parameters of two layers, four bytes each
    assert found["results"] == 4 * (2 * 5 * 3 * 4 + 2 * 2 * 3 * 4 + 2 * (2 * 16 + 2 * 4))
    assert set(memory.starts(known, TINY, numbers, 1)["seconds"]) == set(known)


def entry(case, **seconds):
    return {
        "case": case.to_json(),
        "rounds": 3,
        "peers": {
            n.replace("_", " "): {"errors": {"both": 2.0}, "first": dict.fromkeys(s, 1.0), "about": "", "seconds": s}
            for n, s in seconds.items()
        },
    }


def synthetic():
    """Two shapes: at the first, ours is twice as fast as torch and the best peer 1.6 times as fast as ours."""
    first, second = Case(10, 1, 8), Case(20, 2, 8)
    names = {"numpy": "rnncore, NumPy", "numba": "rnncore, Numba", "drop-in": "drop-in", "torch.nn.RNN": "torch.nn.RNN"}

    def times(**by_name):
        return {n: {of: [f * t for f in (1.0, 3.0, 1.1)] for of in cases.PASSES} for n, t in by_name.items()}

    def of(case, numpy, numba, drop_in, torch, peer):
        made = entry(case, **times(numpy=numpy, numba=numba, torch=torch, peer=peer))
        made["peers"]["torch.nn.RNN"] = made["peers"].pop("torch")
        made["peers"]["drop-in"] = entry(case, **times(d=drop_in))["peers"]["d"]
        return made

    return {
        "environment": {"date": "2026-01-01", "processor": "P", "processors": 2, "system": "S", "python": "3",
                        "versions": {"numpy": "2"}, "removed": [PINNED[0]], "load_before": [0.1, 0, 0], "minutes": 3},
        "options": {"rounds": 3, "quick": False},
        "labels": names | {"peer": "The Peer", "gone": "Gone"},
        "ours": ["numpy", "numba", "drop-in"],
        "missing": {"gone": "gone is not installed"},
        "peaks": [{"threads": 1, "dtype": "float32", "gflops": {"NumPy": 1e-3, "PyTorch": 5e-4}}],
        "cases": [of(first, 0.02, 0.016, 0.01, 0.032, 0.01), of(second, 0.016, 0.02, 0.01, 0.008, 0.04)],
        "not_measured": [],
        "pools": {"numpy, 1 threads": {"pools": [{"internal_api": "openblas", "version": "1", "architecture": "Zen"}]}},
    }  # fmt: skip


def test_comparisons_take_the_best_of_ours_and_the_best_of_the_others():
    data = synthetic()
    first, second = data["cases"]
    found = tables.against_torch(data, first, "both")
    assert (found.ours, found.estimate.value) == ("numba", pytest.approx(2.0))
    found = tables.against_best(data, first, "both")
    assert (found.theirs, found.estimate.value) == ("peer", pytest.approx(1 / 1.6))
    assert tables.plain(data, second, "both").estimate.value == pytest.approx(0.5)
    found = tables.against_best(data, second, "both")
    assert (found.theirs, found.ours) == ("torch.nn.RNN", "numpy")
    assert tables.drop_in(data, first, "forward").estimate.value == pytest.approx(3.2)
    both = [tables.against_torch(data, e, "both") for e in data["cases"]]
    assert tables.mean(both).value == pytest.approx(1.0)  # 2 and 1/2


def test_the_share_of_the_peak_is_of_the_faster_product():
    data = synthetic()
    case = Case(10, 1, 8)  # 400 x 64 / 10 = 2560 operations forward
    assert tables.share(data, case, "forward", 0.01) == pytest.approx(2560 / 0.01 / 1e6)
    assert tables.share(data, replace(case, threads=2), "forward", 0.01) is None


def test_the_page_shows_losses_like_wins():
    page = report.page(synthetic())
    row = next(line for line in page.splitlines() if line.startswith("| 20, 2, 8 |"))
    assert f"| 0.50 (0.50{DASH}0.50) |" in row
    assert "17.6 (numpy)" in row
    assert "vs torch.nn.RNN: slower at 1 of 2 shapes: (20, 2, 8) 0.50." in page
    assert "vs the best peer: slower at 2 of 2 shapes: (10, 1, 8) 0.62; (20, 2, 8) 0.50." in page
    assert "drop-in vs torch.nn.RNN: slower at 1 of 2 shapes" in page
    assert "Gone: gone is not installed." in page
    assert "openblas 1 Zen" in page
    assert f"{PINNED[0]} was set" in page


def test_who_cannot_be_told_apart_is_said():
    rounds = {"torch.nn.RNN": {"both": [1.0, 2.0, 3.0]}, "numpy": {"both": [1.5, 1.6, 1.7]}}
    data = synthetic() | {"cases": [entry(Case(10, 1, 8), **rounds)]}
    page = report.page(data)
    assert "- NumPy alone vs torch.nn.RNN: slower at none of 1 shapes." in page
    assert "- NumPy alone vs torch.nn.RNN: not told apart, as the interval holds 1, at (10, 1, 8)." in page
    assert "not told apart" not in report.page(synthetic())


def test_a_sweep_becomes_a_slope_and_a_picture(tmp_path):
    from benchmarks import plots

    data = synthetic()
    data["sweeps"] = {
        "T": [entry(Case(n, 2, 8), numpy={"both": [1e-6 * n] * 3}) for n in (64, 128, 256)],
        "B": [entry(Case(9, n, 8), numpy={"both": [1e-6 * n**2] * 3}) for n in (2, 4, 8)],
    }
    assert "| rnncore, NumPy | 1.00 | 2.00 |" in report.page(data)
    (path,) = plots.draw(data, tmp_path)
    assert path.read_bytes().startswith(b"\x89PNG")


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


def test_the_page_in_the_documentation_is_that_of_the_numbers():
    numbers = ROOT / "docs" / "performance.json"
    assert numbers.with_suffix(".md").read_text() == report.page(json.loads(numbers.read_text()))


@linux
def test_a_quick_run_from_end_to_end(tmp_path):
    """NumPy's scans against PyTorch: everything that is measured, in small, and the page of it."""
    arguments = "--quick --peers numpy torch.nn.RNN --layers 2 --nonlinearities relu --dtypes float32 --threads 1"
    path = tmp_path / "numbers.json"
    command.main([*arguments.split(), "--json", str(path)])
    data = json.loads(path.read_text())
    assert len(data["cases"]) == len(cases.QUICK_SHAPES)
    for found in [*data["cases"], *data["denormal"], *data["sweeps"]["T"], *data["sweeps"]["B"]]:
        assert set(found["peers"]) == {"numpy", "torch.nn.RNN"}
        assert all(len(p["seconds"]["both"]) == 3 for p in found["peers"].values())
        assert all(p["errors"]["both"] <= 64 for p in found["peers"].values())
    assert set(data["memory"]["peers"]) == {"numpy", "torch.nn.RNN", "numpy, checkpoint"}
    assert set(data["starts"]["seconds"]) == {"numpy", "torch.nn.RNN"}
    assert data["peaks"][0]["gflops"]["NumPy"] > 0
    assert path.with_suffix(".md").read_text() == report.page(data)
    assert (tmp_path / "images" / "performance.png").is_file()
