"""What the tests of the benchmarks share."""

import sys

import pytest

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are looked up in /proc")
