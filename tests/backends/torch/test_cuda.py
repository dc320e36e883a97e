"""PyTorch's scans on CuPy's kernels."""

import warnings

import numpy as np
import pytest
import torch

import rnncore
from rnncore import get_nonlinearity, scan
from rnncore.backend.contract import ScanRequest
from rnncore.errors import ArgumentValueError
from tests.backends.cupy.test_launch import DEVICES, device, expected
from tests.tools.cuda_stand_in import NUMBER, PERSISTENT, POINTER, arguments, fresh, stand_in
from tests.tools.fake_cupy import needs_real_cupy, on_fake_cupy, python
from tests.tools.rounding import PROMISED, SECOND, agree

# In eps: the kernels sum float16 in float32, round each state once, and that passes on to a few more.
MULTIPLES = {torch.float64: PROMISED, torch.float32: PROMISED, torch.float16: 16}


def reference(u, d, s0, m, f, reverse):
    """Both scans in float64 by the plain ones: the nonlinear with p = u and W = m, and the linear with M = m^T."""
    u, d, s0, m = (x.detach().double().numpy() for x in (u, d, s0, m))
    return (
        scan.nonlinear(u, s0, m, nonlinearity=f, reverse=reverse, xp=np),
        scan.linear(u, d, s0, m.T, reverse=reverse, xp=np),
    )


def scans():
    return rnncore.get_backend("torch").scans()


@on_fake_cupy()
def test_both_scans_run_on_the_kernels_in_the_tensors_memory_and_on_their_stream():
    from cupy import _traffic
    from cupy.cuda import runtime

    f = get_nonlinearity("tanh", clip=0.9)
    for kind in PERSISTENT:
        told = stand_in(kind)
        for dtype, multiple in MULTIPLES.items():
            given = u, d, s0, m = arguments(9, 3, 70, dtype)
            before = [x.clone() for x in given]
            for reverse in (False, True):
                told.clear()
                _traffic.log.clear()
                runtime.synchronized.clear()
                got = (
                    scans().nonlinear(u, s0, m, nonlinearity=f, reverse=reverse),
                    scans().linear(u, d, s0, m.mT, reverse=reverse),
                )
                for ours, right in zip(got, reference(*given, f, reverse), strict=True):
                    assert ours.dtype == dtype
                    agree(ours, right, multiple)
                assert len(told.launches) == 2 and told.templates == {expected(kind)}
                assert {launch["stream"].ptr for launch in told.launches} == {POINTER + NUMBER}
                at = [pointer for pointer, _ in told.handed_over]
                # p is copied for the result, as is d; the rest is handed over as it is.
                assert at[0] == got[0].data_ptr() and at[4] == got[1].data_ptr()
                assert at[1:4] == [s0.data_ptr(), m.data_ptr(), u.data_ptr()] and at[5:] == at[1:3]
                assert {stream for _, stream in told.handed_over} == {POINTER + NUMBER}
                assert set(told.devices) == {NUMBER} and runtime.getDevice() == 0
                assert _traffic.log == [] and runtime.synchronized == []
            assert all(torch.equal(x, y) for x, y in zip(given, before, strict=True))


@on_fake_cupy()
def test_the_result_takes_the_place_only_of_what_may_be_overwritten_and_views_are_right():
    told, relu = stand_in(), get_nonlinearity("relu")
    u, d, s0, m = arguments(9, 3, 10)
    states, sums = reference(u, d, s0, m, relu, True)
    apart = torch.stack([u, u], -1)[..., 0]
    wide = torch.zeros(20, 20, dtype=m.dtype)
    wide[::2, ::2] = m
    minus = torch._neg_view(-u)
    assert minus.is_neg() and minus.is_contiguous() and not apart.is_contiguous()
    for overwrite in (False, True):
        for p in (apart, minus):
            kept = p.clone()
            got = scans().nonlinear(p, s0, wide[::2, ::2], nonlinearity=relu, reverse=True, overwrite=overwrite)
            agree(got, states)
            assert torch.equal(p, kept) and got.data_ptr() != p.data_ptr()
    got = scans().nonlinear(u, s0, torch._neg_view(-m), nonlinearity=relu, reverse=True)
    agree(got, states)
    ones, row = torch.ones(()).double().expand(u.shape), s0[:1].expand(s0.shape)
    factor = d.clone()
    got = scans().linear(ones, factor, row, m.mT, reverse=True, overwrite=True)
    right = reference(ones, d, row, m, relu, True)[1]
    agree(got, right)
    assert got.data_ptr() == factor.data_ptr()
    p = u.clone()
    got = scans().nonlinear(p, s0, m, nonlinearity=relu, reverse=True, overwrite=True)
    assert got.data_ptr() == p.data_ptr() and len(told.launches) == 7
    agree(p, states)
    agree(scans().linear(u, d, s0, m.mT, reverse=True), sums)


