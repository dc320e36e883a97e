"""Every test of JAX runs with 64 bits."""

import jax
import pytest


@pytest.fixture(autouse=True)
def _sixty_four_bits():
    with jax.enable_x64(True):
        yield
