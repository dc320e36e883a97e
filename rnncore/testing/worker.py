"""Checks in a process of their own, which ends itself when a check exceeds its limit, and is then replaced.

Python code could be interrupted in this process, native code could not: so the process is given up. It is started afresh,
not forked, and does not import the script that runs. It is given one id at a time on its standard input. It answers with one
line of JSON, or with the traceback of :mod:`faulthandler`, whose watchdog ends it even if native code holds the interpreter.
What a plugin prints goes to standard error.
"""

from __future__ import annotations

import base64
import faulthandler
import json
import os
import pickle
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from pathlib import PurePath
from types import ModuleType
from typing import IO, Any

from rnncore import errors
from rnncore.arguments import brief, positive, printed, shown
from rnncore.backend.contract import Backend
from rnncore.backend.discovery import words
from rnncore.errors import ArgumentTypeError, BackendUnavailableError, RnncoreError
from rnncore.testing.check import CHECKS
from rnncore.testing.report import Outcome, Setting
from rnncore.testing.session import Session
from rnncore.testing.tools.rules import Check
from rnncore.typing import KernelMode

__all__ = ["Worker", "serve"]

# Without -P a module of the current folder could take the place of one of Python's own. Ctrl-C is the parent's to handle.
CODE = (
    "import sys; sys.path[:], sys.argv[1:] = sys.argv[1:], []; import signal; "
    "signal.signal(signal.SIGINT, signal.SIG_IGN); from rnncore.testing.worker import serve; serve()"
)
# Seconds, each reached only if something hangs that the watchdog in the process does not cover.
STARTING = 900.0  # until the library is imported
WATCHDOG = 60.0  # beyond the limit, for the watchdog itself
ENDING = 10.0  # until the process has ended by itself, before it is killed
POLL = 0.2  # how soon the death of a process is seen if its children keep the pipe open

FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$', re.M)
FRAMES_SHOWN = 6


class Worker:
    """A :class:`rnncore.testing.session.Session` in another process, with a limit for each check.

    Attributes
    ----------
    setting : Setting
    """

    def __init__(self, backend: str | Backend, *, device: Any, kernel: KernelMode, limit: float) -> None:
        self.limit = min(positive("limit", limit), threading.TIMEOUT_MAX)  # the watchdog counts no further
        device = None if device is None else printed(device)
        order = {"backend": _sent(backend), "device": device, "kernel": kernel, "limit": self.limit}
        self._order = json.dumps(order)
        self._lost = ""
        self._process: _Process | None = None
        self.setting = Setting(**self._start())

    def run(self, check: Check) -> Outcome:
        """Run one check. If it exceeds the limit or ends the process, it has failed, and the next check gets a new process."""
        started = time.perf_counter()
        try:
            if self._process is None:
                self._start()
        except RnncoreError as error:
            self._lost = f"not run: the process did not start again: {brief(str(error))}"
        if self._process is None:
            return Outcome.of(check, "failed", self._lost)
        answer, text = self._process.ask(check.id, self.limit + WATCHDOG)
        if answer is not None:
            return Outcome(**answer)
        seconds = time.perf_counter() - started
        status = self._process.end(ENDING)
        self._process = None
        return Outcome.of(check, "failed", _fate(text, status, self.limit), seconds=seconds)

    def close(self, *, now: bool = False) -> None:
        """End the process: after what it does at its exit, or at once."""
        if self._process is not None:
            self._process.end(0.0 if now else ENDING)
            self._process = None

    def _start(self) -> dict[str, Any]:
        if self._lost:
            return {}
        process = _Process()
        try:
            answer, text = process.ask(self._order, STARTING)
        except BaseException:
            process.end(0.0)
            raise
        if answer is None:
            raise BackendUnavailableError(
                f"the process of the checks did not start: {_fate(text, process.end(ENDING))}"
            )
        if "error" in answer:
            process.end(ENDING)
            raise getattr(errors, answer["error"])(answer["text"])
        self._process = process
        return answer


