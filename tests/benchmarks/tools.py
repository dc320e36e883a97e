"""What the tests of the benchmarks share."""

import sys
import time
from pathlib import Path

import pytest

from tests.tools.process import PATIENCE

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are looked up in /proc")


def gone(number):
    """Whether a process ends, or has; a zombie has."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            if "State:\tZ" in Path(f"/proc/{number}/status").read_text():
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False
