"""Every test of JAX runs with 64 bits."""

from __future__ import annotations

import jax
import pytest


@pytest.fixture(autouse=True)
def _sixty_four_bits():
    with jax.enable_x64(True):
        yield
