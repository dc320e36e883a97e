"""rnncore_torch.nn under the tools that trace, script, swap and rewrite modules of torch.nn."""

import copy
import pickle
import warnings

import pytest
import torch
from rnncore_torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from tests.tools.rounding import PROMISED, agree

INPUT, HIDDEN, STEPS, BATCH = 3, 4, 5, 2
CONFIGURATIONS = [
    {},
    {"nonlinearity": "relu"},
    {"bias": False},
    {"batch_first": True},
    {"num_layers": 2, "bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False, "nonlinearity": "relu"},
]
# PyTorch says of its own TorchScript that it is deprecated; the tracer, what it makes constant. Both are what is asked for.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


def drawn(*shape, seed=1, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def made(kind=nn.RNN, dtype=torch.float64, **options):
    torch.manual_seed(0)
    return kind(INPUT, HIDDEN, dtype=dtype, **options)


def sequence(steps, batch, options, seed=1):
    shape = (batch, steps, INPUT) if options.get("batch_first") else (steps, batch, INPUT)
    return drawn(*shape, seed=seed)


def rows(options):
    return options.get("num_layers", 1) * (1 + options.get("bidirectional", False))


def same(got, want, multiple=PROMISED):
    for g, w in zip(got, want, strict=True):
        agree(g, w, multiple)


class Net(torch.nn.Module):
    """What people build: a network, a cell and a layer that reads both."""

    def __init__(self, kinds=nn, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.rnn = kinds.RNN(INPUT, HIDDEN, 2, batch_first=True, dtype=dtype)
        self.cell = kinds.RNNCell(INPUT, HIDDEN, dtype=dtype)
        self.head = torch.nn.Linear(2 * HIDDEN, 2, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output, h_n = self.rnn(x)
        state = self.cell(x[:, 0])
        return self.head(torch.cat([output[:, -1] + h_n[-1], state], -1))


@pytest.mark.parametrize("options", CONFIGURATIONS, ids=str)
@pytest.mark.parametrize("given", [False, True], ids=["zero", "h0"])
def test_a_trace_runs_at_every_length_and_batch(options, given):
    module = made(**options)

    def arguments(steps, batch, seed=1):
        x = sequence(steps, batch, options, seed)
        return (x, drawn(rows(options), batch, HIDDEN, seed=seed + 1)) if given else (x,)

    traced = torch.jit.trace(module, arguments(STEPS, BATCH))
    for steps, batch in ((STEPS, BATCH), (2 * STEPS, 3), (1, 1)):
        other = arguments(steps, batch, seed=7)
        same(traced(*other), module(*other))


class Packed(torch.nn.Module):
    """A network of the two tensors that make a PackedSequence, as tracers take only those."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, data, batch_sizes):
        output, h_n = self.rnn(PackedSequence(data, batch_sizes))
        return output.data, h_n


def packed(*lengths):
    found = pack_sequence([drawn(k, INPUT, seed=k) for k in lengths])
    return found.data, found.batch_sizes


def test_a_trace_of_packed_sequences_runs_at_other_lengths():
    module = Packed(made(num_layers=2, bidirectional=True))
    traced = torch.jit.trace(module, packed(5, 3, 1))
    same(traced(*packed(9, 2)), module(*packed(9, 2)))


def test_a_trace_has_gradients_and_the_parametrised_weight():
    module = made()
    parametrizations.orthogonal(module, "weight_hh_l0")
    x, other = drawn(STEPS, BATCH, INPUT), drawn(8, 3, INPUT).requires_grad_()
    traced = torch.jit.trace(module, x)
    wanted = [other, *module.parameters()]
    found = [torch.autograd.grad(run(other)[0].square().sum(), wanted) for run in (traced, module)]
    same(*found)


@pytest.mark.parametrize("kinds", [torch.nn, nn], ids=["torch", "ours"])
def test_a_model_is_traced_and_scripted_as_torchs_is(kinds):
    net = Net(kinds)
    other = drawn(3, 8, INPUT)
    for found in (torch.jit.trace(net, drawn(BATCH, STEPS, INPUT)), torch.jit.script(net)):
        agree(found(other), net(other))


class Holder(torch.nn.Module):
    """torch.jit.script compiles an RNN's forward, which is overloaded, only where it is called."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.rnn(x)


@pytest.mark.parametrize("options", CONFIGURATIONS, ids=str)
def test_a_scripted_network_shares_the_parameters(options):
    module = made(**options)
    scripted = torch.jit.script(Holder(module))
    assert all(a is b for a, b in zip(scripted.parameters(), module.parameters(), strict=True))
    x = sequence(STEPS, BATCH, options)
    same(scripted(x), module(x))
    with torch.no_grad():
        module.weight_hh_l0.mul_(0.5)
    same(scripted(x), module(x))
    assert type(module) is nn.RNN


def test_a_scripted_cell_shares_the_parameters():
    cell = made(nn.RNNCell)
    scripted = torch.jit.script(cell)
    agree(scripted(drawn(BATCH, INPUT)), cell(drawn(BATCH, INPUT)))
    assert scripted.weight_hh is cell.weight_hh
    assert type(cell) is nn.RNNCell


def test_fx_takes_a_network_and_a_cell_as_one_node_each():
    net = Net()
    graph = torch.fx.symbolic_trace(net)
    x = drawn(3, 8, INPUT)
    agree(graph(x), net(x))
    assert graph.get_submodule("rnn") is net.rnn
    wanted = list(net.parameters())
    same(*[torch.autograd.grad(run(x).square().sum(), wanted) for run in (graph, net)])
    again = torch.fx.symbolic_trace(graph)
    compiled = torch.compile(graph, backend="eager", fullgraph=True)
    for one in (
        copy.deepcopy(graph),
        pickle.loads(pickle.dumps(graph)),
        again,
        torch.fx.Interpreter(graph).run,
        compiled,
    ):
        agree(one(x), net(x))
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_fx_quantization_leaves_the_network_and_quantizes_the_rest():
    from torch.ao.quantization import default_dynamic_qconfig
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    net = Net(dtype=torch.float32).eval()
    x = drawn(3, 8, INPUT, dtype=torch.float32)
    prepared = prepare_fx(net, {"object_type": [(torch.nn.Linear, default_dynamic_qconfig)]}, (x,))
    converted = convert_fx(prepared)
    assert "DynamicQuantizedLinear" in str(converted)
    # The head's weights have 8 bits: a step of 1/127 of the largest, in each of 2 * HIDDEN products.
    assert float((converted(x) - net(x)).abs().max()) < 2 * HIDDEN / 127


@pytest.mark.parametrize("kinds", [torch.nn, nn], ids=["torch", "ours"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"nonlinearity": "relu"}], ids=str)
def test_gradients_of_every_sample_by_expanded_weights(kinds, options):
    from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

    module = made(kinds.RNN, batch_first=True, **options)
    x = drawn(3, STEPS, INPUT)
    call_for_per_sample_grads(module)(x)[0].square().sum().backward()
    for name, p in module.named_parameters():
        for k in range(3):
            (want,) = torch.autograd.grad(module(x[k : k + 1])[0].square().sum(), p)
            agree(p.grad_sample[k], want, what=name)


class Watching(torch.Tensor):
    """A tensor that sees the functions of torch that are called on it."""

    seen = ()

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        Watching.seen += (getattr(function, "__name__", ""),)
        return super().__torch_function__(function, types, args, kwargs or {})


def test_a_weight_that_watches_torchs_functions_sees_those_of_torchs_network():
    module = made()
    want = module(drawn(STEPS, BATCH, INPUT))
    watched = {"weight_hh_l0": module.weight_hh_l0.detach().as_subclass(Watching)}
    Watching.seen = ()
    same(torch.func.functional_call(module, watched, drawn(STEPS, BATCH, INPUT)), want)
    assert "rnn_tanh" in Watching.seen


def test_as_torch_gives_tools_torchs_own_modules_on_the_same_parameters():
    net = torch.nn.Sequential(torch.nn.ModuleDict({"inner": Net()}))
    net.eval()
    found = nn.as_torch(net)
    inner, original = found[0]["inner"], net[0]["inner"]
    assert type(inner.rnn) is torch.nn.RNN and type(inner.cell) is torch.nn.RNNCell
    assert type(original.rnn) is nn.RNN and type(original.cell) is nn.RNNCell
    assert inner.head is original.head and not inner.rnn.training
    assert all(a is b for a, b in zip(found.parameters(), net.parameters(), strict=True))
    x = drawn(BATCH, STEPS, INPUT)
    agree(inner(x), original(x))
    assert repr(inner) == repr(original)


def test_as_torch_keeps_shared_modules_shared_and_leaves_what_is_no_copy_of_ours():
    class Other(nn.RNN):
        def forward(self, input, hx=None):
            return super().forward(-input, hx)

    net, other = Net(), made(Other)
    net.again = net.rnn
    found = nn.as_torch(net)
    assert found.again is found.rnn
    assert nn.as_torch(other) is other
    assert nn.as_torch(torch.nn.ReLU()).__class__ is torch.nn.ReLU
    parametrised = made()
    parametrizations.orthogonal(parametrised, "weight_hh_l0")
    assert nn.as_torch(parametrised) is parametrised


def test_a_class_of_both_kinds_is_torchs_and_compiles_where_pytorch_is_told_to_look():
    class Both(nn.RNN, torch.nn.RNN):
        pass

    for arguments in ((INPUT, HIDDEN, 2, "relu"), (INPUT, HIDDEN)):
        module, theirs = Both(*arguments), torch.nn.RNN(*arguments)
        assert isinstance(module, torch.nn.RNN) and repr(module)[4:] == repr(theirs)[3:]
        module.load_state_dict(theirs.state_dict())
        x = drawn(STEPS, BATCH, INPUT, dtype=torch.float32)
        same(module(x), theirs(x))
    torch._dynamo.reset()
    with torch._dynamo.config.patch(allow_rnn=True):
        same(torch.compile(module, backend="eager", fullgraph=True)(x), module(x))
    torch._dynamo.reset()


def test_as_torch_lets_dynamic_quantization_find_the_cell():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = torch.ao.quantization.quantize_dynamic(nn.as_torch(Net(dtype=torch.float32)))
    assert "DynamicQuantizedRNNCell" in str(found)


def test_as_torch_gives_backpack_the_gradients_of_every_sample():
    backpack = pytest.importorskip("backpack", reason="BackPACK is not installed")
    from backpack.extensions import BatchGrad

    module = made(batch_first=True)
    found = backpack.extend(nn.as_torch(torch.nn.Sequential(module))[0])
    x = drawn(3, STEPS, INPUT)
    with backpack.backpack(BatchGrad()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found(x)[0].square().sum().backward()
    for k in range(3):
        (want,) = torch.autograd.grad(module(x[k : k + 1])[0].square().sum(), module.weight_hh_l0)
        agree(module.weight_hh_l0.grad_batch[k], want)
