"""rnncore_torch.nn in the place of torch.nn: the same numbers, parameters, draws, shapes, errors and files."""

import copy
import io
import itertools
import pickle
from functools import partialmethod

import numpy as np
import pytest
import torch
from rnncore_torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import rnncore
from tests.tools.rounding import PROMISED

INPUT, HIDDEN, STEPS, BATCH = 5, 6, 7, 4
CONFIGURATIONS = [
    {},
    {"nonlinearity": "relu"},
    {"bias": False},
    {"num_layers": 3},
    {"bidirectional": True},
    {"batch_first": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True, "nonlinearity": "relu", "bias": False},
    {"num_layers": 3, "bidirectional": True, "dropout": 0.4},
    {"num_layers": 2, "dropout": 1.0},
]


def pair(seed=0, dtype=torch.float64, **options):
    """torch's module and ours, each made from the same seed."""
    made = []
    for kind in (torch.nn.RNN, nn.RNN):
        torch.manual_seed(seed)
        made.append(kind(INPUT, HIDDEN, dtype=dtype, **options))
    return made


def drawn(*shape, seed=1, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def assert_close(got, want, multiple=PROMISED):
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    got, want = got.detach(), want.detach()
    if want.numel():
        limit = multiple * torch.finfo(want.dtype).eps * max(1.0, float(want.abs().max()))
        assert float((got - want).abs().max()) <= limit


def everything(module, input, hx=None, seed=2):
    """Outputs and all gradients of a scalar of them."""
    data = input.data if isinstance(input, PackedSequence) else input
    torch.manual_seed(seed)
    output, h_n = module(input, hx)
    flat = output.data if isinstance(output, PackedSequence) else output
    loss = (flat * drawn(*flat.shape, seed=3, dtype=flat.dtype)).sum() + (h_n**2).sum()
    wanted = [t for t in (data, hx, *module.parameters()) if t is not None and t.requires_grad]
    return [flat, h_n, *torch.autograd.grad(loss, wanted)]


def assert_same(theirs, ours, input, hx=None):
    for got, want in zip(everything(ours, input, hx), everything(theirs, input, hx), strict=True):
        assert_close(got, want)


@pytest.mark.parametrize("options", CONFIGURATIONS, ids=str)
def test_outputs_gradients_and_draws_are_torchs(options):
    theirs, ours = pair(**options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for got, want in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(got, want)
    shape = (BATCH, STEPS, INPUT) if options.get("batch_first") else (STEPS, BATCH, INPUT)
    rows = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    x, h0 = drawn(*shape).requires_grad_(), drawn(rows, BATCH, HIDDEN, seed=4).requires_grad_()
    assert_same(theirs, ours, x)
    assert_same(theirs, ours, x, h0)
    assert_same(theirs.eval(), ours.eval(), x, h0)
    unbatched = drawn(STEPS, INPUT).requires_grad_()
    assert_same(theirs, ours, unbatched)
    assert_same(theirs, ours, unbatched, h0[:, 0].detach().requires_grad_())


@pytest.mark.parametrize("options", CONFIGURATIONS, ids=str)
@pytest.mark.parametrize("lengths", [(7, 5, 5, 1), (1, 7, 3, 7), (4, 4, 4, 4)], ids=str)
def test_packed_sequences_are_torchs(options, lengths):
    theirs, ours = pair(**options)
    x = drawn(BATCH, STEPS, INPUT)
    in_order = list(lengths) == sorted(lengths, reverse=True)
    packed = pack_padded_sequence(x, torch.tensor(lengths), batch_first=True, enforce_sorted=in_order)
    packed = packed._replace(data=packed.data.requires_grad_())
    rows = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    h0 = drawn(rows, BATCH, HIDDEN, seed=4).requires_grad_()
    assert_same(theirs, ours, packed)
    assert_same(theirs, ours, packed, h0)
    got, want = ours.eval()(packed)[0], theirs.eval()(packed)[0]
    for field in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        a, b = getattr(got, field), getattr(want, field)
        assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize(("steps", "batch"), [(1, 1), (STEPS, 0), (1, BATCH), (3000, 2)])
def test_odd_sizes(steps, batch):
    theirs, ours = pair(bidirectional=True)
    assert_same(theirs, ours, drawn(steps, batch, INPUT).requires_grad_())


@pytest.mark.parametrize("numbers", [1, BATCH * HIDDEN, 3 * BATCH * HIDDEN])
def test_the_backward_pass_may_be_cut_into_windows_anywhere(monkeypatch, numbers):
    from rnncore_torch import _layer

    monkeypatch.setattr(_layer, "WINDOW_NUMBERS", numbers)
    theirs, ours = pair(num_layers=2, bidirectional=True)
    h0 = drawn(4, BATCH, HIDDEN, seed=4).requires_grad_()
    assert_same(theirs, ours, drawn(STEPS, BATCH, INPUT).requires_grad_(), h0)


@pytest.mark.parametrize("needed", list(itertools.product((False, True), repeat=3))[1:], ids=str)
def test_only_what_requires_a_gradient_gets_one(needed):
    theirs, ours = pair()
    for module in (theirs, ours):
        module.weight_ih_l0.requires_grad_(needed[2])
        module.bias_hh_l0.requires_grad_(needed[2])
        module.weight_hh_l0.requires_grad_(False)
        module.bias_ih_l0.requires_grad_(False)
    x, h0 = drawn(STEPS, BATCH, INPUT), drawn(1, BATCH, HIDDEN, seed=4)
    assert_same(theirs, ours, x.requires_grad_(needed[0]), h0.requires_grad_(needed[1]))


def test_without_gradients_nothing_is_kept_and_the_numbers_stay():
    theirs, ours = pair(num_layers=2)
    x = drawn(STEPS, BATCH, INPUT)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            output, h_n = ours(x)
            want, want_n = theirs(x)
        assert output.grad_fn is None
        assert_close(output, want)
        assert_close(h_n, want_n)
    for p in ours.parameters():
        p.requires_grad_(False)
    assert ours(x)[0].grad_fn is None


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
def test_input_and_weights_of_any_layout(layout):
    theirs, ours = pair()
    x = {
        "transposed": drawn(BATCH, STEPS, INPUT).transpose(0, 1),
        "sliced": drawn(STEPS, BATCH, 2 * INPUT)[:, :, ::2],
        "expanded": drawn(1, BATCH, INPUT).expand(STEPS, BATCH, INPUT),
    }[layout]
    for module in (theirs, ours):
        module.weight_hh_l0 = torch.nn.Parameter(module.weight_hh_l0.detach().t().contiguous().t())
    assert_same(theirs, ours, x.detach().requires_grad_())
    assert_same(theirs, ours, x.detach(), drawn(1, 1, HIDDEN).expand(1, BATCH, HIDDEN).detach().requires_grad_())


def test_nothing_given_is_changed():
    _, ours = pair(num_layers=2, bidirectional=True)
    x, h0 = drawn(STEPS, BATCH, INPUT).requires_grad_(), drawn(4, BATCH, HIDDEN).requires_grad_()
    given = [x, h0, *ours.parameters()]
    before = [t.detach().clone() for t in given]
    everything(ours, x, h0)
    with torch.no_grad():
        ours(x, h0)
    for was, now in zip(before, given, strict=True):
        assert torch.equal(was, now)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    theirs, ours = pair(dtype=dtype, num_layers=2)
    x = drawn(STEPS, BATCH, INPUT, dtype=dtype).requires_grad_()
    assert_same(theirs, ours, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_what_it_gives_torchs(dtype):
    theirs, ours = pair(dtype=torch.float32, num_layers=2)
    x, h0 = (drawn(*s, dtype=torch.float32).requires_grad_() for s in ((STEPS, BATCH, INPUT), (2, BATCH, HIDDEN)))
    with torch.autocast("cpu", dtype=dtype):
        got, want = ours(x, h0), theirs(x, h0)
        half = ours(x.to(dtype))[0]
    assert half.dtype == dtype
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype == dtype
        assert_close(a, b)
    grads = [
        torch.autograd.grad(o.float().sum(), [x, h0, *m.parameters()]) for (o, _), m in ((got, ours), (want, theirs))
    ]
    for a, b in zip(*grads, strict=True):
        assert a.dtype == b.dtype == torch.float32
        # The numbers were rounded to `dtype` on the way.
        assert float((a - b).abs().max()) <= PROMISED * torch.finfo(dtype).eps * max(1.0, float(b.abs().max()))


# Earlier releases say these in other words, or refuse fewer of them.
since_2_11 = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11), reason="the words are PyTorch 2.11's"
)


def refusal(call):
    with pytest.raises((RuntimeError, ValueError, TypeError)) as caught:
        call()
    return type(caught.value), str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        (drawn(0, BATCH, INPUT),),
        (drawn(0, INPUT),),
        (drawn(INPUT),),
        (drawn(1, 1, 1, INPUT),),
        (drawn(STEPS, BATCH, INPUT + 1),),
        pytest.param((drawn(STEPS, BATCH, INPUT, dtype=torch.float32),), marks=since_2_11),
        (drawn(STEPS, BATCH, INPUT), drawn(1, BATCH, HIDDEN)),
        (drawn(STEPS, BATCH, INPUT), drawn(2, BATCH + 1, HIDDEN)),
        (drawn(STEPS, BATCH, INPUT), drawn(2, BATCH, HIDDEN + 1)),
        (drawn(STEPS, BATCH, INPUT), drawn(2, HIDDEN)),
        (drawn(STEPS, INPUT), drawn(2, 1, HIDDEN)),
        (drawn(STEPS, BATCH, INPUT), drawn(2, BATCH, HIDDEN, dtype=torch.float32)),
        (drawn(STEPS, BATCH, INPUT), drawn(2, BATCH, HIDDEN).to("meta")),
        (drawn(STEPS, BATCH, INPUT).to("meta"),),
        (pack_sequence([drawn(3, INPUT + 1)]),),
        (pack_sequence([drawn(3, INPUT)]), drawn(2, 2, HIDDEN)),
    ],
    ids=lambda a: ", ".join(str(tuple(getattr(t, "data", t).shape)) for t in a),
)
def test_what_torch_refuses_is_refused_in_the_same_words(arguments):
    theirs, ours = pair(num_layers=2)
    assert refusal(lambda: ours(*arguments)) == refusal(lambda: theirs(*arguments))


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        pytest.param((0, 6), {}, marks=since_2_11),
        ((5, 0), {}),
        ((5.0, 6), {}),
        ((5, 6), {"num_layers": 0}),
        ((5, 6), {"nonlinearity": "softplus"}),
        ((5, 6, 1, "softplus"), {}),
        ((5, 6), {"dropout": 1.5}),
        pytest.param((5, 6), {"bias": 1}, marks=since_2_11),
        pytest.param((5, 6), {"batch_first": 1}, marks=since_2_11),
        ((5, 6), {"proj_size": 2}),
        ((5, 6), {"unknown": 2}),
    ],
    ids=str,
)
def test_constructors_refuse_in_the_same_words(args, kwargs):
    assert refusal(lambda: nn.RNN(*args, **kwargs)) == refusal(lambda: torch.nn.RNN(*args, **kwargs))


