"""Constants that are folded, and tensors that are views of another."""

from importlib import import_module

import numpy as np
import pytest

import rnncore
from rnncore.errors import FileFormatError, InterchangeError
from rnncore.interchange.onnx.graph import Graph

pytest.importorskip("onnx", reason="reads ONNX files")
from tests.interchange.onnx.graphs import model, node, rnn, save, tensor, weights

A = np.arange(24, dtype="f4").reshape(2, 3, 4)


def graph(nodes, **kept):
    return Graph(model(nodes, [tensor(a, n) for n, a in kept.items()]).graph, "", 10_000)


def ints(*values):
    return np.asarray(values, "i8")


@pytest.mark.parametrize(
    ("made", "kept", "want"),
    [
        (node("Identity", ["a"], "y"), {}, A),
        (node("Transpose", ["a"], "y", perm=[2, 0, 1]), {}, A.transpose(2, 0, 1)),
        (node("Transpose", ["a"], "y"), {}, A.T),
        (node("Unsqueeze", ["a", "n"], "y"), {"n": ints(0, -1)}, A[None, ..., None]),
        (node("Unsqueeze", ["a"], "y", axes=[1]), {}, A[:, None]),
        (node("Squeeze", ["b"], "y"), {"b": A[:, :1, :1]}, A[:, 0, 0]),
        (node("Squeeze", ["b", "n"], "y"), {"b": A[:, :1], "n": ints(-2)}, A[:, 0]),
        (node("Concat", ["a", "a"], "y", axis=-1), {}, np.concatenate([A, A], -1)),
        (node("Reshape", ["a", "n"], "y"), {"n": ints(0, -1)}, A.reshape(2, 12)),
        (node("Slice", ["a", "n", "m"], "y"), {"n": ints(1, 0), "m": ints(2, 2)}, A[1:2, :2]),
        (node("Slice", ["a", "n", "m", "k"], "y"), {"n": ints(-2), "m": ints(2**62), "k": ints(2)}, A[..., -2:]),
        (
            node("Slice", ["a", "n", "m", "k", "s"], "y"),
            {"n": ints(-1), "m": ints(-(2**62)), "k": ints(1), "s": ints(-2)},
            A[:, ::-2],
        ),
        (node("Slice", ["a"], "y", starts=[1], ends=[3], axes=[1]), {}, A[:, 1:3]),
        (node("Constant", [], "y", value=tensor(A, "v")), {}, A),
        (node("Constant", [], "y", value_floats=[1.0, 2.0]), {}, np.asarray([1, 2], "f4")),
        (node("Constant", [], "y", value_int=3), {}, np.asarray(3)),
    ],
)
def test_constants_are_folded_as_onnx_says(made, kept, want):
    found = graph([made], a=A, **kept).constant("y")
    assert found is not None and found.dtype == want.dtype
    np.testing.assert_array_equal(found, want)


def test_folding_is_what_onnx_s_own_reference_does():
    """Of everything above in a chain, in ONNX's own evaluator."""
    nodes = [
        node("Transpose", ["a"], "b", perm=[1, 2, 0]),
        node("Slice", ["b", "starts", "ends", "axes", "steps"], "c"),
        node("Concat", ["c", "c"], "d", axis=1),
        node("Unsqueeze", ["d", "axes"], "e"),
        node("Reshape", ["e", "shape"], "y"),
    ]
    kept = {"starts": ints(3), "ends": ints(-9), "axes": ints(1), "steps": ints(-1), "shape": ints(0, -1), "a": A}
    made = model(nodes, [tensor(a, n) for n, a in kept.items()], inputs=[])
    reference = import_module("onnx.reference")
    (want,) = reference.ReferenceEvaluator(made).run(None, {})
    np.testing.assert_array_equal(graph(nodes, **kept).constant("y"), want)


@pytest.mark.parametrize(
    "made",
    [
        node("Mul", ["a", "a"], "y"),
        node("Identity", ["x"], "y"),
        node("Unsqueeze", ["a", "x"], "y"),
        node("Identity", ["a"], "y", domain="com.acme"),
        node("Split", ["a"], ["z", "y"], axis=0),
        node("Identity", ["nobody"], "y"),
    ],
)
def test_what_is_not_folded_is_no_constant(made):
    assert graph([made], a=A).constant("y") is None


@pytest.mark.parametrize(
    "made",
    [
        node("Transpose", ["a"], "y", perm=[0, 1, 7]),
        node("Transpose", ["a"], "y", perm=[0, 1]),
        node("Unsqueeze", ["a"], "y", axes=[9]),
        node("Squeeze", ["a"], "y", axes=[0]),
        node("Concat", ["a", "n"], "y", axis=0),
        node("Concat", ["n", "f"], "y", axis=0),
        node("Concat", ["a", "a"], "y", axis=5),
        node("Reshape", ["a", "n"], "y"),
        node("Slice", ["a"], "y", starts=[0, 0], ends=[1], axes=[0]),
        node("Slice", ["a"], "y", starts=[0], ends=[1], axes=[5]),
        node("Transpose", ["a"], "y", perm=1.5),
        node("Transpose", ["a"], "y", perm="text"),
    ],
)
def test_an_operation_that_does_not_fit_is_malformed(made):
    with pytest.raises(FileFormatError):
        graph([made], a=A, n=ints(5, 5), f=np.zeros(2, "f4")).constant("y")


