"""Workers, checks and rounds, on stubs."""

from __future__ import annotations

import json
import os

import pytest

from benchmarks import memory, rounds
from benchmarks.case import Case
from benchmarks.peers import Peer
from benchmarks.pool import PINNED, Pool, environment
from tests.benchmarks.tools import linux
from tests.tools.places import DOUBLES, ROOT

TINY = Case(5, 3, 4, layers=2)


def stub(name, ours=False, **env):
    return Peer(name, f"stub_peers:{name}", ours, env={"PYTHONPATH": f"{ROOT}{os.pathsep}{DOUBLES}", **env})


def stubs(*names):
    return {name: stub(name) for name in names}


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
    kinds = {n: p["kind"] for n, p in found.items() if "left_out" in p}
    assert kinds == {"wrong_weight": "wrong", "unsupported": "unsupported", "failing": "failed", "dying": "failed"}
    reasons = {n: found[n]["left_out"] for n in kinds}
    assert "wrong by" in reasons["wrong_weight"]
    assert "weight_hh_l0" in reasons["wrong_weight"]
    assert reasons["unsupported"] == "it has no such thing"
    assert reasons["failing"] == "ValueError: it does not work"
    assert "ended" in reasons["dying"]


class FakePool:
    """Answers at once, with given times."""

    def __init__(self, costs, clock):
        self.costs, self.clock, self.order = costs, clock, []

    def ask(self, name, threads, request):
        if request["do"] == "prepare":
            again = {"both": self.costs[name]}
            return {"errors": {"both": {"x": 1.0}}, "first": {"both": 0.5}, "again": again, "about": "", "peak": {}}
        if request["do"] == "time":
            self.order.append(name)
            self.clock[0] += self.costs[name]
            return {"seconds": self.costs[name]}
        return {}


def timed(costs, tmp_path, **options):
    clock = [0.0]
    pool = FakePool(costs, clock)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "monotonic", lambda: clock[0])
        found = rounds.measure(pool, list(costs), TINY, rounds.Numbers(tmp_path), **options)
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


@linux
def test_the_peak_is_what_the_passes_had_at_once(tmp_path):
    numbers, tiny = rounds.Numbers(tmp_path / "a"), rounds.Numbers(tmp_path / "b")
    known = stubs("right", "greedy", "forward_only")
    found = memory.peaks(known, TINY, numbers, tiny, rounds=1)
    assert found["peers"]["right"][0] < 8 * 2**20
    # The kernel counts pages in batches of 64 for each processor: within 1 MiB below.
    assert 63 * 2**20 <= found["peers"]["greedy"][0] < 80 * 2**20
    assert "no gradients" in found["peers"]["forward_only"]
    # output and x, h_n and h0, four parameters of two layers, four bytes each
    assert found["results"] == 4 * (2 * 5 * 3 * 4 + 2 * 2 * 3 * 4 + 2 * (2 * 16 + 2 * 4))
    assert set(memory.starts(known, TINY, numbers, 1)["seconds"]) == set(known)
