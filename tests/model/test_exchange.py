"""Modules of a backend's own library: what they say may be said again, and not otherwise."""

import pytest
import torch

import rnncore
from rnncore.errors import ArgumentValueError


def test_what_a_module_says_may_be_said_again():
    theirs = torch.nn.RNN(3, 5, nonlinearity="relu", batch_first=True)
    ours = rnncore.from_module(theirs, nonlinearity="relu", batch_first=True)
    assert ours.spec == rnncore.from_module(theirs).spec


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nonlinearity": "tanh"}, "nonlinearity: expected .*relu.* as the source says, got .*tanh"),
        ({"batch_first": False}, "batch_first: expected True, as the source says, got False"),
    ],
    ids=str,
)
def test_and_not_otherwise(options, words):
    with pytest.raises(ArgumentValueError, match=words):
        rnncore.from_module(torch.nn.RNN(3, 5, nonlinearity="relu", batch_first=True), **options)
