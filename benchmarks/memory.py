"""What only a fresh process can tell: the peak of its memory in forward + backward, and how long until a first result.

``python -m benchmarks.memory peak|start FACTORY THREADS CASE FOLDER`` is that process; peaks and starts ask for it. The peak is
the kernel's own (VmHWM in /proc/self/status), which no library's allocator can hide from.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.case import Case, Problem, load
from benchmarks.peers import Peer, prepare
from benchmarks.pool import PATIENCE, ROOT, environment
from benchmarks.rounds import Numbers

# Runs first, so that code which a library loads or compiles at its first call is not taken for what the passes need.
TINY = Case(8, 2, 16)
REPEATS = 2


def peaks(peers: Mapping[str, Peer], case: Case, numbers: Numbers, tiny: Numbers, rounds: int) -> dict[str, Any]:
    """Memory and time of forward + backward of each peer, `rounds` fresh processes each, in turn.

    Returns
    -------
    dict
        "case", "results" (bytes of what the passes return: output, h_n and all gradients), and by peer, for each round:
        "grown" (bytes at the peak beyond the libraries, inputs and weights that were there before), "total" (bytes of the
        whole process at its peak), "seconds" of one pass.
    """
    found: dict[str, dict[str, Any]] = {name: {"grown": [], "total": [], "seconds": []} for name in peers}
    folder, small = numbers.ready(case), tiny.ready(TINY)
    for _ in range(rounds):
        for name, peer in peers.items():
            answer = _fresh("peak", peer, case, [str(folder), str(small)])
            if "failed" in answer:
                found[name]["left_out"] = answer["failed"]
                continue
            for key in ("grown", "total", "seconds"):
                found[name][key].append(answer[key])
    item = 8 if case.dtype == "float64" else 4
    states, rows = case.steps * case.batch * case.width, case.layers * case.batch * case.width
    weights = case.layers * (2 * case.width**2 + 2 * case.width)
    return {"case": case.to_json(), "results": item * (2 * states + 2 * rows + weights), "peers": found}


def starts(peers: Mapping[str, Peer], case: Case, numbers: Numbers, rounds: int) -> dict[str, Any]:
    """Seconds from the start of a process to its first forward pass: import, model, compilation. The median of the rounds."""
    folder = numbers.ready(case)
    taken: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(rounds):
        for name, peer in peers.items():
            began = time.perf_counter()
            if "failed" not in _fresh("start", peer, case, [str(folder)]):
                taken[name].append(time.perf_counter() - began)
    return {
        "case": case.to_json(),
        "seconds": {name: statistics.median(values) for name, values in taken.items() if values},
    }


def _fresh(what: str, peer: Peer, case: Case, folders: Sequence[str]) -> dict[str, Any]:
    fields = json.dumps(case.to_json())
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", what, peer.factory, str(case.threads), fields]
    try:
        ran = subprocess.run(
            [*command, *folders],
            capture_output=True,
            text=True,
            env=environment(case.threads, dict(peer.env)),
            cwd=ROOT,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"no answer in {PATIENCE:.0f} s"}
    if ran.returncode:
        return {"failed": " ".join(ran.stderr.strip().splitlines()[-1:])[:300] or f"exit status {ran.returncode}"}
    answer: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return answer


def main(arguments: list[str]) -> None:
    """Be the fresh process."""
    what, factory, threads, fields, *folders = arguments
    from benchmarks.worker import pin

    pin(int(threads))
    case = Case.from_json(json.loads(fields))
    print(json.dumps(_peak(factory, case, folders) if what == "peak" else _start(factory, case, folders[0])))


def _start(factory: str, case: Case, folder: str) -> dict[str, Any]:
    prepare(factory, Problem.from_numbers(case, load(Path(folder) / "problem"))).forward()
    return {}


def _peak(factory: str, case: Case, folders: Sequence[str]) -> dict[str, Any]:
    both = prepare(factory, Problem.from_numbers(TINY, load(Path(folders[1]) / "problem"))).both
    if both is None:
        raise ValueError("it has no gradients")
    both()
    both = prepare(factory, Problem.from_numbers(case, load(Path(folders[0]) / "problem"))).both
    assert both is not None
    # From here on the peak is this moment's (proc(5)): what laying out the case took is over.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    found = both()
    peak = _status("VmHWM")
    del found
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        both()
        seconds.append(time.perf_counter() - began)
    return {"grown": peak - before, "total": peak, "seconds": min(seconds)}


def _status(name: str) -> int:
    """Bytes."""
    text = Path(f"/proc/{os.getpid()}/status").read_text()
    found = re.search(rf"^{name}:\s+(\d+) kB$", text, re.M)
    assert found is not None, name
    return 1024 * int(found[1])


if __name__ == "__main__":
    main(sys.argv[1:])