def test_dropout_that_does_nothing_is_warned_of_as_torch_does():
    with pytest.warns(UserWarning, match="num_layers greater than 1"):
        nn.RNN(5, 6, dropout=0.5)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((5, 6), {}),
        ((5, 6, 2, "relu", False, True, 0.5, True), {}),
        ((5, 6), {"num_layers": 3, "nonlinearity": "relu"}),
    ],
    ids=str,
)
def test_arguments_by_place_and_the_text_are_torchs(args, kwargs):
    theirs, ours = torch.nn.RNN(*args, **kwargs), nn.RNN(*args, **kwargs)
    assert repr(ours) == repr(theirs)
    for name in ("input_size", "hidden_size", "num_layers", "nonlinearity", "bias", "batch_first", "dropout"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert [[w.shape for w in row] for row in ours.all_weights] == [
        [w.shape for w in row] for row in theirs.all_weights
    ]
    assert ours.flatten_parameters() is None


def test_state_dicts_go_both_ways_and_modules_into_files():
    theirs, ours = pair(num_layers=2, bidirectional=True)
    x = drawn(STEPS, BATCH, INPUT)
    other = nn.RNN(INPUT, HIDDEN, 2, bidirectional=True, dtype=torch.float64)
    other.load_state_dict(theirs.state_dict(), strict=True)
    assert torch.equal(other(x)[0], ours(x)[0])
    theirs.load_state_dict(other.state_dict(), strict=True)
    buffer = io.BytesIO()
    torch.save(ours, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), torch.load(buffer, weights_only=False)]
    for one in copies:
        assert type(one) is nn.RNN
        assert torch.equal(one(x)[0], ours(x)[0])
        with torch.no_grad():
            one.weight_hh_l0.zero_()
        assert not torch.equal(one(x)[0], ours(x)[0])


