"""Networks from ONNX graphs: torch's exports, ONNX's own cases, stacks, names, and what is left out or refused."""

import io
import warnings

import numpy as np
import pytest

import rnncore
from rnncore.errors import ArgumentValueError, FileFormatError, InterchangeError, UnknownNameError
from tests.interchange.networks import reference
from tests.tools.rounding import EPS_OF, PROMISED, agree

pytest.importorskip("onnx", reason="reads ONNX files")
from tests.interchange.onnx.graphs import constants, model, node, onnx, rnn, run, save, tensor, weights

torch = pytest.importorskip("torch", reason="exports ONNX files")


def exported(module, *args, names=("x", "h0"), dynamic=True, **options):
    """What torch's exporter by scripting makes of a module."""
    file = io.BytesIO()
    axes = {"x": {0: "a", 1: "b"}, **({"h0": {1: "c"}} if len(args) > 1 else {})} if dynamic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, of itself and of shapes that it takes as constants
        torch.onnx.export(
            module.eval(),
            args,
            file,
            dynamo=False,
            input_names=list(names[: len(args)]),
            output_names=["output", "h_n"],
            dynamic_axes=axes,
            **options,
        )
    return file.getvalue()


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("opset", [11, 20])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False, "nonlinearity": "relu"},
        {"num_layers": 3, "batch_first": True},
        {"num_layers": 2, "bidirectional": True},
        {"num_layers": 2, "bidirectional": True, "batch_first": True, "nonlinearity": "relu"},
    ],
    ids=str,
)
def test_what_torch_exports_is_the_same_network(tmp_path, options, opset, dynamic, folded):
    torch.manual_seed(0)
    theirs = torch.nn.RNN(3, 5, **options)
    state = torch.randn(options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1), 4, 5)
    x = torch.randn(4, 6, 3) if options.get("batch_first") else torch.randn(6, 4, 3)
    for args in ((x,), (x, state)):
        data = exported(theirs, *args, dynamic=dynamic, opset_version=opset, do_constant_folding=folded)
        path = tmp_path / "rnn.onnx"
        path.write_bytes(data)
        ours = rnncore.load(path, backend="torch")  # a warning would be an error here: nothing is left out
        assert ours.spec.batch_first is options.get("batch_first", False)
        for name, values in theirs.named_parameters():
            assert torch.equal(ours.params[name], values)
        with torch.no_grad():
            for got, want in zip(ours(*args), theirs(*args), strict=True):
                agree(got, want)
            longer = torch.randn(2, 9, 3) if options.get("batch_first") else torch.randn(9, 2, 3)
            agree(ours(longer)[0], theirs(longer)[0])


def test_three_steps_of_training_after_the_trip_are_torch_s_own(tmp_path):
    torch.manual_seed(0)
    theirs = torch.nn.RNN(3, 5, 2, bidirectional=True)
    x, target = torch.randn(6, 4, 3), torch.randn(6, 4, 10)
    path = tmp_path / "rnn.onnx"
    path.write_bytes(exported(theirs, x))
    ours = rnncore.load(path, backend="torch")
    for values in ours.params.values():
        values.requires_grad_()
    theirs.train()
    for network, parameters in ((theirs, list(theirs.parameters())), (ours, list(ours.params.values()))):
        optimiser = torch.optim.SGD(parameters, lr=0.1)
        for _ in range(3):
            optimiser.zero_grad()
            ((network(x)[0] - target) ** 2).mean().backward()
            optimiser.step()
    # Three steps, each of which moves a weight by a gradient that is right to the promised bound, times 0.1.
    for name, values in theirs.named_parameters():
        agree(ours.params[name], values, 3 * PROMISED)
    back = tmp_path / "trained.onnx"
    ours.save(back)
    agree(run(back, x=x.numpy())[0], theirs(x)[0].detach().numpy())


# --- ONNX's own cases -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["defaults", "initial_bias", "seq_length", "batchwise", "bidirectional", "reverse"])
def test_onnx_s_own_cases(tmp_path, name, monkeypatch):
    from onnx.backend.test.case.node import rnn as theirs

    found = []
    monkeypatch.setattr(theirs, "expect", lambda *args, **named: found.append((args, named)))
    getattr(theirs.RNN, f"export_{name}")()
    (((made,), case),) = found
    names = list(made.input)
    # The weights are inputs there, and constants in a network.
    kept = [tensor(a, n) for n, a in zip(names[1:], case["inputs"][1:], strict=True)]
    path = save(model([made], kept, inputs=["X"], outputs=[n for n in made.output if n]), tmp_path)
    if name == "reverse":
        with pytest.raises(InterchangeError, match="expected direction forward or bidirectional, got 'reverse'"):
            rnncore.load(path)
        return
    ours = rnncore.load(path)
    assert ours.spec.batch_first is (name == "batchwise")
    output, h_n = ours(case["inputs"][0])
    for want, part in zip(case["outputs"], (n for n in made.output if n), strict=True):
        if part == "Y_h":
            agree(h_n.swapaxes(0, 1) if ours.spec.batch_first else h_n, want)
        else:
            agree(output[:, :, None, :], want)  # one direction