@on_fake_cupy()
def test_what_the_rule_leaves_to_pytorchs_operations_launches_nothing():
    import os

    from rnncore_cupy import _kernels
    from rnncore_torch import _cuda

    told, tanh = stand_in(), get_nonlinearity("tanh")
    own = rnncore.custom_nonlinearity(lambda z: z, lambda z: 1 + 0 * z, name="tanh")
    softplus = get_nonlinearity("softplus")

    def run(steps=9, batch=3, width=10, dtype=torch.float64, f=tanh, multiple=PROMISED):
        told.clear()
        given = u, d, s0, m = arguments(steps, batch, width, dtype)
        got = (
            scans().nonlinear(u, s0, m, nonlinearity=f, reverse=False),
            scans().linear(u, d, s0, m.mT, reverse=False),
        )
        for ours, right in zip(got, reference(*given, f, False), strict=True):
            agree(ours, right, multiple)
        return len(told.launches)

    assert run() == 2
    assert run(steps=_cuda.FEWEST_STEPS) == 2 and run(steps=_cuda.FEWEST_STEPS - 1) == 0
    # PyTorch's own operations round bfloat16 three times in each of nine steps.
    assert run(batch=0) == 0 and run(dtype=torch.bfloat16, multiple=27) == 0
    assert run(f=own) == 1 and run(f=softplus) == 1  # the linear scan knows no function
    torch.cuda.is_current_stream_capturing = lambda: True
    device("block")
    _cuda._ruled.cache_clear()
    assert run() == 0 and told.devices == [NUMBER, NUMBER] and _kernels.kernel.cache_info().currsize == 0
    torch.cuda.is_current_stream_capturing = lambda: False
    os.environ[_cuda.SETTING] = "pytorch"
    assert run() == 0
    os.environ[_cuda.SETTING] = "cupy"
    with pytest.raises(
        ArgumentValueError, match="RNNCORE_TORCH_CUDA: expected 'rule', 'kernels' or 'pytorch', got 'cupy'"
    ):
        run()
    os.environ[_cuda.SETTING] = "rule"
    assert run() == 2 and run(steps=1) == 0
    u, d, s0, m = arguments(9, 3, 10)
    told.clear()
    with pytest.raises(RuntimeError, match="dtype"):  # PyTorch's own word
        scans().linear(u, d, s0, m.float(), reverse=False)
    # A matrix for each of some leading axis is none of the kernels'; one for all is.
    stack = torch.stack([m, m])
    four = torch.stack([u, u], 1)
    many = scans().nonlinear(four, torch.stack([s0, s0]), stack, nonlinearity=tanh, reverse=False)
    assert told.launches == []
    one = scans().nonlinear(four, torch.stack([s0, s0]), m, nonlinearity=tanh, reverse=False)
    assert len(told.launches) == 1
    agree(one, many)
    stand_in("product")
    assert run(width=70) == 0


@on_fake_cupy()
def test_the_environment_can_have_every_scan_that_a_kernel_takes_run_on_the_kernels():
    """The conformance suite's scans have fewer steps than the rule asks for: this is how it checks the handing over."""
    import os

    from rnncore_torch import _cuda

    tanh, os.environ[_cuda.SETTING] = get_nonlinearity("tanh"), "kernels"
    for kind in DEVICES:
        told = stand_in(kind)
        for steps in (1, 9):
            for batch in (0, 3):
                told.clear()
                given = u, d, s0, m = arguments(steps, batch, 70)
                got = (
                    scans().nonlinear(u, s0, m, nonlinearity=tanh, reverse=True),
                    scans().linear(u, d, s0, m.mT, reverse=True),
                )
                for ours, right in zip(got, reference(*given, tanh, True), strict=True):
                    agree(ours, right)
                assert told.templates == (set() if batch == 0 else {expected(kind)})
                request = ScanRequest("linear", steps, batch, 70, "float64", torch.device("cuda", NUMBER), True, None)
                words = scans().explain(request)
                assert words.startswith("the kernel of" if batch else "PyTorch's operations")
                assert words.endswith("; RNNCORE_TORCH_CUDA=kernels")