def test_moved_to_another_dtype_and_to_no_memory():
    theirs, ours = pair()
    assert ours.to(torch.float32)(drawn(STEPS, BATCH, INPUT, dtype=torch.float32))[0].dtype == torch.float32
    meta = nn.RNN(INPUT, HIDDEN, 2, bidirectional=True, device="meta")
    output, h_n = meta(torch.empty(STEPS, BATCH, INPUT, device="meta"))
    assert (output.shape, h_n.shape) == ((STEPS, BATCH, 2 * HIDDEN), (4, BATCH, HIDDEN))
    output.sum().backward()
    assert meta.weight_hh_l0.grad.device.type == "meta"
    filled = meta.to_empty(device="cpu")
    filled.load_state_dict(torch.nn.RNN(INPUT, HIDDEN, 2, bidirectional=True).state_dict())
    assert torch.isfinite(filled(torch.ones(STEPS, BATCH, INPUT))[0]).all()
    del theirs


def test_a_parametrised_weight_is_read_at_every_call():
    theirs, ours = pair()
    for module in (theirs, ours):
        torch.manual_seed(5)
        parametrizations.orthogonal(module, "weight_hh_l0")
    x = drawn(STEPS, BATCH, INPUT).requires_grad_()
    assert_same(theirs, ours, x)
    optimiser = torch.optim.SGD(ours.parameters(), lr=0.1)
    before = ours(x)[0].detach()
    ours(x)[0].sum().backward()
    optimiser.step()
    assert not torch.equal(before, ours(x)[0])
    w = ours.weight_hh_l0
    assert_close(w @ w.mT, torch.eye(HIDDEN, dtype=torch.float64))


