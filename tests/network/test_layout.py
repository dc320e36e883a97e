"""Torch's shapes outside, time first inside."""

import pytest

from tests.tools.problem import INPUT, STEPS, Problem, backends, stacks


@backends
@pytest.mark.parametrize("lengths", [None, []], ids=["full", "ragged"])
@stacks
def test_an_empty_batch_works(layers, bidirectional, lengths, backend):
    p = Problem(backend, layers, bidirectional)
    p.x, p.h0, p.d_output, p.d_h_n = p.x[:, :0], p.h0[:, :0], p.d_output[:, :0], p.d_h_n[:, :0]
    found = p.run(lengths=lengths)
    assert found["output"].shape == (STEPS, 0, 5 * (2 if bidirectional else 1))
    assert found["h_n"].shape == found["h0"].shape == (layers * (2 if bidirectional else 1), 0, 5)
    assert found["x"].shape == (STEPS, 0, INPUT)
    assert all(not found[k].any() for k in p.rnn.params)
    assert p.rnn.trace(p.x).h[0].shape[2] == 0
