"""A few hundred of the mutants, and the machine that reads a million: it finds, keeps and repeats what fails."""

import argparse
import os
from collections import Counter

import numpy as np
import pytest

from rnncore.errors import FileAccessError, FileFormatError
from tests.fuzz import mutants, weights
from tests.fuzz.__main__ import main


def run(tmp_path, *options):
    return main(["weights", "--folder", str(tmp_path / "kept"), *map(str, options)])


def test_some_hundred_mutants_are_read_or_refused(tmp_path, capsys):
    assert run(tmp_path, "--count", 600, "--processes", 1) == 0
    figures = capsys.readouterr().out
    assert "seed 0: 600 mutants" in figures
    assert " 0 failed" in figures
    assert not (tmp_path / "kept").exists()


def test_a_mutant_is_that_of_its_seed_and_number():
    made = [mutants.mutant(3, number) for number in range(200)]
    assert made == [mutants.mutant(3, number) for number in range(200)]
    assert {suffix for suffix, _, _ in made} == {"safetensors", "npz", "npy"}
    assert len({raw for _, raw, _ in made}) > 150
    assert made != [mutants.mutant(4, number) for number in range(200)]


def test_the_parts_of_a_good_file_make_a_good_file(tmp_path):
    """Without a change: what is refused is refused for its changes."""
    for parts in mutants.bases()["npz"]:
        entries = [{"name": n, "data": d, "local": {}, "central": {}, "before": b""} for n, d in parts["entries"]]
        for end64 in (None, {}):
            path = tmp_path / "again.npz"
            path.write_bytes(mutants.zipped(entries, {}, end64))
            assert weights.check(str(path)) == "read"


def fails(path):
    raise KeyError("a fault")


def says_nothing(path):
    raise FileFormatError("damaged")


def says_what_no_terminal_shows(path):
    raise FileFormatError(f"{path}: \ud800")


def blames_the_system(path):
    raise FileAccessError(22, "Invalid argument", path)


def reads_other_numbers(path, read=weights.io.read):
    stored = read(path)
    stored.params["weight_hh_l0"][0, 0] += 1
    return stored


def reads_a_view(path, read=weights.io.read):
    stored = read(path)
    stored.params["weight_hh_l0"] = stored.params["weight_hh_l0"][:]
    return stored


@pytest.mark.parametrize(
    "fault", [fails, says_nothing, says_what_no_terminal_shows, blames_the_system, reads_other_numbers, reads_a_view]
)
def test_a_faulty_reader_is_found(tmp_path, monkeypatch, fault):
    path = tmp_path / "good.safetensors"
    path.write_bytes(mutants.bases()["safetensors"][0]["raw"])
    assert weights.check(str(path)) == "read"
    monkeypatch.setattr(weights.io, "read", fault)
    with pytest.raises((KeyError, AssertionError)):
        weights.check(str(path))


class Listed:
    """A pipe whose other end is a list."""

    def __init__(self):
        self.sent = []

    def send(self, message):
        self.sent.append(message)


class Now:
    value = -1


def test_failures_and_figures_are_reported(monkeypatch):
    def check(seed, number, folder):
        assert number != 4, "a fault"
        return "refused"

    monkeypatch.setattr(weights, "limit_memory", lambda: None)
    monkeypatch.setattr(weights, "read_one", check)
    monkeypatch.setattr(weights, "BATCH", 3)
    pipe = Listed()
    weights.read_all(0, range(0, 14, 2), Now, pipe)
    failed = [rest for kind, *rest in pipe.sent if kind == "failed"]
    assert [number for number, _ in failed] == [4]
    assert "a fault" in failed[0][1]
    figures = Counter()
    for kind, *rest in pipe.sent:
        if kind == "figures":
            weights.add(figures, rest[0])
    assert (figures["files"], figures["refused"]) == (7, 6)
    assert pipe.sent[-1][0] == "done"


def test_a_slow_file_is_a_failure(monkeypatch):
    monkeypatch.setattr(weights, "limit_memory", lambda: None)
    monkeypatch.setattr(weights, "read_one", lambda *args: "read")
    monkeypatch.setattr(weights, "SECONDS", -1.0)
    pipe = Listed()
    weights.read_all(0, range(1), Now, pipe)
    assert "processor time" in pipe.sent[0][2]


def dies(seed, numbers, now, pipe):
    """A process that its third mutant ends."""
    for number in numbers:
        now.value = number
        if number == 2:
            os._exit(7)
        pipe.send(("figures", {"files": 1, "slowest": float(number)}))
    pipe.send(("done", {}))


def test_a_mutant_that_ends_the_process_is_kept_and_the_rest_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(weights, "read_all", dies)
    assert run(tmp_path, "--count", 5, "--processes", 1, "--seed", 9) == 1
    shown = capsys.readouterr().out
    suffix, raw, _ = mutants.mutant(9, 2)
    (kept,) = (tmp_path / "kept").iterdir()
    assert kept.name == f"9-2.{suffix}"
    assert kept.read_bytes() == raw
    assert "mutant 2 of seed 9" in shown and "status 7" in shown
    assert "seed 9: 4 mutants" in shown and "1 failed" in shown and "slowest took 4.000 s" in shown


class Hanging:
    """A process and its pipe, on which nothing ever comes."""

    killed = False

    def poll(self, seconds):
        return False

    def kill(self):
        self.killed = True

    def join(self):
        assert self.killed


def test_a_mutant_that_hangs_is_found():
    share = weights.Share(argparse.Namespace(seed=0), range(9))
    share.pipe = share.process = Hanging()
    share.now.value = 5
    assert "a hang" in share.watch()
    assert share.process.killed


def test_a_mutant_is_read_again_by_its_number(tmp_path, capsys):
    assert run(tmp_path, "--only", 2, 3, "--seed", 9) == 0
    shown = capsys.readouterr().out
    assert "mutant 2 of seed 9" in shown and "mutant 3 of seed 9" in shown
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_a_file_that_others_refuse_is_counted_apart(tmp_path):
    path = tmp_path / "odd.npy"
    path.write_bytes(b"no array")
    assert weights.read_elsewhere(str(path)) is None
    np.save(path, np.ones(3))
    assert weights.read_elsewhere(str(path))["array"].tolist() == [1, 1, 1]


def test_an_unknown_part_is_refused_with_the_list(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["files"])
    assert ended.value.code == 2
    assert "weights" in capsys.readouterr().err
