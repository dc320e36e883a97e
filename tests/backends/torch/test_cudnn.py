"""cuDNN in the place of the scans, where a module's call allows it."""

import contextlib

import pytest
import torch

from tests.tools.cuda_stand_in import NUMBER, fresh


@contextlib.contextmanager
def cudnn(monkeypatch, plugins=False):
    """Tensors seem to be on a GPU with a cuDNN, which torch.nn.RNN's own function for the CPU stands for; its calls."""
    from rnncore_torch import _cuda, _cudnn

    if not plugins:
        monkeypatch.setattr(_cuda, "backends", lambda: [])
    calls, run = [], _cudnn.run

    def noted(module, x, h0, weights, sizes):
        calls.append("padded" if sizes is None else "packed")
        return run(module, x, h0, weights, sizes)

    monkeypatch.setattr(_cudnn, "acceptable", lambda x: torch.backends.cudnn.enabled)
    monkeypatch.setattr(_cudnn, "run", noted)
    monkeypatch.delenv("RNNCORE_TORCH_CUDA", raising=False)
    with fresh(monkeypatch):
        yield calls


MODULES = (
    {},
    {"nonlinearity": "relu", "bias": False, "batch_first": True},
    {"bidirectional": True, "num_layers": 2, "dropout": 0.5},
)


def a_pair(**options):
    from rnncore_torch import nn

    torch.manual_seed(0)
    theirs, ours = torch.nn.RNN(5, 7, **options), nn.RNN(5, 7, **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("options", MODULES)
def test_without_kernels_a_module_is_torchs_to_the_bit(monkeypatch, options):
    ours, theirs = a_pair(**options)
    x, h0 = torch.randn(4, 9, 5), torch.randn(len(ours.all_weights), 9 if options.get("batch_first") is None else 4, 7)
    lengths = torch.tensor([3, 9, 1, 2])
    packed = torch.nn.utils.rnn.pack_padded_sequence(torch.randn(4, 9, 5), lengths, True, enforce_sorted=False)
    with cudnn(monkeypatch) as calls:
        found = []
        for module in (ours, theirs):
            torch.manual_seed(1)
            output, h_n = module(x, h0)
            unbatched, _ = module(x[0])
            data, last = module(packed)
            (output.square().sum() + h_n.sum() + data.data.square().sum() + last.sum() + unbatched.sum()).backward()
            found.append([output, h_n, unbatched, *data, last, *(p.grad for p in module.parameters())])
        assert calls == ["padded", "padded", "packed"]
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_what_asks_for_more_than_first_derivatives_is_not_cudnns(monkeypatch):
    ours, _ = a_pair()
    x = torch.randn(4, 2, 5)
    with cudnn(monkeypatch) as calls:
        torch.func.vmap(lambda v: ours(v)[0])(torch.randn(3, 4, 2, 5))
        torch.func.jvp(lambda v: ours(v)[0], (x,), (x,))
        with torch.autograd.forward_ad.dual_level():
            ours(torch.autograd.forward_ad.make_dual(x, x))
        with torch.backends.cudnn.flags(enabled=False):
            grad = torch.autograd.grad(ours(x.requires_grad_())[0].sum(), x, create_graph=True)[0]
            torch.autograd.grad(grad.sum(), x)
        for setting in ("pytorch", "kernels"):
            monkeypatch.setenv("RNNCORE_TORCH_CUDA", setting)
            ours(x)
        assert calls == []
        monkeypatch.delenv("RNNCORE_TORCH_CUDA")
        ours(x)
        with torch.no_grad():
            ours(x)
        assert calls == ["padded"] * 2


def test_a_call_that_the_kernels_take_is_not_cudnns(monkeypatch):
    """The rule decides for the dtype that is computed in: autocast's, where there is one."""
    from rnncore_torch import _cuda

    ours, _ = a_pair()
    x, asked = torch.randn(4, 2, 5), []

    def ruled(request):
        asked.append((request.scan, request.steps, request.batch, request.width, request.dtype, request.device))
        return (object() if request.dtype == "float32" else None), "as the test has it"

    with cudnn(monkeypatch) as calls:
        monkeypatch.setattr(_cuda, "ruled", ruled)
        monkeypatch.setattr(_cuda, "scans_for", lambda *a: None)
        ours(x)
        assert calls == [] and asked == [("nonlinear", 4, 2, 7, "float32", NUMBER)]
        with torch.autocast("cpu", torch.float16):
            ours(x)
        with torch.autocast("cpu", torch.bfloat16):  # which is not handed over to CuPy at all
            ours(x)
        assert calls == ["padded"] * 2 and [a[4] for a in asked[1:]] == ["float16"]
