"""One operator for a layer in an exported program, and one RNN node for it in ONNX."""

import io
import itertools

import pytest
import torch
from functorch.compile import make_boxed_func
from rnncore_torch import nn
from torch._dynamo.backends.common import aot_autograd

from tests.tools.process import python
from tests.tools.rounding import PROMISED, SECOND, agree
from tests.tools.sample import sample

INPUT, HIDDEN, STEPS, BATCH = 3, 4, 5, 2
CONFIGURATIONS = [
    {},
    {"nonlinearity": "relu"},
    {"bias": False},
    {"batch_first": True},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
    {"num_layers": 3, "bias": False, "nonlinearity": "relu"},
]
STEPS_DIM, BATCH_DIM = torch.export.Dim("steps"), torch.export.Dim("batch")


def drawn(*shape, seed=1, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def made(kind=nn.RNN, dtype=torch.float64, **options):
    torch.manual_seed(0)
    return kind(INPUT, HIDDEN, dtype=dtype, **options).eval()


def arguments(options, given, steps=STEPS, batch=BATCH, seed=1, dtype=torch.float64):
    shape = (batch, steps, INPUT) if options.get("batch_first") else (steps, batch, INPUT)
    rows = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    x = drawn(*shape, seed=seed, dtype=dtype)
    return (x, drawn(rows, batch, HIDDEN, seed=seed + 1, dtype=dtype)) if given else (x,)


def left_open(options, given):
    x = {0: BATCH_DIM, 1: STEPS_DIM} if options.get("batch_first") else {0: STEPS_DIM, 1: BATCH_DIM}
    return (x, {1: BATCH_DIM}) if given else (x,)


def exported(options, given, **more):
    module = made(**options)
    return module, torch.export.export(
        module, arguments(options, given), dynamic_shapes=left_open(options, given), **more
    )


def same(got, want, multiple=PROMISED):
    for g, w in zip(got, want, strict=True):
        agree(g, w, multiple)


def operators(program):
    return [str(n.target) for n in program.graph.nodes if "rnncore" in str(n.target)]


@pytest.mark.parametrize(("options", "given"), sample(itertools.product(CONFIGURATIONS, (False, True)), 3), ids=str)
def test_a_program_has_one_operator_a_layer_and_runs_at_every_length(options, given):
    module, program = exported(options, given)
    assert operators(program) == ["rnncore.layer.default"] * options.get("num_layers", 1)
    for steps, batch in ((STEPS, BATCH), (3 * STEPS, 3)):
        other = arguments(options, given, steps, batch, seed=7)
        same(program.module()(*other), module(*other))


def test_an_export_by_dynamo_has_the_same_operators():
    options = CONFIGURATIONS[5]
    module, program = exported(options, True, strict=True)
    assert operators(program) == ["rnncore.layer.default"] * 2
    other = arguments(options, True, 9, 3, seed=7)
    same(program.module()(*other), module(*other))


@pytest.mark.parametrize("options", CONFIGURATIONS[4:6], ids=str)
def test_a_program_has_derivatives_of_both_orders(options):
    module, program = exported(options, True)
    found = []
    for run in (module, program.module()):
        x, h0 = (a.requires_grad_() for a in arguments(options, True, seed=5))
        output, h_n = run(x, h0)
        wanted = [x, h0, *run.parameters()]
        first = torch.autograd.grad(output.square().sum() + h_n.sum(), wanted, create_graph=True)
        second = torch.autograd.grad(first[0].square().sum(), wanted)
        found.append([*first, *second])
    same(*found, SECOND)


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
def test_a_program_decomposes_into_the_scans():
    module, program = exported(CONFIGURATIONS[5], False)
    decomposed = program.run_decompositions()
    assert operators(decomposed) == ["rnncore.nonlinear_scan.default"] * 4
    (x,) = arguments(CONFIGURATIONS[5], False, 7, 3, seed=7)
    same(decomposed.module()(x), module(x))


def both(run, x, many):
    """Of a function of x: every kind of derivative, and those of many at once."""

    def loss(x):
        output, h_n = run(x)
        return output.square().sum() + h_n.sin().sum()

    def states(x):
        return run(x)[0]

    return [
        torch.func.grad(loss)(x),
        torch.func.jacrev(states)(x),
        torch.func.jacfwd(states)(x),
        torch.func.jvp(loss, (x,), (many[0],))[1],
        torch.func.hessian(loss)(x),
        torch.func.vmap(states)(many),
        torch.func.vmap(torch.func.vmap(states))(many.unsqueeze(1)),
        torch.func.vmap(torch.func.grad(loss))(many),
    ]


@pytest.mark.parametrize("options", sample([CONFIGURATIONS[5], {}], 2), ids=str)
def test_a_program_has_every_transformation_of_torch_func(options):
    """At the shape that it was exported at: PyTorch has no vmap for the question how long an axis is."""
    module = made(**options)
    (x,) = arguments(options, False)
    many = torch.stack([x, -x, 2 * x])
    run = torch.export.export(module, (x,)).module()
    same(both(run, x, many), both(module, x, many), SECOND)


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
def test_a_program_of_a_mapped_network_decomposes_into_whole_scans():
    module = made(bidirectional=True)

    class Mapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = module

        def forward(self, many):
            return torch.func.vmap(lambda one: self.rnn(one)[0])(many)

    program = torch.export.export(Mapped(), (drawn(3, STEPS, BATCH, INPUT),))
    decomposed = program.run_decompositions()
    assert operators(decomposed) == ["rnncore.nonlinear_scan.default"] * 2
    other = drawn(3, STEPS, BATCH, INPUT, seed=4)
    for run in (program.module(), decomposed.module()):
        agree(run(other), torch.stack([module(one)[0] for one in other]))


def test_a_program_compiles_to_the_scans_at_every_length():
    module, program = exported(CONFIGURATIONS[5], False)
    torch._dynamo.reset()
    targets = []

    def counting(graph, inputs):
        targets.append([str(n.target) for n in graph.graph.nodes])
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=counting)
    compiled = torch.compile(program.module(), backend=backend, dynamic=True, fullgraph=True)
    for steps, batch in ((7, 6), (9, 2)):
        (x,) = arguments(CONFIGURATIONS[5], False, steps, batch, seed=7)
        found = []
        for run in (compiled, module):
            leaf = x.clone().requires_grad_()
            output, h_n = run(leaf)
            found.append([output, h_n, *torch.autograd.grad(output.square().sum(), leaf)])
        same(*found)
    assert [sum("nonlinear_scan" in t for t in graph) for graph in targets] == [4, 0]
    assert sum("linear_scan" in t for t in targets[1]) == 4
    torch._dynamo.reset()


