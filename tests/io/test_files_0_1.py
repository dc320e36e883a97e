"""Weights files written by rnncore 0.1 still load, and give the numbers they gave.

``files_0_1.json`` holds, by name and format, a file in base64 and the network's output for the input below; for bfloat16,
which NumPy lacks, the parameters.
"""

import base64
import json
from pathlib import Path

import numpy as np
import pytest

import rnncore

MADE = json.loads(Path(__file__).with_name("files_0_1.json").read_text())
INPUT = np.arange(30.0).reshape(5, 2, 3) / 10 - 1


@pytest.mark.parametrize("name", sorted(MADE))
def test_a_file_of_version_0_1_loads_and_computes_the_same(tmp_path, name):
    path = tmp_path / f"rnn.{name.rpartition('.')[2]}"
    raw = base64.b64decode(MADE[name]["file"])
    path.write_bytes(raw)
    expected = MADE[name]["output"]
    if name.startswith("bfloat16"):
        wide = rnncore.load(path, dtype="float32")
        assert {k: v.tolist() for k, v in wide.params.items()} == expected
        model = rnncore.load(path, backend="torch")
    else:
        model = rnncore.load(path, nonlinearity=(np.sin, np.cos) if name.startswith("custom") else None)
        got = model(INPUT.astype(model.dtype))[0]
        # Two layers of sums of at most 8 terms of size 1, over 5 steps, on another processor's kernels.
        np.testing.assert_allclose(got, expected, rtol=0, atol=2 * 5 * 8 * np.finfo(got.dtype).eps)
    # Nothing has been added to the format since: today's file is the same, byte by byte.
    model.save(tmp_path / f"again{path.suffix}")
    assert (tmp_path / f"again{path.suffix}").read_bytes() == raw
