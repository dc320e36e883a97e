"""Logs: written, torn, read back and refused."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rnncore.diagnostics.monitor.log import BEGIN, MAX_LINE, read_log
from rnncore.diagnostics.monitor.monitor import Monitor
from tests.diagnostics.monitor.networks import X, refused


def test_a_log_is_read_back_as_it_was_written(tmp_path, network):
    path, seen = tmp_path / "log.jsonl", []
    with Monitor(every=1, sink=path) as monitor:
        for loss, norm in ((0.5, 1.0), (math.nan, math.inf), (math.inf, math.nan), (None, None), (-math.inf, 0.0)):
            monitor.step(network, X, loss=loss, grad_norm=norm)
            seen.append(monitor.last)
            lines = path.read_bytes().splitlines(keepends=True)  # it is there before step returns
            assert len(lines) == len(seen) and lines[-1].endswith(b"\n")
            json.loads(lines[-1], parse_constant=pytest.fail)
    assert repr(read_log(path)) == repr(seen)
    first = json.loads(path.read_text().splitlines()[0])
    assert first["verdict"] == "vanishing" and {"metric", "value", "threshold", "where"} == set(first["evidence"][0])
    assert json.loads(path.read_text().splitlines()[1])["loss"] == "nan"


def test_a_network_that_is_not_finite_is_logged(tmp_path, network):
    path = tmp_path / "log.jsonl"
    x = X.copy()
    x[3, 1, 2] = np.nan
    with Monitor(every=1, sink=path) as monitor:
        monitor.step(network, x)
    (entry,) = read_log(path)
    assert entry.verdict == "nonfinite" and math.isnan(entry.evidence[0].value) and entry.norms is None


@pytest.mark.parametrize("cut", [1, 5, len(BEGIN), len(BEGIN) + 30, -1])
def test_a_torn_line_is_left_out_and_appended_behind(tmp_path, network, cut):
    path = tmp_path / "log.jsonl"
    with Monitor(every=1, sink=str(path)) as monitor:
        monitor.step(network, X)
        monitor.step(network, X)
    first, second = path.read_bytes().splitlines()
    path.write_bytes(first + b"\n" + (second if cut == -1 else second[:cut]))
    complete = 2 if cut == -1 else 1  # only the end of the line is missing: nothing is lost
    assert len(read_log(path)) == complete
    with Monitor(every=1, sink=path) as monitor:
        monitor.step(network, X)
    assert len(read_log(path)) == complete + 1
    assert path.read_bytes().startswith(first + b"\n")


def test_a_killed_process_leaves_whole_lines(tmp_path):
    path = tmp_path / "log.jsonl"
    code = f"""
import os, numpy as np, rnncore
from rnncore.diagnostics import Monitor
monitor = Monitor(every=1, sink={str(path)!r})
for _ in range(3):
    monitor.step(rnncore.RNN(4, 5, rng=0), np.ones((9, 2, 4)))
os._exit(9)"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert [e.step for e in read_log(path)] == [1, 2, 3]


GOOD = '{"rnncore_monitor": 1, "step": 1, "loss": null, "verdict": "healthy", "summary": "", "evidence": [], "norms": null}'


@pytest.mark.parametrize(
    "line",
    [
        "hello",
        "[]",
        "3",
        "null",
        "{}",
        GOOD.replace('"rnncore_monitor": 1', '"rnncore_monitor": 2'),
        GOOD.replace('"step": 1', '"step": "1"'),
        GOOD.replace('"step": 1', '"step": true'),
        GOOD.replace('"loss": null', '"loss": "1.5"'),
        GOOD.replace('"loss": null, ', ""),
        GOOD.replace('"healthy"', "3"),
        GOOD.replace("[]", "[3]"),
        GOOD.replace("[]", "7"),
        GOOD.replace('"norms": null', '"norms": []'),
        "[" * 100_000,
        "\x00" * 50,
        "é",
        GOOD + " " * MAX_LINE,
    ],
)
def test_a_line_that_no_monitor_writes_is_refused_with_its_number(tmp_path, line):
    path = tmp_path / "log.jsonl"
    path.write_text(f"{GOOD}\n{line}\n{GOOD}\n", encoding="utf-8")
    with refused(ValueError, "log.jsonl: line 2"):
        read_log(path)


def test_logs_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_log(tmp_path / "none")
    with refused(ValueError, "regular file"):
        read_log("/dev/zero")
    (tmp_path / "empty").touch()
    assert read_log(tmp_path / "empty") == []


def test_a_log_of_version_0_1_is_read():
    """``log_0_1.jsonl`` is one that version 0.1 wrote."""
    entries = read_log(Path(__file__).with_name("log_0_1.jsonl"))
    assert [e.step for e in entries] == [1, 2, 3, 4]
    assert [e.verdict for e in entries] == ["vanishing", "vanishing", "vanishing", "nonfinite"]
    assert repr([e.loss for e in entries]) == "[0.5, nan, None, -inf]"
    assert entries[3].evidence[0].metric == "x (input)"
    assert [e.norms.steps for e in entries] == [1, 2, 2, 3]