@pytest.mark.slow
@on_fake_cupy()
def test_the_conformance_suite_reaches_the_kernels_and_passes():
    """What python -m benchmarks.gpu runs on a GPU; by the rule alone hardly a scan of it would be handed over."""
    import os

    from rnncore_torch import _cuda

    from rnncore.testing import check_backend

    warnings.filterwarnings("ignore", ".*torch.jit.script.* is deprecated")
    told, launches = stand_in(), {}
    for way in ("rule", "kernels"):
        os.environ[_cuda.SETTING] = way
        told.clear()
        report = check_backend("torch")
        assert report.ok, [(o.id, o.reason) for o in report.outcomes if o.status == "failed"]
        launches[way] = len(told.launches)
    assert launches["rule"] < launches["kernels"] / 4


@on_fake_cupy()
def test_without_the_kernels_cupy_is_not_even_asked_for():
    """Whoever has a CuPy that is broken gets by without it."""
    import os

    from rnncore_torch import _cuda

    told, tanh = stand_in(), get_nonlinearity("tanh")
    _cuda._plugin = None
    os.environ[_cuda.SETTING] = "pytorch"
    u, _, s0, m = arguments(9, 3, 10)
    scans().nonlinear(u, s0, m, nonlinearity=tanh, reverse=False)
    assert told.launches == []


@pytest.mark.slow
@on_fake_cupy()
def test_shapes_that_do_not_fit_are_never_handed_over():
    """A kernel reads as far as the shapes of a scan go, whatever is there."""
    told, tanh = stand_in(), get_nonlinearity("tanh")
    u, d, s0, m = arguments(9, 3, 10)
    for h0, w in ((s0[:2], m), (s0[:, :9], m), (s0, m[:9])):
        with pytest.raises(RuntimeError):
            scans().nonlinear(u, h0, w, nonlinearity=tanh, reverse=False)
    for given in ((u[:8], d, s0, m), (u, d[:, :2], s0, m), (u, d, s0[:2], m), (u, d, s0, m[:, :9])):
        with pytest.raises((RuntimeError, ValueError)):
            scans().linear(*given, reverse=False)
    assert told.launches == [] and told.handed_over == []


@on_fake_cupy()
def test_a_kernel_that_cannot_be_compiled_is_an_error_that_says_how_to_do_without():
    from rnncore_cupy import scans as cupys

    stand_in()

    def fail(request):
        raise RuntimeError("CuPy failed to load libnvrtc.so.13")

    type(cupys()).explain = staticmethod(fail)
    u, _, s0, m = arguments(9, 3, 10)
    with pytest.raises(RuntimeError, match="libnvrtc") as caught:
        scans().nonlinear(u, s0, m, nonlinearity=get_nonlinearity("tanh"), reverse=False)
    assert caught.value.__notes__ == [
        "RNNCORE_TORCH_CUDA=pytorch in the environment leaves CUDA tensors to PyTorch's operations"
    ]


@on_fake_cupy()
def test_a_cupy_that_takes_no_foreign_stream_is_left_alone():
    """CuPy 13, which many have, where 14 is asked for."""
    import cupy
    from rnncore_torch import _cuda, _steps

    assert not hasattr(cupy.cuda.Stream, "from_external")  # nor has the stand-in for CuPy
    cupy.__version__ = "13.6.0"
    _cuda.index_of, _steps.HOSTS = lambda x: NUMBER, ()
    steps_run_alone("CuPy 13.6.0 takes no stream of PyTorch's; CuPy 14 and later do")


