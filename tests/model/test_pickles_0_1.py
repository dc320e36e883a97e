"""Pickles made by rnncore 0.1 still load, and give the numbers they gave.

``pickles_0_1.json`` holds, by name, a pickle in base64 and the output for the input below: a network, a cell, and a
network of the class that a plugin offers.
"""

import base64
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

MADE = json.loads(Path(__file__).with_name("pickles_0_1.json").read_text())
INPUT = np.arange(30.0).reshape(5, 2, 3) / 10 - 1


@pytest.mark.parametrize("name", sorted(MADE))
def test_a_pickle_of_version_0_1_loads_and_computes_the_same(name):
    model = pickle.loads(base64.b64decode(MADE[name][0]))
    got = model(INPUT[0]) if name == "cell" else model(INPUT)[0]
    # Two layers of sums of at most 8 terms of size 1, over 5 steps, on another processor's kernels.
    np.testing.assert_allclose(got, MADE[name][1], rtol=0, atol=2 * 5 * 8 * np.finfo(float).eps)


def test_custom_functions_of_version_0_1_load():
    from rnncore import nonlinearity

    made = nonlinearity._custom_from_parts(np.tanh, np.cosh, "mine", 1.0, 2.0)
    assert made.user == (np.tanh, np.cosh)
    assert (made.name, made.gamma, made.clip) == ("mine", 1.0, 2.0)