def test_constants_that_grow_without_end_are_refused():
    nodes = [node("Concat", [f"a{k}", f"a{k}"], f"a{k + 1}", axis=0) for k in range(60)]
    with pytest.raises(FileFormatError, match="hold many times what the file does"):
        graph(nodes, a0=A).constant("a60")


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_constants_in_a_circle_or_in_a_long_row_are_refused(count):
    circle = [node("Identity", [f"a{(k + 1) % count}"], f"a{k}") for k in range(count)]
    with pytest.raises(FileFormatError, match=r"'a\d+' depends on more than 200 operations in a row, or on itself"):
        graph(circle).constant("a0")


def test_two_nodes_that_make_one_name_are_malformed():
    with pytest.raises(FileFormatError, match="expected one node to make 'y', got two"):
        graph([node("Identity", ["a"], "y"), node("Identity", ["b"], "y")])


AXES = (("T",), ("D",), ("B",), ("H",))
SIZES = {"D": 2, "H": 5, "S": 6, "B": 4}


@pytest.mark.parametrize(
    ("made", "axes", "want"),
    [
        (node("Transpose", ["Y"], "y", perm=[0, 2, 1, 3]), AXES, (("T",), ("B",), ("D",), ("H",))),
        (node("Dropout", ["Y"], "y"), AXES, AXES),
        (node("Dropout", ["Y", "", "yes"], "y"), AXES, None),
        (node("Dropout", ["Y", "", "no"], "y"), AXES, AXES),
        (node("Squeeze", ["Y", "one"], "y"), (("T",), (), ("B",), ("H",)), (("T",), ("B",), ("H",))),
        (node("Squeeze", ["Y", "one"], "y"), AXES, None),
        (node("Squeeze", ["Y"], "y"), AXES, None),
        (node("Unsqueeze", ["Y", "one"], "y"), (("T",), ("B",)), (("T",), (), ("B",))),
        (node("Reshape", ["Y", "shape"], "y"), (("T",), ("B",), ("D",), ("H",)), (("T",), ("B",), ("D", "H"))),
        (node("Reshape", ["Y", "ten"], "y"), (("T",), ("B",), ("D",), ("H",)), (("T",), ("B",), ("D", "H"))),
        (node("Reshape", ["Y", "open"], "y"), (("T",), ("B",), ("D",), ("H",)), (("T",), ("B",), ("D", "H"))),
        (node("Reshape", ["Y", "wrong"], "y"), (("T",), ("B",), ("D",), ("H",)), None),
        (node("Reshape", ["Y", "fixed"], "y"), (("T",), ("B",), ("D",), ("H",)), None),
        (node("Reshape", ["Y", "fixed"], "y"), (("S",), ("B",), ("D",), ("H",)), (("S",), ("B",), ("D", "H"))),
        (node("Reshape", ["Y", "fixed"], "y"), (("B",), ("S",), ("D",), ("H",)), None),
        (node("Reshape", ["Y", "shape"], "y"), AXES, (("T",), ("D",), ("B", "H"))),
        (node("Reshape", ["Y", "shape"], "y"), (("T",), ("D",), ("R",), ("H",)), None),
        (node("Transpose", ["Y"], "y", perm=[0, 1]), AXES, None),
        (node("Relu", ["Y"], "y"), AXES, None),
    ],
)
def test_a_view_has_the_axes_that_its_operations_leave(made, axes, want):
    kept = {
        "one": ints(1),
        "shape": ints(0, 0, -1),
        "ten": ints(0, 0, 10),
        "open": ints(0, -1, 10),
        "wrong": ints(0, 0, 11),
        "fixed": ints(6, 4, 10),
        "yes": np.asarray([1]),
        "no": np.asarray([0]),
    }
    found = graph([made], **kept).views("Y", axes, SIZES)
    assert found == ({"Y": axes} if want is None else {"Y": axes, "y": want})


def test_weights_that_are_computed_are_refused_by_the_operation(tmp_path):
    w, r, b = weights()
    kept = [tensor(w, "w"), tensor(r, "R"), tensor(b, "B")]
    cases = [
        (
            [node("Mul", ["w", "w"], "W", name="scale")],
            ["x"],
            "expected a constant for W, got the output of Mul 'scale'",
        ),
        ([], ["x", "W"], "expected a constant for W, got 'W', an input of the graph"),
        ([], ["x"], "expected a constant for W, got 'W', which nothing makes"),
    ]
    for nodes, inputs, words in cases:
        made = model([*nodes, rnn(outputs=["", "y"])], kept, inputs=inputs)
        with pytest.raises(InterchangeError, match=words):
            rnncore.load(save(made, tmp_path))