@on_fake_cupy()
def test_explain_tells_what_is_then_launched_and_that_the_rule_is_not_measured():
    from rnncore_torch import _steps

    tanh = get_nonlinearity("tanh")
    for kind in DEVICES:
        told = stand_in(kind)
        for scan_kind, f in (("nonlinear", tanh), ("linear", None)):
            told.clear()
            request = ScanRequest(scan_kind, 9, 3, 70, "float64", torch.device("cuda", NUMBER), False, f)
            words = scans().explain(request)
            assert words.endswith("; the rule is not measured on a GPU yet")
            u, d, s0, m = arguments(9, 3, 70)
            if f is None:
                scans().linear(u, d, s0, m, reverse=False)
            else:
                scans().nonlinear(u, s0, m, nonlinearity=f, reverse=False)
            names = [launch["name"] for launch in told.launches]
            if kind == "product":
                assert names == [] and words.startswith("PyTorch's operations (cupy: step_alone<double, ")
            else:
                (name,) = names
                assert words.startswith("the kernel of backend 'cupy', on the tensor's own memory and stream: " + name)
    words = _steps.reason(ScanRequest("linear", 9, 3, 70, "bfloat16", torch.device("cuda", NUMBER)))
    assert words == "PyTorch's operations, as bfloat16 is not handed over to CuPy"


@pytest.mark.slow
@on_fake_cupy()
def test_gradients_of_first_and_second_order_go_through_the_kernels():
    told, tanh = stand_in(), get_nonlinearity("tanh")
    u, d, s0, m = arguments(8, 2, 3, requires_grad=True)
    for reverse in (False, True):

        def nonlinear(p, h0, w, reverse=reverse):
            return scans().nonlinear(p, h0, w, nonlinearity=tanh, reverse=reverse)

        def linear(*given, reverse=reverse):
            return scans().linear(*given, reverse=reverse)

        for function, given in ((nonlinear, (u, s0, m)), (linear, (u, d, s0, m))):
            assert torch.autograd.gradcheck(function, given)
            told.clear()
            assert torch.autograd.gradgradcheck(function, given)
            assert told.templates == {"block_scan"} and any("LINEAR" in launch["name"] for launch in told.launches)
    told.clear()
    first = torch.autograd.grad(nonlinear(u, s0, m).square().sum(), (u, s0, m), create_graph=True)
    assert len(told.launches) == 2
    torch.autograd.grad(sum(g.square().sum() for g in first), (u, s0, m))
    assert len(told.launches) > 3


@on_fake_cupy()
def test_the_modules_give_torchs_outputs_and_gradients_by_the_kernels():
    from rnncore_torch import nn

    for kind, width in (("block", 21), ("grid", 69)):
        told = stand_in(kind)
        for options in ({}, {"bidirectional": True, "num_layers": 2}, {"nonlinearity": "relu", "batch_first": True}):
            torch.manual_seed(0)
            ours, theirs = (make(5, width, dtype=torch.float64, **options) for make in (nn.RNN, torch.nn.RNN))
            ours.load_state_dict(theirs.state_dict())
            x = arguments(9, 9, 5)[0].requires_grad_()
            told.clear()
            got, want = ours(x), theirs(x)
            layers = len(ours.all_weights)
            assert len(told.launches) == layers and told.templates == {expected(kind)}
            found, right = (
                torch.autograd.grad(out[0].square().sum() + out[1].sum(), (x, *net.parameters()))
                for out, net in ((got, ours), (want, theirs))
            )
            assert len(told.launches) == 2 * layers
            for a, b in zip((*got, *found), (*want, *right), strict=True):
                agree(a, b)
            with torch.inference_mode():
                agree(ours(x)[0], want[0])
            assert len(told.launches) == 3 * layers


@pytest.mark.slow
@on_fake_cupy()
def test_torch_func_and_a_network_of_rnncores_run_on_the_kernels():
    told = stand_in()
    host = rnncore.RNN(3, 4, bidirectional=True, rng=0)
    rnn = host.to("torch")
    x = arguments(24, 2, 3)[0]
    got, want = rnn.vjp(x, lengths=[24, 11]), host.vjp(x.numpy(), lengths=[24, 11])
    assert len(told.launches) == 4  # both directions, before and after the end of the shorter
    gradients, right = got[2](got[0], got[1]), want[2](want[0], want[1])
    agree(got[0], want[0])
    for name, value in right.params.items():
        agree(gradients.params[name], value)
    assert told.templates == {"block_scan"} and len(told.launches) == 6
    u, _, s0, m = arguments(8, 2, 3)
    tanh = get_nonlinearity("tanh")

    def loss(w, run=scan.nonlinear, **xp):
        return run(u, s0, w, nonlinearity=tanh, reverse=False, **xp).square().sum()

    from array_api_compat import torch as plain

    told.clear()
    warnings.filterwarnings("ignore", ".*torch.jit.script.* is deprecated")  # PyTorch's own, in its forward mode
    ours = torch.func.hessian(lambda w: loss(w, scans().nonlinear))(m)
    theirs = torch.func.hessian(lambda w: loss(w, xp=plain))(m)
    assert told.templates == {"block_scan"}
    agree(ours, theirs, SECOND)