# --- stacks, by hand --------------------------------------------------------------------------------------------------


def test_a_bidirectional_stack_with_layout_1_is_batch_first(tmp_path):
    """Rows, steps, directions, width: the Reshape alone joins the directions."""
    made = model(
        [
            rnn(outputs=["Y0", "E0"], name="low", direction="bidirectional", layout=1, activations=["Tanh"] * 2),
            node("Reshape", ["Y0", "shape"], "low_output"),
            rnn(["low_output", "W1", "R1", "B1"], ["Y1"], "high", direction="bidirectional", layout=1),
            node("Reshape", ["Y1", "shape"], "y"),
        ],
        [*constants(2), *constants(2, i=10, seed=1, suffix="1"), tensor(np.asarray([0, 0, 10]), "shape")],
    )
    ours = rnncore.load(save(made, tmp_path))
    assert ours.spec.batch_first and ours.spec.num_layers == 2 and ours.spec.bidirectional
    w, r, b = weights(2)
    np.testing.assert_array_equal(ours.params["weight_ih_l0_reverse"], w[1])
    np.testing.assert_array_equal(ours.params["weight_hh_l0"], r[0])
    np.testing.assert_array_equal(ours.params["bias_ih_l0_reverse"], b[1, :5])
    np.testing.assert_array_equal(ours.params["bias_hh_l0"], b[0, 5:])


def test_older_squeezes_and_the_first_version_are_read(tmp_path):
    made = model(
        [
            rnn(outputs=["Y0"], name="low", output_sequence=1),
            node("Squeeze", ["Y0"], "low_output", axes=[1]),
            rnn(["low_output", "W1", "R1", "B1"], ["Y1", "end"], "high"),
            node("Squeeze", ["Y1"], "y", axes=[-3]),
        ],
        [*constants(), *constants(i=5, seed=1, suffix="1")],
        opset=1,
    )
    ours = rnncore.load(save(made, tmp_path))
    assert ours.num_layers == 2 and not ours.spec.batch_first
    x = np.random.default_rng(0).standard_normal((6, 4, 3)).astype("f4")
    agree(ours(x)[0], reference(ours.portable(), x)[0])


@pytest.mark.parametrize(
    ("declared", "shape", "joined", "layers"),
    [
        ((6, 4, 3), (6, 4, 10), None, 2),  # an export with fixed sizes
        ((6, 4, 3), (4, 6, 10), None, 1),
        ((None, None, 3), (6, 4, 10), None, 1),
        (("t", "b", 3), None, ("t", "b", 10), 2),  # the shape is computed, and the file says what it is
        (("t", "b", 3), None, ("b", "t", 10), 1),
        (("t", "b", 3), None, None, 1),
    ],
)
def test_a_shape_that_the_exporter_fixed_or_computed_is_compared_with_what_the_file_declares(
    tmp_path, declared, shape, joined, layers
):
    """As torch's exporter by torch.export writes them of RNN nodes."""
    kept = [*constants(2), *constants(2, i=10, seed=1, suffix="1")]
    nodes = [
        rnn(outputs=["Y0"], name="low", direction="bidirectional"),
        node("Transpose", ["Y0"], "t0", perm=[0, 2, 1, 3]),
        node("Reshape", ["t0", "shape"], "low_output"),
        rnn(["low_output", "W1", "R1", "B1"], ["", "y"], "high", direction="bidirectional"),
    ]
    if shape is None:
        nodes.insert(0, node("Shape", ["other"], "shape"))
    else:
        kept.append(tensor(np.asarray(shape), "shape"))
    made = model(nodes, kept, inputs=[])
    made.graph.input.append(onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, declared))
    if joined:
        made.graph.value_info.append(onnx.helper.make_tensor_value_info("low_output", onnx.TensorProto.FLOAT, joined))
    path = save(made, tmp_path)
    if layers == 2:
        assert rnncore.load(path).num_layers == 2
    else:
        with pytest.raises(ArgumentValueError, match="name: expected one of 'low', 'high'"):
            rnncore.load(path)


