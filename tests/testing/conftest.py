"""A wrong backend."""

import pytest
from wrong_backends import ZOO


@pytest.fixture
def wrong():
    """A backend that fails RC-SCAN-001 and passes RC-SCAN-014."""
    with next(w for w in ZOO if w.name == "W_hh is transposed").plant() as backend:
        yield backend