def test_dropout_between_layers_is_kept_in_a_program_of_training():
    torch.manual_seed(0)
    module = nn.RNN(INPUT, HIDDEN, 2, dropout=1.0, dtype=torch.float64)
    (x,) = arguments({}, False)
    program = torch.export.export(module, (x,))
    assert any("dropout" in str(n.target) for n in program.graph.nodes)
    same(program.module()(x), module(x))


def test_a_layer_in_operators_is_a_layer():
    from rnncore_torch import _export

    module = made(bidirectional=True)
    x, h0 = arguments({"bidirectional": True}, True)
    flat = [w for row in module.all_weights for w in row]
    same(torch.ops.rnncore.layer(x, h0, flat, "tanh"), module(x, h0))
    same(_export.layer_operator(x, h0, module.all_weights, "tanh"), module(x, h0))


@pytest.mark.parametrize(
    "first",
    sample(
        ["import rnncore_torch", "import rnncore_torch.nn", "import rnncore; rnncore.RNN(3, 4, backend='torch')"], 3
    ),
)
def test_a_saved_program_is_loaded_in_a_process_that_imported_the_plugin(first, tmp_path):
    _, program = exported({}, False)
    path = tmp_path / "program.pt2"
    torch.export.save(program, path)
    code = f"""
        import torch
        {first}
        program = torch.export.load({str(path)!r})
        output, h_n = program.module()(torch.ones(3, 2, 3, dtype=torch.float64))
        print(tuple(output.shape), tuple(h_n.shape))
    """
    assert python(code, flags=()) == "(3, 2, 4) (1, 2, 4)"


def test_the_modules_are_an_attribute_of_the_plugin_and_bring_pytorch_with_them():
    code = """
        import sys
        import rnncore_torch
        assert "torch" not in sys.modules
        print(rnncore_torch.nn.RNN(3, 4), "torch" in sys.modules)
    """
    assert python(code, flags=()) == "RNN(3, 4) True"