def test_layers_whose_axes_are_swapped_between_them_are_no_stack(tmp_path):
    made = model(
        [
            rnn(outputs=["Y0"], name="low"),
            node("Squeeze", ["Y0", "one"], "low_output"),
            node("Transpose", ["low_output"], "swapped", perm=[1, 0, 2]),
            rnn(["swapped", "W1", "R1", "B1"], ["y"], "high"),
        ],
        [*constants(), *constants(i=5, seed=1, suffix="1"), tensor(np.asarray([1]), "one")],
    )
    with pytest.raises(
        ArgumentValueError, match="name: expected one of 'low', 'high', the networks in the file, got None"
    ):
        rnncore.load(save(made, tmp_path))


def two(second_attributes=None, **attributes):
    """A node that reads another, with attributes of its own."""
    return model(
        [
            rnn(outputs=["Y0"], name="low", **attributes),
            node("Squeeze", ["Y0", "one"], "low_output"),
            rnn(["low_output", "W1", "R1", "B1"], ["Y1", "y"], "high", **(second_attributes or {})),
        ],
        [*constants(), *constants(i=5, seed=1, suffix="1"), tensor(np.asarray([1]), "one")],
    )


def test_layers_with_different_functions_are_two_networks_and_each_can_be_read(tmp_path):
    path = save(two({"activations": ["Relu"]}), tmp_path)
    with pytest.raises(ArgumentValueError, match="got None; 'high' reads 'low', but their activations differ"):
        rnncore.load(path)
    with pytest.warns(UserWarning, match="left out: other nodes of the graph: RNN 'high'"):
        low = rnncore.load(path, name="low")
    with pytest.warns(UserWarning, match="left out: other nodes of the graph: RNN 'low'"):
        high = rnncore.load(path, name="y")
    assert low.input_size == 3 and low.spec.nonlinearity.name == "tanh"
    assert high.input_size == 5 and high.spec.nonlinearity.name == "relu"
    with pytest.raises(UnknownNameError, match="name: expected one of low, high, got 'higher'; did you mean 'high'"):
        rnncore.load(path, name="higher")


def test_layers_with_different_lengths_or_read_by_two_are_several_networks(tmp_path):
    made = two()
    made.graph.node[2].input.append("lengths")
    made.graph.input.append(onnx.helper.make_tensor_value_info("lengths", onnx.TensorProto.INT32, None))
    with pytest.raises(ArgumentValueError, match="got None; 'high' reads 'low', but their lengths differ"):
        rnncore.load(save(made, tmp_path))
    made = two()
    made.graph.node.append(rnn(["low_output", "W1", "R1", "B1"], ["Y2"], "other"))
    with pytest.raises(ArgumentValueError, match="got None; 'high' reads 'low', but it is read by several"):
        rnncore.load(save(made, tmp_path))


def test_a_stack_is_found_by_any_name_of_its_layers(tmp_path):
    path = save(two(), tmp_path)
    for name in (None, "low", "high", "Y1", "Y0", "y"):
        assert rnncore.load(path, name=name).num_layers == 2


def test_of_a_larger_graph_the_rest_is_left_out_by_name(tmp_path):
    made = model(
        [
            node("Mul", ["x", "mean"], "scaled", name="scale"),
            rnn(["scaled", "W", "R", "B"], ["Y", "end"]),
            node("Squeeze", ["Y", "one"], "y"),
            node("Gemm", ["end", "W"], "scores", name="head"),
        ],
        [*constants(), tensor(np.asarray([1]), "one"), tensor(np.float32(2), "mean")],
        outputs=["y", "scores"],
    )
    with pytest.warns(UserWarning, match="left out") as caught:
        ours = rnncore.load(save(made, tmp_path))
    assert [str(w.message) for w in caught] == ["left out: other nodes of the graph: Mul 'scale', Gemm 'head'"]
    assert ours.input_size == 3


def test_axes_of_the_output_that_are_not_the_input_s_are_said(tmp_path):
    made = model(
        [rnn(outputs=["Y"]), node("Squeeze", ["Y", "one"], "s"), node("Transpose", ["s"], "y", perm=[1, 0, 2])],
        [*constants(), tensor(np.asarray([1]), "one")],
    )
    assert rnncore.load(save(made, tmp_path)).spec.batch_first is False  # (T, B, .) is there as well
    made = model(
        [
            node("Transpose", ["x"], "t", perm=[1, 0, 2]),
            rnn(["t", "W", "R", "B"], ["Y"]),
            node("Squeeze", ["Y", "one"], "y"),
        ],
        [*constants(), tensor(np.asarray([1]), "one")],
    )
    with pytest.warns(UserWarning, match=r"left out: the axes of its output: here they are \(B, T, \.\)"):
        assert rnncore.load(save(made, tmp_path)).spec.batch_first is True