@on_fake_cupy()
def test_a_kernel_that_fails_is_the_callers_to_see():
    from cupy import _raw
    from rnncore_torch import nn

    stand_in()
    rnn, x = nn.RNN(5, 6), torch.ones(9, 2, 5)
    output = rnn(x)[0].sum()

    def fail(*args):
        raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS")

    _raw.runner = fail
    for call in (output.backward, lambda: rnn(x), torch.no_grad()(lambda: rnn(x))):
        with pytest.raises(RuntimeError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
            call()


@on_fake_cupy(devices=0)
def test_a_cupy_without_a_device_leaves_pytorchs_operations_and_its_reason():
    from rnncore_torch import _cuda, _steps

    _cuda.index_of, _steps.HOSTS = lambda x: NUMBER, ()
    steps_run_alone("cudaErrorNoDevice: no CUDA-capable device is detected")


def test_a_sign_that_is_not_in_memory_is_no_fault_on_the_host():
    tanh, given = get_nonlinearity("tanh"), arguments(9, 2, 5)
    u, d, s0, m = given
    states, sums = reference(*given, tanh, False)
    minus = [torch._neg_view(-x) for x in (u, d, s0, m)]
    got = scans().nonlinear(minus[0], minus[2], minus[3], nonlinearity=tanh, reverse=False, overwrite=True)
    agree(got, states)
    agree(scans().linear(*minus[:3], minus[3].mT, reverse=False), sums)


def test_without_cupys_backend_pytorchs_operations_run(monkeypatch):
    from rnncore_torch import _cuda

    monkeypatch.setattr(_cuda, "backends", lambda: [])
    with fresh(monkeypatch):
        steps_run_alone("there is no backend 'cupy' with CUDA kernels")


def test_what_is_built_for_rocm_is_left_alone(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "7.0")
    with fresh(monkeypatch):
        steps_run_alone("PyTorch is built for ROCm, and the kernels are CUDA's")


def steps_run_alone(why):
    """PyTorch's operations give the right numbers, and explain says why they run."""
    from rnncore_torch import _steps

    words = _steps.reason(ScanRequest("linear", 9, 2, 5, "float64", torch.device("cuda", NUMBER)))
    assert words.startswith("PyTorch's operations (") and why in words, words
    tanh, given = get_nonlinearity("tanh"), arguments(9, 2, 5)
    u, d, s0, m = given
    states, sums = reference(*given, tanh, False)
    agree(scans().nonlinear(u, s0, m, nonlinearity=tanh, reverse=False), states)
    agree(scans().linear(u, d, s0, m.mT, reverse=False), sums)


@needs_real_cupy
def test_the_real_cupy_takes_pytorchs_stream_without_a_warning():
    """Making a stream of a pointer touches no device: the names and the protocol are CuPy's own."""
    code = """
import cupy
from rnncore_torch import _cuda
stream = cupy.cuda.Stream.from_external(_cuda._External(4711))
print(stream.ptr)
"""
    assert python(code) == "4711"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")
def test_on_a_gpu_the_kernels_agree_with_the_reference_on_a_stream_of_ones_own():
    tanh, given = get_nonlinearity("tanh"), arguments(64, 5, 300)
    with torch.cuda.stream(torch.cuda.Stream()):
        u, d, s0, m = (x.cuda() for x in given)
        got = (
            scans().nonlinear(u, s0, m, nonlinearity=tanh, reverse=True),
            scans().linear(u, d, s0, m.mT, reverse=True),
        )
        hosts = [x.cpu() for x in got]
    for ours, right in zip(hosts, reference(*given, tanh, True), strict=True):
        agree(ours, right)
