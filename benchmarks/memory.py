"""What only a fresh process can measure: the peak of memory in forward + backward, and the time to a first result.

``python -m benchmarks.memory peak|start FACTORY CASE FOLDER...`` is that process; `peaks` and `starts` run it. The peak is the
kernel's own (VmHWM in /proc/self/status), which includes the memory of every allocator.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.case import Case, Problem, load
from benchmarks.peers import Peer, Prepared, prepare
from benchmarks.pool import PATIENCE, ROOT, environment
from benchmarks.rounds import Numbers
from benchmarks.worker import pin

# Runs first, so that code which a library loads or compiles at its first call does not count as memory of the passes.
TINY = Case(8, 2, 16)
REPEATS = 2


def peaks(peers: Mapping[str, Peer], case: Case, numbers: Numbers, tiny: Numbers, rounds: int) -> dict[str, Any]:
    """Measure memory and time of forward + backward, in `rounds` fresh processes for each peer.

    Returns
    -------
    dict
        "case"; "results", the bytes of output, h_n and all gradients; and by peer the medians of: the bytes at the peak
        beyond libraries, inputs and weights; the bytes of the whole process at its peak; seconds of one pass. Or the reason
        why there are none.
    """
    answers = _interleaved("peak", peers, case, rounds, numbers.ready(case), tiny.ready(TINY))
    found: dict[str, Any] = {}
    for name, answer in answers.items():
        good = [a["peak"] for a in answer if "failed" not in a]
        found[name] = [statistics.median(v) for v in zip(*good, strict=True)] if good else answer[-1]["failed"]
    states, rows = case.steps * case.batch * case.width, case.layers * case.batch * case.width
    weights = case.layers * (2 * case.width**2 + 2 * case.width)
    item = 8 if case.dtype == "float64" else 4
    return {"case": case.to_json(), "results": item * (2 * states + 2 * rows + weights), "peers": found}


def starts(peers: Mapping[str, Peer], case: Case, numbers: Numbers, rounds: int) -> dict[str, Any]:
    """Measure the seconds from the start of a process to its first forward pass: import, model, compilation."""
    answers = _interleaved("start", peers, case, rounds, numbers.ready(case))
    taken = {name: [a["seconds"] for a in answer if "failed" not in a] for name, answer in answers.items()}
    return {"case": case.to_json(), "seconds": {name: statistics.median(v) for name, v in taken.items() if v}}


def _interleaved(what: str, peers: Mapping[str, Peer], case: Case, rounds: int, *folders: Path) -> dict[str, list[Any]]:
    answers: dict[str, list[Any]] = {name: [] for name in peers}
    for _ in range(rounds):
        for name, peer in peers.items():
            began = time.perf_counter()
            answer = _fresh(what, peer, case, folders)
            answers[name].append({"seconds": time.perf_counter() - began} | answer)
    return answers


def _fresh(what: str, peer: Peer, case: Case, folders: tuple[Path, ...]) -> dict[str, Any]:
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "benchmarks.memory",
        what,
        peer.factory,
        json.dumps(case.to_json()),
    ]
    try:
        ran = subprocess.run(
            [*command, *map(str, folders)],
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


def main(what: str, factory: str, fields: str, folder: str, tiny: str = "") -> None:
    """Be the fresh process."""
    case = Case(**json.loads(fields))
    pin(case.threads)
    if what == "peak":
        print(json.dumps({"peak": _peak(factory, case, folder, tiny)}))
    else:
        _laid_out(factory, case, folder).forward()
        print("{}")


def _laid_out(factory: str, case: Case, folder: str) -> Prepared:
    return prepare(factory, Problem.from_numbers(case, load(Path(folder) / "problem")).astype(case.dtype))


def _peak(factory: str, case: Case, folder: str, tiny: str) -> list[float]:
    warm = _laid_out(factory, TINY, tiny).both
    if warm is None:
        raise ValueError("it has no gradients")
    warm()
    both = _laid_out(factory, case, folder).both
    assert both is not None
    # Reset the peak (proc(5)): laying out the case does not count.
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
    return [peak - before, peak, min(seconds)]


def _status(name: str) -> int:
    """Read a field of the process's status, in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    assert found is not None, name
    return 1024 * int(found[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
