"""Forks: what a forked child must not find half done.

A forked child has only the thread that forked. What another thread was doing stays half done in it, and its locks are never
released. New locks would not help: a module that is half imported makes Python's own import wait for ever, and LLVM in the
middle of compiling is in no defined state. So a fork waits until no other thread imports a library or compiles for rnncore.
That takes some seconds, and only at first uses. After LONGEST_WAIT it goes on all the same, and the child gets an error, where
it would wait for ever, if it uses something for the first time.

``subprocess`` without ``preexec_fn``, and the start methods "spawn" and "forkserver" of ``multiprocessing``, do not wait.
"""

from __future__ import annotations

import os
import time
from threading import Condition, get_ident
from typing import Any, Protocol

from rnncore.errors import BackendUnavailableError

__all__ = ["FirstUses", "first_use"]

# Seconds. Longer than importing or compiling takes, and short enough that a thread which waits for the forking one, and so
# will never be done, only delays the fork.
LONGEST_WAIT = 60.0


class Lock(Protocol):
    """A lock of :mod:`threading`."""

    def acquire(self, *, timeout: float) -> bool: ...

    def release(self) -> None: ...


class FirstUses:
    """A context that any number of threads may be in, nested too, and that a fork in another thread waits for.

    Nobody waits to enter it as long as somebody is inside, for whoever is inside may wait for what the one that enters holds.
    So it needs no place in an order of locks.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._depths: dict[int, int] = {}  # by thread
        self._waiting = 0  # forks
        self._forking: int | None = None
        self._locks: list[Lock] = []
        self._held: list[Lock] = []
        self._is_cut = False
        self._pid = os.getpid()
        self._registered = 0

    def __enter__(self) -> None:
        self._enter()
        if self._registered == 1:  # inside, as this is a first use, too
            self._go_first()

    def _enter(self) -> None:
        me = get_ident()
        with self._changed:
            if self._is_cut and me not in self._depths:
                raise BackendUnavailableError(
                    "this process was forked while another thread imported a library or compiled a kernel, which is half "
                    "done here and would be waited for for ever; fork before or after that, or start processes by "
                    "'spawn' or 'forkserver'"
                )
            # A fork that waits comes first, so that it does not wait for one first use after another.
            self._changed.wait_for(lambda: self._forking == me or self._depths or not (self._waiting or self._forking))
            self._depths[me] = self._depths.get(me, 0) + 1

    def __exit__(self, *error: object) -> None:
        me = get_ident()
        with self._changed:
            self._depths[me] -= 1
            if not self._depths[me]:
                del self._depths[me]
            self._changed.notify_all()

    def hold_in_forks(self, lock: Lock | Any) -> None:
        """Hold a lock during forks, so that no other thread has it then. Whoever has it must not enter this context."""
        self._locks.append(lock)

    def before_fork(self) -> None:
        """Wait until no other thread is inside or has one of the locks, and keep others out."""
        me, end = get_ident(), time.monotonic() + LONGEST_WAIT
        if self._forking == me:  # registered twice
            return
        with self._changed:
            # A library that forks while it is imported waits for nobody: another thread may be waiting for that import.
            self._waiting += 1
            try:
                self._changed.wait_for(
                    lambda: self._forking is None and (me in self._depths or not self._depths), timeout=LONGEST_WAIT
                )
            finally:  # also if Ctrl-C ends the wait: Python prints the interrupt, calls the next handler and forks
                self._forking = me
                self._waiting -= 1
                self._changed.notify_all()
            if me in self._depths:
                return
        self._held = [lock for lock in self._locks if lock.acquire(timeout=max(0.0, end - time.monotonic()))]

    def after_fork_in_parent(self) -> None:
        """Let others in."""
        if self._forking == get_ident():
            self._release()
            with self._changed:
                self._forking = None
                self._changed.notify_all()

    def after_fork_in_child(self) -> None:
        """Start anew with the only thread there is."""
        if self._pid == os.getpid():
            return
        self._pid = os.getpid()
        me, inside = get_ident(), self._depths
        others = [thread for thread in inside if thread != me]
        self._is_cut = self._is_cut or bool(others) or (me not in inside and len(self._held) < len(self._locks))
        self._release()
        self._changed, self._waiting, self._forking = Condition(), 0, None
        self._depths = {me: inside[me]} if me in inside else {}

    def register(self) -> None:
        """Take part in the forks of this process."""
        self._registered += 1
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self.before_fork,
                after_in_parent=self.after_fork_in_parent,
                after_in_child=self.after_fork_in_child,
            )

    def _go_first(self) -> None:
        """Take part before the standard library does: the last to register comes first.

        Its handlers take locks that importing and compiling need, and would hold them while this one waits. If they were
        registered while it waits, they would release what they have not taken, and Python would print the errors.
        """
        import concurrent.futures.thread  # noqa: F401
        import logging  # noqa: F401

        with self._changed:
            if self._registered == 1:
                self.register()

    def _release(self) -> None:
        while self._held:
            self._held.pop().release()


first_use = FirstUses()
first_use.register()
