"""NumPy's backend, but `is_native` (RC-CON-007) and `synchronize` (RC-CON-011) do what the variable STUCK says."""

import ctypes
import multiprocessing
import os
import signal
import threading
import time

import rnncore_numpy
from rnncore_numpy import (  # noqa: F401 - a backend is a module with these names
    asarray,
    contract_version,
    namespace,
    native_package,
    scans,
    to_numpy,
    writable,
)

from rnncore.backend.contract import Backend

name = "stuck"


def devices():
    if os.path.exists(os.environ.get("STUCK_NO_MORE", "")):
        os._exit(4)
    return rnncore_numpy.devices()


def is_native(x, /):
    print("{a plugin that prints", flush=True)
    WAYS[os.environ["STUCK"]]()
    return rnncore_numpy.is_native(x)


def synchronize(device, /):
    print("{a plugin that prints", flush=True)
    WAYS[os.environ["STUCK"]]()


def hang():
    """Wait for ever in Python."""
    threading.Event().wait()


def hang_natively():
    """Wait for ever in native code that holds the interpreter: no handler and no other thread of Python's can run."""
    ctypes.PyDLL(None).pause()


def crash():
    ctypes.string_at(0)


def be_killed():
    """As by a system that is out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def leave():
    os._exit(3)


def leave_a_child():
    """Until the marking file is gone it holds the pipes of its parent."""
    multiprocessing.get_context("fork").Process(target=_until_unmarked, daemon=True).start()
    os._exit(3)


def _until_unmarked():
    while os.path.exists(os.environ["STUCK_MARK"]):
        time.sleep(0.01)


def leave_for_good():
    open(os.environ["STUCK_NO_MORE"], "w").close()
    os._exit(3)


WAYS = {
    "": lambda: None,
    "in Python": hang,
    "natively": hang_natively,
    "crash": crash,
    "be killed": be_killed,
    "leave": leave,
    "leave a child": leave_a_child,
    "leave for good": leave_for_good,
}


class AsObject:
    """The same, and no module; it can be pickled."""

    def __init__(self, **changed):
        vars(self).update(changed)


for _name in (n for n in dir(Backend) if not n.startswith("_")):
    _member = globals()[_name]
    setattr(AsObject, _name, staticmethod(_member) if callable(_member) else _member)
