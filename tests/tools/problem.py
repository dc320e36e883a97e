"""A network with everything a call and a pullback need."""

import itertools

import numpy as np
import pytest

import rnncore
from tests.tools.rounding import PROMISED, agree

STEPS, BATCH, INPUT = 7, 4, 3
LENGTHS = [4, 0, 7, 1]
backends = pytest.mark.parametrize("backend", ["numpy", "torch"])
stacks = pytest.mark.parametrize(
    ("layers", "bidirectional"), list(itertools.product((1, 2), (False, True))), ids=["1", "1bi", "2", "2bi"]
)


class Problem:
    """A network in float64 with everything a call and a pullback need, as arrays of its backend."""

    def __init__(self, backend="numpy", layers=1, bidirectional=False, hidden=5, seed=0, **options):
        rng = np.random.default_rng(seed)
        self.rnn = rnncore.RNN(
            INPUT, hidden, layers, bidirectional=bidirectional, backend=backend, dtype="float64", rng=1, **options
        )
        self.plugin = rnncore.get_backend(backend)
        spec = self.rnn.spec
        directions = spec.num_directions
        self.x = self.give(rng.standard_normal((STEPS, BATCH, INPUT)))
        states = [rng.standard_normal((directions, BATCH, h)) for h in spec.hidden_sizes]
        tangents = [rng.standard_normal((directions, BATCH, h)) for h in spec.hidden_sizes]
        self.h0, self.d_h_n = self.state(states), self.state(tangents)
        self.d_output = self.give(rng.standard_normal((STEPS, BATCH, directions * spec.hidden_sizes[-1])))

    def give(self, a):
        return self.plugin.asarray(np.asarray(a, dtype="f8"), dtype=self.rnn.dtype, device=self.rnn.device)

    def state(self, rows):
        return self.give(np.concatenate(rows)) if self.rnn.spec.uniform else [self.give(r) for r in rows]

    def host(self, a):
        if isinstance(a, (tuple, list)):
            return np.concatenate([np.array(self.plugin.to_numpy(r)).reshape(-1) for r in a])
        return np.array(self.plugin.to_numpy(a))

    def run(self, **options):
        """Everything a call and its pullback return, by name, on the host."""
        output, h_n, pullback = self.rnn.vjp(self.x, self.h0, **options)
        grads = pullback(self.d_output, self.d_h_n)
        found = {"output": output, "h_n": h_n, "x": grads.x, "h0": grads.h0, **grads.params}
        return {k: self.host(v) for k, v in found.items()}


def assert_same(a, b, eps=PROMISED):
    assert a.keys() == b.keys()
    for k in a:
        agree(a[k], b[k], eps, what=k)