# --- states and lengths -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "more", "words"),
    [
        ([], [tensor(np.zeros((1, 4, 5), "f4"), "h")], None),
        ([], [tensor(np.ones((1, 4, 5), "f4"), "h")], "the constant initial state 'h' of 'rnn', which h0 can give"),
        ([node("Identity", ["x2"], "h")], [], None),
        (
            [node("Expand", ["zero", "shape"], "h"), node("Shape", ["x2"], "shape")],
            [tensor(np.zeros(1, "f4"), "zero")],
            None,
        ),
        ([node("ConstantOfShape", ["x2"], "h")], [], None),
        (
            [node("Tanh", ["x2"], "h")],
            [],
            "the computed initial state 'h' of 'rnn', .*; other nodes of the graph: Tanh 'h'",
        ),
        (
            [node("ConstantOfShape", ["x2"], "h", value=tensor(np.ones(1, "f4"), "v"))],
            [],
            "the computed initial state 'h' of 'rnn'",
        ),
    ],
)
def test_an_initial_state_that_is_no_argument_is_left_out_by_name(tmp_path, nodes, more, words):
    made = model([*nodes, rnn(["x", "W", "R", "B", "", "h"], ["", "y"])], [*constants(), *more], inputs=["x", "x2"])
    path = save(made, tmp_path)
    if words is None:
        rnncore.load(path)
    else:
        with pytest.warns(UserWarning, match=f"left out: {words}"):
            rnncore.load(path)


def test_lengths_are_an_argument_or_left_out(tmp_path):
    more = [*constants(), tensor(np.asarray([3, 2], "i4"), "fixed")]
    cast = node("Cast", ["n"], "lengths", to=onnx.TensorProto.INT32)
    rnncore.load(
        save(model([cast, rnn(["x", "W", "R", "B", "lengths"], ["", "y"])], more, inputs=["x", "n"]), tmp_path)
    )
    for least in (1, 2):
        longer = node("Max", ["n", "least"], "lengths")
        made = model(
            [longer, rnn(["x", "W", "R", "B", "lengths"], ["", "y"])], [*more, tensor(np.asarray(least, "i4"), "least")]
        )
        made.graph.input.append(onnx.helper.make_tensor_value_info("n", onnx.TensorProto.INT32, None))
        path = save(made, tmp_path)
        if least == 1:  # which a row of length 0 may have
            rnncore.load(path)
        else:
            with pytest.warns(
                UserWarning, match="the lengths 'lengths' that the graph has of its own; other .* Max 'lengths'"
            ):
                rnncore.load(path)
    with pytest.warns(UserWarning, match="left out: the lengths 'fixed' that the graph has of its own"):
        rnncore.load(save(model([rnn(["x", "W", "R", "B", "fixed"], ["", "y"])], more), tmp_path))


@pytest.mark.parametrize(
    ("nodes", "fill", "warned"),
    [
        ([node("Equal", ["n", "none"], "e"), node("Unsqueeze", ["e", "one"], "m")], 0, None),
        (
            [node("Equal", ["n", "none"], "e"), node("Unsqueeze", ["e", "one"], "m")],
            1,
            "Equal 'e', Unsqueeze 'm', Where 'y'",
        ),
        (
            [node("Equal", ["n", "two"], "e"), node("Unsqueeze", ["e", "one"], "m")],
            0,
            "Equal 'e', Unsqueeze 'm', Where 'y'",
        ),
        (
            [node("Equal", ["x2", "none"], "e"), node("Unsqueeze", ["e", "one"], "m")],
            0,
            "Equal 'e', Unsqueeze 'm', Where 'y'",
        ),
        ([node("Less", ["n", "none"], "m")], 0, "Less 'm', Where 'y'"),
    ],
)
def test_rows_of_length_0_may_be_said_in_the_graph_and_no_others(tmp_path, nodes, fill, warned):
    kept = [*constants(), tensor(np.asarray(0, "i4"), "none"), tensor(np.asarray(2, "i4"), "two")]
    kept += [tensor(np.asarray([1]), "one"), tensor(np.float32(fill), "fill")]
    made = model(
        [*nodes, rnn(["x", "W", "R", "B", "n"], ["", "Y_h"]), node("Where", ["m", "fill", "Y_h"], "y")],
        kept,
        inputs=["x", "n", "x2"],
    )
    path = save(made, tmp_path)
    if warned is None:
        rnncore.load(path)
    else:
        with pytest.warns(UserWarning, match=f"left out: other nodes of the graph: {warned}$"):
            rnncore.load(path)