def test_hooks_and_replaced_parameters_are_seen():
    _, ours = pair()
    seen = []
    ours.register_forward_hook(lambda module, args, output: seen.append(output[0].shape))
    ours.register_full_backward_hook(lambda module, d_in, d_out: seen.append(d_out[0].shape))
    ours.weight_hh_l0.register_hook(lambda g: torch.zeros_like(g))
    ours(drawn(STEPS, BATCH, INPUT).requires_grad_())[0].sum().backward()
    assert seen == [(STEPS, BATCH, HIDDEN)] * 2
    assert float(ours.weight_hh_l0.grad.abs().sum()) == 0
    ours.weight_hh_l0 = torch.nn.Parameter(torch.zeros(HIDDEN, HIDDEN, dtype=torch.float64))
    x = drawn(STEPS, BATCH, INPUT)
    assert torch.equal(ours(x)[0], ours(x.flip(0))[0].flip(0))


def test_it_trains_as_torchs_does():
    finals = []
    for module in pair(dtype=torch.float64):
        optimiser = torch.optim.Adam(module.parameters(), lr=1e-2)
        for _ in range(10):
            optimiser.zero_grad()
            module(drawn(STEPS, BATCH, INPUT))[0].square().sum().backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimiser.step()
        finals.append([p.detach() for p in module.parameters()])
    for a, b in zip(*finals, strict=True):
        assert_close(a, b, multiple=1e3)  # ten steps of Adam, each dividing by the root of a small number


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("bias", [True, False])
def test_the_cell_is_torchs(nonlinearity, bias):
    cells = []
    for kind in (torch.nn.RNNCell, nn.RNNCell):
        torch.manual_seed(0)
        cells.append(kind(INPUT, HIDDEN, bias, nonlinearity, dtype=torch.float64))
    theirs, ours = cells
    assert repr(ours) == repr(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    for x, h in ((drawn(BATCH, INPUT), drawn(BATCH, HIDDEN)), (drawn(INPUT), drawn(HIDDEN)), (drawn(0, INPUT), None)):
        found = []
        for cell in cells:
            given = [t.clone().requires_grad_() for t in (x, h) if t is not None]
            state = cell(*given)
            found.append([state, *torch.autograd.grad((state**2).sum(), [*given, *cell.parameters()])])
        for got, want in zip(found[1], found[0], strict=True):
            assert_close(got, want)
    assert torch.equal(pickle.loads(pickle.dumps(ours))(x), ours(x))


@pytest.mark.parametrize(
    "arguments",
    [
        (drawn(1, 1, INPUT),),
        (drawn(BATCH, INPUT + 1),),
        (drawn(BATCH, INPUT), drawn(BATCH + 1, HIDDEN)),
        (drawn(BATCH, INPUT), drawn(BATCH, HIDDEN + 1)),
        (drawn(BATCH, INPUT), drawn(1, BATCH, HIDDEN)),
        (drawn(BATCH, INPUT, dtype=torch.float32),),
    ],
    ids=lambda a: ", ".join(str(tuple(t.shape)) for t in a),
)
def test_the_cell_refuses_in_the_same_words(arguments):
    theirs, ours = (kind(INPUT, HIDDEN, dtype=torch.float64) for kind in (torch.nn.RNNCell, nn.RNNCell))
    assert refusal(lambda: ours(*arguments)) == refusal(lambda: theirs(*arguments))
    ours.nonlinearity = "softplus"
    with pytest.raises(RuntimeError, match="Unknown nonlinearity: softplus"):
        ours(drawn(BATCH, INPUT))


def test_the_module_becomes_an_rnncore_network():
    _, ours = pair(num_layers=2, bidirectional=True, nonlinearity="relu")
    x = drawn(STEPS, BATCH, INPUT)
    network = rnncore.get_backend("torch").from_module(ours)
    assert_close(network(x)[0], ours(x)[0].detach())
    cell = nn.RNNCell(INPUT, HIDDEN, dtype=torch.float64)
    assert_close(rnncore.get_backend("torch").from_module(cell)(x[:1])[0][0], cell(x[0]).detach())


def test_explain_says_what_runs_and_why(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    small = nn.RNN(INPUT, HIDDEN).explain()
    assert [c.path for c in small.choices] == ["kernel", "kernel"]
    assert all("on the tensor's own memory" in c.reason for c in small.choices)
    assert "bfloat16" in str(nn.RNN(INPUT, HIDDEN, dtype=torch.bfloat16).explain())
    assert "on meta" in str(nn.RNN(INPUT, HIDDEN, device="meta").explain())


@pytest.fixture(params=["numpy", "numba", "torch"])
def host(request, monkeypatch):
    """Only this backend's scans on shared memory; "torch" for none, so that PyTorch's operations run."""
    from rnncore_torch import _steps

    if request.param == "numba":
        pytest.importorskip("rnncore_numba")
        pytest.importorskip("numba")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(_steps, "HOSTS", (request.param,) if request.param != "torch" else ())
    _steps._hosts.cache_clear()
    _steps._host.cache_clear()
    yield request.param
    _steps._hosts.cache_clear()
    _steps._host.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_host_gives_torchs_numbers(host, dtype):
    for options in CONFIGURATIONS[:6]:
        theirs, ours = pair(**options, dtype=dtype)
        reason = str(ours.explain())
        assert (f"the scan of backend {host!r}" in reason) == (host != "torch")
        shape = (BATCH, STEPS, INPUT) if options.get("batch_first") else (STEPS, BATCH, INPUT)
        assert_same(theirs, ours, drawn(*shape, dtype=dtype).requires_grad_())


@pytest.mark.parametrize(
    ("threads", "steps", "batch", "width", "runs"),
    [
        (2, 256, 1, 64, {"numba", "numpy"}),
        (2, 128, 32, 128, {"numba", "numpy"}),
        (2, 100, 32, 256, {"numba"}),
        (1, 256, 1, 64, {"numba", "numpy"}),
        (1, 256, 1, 128, {"numba"}),
        (1, 100, 8, 128, {"numba", "numpy"}),
        (1, 512, 64, 512, {"numba"}),
    ],
)
def test_the_rule_for_each_host(host, threads, steps, batch, width, runs):
    from rnncore_torch import _steps

    for kind, f in (("nonlinear", rnncore.get_nonlinearity("tanh")), ("linear", None)):
        request = rnncore.backend.ScanRequest(kind, steps, batch, width, "float32", "cpu", False, f)
        assert (_steps.host_scans(request, threads)[0] is not None) == (host in runs)


def test_explain_says_where_one_thread_is_not_enough(host, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert ("given one thread" in str(nn.RNN(INPUT, 512).explain(batch=64))) == (host == "numpy")


@pytest.mark.parametrize("threads", [1, 3])
def test_numbas_scans_take_no_more_threads_than_pytorch_was_given(threads, monkeypatch):
    scans = pytest.importorskip("rnncore_numba._scans")
    from rnncore_numba import _threads

    seen = []

    def spied(self, right, *arrays, **options):
        seen.append(_threads._limit.get())
        return right(self, *arrays, **options)

    for name in ("nonlinear", "linear"):
        monkeypatch.setattr(scans.NumbaScans, name, partialmethod(spied, getattr(scans.NumbaScans, name)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    rnn = nn.RNN(INPUT, HIDDEN)
    rnn(drawn(STEPS, BATCH, INPUT, dtype=torch.float32).requires_grad_())[0].sum().backward()
    assert seen == [threads, threads] and _threads._limit.get() is None


def test_the_host_scan_runs_where_explain_says(monkeypatch):
    from rnncore_torch import _steps

    asked = []
    real = _steps.shared
    monkeypatch.setattr(_steps, "shared", lambda x: asked.append(x.dtype) or real(x))
    for dtype in (torch.float32, torch.bfloat16):
        with torch.no_grad():
            nn.RNN(INPUT, HIDDEN, dtype=dtype)(drawn(STEPS, 1, INPUT, dtype=dtype))
    assert set(asked) == {torch.float32}


def test_a_single_small_step_runs_on_pytorchs_operations(host, monkeypatch):
    from rnncore_torch import _steps

    def refuse(x):
        raise AssertionError("no memory is handed over")

    assert "for a single small step" in str(nn.RNN(INPUT, HIDDEN).explain(steps=1))
    assert "for a single small step" not in str(nn.RNN(INPUT, 512).explain(steps=1, batch=64))
    monkeypatch.setattr(_steps, "shared", refuse)
    for options in CONFIGURATIONS[:6]:
        theirs, ours = pair(**options)
        shape = (BATCH, 1, INPUT) if options.get("batch_first") else (1, BATCH, INPUT)
        assert_same(theirs, ours, drawn(*shape).requires_grad_())


def test_infinity_and_nan_pass_in_silence_as_torchs_do(host):
    theirs, ours = pair(nonlinearity="relu")
    x = drawn(STEPS, BATCH, INPUT)
    x[0, 0, 0], x[1, 1, 1] = float("inf"), float("nan")
    np.testing.assert_array_equal(ours(x)[0].detach().isnan(), theirs(x)[0].detach().isnan())


@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"bidirectional": True}, {"num_layers": 2}])
def test_hooks_on_the_output_see_the_outputs_part_of_the_gradient_alone(options):
    """What the loss takes from h_n does not pass through the output."""
    found = []
    for module in pair(**options):
        output, h_n = module(drawn(STEPS, BATCH, INPUT))
        output.retain_grad()
        h_n.retain_grad()
        output.register_hook(lambda g: g.clamp(-0.5, 0.5))
        ((output**2).sum() + (3 * h_n).sum()).backward()
        found.append([output.grad, h_n.grad, *(w.grad for w in module.parameters())])
    for want, got in zip(*found, strict=True):
        assert_close(got, want)
