"""Networks and inputs for the monitor's tests."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from rnncore import errors

T, B, I, H = 9, 3, 4, 5  # noqa: E741


nn = torch.nn


QUIET = pytest.mark.filterwarnings("ignore::rnncore.diagnostics.monitor.monitor.VerdictChange")


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def tensor(*shape, dtype=torch.float32, seed=0):
    return torch.tensor(numbers(*shape, seed=seed), dtype=dtype)


@contextmanager
def refused(kind, *words):
    """The error is ours, is the built-in too, and says these words."""
    with pytest.raises(kind) as info:
        yield
    assert isinstance(info.value, errors.RnncoreError)
    assert all(word in str(info.value) for word in words)


X = numbers(30, B, I)