# ---- ONNX ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def onnx():
    pytest.importorskip("onnxscript", reason="torch.onnx.export needs onnxscript")
    pytest.importorskip("onnxruntime", reason="the exported file is run by onnxruntime")
    return pytest.importorskip("onnx", reason="the exported file is checked by onnx")


def to_onnx(module, given, **options):
    """The bytes of a file, as the exporter says everything twice."""
    buffer = io.BytesIO()
    torch.onnx.export(module, given, buffer, verbose=False, **options)
    return buffer.getvalue()


def ran(data, given):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return [torch.from_numpy(a) for a in session.run(None, dict(zip(names, (a.numpy() for a in given), strict=True)))]


def nodes(onnx, data):
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    return [node.op_type for node in model.graph.node], model


quiet = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


def marked(test):
    for mark in quiet:
        test = mark(test)
    return test


OLD_AXES = {False: {"x": [0, 1]}, True: {"x": [0, 1], "h0": [1]}}


@marked
@pytest.mark.parametrize(
    ("options", "given", "way"),
    sample(itertools.product(CONFIGURATIONS, (False, True), ("module", "program", "torchscript")), 4),
    ids=str,
)
def test_onnx_has_one_rnn_node_a_layer_and_onnxruntime_the_numbers(onnx, options, given, way):
    module = made(dtype=torch.float32, **options)
    first = arguments(options, given, dtype=torch.float32)
    shapes = left_open(options, given)
    if way == "module":
        data = to_onnx(module, first, dynamic_shapes=shapes)
    elif way == "program":
        data = to_onnx(torch.export.export(module, first, dynamic_shapes=shapes), ())
    else:
        names = ["x", "h0"] if given else ["x"]
        data = to_onnx(module, first, dynamo=False, input_names=names, dynamic_axes=OLD_AXES[given])
    kinds, model = nodes(onnx, data)
    layers = options.get("num_layers", 1)
    assert kinds.count("RNN") == layers
    assert not {"MatMul", "Gemm", "Tanh", "Relu", "Loop", "Scan"} & set(kinds)
    width = {t.name: list(t.dims) for t in model.graph.initializer}
    read = [width[node.input[1]] for node in model.graph.node if node.op_type == "RNN"]
    directions = 2 if options.get("bidirectional") else 1
    assert read == [[directions, HIDDEN, INPUT if k == 0 else directions * HIDDEN] for k in range(layers)]
    for steps, batch in ((STEPS, BATCH), (9, 3), (1, 1)):
        other = arguments(options, given, steps, batch, seed=7, dtype=torch.float32)
        same(ran(data, other), module(*other))


@marked
def test_onnx_of_a_model_that_holds_a_network_and_a_cell(onnx):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.rnn, self.cell, self.head = (
                nn.RNN(INPUT, HIDDEN, 2),
                nn.RNNCell(INPUT, HIDDEN),
                torch.nn.Linear(HIDDEN, 1),
            )

        def forward(self, x):
            output, h_n = self.rnn(x)
            return self.head(output[-1] + self.cell(x[0], h_n[-1]))

    net = Net().eval()
    (x,) = arguments({}, False, dtype=torch.float32)
    data = to_onnx(net, (x,), dynamic_shapes=({0: STEPS_DIM, 1: BATCH_DIM},))
    kinds, _ = nodes(onnx, data)
    assert kinds.count("RNN") == 2
    (other,) = arguments({}, False, 8, 3, seed=7, dtype=torch.float32)
    same(ran(data, (other,)), [net(other)])


@marked
@pytest.mark.parametrize("dynamo", [True, False])
def test_onnx_of_unbatched_input(onnx, dynamo):
    module = made(dtype=torch.float32, bidirectional=True)
    x = drawn(STEPS, INPUT, dtype=torch.float32)
    options = {"dynamic_shapes": ({0: STEPS_DIM},)} if dynamo else {"input_names": ["x"], "dynamic_axes": {"x": [0]}}
    data = to_onnx(module, (x,), dynamo=dynamo, **options)
    other = drawn(9, INPUT, seed=3, dtype=torch.float32)
    same(ran(data, (other,)), module(other))
