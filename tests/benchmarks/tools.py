"""What the tests of the benchmarks share."""

import sys
import time
from pathlib import Path

import pytest

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are looked up in /proc")


def gone(number):
    """Whether a process ends soon, or has; a zombie has."""
    for _ in range(100):
        try:
            if "State:\tZ" in Path(f"/proc/{number}/status").read_text():
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False
