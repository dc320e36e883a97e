"""Networks and inputs for the monitor's tests."""

from __future__ import annotations

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


def refused(kind, *words):
    """The error is ours, is the built-in too, and says these words."""

    class _Refused:
        def __enter__(self):
            self._raises = pytest.raises(kind)
            self._info = self._raises.__enter__()

        def __exit__(self, *rest):
            done = self._raises.__exit__(*rest)
            assert isinstance(self._info.value, errors.RnncoreError)
            for word in words:
                assert word in str(self._info.value)
            return done

    return _Refused()


X = numbers(30, B, I)