# --- what is asked ----------------------------------------------------------------------------------------------------


def test_what_the_file_says_may_be_said_again_but_not_otherwise(tmp_path):
    path = save(model([rnn(outputs=["", "y"], clip=2.0)], constants()), tmp_path)
    ours = rnncore.load(path, nonlinearity="tanh", batch_first=False)
    assert ours.spec.nonlinearity == rnncore.get_nonlinearity("tanh", clip=2.0)
    with pytest.raises(ArgumentValueError, match="batch_first: expected False, as the source says, got True"):
        rnncore.load(path, batch_first=True)
    with pytest.raises(ArgumentValueError, match=r"nonlinearity: expected Nonlinearity.*tanh.*as the source says"):
        rnncore.load(path, nonlinearity="relu")


def test_a_bfloat16_network_is_read_where_the_dtype_exists(tmp_path):
    bits = [(np.asarray(a, "f4").view("u4") >> 16).astype("u2") for a in weights()]
    kept = [
        onnx.helper.make_tensor(n, onnx.TensorProto.BFLOAT16, a.shape, a.tobytes(), raw=True)
        for n, a in zip("WRB", bits, strict=True)
    ]
    path = save(model([rnn(outputs=["", "y"])], kept, opset=22), tmp_path)
    ours = rnncore.load(path, backend="torch")
    assert ours.dtype == torch.bfloat16
    want = torch.from_numpy(weights()[1][0])
    assert (ours.params["weight_hh_l0"].float() - want).abs().max() <= EPS_OF["bfloat16"] * want.abs().max()
    assert rnncore.load(path, dtype="float32").params["weight_hh_l0"].dtype == np.float32


# --- no network -------------------------------------------------------------------------------------------------------


def scan():
    body = onnx.helper.make_graph([rnn()], "body", [], [])
    return node("Loop", ["n", "c"], "y", body=body, name="steps")


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([node("LSTM", ["x", "W", "R"], "y")], "got LSTM: rnncore has the plain recurrent network alone"),
        ([scan()], "got none; the insides of Loop 'steps' are not read"),
        ([node("RNN", ["x", "W", "R"], "y", domain="com.acme", name="r")], "the insides of RNN 'r' are not read"),
        ([node("Relu", ["x"], "y")], "expected RNN nodes in the graph, got Relu"),
        (
            [node(kind, ["x"], f"{kind}{k}") for k in range(3) for kind in ("MatMul", "Tanh")],
            "got none, but 3 MatMul, 3 Tanh: a network that was unrolled .* dynamo=False, .* rnncore.from_module",
        ),
    ],
)
def test_a_graph_without_rnn_nodes_says_what_it_has(tmp_path, nodes, words):
    with pytest.raises(InterchangeError, match=words):
        rnncore.load(save(model(nodes, constants()), tmp_path))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what torch's exporter says of itself
def test_what_torch_s_default_exporter_makes_of_an_rnn_is_said(tmp_path):
    pytest.importorskip("onnxscript", reason="torch's default exporter needs it")
    path = tmp_path / "rnn.onnx"
    program = torch.onnx.export(torch.nn.RNN(3, 5).eval(), (torch.randn(6, 4, 3),), dynamo=True, verbose=False)
    program.save(path)
    with pytest.raises(InterchangeError, match="a network that was unrolled for one number of steps"):
        rnncore.load(path)


def test_nodes_that_read_each_other_are_malformed(tmp_path):
    nodes = [
        rnn(["b", "W1", "R1", "B1"], ["A"], "one"),
        node("Squeeze", ["A", "axis"], "a"),
        rnn(["a", "W1", "R1", "B1"], ["B2"], "two"),
        node("Squeeze", ["B2", "axis"], "b"),
    ]
    made = model(nodes, [*constants(i=5, suffix="1"), tensor(np.asarray([1]), "axis")])
    with pytest.raises(FileFormatError, match="RNN nodes read each other in a circle"):
        rnncore.load(save(made, tmp_path))


def test_an_own_file_is_found_by_every_name_of_its_graph(tmp_path):
    path = tmp_path / "rnn.onnx"
    rnncore.RNN(3, 5, 2, dtype="float32", rng=0).save(path, h0=True, lengths=True)
    for name in ("rnn_l0", "rnn_l1", "output", "h_n", "h_n_l0"):
        assert rnncore.load(path, name=name).num_layers == 2
