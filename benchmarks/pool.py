"""The workers from outside: their environment, and one request at a time while all others are stopped."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.peers import Peer

ROOT = Path(__file__).parent.parent
# Some systems set these to pin OpenBLAS to the code of an older processor.
PINNED = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
# Seconds, more than the longest preparation: compiling, and a Python loop over 4096 steps of four layers.
PATIENCE = 600.0


class WorkerDied(Exception):
    """A worker's process ended or did not answer in time."""


def environment(threads: int, extra: Mapping[str, str], given: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return a worker's variables: `given` (by default this process's) without `PINNED`, with the number of threads.

    >>> environment(2, {}, {"OPENBLAS_CORETYPE": "Haswell", "HOME": "/"})["OMP_NUM_THREADS"]
    '2'
    """
    kept = {k: v for k, v in (os.environ if given is None else given).items() if k not in PINNED}
    path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH")]))
    # Waiting threads must not spin: they would take the processor from the next worker.
    fixed = {"OMP_WAIT_POLICY": "passive", "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    return kept | fixed | dict.fromkeys(THREADS, str(threads)) | dict(extra)


class Worker:
    """One process, stopped except while it answers."""

    def __init__(self, peer: Peer, threads: int) -> None:
        self.peer = peer
        # For the error message if it dies; a full pipe would block the worker.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.worker", peer.factory, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment(threads, dict(peer.env)),
            cwd=ROOT,
        )
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._process.stdout, selectors.EVENT_READ)  # type: ignore[arg-type]
        self._held = b""

    @property
    def pid(self) -> int:
        """Return the process."""
        return self._process.pid

    def ask(self, request: Mapping[str, Any], patience: float = PATIENCE) -> dict[str, Any]:
        """Wake the process, get one answer, and stop it again.

        Raises
        ------
        WorkerDied
            With the last line that it wrote on standard error.
        """
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            line = self._line(patience)
        except OSError as error:
            raise WorkerDied(self._last_words(str(error))) from error
        self._signal(signal.SIGSTOP)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.kill()  # works on a stopped process too
            self._process.wait()
        self._selector.close()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None:
                stream.close()

    def _line(self, patience: float) -> bytes:
        assert self._process.stdout is not None
        end = time.monotonic() + patience
        while b"\n" not in self._held:
            left = end - time.monotonic()
            if left <= 0 or not self._selector.select(left):
                raise WorkerDied(self._last_words(f"no answer in {patience:.0f} s"))
            piece = os.read(self._process.stdout.fileno(), 1 << 16)
            if not piece:
                raise WorkerDied(self._last_words("the process ended"))
            self._held += piece
        line, _, self._held = self._held.partition(b"\n")
        return line

    def _signal(self, number: int) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)

    def _last_words(self, what: str) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return what + (f": {lines[-1][:300]}" if lines else "")


class Pool:
    """Workers by peer and number of threads, started at their first request and kept.

    Parameters
    ----------
    peers : mapping of str to Peer
    patience : callable, optional
        Returns the seconds that an answer may take.
    """

    def __init__(self, peers: Mapping[str, Peer], patience: Callable[[], float] = lambda: PATIENCE) -> None:
        self.peers, self.patience = peers, patience
        self._workers: dict[tuple[str, int], Worker] = {}

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for worker in self._workers.values():
            worker.close()

    def ask(self, name: str, threads: int, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send one request to one worker; after {"failed": reason} the next request starts a new process."""
        key = name, threads
        if key not in self._workers:
            self._workers[key] = Worker(self.peers[name], threads)
        try:
            answer = self._workers[key].ask(request, self.patience())
        except WorkerDied as error:
            answer = {"failed": str(error)}
        if "failed" in answer:  # a library that failed once may fail ever after
            self._workers.pop(key).close()
        return answer

    def each(self) -> list[dict[str, Any]]:
        """Ask every worker where it runs."""
        return [self.ask(name, threads, {"do": "where"}) for name, threads in list(self._workers)]

    def pids(self) -> list[int]:
        """Return the running processes."""
        return [w.pid for w in self._workers.values()]