class _Process:
    """A new Python that runs :func:`serve`."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", "-c", CODE, *map(str, sys.path)]
        pipe = subprocess.PIPE
        self._child = subprocess.Popen(command, stdin=pipe, stdout=pipe, encoding="utf-8", errors="backslashreplace")
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(self._child.stdout,), daemon=True).start()

    def ask(self, line: str, patience: float) -> tuple[dict[str, Any] | None, str]:
        """Send a line; return the answer, or None and what the process wrote before it ended or the patience did."""
        assert self._child.stdin is not None
        with suppress(OSError):  # it has ended, which reading shows
            self._child.stdin.write(line + "\n")
            self._child.stdin.flush()
        text = []
        for said in self._said(time.monotonic() + patience):
            if said.startswith("{"):
                answer: dict[str, Any] = json.loads(said)
                return answer, ""
            text.append(said)
        return None, "".join(text)

    def end(self, patience: float) -> int | None:
        """Close its input and wait for its end; return its status, or None if it did not end and was killed."""
        assert self._child.stdin is not None
        with suppress(OSError):  # nobody reads the rest
            self._child.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            return self._child.wait(patience)
        self._child.kill()
        with suppress(subprocess.TimeoutExpired):  # which the system may be unable to do
            self._child.wait(ENDING)
        return None

    def _said(self, until: float) -> Iterator[str]:
        """Lines of the process, until it has ended or time is over."""
        while time.monotonic() < until:
            ended = self._child.poll() is not None
            try:
                line = self._lines.get(timeout=POLL)
            except queue.Empty:
                if ended:
                    return
                continue
            if line is None:
                return
            yield line

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self._lines.put(line)
        self._lines.put(None)


def _sent(backend: str | Backend) -> dict[str, str]:
    """A backend as the process finds it: by name, by module, or pickled."""
    if isinstance(backend, str):
        return {"name": backend}
    name = backend.__name__ if isinstance(backend, ModuleType) else "__main__"
    if name != "__main__" and sys.modules.get(name) is backend:
        return {"module": name}
    try:
        return {"pickle": base64.b64encode(pickle.dumps(backend)).decode("ascii")}
    except Exception as error:  # pickle and the plugin's own methods raise anything
        raise ArgumentTypeError(
            "backend: with a limit the checks run in another process, so expected the name of an installed backend, an "
            f"importable module or an object that can be pickled, got {shown(backend)}: {brief(words(error))}"
        ) from error


def _fate(text: str, status: int | None, limit: float = STARTING) -> str:
    """Why a process gave no answer, and where it was, by the traceback that it left."""
    if text.startswith("Timeout") or status is None:
        reason = f"did not end in {limit:g} s"
    elif status < 0:
        reason = f"the process was ended by {_signal_name(-status)}"
    else:
        reason = f"the process ended with status {status}"
    # Of all threads that of the checks, its innermost call first, up to the call of the check.
    for frames in map(FRAME.findall, text.split("hread 0x")):
        calls = [f"{name} ({'/'.join(PurePath(file).parts[-2:])}:{line})" for file, line, name in frames]
        names = [name for _, _, name in frames]
        if "serve" in names and "_fault" in names:
            shown = calls[: names.index("_fault")][:FRAMES_SHOWN]
            return f"{reason}; it was in {', called by '.join(shown)}"
    return reason


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # one of those for real time
        return f"signal {number}"


def serve() -> None:
    """Answer on standard output the orders on standard input; the first describes the backend, the others are ids."""
    orders = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    faulthandler.enable(answers)
    order = json.loads(orders.readline())
    try:
        session = Session(_received(order["backend"]), device=order["device"], kernel=order["kernel"])
    except RnncoreError as error:
        known = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in errors.__all__)
        print(json.dumps({"error": known, "text": str(error)}), file=answers)
        return
    print(json.dumps(asdict(session.setting)), file=answers)
    for line in orders:
        faulthandler.dump_traceback_later(order["limit"], exit=True, file=answers)
        outcome = session.run(CHECKS[line.strip()])
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(asdict(outcome)), file=answers)


def _received(sent: dict[str, str]) -> Any:
    if "name" in sent:
        return sent["name"]
    try:
        return import_module(sent["module"]) if "module" in sent else pickle.loads(base64.b64decode(sent["pickle"]))
    except BaseException as error:
        raise BackendUnavailableError(
            f"backend: it cannot be imported in another process, where checks with a limit run: {brief(words(error))}; "
            "a plugin that a script defines must be moved to a module"
        ) from error
