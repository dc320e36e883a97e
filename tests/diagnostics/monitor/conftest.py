"""Fixtures of the monitor's tests."""

from __future__ import annotations

import pytest
import torch

import rnncore
from tests.diagnostics.monitor.networks import H, I


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def network():
    return rnncore.RNN(I, H, rng=0)
