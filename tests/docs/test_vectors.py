"""The vectors of docs/vectors: they are what their script makes, small, described, and right in onnxruntime and in rnncore."""

import json
import re

import numpy as np
import pytest

import rnncore
from tests.tools.rounding import agree

pytest.importorskip("onnx", reason="makes ONNX files")
from tests.tools.vectors import CASES, FOLDER, description, graph, made, onnx_model

SIZE = 300_000
# One rounding of the reference's numbers to float64, which are longdouble here and wider elsewhere.
AGAIN = 1

GIVES_ALPHA = (1, 29)
WITHOUT_ALPHA = ("leaky_relu_default", "hard_sigmoid_default")

names = pytest.mark.parametrize("name", CASES)


def stored(name):
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


@names
def test_the_script_makes_them_again(name):
    case = CASES[name]
    vectors, there = made(case), stored(name)
    assert list(there) == list(vectors.arrays)
    for key, values in vectors.arrays.items():
        assert there[key].dtype == values.dtype
        if key in vectors.outputs:
            agree(there[key], values, AGAIN, key)
        else:
            np.testing.assert_array_equal(there[key], values)
    assert onnx_model((FOLDER / f"{name}.onnx").read_bytes()) == onnx_model(graph(case, vectors))


def test_the_folder_holds_these_and_is_small():
    files = {path.name for path in FOLDER.iterdir()}
    want = {f"{name}.{end}" for name in CASES for end in ("onnx", "npz")}
    assert files == want | {"cases.json", "README.md"}
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < SIZE


def test_every_case_is_described():
    said = json.loads((FOLDER / "cases.json").read_text())
    assert said == {name: json.loads(json.dumps(description(case))) for name, case in CASES.items()}
    rows = re.findall(r"^\| (`.*?) \|", (FOLDER / "README.md").read_text().partition("## The cases")[2], re.M)
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(CASES)


@names
def test_onnxruntime_is_right_on_them(name):
    onnxruntime = pytest.importorskip("onnxruntime", reason="runs ONNX files")
    if name in WITHOUT_ALPHA and tuple(map(int, onnxruntime.__version__.split(".")[:2])) < GIVES_ALPHA:
        pytest.skip("before 1.29 ONNX Runtime takes 0 for an alpha or beta that is not given")
    there = stored(name)
    session = onnxruntime.InferenceSession(FOLDER / f"{name}.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {i.name: there[i.name] for i in session.get_inputs()})
    for output, values in zip(session.get_outputs(), found, strict=True):
        agree(values, there[output.name], what=output.name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@names
def test_rnncore_is_right_on_them(name, dtype):
    there = stored(name)
    rnn = rnncore.load(FOLDER / f"{name}.onnx", dtype=dtype)
    assert all(np.array_equal(there[n], a) for n, a in rnn.params.items())
    uniform = rnn.spec.uniform
    h0 = [a.astype(dtype) for n, a in there.items() if n.startswith("h0")] or None
    h0 = h0[0] if h0 and uniform else h0
    lengths = there["lengths"].tolist() if "lengths" in there else None
    output, h_n = rnn(there["x"].astype(dtype), h0, lengths=lengths)
    agree(output, there["output"])
    for k, values in enumerate([h_n] if uniform else h_n):
        agree(values, there["h_n" if uniform else f"h_n_l{k}"])
