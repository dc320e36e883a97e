"""Fixtures of the faults' tests."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _quiet():
    """NumPy warns of the overflows that are planted here."""
    with np.errstate(all="ignore"):
        yield
