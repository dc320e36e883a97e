"""Arrays into the library of a model and back."""

import numpy as np
import pytest

import rnncore

backends = pytest.mark.parametrize("backend", ["numpy", "torch"])


def give(rnn, a):
    return rnncore.get_backend(rnn.backend).asarray(np.asarray(a), dtype=rnn.dtype, device=rnn.device)


def host(rnn, a):
    return rnncore.get_backend(rnn.backend).to_numpy(a)
